"""What a language model says after a prefix, greedily."""

from collections.abc import Sequence

import torch
from torch import nn

from fedpeft.devices import to_device
from fedpeft.errors import DataError

Tokens = Sequence[int]


def continuations(
    model: nn.Module,
    prefixes: Sequence[Tokens],
    num_tokens: Sequence[int],
    *,
    pad_id: int,
    end_ids: Sequence[int] = (),
    batch_size: int = 32,
) -> list[list[int]]:
    """Returns the most probable next tokens after each prefix, one after the other.

    Prefixes of like length go together; padding stands before them, where a model that follows its
    attention mask does not see it.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        prefixes: None of them empty.
        num_tokens: How many tokens at most, for each prefix.
        pad_id: Fills a batch.
        end_ids: Tokens that end a continuation; they are its last.
        batch_size: Prefixes at a time.

    Raises:
        DataError: If a prefix is empty.
    """
    from transformers import GenerationConfig

    if not all(prefixes):
        raise DataError("a prefix needs a token or more")
    said: list[list[int]] = [[] for _ in prefixes]
    order = sorted(range(len(prefixes)), key=lambda i: (len(prefixes[i]), num_tokens[i]))
    device = next(model.parameters()).device
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        longest = max(len(prefixes[i]) for i in some)
        ids_NT = torch.full((len(some), longest), pad_id)
        mask_NT = torch.zeros_like(ids_NT)
        for n, i in enumerate(some):
            ids_NT[n, longest - len(prefixes[i]) :] = torch.tensor(list(prefixes[i]))
            mask_NT[n, longest - len(prefixes[i]) :] = 1
        with torch.inference_mode():
            out_NT = model.generate(  # type: ignore[operator]
                input_ids=to_device(ids_NT, device),
                attention_mask=to_device(mask_NT, device),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max(max(num_tokens[i] for i in some), 1),
                    pad_token_id=pad_id,
                    eos_token_id=list(end_ids) or None,
                ),
            )
        for n, i in enumerate(some):
            said[i] = _until_end(out_NT[n, longest:].tolist(), num_tokens[i], end_ids)
    return said


def _until_end(tokens: list[int], num_tokens: int, end_ids: Sequence[int]) -> list[int]:
    kept = tokens[:num_tokens]
    ends = [position for position, token in enumerate(kept) if token in end_ids]
    return kept[: ends[0] + 1] if ends else kept
