"""Reasons that a client gives for not doing what it was asked, by code."""

from typing import Final

from fedpeft.errors import (
    AdapterError,
    BudgetError,
    DataError,
    DivergedError,
    FedpeftError,
    LedgerError,
    ModelError,
    PolicyError,
    PrivacyError,
    ProtocolError,
    RowsRemovedError,
    UnavailableError,
    VerificationError,
    WorkerLostError,
)
from fedpeft.federated.messages import Refusal

BUDGET: Final = "budget-exceeded"
POLICY: Final = "policy"
DATA: Final = "data"
MODEL: Final = "base-model"
LEDGER: Final = "ledger"
PRIVACY: Final = "privacy"
PROTOCOL: Final = "protocol"
REMOVED: Final = "rows-removed"
LOST: Final = "worker-lost"
DIVERGED: Final = "diverged"
INTERNAL: Final = "internal"

CODES = (BUDGET, POLICY, DATA, MODEL, LEDGER, PRIVACY, PROTOCOL, REMOVED, LOST, DIVERGED, INTERNAL)
"""Every code, for those who must know them all."""

_BY_ERROR: tuple[tuple[type[FedpeftError], str], ...] = (
    (BudgetError, BUDGET),
    (PolicyError, POLICY),
    (RowsRemovedError, REMOVED),
    (DataError, DATA),
    (ModelError, MODEL),
    (LedgerError, LEDGER),
    (VerificationError, LEDGER),
    (PrivacyError, PRIVACY),
    (ProtocolError, PROTOCOL),
    (AdapterError, PROTOCOL),
    (DivergedError, DIVERGED),
    (WorkerLostError, LOST),
    (UnavailableError, LOST),
)


def refusal_of(error: BaseException) -> Refusal:
    """Returns what the coordinator is told of an error.

    The code, and a sentence that says nothing of the client's rows: the messages of our errors may
    quote a row or a path, so they stay in the client's own log.
    """
    for kind, code in _BY_ERROR:
        if isinstance(error, kind):
            return Refusal(code=code, message=_PUBLIC[code])
    return Refusal(code=INTERNAL, message=_PUBLIC[INTERNAL])


_PUBLIC = {
    BUDGET: "the client's budget does not allow it",
    POLICY: "the client's policy does not allow it",
    DATA: "the client's rows do not fit the run",
    MODEL: "the client does not have the run's base model",
    LEDGER: "the client's ledger cannot be used",
    PRIVACY: "the guarantee that was asked for cannot be given",
    PROTOCOL: "the message is not one that the client understands",
    REMOVED: "rows of the update are to be forgotten; the client may be asked again",
    LOST: "the client's worker was lost; it may be asked again",
    DIVERGED: "the update holds NaN or infinite values",
    INTERNAL: "the client failed; its own log says why",
}
assert set(_PUBLIC) == set(CODES)
