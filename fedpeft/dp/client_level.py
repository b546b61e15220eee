"""Client-level differential privacy: each client's whole update is clipped, their sum noised once.

The guarantee, stated here and nowhere else. Let `release` run once a round, and let a client be in
the cohort of `num_rounds` of these rounds. The sequence of all means that `release` returns is
(epsilon, delta)-differentially private at the level of that client, neighbours differing by its
update being zero in every round, with epsilon as `accounting.epsilon` computes it from
`event(num_rounds)`, because in each round

1. one client's update moves the sum by at most the grid's sensitivity, whatever it contains and
   however many rows or steps made it (clipping, over all tensors at once);
2. every client weighs the same, so that no number of rows moves the others' weights;
3. Gaussian noise of `noise_multiplier` times that sensitivity is added to every coordinate of each
   release, also when no update came (noise); a round that nobody paid for releases nothing;
4. the divisor is the public number of clients of a round, never the number that answered: an update
   that is missing or not finite counts as zero.

The guarantee holds against those who see the adapter versions made from these means: the other
clients, and whoever gets the adapter. It does not hold against the coordinator, which sees every
update before the noise and must be trusted to clip, add noise and forget; clients who do not trust
it need example-level noise of their own (`mechanism`), which is another event and not composed with
this one.

What is not covered: who is in a cohort, and how large it is, is taken as public, so that no
amplification by sampling is claimed; that a client exists, the shapes, the clip norm and the number
of rounds are public. One organisation under two client ids is two clients. Diagnostics marked
private must not leave the coordinator. Updates weighted by their number of rows are not supported:
a weight that depends on data changes the sensitivity. (McMahan et al., 2018, "Learning
Differentially Private Recurrent Language Models", with its fixed denominator and equal weights.)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.dp.clipping import clip_and_sum, empty_sum
from fedpeft.dp.events import ClientUpdateEvent
from fedpeft.dp.grid import Grid
from fedpeft.dp.noise import add_gaussian_noise
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import PrivacyError


@dataclass(frozen=True, kw_only=True)
class ClientLevelConfig:
    """The public parameters of client-level privacy.

    Attributes:
        num_clients_per_round: Clients asked in a round; the public divisor.
        l2_clip_norm: Bound on one client's update.
        noise_multiplier: Noise stddev over sensitivity.
    """

    num_clients_per_round: int
    l2_clip_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        """Refuses what has no guarantee."""
        if type(self.num_clients_per_round) is not int or self.num_clients_per_round < 1:
            raise PrivacyError(
                "num_clients_per_round must be an integer of at least 1, got "
                f"{self.num_clients_per_round}"
            )
        Grid.for_clip_norm(self.l2_clip_norm, 1)
        self.event(1)

    def event(self, num_rounds: int) -> ClientUpdateEvent:
        """Returns what a client spends in `num_rounds` rounds; reserve it before the release."""
        return ClientUpdateEvent(noise_multiplier=self.noise_multiplier, num_rounds=num_rounds)


@dataclass(frozen=True, kw_only=True)
class NoisyUpdate:
    """What one round releases, and two diagnostics that stay with the coordinator.

    Attributes:
        mean: Tensor name → noised sum over the public number of clients. Safe to release.
        num_updates: Updates that arrived. Private.
        num_nonfinite: Updates that counted as zero. Private.
    """

    mean: Mapping[str, Tensor]
    num_updates: int
    num_nonfinite: int


class ClientLevel:
    """Client-level privacy for one federation; the module's docstring states the guarantee."""

    def __init__(
        self, shapes: Mapping[str, torch.Size], config: ClientLevelConfig, keystream: Keystream
    ) -> None:
        """Fixes the trained tensors: tensor name → shape; updates of others are refused."""
        self._shapes = dict(shapes)
        self._config = config
        self._keystream = keystream
        dimension = sum(shape.numel() for shape in self._shapes.values())
        self._grid = Grid.for_clip_norm(config.l2_clip_norm, dimension)

    def release(self, updates: Iterable[Mapping[str, Tensor]]) -> NoisyUpdate:
        """Clips the round's updates, sums them exactly, and releases their noised mean.

        Args:
            updates: One a client that answered: tensor name → what the client ended with minus what
                it started from, of any floating type. Updates may lie on any device, and there may
                be none.

        Raises:
            PrivacyError: If an update has other tensors than the mechanism, or there are more
                updates than clients in a round; nothing is released then.
        """
        total = empty_sum(self._shapes, self._grid, torch.device("cpu"))
        for update in updates:
            if {name: value.shape for name, value in update.items()} != self._shapes:
                raise PrivacyError("an update has other tensors than the mechanism was set up with")
            rows = {name: update[name].cpu().unsqueeze(0) for name in self._shapes}
            total = total + clip_and_sum(rows, self._grid)
        divisor = self._config.num_clients_per_round
        if total.num_examples > divisor:
            raise PrivacyError(
                f"a round has {divisor} clients, but {total.num_examples} updates came"
            )
        noised = add_gaussian_noise(total, self._config.noise_multiplier, self._keystream)
        return NoisyUpdate(
            mean={name: (value / divisor).float() for name, value in noised.items()},
            num_updates=total.num_examples,
            num_nonfinite=int(total.num_nonfinite),
        )
