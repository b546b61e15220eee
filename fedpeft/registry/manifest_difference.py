"""In what the manifests of two versions differ. Nothing is verified here."""

import json
from typing import Any

from fedpeft.errors import VerificationError

_OF_EVERY_VERSION = ("version", "digest", "artifact", "files", "created_at")


def manifest_difference(first: str, second: str) -> dict[str, tuple[str, str]]:
    """Returns what differs → in the first, in the second; empty text where one has nothing.

    Participants are told apart by name, metrics by theirs. What differs between any two versions
    is left out: digests, files, the time.

    Args:
        first: A signed manifest, or empty text where there is none.
        second: Another one.

    Raises:
        VerificationError: If one is no manifest.
    """
    before, after = _flat(first), _flat(second)
    names = dict.fromkeys((*before, *after))
    pairs = {name: (before.get(name, ""), after.get(name, "")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _flat(document: str) -> dict[str, str]:
    if not document:
        return {}
    try:
        body: dict[str, Any] = dict(json.loads(document)["body"])
        participants, metrics = body.pop("participants"), body.pop("metrics")
        found = {name: _text(body[name]) for name in body if name not in _OF_EVERY_VERSION}
        for participant in participants:
            name = participant["client_id"]
            for key in ("dataset", "epsilon", "delta"):
                found[f"{key} of {name}"] = _text(participant[key])
        found |= {f"metric {name}": _text(value) for name, value in metrics.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(
            "the manifest cannot be read; `fedpeft adapter verify` says more"
        ) from error
    return found


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
