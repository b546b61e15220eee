"""What the tests of deploy/ have in common."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def deploy() -> Path:
    """The folder deploy/."""
    return ROOT / "deploy"


@pytest.fixture(scope="session")
def program() -> Callable[[str, str], str]:
    """Finds a program that no package of ours brings, or skips the test."""

    def find(name: str, package: str) -> str:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed; Debian has it in the package {package}")
        return found

    return find
