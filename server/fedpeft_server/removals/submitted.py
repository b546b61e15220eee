"""What a job at a client sends: checked before it may become a version. It may be anything."""

from collections.abc import Mapping
from typing import Any

from fedpeft.errors import AdapterError, InputError, ProtocolError, WorkerLostError
from fedpeft.warm_worker import WarmWorker
from fedpeft_server.removals.job import JobOutcome

_CHECK_S = 600.0
_MOST_FILES = 16


class SubmissionReader:
    """The object that a `WarmWorker` holds: the coordinator itself never loads tensors."""

    def check(self, order_json: str, outcome: JobOutcome, affected: bytes) -> None:
        """See `check_submitted`."""
        import json

        from safetensors.torch import load

        from fedpeft.adapters.lora import lora_pairs
        from fedpeft.federated.exported import read_exported
        from fedpeft.types import tensor_digest
        from fedpeft.unlearning.order import JobOrder, JobResult, check_answers

        order = JobOrder.from_json(order_json)
        result = JobResult.from_json(json.dumps(outcome.result))
        exported = read_exported(outcome.files)
        if exported.digest != result.digest:
            raise AdapterError(
                f"the files of the export are of adapter {exported.digest}, the result says "
                f"{result.digest}"
            )
        if tensor_digest(load(outcome.adapter)) != result.digest:
            raise AdapterError("the tensors are not those of the result; send them again")
        if tensor_digest(load(affected)) != result.parent:
            raise AdapterError(
                f"the successor was made from adapter {result.parent[:12]}, which is not the one "
                "that the request starts from now; run its job again"
            )
        check_answers(order, result)
        pairs, before = lora_pairs(load(outcome.adapter)), lora_pairs(load(affected))
        for module, (a, b) in before.items():
            if module not in pairs:
                raise AdapterError(f"the successor does not adapt {module}, as its parent does")
            now_a, now_b = pairs[module]
            if (now_a.shape[1], now_b.shape[0]) != (a.shape[1], b.shape[0]):
                raise AdapterError(f"{module} of the successor does not fit the base model")
        heads = _heads(load(affected), before), _heads(load(outcome.adapter), pairs)
        if heads[0] != heads[1]:
            raise AdapterError("the successor has another head than its parent")


def check_submitted(order_json: str, outcome: JobOutcome, affected: bytes) -> None:
    """Checks a successor that a client made.

    Args:
        order_json: Of the job that it was given.
        outcome: What it sent.
        affected: Tensors of the version that it was to start from.

    Raises:
        InputError: If the result is none of this order, the files and the tensors are not those of
            its digest, a value is not finite, or they do not fit the base model.
    """
    if not 0 < len(outcome.files) <= _MOST_FILES:
        raise ProtocolError(f"an export has 1 to {_MOST_FILES} files, got {len(outcome.files)}")
    worker = WarmWorker(SubmissionReader, name="check of a submitted successor")
    try:
        worker.call("check", order_json, outcome, affected, timeout_s=_CHECK_S)
    except WorkerLostError as error:
        raise InputError("the successor could not be checked; send it again") from error
    finally:
        worker.close()


def _heads(tensors: Mapping[str, Any], pairs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    factors = {f"{module}.{factor}" for module in pairs for factor in ("lora_a", "lora_b")}
    return {name: tuple(t.shape) for name, t in tensors.items() if name not in factors}
