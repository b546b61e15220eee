"""From validated configuration to everything a run needs. Reads files; writes none."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from fedpeft.adapters.config import AdapterConfig
from fedpeft.dp.config import PrivacyConfig
from fedpeft.dp.mechanism import BFLOAT16_CROSS_TALK
from fedpeft.errors import DataError, ModelError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.plan import RunPlan, plan_run
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import Dataset, encode_causal_lm, encode_classification
from fedpeft.models.held_out import read_train_and_test
from fedpeft.models.label_space import LabelSpace, majority_share
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.partition import label_histogram, partition
from fedpeft.models.table import Table, concat_tables
from fedpeft.types import derive_seed, tensor_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Partitioned:
    """The training rows, who holds which, and the public held-out rows.

    Attributes:
        train: All clients' rows in one table.
        parts: Client id → row indices of `train`.
        test: Held-out rows.
        labels: The label space; None for causal LM.
    """

    train: Table
    parts: Mapping[str, Sequence[int]]
    test: Table
    labels: LabelSpace | None

    def histogram(self, label_column: str) -> dict[str, dict[str, int]]:
        """Returns client → label → rows; no labels for causal LM, only the rows."""
        if self.labels is None:
            return {client: {"rows": len(rows)} for client, rows in self.parts.items()}
        counts = label_histogram(self.train, self.parts, label_column)
        return {
            client: {name: by_label.get(name, 0) for name in self.labels.names}
            for client, by_label in counts.items()
        }


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Everything a run needs.

    Attributes:
        model: Base model with the adapter injected.
        datasets: Client id → its tokenized rows.
        rows: Client id → the columns of its rows that training reads.
        test: Held-out rows, tokenized.
        plan: Cohorts, weights and noise.
        histogram: Client id → label → rows; empty inner dicts for causal LM.
        labels: Names of the classes; empty for causal LM.
        majority_accuracy: Share of the most frequent held-out label; None for causal LM.
        base_digest: sha256 of the base model's tensors.
        data_digest: sha256 of all tokenized rows, client by client.
    """

    model: AdaptedModel
    datasets: Mapping[str, Dataset]
    rows: Mapping[str, Table]
    test: Dataset
    plan: RunPlan
    histogram: Mapping[str, Mapping[str, int]]
    labels: tuple[str, ...]
    majority_accuracy: float | None
    base_digest: str
    data_digest: str


def read_and_partition(
    model: ModelConfig, data: DataConfig, federation: FederationConfig
) -> Partitioned:
    """Reads the rows and splits them over the clients.

    Raises:
        DataError: Whatever is wrong with a file, a column, a label or the split.
    """
    columns = needed_columns(model, data)
    split_by = [] if data.partition_column is None else [data.partition_column]
    if model.task == "causal-lm" and data.partition == "dirichlet":
        split_by = [data.label_column]
    tables, test = read_train_and_test(data, columns, split_by, federation.seed)
    labels = None
    if model.task == "classification":
        labels = LabelSpace.from_test(test, data.label_column)
    parts = partition(
        tables if data.partition == "files" else tables[0],
        data,
        num_clients=federation.num_clients,
        seed=derive_seed(federation.seed, "partition"),
    )
    return Partitioned(train=concat_tables(tables), parts=parts, test=test, labels=labels)


