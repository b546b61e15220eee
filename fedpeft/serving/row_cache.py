"""Keys and values of rows that come and go while others go on.

Each row has a slot of its own and its own length, so that no row is padded for another's sake. Live
rows lie side by side from slot 0: what attention reads is a view, never a copy.

Legend: N rows, T tokens, K keys, A heads, D features of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class _Step:
    """Which rows the next forward pass is about."""

    first: int
    positions_NT: Tensor
    num_keys: int


class RowCache:
    """What a causal language model of transformers takes for `past_key_values`."""

    is_compileable = False

    def __init__(self, num_slots: int) -> None:
        """Takes how many rows there are at most; memory is taken as they grow."""
        self._num_slots = num_slots
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._step: _Step | None = None

    def begin(self, first: int, positions_NT: Tensor, num_keys: int) -> Tensor:
        """Prepares a forward pass over new tokens of the rows in slots `first`, `first + 1`, ...

        Args:
            first: Slot of the first row.
            positions_NT: Of each token in its row. Tokens that fill a row up have positions after
                its last one: what they leave behind is overwritten before it is ever read.
            num_keys: One more than the last position.

        Returns:
            Which keys each token may see, bool of shape (N, 1, T, K): those up to itself.
        """
        self._step = _Step(first=first, positions_NT=positions_NT, num_keys=num_keys)
        keys_K = torch.arange(num_keys, device=positions_NT.device)
        return (keys_K <= positions_NT.unsqueeze(2)).unsqueeze(1)

    def update(
        self, key_NATD: Tensor, value_NATD: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values; returns all that the step's rows may see."""
        assert self._step is not None
        if layer_idx == len(self._keys):
            self._keys.append(self._room(key_NATD, 0))
            self._values.append(self._room(value_NATD, 0))
        step, rows = self._step, slice(self._step.first, self._step.first + len(key_NATD))
        rows_N1 = torch.arange(rows.start, rows.stop, device=key_NATD.device).unsqueeze(1)
        found = []
        for kept, new_NATD in ((self._keys, key_NATD), (self._values, value_NATD)):
            if kept[layer_idx].shape[2] < step.num_keys:
                grown = self._room(new_NATD, step.num_keys)
                grown[:, :, : kept[layer_idx].shape[2]] = kept[layer_idx]
                kept[layer_idx] = grown
            kept[layer_idx][rows_N1, :, step.positions_NT] = new_NATD.transpose(1, 2)
            found.append(kept[layer_idx][rows, :, : step.num_keys])
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns 0: positions are always given."""
        return 0

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Moves a row into another slot."""
        for kept in (*self._keys, *self._values):
            kept[target] = kept[source]

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Wipes a slot: NaN that a broken row left would reach the next row through its mask."""
        for kept in (*self._keys, *self._values):
            kept[slot] = 0

    def forget(self) -> None:
        """Gives all memory back."""
        self._keys, self._values, self._step = [], [], None

    def _room(self, like_NATD: Tensor, num_keys: int) -> Tensor:
        _, heads, _, features = like_NATD.shape
        length = -(-num_keys // _CHUNK) * _CHUNK
        return like_NATD.new_zeros(self._num_slots, heads, length, features)
