"""How a run comes to its clients: all are offered its terms, and who accepts is planned for."""

from collections.abc import Mapping

from fedpeft.errors import IdentityError, PrivacyError, ProtocolError
from fedpeft.federated.messages import Acceptance
from fedpeft.federated.terms import RunTerms
from fedpeft_server import events
from fedpeft_server.conversation import converse
from fedpeft_server.records import RunPlanRecord
from fedpeft_server.run_context import RunContext

_WAIT_S = 5.0
_OFFER_S = 120.0


def agree(context: RunContext, terms: RunTerms) -> RunPlanRecord:
    """Returns the plan of the run, made and stored the first time.

    It waits until as many clients as the run needs have accepted, and then for those that are
    online and were asked, so that a client that joined in time is not left out.

    Raises:
        StoppedError: If the run was asked to stop.
        PrivacyError: If no plan keeps all budgets.
    """
    stored = context.state.plan(terms.run_id)
    if stored is not None:
        return stored
    federation = terms.federation
    needed = max(
        federation.num_clients or 1, (federation.clients_per_round or 0) + federation.over_selection
    )
    accepted: dict[str, Acceptance] = {}
    answered: set[str] = set()
    announced = -1
    while len(accepted) < needed:
        present = context.post.online() & context.enrolled()
        letters = {c: context.correspondence.offer(terms) for c in present - answered}
        for client_id, answer in converse(
            context.post,
            letters,
            enrolled=context.enrolled,
            timeout_s=_OFFER_S,
            stop=context.stop,
        ):
            answered.add(client_id)
            try:
                read = context.correspondence.read_offer_answer(client_id, terms, answer)
            except (ProtocolError, IdentityError) as error:
                context.reject(0, client_id, error)
                continue
            context.heard(client_id)
            if isinstance(read.answer, Acceptance):
                accepted[client_id] = read.answer
                context.tell(
                    events.ACCEPTED, client_id=client_id, num_examples=read.answer.num_examples
                )
            else:
                context.refused(0, client_id, read.answer)
        if len(accepted) < needed and announced != len(accepted):
            announced = len(accepted)
            context.tell(events.WAITING, accepted=announced, needed=needed)
        if len(accepted) < needed:
            context.wait(_WAIT_S if not letters else 0.0)
    plan = _plan(context, terms, accepted)
    context.state.save_plan(terms.run_id, plan)
    private = terms.privacy.enabled
    context.tell(
        events.PLANNED,
        clients=[participant.client_id for participant in plan.participants],
        num_rounds=federation.num_rounds,
        target_epsilon=terms.privacy.target_epsilon if private else None,
        delta=terms.privacy.delta if private else None,
    )
    return plan


def _plan(
    context: RunContext, terms: RunTerms, accepted: Mapping[str, Acceptance]
) -> RunPlanRecord:
    if terms.privacy.enabled and any(a.remaining_epsilon is None for a in accepted.values()):
        raise PrivacyError("a client accepted a private run and named no budget")
    plan: RunPlanRecord = context.compute("plan", terms, accepted)
    return plan
