"""The receipt of a removal: what was done, what was measured, and what that does not show.

It holds no row and nothing that a row can be guessed from: rows are named by a salted digest.
Signed by the registry (`registry.signing`), it is verified offline with the authority's
certificate.
"""

import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fedpeft.canonical import write_float
from fedpeft.errors import VerificationError
from fedpeft.registry.trust import RegistryTrust
from fedpeft.unlearning.gate.config import GateConfig
from fedpeft.unlearning.gate.report import GateReport
from fedpeft.unlearning.limits import limits_of
from fedpeft.unlearning.order import JobResult
from fedpeft.unlearning.plan import Claim, Guarantee, RemovalPlan
from fedpeft.unlearning.statement import PrivacyStatement

KIND: Final = "removal-receipt"
_DIGEST = r"^[0-9a-f]{64}$"
_REQUEST = r"^[0-9a-f]{16}$"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(_Part):
    """Who asked for what."""

    request_id: str = Field(pattern=_REQUEST)
    client_id: str = Field(min_length=1, description="Whose data was to be forgotten.")
    requested_by: str = Field(min_length=1, description="The name in the asker's certificate.")
    requested_at: AwareDatetime
    num_records: int = Field(ge=1)
    records_digest: str = Field(
        pattern=_DIGEST, description="Of a salt that the asker keeps, and the records."
    )


class Epsilon(_Part):
    """Where a client's guarantee stands for the successor, as its ledger was last stated."""

    epsilon: float = Field(ge=0, allow_inf_nan=False)
    delta: float = Field(gt=0, lt=1)


