"""A control plane that a module's tests share; tests that break theirs open one of their own."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.server.control_rig import Rig, listening


@pytest.fixture(scope="session", autouse=True)
def _quiet_logs() -> None:
    """Only what went wrong, without local variables: a failure's output should be readable."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        processors=[
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ],
    )


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with listening(tmp_path_factory.mktemp("federation")) as opened:
        yield opened
