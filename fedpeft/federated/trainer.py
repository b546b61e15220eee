"""Who computes the local steps of a round's clients: this process, or others that are asked to.

A job is a group of clients that share forward and backward passes. How a cohort is cut into jobs
never depends on who trains them, so that the results do not either.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedpeft.dp.randomness import Keystream
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.local_training import LocalClient, LocalResult, train_locally
from fedpeft.federated.observer import Observer
from fedpeft.federated.plan import ClientPlan
from fedpeft.models.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class Job:
    """Clients that train together in one round, and have paid for it.

    Attributes:
        round: Counts from 1.
        group: All clients of the group, those included that could not pay.
        reservations: Client id → what it paid with; None where privacy is off. These train.
        coin_seeds: Client id → seed of its sampling and noise; None: the operating system.
    """

    round: int
    group: tuple[str, ...]
    reservations: Mapping[str, str | None]
    coin_seeds: Mapping[str, int | None]

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        clients = list(self.reservations)
        return clients[0] if len(clients) == 1 else f"{len(clients)} clients at once"


class Trainer(Protocol):
    """Trains jobs."""

    def train(
        self, tensors: Mapping[str, Tensor], jobs: Iterator[Job], observer: Observer
    ) -> Iterator[tuple[Job, Mapping[str, LocalResult] | None]]:
        """Yields each job with its clients' results, or None where its worker was lost.

        A job is taken from `jobs` when somebody is free to train it, and not before: taking it is
        what its clients pay for.

        Args:
            tensors: The adapter that the round starts from.
            jobs: What to train.
            observer: Is told of jobs and steps.
        """


class LocalTrainer:
    """Trains in this process, one job after the other."""

    def __init__(
        self,
        model: AdaptedModel,
        datasets: Mapping[str, Dataset],
        plans: Mapping[str, ClientPlan],
        federation: FederationConfig,
        *,
        max_tokens: int,
    ) -> None:
        """Takes the model that it trains on; between jobs others may use it."""
        self._model = model
        self._datasets = datasets
        self._plans = plans
        self._federation = federation
        self._max_tokens = max_tokens

    def train(
        self, tensors: Mapping[str, Tensor], jobs: Iterator[Job], observer: Observer
    ) -> Iterator[tuple[Job, Mapping[str, LocalResult] | None]]:
        """See `Trainer.train`."""
        for job in jobs:
            observer.client_started(job.round, job.label, self._federation.local_steps)
            yield job, self.run(tensors, job, observer)

    def run(
        self, tensors: Mapping[str, Tensor], job: Job, observer: Observer
    ) -> dict[str, LocalResult]:
        """Trains one job."""
        self._model.load(tensors)
        clients = [self.local_client(c, job.coin_seeds[c]) for c in job.reservations]
        results = train_locally(
            self._model,
            clients,
            self._federation,
            max_tokens=self._max_tokens,
            step_finished=lambda step: observer.step_finished(job.label, step),
        )
        return dict(zip(job.reservations, results, strict=True))

    def local_client(self, client_id: str, coin_seed: int | None) -> LocalClient:
        """Returns the client with the source of its coins; None: the operating system."""
        return LocalClient(
            plan=self._plans[client_id],
            dataset=self._datasets[client_id],
            keystream=Keystream.from_system()
            if coin_seed is None
            else Keystream.insecure_from_seed(coin_seed),
        )
