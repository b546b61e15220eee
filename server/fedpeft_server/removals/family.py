"""Which versions were made from which: what a client's rows are in, and what they are not in.

Versions are told apart by run and round: two of them may have the same tensors.
"""

from collections.abc import Iterable, Iterator, Sequence

from fedpeft_server.records import AdapterRecord

_Key = tuple[str, int]


class Family:
    """Versions with their parents."""

    def __init__(self, versions: Sequence[AdapterRecord]) -> None:
        """Takes all versions there are, oldest first."""
        self._versions = {_key(version): version for version in versions}
        self._parents: dict[_Key, _Key] = {}
        self._children: dict[_Key, list[_Key]] = {}
        known: dict[str, list[_Key]] = {}
        for version in versions:
            parent = _parent(version, known.get(version.parent or "", []))
            if parent is not None:
                self._parents[_key(version)] = parent
                self._children.setdefault(parent, []).append(_key(version))
            known.setdefault(version.digest, []).append(_key(version))

    def line(self, version: AdapterRecord) -> Iterator[AdapterRecord]:
        """Yields a version, what it was made from, and so on to the first."""
        key: _Key | None = _key(version)
        while key is not None:
            yield self._versions[key]
            key = self._parents.get(key)

    def with_descendants(self, versions: Iterable[AdapterRecord]) -> list[AdapterRecord]:
        """Returns versions and all that were made from them, oldest first."""
        found: set[_Key] = set()
        left = [_key(version) for version in versions]
        while left:
            key = left.pop()
            if key not in found:
                found.add(key)
                left.extend(self._children.get(key, ()))
        return [version for key, version in self._versions.items() if key in found]

    def touched(self, named: AdapterRecord, client_id: str) -> list[AdapterRecord]:
        """Returns the versions that a client's rows are in, of the line of a version and after it.

        A version with the tensors of one that the client is not in has nothing of its rows: a
        round may change nothing. Versions that were withdrawn are among them.

        Returns:
            Oldest first; nothing where the client's rows are not in `named`.
        """
        line = list(self.line(named))
        clean = {version.digest for version in line if client_id not in version.participants}
        if named.digest in clean:
            return []
        first = [version for version in line if client_id in version.participants]
        return [v for v in self.with_descendants(first) if v.digest not in clean]

    def clean_ancestor(self, named: AdapterRecord, client_id: str) -> AdapterRecord | None:
        """Returns the last version in the line that the client is not in and that may be used."""
        for version in self.line(named):
            if client_id not in version.participants and version.status == "published":
                return version
        return None


def _key(version: AdapterRecord) -> _Key:
    return version.run_id, version.round


def _parent(version: AdapterRecord, candidates: Sequence[_Key]) -> _Key | None:
    """Of several versions with the parent's tensors: the newest of the run itself, else at all."""
    own = [key for key in candidates if key[0] == version.run_id]
    return next(reversed(own or candidates), None)
