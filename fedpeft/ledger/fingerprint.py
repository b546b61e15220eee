"""What makes two data sets the same, or share a row.

A row is known by a 64-bit hash of its values, keyed with the ledger's secret salt; a data set by
the sorted set of its rows' hashes, and its fingerprint is the sha256 of that. Order and repetition
of rows do not matter. Everything that is lossy here merges rows, never tells equal ones apart: the
price of a false match is budget, the price of a missed one is privacy. Two different rows in a
million collide by chance once in 37 million ledgers.

Column names and their order do not count, nor does spelling that files change without meaning to:
letter case, runs of white space, Unicode form, empty cells, and 3 against 3.0 or "3". A row whose
text was edited is another row: no ledger can know that it is about the same person.
"""

import hashlib
import json
import secrets
import unicodedata
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from fedpeft.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Digests = NDArray[np.uint64]

_DIGEST_BYTES = 8


def new_salt() -> bytes:
    """Returns a fresh secret of 256 bits."""
    return secrets.token_bytes(32)


def salt_digest(salt: bytes) -> str:
    """Returns what the chain says of the salt; it binds and reveals nothing."""
    return hashlib.sha256(b"fedpeft ledger salt 1\0" + salt).hexdigest()


def pack_rows(rows: Iterable[Mapping[str, object]], *, owner: str, salt: bytes) -> bytes:
    """Returns the rows' hashes, sorted, each once, 8 bytes big-endian.

    Args:
        rows: The values of each row by column.
        owner: Whose rows they are; equal rows of two owners are two people's.
        salt: The ledger's secret.

    Raises:
        DataError: If there is no row, or a row without any value.
    """
    digests = set()
    for number, row in enumerate(rows, start=1):
        try:
            values = row_values(row)
        except DataError as error:
            raise DataError(
                f"row {number} of the data set has no value in it; remove it"
            ) from error
        text = json.dumps([owner, *values])
        digests.add(hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES, key=salt).digest())
    if not digests:
        raise DataError("a data set without rows cannot be registered")
    return b"".join(sorted(digests))


def row_values(row: Mapping[str, object]) -> list[str]:
    """Returns what a row is known by: its values, spelled in one way, sorted.

    Raises:
        DataError: If it has none.
    """
    values = sorted(filter(None, (_normal(value) for value in row.values())))
    if not values:
        raise DataError("the row has no value in it")
    return values


def fingerprint_of(packed: bytes) -> str:
    """Returns the name of the data set with these rows, 64 hex digits."""
    return hashlib.sha256(b"fedpeft data set 1\0" + packed).hexdigest()


def num_rows(packed: bytes) -> int:
    """Returns how many different rows there are."""
    return len(packed) // _DIGEST_BYTES


def unpack(packed: bytes) -> "Digests":
    """Returns the hashes as sorted numbers.

    Raises:
        ValueError: If they are not sorted, or one is there twice.
    """
    import numpy as np

    digests = np.frombuffer(packed, dtype=">u8").astype(np.uint64)
    if not bool(np.all(digests[1:] > digests[:-1])):
        raise ValueError("its row hashes are not sorted")
    return digests


def num_shared(first: "Digests", second: "Digests") -> int:
    """Returns how many rows two data sets share."""
    import numpy as np

    short, long = sorted((first, second), key=len)
    places = np.searchsorted(long, short)
    return int(np.count_nonzero(long[np.minimum(places, len(long) - 1)] == short))


def shared_rows(packed: Mapping[str, bytes]) -> dict[frozenset[str], int]:
    """Returns, for each pair of data sets that share rows, how many; the rest is left out."""
    import numpy as np

    names = list(packed)
    if not names:
        return {}
    digests = [unpack(packed[name]) for name in names]
    owners = np.repeat(np.arange(len(names)), [len(rows) for rows in digests])
    together = np.concatenate(digests)
    order = np.argsort(together, kind="stable")
    together, owners = together[order], owners[order]
    starts = np.flatnonzero(np.concatenate([[True], together[1:] != together[:-1]]))
    ends = np.append(starts[1:], len(together))
    counts: dict[frozenset[str], int] = {}
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        holders = [names[owner] for owner in owners[start:end]]
        for i, first in enumerate(holders):
            for second in holders[:i]:
                pair = frozenset((first, second))
                counts[pair] = counts.get(pair, 0) + 1
    return counts


def _normal(value: object) -> str:
    """The value as text that does not change with the kind of file it came from."""
    if value is None:
        return ""
    if isinstance(value, dict | list | tuple):
        value = json.dumps(value, sort_keys=True, default=str)
    text = " ".join(unicodedata.normalize("NFKC", str(value)).casefold().split())
    try:
        number = Decimal(text)
    except ArithmeticError:
        return text
    if not number.is_finite():
        return text
    return "0" if number == 0 else _without_trailing_zeros(number)


def _without_trailing_zeros(number: Decimal) -> str:
    # Not Decimal.normalize: it rounds to the context's precision.
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    significant = "".join(map(str, digits)).lstrip("0")
    stripped = significant.rstrip("0")
    return f"{'-' * sign}{stripped}e{exponent + len(significant) - len(stripped)}"
