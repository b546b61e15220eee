"""What a client may have released, as far as the coordinator knows.

A client's own statement covers all that its ledger was charged. Of one that has not answered, the
coordinator computes it: all rounds of the run in which it may have released something, and all of
the runs and removals that the run's first version comes from.
"""

import json

from fedpeft.dp.events import DpSgdEvent
from fedpeft.federated.terms import RunTerms
from fedpeft.unlearning.order import JobResult
from fedpeft_server.missing import MAY_HAVE_RELEASED
from fedpeft_server.records import Participant
from fedpeft_server.removals.family import Family
from fedpeft_server.state import NotFoundError, State


def round_event(participant: Participant, terms: RunTerms) -> DpSgdEvent:
    """Returns what one round of a private run costs a participant."""
    assert participant.noise_multiplier is not None
    return DpSgdEvent(
        noise_multiplier=participant.noise_multiplier,
        sampling_prob=participant.expected_batch_size / participant.num_examples,
        num_steps=terms.federation.local_steps,
    )


def num_rounds(state: State, run_id: str, client_id: str) -> int:
    """Returns in how many finished rounds a client may have released something."""
    return sum(
        client_id in record.cohort or record.missing.get(client_id) in MAY_HAVE_RELEASED
        for record in state.rounds(run_id)
    )


def before_run(state: State, run_id: str, client_id: str) -> list[DpSgdEvent]:
    """Returns what a client may have released into the version that a run starts from."""
    start = state.run(run_id).start_from
    if start is None:
        return []
    line = Family(state.adapters()).line(state.adapter(start))
    earlier = dict.fromkeys(version.run_id for version in line)
    return [event for name in earlier for event in _released(state, name, client_id)]


def _released(state: State, run_id: str, client_id: str) -> list[DpSgdEvent]:
    """All of one run, or of one removal, whose run has its request's id."""
    plan = state.plan(run_id)
    if plan is not None:
        terms = RunTerms.from_json(plan.terms_json)
        count = num_rounds(state, run_id, client_id)
        return [
            round_event(participant, terms).repeated(count)
            for participant in plan.participants
            if participant.client_id == client_id and terms.privacy.enabled and count
        ]
    try:
        removal = state.removal(run_id)
    except NotFoundError:  # made elsewhere
        return []
    if removal.client_id != client_id or removal.result is None:
        return []
    job = JobResult.from_json(json.dumps(removal.result["job"]))
    return [] if job.privacy is None else [job.privacy.event]
