"""How many steps bring the rows back."""

from dataclasses import dataclass

from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Dataset
from fedpeft.unlearning.gate.config import GateConfig
from fedpeft.unlearning.metrics.relearning import relearning_curve, steps_until


@dataclass(frozen=True, kw_only=True)
class Relearned:
    """Steps until a mean loss was reached.

    Attributes:
        steps: One more than were taken, where it was not reached.
        reached: Whether it was.
    """

    steps: int
    reached: bool


def relearned(
    model: AdaptedModel,
    rows: Dataset,
    target: float,
    config: GateConfig,
    *,
    max_tokens: int,
    seed: int,
) -> Relearned:
    """Trains the adapter of `model` on rows until their mean loss is at most `target`.

    Args:
        model: Is used up.
        rows: To be learned.
        target: Mean loss at which they count as known.
        config: Steps, rate, rows a step.
        max_tokens: Bound on the padded tokens of a batch.
        seed: Draws the order of rows.
    """
    losses = relearning_curve(
        model,
        rows,
        num_steps=config.relearning_steps,
        learning_rate=config.relearning_rate,
        batch_size=config.relearning_batch_size,
        max_tokens=max_tokens,
        seed=seed,
        target=target,
    )
    steps = steps_until(losses, target)
    if steps is None:
        return Relearned(steps=config.relearning_steps + 1, reached=False)
    return Relearned(steps=steps, reached=True)
