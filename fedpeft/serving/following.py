"""Serving what an alias points at, and hearing when that changes."""

import logging
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from fedpeft.errors import FedpeftError, RemoteError, UnavailableError
from fedpeft.registry.trust import RegistryTrust
from fedpeft.serving.served import Served
from fedpeft.serving.trusted import read_trusted

_log = logging.getLogger(__name__)
_MOST_SKIPPED = 60


class Source(Protocol):
    """Where versions come from."""

    def follow(self, name: str, *, adapter: str, fingerprint_json: str, problem: str) -> str:
        """Says what is served under a name; returns the digest of what should be.

        Args:
            name: An alias.
            adapter: Digest of the version that answers; empty while there is none.
            fingerprint_json: Of its outputs.
            problem: Why the version that should answer does not; empty otherwise.

        Raises:
            RemoteError: If there is no such alias, or nothing that may be served under it.
            UnavailableError: If nobody can be asked.
        """

    def is_withdrawn(self, digest: str) -> bool:
        """Returns whether a version may answer nobody any more."""

    def fetch(self, digest: str, folder: Path) -> None:
        """Puts a version's export and its signed manifest into a new folder."""


class Follower:
    """Keeps one name at the version that it should mean."""

    def __init__(self, name: str, source: Source, served: Served, trust: RegistryTrust) -> None:
        """Makes the name known; `tick` does the rest.

        Args:
            name: An alias, or whatever the source takes.
            source: Where versions come from.
            served: What answers.
            trust: Whose signatures are believed.
        """
        self._name, self._source, self._served, self._trust = name, source, served, trust
        self._catalogue = served.catalogue
        self._catalogue.declare(name)
        self._failed, self._num_failed, self._num_skip = "", 0, 0
        self._unreachable = False

    def tick(self) -> None:
        """Asks once, swaps where something else should be served, and says so at once."""
        if self._follow():
            self._follow()

    def _follow(self) -> bool:
        """Returns whether there is something new to say."""
        state = self._catalogue.state(self._name)
        current = state.version.digest if state.version is not None else ""
        said = None if state.is_held else state.fingerprint
        try:
            # In this order: a version may be withdrawn, and the alias moved with it, in between.
            withdrawn = bool(current) and self._source.is_withdrawn(current)
            wanted = self._source.follow(
                self._name,
                adapter="" if said is None else current,
                fingerprint_json="" if said is None else said.to_json(),
                problem=state.problem,
            )
            refused = withdrawn
            if wanted != current:
                refused = self._source.is_withdrawn(wanted)
                withdrawn = withdrawn or (bool(current) and self._source.is_withdrawn(current))
        except UnavailableError as error:
            if not self._unreachable:
                _log.warning("%s goes on with what it serves: %s", self._name, error)
            self._unreachable = True
            return False
        except RemoteError as error:
            return self._close(current, str(error))
        self._unreachable = False
        if withdrawn:
            self._catalogue.withdraw(current)
        if refused:
            return self._close(current, f"version {wanted[:12]} was withdrawn")
        if wanted == current:
            return False
        if wanted == self._failed and self._num_skip:
            self._num_skip -= 1
            return False
        if withdrawn:
            self._catalogue.hold(self._name)
        return self._swap(wanted, withdrawn)

    def _swap(self, wanted: str, withdrawn: bool) -> bool:
        try:
            with tempfile.TemporaryDirectory(prefix="fedpeft-serve-") as scratch:
                folder = Path(scratch, wanted)
                self._source.fetch(wanted, folder)
                files = read_trusted(
                    folder,
                    self._trust,
                    base_digest=self._served.model.digest,
                    digest=wanted,
                )
                self._served.swap(self._name, files)
        except UnavailableError as error:
            # Requests that wait go on waiting: this may pass at once.
            self._catalogue.note(self._name, str(error))
            return True
        except FedpeftError as error:
            # Not every second: a version that is refused is downloaded each time.
            self._num_failed = self._num_failed + 1 if wanted == self._failed else 1
            self._failed, self._num_skip = wanted, min(2**self._num_failed, _MOST_SKIPPED)
            _log.error("%s is not swapped to version %s: %s", self._name, wanted[:12], error)
            if withdrawn or self._catalogue.state(self._name).version is None:
                self._catalogue.close(self._name, str(error))
            else:
                self._catalogue.note(self._name, str(error))
            return True
        self._failed, self._num_failed, self._num_skip = "", 0, 0
        _log.info("%s is version %s now", self._name, wanted[:12])
        return True

    def _close(self, current: str, problem: str) -> bool:
        if not current and self._catalogue.state(self._name).problem == problem:
            return False
        _log.error("%s is served no more: %s", self._name, problem)
        self._catalogue.close(self._name, problem)
        return True


class Following:
    """Followers that ask again and again, each in a thread of its own. Use it in a `with` block.

    While one loads a large version, the others go on saying what they serve.
    """

    def __init__(self, followers: Sequence[Follower], *, poll_s: float = 1.0) -> None:
        """Takes who asks, and how long they wait in between."""
        self._poll_s = poll_s
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(follower,), name="following", daemon=True)
            for follower in followers
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self, follower: Follower) -> None:
        while not self._stopped.is_set():
            try:
                follower.tick()
            except Exception:
                _log.exception("a defect of ours; asking again")
            self._stopped.wait(self._poll_s)
