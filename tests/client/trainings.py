"""Real processes that train for real clients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedpeft.dp.events import DpSgdEvent
from fedpeft.wire.blobs import to_blob
from fedpeft_client.training import ClientSetup, Note, Step
from tests.federated.client_rounds import CLIENT, NUM_ROWS, Client

EVENT = DpSgdEvent(noise_multiplier=1.5, sampling_prob=5 / NUM_ROWS, num_steps=2)


class Told:
    """What a training process tells, and what is done when it tells of a step."""

    def __init__(self, at_step: Callable[[int], object] = lambda step: None) -> None:
        self.notes: list[str] = []
        self.num_steps = 0
        self._at_step = at_step

    def __call__(self, what: Note | Step) -> None:
        if isinstance(what, Note):
            self.notes.append(what.text)
        else:
            self.num_steps += 1
            self._at_step(what.step)


def setup_of(client: Client, **fields: Any) -> ClientSetup:
    return ClientSetup(
        **{
            "client_id": CLIENT,
            "folder": client.folder / "updates",
            "tombstones": client.folder / "tombstones",
            "ledger": str(client.folder / "ledger.db"),
            "data": str(client.folder / "rows.jsonl"),
            "policy": client.policy,
            **fields,
        }
    )


def blob_of(client: Client, terms: Any) -> bytes:
    return to_blob(client.adapter(terms))


def folder_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
