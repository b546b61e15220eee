"""`fedpeft budget` as an owner, an auditor and a program use it."""

import csv
import io
import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.table import Table

from fedpeft.cli.main import run
from fedpeft.dp.accounting import DpSgdEvent
from fedpeft.errors import BudgetError
from fedpeft.ledger import Ledger

EVENT = DpSgdEvent(noise_multiplier=4.0, sampling_prob=0.01, num_steps=5)
Budget = Callable[..., tuple[int, str, str]]


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Budget:
    monkeypatch.delenv("FEDPEFT_LEDGER", raising=False)
    monkeypatch.setenv("COLUMNS", "150")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedpeft", "budget", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            run()
        out, err = capsys.readouterr()
        return int(exit_info.value.code or 0), out, err.strip()

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"id": i, "text": f"message {i % 50}", "label": i % 2} for i in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def path(tmp_path: Path, file: Path, budget: Budget) -> Path:
    """A ledger with one data set, whose budget is used up, and one event open."""
    found = tmp_path / "ledger.db"
    code, _, err = budget(
        *("set", "--ledger", found, "--data", file, "--columns", "text,label"),
        *("--epsilon", "0.04", "--delta", "1e-5"),
    )
    assert (code, err) == (0, "")
    with Ledger.open(found) as ledger:
        (data,) = (balance.fingerprint for balance in ledger.balances())
        ledger.reserve(data, EVENT, purpose="run 1, round 1")
        while True:
            try:
                reservation = ledger.reserve(data, EVENT, purpose="run 1, \\[red]round 2")
            except BudgetError:
                break
            ledger.commit(reservation, "ab" * 32)
    return found


def test_show(path: Path, budget: Budget) -> None:
    code, out, _ = budget("show", "--ledger", path)
    assert code == 0
    assert "exhausted" in out
    (found,) = json.loads(budget("show", "--ledger", path, "--json")[1])
    assert found["fingerprint"][:12] in out
    assert found["num_rows"] == 50
    assert found["spent"] <= found["epsilon"] == 0.04
    assert found["remaining"] == pytest.approx(0.04 - found["spent"])
    assert (found["num_open"], found["exhausted"], found["overlaps"]) == (1, True, {})
    one = budget("show", found["fingerprint"][:8], "--ledger", path, "--json")[1]
    assert json.loads(one) == [found]


def test_what_is_exhausted_is_red(
    path: Path, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    styles = []
    add_row = Table.add_row

    def spy(self: Table, *cells: object, **options: object) -> None:
        styles.append(options.get("style"))
        add_row(self, *cells, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Table, "add_row", spy)
    budget("show", "--ledger", path)
    with Ledger.open(path) as ledger:
        data = ledger.balances()[0].fingerprint
    budget("set", data, "--epsilon", "4", "--delta", "1e-5", "--ledger", path)
    assert styles == ["bold red", ""]


def test_set_raises_a_budget_and_refuses_what_is_below_the_spent(
    path: Path, file: Path, budget: Budget
) -> None:
    data = json.loads(budget("show", "--ledger", path, "--json")[1])[0]["fingerprint"]
    head = budget("verify", "--ledger", path)[1]
    code, _, err = budget("set", data, "--epsilon", "0.01", "--delta", "1e-5", "--ledger", path)
    assert code == 2
    assert "is spent already" in err
    assert budget("verify", "--ledger", path)[1] == head
    options = ("--epsilon", "0.5", "--delta", "1e-5", "--ledger", path, "--json")
    raised = json.loads(budget("set", data[:10], *options)[1])
    assert (raised["epsilon"], raised["exhausted"]) == (0.5, False)
    # The same rows from the file are the same data set; all columns are other rows.
    same = json.loads(budget("set", "--data", file, "--columns", "text, label", *options)[1])
    assert same["fingerprint"] == data
    other = json.loads(budget("set", "--data", file, *options)[1])
    assert other["fingerprint"] != data
    assert other["num_rows"] == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epsilon", "nan", "--delta", "1e-5"), "finite number"),
        (("--epsilon", "-1", "--delta", "1e-5"), "finite number"),
        (("--epsilon", "1", "--delta", "1"), "delta of a budget must lie in (0, 1)"),
        (("--epsilon", "1", "--delta", "1e-5", "--columns", "texts"), "no column 'texts'"),
    ],
)
def test_what_set_refuses_makes_no_ledger(
    tmp_path: Path, file: Path, budget: Budget, arguments: tuple[str, ...], message: str
) -> None:
    new = tmp_path / "new.db"
    code, out, err = budget("set", "--data", file, "--ledger", new, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not new.exists()


def test_set_wants_a_data_set_or_a_file(tmp_path: Path, file: Path, budget: Budget) -> None:
    options = ("--epsilon", "1", "--delta", "1e-5", "--ledger", tmp_path / "new.db")
    for arguments in ((), ("abc", "--data", file), ("abc", "--columns", "text")):
        assert budget("set", *arguments, *options)[0] == 2
    code, _, err = budget("set", "abc", *options)
    assert (code, "there is no ledger at" in err) == (2, True)
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize("command", ["show", "history", "export", "verify"])
def test_reading_makes_no_ledger(tmp_path: Path, budget: Budget, command: str) -> None:
    code, out, err = budget(command, "--ledger", tmp_path / "new.db")
    assert (code, out) == (2, "")
    assert err == f"error: there is no ledger at {tmp_path / 'new.db'}"
    assert list(tmp_path.iterdir()) == []


def test_history_and_its_figure(path: Path, tmp_path: Path, budget: Budget) -> None:
    code, out, _ = budget("history", "--ledger", path, "--plot", tmp_path / "spent.svg")
    assert code == 0
    assert "\\[red]round 2" in out  # a purpose is text, not markup
    entries = json.loads(budget("history", "--ledger", path, "--json")[1])
    assert [entry["position"] for entry in entries] == list(range(1, len(entries) + 1))
    assert ElementTree.parse(tmp_path / "spent.svg").getroot().tag.endswith("svg")
    data = entries[1]["body"]["dataset"]
    mine = json.loads(budget("history", data[:9], "--ledger", path, "--json")[1])
    assert mine == entries[1:]
    code, _, err = budget("history", "--ledger", path, "--plot", tmp_path / "spent.txt")
    assert (code, "saved as .svg" in err) == (2, True)


def test_history_of_a_data_set_that_shares_rows(
    path: Path, file: Path, tmp_path: Path, budget: Budget
) -> None:
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(file.read_text().splitlines(keepends=True)[:5]))
    options = ("--epsilon", "1", "--delta", "1e-5", "--ledger", path, "--json")
    found = json.loads(budget("set", "--data", fewer, "--columns", "text,label", *options)[1])
    assert found["num_rows"] == 5
    assert found["spent"] > 0.03
    name = found["fingerprint"]
    mine = json.loads(budget("history", name, "--ledger", path, "--json")[1])
    assert [entry["kind"] for entry in mine] == ["registered", "budget"]
    assert budget("history", name, "--ledger", path, "--plot", tmp_path / "x.png")[0] == 0
    # Both have a budget now: which one?
    code, _, err = budget("history", "--ledger", path, "--plot", tmp_path / "y.png")
    assert (code, "name one to draw" in err) == (2, True)


