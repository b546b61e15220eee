"""One removal job, as the coordinator hands it out and gets it back; it never looks inside."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What a job needs. Never logged: `private_key` opens the records.

    Attributes:
        order_json: `fedpeft.unlearning.order.JobOrder`.
        sealed: The records, sealed to the job's key.
        private_key: Of the job.
        adapter: Tensors of the version that it starts from, as safetensors.
    """

    request_id: str
    order_json: str
    sealed: bytes = field(repr=False)
    private_key: bytes = field(repr=False)
    adapter: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """What a job made.

    Attributes:
        result: `fedpeft.unlearning.order.JobResult` as JSON says it.
        adapter: The successor's tensors as safetensors.
        files: Of its export in PEFT format, by plain name.
    """

    result: Mapping[str, Any]
    adapter: bytes = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class JobNews:
    """Something that a job's driver tells.

    Attributes:
        kind: "progress", "done", "failed" (it would fail again) or "lost" (it may be begun again).
        phase: Of progress.
        share: Of progress, in [0, 1].
        reason: Why it failed or was lost; nothing of a row.
        outcome: Of one that is done.
    """

    request_id: str
    kind: Literal["progress", "done", "failed", "lost"]
    phase: str = ""
    share: float = 0.0
    reason: str = ""
    outcome: JobOutcome | None = None


Told = Callable[[str, float], None]
"""Hears how far a job is: its phase, and the share of the whole that is done."""
Perform = Callable[[JobSpec, Told], JobOutcome]
"""Does a job; a top-level function, since it runs in another process."""


def perform(spec: JobSpec, told: Told) -> JobOutcome:
    """Opens the records and does the job.

    Raises:
        FedpeftError: Whatever is wrong with the records, the adapter or the order.
    """
    import json

    from fedpeft.unlearning.job import run_job
    from fedpeft.unlearning.order import JobOrder
    from fedpeft.unlearning.records import JobRows
    from fedpeft.unlearning.sealing import open_sealed

    rows = JobRows.from_bytes(open_sealed(spec.private_key, spec.request_id, spec.sealed))
    order = JobOrder.from_json(spec.order_json)
    result, adapter, files = run_job(order, rows, spec.adapter, told)
    return JobOutcome(result=json.loads(result.to_json()), adapter=adapter, files=files)
