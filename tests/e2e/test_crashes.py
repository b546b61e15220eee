"""Single deaths at the moments that matter; `test_planted` shows that these tests can fail."""

import pytest

from tests.e2e.checks import check_same_adapters, check_whole
from tests.e2e.crashes import LONG_ROUND, dying_at_work, leaving_after_work
from tests.e2e.federation import OFF, Federation

pytestmark = pytest.mark.e2e


def test_what_dies_at_work_begins_again_and_pays_once(standing: Federation) -> None:
    check_whole(standing, *dying_at_work(standing))


def test_what_dies_at_work_changes_no_bit(standing: Federation) -> None:
    """With the noise off and every row in every step, an update depends on the adapter alone."""
    settings = {"privacy": OFF, "sampling_prob": 1.0}
    undisturbed = standing.submit(standing.config(local_steps=LONG_ROUND, **settings)).finished()
    _, run = dying_at_work(standing, **settings)
    check_same_adapters(run, undisturbed)


def test_an_update_outlives_its_client(standing: Federation) -> None:
    check_whole(standing, *leaving_after_work(standing))
