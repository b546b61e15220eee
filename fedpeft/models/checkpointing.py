"""Gradient checkpointing: activations are computed again in backward instead of being kept.

(Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost".)
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from fedpeft.errors import ModelError


def checkpoint_layers(model: nn.Module) -> None:
    """Keeps of each transformer layer its input only, until backward needs the rest.

    transformers does so for layers in training mode. The layers are put into that mode, and nothing
    in them: their dropout modules stay off, and dropout that a layer runs by itself gets
    probability 0. Its own switch for the whole model would make the embeddings' output require a
    gradient, so that frozen layers below the lowest adapter were kept and computed again for
    nothing.

    Raises:
        ModelError: If transformers cannot checkpoint this model.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers or not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            f"transformers cannot checkpoint {type(model).__name__}; set "
            "model.gradient_checkpointing = false"
        )
    for layer in layers:
        layer.training = True
        layer.gradient_checkpointing = True
        # No state of a random generator is kept: nothing in these layers is random.
        layer._gradient_checkpointing_func = partial(
            checkpoint, use_reentrant=False, preserve_rng_state=False
        )
        _without_dropout(layer)


def _without_dropout(layer: nn.Module) -> None:
    for name, value in list(vars(layer).items()):
        if "dropout" in name and isinstance(value, float):
            setattr(layer, name, 0.0)
