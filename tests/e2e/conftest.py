"""What the tests over real processes share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.federation import NAMES, Federation, federation


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Iterator[Federation]:
    """A federation of three clients that are connected; the tests of a file share it."""
    with federation(tmp_path_factory.mktemp("federation"), tiny_bert) as opened:
        opened.join(*NAMES)
        yield opened
