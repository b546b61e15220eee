"""Rows that their owner wants forgotten: no later round trains on them.

A client keeps, beside its ledger and under a secret salt, a keyed hash of each such row. A row is
known by its values, as in the ledger: however the file is sorted, split or saved again, and however
often the row is there, it is the same row. A row whose text was edited is another row.

TOMBSTONES/salt         32 random bytes
TOMBSTONES/rows.json    hash → the requests that it belongs to

What is written here is never taken back, also where a request failed: its owner asked for it.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedpeft.errors import DataError, LedgerError, UnavailableError
from fedpeft.file_lock import locked
from fedpeft.files import make_private_folder, write_private_text
from fedpeft.ledger.fingerprint import row_values

_DIGEST_BYTES = 16
_PATIENCE_S = 10.0

Row = Mapping[str, object]


class Tombstones:
    """The tombstones of one client; processes may share the folder."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder, which is made with the first tombstone.

        Args:
            folder: Readable by its owner only.
        """
        self._folder = folder
        self._salt, self._rows = folder / "salt", folder / "rows.json"

    def add(self, request: str, rows: Iterable[Row]) -> int:
        """Makes the tombstones of a request durable; the same again changes nothing.

        Args:
            request: What the request is called from now on, here.
            rows: With the columns that the client's rows have.

        Returns:
            How many rows are tombstoned now, of all requests.

        Raises:
            DataError: If there is no row, or a row without any value.
            LedgerError: If what is there cannot be read.
            UnavailableError: If another process is at work in it for too long.
        """
        wanted = list(rows)
        if not wanted:
            raise DataError("a request without rows removes nothing")
        make_private_folder(self._folder)
        try:
            with locked(self._folder / "lock", patience_s=_PATIENCE_S):
                if not self._rows.exists() and not self._salt.exists():
                    write_private_text(self._salt, secrets.token_hex(32))
                digests = self._digests(wanted)
                known = self._read()
                for digest in digests:
                    known[digest] = sorted({*known.get(digest, ()), request})
                write_private_text(self._rows, json.dumps(known, sort_keys=True, indent=0))
        except BlockingIOError as error:
            raise UnavailableError(
                f"another process is at work in {self._folder}; try again"
            ) from error
        return len(known)

    def __len__(self) -> int:
        """Counts the rows that are tombstoned, of all requests.

        Raises:
            LedgerError: If what is there cannot be read.
        """
        return len(self._read())

    @property
    def version(self) -> str:
        """Says which rows are tombstoned; empty while none is.

        Raises:
            LedgerError: If what is there cannot be read.
        """
        known = self._read()
        if not known:
            return ""
        return hashlib.sha256(json.dumps(sorted(known)).encode()).hexdigest()

    def held(self, rows: Iterable[Row], request: str | None = None) -> list[int]:
        """Returns which rows are tombstoned, counted from 0.

        Args:
            rows: All rows of the client.
            request: Only those of this request; None: of any.

        Raises:
            LedgerError: If what is there cannot be read: nobody knows then what may be trained on.
        """
        known = self._read()
        if not known:
            return []
        if request is not None:
            known = {digest: of for digest, of in known.items() if request in of}
        return [n for n, digest in enumerate(self._digests(rows)) if digest in known]

    def _digests(self, rows: Iterable[Row]) -> list[str]:
        try:
            salt = bytes.fromhex(self._salt.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error
        found = []
        for row in rows:
            values = row_values(row)
            text = json.dumps(values).encode()
            found.append(hashlib.blake2b(text, digest_size=_DIGEST_BYTES, key=salt).hexdigest())
        return found

    def _read(self) -> dict[str, list[str]]:
        try:
            text = self._rows.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}  # also where the salt is there: killed before anything was promised
        except OSError as error:
            raise self._damaged(error) from error
        try:
            read = json.loads(text)
            return {str(digest): [str(name) for name in of] for digest, of in read.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> LedgerError:
        return LedgerError(
            f"the tombstones in {self._folder} cannot be read ({error}), so it is not known which "
            "rows are to be forgotten; put the folder back from a backup"
        )
