"""What must hold of every ledger and every version, however a run was disturbed.

What was released is not read off the client's ledger but computed from what the server told while
the run went on: whose updates it stored, and with which noise.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable

from fedpeft.dp.accounting import epsilon
from fedpeft.dp.events import DpSgdEvent
from fedpeft.ledger import Ledger, Reservation
from fedpeft.remote.records import Participant, RunDetails, RunEvent
from fedpeft_server import events
from tests.e2e.federation import DELTA, Federation, Member, Watched


def check_whole(federation: Federation, watched: Watched, run: RunDetails) -> None:
    """Every client is in every round, and paid once for each, if it had to pay at all."""
    private = run.config["privacy"].get("enabled", True)
    for record in run.rounds:
        assert set(record.cohort) == set(federation.clients), f"{record}\n{watched.story()}"
    if private:
        check_charges(federation, watched, run)
    for member in federation.clients.values():
        assert num_charges(member, run.run.run_id) == (run.run.num_rounds if private else 0)


def check_same_adapters(run: RunDetails, expected: RunDetails) -> None:
    """Round for round, bit for bit."""
    for one, other in zip(run.rounds, expected.rounds, strict=True):
        assert one.cohort == other.cohort
        assert one.adapter == other.adapter, f"round {one.round} made another adapter"


def check_charges(federation: Federation, watched: Watched, run: RunDetails) -> None:
    """Nobody was charged less than was released, nor twice for one round, and all say the same."""
    for participant in run.participants:
        member = federation.clients[participant.client_id]
        updates = updates_of(member, watched)
        check_ledger(member, run.run.run_id, rounds=[u.round for u in updates if u.round])
        check_spent(participant, run, [u.body["epsilon_spent"] for u in updates])
    check_mirrors(federation, run)


def check_ledger(member: Member, run_id: str, *, rounds: Iterable[int]) -> None:
    """Its chain is sound; every round whose update the server has was charged once, and released.

    Rounds that are charged and were not received may be there: their update may have left.
    """
    received = set(rounds)
    with Ledger.open(member.ledger, read_only=True) as ledger:
        ledger.verify()
        charged = {r: ledger.release_of(r) for r in charges(ledger, run_id)}
    twice = [n for n, times in Counter(map(round_of, charged)).items() if times > 1]
    assert not twice, f"{member.name} was charged twice for the rounds {twice}"
    released = {round_of(reservation) for reservation, digest in charged.items() if digest}
    assert received <= released, f"{member.name} sent {received - released}, which are not released"


def check_spent(participant: Participant, run: RunDetails, stated: list[float]) -> None:
    """After each of its updates a client said that it spent at least what they cost together."""
    event = event_of(participant, run)
    for number, spent in enumerate(stated, start=1):
        least = epsilon([event.repeated(number)], DELTA)
        assert spent >= least > 0, f"{participant.client_id} says {spent}, and released {least}"


def check_mirrors(federation: Federation, run: RunDetails) -> None:
    """The server's copies of a budget are never below what the client released until then.

    In the end, if its last update was received, they are what its own ledger says.
    """
    budgets = {b.client_id: b for b in federation.operator.list_budgets()}
    versions = federation.operator.list_adapters(run.run.run_id)
    for participant in run.participants:
        name, event = participant.client_id, event_of(participant, run)
        mine = federation.clients[name].spent()
        for version in versions[1:]:
            number = sum(name in r.cohort for r in run.rounds[: version.round])
            least = epsilon([event.repeated(number)], DELTA) if number else 0.0
            said = version.epsilon.get(name, 0.0)
            assert said >= least, f"round {version.round} says less of {name}: {said} < {least}"
        assert versions[-1].epsilon[name] >= budgets[name].epsilon_spent
        if name in run.rounds[-1].cohort:
            assert math.isclose(budgets[name].epsilon_spent, mine, rel_tol=1e-12)


def num_charges(member: Member, run_id: str) -> int:
    """Reservations of a run in a client's ledger."""
    with Ledger.open(member.ledger, read_only=True) as ledger:
        return len(charges(ledger, run_id))


def charges(ledger: Ledger, run_id: str) -> list[Reservation]:
    [balance] = ledger.balances()
    found = ledger.reservations(balance.fingerprint)
    return [r for r in found if r.purpose.startswith(f"run {run_id} ")]


def round_of(reservation: Reservation) -> int:
    found = re.search(r" round (\d+) ", reservation.purpose)
    assert found is not None
    return int(found[1])


def updates_of(member: Member, watched: Watched) -> list[RunEvent]:
    return [e for e in watched.events if e.kind == events.UPDATE and e.client_id == member.name]


def event_of(participant: Participant, run: RunDetails) -> DpSgdEvent:
    """What one round of a client releases, from the run's configuration and what was planned."""
    federation = run.config["federation"]
    batch = federation.get("expected_batch_size")
    sampling_prob = federation.get("sampling_prob") or batch / participant.num_examples
    assert participant.noise_multiplier is not None
    return DpSgdEvent(
        noise_multiplier=participant.noise_multiplier,
        sampling_prob=min(1.0, sampling_prob),
        num_steps=federation["local_steps"],
    )