class Receipt(_Part):
    """What was done about one request, published."""

    version: Literal[1] = 1
    request: Request
    adapter: str = Field(pattern=_DIGEST, description="The version that the request named.")
    affected: tuple[Annotated[str, Field(pattern=_DIGEST)], ...] = Field(
        min_length=1, description="Versions that the rows were in, all withdrawn."
    )
    successor: str = Field(pattern=_DIGEST, description="The version that took their place.")
    aliases: tuple[str, ...] = Field(description="Names that point at the successor now.")
    method: str
    claim: Claim
    rank: int | None = Field(ge=1, description="Of a job's successor; null after retraining.")
    lost: float | None = Field(
        ge=0, le=1, description="Part of the whole update that recompression left out."
    )
    guarantee: Guarantee = Field(
        description="Of the adapter's (epsilon, delta): it has none, the job was charged for, or "
        "it was given up for the client whose records these are."
    )
    epsilon: dict[str, Epsilon] = Field(description="By client, where a guarantee holds.")
    privacy: PrivacyStatement | None = Field(description="What a private job states of its own.")
    gate: GateReport | None = Field(
        description="Null: nobody measured, or nobody who may tell, after a private job."
    )
    measured_by: Literal["server", "client", "nobody"]
    audit_head: str = Field(
        pattern=r"^(0|[1-9][0-9]{0,17}):[0-9a-f]{64}$",
        description="Of the server's audit log, before the entry that holds this receipt's digest.",
    )
    created_at: AwareDatetime
    limits: tuple[str, ...] = Field(min_length=1, description="What this does not show.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.adapter not in self.affected or len(set(self.affected)) != len(self.affected):
            raise ValueError("the version that was named is among the affected ones, each once")
        if self.successor in self.affected:
            raise ValueError("the successor is one of the affected versions")
        if self.gate is not None and not self.gate.passed:
            raise ValueError("the successor did not pass the gate")
        if self.claim == "approximate" and (self.gate is None) != (self.guarantee == "charged"):
            raise ValueError("an approximate removal is measured, or private and charged for")
        if (self.privacy is not None) != (
            self.claim == "approximate" and self.guarantee == "charged"
        ):
            raise ValueError("a private job states its noise, and no other does")
        own = self.epsilon.get(self.request.client_id)
        if self.privacy is not None and (own is None or own.epsilon < self.privacy.epsilon_spent):
            raise ValueError("less epsilon is stated for the client than its ledger was charged")
        if (self.measured_by == "nobody") != (self.gate is None):
            raise ValueError("it does not say who measured")
        if (self.guarantee == "none" and self.epsilon) or (
            self.guarantee == "charged" and not self.epsilon
        ):
            raise ValueError("an epsilon belongs to a guarantee, and a guarantee has one")
        if self.guarantee == "void" and self.request.client_id in self.epsilon:
            raise ValueError("the guarantee was given up, and an epsilon is stated for it")
        return self

    def to_body(self) -> dict[str, Any]:
        """Returns it as values of canonical JSON: floats as text."""
        return {name: _plain(value) for name, value in self.model_dump(mode="json").items()}

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """Reads what `to_body` wrote, and nothing else.

        Raises:
            VerificationError: If anything is missing, unknown or wrong, or does not fit together.
        """
        try:
            receipt = cls.model_validate(dict(body))
        except ValidationError as error:
            detail = error.errors()[0]
            place = ".".join(map(str, detail["loc"])) or "as a whole"
            raise VerificationError(f"the receipt cannot be read: {place}: {detail['msg']}") from (
                error
            )
        if receipt.to_body() != dict(body):
            raise VerificationError("the receipt is not written as receipts are")
        return receipt


def make_receipt(
    request: Request,
    plan: RemovalPlan,
    *,
    affected: Collection[str],
    aliases: Collection[str],
    successor: str,
    result: JobResult | None,
    measured_by: Literal["server", "client", "nobody"],
    epsilon: Mapping[str, tuple[float, float]],
    audit_head: str,
    created_at: datetime,
) -> Receipt:
    """Makes the receipt of a successor that is being published.

    Args:
        request: What was asked.
        plan: What was fixed before the job.
        affected: Digests that are withdrawn now; those of the plan are added, which may have been
            withdrawn meanwhile.
        aliases: Names that move to the successor.
        successor: Digest of its tensors.
        result: Of the job; None after retraining that nobody measured.
        measured_by: Who ran the gate.
        epsilon: Client → (epsilon, delta) of the successor, as last stated.
        audit_head: `count:hash` of the audit log before this is written to it.
        created_at: Now, with a zone.

    Raises:
        VerificationError: If these do not fit together: the gate was not passed, the result is of
            another method or successor, an affected version would stay in use.
    """
    if result is not None and (result.method, result.claim, result.digest) != (
        plan.method,
        plan.claim,
        successor,
    ):
        raise VerificationError(
            f"the plan is {plan.method} ({plan.claim}) and its successor {successor}; the result "
            f"is of {result.method} ({result.claim}) and {result.digest}"
        )
    gate = None if result is None else result.gate
    if gate is not None and GateConfig.model_validate(plan.gate) != gate.thresholds:
        raise VerificationError("the thresholds are not those that were registered in the plan")
    try:
        return Receipt(
            request=request,
            adapter=plan.adapter,
            affected=tuple(dict.fromkeys((*plan.affected, *affected))),
            successor=successor,
            aliases=tuple(sorted(aliases)),
            method=plan.method,
            claim=plan.claim,
            rank=None if result is None else result.rank,
            lost=None if result is None else result.lost,
            guarantee=plan.guarantee,
            epsilon={
                name: Epsilon(epsilon=value, delta=delta)
                for name, (value, delta) in epsilon.items()
            },
            privacy=None if result is None else result.privacy,
            gate=gate,
            measured_by=measured_by,
            audit_head=audit_head,
            created_at=created_at,
            limits=limits_of(
                claim=plan.claim, guarantee=plan.guarantee, measured_by=measured_by, gate=gate
            ),
        )
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(map(str, detail["loc"])) or "as a whole"
        raise VerificationError(f"no receipt can be made: {place}: {detail['msg']}") from error


def verify_receipt(document: str, trust: RegistryTrust) -> Receipt:
    """Returns the receipt in a signed document.

    Args:
        document: What a server gave.
        trust: Whose signature is believed.

    Raises:
        VerificationError: If it is none, was altered, is not signed by who is believed, or does not
            fit together.
    """
    return Receipt.from_body(trust.verify(KIND, document))


def receipt_digest(document: str) -> str:
    """Returns the sha256 of a signed receipt, which the audit log holds."""
    return hashlib.sha256(document.strip().encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return write_float(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
