"""What a remote client remembers of its runs, on its own disk.

RUN/terms.sha256           digest of the terms that were agreed to
RUN/0007.safetensors       the update of the newest round, and what paid for it

A run's older updates are removed when a newer one is durable: a coordinator that asks for round 8
has finished round 7.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedpeft.errors import ProtocolError, UnavailableError
from fedpeft.file_lock import locked
from fedpeft.files import make_private_folder, write_atomically, write_private_text
from fedpeft.types import tensor_digest

_ABOUT = "fedpeft"


@dataclass(frozen=True, kw_only=True)
class StoredUpdate:
    """An update that is durable, and may have been sent.

    Attributes:
        content: Digest of the plan that it answers.
        reservation: What paid for it; None where the run has no privacy.
        dataset: Fingerprint of the rows that it was trained on.
        train_seconds: Of the local steps.
        tensors: The update itself; it may hold NaN.
        removed: Which rows were tombstoned when it was trained; see `tombstones.version`.
    """

    content: str
    reservation: str | None
    dataset: str
    train_seconds: float
    tensors: Mapping[str, Tensor]
    removed: str = ""


class ClientStore:
    """The folder with a client's runs."""

    def __init__(self, folder: Path, *, patience_s: float = 10.0) -> None:
        """Makes the folder where there is none.

        Args:
            folder: Readable by its owner only.
            patience_s: How long to wait for another process that is at work in it.
        """
        self._folder = folder
        self._patience_s = patience_s
        make_private_folder(folder)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keeps every other process out while the context is open.

        Raises:
            UnavailableError: If another process is at work here.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self._folder / "lock", patience_s=self._patience_s))
            except BlockingIOError as error:
                raise UnavailableError(
                    f"another process is at work in {self._folder}; stop one of them"
                ) from error
            yield

    def agree(self, run_id: str, terms_digest: str) -> None:
        """Remembers the terms of a run; the same ones again change nothing.

        Raises:
            ProtocolError: If other terms were agreed to.
        """
        file = self._run(run_id) / "terms.sha256"
        if not file.is_file():
            make_private_folder(file.parent)
            write_private_text(file, terms_digest)
            return
        agreed = file.read_text(encoding="utf-8")
        if agreed != terms_digest:
            raise ProtocolError(
                f"this client agreed to run {run_id} with terms {agreed[:12]}…, and is asked with "
                f"terms {terms_digest[:12]}…; terms never change, the operator submits a new run"
            )

    def save(self, run_id: str, round_number: int, update: StoredUpdate) -> None:
        """Makes an update durable, and drops the run's older ones."""
        path = self._update(run_id, round_number)
        make_private_folder(path.parent)
        about = {
            "content": update.content,
            "reservation": update.reservation,
            "dataset": update.dataset,
            "train_seconds": update.train_seconds,
            "digest": tensor_digest(update.tensors),
            "removed": update.removed,
        }

        def write(partial: Path) -> None:
            partial.touch(mode=0o600)
            save_file(dict(update.tensors), partial, metadata={_ABOUT: json.dumps(about)})

        write_atomically(path, write)
        for old in path.parent.glob("*.safetensors"):
            if old.name < path.name:
                old.unlink()

    def load(self, run_id: str, round_number: int) -> StoredUpdate | None:
        """Returns a stored update; None where there is none, or none that is whole."""
        path = self._update(run_id, round_number)
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_ABOUT])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest = about.pop("digest")
            stored = StoredUpdate(tensors=tensors, **about)
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return stored if tensor_digest(tensors) == digest else None

    def _update(self, run_id: str, round_number: int) -> Path:
        return self._run(run_id) / f"{round_number:08d}.safetensors"

    def _run(self, run_id: str) -> Path:
        return self._folder / run_id
