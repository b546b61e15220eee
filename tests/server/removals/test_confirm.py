"""Whether replicas serve what was published: by their outputs, in whatever precision they serve."""

import pytest

from fedpeft.ledger.chain import utc_now
from fedpeft.registry.fingerprint import Fingerprint
from fedpeft_server.records import ReplicaRecord
from fedpeft_server.removals.confirm import Confirmation

BEFORE, AFTER = (-1.0, -2.0, -3.0), (-1.4, -2.0, -3.5)
NEW, OLD = "a" * 64, "b" * 64


def fingerprint(*values: float) -> str:
    return Fingerprint(values=values).to_json()


def problem(adapter: str, fingerprint_json: str, told: str = "") -> str:
    confirmation = Confirmation(
        request_id="0" * 16,
        aliases=["production"],
        adapter=NEW,
        fingerprint_json=fingerprint(*AFTER),
        before_json=fingerprint(*BEFORE),
        until_s=0.0,
    )
    replica = ReplicaRecord(
        replica_id="ab" * 8,
        alias="production",
        adapter=adapter,
        fingerprint_json=fingerprint_json,
        problem=told,
        operated_by="reader",
        reported_at=utc_now(),
    )
    return confirmation._problem(replica)


def test_the_successors_outputs_confirm() -> None:
    assert problem(NEW, fingerprint(*AFTER)) == ""


def test_outputs_in_half_precision_confirm() -> None:
    assert problem(NEW, fingerprint(-1.38, -2.03, -3.46)) == ""


@pytest.mark.parametrize(
    "values", [BEFORE, (-1.02, -1.99, -3.01), (-1.2, -2.0, -3.25), (9.0, 9.0, 9.0)]
)
def test_a_swap_that_did_nothing_or_something_else_does_not(values: tuple[float, ...]) -> None:
    assert "not those of the successor" in problem(NEW, fingerprint(*values))


def test_the_old_digest_does_not_confirm() -> None:
    assert "serves bbbb" in problem(OLD, fingerprint(*AFTER))
    assert problem(OLD, fingerprint(*AFTER), told="no memory") == "no memory"


@pytest.mark.parametrize("text", ["", "{", '{"version": 2}'])
def test_what_cannot_be_read_does_not(text: str) -> None:
    assert "cannot be read" in problem(NEW, text)
