"""Privacy events as the ledger writes them: a kind, a version, and every field by name.

An event in a ledger keeps its meaning for ever. Reading is strict: an unknown kind or version, a
field too many or too few, a value that is not written as we write it, are refused, since an event
that is half understood is a cost that is not known.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedpeft.canonical import read_float, write_float
from fedpeft.dp.events import ClientUpdateEvent, DpSgdEvent, PrivacyEvent
from fedpeft.errors import PrivacyError

# To change what a kind means or which fields it has, add a version; never edit one.
_KINDS: dict[tuple[str, int], type[PrivacyEvent]] = {
    ("dp-sgd", 1): DpSgdEvent,
    ("client-update", 1): ClientUpdateEvent,
}


def encode(event: object) -> dict[str, Any]:
    """Returns the event as JSON values, floats as text that gives the same float back.

    Raises:
        PrivacyError: If the ledger does not know this kind of event, or cannot write it exactly.
    """
    for (kind, version), known in _KINDS.items():
        if type(event) is known:
            hints = get_type_hints(known)
            values = {name: _written(getattr(event, name), hints[name]) for name in hints}
            encoded = {"kind": kind, "version": version, **values}
            if decode(encoded) != event:
                raise PrivacyError(f"the ledger cannot write {event!r} exactly; refusing it")
            return encoded
    raise PrivacyError(f"the ledger does not know the privacy event {event!r}; refusing it")


def decode(fields: Mapping[str, Any]) -> PrivacyEvent:
    """Returns the event that `encode` wrote.

    Raises:
        PrivacyError: If anything in it is unknown, missing or not as `encode` writes it.
    """
    tag = (fields.get("kind"), fields.get("version"))
    known = next((known for key, known in _KINDS.items() if key == tag), None)
    if known is None or type(tag[1]) is not int:
        raise PrivacyError(
            f"this fedpeft does not know privacy events of kind {tag[0]!r}, version {tag[1]!r}; a "
            "newer one may"
        )
    hints = get_type_hints(known)
    expected = {"kind", "version", *hints}
    if set(fields) != expected:
        odd = sorted(set(fields) ^ expected)
        raise PrivacyError(f"an event of kind {tag[0]!r} has missing or unknown fields: {odd}")
    return known(**{name: _read(name, fields[name], hint) for name, hint in hints.items()})


def _written(value: Any, hint: Any) -> Any:
    return write_float(value) if hint is float else value


def _read(name: str, value: Any, hint: Any) -> Any:
    if hint is float:
        try:
            return read_float(value)
        except ValueError as error:
            raise PrivacyError(f"{name} of an event: {error}") from error
    allowed = get_args(hint) if get_origin(hint) is Literal else None
    # type(), not isinstance(): True is an int to Python.
    if type(value) is not (str if allowed else hint) or (allowed and value not in allowed):
        raise PrivacyError(f"{name} of an event has the unknown value {value!r}")
    return value
