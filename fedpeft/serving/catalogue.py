"""Which version answers under which name, and which requests are still with which version.

A request has one version from its beginning to its end. A name moves from one version to the next
at one moment: there is none at which it means two, or nothing.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from fedpeft.errors import RemoteError
from fedpeft.registry.fingerprint import Fingerprint
from fedpeft.serving.adapter_files import AdapterFiles
from fedpeft.serving.refusals import Refused


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version that is in memory.

    Attributes:
        labels: Of a classifier.
        max_length: Longer rows are cut, in tokens.
    """

    digest: str
    labels: tuple[str, ...]
    max_length: int

    @classmethod
    def of(cls, files: AdapterFiles) -> "Version":
        """Returns what requests need to know of an export."""
        return cls(digest=files.digest, labels=files.labels, max_length=files.max_length)


@dataclass(frozen=True, kw_only=True)
class NameState:
    """What a name means.

    Attributes:
        version: That answers; None while there is none.
        fingerprint: Of its outputs, as requests get them.
        problem: Why the version that should answer does not; empty otherwise.
        is_held: Requests wait: its version was withdrawn and the next one is being loaded.
    """

    version: Version | None = None
    fingerprint: Fingerprint | None = None
    problem: str = ""
    is_held: bool = False


class Catalogue:
    """Names, versions, and requests. Threads may share one."""

    def __init__(self, unload: Callable[[str], object]) -> None:
        """Takes what is called with the digest of a version that nobody needs any more."""
        self._unload = unload
        self._names: dict[str, NameState] = {}
        self._versions: dict[str, Version] = {}
        self._num_requests: dict[str, int] = {}
        self._withdrawn: set[str] = set()
        self._lock = threading.Lock()
        self._changed: Future[None] = Future()

    def names(self) -> dict[str, NameState]:
        """Returns every name and what it means."""
        with self._lock:
            return dict(self._names)

    def state(self, name: str) -> NameState:
        """Returns what a name means; an unknown one means nothing."""
        with self._lock:
            return self._names.get(name, NameState())

    def num_requests(self, digest: str) -> int:
        """Returns how many requests are with a version."""
        with self._lock:
            return self._num_requests.get(digest, 0)

    def change(self) -> "Future[None]":
        """Returns what is done at the next change of a name."""
        with self._lock:
            return self._changed

    def declare(self, name: str) -> None:
        """Makes a name known, before there is a version for it."""
        with self._lock:
            self._names.setdefault(name, NameState(problem="no version was loaded yet"))

    def has(self, digest: str) -> bool:
        """Returns whether a version is in memory, or is being loaded."""
        with self._lock:
            return digest in self._versions

    @contextmanager
    def staging(self, version: Version) -> Iterator[None]:
        """In this block a version is known by its digest, also while no name means it."""
        with self._lock:
            self._versions[version.digest] = version
            self._enter(version)
        try:
            yield
        finally:
            self._leave(version)

    def point(self, name: str, version: Version) -> None:
        """From now on the name means this version, in whose `staging` block this is called."""
        with self._changing():
            assert version.digest in self._versions
            self._names[name] = NameState(version=version)

    def confirm(self, name: str, fingerprint: Fingerprint) -> None:
        """Notes what the version says under the name."""
        with self._changing():
            state = self._names[name]
            self._names[name] = NameState(version=state.version, fingerprint=fingerprint)

    def note(self, name: str, problem: str) -> None:
        """Notes why the version that should answer does not; the one before answers on."""
        with self._lock:
            state = self._names[name]
            self._names[name] = NameState(
                version=state.version,
                fingerprint=state.fingerprint,
                problem=problem,
                is_held=state.is_held,
            )

    def hold(self, name: str) -> None:
        """New requests wait: the version is not to answer any, and the next one comes at once."""
        with self._changing():
            state = self._names[name]
            self._names[name] = NameState(
                version=state.version, fingerprint=state.fingerprint, is_held=True
            )

    def close(self, name: str, problem: str) -> None:
        """New requests are refused, with this reason."""
        with self._changing():
            self._names[name] = NameState(problem=problem)

    def withdraw(self, digest: str) -> None:
        """No new request gets this version by its digest; those that it has end with it."""
        with self._changing():
            self._withdrawn.add(digest)

    @contextmanager
    def answering(self, name: str) -> Iterator[Version | None]:
        """In this block a request is with the version that the name means at its beginning.

        Yields None where the request has to wait for the next `change`.

        Raises:
            RemoteError: If nothing answers under the name.
        """
        with self._lock:
            version = self._find(name)
            if version is not None:
                self._enter(version)
        try:
            yield version
        finally:
            if version is not None:
                self._leave(version)

    def _enter(self, version: Version) -> None:
        self._num_requests[version.digest] = self._num_requests.get(version.digest, 0) + 1

    def _leave(self, version: Version) -> None:
        with self._lock:
            self._num_requests[version.digest] -= 1
            unused = self._take_unused()
        self._unload_all(unused)

    def _find(self, name: str) -> Version | None:
        state = self._names.get(name)
        if state is not None and state.is_held:
            return None
        if state is not None and state.version is not None:
            return state.version
        if name in self._withdrawn:
            raise Refused.WITHDRAWN.error(f"version {name} was withdrawn; ask for an alias")
        if state is not None:
            raise Refused.NOT_SERVED.error(f"{name} is not served now: {state.problem}")
        if name in self._versions:
            return self._versions[name]
        raise self._unknown(name)

    def _unknown(self, name: str) -> RemoteError:
        known = ", ".join(sorted(self._names)) or "none"
        return Refused.NO_SUCH_MODEL.error(f"there is no model {name!r} here; there are: {known}")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            yield
            changed, self._changed = self._changed, Future()
            unused = self._take_unused()
        changed.set_result(None)
        self._unload_all(unused)

    def _take_unused(self) -> list[str]:
        named = {state.version.digest for state in self._names.values() if state.version}
        unused = [
            digest
            for digest in self._versions
            if digest not in named and not self._num_requests.get(digest)
        ]
        for digest in unused:
            del self._versions[digest]
            self._num_requests.pop(digest, None)
        return unused

    def _unload_all(self, digests: list[str]) -> None:
        for digest in digests:
            self._unload(digest)
