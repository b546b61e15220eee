"""What an error of a driver means to the one who runs this."""

import sqlite3

from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from fedpeft.database.kind import DatabaseKind
from fedpeft.errors import FedpeftError

_UNCHANGED = "nothing was changed"

DRIVER_ERRORS = (SQLAlchemyError, sqlite3.Error, UnicodeDecodeError, OverflowError)
"""Everything that comes out of SQLAlchemy and the drivers below it."""


def explained(
    error: BaseException, kind: DatabaseKind, name: str, busy_timeout_s: float
) -> FedpeftError:
    """Returns the error of this kind of database that stands for the driver's."""
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None) or ""
    message = next(iter(str(original).splitlines()), "no reason given").rstrip(".")
    the = f"the {kind.noun} {name}"
    if isinstance(error, DataError | OverflowError):
        return kind.refused(f"{the} cannot hold a value ({message}); {_UNCHANGED}")
    # SQLite quotes its damaged file in its own message, which then is no text.
    if isinstance(error, UnicodeDecodeError):
        return kind.refused(f"{the} {_damaged(kind)}")
    if code == "SQLITE_NOTADB" or code.startswith("SQLITE_CORRUPT"):
        return kind.refused(f"{the} {_damaged(kind)} ({message})")
    if isinstance(error, PoolTimeoutError):
        return kind.unavailable(f"{the} has no connection free; {_UNCHANGED}; try again")
    if isinstance(error, DBAPIError | sqlite3.Error):
        return kind.unavailable(f"{the} {_reason(code, message, kind, busy_timeout_s)}")
    return kind.refused(f"{the} cannot be used ({error})")


def busy(kind: DatabaseKind, name: str, busy_timeout_s: float, holder: str) -> FedpeftError:
    """Returns the error for a write lock that was not to be had in time."""
    return kind.unavailable(f"the {kind.noun} {name} {_locked(holder, busy_timeout_s)}")


def _damaged(kind: DatabaseKind) -> str:
    return f"is damaged or no {kind.noun} at all; restore it from {kind.backup}"


def _locked(holder: str, busy_timeout_s: float) -> str:
    return (
        f"has been locked by another {holder} for more than {busy_timeout_s:g} s; {_UNCHANGED}; "
        f"try again, or end the {holder} that holds it"
    )


def _reason(code: str, message: str, kind: DatabaseKind, busy_timeout_s: float) -> str:
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or code == "55P03":
        return _locked("process", busy_timeout_s)
    if code.startswith("SQLITE_READONLY") or code in ("25006", "42501"):
        return (
            f"cannot be written to ({message}); {_UNCHANGED}; a {kind.noun} file and its folder "
            f"must be writable, and a database user needs INSERT on the {kind.noun}'s tables"
        )
    if code == "SQLITE_FULL" or code == "53100":
        return f"has no room on its disk ({message}); {_UNCHANGED}; free some space"
    if code.startswith("SQLITE_CANTOPEN"):
        return f"cannot be opened ({message}); check that its folder is there and writable"
    if code.startswith("SQLITE_CONSTRAINT") or code in ("23505", "P0001"):
        return f"refused an entry ({message}); another process wrote first: try again"
    if code:
        return f"failed ({code}: {message}); nothing is taken as recorded"
    return f"cannot be reached ({message}); check the address and that the server runs"
