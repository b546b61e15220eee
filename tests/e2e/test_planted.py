"""What the tests over real processes would find: each mistake here makes a check of theirs fail."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.checks import check_same_adapters, check_whole
from tests.e2e.crashes import dying_at_work, leaving_after_work
from tests.e2e.federation import NAMES, OFF, Federation, federation
from tests.e2e.planted import Mistake

pytestmark = pytest.mark.slow

CLIENT, SERVER = "fedpeft/federated/client_round.py", "server/fedpeft_server/round.py"


def undisturbed(opened: Federation) -> None:
    watched = opened.submit(opened.config())
    check_whole(opened, watched, watched.finished())


def at_work(opened: Federation) -> None:
    check_whole(opened, *dying_at_work(opened))


def without_noise(opened: Federation) -> None:
    settings = {"privacy": OFF, "sampling_prob": 1.0, "local_steps": 100}
    expected = opened.submit(opened.config(**settings)).finished()
    _, run = dying_at_work(opened, **settings)
    check_same_adapters(run, expected)


def after_work(opened: Federation) -> None:
    check_whole(opened, *leaving_after_work(opened))


MISTAKES: dict[str, tuple[Mistake, Callable[[Federation], None], str]] = {
    "an update is sent and its reservation left open": (
        Mistake(
            file=CLIENT,
            right="self._ledger.commit(stored.reservation, digest)",
            wrong="pass",
        ),
        undisturbed,
        "which are not released",
    ),
    "a round is trained without a charge": (
        Mistake(
            file=CLIENT,
            right="reservation = self._reserve(plan, client.plan.dp)",
            wrong="reservation = None",
        ),
        undisturbed,
        "failed",
    ),
    "a budget is stated too low": (
        Mistake(
            file=CLIENT,
            right="epsilon_spent=balance.spent,",
            wrong="epsilon_spent=balance.spent / 2,",
        ),
        undisturbed,
        "and released",
    ),
    "the server keeps the lowest statement": (
        Mistake(
            file=SERVER,
            right="spent[budget.client_id] = max(before, budget.epsilon_spent)",
            wrong="spent[budget.client_id] = min(before, budget.epsilon_spent)",
        ),
        undisturbed,
        "says less",
    ),
    "a round that begins again is charged again": (
        Mistake(
            file=CLIENT,
            right="before = self._ledger.open_reservation(dataset, event, purpose=purpose)",
            wrong="before = None",
        ),
        at_work,
        "charged twice",
    ),
    "a stored update is not found again": (
        Mistake(
            file=CLIENT,
            right="stored = self._store.load(terms.run_id, plan.round)",
            wrong="stored = None",
        ),
        after_work,
        "failed",
    ),
    "training goes on from what the process holds": (
        Mistake(
            file=CLIENT,
            right="model.load(tensors)",
            wrong="_ = plan.round > 2 or model.load(tensors)",
        ),
        without_noise,
        "another adapter",
    ),
    "the engine forgets the updates that it stored": (
        Mistake(
            file=SERVER,
            right="if context.artifacts.has(u.artifact)",
            wrong="if False",
        ),
        after_work,
        "failed",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found(name: str, tmp_path: Path, tiny_bert: Path) -> None:
    mistake, scenario, words = MISTAKES[name]
    folder = tmp_path / "federation"
    folder.mkdir()
    source = mistake.planted(tmp_path / "source")
    with federation(folder, tiny_bert, source=source) as opened:
        opened.join(*NAMES)
        with pytest.raises(AssertionError, match=words):
            scenario(opened)