def assemble(
    model_config: ModelConfig,
    data: DataConfig,
    adapter: AdapterConfig,
    federation: FederationConfig,
    privacy: PrivacyConfig,
) -> Assembly:
    """Loads, checks and plans everything, so that a run that starts can finish.

    Raises:
        InputError: Whatever is wrong with model, data, adapter, federation or privacy.
    """
    rows = read_and_partition(model_config, data, federation)
    sizes = {client: len(indices) for client, indices in rows.parts.items()}
    plan = plan_run(sizes, federation, privacy, cross_talk=cross_talk(model_config))
    tokenizer = load_tokenizer(model_config)
    train = encode(rows.train, model_config, data, rows.labels, tokenizer)
    test = encode(rows.test, model_config, data, rows.labels, tokenizer)
    base = load_base_model(model_config)
    _check_rows((train, test), base, model_config)
    base_digest = tensor_digest(base.state_dict())
    num_classes = len(rows.labels.names) if rows.labels else 0
    model = adapted_model(base, model_config, adapter, federation, num_classes=num_classes)
    columns = needed_columns(model_config, data)
    own = {client: _read_columns(rows.train.take(r), columns) for client, r in rows.parts.items()}
    datasets = {client: train.take(indices) for client, indices in rows.parts.items()}
    classified = rows.labels is not None
    return Assembly(
        model=model,
        datasets=datasets,
        rows=own,
        test=test,
        plan=plan,
        histogram=rows.histogram(data.label_column) if classified else {c: {} for c in rows.parts},
        labels=rows.labels.names if rows.labels else (),
        majority_accuracy=majority_share(test.targets) if classified else None,
        base_digest=base_digest,
        data_digest=_data_digest(datasets, test),
    )


def adapted_model(
    base: nn.Module,
    model_config: ModelConfig,
    adapter: AdapterConfig,
    federation: FederationConfig,
    *,
    num_classes: int,
) -> AdaptedModel:
    """Puts the run's adapter into the base model, the same in every process.

    Args:
        base: The base model; it is changed.
        model_config: The run's model section.
        adapter: The run's adapter section.
        federation: The run's federation section.
        num_classes: 0 for causal LM.
    """
    seed = derive_seed(federation.seed, "adapter")
    return AdaptedModel(base, model_config, adapter, num_classes=num_classes, seed=seed)


def encode(
    table: Table,
    model: ModelConfig,
    data: DataConfig,
    labels: LabelSpace | None,
    tokenizer: "PreTrainedTokenizerBase",
) -> Dataset:
    """Tokenizes a table for the task: with labels for classification, without for causal LM."""
    if labels is None:
        return encode_causal_lm(table, data, tokenizer, model.max_length)
    return encode_classification(table, data, labels, tokenizer, model.max_length)


def cross_talk(model: ModelConfig) -> float:
    """Returns what the noise must allow for the rounding of the forward pass."""
    return BFLOAT16_CROSS_TALK if model.precision == "bfloat16" else 0.0


def needed_columns(model: ModelConfig, data: DataConfig) -> list[str]:
    """Returns the columns that every row needs for the task."""
    if model.task == "classification":
        return [data.text_column, data.label_column]
    if data.question_column is not None and data.answer_column is not None:
        return [data.question_column, data.answer_column]
    return [data.text_column]


def _read_columns(table: Table, columns: Sequence[str]) -> Table:
    read = Table(table.location, {name: table.column(name) for name in columns}, table.places)
    for number, row in enumerate(read.records()):
        if not any(str(value).strip() for value in row.values() if value is not None):
            raise DataError(f"{read.locate(number)} has nothing in it; remove the row")
    return read


def _check_rows(datasets: Sequence[Dataset], base: nn.Module, config: ModelConfig) -> None:
    """Raises ModelError where the model cannot take the tokenizer's ids or a row's length."""
    num_tokens = base.get_input_embeddings().num_embeddings  # type: ignore[operator]
    largest = max(max(ids) for dataset in datasets for ids in dataset.input_ids)
    if largest >= num_tokens:
        raise ModelError(
            f"the tokenizer of {config.name} gives token {largest}, but the model has only "
            f"{num_tokens} tokens; they do not belong together"
        )
    longest = max(len(ids) for dataset in datasets for ids in dataset.input_ids)
    positions = getattr(base.config, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < longest:
        raise ModelError(
            f"a row has {longest} tokens, but {config.name} was made for {positions}; set "
            f"model.max_length to at most {positions}"
        )


def _data_digest(datasets: Mapping[str, Dataset], test: Dataset) -> str:
    sha = hashlib.sha256()
    for name, dataset in [*sorted(datasets.items()), ("", test)]:
        rows = [list(map(list, dataset.input_ids)), list(dataset.targets)]
        sha.update(json.dumps([name, *rows]).encode())
    return sha.hexdigest()
