"""What an adapter version is, in one signed document beside its files."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, Literal, Self, get_args

from fedpeft.canonical import read_float, write_float
from fedpeft.errors import VerificationError

KIND: Final = "adapter-manifest"
FILE_NAME: Final = "manifest.json"
_VERSION: Final = 1
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

Guarantee = Literal["none", "intact", "void"]
"""Of an adapter: it never had one; its (epsilon, delta) hold; a removal gave them up."""


@dataclass(frozen=True, kw_only=True)
class ManifestFile:
    """One file of the export."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class ManifestParticipant:
    """A client whose updates are in the version.

    Attributes:
        dataset: Fingerprint of its rows in its own ledger; empty where none was stated.
        epsilon: After the version's round; None without privacy.
        delta: Of that epsilon.
    """

    client_id: str
    dataset: str
    epsilon: float | None
    delta: float | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An adapter version.

    Attributes:
        digest: Of its tensors.
        artifact: sha256 of the safetensors blob that holds them.
        base_digest: Of the base model's tensors.
        method: "federated", "imported", or the method of the removal that made it.
        parents: Digests of the versions that it was made from.
        run_id: The run, or the removal request, that made it.
        metrics: Of held-out rows.
        removal: The removal request that made it; empty otherwise.
        files: Of the export in PEFT format, by plain name.
        created_at: When it was signed, UTC.
    """

    digest: str
    artifact: str
    base_model: str
    base_digest: str
    method: str
    parents: tuple[str, ...]
    run_id: str
    round: int
    participants: tuple[ManifestParticipant, ...]
    metrics: Mapping[str, float]
    guarantee: Guarantee
    removal: str
    files: Mapping[str, ManifestFile]
    created_at: datetime

    def to_body(self) -> dict[str, Any]:
        """Returns it as values of canonical JSON."""
        return {
            "version": _VERSION,
            "digest": self.digest,
            "artifact": self.artifact,
            "base_model": self.base_model,
            "base_digest": self.base_digest,
            "method": self.method,
            "parents": list(self.parents),
            "run_id": self.run_id,
            "round": self.round,
            "participants": [
                {
                    "client_id": p.client_id,
                    "dataset": p.dataset,
                    "epsilon": None if p.epsilon is None else write_float(p.epsilon),
                    "delta": None if p.delta is None else write_float(p.delta),
                }
                for p in self.participants
            ],
            "metrics": {name: write_float(value) for name, value in self.metrics.items()},
            "guarantee": self.guarantee,
            "removal": self.removal,
            "files": {name: dict(vars(file)) for name, file in self.files.items()},
            "created_at": self.created_at.isoformat(timespec="microseconds"),
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """Reads what `to_body` wrote.

        Raises:
            VerificationError: If anything in it is missing, unknown or of another form.
        """
        expected = {"version", *(field.name for field in fields(cls))}
        if set(body) != expected:
            odd = sorted(set(body) ^ expected)
            raise VerificationError(f"a manifest with missing or unknown fields: {odd}")
        if body["version"] != _VERSION:
            raise VerificationError(
                f"expected a manifest of version {_VERSION}, got {body['version']!r}; a newer "
                "fedpeft may read it"
            )
        try:
            read = cls(
                **{name: _string(body[name]) for name in _STRINGS},
                parents=tuple(_string(parent) for parent in body["parents"]),
                round=_count(body["round"]),
                participants=tuple(_participant(entry) for entry in body["participants"]),
                metrics={_string(k): read_float(v) for k, v in body["metrics"].items()},
                guarantee=_one_of(body["guarantee"], get_args(Guarantee)),
                files={_plain(name): _file(entry) for name, entry in body["files"].items()},
                created_at=datetime.fromisoformat(body["created_at"]),
            )
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise VerificationError(f"a manifest that cannot be read: {error}") from error
        for digest in (read.digest, read.artifact, *read.parents):
            if _DIGEST.fullmatch(digest) is None:
                raise VerificationError(f"expected a digest in a manifest, got {digest[:80]!r}")
        return read

    def check_files(self, contents: Mapping[str, bytes]) -> None:
        """Checks that the files are those of the version, no more and no less.

        Args:
            contents: File name → content, without the manifest itself.

        Raises:
            VerificationError: If a file is missing, of no version, or altered.
        """
        odd = sorted(set(contents) ^ set(self.files))
        if odd:
            what = "is missing" if odd[0] in self.files else "does not belong to the version"
            raise VerificationError(f"{odd[0]} {what}; export the version again")
        for name, file in self.files.items():
            found = contents[name]
            if len(found) != file.size_bytes or hashlib.sha256(found).hexdigest() != file.sha256:
                raise VerificationError(
                    f"{name} is not what was signed: expected {file.size_bytes} bytes with sha256 "
                    f"{file.sha256}, got {len(found)} bytes with "
                    f"{hashlib.sha256(found).hexdigest()}; export the version again"
                )


_STRINGS: Final = (
    "digest",
    "artifact",
    "base_model",
    "base_digest",
    "method",
    "run_id",
    "removal",
)


def _participant(entry: Mapping[str, Any]) -> ManifestParticipant:
    if set(entry) != {"client_id", "dataset", "epsilon", "delta"}:
        raise ValueError("a participant with missing or unknown fields")
    epsilon, delta = entry["epsilon"], entry["delta"]
    return ManifestParticipant(
        client_id=_string(entry["client_id"]),
        dataset=_string(entry["dataset"]),
        epsilon=None if epsilon is None else read_float(epsilon),
        delta=None if delta is None else read_float(delta),
    )


def _file(entry: Mapping[str, Any]) -> ManifestFile:
    if set(entry) != {"sha256", "size_bytes"}:
        raise ValueError("a file with missing or unknown fields")
    return ManifestFile(sha256=_string(entry["sha256"]), size_bytes=_count(entry["size_bytes"]))


def _plain(name: object) -> str:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ValueError(f"a file has a plain name, got {name!r}")
    return name


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"expected a number from 0, got {value!r}")
    return value


def _one_of(value: object, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"expected one of {', '.join(allowed)}, got {value!r}")
    return value
