"""What a removal job is told, and what it answers."""

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from fedpeft.errors import ProtocolError
from fedpeft.unlearning.gate.config import PRECISIONS, GateConfig, ServedPrecision
from fedpeft.unlearning.gate.report import GateReport
from fedpeft.unlearning.plan import Claim, Guarantee

_HEX_DIGEST = r"^[0-9a-f]{64}$"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> str:
        """Returns the JSON: keys sorted, no spaces, ASCII."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            ProtocolError: If a key is missing or unknown, or a value is wrong.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            detail = error.errors()[0]
            place = ".".join(map(str, detail["loc"]))
            raise ProtocolError(f"{cls.__name__}: {place}: {detail['msg']}") from error


class JobOrder(_Message):
    """What is to be done; the rows and the adapter come beside it."""

    request_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    run_config: dict[str, JsonValue] = Field(
        description="Of the run that made the affected version: a whole `RunConfig`."
    )
    base_digest: str = Field(pattern=_HEX_DIGEST, description="Of the base model's tensors.")
    labels: tuple[str, ...] = Field(description="In class order; empty for a language model.")
    method: str = Field(description="One of `methods.METHODS`.")
    settings: dict[str, dict[str, JsonValue]] = Field(
        default={}, description="'unlearning': of UnlearningConfig. 'gate': of GateConfig."
    )
    precisions: tuple[ServedPrecision, ...] = Field(
        default=PRECISIONS, min_length=1, description="At which the successor may be served."
    )
    seed: int = Field(ge=0)
    guarantee: Guarantee = Field(
        default="none",
        description="What the job does to the privacy guarantee: there is none, it is charged for "
        "the job, or it is void after it.",
    )


class JobResult(_Message):
    """What came of it; the tensors and the export stand beside it."""

    digest: str = Field(pattern=_HEX_DIGEST, description="Of the successor's tensors.")
    method: str
    claim: Claim
    adapter: dict[str, JsonValue] = Field(
        description="The successor's rank, scaling and modules: an `AdapterConfig`."
    )
    lost: float = Field(
        ge=0, le=1, description="Part of the whole update's norm that recompression lost."
    )
    seconds: dict[str, float] = Field(description="By phase.")
    gate: GateReport
    fingerprint: dict[Literal["before", "after", "expected"], str] = Field(
        description="Of `registry.fingerprint`, as JSON: of the affected version, of the "
        "successor, and of the successor's export as peft loads it, which is what is served."
    )
    privacy: dict[str, JsonValue] | None = Field(
        default=None, description="What a private job says of its guarantee."
    )

    @property
    def rank(self) -> int:
        """Rank of the successor."""
        rank: Any = self.adapter["rank"]
        return int(rank)


def check_answers(order: JobOrder, result: JobResult) -> None:
    """Checks that a result is one of an order, whoever made it.

    Raises:
        ProtocolError: If it is of another method, leaves a precision out, was held against other
            thresholds, or does not say what the order asks about privacy.
    """
    if result.method != order.method:
        raise ProtocolError(f"expected a result of {order.method}, got one of {result.method}")
    missing = [name for name in order.precisions if name not in result.gate.precisions]
    if result.gate.passed and missing:
        raise ProtocolError(
            f"the result was not measured at {', '.join(missing)}; measure it there"
        )
    if result.gate.thresholds != GateConfig.model_validate(order.settings.get("gate", {})):
        raise ProtocolError("the result was held against other thresholds than those of the order")
    if (order.guarantee == "charged") != (result.privacy is not None):
        raise ProtocolError("a private job says what it was charged, and no other does")


def run_config_after(order: JobOrder, result: JobResult) -> dict[str, JsonValue]:
    """Returns the configuration that goes with the successor: its own rank, scaling and modules.

    A later removal loads the successor's tensors by it.
    """
    return order.run_config | {"adapter": result.adapter}
