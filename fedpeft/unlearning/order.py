"""What a removal job is told, and what it answers."""

import json
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from fedpeft.adapters.config import AdapterConfig
from fedpeft.dp.config import PrivacyConfig
from fedpeft.errors import ConfigError, ProtocolError
from fedpeft.settings import validate
from fedpeft.unlearning.gate.config import PRECISIONS, GateConfig, ServedPrecision
from fedpeft.unlearning.gate.report import GateReport
from fedpeft.unlearning.plan import CLAIM_OF, Claim, Guarantee
from fedpeft.unlearning.private_config import PrivateConfig
from fedpeft.unlearning.statement import PrivacyStatement, check_statement

_S = TypeVar("_S", bound=BaseModel)
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
    num_records: int = Field(ge=1, description="To be forgotten, as the request says.")
    settings: dict[str, dict[str, JsonValue]] = Field(
        default={},
        description="'unlearning': of UnlearningConfig. 'gate': of GateConfig. 'private': of "
        "PrivateConfig.",
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

    @property
    def is_private(self) -> bool:
        """Whether the job itself adds noise and is charged; in retraining the rounds are."""
        return self.guarantee == "charged" and CLAIM_OF.get(self.method) == "approximate"

    @property
    def private(self) -> PrivateConfig:
        """What is asked of a private job.

        Raises:
            ConfigError: If a setting does not exist or is wrong.
        """
        return validate(PrivateConfig, self.settings.get("private", {}), "settings of the job")

    def section(self, kind: type[_S], name: str) -> _S:
        """Returns a section of the run's configuration.

        Raises:
            ConfigError: If there is none, or it is wrong.
        """
        content = self.run_config.get(name)
        if not isinstance(content, Mapping):
            raise ConfigError(f"the run's configuration has no section [{name}]")
        return validate(kind, content, f"the run's configuration, [{name}]")


class JobResult(_Message):
    """What came of it; the tensors and the export stand beside it."""

    parent: str = Field(pattern=_HEX_DIGEST, description="Of the affected version's tensors.")
    digest: str = Field(pattern=_HEX_DIGEST, description="Of the successor's tensors.")
    method: str
    claim: Claim
    adapter: dict[str, JsonValue] = Field(
        description="The successor's rank, scaling and modules: an `AdapterConfig`."
    )
    lost: float = Field(
        ge=0, le=1, description="Part of the whole update's norm that recompression lost."
    )
    seconds: dict[str, float] = Field(description="By phase; a private job does not tell.")
    gate: GateReport | None = Field(
        description="Null for a private job: figures that are computed from rows without noise "
        "would say what epsilon does not cover."
    )
    fingerprint: dict[Literal["before", "after", "expected"], str] = Field(
        description="Of `registry.fingerprint`, as JSON: of the affected version, of the "
        "successor, and of the successor's export as peft loads it, which is what is served."
    )
    privacy: PrivacyStatement | None = Field(default=None, description="Of a private job.")

    @model_validator(mode="after")
    def _keeps_to_itself(self) -> Self:
        if (self.privacy is None) != (self.gate is not None):
            raise ValueError("a job is measured or private, one of the two")
        if self.privacy is not None and (self.seconds or self.lost):
            raise ValueError("a private job tells what its statement says, and nothing more")
        return self

    @property
    def rank(self) -> int:
        """Rank of the successor."""
        rank: Any = self.adapter["rank"]
        return int(rank)


def check_answers(order: JobOrder, result: JobResult) -> None:
    """Checks that a result is one of an order, whoever made it.

    Raises:
        PrivacyError: If what a private job states cannot be true of it.
        ProtocolError: If it is of another method, leaves a precision out, was held against other
            thresholds, or is private where the order is not.
    """
    if result.method != order.method:
        raise ProtocolError(f"expected a result of {order.method}, got one of {result.method}")
    if order.is_private != (result.privacy is not None):
        raise ProtocolError("a private job says what it was charged, and no other does")
    if result.privacy is not None:
        check_statement(result.privacy, order.private, order.section(PrivacyConfig, "privacy"))
        if AdapterConfig.model_validate(result.adapter) != order.section(AdapterConfig, "adapter"):
            raise ProtocolError("a private job keeps the adapter's rank, scaling and modules")
    if result.gate is not None:
        _check_gate(order, result.gate)


def _check_gate(order: JobOrder, gate: GateReport) -> None:
    missing = [name for name in order.precisions if name not in gate.precisions]
    if gate.passed and missing:
        raise ProtocolError(
            f"the result was not measured at {', '.join(missing)}; measure it there"
        )
    if gate.thresholds != GateConfig.model_validate(order.settings.get("gate", {})):
        raise ProtocolError("the result was held against other thresholds than those of the order")


def run_config_after(order: JobOrder, result: JobResult) -> dict[str, JsonValue]:
    """Returns the configuration that goes with the successor: its own rank, scaling and modules.

    A later removal loads the successor's tensors by it.
    """
    return order.run_config | {"adapter": result.adapter}
