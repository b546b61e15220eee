"""What a remote client checks of a plan before it touches a row, and what makes two plans one."""

import hashlib
import json
import re
from collections.abc import Mapping

from torch import Tensor

from fedpeft.errors import PrivacyError, ProtocolError
from fedpeft.federated.messages import RoundPlan
from fedpeft.types import is_finite, tensor_digest


def content_digest(plan: RoundPlan) -> str:
    """Returns the digest of all that a plan asks for, however its message was written."""
    fields = {name: value for name, value in vars(plan).items() if name != "terms"}
    text = json.dumps([plan.terms.digest, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def purpose_of(plan: RoundPlan) -> str:
    """Returns what a client's ledger says of the plan's charge."""
    return _purpose(plan, content_digest(plan)[:16], plan.client_id)


def is_same_round(purpose: str, plan: RoundPlan) -> bool:
    """Whether it is what `purpose_of` returns for the plan, or for another of the same round."""
    pattern = _purpose(plan, "[0-9a-f]{16}", re.escape(plan.client_id))
    return re.fullmatch(pattern, purpose) is not None


def check_plan(plan: RoundPlan, client_id: str) -> None:
    """Refuses a plan that contradicts its own terms, or is another client's.

    Raises:
        ProtocolError: It says what does not fit.
    """
    federation, privacy = plan.terms.federation, plan.terms.privacy
    if plan.client_id != client_id:
        raise ProtocolError(f"the plan is for client {plan.client_id!r}, this is {client_id!r}")
    if not 1 <= plan.round <= federation.num_rounds:
        raise ProtocolError(
            f"round {plan.round} is asked for in a run of {federation.num_rounds} rounds"
        )
    if not 1 <= plan.num_rounds <= federation.num_rounds:
        raise ProtocolError(
            f"{plan.num_rounds} rounds are planned in a run of {federation.num_rounds} rounds"
        )
    if (plan.noise_multiplier is not None) != privacy.enabled:
        raise ProtocolError(
            f"the run has privacy.enabled = {privacy.enabled}, and its plan the noise multiplier "
            f"{plan.noise_multiplier}"
        )


def check_num_examples(plan: RoundPlan, num_examples: int) -> None:
    """Refuses a plan that was made for another number of rows: its noise would not fit.

    Raises:
        ProtocolError: If the number is not the client's own.
        PrivacyError: If the expected batch is larger than that.
    """
    if plan.num_examples != num_examples:
        raise ProtocolError(
            f"the plan is for {plan.num_examples} rows, this client has {num_examples}; with "
            "changed rows it can take part in the next run"
        )
    if not 0 < plan.expected_batch_size <= num_examples:
        raise PrivacyError(
            f"expected_batch_size must lie in (0, {num_examples}] for {num_examples} rows, got "
            f"{plan.expected_batch_size}"
        )


def check_adapter(
    tensors: Mapping[str, Tensor], *, expected: Mapping[str, Tensor], digest: str
) -> None:
    """Refuses an adapter that is not one of this run's model, finite, and the announced one.

    Args:
        tensors: What came.
        expected: Tensors of the names, shapes and dtypes that the model takes.
        digest: What the plan says of it.

    Raises:
        ProtocolError: It names the first tensor that is wrong.
    """
    if tensors.keys() != expected.keys():
        missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
        odd = sorted(missing or unknown)[0][:80]
        raise ProtocolError(
            f"the adapter does not fit the run's model: {len(missing)} tensors are missing and "
            f"{len(unknown)} unknown, such as {odd!r}"
        )
    for name, like in expected.items():
        tensor = tensors[name]
        if (tensor.dtype, tensor.shape) != (like.dtype, like.shape):
            raise ProtocolError(
                f"{name}: expected {like.dtype} of shape {tuple(like.shape)}, got {tensor.dtype} "
                f"of shape {tuple(tensor.shape)}"
            )
        if not is_finite(tensor):
            raise ProtocolError(f"{name} of the adapter holds NaN or infinite values")
    if tensor_digest(tensors) != digest:
        raise ProtocolError("the adapter is not the one that the plan names: its digest differs")


def _purpose(plan: RoundPlan, content: str, client_id: str) -> str:
    return f"run {plan.terms.run_id} round {plan.round} plan {content} client {client_id}"
