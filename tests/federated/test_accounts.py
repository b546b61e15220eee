"""A ledger that several runs share: budgets compose over them, and refuse what does not fit."""

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedpeft.dp.accounting import epsilon
from fedpeft.dp.config import PrivacyConfig
from fedpeft.errors import BudgetError, DataError, LedgerError, PrivacyError, VerificationError
from fedpeft.federated.accounts import Accounts, open_accounts
from fedpeft.federated.plan import plan_run
from fedpeft.federated.simulation import Stopped
from fedpeft.ledger import Ledger
from fedpeft.models.table import Table
from tests.federated.small_runs import SECRET, SmallRun, charged, run_config, stop_after

BY_LABEL = {"partition": "column", "partition_column": "label"}


def shared_run(bert: Path, tmp_path: Path, name: str, **settings: object) -> SmallRun:
    privacy = {**SECRET, "ledger": str(tmp_path / "shared.db"), **settings}
    config = run_config(
        bert, tmp_path, privacy=privacy, num_clients=2, expected_batch_size=7, partition=BY_LABEL
    )
    return SmallRun(config=config, folder=tmp_path / name)


def set_budgets(run: SmallRun, budget: float) -> None:
    assembly, privacy = run.assemble(), run.config.privacy
    assert privacy.ledger is not None
    with open_accounts(
        privacy.ledger, assembly.rows, run_id="set", delta=privacy.delta
    ) as accounts:
        accounts.set_missing_budgets(budget)


def check(run: SmallRun) -> None:
    """What `simulate` asks before it makes a folder."""
    assembly, privacy = run.assemble(), run.config.privacy
    assert privacy.ledger is not None
    with open_accounts(
        privacy.ledger,
        assembly.rows,
        run_id="new",
        delta=privacy.delta,
    ) as accounts:
        accounts.check_affordable(assembly.plan, run.config.federation.local_steps)


def test_epsilon_composes_over_runs_and_the_owners_budget_stands(
    tiny_bert: Path, tmp_path: Path
) -> None:
    set_budgets(shared_run(tiny_bert, tmp_path, "budget"), 6.5)
    first = shared_run(tiny_bert, tmp_path, "first").finished()
    second = shared_run(tiny_bert, tmp_path, "second", target_epsilon=3.0)
    check(second)
    after = second.finished()
    events = charged(tmp_path / "shared.db")
    for client_id, statement in after.statements.items():
        assert len(events[client_id]) == 4
        assert statement.budget_epsilon == 6.5
        assert statement.epsilon == epsilon(events[client_id], 0.02) <= 6.5
        assert statement.epsilon > first.statements[client_id].epsilon + 1
        # Only its own releases are this run's.
        assert statement.num_releases == first.statements[client_id].num_releases == 4
    assert not after.folder.ledger.exists()
    with Ledger.open(tmp_path / "shared.db") as ledger:
        assert str(ledger.verify()) == after.ledger_head


def test_a_run_that_does_not_fit_is_refused_with_the_rounds_that_do(
    tiny_bert: Path, tmp_path: Path
) -> None:
    run = shared_run(tiny_bert, tmp_path, "first")
    set_budgets(run, 5.5)
    run.finished()
    again = shared_run(tiny_bert, tmp_path, "again")
    before = charged(tmp_path / "shared.db")
    with pytest.raises(BudgetError, match=r"planned for 2 rounds, its budget allows 1: epsilon"):
        check(again)
    assert charged(tmp_path / "shared.db") == before
    # And where nobody asked before, those who cannot pay sit out.
    found = again.finished()
    assert len(found.records) == 2
    assert all(statement.epsilon <= 5.5 for statement in found.statements.values())
    assert found.notes


def test_another_delta_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    set_budgets(shared_run(tiny_bert, tmp_path, "a"), 6.0)
    with pytest.raises(BudgetError, match=r"stated at delta 0\.02, the run at 0\.01; set"):
        check(shared_run(tiny_bert, tmp_path, "b", delta=0.01))


def test_the_same_rows_at_two_clients_are_two_peoples(tmp_path: Path) -> None:
    rows = Table("a", {"text": ["one", "two"]})
    location = str(tmp_path / "ledger.db")
    with open_accounts(location, {"a": rows, "b": rows}, run_id="1", delta=1e-3) as accounts:
        assert isinstance(accounts, Accounts)
        assert all(not balance.overlaps for balance in accounts.ledger.balances())
        assert len(accounts.ledger.balances()) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"enabled": False}, "cannot be charged by a run without privacy"),
        ({"insecure_seeded_noise": True}, "cannot be charged by a run without privacy"),
        ({"ledger": "postgresql://me:secret@host/db"}, "must not hold a password"),
        ({"ledger": "postgresql://me@host/db?password=secret"}, "must not hold a password"),
    ],
)
def test_a_ledger_that_could_not_hold_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PrivacyConfig.model_validate({"ledger": "ledger.db", **fields})


