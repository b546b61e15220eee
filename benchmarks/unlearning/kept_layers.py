"""The layers below the lowest adapted one, computed once a row.

What they make of a row does not depend on the adapter: they are frozen, and a token sees only
those before it. It is the same model in part of the time, for every method and for retraining.

Legend: N rows, T tokens, H hidden features.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

_GROUP = 32


States = dict[tuple[int, ...], Tensor]
"""By a row's tokens, (T, H)."""


def keep_lowest(base: nn.Module, num_layers: int, states: States, *, pad_id: int) -> None:
    """Lets a model of the Llama family look up what its lowest layers make of a row.

    Names of modules stay what they are. It takes whole rows that are padded on the right, and can
    no longer generate.

    Args:
        base: From `load_base_model`.
        num_layers: Of the lowest layers; no adapter may be put on them.
        states: Filled as rows come; may be shared by models of the same weights.
        pad_id: Fills a batch.
    """
    decoder: Any = base.model
    lowest = copy.copy(decoder)
    lowest._modules = dict(decoder._modules)
    lowest.layers = decoder.layers[:num_layers]
    lowest.config = copy.copy(decoder.config)
    lowest.config.num_hidden_layers = num_layers
    lowest.norm = nn.Identity()
    decoder.embed_tokens = _Lookup(lowest, states, pad_id)
    for index in range(num_layers):
        decoder.layers[index] = _Passed()


class _Passed(nn.Module):
    """Stands where a layer was whose work is done."""

    def forward(self, states_NTH: Tensor, **given: object) -> Tensor:
        return states_NTH


class _Lookup(nn.Module):
    """Stands where tokens are embedded, and returns what the lowest layers make of them."""

    def __init__(self, lowest: nn.Module, states: States, pad_id: int) -> None:
        super().__init__()
        self._lowest = [lowest]  # in a list: its parameters stay out of the model's
        self._states, self._pad_id = states, pad_id

    def forward(self, ids_NT: Tensor) -> Tensor:
        rows = [self._without_padding(row) for row in ids_NT.tolist()]
        missing = sorted({row for row in rows if row not in self._states}, key=len)
        for start in range(0, len(missing), _GROUP):
            self._add(missing[start : start + _GROUP])
        num_features = self._states[rows[0]].shape[1]
        states_NTH = torch.zeros(*ids_NT.shape, num_features)
        for n, row in enumerate(rows):
            states_NTH[n, : len(row)] = self._states[row]
        return states_NTH

    def _add(self, rows: list[tuple[int, ...]]) -> None:
        ids_NT = torch.full((len(rows), max(map(len, rows))), self._pad_id)
        for n, row in enumerate(rows):
            ids_NT[n, : len(row)] = torch.tensor(row)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            states_NTH = self._lowest[0](input_ids=ids_NT, use_cache=False).last_hidden_state
        for n, row in enumerate(rows):
            self._states[row] = states_NTH[n, : len(row)].float().clone()

    def _without_padding(self, row: list[int]) -> tuple[int, ...]:
        """One token of padding stays: it may be the end of the text."""
        length = len(row)
        while length > 1 and row[length - 1] == row[length - 2] == self._pad_id:
            length -= 1
        return tuple(row[:length])
