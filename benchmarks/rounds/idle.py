"""What takes the place of base model and training in fedpeft's own processes; the rest is real.

Needs torch, so that only the processes that compute import it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from job import BASE_DIGEST, step_of
from torch import Tensor

from fedpeft.bench.round_job import RoundJob
from fedpeft.config import RunConfig, validate_config
from fedpeft.federated.aggregators import AGGREGATORS
from fedpeft.federated.client_round import ClientRound
from fedpeft.federated.client_rows import ClientRows
from fedpeft.federated.client_store import ClientStore
from fedpeft.federated.coordination import Coordination
from fedpeft.federated.local_training import LocalClient
from fedpeft.federated.messages import RoundPlan
from fedpeft.federated.terms import RunTerms
from fedpeft.ledger import Ledger
from fedpeft.models.dataset import Dataset
from fedpeft_client.executor import Executor
from fedpeft_client.training import ClientSetup
from fedpeft_server.run_math import RunMath


class IdleMath(RunMath):
    """The coordinator's mathematics: plans, checks, norms, FedSVD and digests, without a model."""

    def __init__(self, config: Mapping[str, object], job: RoundJob) -> None:
        super().__init__(config, None)
        self._run = validate_config(config, "the run")
        self._job = job

    @cached_property
    def _coordination(self) -> Coordination:
        torch.set_num_threads(1)
        return _IdleCoordination(self._run, self._job)


class _IdleCoordination(Coordination):
    """Takes its tensors from the job, and has nothing to evaluate."""

    def __init__(self, config: RunConfig, job: RoundJob) -> None:
        self._model_config, self._data, self._adapter = config.model, config.data, config.adapter
        self._federation, self._privacy = config.federation, config.privacy
        self._aggregator = AGGREGATORS[config.federation.aggregator]
        self.base_digest, self.labels, self.num_held_out = BASE_DIGEST, (), 0
        self.initial, self.trained = first_tensors(job), tuple(job.trained)

    def evaluate(self, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def export(self, directory: Path, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        directory.mkdir()
        (directory / "README").write_text("The adapter of no model.\n", encoding="utf-8")
        return {}


class IdleExecutor(Executor):
    """A client's half of a round: policy, ledger, store, checks and digests, without a step."""

    def __init__(self, job: RoundJob, setups: Sequence[ClientSetup]) -> None:
        super().__init__(setups, num_threads=1)
        self._model = _IdleModel(first_tensors(job), job.trained)

    @contextmanager
    def _half(self, client_id: str) -> Iterator[ClientRound]:
        client = self._clients[client_id]
        with Ledger.open(client.setup.ledger) as ledger:
            yield _IdleRound(
                client_id,
                policy=client.setup.policy,
                workplace=_IdleWorkplace(client.rows, self._model),
                ledger=ledger,
                store=ClientStore(client.setup.folder),
                watcher=self._watcher,
            )


class _IdleRound(ClientRound):
    def _trained(
        self, plan: RoundPlan, model: Any, client: LocalClient
    ) -> tuple[Mapping[str, Tensor], float]:
        step = step_of(int(plan.client_id.rpartition("-")[2]))
        return {name: model.tensors()[name] + step for name in model.trained}, 0.0


class _IdleModel:
    """Holds an adapter's tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], trained: Sequence[str]) -> None:
        self.trained = trained
        self._tensors = tensors

    def tensors(self) -> Mapping[str, Tensor]:
        return self._tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors


class _IdleWorkplace:
    max_tokens = 1
    removed = ""

    def __init__(self, rows: ClientRows, model: _IdleModel) -> None:
        self.num_examples, self.dataset = rows.num_examples, rows.dataset
        self._model = model

    def prepared(self, terms: RunTerms) -> Any:
        return self._model, Dataset(input_ids=[[0]], targets=[1], pad_id=0)


def first_tensors(job: RoundJob) -> dict[str, Tensor]:
    """The adapter before the first round; B is no zero, so that the products have full rank."""
    generator = torch.Generator().manual_seed(job.seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in job.tensors.items()}