def test_a_random_partition_is_refused_a_shared_ledger(tiny_bert: Path, tmp_path: Path) -> None:
    """Its clients own nothing: with another seed the same row would be another client's."""
    privacy = {**SECRET, "ledger": str(tmp_path / "shared.db")}
    with pytest.raises(ValidationError, match="a client of a iid partition owns nothing"):
        run_config(tiny_bert, tmp_path, privacy=privacy)


def test_a_refused_run_sets_no_budget(tiny_bert: Path, tmp_path: Path) -> None:
    run = shared_run(tiny_bert, tmp_path, "first", target_epsilon=50.0, min_noise_multiplier=0.0)
    with Ledger.open(tmp_path / "shared.db") as ledger:
        rows = run.assemble().rows["cold"]
        ledger.set_budget(ledger.register(rows.records(), owner="cold"), epsilon=1.0, delta=0.02)
    with pytest.raises(BudgetError, match=r"cold is planned for 2 rounds, its budget allows 0"):
        check(run)
    with Ledger.open(tmp_path / "shared.db") as ledger:
        budgets = {balance.owner: balance.epsilon for balance in ledger.balances()}
    assert budgets == {"cold": 1.0, "warm": None}


# --- a ledger that is not the one that was charged


def stopped(bert: Path, tmp_path: Path) -> SmallRun:
    run = SmallRun(config=run_config(bert, tmp_path, privacy=SECRET), folder=tmp_path / "run")
    with pytest.raises(Stopped):
        run.finished(stop_requested=stop_after(4))
    return run


def test_a_missing_ledger_ends_the_run(tiny_bert: Path, tmp_path: Path) -> None:
    run = stopped(tiny_bert, tmp_path)
    (run.folder / "ledger.db").unlink()
    for _ in range(2):
        with pytest.raises(LedgerError, match="is missing, so what it has spent is not known"):
            run.finished()


def test_an_older_copy_of_the_ledger_ends_the_run(tiny_bert: Path, tmp_path: Path) -> None:
    run = SmallRun(config=run_config(tiny_bert, tmp_path, privacy=SECRET), folder=tmp_path / "run")
    with pytest.raises(Stopped):
        run.finished(stop_requested=stop_after(1))
    with Ledger.open(run.folder / "ledger.db") as ledger:
        ledger.copy_to(tmp_path / "older.db")
    with pytest.raises(Stopped):
        run.finished(stop_requested=stop_after(3))
    for file in run.folder.glob("ledger.db*"):
        file.unlink()
    shutil.copy(tmp_path / "older.db", run.folder / "ledger.db")
    with pytest.raises(VerificationError):
        run.finished()


def test_other_rows_do_not_pass_for_those_that_were_charged(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """Tokens may be the same where the rows are not: beyond max_length."""
    run = stopped(tiny_bert, tmp_path)
    simulation = run.simulation()
    simulation.rows = {
        client_id: Table("x", {"text": [f"other {n}" for n in range(table.num_rows)]})
        for client_id, table in simulation.rows.items()
    }
    with pytest.raises(
        LedgerError, match=r"charges the rows of client-00 with epsilon 0\.0000, but"
    ):
        simulation.run()


def test_a_plan_with_too_little_noise_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    config = run_config(tiny_bert, tmp_path, privacy={**SECRET, "min_noise_multiplier": 5.0})
    with pytest.raises(PrivacyError, match=r"client a refuses the plan: .*min_noise_multiplier is"):
        plan_run({"a": 10, "b": 10, "c": 10}, config.federation, config.privacy)


def test_a_row_with_nothing_in_it_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = {"target_modules": ("q_proj",)}
    config = run_config(tiny_llama, tmp_path, task="causal-lm", adapter=adapter)
    train = Path(config.data.train if isinstance(config.data.train, str) else config.data.train[0])
    line = '{"question": " ", "answer": ""}\n'
    train.write_text(train.read_text(encoding="utf-8") + line, encoding="utf-8")
    with pytest.raises(DataError, match="has nothing in it; remove the row"):
        SmallRun(config=config, folder=tmp_path / "run").assemble()
