"""What a run is, as every client of it is told: a client agrees to exactly this or not at all."""

import hashlib
import json
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedpeft.adapters.config import AdapterConfig
from fedpeft.dp.config import PrivacyConfig
from fedpeft.errors import ProtocolError
from fedpeft.federated.config import FederationConfig
from fedpeft.models.model_config import ModelConfig

_HEX_DIGEST = r"^[0-9a-f]{64}$"


class Columns(BaseModel):
    """Columns that a client's rows must have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    label: str
    question: str | None
    answer: str | None


class RunTerms(BaseModel):
    """A run's public settings; see the sections' own descriptions.

    Attributes:
        labels: Names of the classes in class order; empty for causal LM.
        base_digest: sha256 of the base model's tensors, hex.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    name: str = Field(max_length=200)
    model: ModelConfig
    adapter: AdapterConfig
    federation: FederationConfig
    privacy: PrivacyConfig
    columns: Columns
    labels: tuple[str, ...]
    base_digest: str = Field(pattern=_HEX_DIGEST)

    def to_json(self) -> str:
        """Returns the canonical JSON: keys sorted, no spaces, ASCII."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote, and nothing else.

        Raises:
            ProtocolError: If anything in it is unknown, missing, or not written canonically, so
                that its digest would not stand for what is in it.
        """
        try:
            terms = cls.model_validate_json(text)
        except ValidationError as error:
            detail = error.errors()[0]
            place = ".".join(map(str, detail["loc"]))
            raise ProtocolError(
                f"the run's terms cannot be read: {place}: {detail['msg']}"
            ) from error
        if terms.to_json() != text:
            raise ProtocolError("the run's terms are not written in their canonical form")
        return terms

    @property
    def digest(self) -> str:
        """Returns the sha256 of the canonical JSON, hex."""
        return hashlib.sha256(self.to_json().encode("ascii")).hexdigest()
