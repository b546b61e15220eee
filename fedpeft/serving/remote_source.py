"""Versions from a server's registry."""

import uuid
from pathlib import Path

from fedpeft.errors import VerificationError
from fedpeft.files import write_text
from fedpeft.registry.manifest import FILE_NAME
from fedpeft.remote import Connection

WITHDRAWN = "withdrawn"
_LONGEST_PROBLEM = 500


class RemoteSource:
    """Follows aliases of a server; see `following.Source`."""

    def __init__(self, connection: Connection) -> None:
        """Takes a connection, and a name of its own for this process."""
        self._connection = connection
        self._replica_id = uuid.uuid4().hex

    def follow(self, name: str, *, adapter: str, fingerprint_json: str, problem: str) -> str:
        """See `Source.follow`."""
        alias = self._connection.follow_alias(
            name,
            self._replica_id,
            adapter=adapter,
            fingerprint_json=fingerprint_json,
            problem=_one_line(problem),
        )
        return alias.adapter

    def is_withdrawn(self, digest: str) -> bool:
        """See `Source.is_withdrawn`."""
        return self._connection.get_adapter(digest).status == WITHDRAWN

    def fetch(self, digest: str, folder: Path) -> None:
        """See `Source.fetch`."""
        found = self._connection.get_adapter(digest)
        if not found.manifest_json:
            raise VerificationError(
                f"version {digest[:12]} is not signed and is not served; the server signs a "
                "version when it exports it"
            )
        self._connection.download_adapter(digest, folder)
        write_text(folder / FILE_NAME, found.manifest_json)


class PinnedSource(RemoteSource):
    """Serves a version under its own digest, for as long as it is not withdrawn."""

    def follow(self, name: str, *, adapter: str, fingerprint_json: str, problem: str) -> str:
        """Returns the name: it is the digest."""
        return name


def _one_line(text: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in text)
    return shown if len(shown) <= _LONGEST_PROBLEM else shown[: _LONGEST_PROBLEM - 4] + " ..."
