"""`fedpeft removal` against a server that listens in this process."""

import json
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedpeft.cli.main import run
from fedpeft.cli.removal_rows import deadline_of
from fedpeft.errors import InputError, UnavailableError
from fedpeft.federated.tombstones import Tombstones
from fedpeft.models.sources import read_table
from fedpeft.remote import Connection
from fedpeft.unlearning.gate.config import GateConfig
from fedpeft.unlearning.plan import RemovalPlan
from fedpeft.unlearning.receipt import KIND, Request, make_receipt
from fedpeft.unlearning.records import JobRows
from fedpeft.unlearning.sealing import open_sealed
from fedpeft_client.state_folder import StateFolder
from fedpeft_server.records import RemovalRecord, RemovalState
from fedpeft_server.removals import events
from tests.server.control_rig import Rig, listening
from tests.server.removal_requests import trained

Fedpeft = Callable[..., tuple[int, str, str]]
SECRET = "Basil Mahfouz"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with listening(tmp_path_factory.mktemp("federation"), max_open_removals=1000) as opened:
        yield opened


@pytest.fixture
def fedpeft(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Fedpeft:
    """Runs a command, as the clinic by default, and returns exit code, output and errors."""
    monkeypatch.setenv("FEDPEFT_SERVER", rig.address)
    monkeypatch.setenv("COLUMNS", "250")

    def call(*arguments: object, by: str = "clinic") -> tuple[int, str, str]:
        monkeypatch.setenv("FEDPEFT_IDENTITY", str(rig.holders.folder / by))
        monkeypatch.setattr(sys, "argv", ["fedpeft", "removal", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            run()
        out, err = capsys.readouterr()
        return int(exit_info.value.code or 0), out, err.strip()

    return call


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The clinic's rows."""
    path = tmp_path / "own.jsonl"
    rows = [
        {"id": n, "patient": f"{SECRET} {n}", "text": f"message {n}", "label": "xy"[n % 2]}
        for n in range(10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The clinic's folder."""
    return StateFolder.create(tmp_path / "state", "").path


def newest(rig: Rig) -> RemovalRecord:
    return rig.state.removals()[-1]


def sent(rig: Rig, removal: RemovalRecord) -> JobRows:
    assert removal.sealed is not None
    assert removal.job_private_key is not None
    sealed = rig.artifacts.get(removal.sealed)
    return JobRows.from_bytes(open_sealed(removal.job_private_key, removal.request_id, sealed))


# --- asking


def test_records_are_marked_sealed_and_sent(
    rig: Rig, fedpeft: Fedpeft, own: Path, state: Path, tmp_path: Path
) -> None:
    adapter = trained(rig)
    held_out = tmp_path / "new.csv"
    held_out.write_text("text,label,source\nnobody saw this,x,elsewhere\n")
    code, out, err = fedpeft(
        *("request", "--adapter", adapter[:12], "--data", own, "--ids", "3, 7", "--state", state),
        *(
            "--client",
            "clinic",
            "--held-out",
            held_out,
            "--retain",
            5,
            "--deadline",
            "30d",
            "--precision",
            "fp32",
        ),
        *("--set", "unlearning.num_epochs=2", "--set", "gate.max_remaining=0.4", "--json"),
    )
    assert code == 0, err
    told = json.loads(out)
    removal = newest(rig)
    assert (told["request_id"], told["state"]) == (removal.request_id, "planned")
    assert told["plan"]["gate"]["max_remaining"] == 0.4
    assert "job_public_key" not in told
    assert removal.settings == {
        "unlearning": {"num_epochs": 2},
        "gate": {"max_remaining": 0.4},
        "precisions": ["fp32"],
    }
    assert removal.deadline is not None
    assert timedelta(days=29) < removal.deadline - datetime.now(UTC) < timedelta(days=31)
    rows = sent(rig, removal)
    assert rows.forget == [
        {"text": "message 3", "label": "y"},
        {"text": "message 7", "label": "y"},
    ]
    assert len(rows.retain) == 5
    assert rows.held_out == [{"text": "nobody saw this", "label": "x"}]
    assert all(set(row) == {"text", "label"} for row in (*rows.forget, *rows.retain))
    # All columns are in the mark: another row with the same text is another row.
    table = read_table(str(own), [])
    assert Tombstones(StateFolder(state).tombstones).held(table.records()) == [3, 7]
    salt = rig.holders.folder / "clinic" / "records.salt"
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (("--query", "label=x", "--query", "id=4"), ["message 4"]),
        (("--records",), ["message 1", "message 2"]),
        (("--ids", "message 9", "--id-column", "text"), ["message 9"]),
    ],
    ids=["query", "file", "ids of another column"],
)
def test_ways_to_name_records(
    rig: Rig,
    fedpeft: Fedpeft,
    own: Path,
    state: Path,
    tmp_path: Path,
    chosen: tuple[str, ...],
    expected: list[str],
) -> None:
    if chosen == ("--records",):
        (tmp_path / "gone.csv").write_text("id,text\n2,message 2\n1,message 1\n")
        chosen = ("--records", str(tmp_path / "gone.csv"))
    code, _, err = fedpeft(
        *("request", "--adapter", trained(rig), "--data", own, "--state", state, *chosen)
    )
    assert code == 0, err
    assert [row["text"] for row in sent(rig, newest(rig)).forget] == expected


def test_rows_without_a_value_are_not_sent_along(
    rig: Rig, fedpeft: Fedpeft, own: Path, state: Path
) -> None:
    """They taught nothing, and a job could not use them."""
    with own.open("a") as file:
        file.write('{"id": 10, "patient": "p", "text": "message 10", "label": null}\n')
    code, _, err = fedpeft(
        *("request", "--adapter", trained(rig), "--data", own, "--ids", "1", "--state", state)
    )
    assert code == 0, err
    assert len(sent(rig, newest(rig)).retain) == 9


def test_asking_again_goes_on_with_the_same_request(
    rig: Rig, fedpeft: Fedpeft, own: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the records were sent."""
    asked = ("request", "--adapter", trained(rig), "--data", own, "--ids", "1", "--state", state)

    def cut(*_: object) -> None:
        raise UnavailableError("the line is cut")

    before = len(rig.state.removals())
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "upload_records", cut)
        assert fedpeft(*asked)[0] == 5
    first = newest(rig)
    assert first.state is RemovalState.RECEIVED
    for _ in range(2):
        code, out, err = fedpeft(*asked)
        assert (code, first.request_id in out) == (0, True), err
    assert newest(rig).state is RemovalState.PLANNED
    assert len(rig.state.removals()) == before + 1
    # Another method is another request, which the open one keeps from being made.
    code, _, err = fedpeft(*asked, "--method", "kl")
    assert (code, first.request_id in err) == (4, True)
    # One that has ended is not gone on with: what failed may be asked for again.
    rig.removals.turn(first.request_id, RemovalState.FAILED, reason="the gate")
    assert fedpeft(*asked)[0] == 0
    assert newest(rig).request_id != first.request_id


def test_nothing_is_marked_where_the_server_refuses(
    rig: Rig, fedpeft: Fedpeft, own: Path, state: Path
) -> None:
    private = trained(rig, epsilon=0.5)
    asked = ("request", "--data", own, "--ids", "1", "--state", state, "--adapter")
    code, _, err = fedpeft(*asked, private)
    assert (code, "--void-guarantee" in err) == (4, True)
    assert fedpeft(*asked, "0" * 12)[0] == 4
    assert not StateFolder(state).tombstones.exists()


def test_rows_are_marked_before_anything_begins(
    rig: Rig, fedpeft: Fedpeft, own: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that begins at once must not train on them again."""
    held: list[list[int]] = []
    real = rig.removals.start

    def start(request_id: str) -> None:
        table = read_table(str(own), [])
        held.append(Tombstones(StateFolder(state).tombstones).held(table.records()))
        real(request_id)

    monkeypatch.setattr(rig.removals, "start", start)
    adapter = trained(rig)
    code, _, err = fedpeft(
        *("request", "--adapter", adapter, "--data", own, "--ids", "2", "--state", state),
        *("--method", "retrain"),
    )
    assert code == 0, err
    assert held == [[2]]
    marks = Tombstones(StateFolder(state).tombstones)
    table = read_table(str(own), [])
    assert marks.held(table.records(), newest(rig).request_id) == [2], "by the request's name"


def test_an_operator_asks_for_a_client(rig: Rig, fedpeft: Fedpeft, own: Path) -> None:
    adapter = trained(rig, epsilon=0.5)
    code, _, err = fedpeft(
        *("request", "--adapter", adapter, "--client", "hospital", "--data", own, "--ids", "1"),
        "--void-guarantee",
        by="operator",
    )
    assert code == 0, err
    removal = newest(rig)
    assert (removal.client_id, removal.requested_by) == ("hospital", "operator")
    assert (removal.void_guarantee, removal.plan["guarantee"]) == (True, "void")
    code, _, err = fedpeft(
        *("request", "--adapter", adapter, "--client", "hospital", "--data", own, "--ids", "1")
    )
    assert (code, "its own data alone" in err) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ids", "1", "--query", "label=x"), "exactly one way"),
        ((), "exactly one way"),
        (("--ids", "11"), "no row whose 'id' is '11'"),
        (("--ids", "1,1"), "named twice"),
        (("--query", "label=z"), "no row with 'label=z'"),
        (("--ids", ",".join(map(str, range(10)))), "all 10 rows"),
        (("--ids", "1", "--deadline", "soon"), "a deadline such as"),
        (("--ids", "1", "--set", "epochs=3"), "section.key=value"),
        (("--ids", "1", "--salt", "/proc/salt"), "salt"),
    ],
)
def test_input_that_cannot_be_used(
    rig: Rig, fedpeft: Fedpeft, own: Path, state: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = len(rig.state.removals())
    code, _, err = fedpeft(
        *("request", "--adapter", trained(rig), "--data", own, "--state", state, *arguments)
    )
    assert (code, len(err.splitlines())) == (2, 1), err
    assert message in err
    assert len(rig.state.removals()) == before
    assert not StateFolder(state).tombstones.exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "message 1", "label": "y"}, "1 of the rows that stay are to be forgotten too"),
        ({"text": None, "label": "y"}, "rows to be forgotten: row 2 has no 'text'"),
    ],
    ids=["the same text stays", "a value is missing"],
)
def test_rows_that_no_job_could_use(
    rig: Rig, fedpeft: Fedpeft, own: Path, state: Path, row: dict[str, Any], message: str
) -> None:
    """Told here, where rows may be named, and not by a job that fails."""
    own.write_text(own.read_text() + json.dumps({"id": 10, "patient": "", **row}) + "\n")
    code, _, err = fedpeft(
        *("request", "--adapter", trained(rig), "--data", own, "--state", state),
        *("--ids", "1" if row["text"] else "1,10"),
    )
    assert (code, message in err) == (2, True), err
    assert not StateFolder(state).tombstones.exists()


