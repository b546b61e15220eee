"""Logs: one form for all of them, and nothing in them that is nobody's business."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from fedpeft_server.config import LogConfig
from fedpeft_server.telemetry.logs import configure_logs
from fedpeft_server.telemetry.run_log import RunLog


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.configure(**before)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_object_a_line_whoever_writes(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogConfig())
    structlog.get_logger("calls").info("call", run_id="a", round=3)
    logging.getLogger("uvicorn").warning("odd\nline")
    structlog.get_logger("calls").debug("not this")
    first, second = lines(capsys.readouterr().err)
    assert (first["event"], first["run_id"], first["round"]) == ("call", "a", 3)
    assert (second["logger"], second["level"], second["event"]) == (
        "uvicorn",
        "warning",
        "odd\nline",
    )


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_has_no_local_variables(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logs(LogConfig.model_validate({"format": form}))

    def fail() -> None:
        row = "patient 17"
        raise ValueError(len(row))

    try:
        fail()
    except ValueError:
        structlog.get_logger("calls").exception("call failed")
    text = capsys.readouterr().err
    assert "ValueError" in text
    assert "fail" in text
    assert "patient" not in text


def test_runs_are_told_with_their_ids(capsys: pytest.CaptureFixture[str]) -> None:
    from prometheus_client import CollectorRegistry

    configure_logs(LogConfig())
    registry = CollectorRegistry()
    log = RunLog(registry)
    log("round-finished", {"run_id": "a", "round": 2, "client_id": None, "seconds": 1.5})
    log("error", {"run_id": "a", "error": RuntimeError("no")})
    finished, failed = lines(capsys.readouterr().err)
    assert (finished["event"], finished["run_id"], finished["round"]) == ("round-finished", "a", 2)
    assert "client_id" not in finished
    assert (failed["level"], failed["run_id"]) == ("error", "a")
    assert "RuntimeError" in json.dumps(failed)
    kinds = {"kind": "round-finished"}
    assert registry.get_sample_value("fedpeft_run_events_total", kinds) == 1
