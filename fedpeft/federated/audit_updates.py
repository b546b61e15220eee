"""The attacker who sees what a client sends, and knows every row that it may hold.

A client's update, divided by the learning rate, is a sum of clipped gradients and noise: each row's
gradient comes in as often as the row was drawn. The attacker knows the rows, the sampling
probability and the noise, and estimates how often each canary was drawn by the linear estimator of
least mean square error, in every round; the sum over the rounds is the canary's score. Gradients
are taken halfway between what the client was sent and what it returned. Under Adam, where an update
is no sum of gradients, and where the canaries' gradients do not fit into memory together, the score
is the plain inner product.

Legend: M rows, the canaries first; P trained parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedpeft.dp.auditing import Scores
from fedpeft.dp.grad_sample import per_example_grads, trainable_parameters
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.plan import ClientPlan
from fedpeft.models.dataset import Dataset, collate, physical_batches
from fedpeft.models.tasks import HEAD

# Gradients of all rows are held at once: half a gigabyte at most.
_MAX_NUMBERS = 2**27
_MAX_KNOWN_ROWS = 500
# Variance of what the linear model leaves out, where there is no noise: drift during local steps.
_DRIFT = 1e-6

Exchange = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""The adapter that a client was sent in a round, and the trained tensors that it returned."""


@dataclass(frozen=True, kw_only=True)
class UpdateAttack:
    """What the attacker knows before the run.

    Attributes:
        model: The model, with the run's tensors set trainable.
        canaries: All canaries, in or out.
        others: The client's own rows; at most 500 of them are used.
        plan: The client's plan, canaries counted.
        federation: The run's federation section.
        max_tokens: Bound on the padded tokens of one physical batch.
    """

    model: AdaptedModel
    canaries: Dataset
    others: Dataset
    plan: ClientPlan
    federation: FederationConfig
    max_tokens: int

    @property
    def num_rows(self) -> int:
        """Gradients that each round of `scores` takes."""
        return len(self.canaries) + self._num_known

    @property
    def _num_known(self) -> int:
        trained = trainable_parameters(self.model.task_model).values()
        room = _MAX_NUMBERS // sum(p.numel() for p in trained) - len(self.canaries)
        return (
            0 if self._only_inner_products else max(0, min(len(self.others), _MAX_KNOWN_ROWS, room))
        )

    @property
    def _only_inner_products(self) -> bool:
        trained = trainable_parameters(self.model.task_model).values()
        too_large = len(self.canaries) * sum(p.numel() for p in trained) > _MAX_NUMBERS
        return self.federation.optimizer == "adam" or too_large

    def scores(
        self,
        exchanges: Sequence[Exchange],
        advanced: Callable[[int], None] = lambda num_rows: None,
    ) -> Scores:
        """Scores each canary by all rounds; higher means rather in.

        `advanced` is called with numbers of rows that add up to `num_rows` in each round.
        """
        chosen = np.random.default_rng(0).permutation(len(self.others))[: self._num_known]
        known = self.others.take(sorted(chosen.tolist()))
        rows = Dataset(
            input_ids=[*self.canaries.input_ids, *known.input_ids],
            targets=[*self.canaries.targets, *known.targets],
            pad_id=self.canaries.pad_id,
        )
        total = np.zeros(len(self.canaries))
        for sent, returned in exchanges:
            total += self._round(rows, sent, returned, advanced)
        return total

    def _round(
        self,
        rows: Dataset,
        sent: Mapping[str, Tensor],
        returned: Mapping[str, Tensor],
        advanced: Callable[[int], None],
    ) -> Scores:
        halfway = {name: (sent[name] + tensor) / 2 for name, tensor in returned.items()}
        self.model.load({**sent, **halfway})
        steps = [(sent[n] - t).flatten() / self._rate(n) for n, t in returned.items()]
        summed_P = torch.cat(steps).to(self.model.device) * self.plan.expected_batch_size
        alone = self._only_inner_products
        grad_MP = summed_P.new_zeros(0 if alone else len(rows), len(summed_P))
        inner_M = summed_P.new_zeros(len(rows))
        device = self.model.device
        for part in physical_batches(rows, range(len(rows)), self.max_tokens, device):
            batch = collate(rows, part, device)
            losses = partial(self.model.task_model.losses, batch)
            grads = per_example_grads(self.model.task_model, len(part), losses)
            part_NP = torch.cat([grads[name].flatten(1) for name in returned], 1)
            if self.plan.dp is not None:
                norm_N1 = part_NP.norm(dim=1, keepdim=True)
                part_NP = part_NP * (self.plan.dp.l2_clip_norm / norm_N1).clamp(max=1.0)
            part_NP = part_NP.nan_to_num(0, 0, 0)
            inner_M[part] = part_NP @ summed_P
            if not alone:
                grad_MP[part] = part_NP
            advanced(len(part))
        if alone:
            return _numpy(inner_M)
        return self._times_drawn((grad_MP @ grad_MP.T).double(), inner_M.double())

    def _times_drawn(self, gram_MM: Tensor, inner_M: Tensor) -> Scores:
        """Estimates how often each canary was drawn in a round."""
        prob, num_steps = self.plan.sampling_prob, self.federation.local_steps
        num_canaries, num_rows = len(self.canaries), len(inner_M)
        drawn, spread = prob * num_steps, prob * (1 - prob) * num_steps
        # Each known row stands for its share of those that were left out.
        share = len(self.others) / max(1, num_rows - num_canaries)
        mean_M = gram_MM.new_full((num_rows,), drawn * share)
        var_M = gram_MM.new_full((num_rows,), spread * share)
        mean_M[:num_canaries] = drawn / 2
        var_M[:num_canaries] = spread / 2 + drawn**2 / 4
        noise = _DRIFT * float(gram_MM.diagonal().mean())
        if self.plan.dp is not None:
            noise += num_steps * (self.plan.dp.noise_multiplier * self.plan.dp.l2_clip_norm) ** 2
        system_MM = gram_MM * var_M + max(noise, 1e-30) * torch.eye(num_rows).to(gram_MM)
        residual_M1 = (inner_M - gram_MM @ mean_M).unsqueeze(1)
        estimate_M = var_M * torch.linalg.solve(system_MM, residual_M1).squeeze(1)
        return _numpy(estimate_M[:num_canaries])

    def _rate(self, name: str) -> float:
        """How far a step goes for each unit of gradient, momentum counted."""
        federation = self.federation
        rate = federation.learning_rate
        if name.startswith(HEAD) and federation.head_learning_rate is not None:
            rate = federation.head_learning_rate
        steps = range(1, federation.local_steps + 1)
        gain = sum(sum(federation.momentum**k for k in range(step)) for step in steps)
        return rate * gain / federation.local_steps


def _numpy(values: Tensor) -> Scores:
    array: Scores = values.double().cpu().numpy()
    return array