def test_the_client_has_to_be_known(
    rig: Rig, fedpeft: Fedpeft, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = fedpeft("request", "--adapter", trained(rig), "--data", own, "--ids", "1")
    assert (code, "name one with --state" in err) == (2, True)


def test_a_salt_that_others_can_read(
    rig: Rig, fedpeft: Fedpeft, own: Path, state: Path, tmp_path: Path
) -> None:
    salt = tmp_path / "salt"
    salt.write_text("0" * 64)
    salt.chmod(0o644)
    asked = ("request", "--adapter", trained(rig), "--data", own, "--ids", "1", "--state", state)
    code, _, err = fedpeft(*asked, "--salt", salt)
    assert (code, "chmod 600" in err) == (2, True)
    salt.chmod(0o600)
    assert fedpeft(*asked, "--salt", salt)[0] == 0
    salt.write_text("no salt")
    assert "holds no salt" in fedpeft(*asked, "--salt", salt)[2]


# --- seeing


def test_a_plan(rig: Rig, fedpeft: Fedpeft) -> None:
    adapter = trained(rig)
    code, out, _ = fedpeft("plan", "--adapter", adapter, "--num-records", "20")
    assert code == 0
    assert re.search(rf"adapter +{adapter}", out)
    assert "withdraws  2 versions" in out
    assert "the gate measures that the successor forgot" in out
    code, out, _ = fedpeft("plan", "--adapter", adapter, "--method", "retrain", "--json")
    assert json.loads(out)["claim"] == "exact"
    code, _, err = fedpeft("plan", "--adapter", adapter, "--num-records", "100")
    assert (code, "all 100 rows" in err) == (4, True)


def asked(rig: Rig, fedpeft: Fedpeft, own: Path, state: Path) -> RemovalRecord:
    code, _, err = fedpeft(
        *("request", "--adapter", trained(rig), "--data", own, "--ids", "1", "--state", state)
    )
    assert code == 0, err
    return newest(rig)


def test_seeing_and_cancelling(rig: Rig, fedpeft: Fedpeft, own: Path, state: Path) -> None:
    request_id = asked(rig, fedpeft, own, state).request_id
    code, out, _ = fedpeft("status", request_id)
    assert code == 0
    assert "loku at the server (approximate)" in out
    assert json.loads(fedpeft("status", request_id, "--json")[1])["request_id"] == request_id
    assert re.search(rf"{request_id} +planned +clinic +1 ", fedpeft("list")[1])
    assert request_id in fedpeft("list", "--client", "clinic", by="auditor")[1]
    assert request_id not in fedpeft("list", "--client", "hospital", by="auditor")[1]
    assert fedpeft("list", by="reader")[0] == 4
    assert fedpeft("status", request_id, by="hospital")[0] == 4
    listed = json.loads(fedpeft("list", "--json")[1])
    assert request_id in [entry["request_id"] for entry in listed]
    code, out, _ = fedpeft("cancel", request_id, "--reason", "by mistake")
    assert (code, "cancelled: by mistake" in out) == (0, True)
    assert fedpeft("receipt", request_id)[0] == 4
    table = read_table(str(own), [])
    assert Tombstones(StateFolder(state).tombstones).held(table.records()) == [1], "marks stay"


@pytest.mark.parametrize(
    ("end", "expected"),
    [(RemovalState.PUBLISHED, 0), (RemovalState.FAILED, 3), (RemovalState.CANCELLED, 130)],
)
def test_watching(
    rig: Rig, fedpeft: Fedpeft, own: Path, state: Path, end: RemovalState, expected: int
) -> None:
    request_id = asked(rig, fedpeft, own, state).request_id
    rig.state.add_removal_event(request_id, events.PROGRESS, {"phase": "loku", "share": 0.25})
    if end is RemovalState.PUBLISHED:
        rig.removals.publish(request_id, successor="5" * 64)
    else:
        rig.removals.turn(request_id, end, reason="because")
    code, out, err = fedpeft("watch", request_id)
    assert code == expected
    assert "loku 25.0 %" in err
    assert str(end) in out
    code, out, _ = fedpeft("watch", request_id, "--json")
    assert code == expected
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[-1]["body"]["state"] == end
    assert [line["kind"] for line in lines[:4]] == ["state", "records", "state", "progress"]


def test_ask_and_wait_in_one(rig: Rig, fedpeft: Fedpeft, own: Path, state: Path) -> None:
    adapter = trained(rig)
    ending = threading.Thread(target=fail_when_planned, args=(rig, adapter))
    ending.start()
    code, out, err = fedpeft(
        *("request", "--adapter", adapter, "--data", own, "--ids", "1", "--state", state),
        "--wait",
    )
    ending.join()
    assert code == 3
    assert newest(rig).request_id in err
    assert "the gate was not passed" in out


def fail_when_planned(rig: Rig, adapter: str) -> None:
    while True:
        for removal in rig.state.removals_in([RemovalState.PLANNED]):
            if removal.adapter == adapter:
                reason = "the gate was not passed"
                rig.removals.turn(removal.request_id, RemovalState.FAILED, reason=reason)
                return


# --- the receipt


def signed_receipt(rig: Rig, removal: RemovalRecord) -> str:
    receipt = make_receipt(
        Request(
            request_id=removal.request_id,
            client_id=removal.client_id,
            requested_by=removal.requested_by,
            requested_at=removal.created_at,
            num_records=removal.num_records,
            records_digest=removal.records_digest,
        ),
        RemovalPlan.from_body({**removal.plan, "method": "retrain", "claim": "exact", "gate": {}}),
        affected=(),
        aliases=("production",),
        successor="5" * 64,
        result=None,
        measured_by="nobody",
        epsilon={},
        audit_head="41:" + "e" * 64,
        created_at=datetime.now(UTC),
    )
    return rig.manifests.signer.sign(KIND, receipt.to_body())


def test_a_receipt_is_saved_and_verified_offline(
    rig: Rig,
    fedpeft: Fedpeft,
    own: Path,
    state: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    removal = asked(rig, fedpeft, own, state)
    document = signed_receipt(rig, removal)
    rig.removals.publish(removal.request_id, successor="5" * 64, receipt_json=document)
    saved, page = tmp_path / "receipt.json", tmp_path / "receipt.html"
    code, out, err = fedpeft("receipt", removal.request_id, "-o", saved, "--html", page)
    assert (code, out.strip()) == (0, str(saved)), err
    assert saved.read_text().strip() == document
    assert removal.request_id in page.read_text()
    assert fedpeft("receipt", removal.request_id)[1].strip() == document

    authority = rig.holders.folder / "clinic" / "authority.cert.pem"
    monkeypatch.setenv("FEDPEFT_SERVER", "localhost:1")
    code, out, err = fedpeft("verify", saved, "--authority", authority)
    assert code == 0, err
    assert removal.records_digest in out
    assert "exact, by retrain" in out
    body = json.loads(fedpeft("verify", saved, "--authority", authority, "--json")[1])
    assert body["request"]["request_id"] == removal.request_id

    saved.write_text(document.replace('"clinic"', '"klinik"'))
    code, _, err = fedpeft("verify", saved, "--authority", authority)
    assert (code, len(err.splitlines())) == (3, 1)
    assert fedpeft("verify", saved)[0] == 2
    assert fedpeft("verify", tmp_path / "nothing", "--authority", authority)[0] == 2


def test_a_receipt_of_another_authority_is_not_saved(
    rig: Rig, fedpeft: Fedpeft, own: Path, state: Path, tmp_path: Path
) -> None:
    removal = asked(rig, fedpeft, own, state)
    with listening(tmp_path / "another") as other:
        document = signed_receipt(other, removal)
    rig.removals.publish(removal.request_id, successor="5" * 64, receipt_json=document)
    saved = tmp_path / "receipt.json"
    assert fedpeft("receipt", removal.request_id, "-o", saved)[0] == 3
    assert not saved.exists()


# --- small things


def test_deadlines() -> None:
    now = datetime(2026, 11, 26, 12, tzinfo=UTC)
    for text, expected in {
        "30d": now + timedelta(days=30),
        "12h": now + timedelta(hours=12),
        "90m": now + timedelta(minutes=90),
        "2026-12-31": datetime(2026, 12, 31, tzinfo=UTC),
        "2026-12-31T10:00:00+02:00": datetime(2026, 12, 31, 8, tzinfo=UTC),
    }.items():
        assert deadline_of(text, now) == expected
    assert deadline_of(None, now) is None
    for wrong in ("", "d", "-1d", "3", "3w", "1.5h", "٣d"):
        with pytest.raises(InputError, match="a deadline such as"):
            deadline_of(wrong, now)


def test_the_default_thresholds_are_those_of_the_gate(rig: Rig, fedpeft: Fedpeft) -> None:
    plan = json.loads(fedpeft("plan", "--adapter", trained(rig), "--json")[1])
    assert plan["gate"] == GateConfig().model_dump(mode="json")
    assert plan["guarantee"] == "none"
