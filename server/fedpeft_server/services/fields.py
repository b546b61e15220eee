"""Fields of requests, checked for form. Nothing in a request is ever used as a path."""

import re

from fedpeft.wire.catalogue import Refused

_RUN_ID = re.compile(r"[0-9a-f]{16}")
_ADAPTER = re.compile(r"[0-9a-f]{8,64}")
_ALIAS = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_SUFFIXES = ("", ".jsonl", ".csv", ".parquet")
_LONGEST_NAME, _LONGEST_TEXT = 64, 500
_LARGEST_POSITION = 2**53


def run_id(value: str) -> str:
    """Returns the id of a run.

    Raises:
        RemoteError: `invalid`, as by every function here.
    """
    if _RUN_ID.fullmatch(value) is None:
        raise Refused.INVALID.error(f"a run's id is 16 hex digits, got {value[:40]!r}")
    return value


def version(value: str) -> str:
    """Returns the name of a version: an alias, the beginning of a digest, or a run's id."""
    if _ADAPTER.fullmatch(value) is None and _ALIAS.fullmatch(value) is None:
        raise Refused.INVALID.error(
            "an adapter is named by an alias, or by 8 to 64 hex digits of its digest, got "
            f"{value[:80]!r}"
        )
    return value


def alias(value: str) -> str:
    """Returns the name of an alias."""
    if _ALIAS.fullmatch(value) is None or _ADAPTER.fullmatch(value) is not None:
        raise Refused.INVALID.error(
            "an alias is 1 to 63 lower-case letters, digits, '-', '_' and '.', and not 8 or more "
            f"hex digits, got {value[:80]!r}"
        )
    return value


def client_id(value: str) -> str:
    """Returns the name of a client: that of its certificate, which others write into logs."""
    sound = value.strip() == value and value.isprintable() and 0 < len(value) <= _LONGEST_NAME
    if not sound or value.startswith((".", "-")) or "/" in value or "\\" in value:
        raise Refused.INVALID.error(
            f"a client's name is 1 to {_LONGEST_NAME} printable characters without slashes, not "
            f"beginning with a dot, a dash or a space, got {value[:80]!r}"
        )
    return value


def text(name: str, value: str, *, required: bool = False) -> str:
    """Returns text for people: one line, not long."""
    if (required and not value.strip()) or len(value) > _LONGEST_TEXT or not value.isprintable():
        least = 1 if required else 0
        raise Refused.INVALID.error(
            f"{name} is {least} to {_LONGEST_TEXT} printable characters on one line"
        )
    return value


def suffix(value: str) -> str:
    """Returns the format of a held-out file; empty where there is none."""
    if value not in _SUFFIXES:
        raise Refused.INVALID.error(
            f"held-out rows come as {', '.join(_SUFFIXES[1:])}, got {value[:20]!r}"
        )
    return value


def position(value: int) -> int:
    """Returns a position after which something is asked for; no log is longer."""
    return between("after", value, 0, _LARGEST_POSITION)


def between(name: str, value: int, least: int, most: int) -> int:
    """Returns a number within its bounds."""
    if not least <= value <= most:
        raise Refused.INVALID.error(f"{name} must be {least} to {most}, got {value}")
    return value
