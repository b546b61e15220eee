"""The plan of a run, fixed before anyone trains: cohorts, weights, and each client's noise."""

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft.dp.accounting import calibrate_client_noise_multiplier, calibrate_noise_multiplier
from fedpeft.dp.client_level import ClientLevelConfig
from fedpeft.dp.config import PrivacyConfig
from fedpeft.dp.events import PrivacyEvent
from fedpeft.dp.mechanism import DpSgdConfig
from fedpeft.errors import ConfigError, DataError, PrivacyError
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.robustness import check_num_updates
from fedpeft.types import derive_seed


@dataclass(frozen=True, kw_only=True)
class ClientPlan:
    """What the run asks of one client.

    Attributes:
        client_id: Unique in the run.
        num_examples: Rows, taken as public.
        weight: Public share in the average over all clients.
        expected_batch_size: Public divisor of the summed gradients.
        num_rounds: Rounds that the client takes part in.
        num_steps: Local steps of all of them.
        dp: Parameters of the noise in each local step; None where there is none.
    """

    client_id: str
    num_examples: int
    weight: float
    expected_batch_size: float
    num_rounds: int
    num_steps: int
    dp: DpSgdConfig | None

    @property
    def sampling_prob(self) -> float:
        """Probability of each example in each step."""
        return self.expected_batch_size / self.num_examples


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What is fixed before the run.

    Attributes:
        clients: By id.
        cohorts: Clients of each round; `cohorts[0]` is that of round 1.
        client_level: Parameters of the noise on each round's sum; None where there is none.
    """

    clients: Mapping[str, ClientPlan]
    cohorts: tuple[tuple[str, ...], ...]
    client_level: ClientLevelConfig | None = None

    def event(self, client_id: str, local_steps: int) -> PrivacyEvent | None:
        """Returns what one round costs the client; None where privacy is off."""
        if self.client_level is not None:
            return self.client_level.event(1)
        mechanism = self.clients[client_id].dp
        return None if mechanism is None else mechanism.event(local_steps)

    def noise_multiplier(self, client_id: str) -> float | None:
        """Returns the noise on what the client gives away; None where there is none."""
        mechanism = self.client_level or self.clients[client_id].dp
        return None if mechanism is None else mechanism.noise_multiplier


def plan_run(
    num_examples: Mapping[str, int],
    federation: FederationConfig,
    privacy: PrivacyConfig,
    *,
    cross_talk: float = 0.0,
    remaining_epsilon: Mapping[str, float] | None = None,
) -> RunPlan:
    """Draws the cohorts and calibrates every client's noise to its own participation.

    A client's noise fits the rounds that it will take part in, counted from the cohorts and not
    expected from the cohort size: nobody is sampled more often than was planned for.

    Args:
        num_examples: Client id → number of rows.
        federation: The run's federation section.
        privacy: The run's privacy section.
        cross_talk: See `DpSgdConfig`; what the model's precision asks for.
        remaining_epsilon: Client id → what its own budget has left, where that may be less than
            the run's target: its noise is then calibrated to that.

    Raises:
        DataError: If a client has no rows.
        ConfigError: If the cohort is larger than the federation, or too small for what is to
            combine its updates.
        PrivacyError: If delta is not below 1/n of some client, or a budget cannot be met.
    """
    for client_id, count in num_examples.items():
        if count < 1:
            raise DataError(f"client {client_id} has no rows; use fewer clients or other data")
    if privacy.enabled:
        _check_delta(num_examples, privacy)
    cohorts = _draw_cohorts(sorted(num_examples), federation)
    rounds = Counter(client_id for cohort in cohorts for client_id in cohort)
    shares = {
        client_id: count if federation.weighting == "examples" else 1
        for client_id, count in num_examples.items()
    }
    left = remaining_epsilon or {}
    clients = {}
    for client_id in sorted(num_examples):
        count = num_examples[client_id]
        batch = _expected_batch_size(count, federation)
        num_steps = rounds[client_id] * federation.local_steps
        clients[client_id] = ClientPlan(
            client_id=client_id,
            num_examples=count,
            weight=shares[client_id] / sum(shares.values()),
            expected_batch_size=batch,
            num_rounds=rounds[client_id],
            num_steps=num_steps,
            dp=_dp_config(
                client_id, count, batch, num_steps, _afforded(privacy, client_id, left), cross_talk
            )
            if privacy.enabled and privacy.mechanism == "dp-sgd"
            else None,
        )
    client_level = None
    if privacy.enabled and privacy.mechanism == "client-level":
        client_level = _client_level_config(max(rounds.values()), cohorts, federation, privacy)
    return RunPlan(clients=clients, cohorts=cohorts, client_level=client_level)


def _draw_cohorts(
    client_ids: list[str], federation: FederationConfig
) -> tuple[tuple[str, ...], ...]:
    size = len(client_ids)
    if federation.clients_per_round is not None:
        size = federation.clients_per_round + federation.over_selection
    if size > len(client_ids):
        more = (
            f" and over_selection {federation.over_selection}" if federation.over_selection else ""
        )
        raise ConfigError(
            f"clients_per_round is {federation.clients_per_round}{more}, but the federation has "
            f"{len(client_ids)} clients"
        )
    try:
        check_num_updates(federation.combine, federation.num_byzantine, size, "a cohort")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return tuple(
        tuple(
            sorted(
                random.Random(  # noqa: S311  # public: no amplification is claimed from cohorts
                    derive_seed(federation.seed, "cohort", round_number)
                ).sample(client_ids, size)
            )
        )
        for round_number in range(1, federation.num_rounds + 1)
    )


def _expected_batch_size(num_examples: int, federation: FederationConfig) -> float:
    if federation.sampling_prob is not None:
        return federation.sampling_prob * num_examples
    assert federation.expected_batch_size is not None
    return min(federation.expected_batch_size, float(num_examples))


def _afforded(privacy: PrivacyConfig, client_id: str, left: Mapping[str, float]) -> PrivacyConfig:
    remaining = left.get(client_id, math.inf)
    if not remaining > 0:  # NaN included
        raise PrivacyError(f"client {client_id} has nothing left of its budget ({remaining})")
    target = min(privacy.target_epsilon, remaining)
    return privacy.model_copy(update={"target_epsilon": target})


def _dp_config(
    client_id: str,
    num_examples: int,
    expected_batch_size: float,
    num_steps: int,
    privacy: PrivacyConfig,
    cross_talk: float,
) -> DpSgdConfig:
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=privacy.target_epsilon,
        delta=privacy.delta,
        sampling_prob=expected_batch_size / num_examples,
        num_steps=max(1, num_steps),
    )
    _check_noise(f"client {client_id}", noise_multiplier, f"{num_steps} steps", privacy)
    return DpSgdConfig(
        num_examples=num_examples,
        expected_batch_size=expected_batch_size,
        l2_clip_norm=privacy.l2_clip_norm,
        noise_multiplier=noise_multiplier,
        cross_talk=cross_talk,
    )


def _client_level_config(
    most_rounds: int,
    cohorts: tuple[tuple[str, ...], ...],
    federation: FederationConfig,
    privacy: PrivacyConfig,
) -> ClientLevelConfig:
    """One noise for all, which fits the client that takes part most often."""
    if federation.weighting != "uniform":
        raise PrivacyError(
            "client-level privacy needs federation.weighting = 'uniform': weights by the number of "
            "rows would let one client's rows move what the others count for"
        )
    noise_multiplier = calibrate_client_noise_multiplier(
        target_epsilon=privacy.target_epsilon, delta=privacy.delta, num_rounds=most_rounds
    )
    _check_noise("the federation", noise_multiplier, f"{most_rounds} rounds", privacy)
    return ClientLevelConfig(
        num_clients_per_round=len(cohorts[0]),
        l2_clip_norm=privacy.l2_clip_norm,
        noise_multiplier=noise_multiplier,
    )


def _check_noise(who: str, noise_multiplier: float, length: str, privacy: PrivacyConfig) -> None:
    if noise_multiplier < privacy.min_noise_multiplier:
        raise PrivacyError(
            f"{who} refuses the plan: epsilon {privacy.target_epsilon:g} over {length} needs a "
            f"noise multiplier of {noise_multiplier:.3g} only, and privacy.min_noise_multiplier is "
            f"{privacy.min_noise_multiplier:g}; lower target_epsilon, or plan more of them"
        )


def _check_delta(num_examples: Mapping[str, int], privacy: PrivacyConfig) -> None:
    if privacy.mechanism == "client-level":
        if privacy.delta >= 1 / len(num_examples):
            raise PrivacyError(
                f"delta must lie below 1/n for the {len(num_examples)} clients, so below "
                f"{1 / len(num_examples):.3g}, got {privacy.delta:g}"
            )
        return
    largest = max(num_examples, key=lambda client_id: num_examples[client_id])
    if privacy.delta >= 1 / num_examples[largest]:
        raise PrivacyError(
            f"delta must lie below 1/n for every client: client {largest} has "
            f"{num_examples[largest]} rows, so below {1 / num_examples[largest]:.3g}, got "
            f"{privacy.delta:g}"
        )
