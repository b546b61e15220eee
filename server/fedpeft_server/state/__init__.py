"""The coordinator's state of record: one SQL database, SQLite or PostgreSQL.

Every method is one transaction, durable when it returns, and may be called from any thread. A
database that is down raises `UnavailableError`; the same `State` goes on when it is back. See
docs/server-state.md.
"""

from fedpeft_server.state.adapters import Adapters
from fedpeft_server.state.aliases import Aliases
from fedpeft_server.state.audit import Audit
from fedpeft_server.state.budgets import Budgets
from fedpeft_server.state.clients import Clients
from fedpeft_server.state.errors import (
    BadTokenError,
    ClientRevokedError,
    DuplicateUpdateError,
    KeyInUseError,
    NotFoundError,
    RowsRemovedMeanwhileError,
    SameRequestError,
    StateError,
    WrongStateError,
)
from fedpeft_server.state.events import Events
from fedpeft_server.state.finished import Finished
from fedpeft_server.state.publications import Publications
from fedpeft_server.state.removals import Removals
from fedpeft_server.state.replicas import Replicas
from fedpeft_server.state.rounds import Rounds
from fedpeft_server.state.runs import Runs
from fedpeft_server.state.withdrawals import Withdrawals

__all__ = [
    "BadTokenError",
    "ClientRevokedError",
    "DuplicateUpdateError",
    "KeyInUseError",
    "NotFoundError",
    "RowsRemovedMeanwhileError",
    "SameRequestError",
    "State",
    "StateError",
    "WrongStateError",
]


class State(
    Clients,
    Runs,
    Rounds,
    Adapters,
    Aliases,
    Finished,
    Withdrawals,
    Replicas,
    Budgets,
    Events,
    Removals,
    Publications,
    Audit,
):
    """All that the coordinator must not forget; open it with `State.open`, in a `with` block."""
