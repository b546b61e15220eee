"""Jobs for tests of the engine: what they do is not what it is about; the real one has its own."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fedpeft.errors import AdapterError, DataError
from fedpeft.registry.fingerprint import Fingerprint
from fedpeft.unlearning.gate.config import GateConfig
from fedpeft.unlearning.order import JobOrder, JobResult
from fedpeft.unlearning.plan import CLAIM_OF
from fedpeft.unlearning.records import JobRows
from fedpeft.unlearning.sealing import open_sealed
from fedpeft_server.removals.job import JobOutcome, JobSpec, Told

FOLDER = "FEDPEFT_TEST_JOBS"
"""Where jobs say that they began, and read whether they may go on."""
EXPORT = {"fedpeft.json": b'{"labels": ["x", "y"]}', "adapter_config.json": b"{}"}


def quick(spec: JobSpec, told: Told) -> JobOutcome:
    """Opens the records and makes a successor at once."""
    rows = JobRows.from_bytes(open_sealed(spec.private_key, spec.request_id, spec.sealed))
    assert rows.forget
    told("steps", 0.5)
    return outcome(spec)


def fails_at_the_gate(spec: JobSpec, told: Told) -> JobOutcome:
    return outcome(spec, passed=False)


def refused(spec: JobSpec, told: Told) -> JobOutcome:
    raise AdapterError("the adapter does not fit the model")


def quotes(spec: JobSpec, told: Told) -> JobOutcome:
    raise DataError("row 3: column 'label' holds 'Basil Mahfouz'")


def breaks(spec: JobSpec, told: Told) -> JobOutcome:
    raise RuntimeError("Basil Mahfouz")


def waits(spec: JobSpec, told: Told) -> JobOutcome:
    """Says that it began, and waits until the test lets it go on."""
    folder = Path(os.environ[FOLDER])
    told("steps", 0.25)
    begun = folder / f"{spec.request_id}.begun"
    attempt = len(list(folder.glob(f"{spec.request_id}.begun*"))) + 1
    partial = folder / f".{spec.request_id}"
    partial.write_text(str(os.getpid()))
    partial.rename(begun.with_suffix(f".begun{attempt}"))
    with (folder / "go").open() as fifo:  # until somebody opens the other end
        fifo.read()
    return outcome(spec)


def outcome(spec: JobSpec, *, passed: bool = True) -> JobOutcome:
    order = JobOrder.from_json(spec.order_json)
    adapter = f"successor by {spec.request_id}".encode()
    values = (-1.0, -2.0)
    measured: dict[str, Any] = {
        "name": "confidence",
        "kind": "forgetting",
        "after": {"value": 0.1},
        "at_most": 0.2 if passed else 0.05,
        "passed": passed,
    }
    changed = {"name": "change", "kind": "change", "after": {"value": 1.0}, "passed": True}
    result = JobResult.model_validate(
        {
            "parent": "0" * 64,
            "digest": hashlib.sha256(adapter).hexdigest(),
            "method": order.method,
            "claim": CLAIM_OF[order.method],
            "adapter": {"rank": 2, "target_modules": ["query"]},
            "lost": 0.0,
            "seconds": {"steps": 1.0},
            "gate": {
                "passed": passed,
                "reasons": [] if passed else ["confidence is too high"],
                "reference": False,
                "thresholds": GateConfig.model_validate(order.settings.get("gate", {})),
                "precisions": {"fp32": [changed, measured]},
                "not_measured": [],
                "num_forget": 3,
                "num_retain": 4,
                "num_held_out": 0,
            },
            "fingerprint": {
                name: Fingerprint(values=values).to_json()
                for name in ("before", "after", "expected")
            },
        }
    )
    return JobOutcome(result=json.loads(result.to_json()), adapter=adapter, files=EXPORT)
