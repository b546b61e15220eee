"""A ledger that several runs share: budgets compose over them, and refuse what does not fit."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from fedpeft.dp.accounting import epsilon
from fedpeft.dp.config import PrivacyConfig
from fedpeft.errors import BudgetError, DataError, PrivacyError
from fedpeft.federated.accounts import Accounts, open_accounts
from fedpeft.federated.plan import plan_run
from fedpeft.ledger import Ledger
from fedpeft.models.table import Table
from tests.federated.small_runs import SECRET, SmallRun, charged, run_config


def shared_run(bert: Path, tmp_path: Path, name: str, **settings: object) -> SmallRun:
    privacy = {**SECRET, "ledger": str(tmp_path / "shared.db"), **settings}
    return SmallRun(config=run_config(bert, tmp_path, privacy=privacy), folder=tmp_path / name)


def set_budgets(run: SmallRun, budget: float) -> None:
    assembly, privacy = run.assemble(), run.config.privacy
    assert privacy.ledger is not None
    with open_accounts(
        privacy.ledger, assembly.rows, run_id="set", epsilon=budget, delta=privacy.delta
    ):
        pass


def check(run: SmallRun) -> None:
    """What `simulate` asks before it makes a folder."""
    assembly, privacy = run.assemble(), run.config.privacy
    assert privacy.ledger is not None
    with open_accounts(
        privacy.ledger,
        assembly.rows,
        run_id="new",
        epsilon=privacy.target_epsilon,
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
    with open_accounts(
        location, {"a": rows, "b": rows}, run_id="1", epsilon=1.0, delta=1e-3
    ) as accounts:
        assert isinstance(accounts, Accounts)
        assert all(not balance.overlaps for balance in accounts.ledger.balances())
        assert len(accounts.ledger.balances()) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"enabled": False}, "cannot be charged by a run without privacy"),
        ({"insecure_seeded_noise": True}, "cannot be charged by a run without privacy"),
        ({"ledger": "postgresql://me:secret@host/db"}, "must not hold a password"),
    ],
)
def test_a_ledger_that_could_not_hold_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PrivacyConfig.model_validate({"ledger": "ledger.db", **fields})


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
