"""The app bundle of a run: one pyproject.toml that names what nodes have installed. No code.

Flower gives every run a bundle and tells nodes its SHA-256. Ours never changes with the version of
fedpeft, only with the protocol, so that a node can list the hashes it works with.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass

import tomli_w

PROTOCOL_VERSION = "1.0.0"

_DATE, _UNIX = (1980, 1, 1, 0, 0, 0), 3

_PROJECT = {
    "project": {
        "name": "fedpeft",
        "version": PROTOCOL_VERSION,
        "description": "Names what is installed on both sides; carries no code.",
        "dependencies": [],
    },
    "tool": {
        "flwr": {
            "app": {
                "publisher": "fedpeft",
                "components": {
                    "serverapp": "fedpeft_server.flower_app:app",
                    "clientapp": "fedpeft_client.flower_app:app",
                },
            }
        }
    },
}


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A Flower app bundle.

    Attributes:
        content: The archive.
        name: "publisher/name", Flower's id of an app.
        version: Of the protocol.
    """

    content: bytes
    name: str
    version: str

    @property
    def hash(self) -> str:
        """SHA-256 of the archive, in hex: what nodes compare with their list."""
        return hashlib.sha256(self.content).hexdigest()


def build_bundle() -> Bundle:
    """Builds the bundle: the same bytes on every machine, so nothing in it is compressed."""
    entry = zipfile.ZipInfo("pyproject.toml", date_time=_DATE)
    entry.create_system = _UNIX
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        opened.writestr(entry, tomli_w.dumps(_PROJECT))
    return Bundle(content=archive.getvalue(), name="fedpeft/fedpeft", version=PROTOCOL_VERSION)
