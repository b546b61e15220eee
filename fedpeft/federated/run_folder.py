"""What a run keeps on disk while it goes on, so that it can be stopped at any moment.

run.json                       the configuration and what it must find again; written once
ledger.db                      budgets and charges, where the run names no other ledger
checkpoint/progress.json       rounds finished, and which state file holds their adapter
checkpoint/state-0007.safetensors
checkpoint/round-0008/*.safetensors   updates of the open round, a file for each group
checkpoint/round-0008/release.safetensors   their noised mean, with client-level privacy
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedpeft.adapters.peft_files import load_tensors
from fedpeft.errors import AdapterError, ConfigError, DataError, LedgerError
from fedpeft.federated.local_training import LocalResult
from fedpeft.federated.records import RoundReport
from fedpeft.files import write_atomically, write_text
from fedpeft.types import tensor_digest

_BESIDE = "num_nonfinite_and_reservation"
_IN = " "  # between client and tensor; no client id and no parameter name holds a space


@dataclass(frozen=True, kw_only=True)
class Update:
    """A client's result, and the reservation that paid for it; None where privacy is off."""

    result: LocalResult
    reservation: str | None


class Progress(BaseModel):
    """What is known after the last finished round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int
    digest: str
    initial_metrics: dict[str, float]
    num_nonfinite: dict[str, int]
    records: list[RoundReport]
    notes: list[str]
    seconds: dict[str, float]
    ledger_head: str | None


class RunFolder:
    """The folder of one run.

    Attributes:
        path: Where it is.
        ledger: The file of its own ledger.
    """

    def __init__(self, path: Path) -> None:
        """Opens an existing folder; `create` and `reopen` are the ways to one."""
        self.path = path
        self.ledger = path / "ledger.db"
        self._checkpoint = path / "checkpoint"

    @classmethod
    def create(cls, path: Path, run: Mapping[str, Any]) -> "RunFolder":
        """Makes a new folder and writes what `reopen` will give back.

        Raises:
            ConfigError: If the folder already holds something.
        """
        check_unused(path)
        (path / "checkpoint").mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        write_text(path / "run.json", json.dumps(run, indent=2) + "\n")
        return folder

    @classmethod
    def reopen(cls, path: Path) -> tuple["RunFolder", dict[str, Any]]:
        """Opens the folder of a run that was stopped, with what `create` was given.

        Raises:
            DataError: If it is not the folder of a run, or its files are damaged.
        """
        file = path / "run.json"
        if not file.is_file():
            raise DataError(f"{path} holds no run to resume: run.json is missing")
        try:
            run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{file} is damaged: {error}") from error
        if not isinstance(run, dict):
            raise DataError(f"{file} is damaged: expected a JSON object")
        return cls(path), run

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keeps every other process off the run while the context is open.

        Two processes would overwrite each other's rounds, and pay for each of them twice.

        Raises:
            ConfigError: If another process is at work on the run.
        """
        with (self.path / "run.json").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another process is at work on the run in {self.path}; wait for it or stop it"
                ) from error
            yield

    def check_ledger_exists(self) -> None:
        """Refuses a run whose own ledger is gone: a new one would forget what was spent.

        Raises:
            LedgerError: If the file is not there.
        """
        if not self.ledger.is_file():
            raise LedgerError(
                f"the run's ledger {self.ledger} is missing, so what it has spent is not known; "
                "put it back to go on, or start a new run"
            )

    def save_round(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Makes a finished round durable and drops the files that it replaces."""
        state = self._state(progress.round)
        write_atomically(state, lambda path: save_file(dict(tensors), path))
        # Not model_dump_json, which makes null of NaN: a diverged run must be readable again.
        text = json.dumps(progress.model_dump(), indent=1)
        write_text(self._checkpoint / "progress.json", text)
        for old in self._checkpoint.glob("state-*.safetensors"):
            if old != state:
                old.unlink()
        # Also what an earlier crash left behind: nobody may read it, and with client-level privacy
        # it is not noised.
        for old_round in self._checkpoint.glob("round-*"):
            if int(old_round.name.removeprefix("round-")) <= progress.round:
                shutil.rmtree(old_round)

    def load_round(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """Returns the last finished round, or None before the first one.

        Raises:
            DataError: If the checkpoint is damaged or was altered.
            AdapterError: If its tensors cannot be read.
        """
        file = self._checkpoint / "progress.json"
        if not file.is_file():
            return None
        try:
            progress = Progress.model_validate_json(file.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise DataError(f"{file} is damaged: {error.errors()[0]['msg']}") from error
        tensors = load_tensors(self._state(progress.round))
        if tensor_digest(tensors) != progress.digest:
            raise DataError(f"{self._state(progress.round)} is not the file that {file} names")
        return progress, tensors

    def save_updates(
        self, round_number: int, group: Sequence[str], updates: Mapping[str, Update]
    ) -> None:
        """Makes the updates of a group of clients durable, all of them or none."""
        path = self._group(round_number, group)
        path.parent.mkdir(exist_ok=True)
        tensors = {
            f"{client_id}{_IN}{name}": tensor
            for client_id, update in updates.items()
            for name, tensor in update.result.tensors.items()
        }
        beside = {
            client_id: [update.result.num_nonfinite, update.reservation]
            for client_id, update in updates.items()
        }
        metadata = {_BESIDE: json.dumps(beside)}
        write_atomically(path, lambda partial: save_file(tensors, partial, metadata=metadata))

    def load_updates(self, round_number: int, group: Sequence[str]) -> dict[str, Update] | None:
        """Returns the updates of a group of the open round, where they were already made.

        Clients that sat out are not in them.

        Raises:
            AdapterError: If they cannot be read.
        """
        path = self._group(round_number, group)
        if not path.is_file():
            return None
        tensors = load_tensors(path)
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        if _BESIDE not in metadata:
            raise AdapterError(f"{path} is not a file of updates that this run wrote; remove it")
        beside: dict[str, tuple[int, str | None]] = json.loads(metadata[_BESIDE])
        return {
            client_id: Update(
                result=LocalResult(
                    tensors={
                        name.removeprefix(f"{client_id}{_IN}"): tensor
                        for name, tensor in tensors.items()
                        if name.startswith(f"{client_id}{_IN}")
                    },
                    num_nonfinite=num_nonfinite,
                ),
                reservation=reservation,
            )
            for client_id, (num_nonfinite, reservation) in beside.items()
        }

    def save_release(self, round_number: int, mean: Mapping[str, Tensor]) -> None:
        """Makes the noised mean of the open round durable, before anyone can see it."""
        path = self._release(round_number)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda partial: save_file(dict(mean), partial))

    def load_release(self, round_number: int) -> dict[str, Tensor] | None:
        """Returns the noised mean of the open round, where it was already made.

        Raises:
            AdapterError: If it cannot be read.
        """
        path = self._release(round_number)
        return load_tensors(path) if path.is_file() else None

    def _release(self, round_number: int) -> Path:
        return self._round(round_number) / "release.safetensors"

    def _group(self, round_number: int, group: Sequence[str]) -> Path:
        digest = hashlib.sha256(json.dumps(list(group)).encode()).hexdigest()[:16]
        return self._round(round_number) / f"{digest}.safetensors"

    def _state(self, round_number: int) -> Path:
        return self._checkpoint / f"state-{round_number:04d}.safetensors"

    def _round(self, round_number: int) -> Path:
        return self._checkpoint / f"round-{round_number:04d}"


def check_unused(path: Path) -> None:
    """Refuses a folder that already holds something.

    Raises:
        ConfigError: If the path is a file or a folder that is not empty.
    """
    if path.exists() and not (path.is_dir() and _holds_nothing(path)):
        hint = " (to go on with the run in it, use --resume)" if path.is_dir() else ""
        raise ConfigError(f"the output folder {path} already holds something{hint}; name another")


def _holds_nothing(path: Path) -> bool:
    """Whether there is nothing but what a crash in `RunFolder.create` leaves: no run yet."""
    unfinished = {"checkpoint", ".run.json.partial"}
    checkpoint = path / "checkpoint"
    return {entry.name for entry in path.iterdir()} <= unfinished and not (
        checkpoint.exists() and (not checkpoint.is_dir() or any(checkpoint.iterdir()))
    )
