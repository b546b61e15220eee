"""The coordinator's half of a run: everything of it that needs the base model.

It holds no rows but the public held-out ones, and sees no update before its noise was added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedpeft.adapters.config import AdapterConfig
from fedpeft.dp.accounting import epsilon
from fedpeft.dp.config import PrivacyConfig
from fedpeft.dp.events import PrivacyEvent
from fedpeft.errors import VerificationError
from fedpeft.federated.adapted_model import adapter_tensors
from fedpeft.federated.aggregators import AGGREGATORS
from fedpeft.federated.aggregators.combiners import combiner_for
from fedpeft.federated.aggregators.updates import update_norm
from fedpeft.federated.assembly import adapted_model, cross_talk, encode, needed_columns
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.export import compare_metrics, export_adapter, reload_and_score
from fedpeft.federated.plan import RunPlan, plan_run
from fedpeft.federated.terms import Columns, RunTerms
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.data_config import DataConfig
from fedpeft.models.evaluation import evaluate
from fedpeft.models.held_out import read_train_and_test
from fedpeft.models.label_space import LabelSpace
from fedpeft.models.model_config import ModelConfig
from fedpeft.types import tensor_digest


@dataclass(frozen=True, kw_only=True)
class NextAdapter:
    """What a round's updates became.

    Attributes:
        tensors: The adapter of the next round.
        kept: How much of each update went in, in order; empty where nothing is ever left out.
        diagnostics: What the aggregator says of it, by name.
        update_norms: L2 norm of each update minus what it started from, in order.
    """

    tensors: Mapping[str, Tensor]
    kept: tuple[float, ...]
    diagnostics: Mapping[str, float]
    update_norms: tuple[float, ...]


class Coordination:
    """Base model, adapter and held-out rows of one run.

    Attributes:
        base_digest: sha256 of the base model's tensors.
        labels: Names of the classes; empty for causal LM.
        num_held_out: Held-out rows.
        initial: The adapter before the first round, head included.
        trained: Names of the tensors that clients train and send.
    """

    def __init__(
        self,
        model: ModelConfig,
        data: DataConfig,
        adapter: AdapterConfig,
        federation: FederationConfig,
        privacy: PrivacyConfig,
    ) -> None:
        """Loads everything, so that a run that begins can finish.

        Raises:
            InputError: Whatever is wrong with the model, the held-out rows or the adapter.
        """
        self._model_config, self._data, self._adapter = model, data, adapter
        self._federation, self._privacy = federation, privacy
        _, held_out = read_train_and_test(data, needed_columns(model, data), [], federation.seed)
        space = None
        if model.task == "classification":
            space = LabelSpace.from_test(held_out, data.label_column)
        self.labels = space.names if space else ()
        self._test = encode(held_out, model, data, space, load_tokenizer(model))
        self.num_held_out = len(self._test)
        base = load_base_model(model)
        self.base_digest = tensor_digest(base.state_dict())
        self._model = adapted_model(base, model, adapter, federation, num_classes=len(self.labels))
        self._aggregator = AGGREGATORS[federation.aggregator]
        self.trained = tuple(self._model.set_trainable(self._aggregator.trained_factors))
        self.initial = self._model.tensors()

    def terms(self, run_id: str, name: str) -> RunTerms:
        """Returns what every client is asked to agree to."""
        return RunTerms(
            run_id=run_id,
            name=name,
            model=self._model_config,
            adapter=self._adapter,
            federation=self._federation,
            privacy=self._privacy,
            columns=Columns(
                text=self._data.text_column,
                label=self._data.label_column,
                question=self._data.question_column,
                answer=self._data.answer_column,
            ),
            labels=self.labels,
            base_digest=self.base_digest,
        )

    def plan(
        self, num_examples: Mapping[str, int], remaining_epsilon: Mapping[str, float]
    ) -> RunPlan:
        """See `plan.plan_run`."""
        return plan_run(
            num_examples,
            self._federation,
            self._privacy,
            cross_talk=cross_talk(self._model_config),
            remaining_epsilon=remaining_epsilon,
        )

    def spent_epsilon(self, events: Sequence[PrivacyEvent]) -> float:
        """Returns what the events cost together at the run's delta."""
        return epsilon(events, self._privacy.delta)

    def evaluate(self, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns the held-out metrics of an adapter.

        Raises:
            AdapterError: If it is not one of this run.
        """
        self._model.load(tensors)
        return evaluate(
            self._model.task_model,
            self._test,
            task=self._model_config.task,
            max_tokens=self._model_config.max_tokens_per_batch,
        )

    def aggregate(
        self,
        tensors: Mapping[str, Tensor],
        updates: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float],
    ) -> NextAdapter:
        """Makes the next adapter of the cohort's updates.

        Args:
            tensors: What the cohort started from.
            updates: The trained tensors of each client.
            weights: Fixed public weights, in the same order.

        Raises:
            AdapterError: If an update does not fit, or there are too few for what combines them.
        """
        combiner = combiner_for(self._federation)
        made = self._aggregator.aggregate(tensors, updates, weights, combiner)
        return NextAdapter(
            tensors=made.tensors,
            kept=made.kept,
            diagnostics=made.diagnostics,
            update_norms=tuple(update_norm(tensors, update) for update in updates),
        )

    def export(self, directory: Path, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Writes the adapter in PEFT format and returns its metrics as peft finds them there.

        Raises:
            VerificationError: If it never changed, or scores differently when reloaded.
        """
        if not self._model.delta_norm(adapter_tensors(tensors)) > 0:
            raise VerificationError(
                "the adapter did not change: after the last round the norm of its update is zero"
            )
        export_adapter(directory, self._model, tensors, self._model_config, self.labels)
        reloaded = reload_and_score(
            directory,
            self._model_config,
            self._data,
            self.labels,
            seed=self._federation.seed,
        )
        compare_metrics(self.evaluate(tensors), reloaded)
        return reloaded