def test_export(path: Path, tmp_path: Path, budget: Budget) -> None:
    lines = [json.loads(line) for line in budget("export", "--ledger", path)[1].splitlines()]
    assert lines == json.loads(budget("history", "--ledger", path, "--json")[1])
    target = tmp_path / "chain.csv"
    assert budget("export", "--format", "csv", "-o", target, "--ledger", path) == (0, "", "")
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert [row["hash"] for row in rows] == [line["hash"] for line in lines]
    assert [json.loads(row["body"]) for row in rows] == [line["body"] for line in lines]
    code, _, err = budget("export", "-o", tmp_path / "no" / "chain.csv", "--ledger", path)
    assert (code, "cannot be written" in err) == (2, True)


def test_verify(path: Path, budget: Budget) -> None:
    code, out, _ = budget("verify", "--ledger", path)
    head = out.strip()
    assert code == 0
    assert json.loads(budget("verify", "--ledger", path, "--json", "--expect", head)[1]) == {
        "sound": True,
        "count": int(head.split(":")[0]),
        "hash": head.split(":")[1],
        "head": head,
    }
    assert budget("verify", "--ledger", path, "--expect", "nonsense")[0] == 2

    with closing(sqlite3.connect(path)) as behind:
        (trigger,) = behind.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'ledger_entries_no_delete'"
        ).fetchone()
        behind.execute("DROP TRIGGER ledger_entries_no_delete")
        behind.execute("DELETE FROM ledger_entries WHERE position = ?", [head.split(":")[0]])
        behind.execute(trigger)
        behind.commit()
    assert budget("verify", "--ledger", path)[0] == 0  # nothing else can show it
    code, out, err = budget("verify", "--ledger", path, "--expect", head, "--json")
    assert (code, json.loads(out)["sound"]) == (3, False)
    assert "cut off" in err

    with closing(sqlite3.connect(path)) as behind:
        behind.execute("DROP TRIGGER ledger_entries_no_update")
        behind.execute("UPDATE ledger_entries SET kind = 'budget' WHERE position = 4")
        behind.commit()
    for command in ("verify", "show", "history", "export"):
        code, _, err = budget(command, "--ledger", path)
        assert (code, "entry 4 of the ledger" in err) == (3, True), command


def test_copy(path: Path, tmp_path: Path, budget: Budget) -> None:
    head = budget("verify", "--ledger", path)[1]
    assert budget("copy", tmp_path / "copy.db", "--ledger", path)[:2] == (0, head)
    assert budget("verify", "--ledger", tmp_path / "copy.db")[1] == head
    assert budget("copy", tmp_path / "copy.db", "--ledger", path)[0] == 2


def test_where_the_ledger_is(
    file: Path, tmp_path: Path, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--data", file, "--epsilon", "1", "--delta", "1e-5")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert budget("show")[0] == 2
    assert not (tmp_path / "share").exists()
    assert budget("set", *options)[0] == 0
    assert (tmp_path / "share" / "fedpeft" / "ledger.db").exists()
    assert (tmp_path / "share" / "fedpeft").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("FEDPEFT_LEDGER", str(tmp_path / "other.db"))
    assert budget("set", *options)[0] == 0
    assert (tmp_path / "other.db").exists()
    assert budget("show", "--ledger", tmp_path / "none.db")[0] == 2


def test_help_needs_no_database() -> None:
    import subprocess

    program = (
        "import sys; import fedpeft.cli.main; "
        "print(sorted({m.split('.')[0] for m in sys.modules} "
        "& {'sqlalchemy', 'alembic', 'torch', 'matplotlib', 'numpy', 'dp_accounting'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
