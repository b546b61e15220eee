"""Rows that are to be forgotten: kept durably, known again, and in no update from then on."""

import stat
from pathlib import Path

import pytest

from fedpeft.errors import DataError, LedgerError
from fedpeft.federated import refusals
from fedpeft.federated.messages import Refusal, UpdateHeader
from fedpeft.federated.tombstones import Tombstones
from fedpeft.types import tensor_digest
from tests.federated.client_rounds import PLAN_DIGEST, make_client, plan_for, terms_for

ROWS = [{"text": "the red sky", "label": "warm"}, {"text": "Ice", "label": "cold"}, {"text": "sea"}]


@pytest.fixture
def tombstones(tmp_path: Path) -> Tombstones:
    return Tombstones(tmp_path / "tombstones")


def test_rows_are_known_again_however_they_are_saved(tombstones: Tombstones) -> None:
    tombstones.add("first", ROWS[1:2])
    again = [{"label": "COLD ", "text": "ice"}, {"text": "ice cold", "label": ""}, *ROWS]
    assert tombstones.held(again) == [0, 3]


def test_requests_are_told_apart_and_share_rows(tombstones: Tombstones) -> None:
    assert tombstones.add("first", ROWS[:2]) == 2
    assert tombstones.add("second", ROWS[1:]) == 3
    assert tombstones.held(ROWS) == [0, 1, 2]
    assert tombstones.held(ROWS, "first") == [0, 1]
    assert tombstones.held(ROWS, "second") == [1, 2]
    assert tombstones.held(ROWS, "third") == []


def test_the_version_changes_with_the_rows_alone(tombstones: Tombstones) -> None:
    assert tombstones.version == ""
    tombstones.add("first", ROWS[:1])
    first = tombstones.version
    tombstones.add("second", ROWS[:1])
    assert tombstones.version == first != ""
    tombstones.add("second", ROWS[1:2])
    assert tombstones.version != first


def test_nobody_else_reads_them_and_no_row_stands_there(tombstones: Tombstones) -> None:
    tombstones.add("first", ROWS)
    folder = tombstones._folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert b"sky" not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_the_same_row_of_two_clients_has_two_hashes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Tombstones(tmp_path / name).add("first", ROWS[:1])
    assert (tmp_path / "a/rows.json").read_text() != (tmp_path / "b/rows.json").read_text()


@pytest.mark.parametrize("name", ["salt", "rows.json"])
def test_what_is_damaged_is_refused(tombstones: Tombstones, name: str) -> None:
    """Nobody knows then what may be trained on."""
    tombstones.add("first", ROWS)
    (tombstones._folder / name).write_text("{")
    with pytest.raises(LedgerError, match="not known which rows are to be forgotten"):
        tombstones.held(ROWS)


def test_a_salt_that_is_gone_is_refused(tombstones: Tombstones) -> None:
    tombstones.add("first", ROWS)
    (tombstones._folder / "salt").unlink()
    with pytest.raises(LedgerError):
        tombstones.held(ROWS)
    with pytest.raises(LedgerError):
        tombstones.add("second", ROWS)


def test_no_rows_are_no_request(tombstones: Tombstones) -> None:
    with pytest.raises(DataError):
        tombstones.add("first", [])
    assert tombstones.version == ""


# --- in rounds


def test_a_tombstoned_row_is_in_no_gradient(tiny_bert: Path, tmp_path: Path) -> None:
    """The update is that of rows of which this one was never usable: same count, same coins."""
    terms = terms_for(tiny_bert)
    client = make_client(tmp_path / "client", tiny_bert)
    rows = list(client.rows.table.records())
    client.tombstones.add("first", rows[:4])
    _, dataset = client.round()._workplace.prepared(terms)
    assert len(dataset) == client.rows.num_examples
    assert all(dataset.targets[row] == -100 for row in range(4))
    assert any(target != -100 for target in dataset.targets[4:])


def test_tombstones_while_a_round_trains_keep_its_update_back(
    tiny_bert: Path, tmp_path: Path
) -> None:
    terms = terms_for(tiny_bert)
    client = make_client(tmp_path / "client", tiny_bert)
    start = client.adapter(terms)
    rows = list(client.rows.table.records())

    class Asking:
        """Asks for a removal in the middle of the training."""

        def note(self, message: str) -> None:
            client.notes.note(message)

        def step_finished(self, step: int, num_steps: int) -> None:
            client.tombstones.add("first", rows[:2])

    plan = plan_for(terms, start)
    reply, update = client.round(watcher=Asking()).train(plan, start, PLAN_DIGEST)
    assert update is None
    assert isinstance(reply.answer, Refusal)
    assert reply.answer.code == refusals.REMOVED
    [reservation] = client.ledger.reservations(client.rows.dataset)
    assert client.ledger.release_of(reservation) is None, "nothing was released"
    # Asked again it trains without them, under the same reservation.
    reply, update = client.round().train(plan, start, PLAN_DIGEST)
    assert isinstance(reply.answer, UpdateHeader)
    assert update is not None
    assert client.num_reservations() == 1
    assert client.ledger.release_of(reservation) == tensor_digest(update)


def test_an_update_that_was_sent_is_not_sent_again(tiny_bert: Path, tmp_path: Path) -> None:
    terms = terms_for(tiny_bert)
    client = make_client(tmp_path / "client", tiny_bert)
    start = client.adapter(terms)
    plan = plan_for(terms, start)
    _, sent = client.round().train(plan, start, PLAN_DIGEST)
    assert sent is not None
    client.tombstones.add("first", list(client.rows.table.records())[:1])
    reply, update = client.round().train(plan, start, PLAN_DIGEST)
    assert update is None
    assert isinstance(reply.answer, Refusal)
    assert reply.answer.code == refusals.REMOVED
    assert client.num_reservations() == 1, "and nothing is trained for it a second time"


def test_damaged_tombstones_stop_training(tiny_bert: Path, tmp_path: Path) -> None:
    terms = terms_for(tiny_bert)
    client = make_client(tmp_path / "client", tiny_bert)
    start = client.adapter(terms)
    client.tombstones.add("first", list(client.rows.table.records())[:1])
    (client.folder / "tombstones" / "salt").unlink()
    reply, update = client.round().train(plan_for(terms, start), start, PLAN_DIGEST)
    assert update is None
    assert isinstance(reply.answer, Refusal)
    assert reply.answer.code == refusals.LEDGER
    assert client.num_reservations() == 0
