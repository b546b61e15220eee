"""A bench for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.control_rig import listening
from tests.server.removals.parts import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with listening(tmp_path / "server") as rig:
        yield Bench(rig=rig, folder=tmp_path)
