"""Attention whose masks are made without a look at their values.

Where no token of a batch is padded, transformers leaves the mask out. To know this it reads the
mask back from the device, once a forward pass, so that the host waits for all the work it has
queued; and which kernel a row goes through depends on whether other rows of its batch are padded.
Here the mask is always made.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_NAME = "sdpa_always_masked"


def mask_always(model: "PreTrainedModel") -> None:
    """Makes a model that uses PyTorch's attention do so with a mask in every batch."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, sdpa_attention_forward)
        AttentionMaskInterface.register(_NAME, _mask)
        model.set_attn_implementation(_NAME)


def _mask(**kwargs: Any) -> "Tensor":
    from transformers.masking_utils import sdpa_mask

    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor = sdpa_mask(**{**kwargs, **skips})
    return mask
