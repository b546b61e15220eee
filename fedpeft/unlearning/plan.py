"""What a removal request will do, fixed before its job begins."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from fedpeft.errors import ProtocolError

Claim = Literal["exact", "approximate"]
Guarantee = Literal["none", "charged", "void"]

CLAIM_OF: Mapping[str, Claim] = {
    "loku": "approximate",
    "retrain": "exact",
    "gradient-ascent": "approximate",
    "gradient-difference": "approximate",
    "kl": "approximate",
    "npo": "approximate",
    "simnpo": "approximate",
}
"""Every method that can be asked for → what a receipt may say of it; `methods` needs torch."""

_DIGEST = r"^[0-9a-f]{64}$"


class RemovalPlan(BaseModel):
    """The plan of one request; versions are named by the digests of their tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: str = Field(pattern=_DIGEST, description="The version that the job starts from.")
    affected: tuple[str, ...] = Field(
        min_length=1,
        description="Versions that the client's rows are in, oldest first; all are withdrawn.",
    )
    aliases: tuple[str, ...] = Field(default=(), description="Those that move to the successor.")
    method: str = Field(description="One of `methods.REQUESTABLE`.")
    claim: Claim
    clean_ancestor: str | None = Field(
        default=None,
        pattern=_DIGEST,
        description="The last version that the client's rows are not in, and that the named one "
        "was made from; null where there is none.",
    )
    guarantee: Guarantee = Field(
        description="What becomes of the adapter's (epsilon, delta): it has none, the client is "
        "charged for the job, or it is void after it."
    )
    notes: tuple[str, ...] = Field(default=(), description="In plain words, one a line.")
    gate: dict[str, JsonValue] = Field(
        default={}, description="`gate.GateConfig`: thresholds, registered before the job."
    )

    def to_body(self) -> dict[str, Any]:
        """Returns what JSON can say."""
        return self.model_dump(mode="json")

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """Reads what `to_body` gave.

        Raises:
            ProtocolError: If a key is missing or unknown, or a value is wrong.
        """
        try:
            return cls.model_validate(dict(body))
        except ValidationError as error:
            detail = error.errors()[0]
            place = ".".join(map(str, detail["loc"]))
            raise ProtocolError(f"the plan of a removal: {place}: {detail['msg']}") from error
