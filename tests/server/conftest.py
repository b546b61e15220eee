"""A control plane that a module's tests share; tests that break theirs open one of their own."""

from collections.abc import Iterator

import pytest

from tests.server.control_rig import Rig, listening


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with listening(tmp_path_factory.mktemp("federation")) as opened:
        yield opened
