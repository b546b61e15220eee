"""Membership inference on an adapter: does a row's loss tell whether it was trained on?

A row's score is how much training lowered its loss, from the initial to the final adapter. The
initial loss calibrates: a row that is easy for everyone is no member for that. Members are the
clients' rows, non-members the held-out rows; where these two come from different sources, a score
can tell them apart without anything having been remembered.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedpeft.dp.membership import MembershipAttack, Scores, membership_attack, roc_curve
from fedpeft.errors import DataError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Dataset, collate, physical_batches

ALL_CLIENTS = "all clients"
_FEWEST_ROWS = 2
_MAX_ROC_POINTS = 200


class MembershipReport(BaseModel):
    """The attack on the rows of one client, or of all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: str = Field(description="Whose rows: a client's id, or 'all clients'.")
    attack: MembershipAttack = Field(description="How well it worked.")
    roc: tuple[tuple[float, float], ...] = Field(
        description="False- and true-positive rate, from (0, 0) to (1, 1); thinned out."
    )


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A model, and an adapter before and after training.

    Attributes:
        model: What runs.
        initial: Tensors before training.
        final: Tensors after it.
        max_tokens: Bound on the padded tokens of one physical batch.
    """

    model: AdaptedModel
    initial: Mapping[str, Tensor]
    final: Mapping[str, Tensor]
    max_tokens: int

    def loss_drops(
        self, dataset: Dataset, advanced: Callable[[int], None] = lambda num_rows: None
    ) -> Scores:
        """Returns how much training lowered the loss of each row, shape (N,).

        `advanced` is called with numbers of rows that add up to twice the rows.
        """
        before, after = (
            self._losses(tensors, dataset, advanced) for tensors in (self.initial, self.final)
        )
        return before - after

    def _losses(
        self, tensors: Mapping[str, Tensor], dataset: Dataset, advanced: Callable[[int], None]
    ) -> Scores:
        self.model.load(tensors)
        losses = np.zeros(len(dataset))
        with torch.inference_mode():
            device = self.model.device
            for rows in physical_batches(dataset, range(len(dataset)), self.max_tokens, device):
                batch = collate(dataset, rows, device)
                losses[rows] = self.model.task_model.losses(batch).double().cpu().numpy()
                advanced(len(rows))
        return losses


def audit_membership(
    adapter: Adapter,
    datasets: Mapping[str, Dataset],
    held_out: Dataset,
    *,
    delta: float,
    confidence: float,
    advanced: Callable[[int], None] = lambda num_rows: None,
) -> tuple[MembershipReport, ...]:
    """Attacks the rows of all clients together, then those of each client.

    Args:
        adapter: What is attacked.
        datasets: Client id → its training rows.
        held_out: Rows that nobody trained on.
        delta: At which epsilon is bounded.
        confidence: Of every interval, each for itself.
        advanced: Called with numbers of rows that add up to `num_scored_rows`.

    Raises:
        DataError: If there are fewer than 2 rows on a side.
        PrivacyError: If a loss is NaN.
    """
    outside = adapter.loss_drops(held_out, advanced)
    inside = {name: adapter.loss_drops(rows, advanced) for name, rows in datasets.items()}
    together = np.concatenate(list(inside.values()))
    if min(len(together), len(outside)) < _FEWEST_ROWS:
        raise DataError(
            f"a membership attack needs {_FEWEST_ROWS} training rows and as many held-out rows, "
            f"got {len(together)} and {len(outside)}"
        )
    groups = {ALL_CLIENTS: together}
    if len(inside) > 1:
        groups |= {name: drops for name, drops in inside.items() if len(drops) >= _FEWEST_ROWS}
    return tuple(
        MembershipReport(
            members=name,
            attack=membership_attack(drops, outside, delta=delta, confidence=confidence),
            roc=_thinned(drops, outside),
        )
        for name, drops in groups.items()
    )


def num_scored_rows(datasets: Mapping[str, Dataset], held_out: Dataset) -> int:
    """Returns what the numbers of rows that `audit_membership` reports add up to."""
    return 2 * (sum(map(len, datasets.values())) + len(held_out))


def _thinned(members: Scores, non_members: Scores) -> tuple[tuple[float, float], ...]:
    """Points of the curve, dense at low false-positive rates, where the axis is logarithmic."""
    fpr, tpr = roc_curve(members, non_members)
    last = len(fpr) - 1
    chosen = np.unique(np.rint(np.geomspace(1, last + 1, _MAX_ROC_POINTS)).astype(int) - 1)
    return tuple((float(fpr[i]), float(tpr[i])) for i in chosen)
