"""The entry, and the hash that ties it to the one before.

`hash` is the sha256, in hex, of the entry's canonical JSON without `hash` itself: keys sorted, no
spaces, ASCII, numbers whole (a float is written as the text of its `repr`, which gives the same
float back). `previous` is one of the fields, so that changing, removing or inserting an entry shows
in every later one. What shows nowhere is the end cut off: for that, keep a `Head` elsewhere.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from fedpeft.canonical import canonical
from fedpeft.errors import LedgerError, VerificationError

NO_ENTRY = "0" * 64
"""What the first entry has in place of the hash of the one before."""


@dataclass(frozen=True)
class Head:
    """How long the chain is and the hash of its last entry; its text is `count:hash`."""

    count: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `count:hash` back.

        Raises:
            LedgerError: If it is something else.
        """
        found = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text)
        if found is None:
            raise LedgerError(
                f"expected a head such as 12:{'ab' * 4}… (a count, a colon, 64 hex digits), got "
                f"{text!r}; `fedpeft budget verify` prints it"
            )
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.count}:{self.hash}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the ledger.

    Attributes:
        position: 1, 2, 3, … The order; time plays no part in it.
        kind: `created`, `registered`, `budget`, `reserved` or `committed`.
        recorded_at: UTC, ISO 8601; never earlier than that of the entry before.
        clock: What the clock said, where it said something earlier than that; else None.
        body: The fields of this kind.
        previous: Hash of the entry before.
        hash: Hash of this one.
    """

    position: int
    kind: str
    recorded_at: str
    clock: str | None
    body: Mapping[str, Any]
    previous: str
    hash: str

    @classmethod
    def following(
        cls, head: Head, last_time: str, kind: str, body: Mapping[str, Any], now: datetime
    ) -> Self:
        """Returns the entry of that content to stand after `head`."""
        clock = now.astimezone(UTC).isoformat(timespec="microseconds")
        behind = clock < last_time
        fields: dict[str, Any] = {
            "position": head.count + 1,
            "kind": kind,
            "recorded_at": last_time if behind else clock,
            "clock": clock if behind else None,
            "body": body,
            "previous": head.hash,
        }
        return cls(**fields, hash=_digest(fields))

    @classmethod
    def stored(cls, row: Sequence[Any]) -> Self:
        """Returns the entry that a table's row holds, its hash checked.

        Raises:
            ValueError: If the row is not what was once written; the message says how.
        """
        position, kind, recorded_at, clock, text, previous, digest = row
        try:
            body = json.loads(text)
            fields = {
                "position": position,
                "kind": kind,
                "recorded_at": recorded_at,
                "clock": clock,
                "body": body,
                "previous": previous,
            }
            intact = canonical(body) == text and _digest(fields) == digest
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"its content cannot be read ({error})") from error
        if not intact:
            raise ValueError("its content does not give its hash, so it was changed")
        return cls(**fields, hash=digest)

    def check_follows(self, head: Head, last_time: str) -> None:
        """Checks that it is the next one of the chain that ends in `head`.

        Raises:
            ValueError: If it is not; the message says how.
        """
        if self.position != head.count + 1:
            raise ValueError(f"entry {head.count + 1} was expected here: one is missing")
        if self.previous != head.hash:
            raise ValueError("it does not follow the entry before it")
        if self.recorded_at < last_time:
            raise ValueError("its time is earlier than that of the entry before it")

    @property
    def head(self) -> Head:
        """The head of a chain that ends here."""
        return Head(self.position, self.hash)

    @property
    def body_text(self) -> str:
        """The body as it is stored."""
        return canonical(self.body)

    def to_json(self) -> str:
        """Returns the whole entry as one line of canonical JSON."""
        return canonical(vars(self))


def check_kept(expected: Head | None, seen: str | None, head: Head, name: str) -> None:
    """Checks a chain against a head that was kept elsewhere.

    Args:
        expected: That head; None checks nothing.
        seen: Hash of the entry at its position; None where there is none.
        head: Of the chain now.
        name: Of the chain, for the message.

    Raises:
        VerificationError: If the entry is another or is gone.
    """
    if expected is not None and seen != expected.hash:
        found = f"has another hash there ({seen})" if seen else "ends before it"
        raise VerificationError(
            f"entry {expected.count} was expected with hash {expected.hash}, but the {name}, of "
            f"{head.count} entries, {found}: entries were cut off or the {name} was replaced"
        )


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(fields).encode()).hexdigest()
