"""The durable record of privacy events in a run: written before the first gradient, never undone.

An entry is on disk before the training that it pays for begins. If the process dies between the two
the entry stays, so that the epsilon computed from the journal is never lower than what was
released. One JSON object a line; a last line that was cut off by a crash is an entry whose training
never began, since training waits for the whole line.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedpeft.dp.accounting import DpSgdEvent
from fedpeft.errors import PrivacyError
from fedpeft.files import write_text


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One reserved event of one client in one round."""

    client_id: str
    round: int
    event: DpSgdEvent


class Journal:
    """An append-only file of reserved events."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the journal.

        Raises:
            PrivacyError: If a line other than an unfinished last one cannot be read.
        """
        self._path = path
        self._entries = _read(path) if path.exists() else []
        write_text(path, "".join(_line(entry) for entry in self._entries))

    def reserve(self, client_id: str, round_number: int, event: DpSgdEvent) -> None:
        """Records the event durably; call it before the first gradient."""
        entry = Entry(client_id=client_id, round=round_number, event=event)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())
        self._entries.append(entry)

    def events(self, client_id: str) -> Sequence[DpSgdEvent]:
        """Returns all events of the client, those of interrupted attempts included."""
        return [entry.event for entry in self._entries if entry.client_id == client_id]


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry)) + "\n"


def _read(path: Path) -> list[Entry]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except ValueError as error:
        raise PrivacyError(f"{path} is no text: {error}; the spent budget is unknown") from error
    # What stands after the last newline was cut off by a crash.
    return [_parse(path, number, line) for number, line in enumerate(lines[:-1], start=1)]


def _parse(path: Path, number: int, line: str) -> Entry:
    try:
        fields = json.loads(line)
        entry = Entry(**{**fields, "event": DpSgdEvent(**fields["event"])})
        _check_types(entry)
    except (ValueError, KeyError, TypeError, PrivacyError) as error:
        raise PrivacyError(
            f"{path}:{number} is no privacy event ({error}); the spent budget is unknown, so the "
            "run cannot go on"
        ) from error
    return entry


def _check_types(entry: Entry) -> None:
    if type(entry.event.num_steps) is not int or type(entry.round) is not int:
        raise ValueError("round and num_steps must be whole numbers")
    if not isinstance(entry.client_id, str):
        raise TypeError("client_id must be text")
