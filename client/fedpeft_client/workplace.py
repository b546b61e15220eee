"""What the clients of one process train with: base models, loaded once, and each client's rows."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

from fedpeft.errors import ModelError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.aggregators import AGGREGATORS
from fedpeft.federated.assembly import adapted_model
from fedpeft.federated.client_rows import ClientRows, check_fits
from fedpeft.federated.terms import RunTerms
from fedpeft.federated.tombstones import Tombstones
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.dataset import Dataset
from fedpeft.types import tensor_digest
from fedpeft_client.policy import ClientPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_T = TypeVar("_T")
# Runs may take turns; what belongs to one that is long over must not stay for months.
_MOST_RUNS = 2


class Models:
    """Base models, and the models of the latest runs on them; clients of one process share it."""

    def __init__(self, policy: ClientPolicy) -> None:
        """Loads nothing yet."""
        self._policy = policy
        self._bases: dict[tuple[str, str], tuple[nn.Module, PreTrainedTokenizerBase]] = {}
        self._runs: _Latest[AdaptedModel] = _Latest()

    def for_run(self, terms: RunTerms) -> tuple[AdaptedModel, "PreTrainedTokenizerBase"]:
        """Returns the run's model, set to train what the run trains, and its tokenizer.

        Raises:
            PolicyError: If the base model is not allowed.
            ModelError: If it is not there, is another than its digest says, or does not fit.
            AdapterError: If the adapter does not fit it.
        """
        base, tokenizer = self._base(terms)
        return self._runs.get(terms.digest, lambda: self._adapted(terms, base)), tokenizer

    def _base(self, terms: RunTerms) -> tuple[nn.Module, "PreTrainedTokenizerBase"]:
        config = self._policy.model_config_of(terms)
        key = terms.base_digest, config.task
        if key not in self._bases:
            base = load_base_model(config)
            found = tensor_digest(base.state_dict())
            if found != terms.base_digest:
                raise ModelError(
                    f"{config.name} is not the base model that the policy names it for: expected "
                    f"digest {terms.base_digest}, got {found} as a {config.task} model"
                )
            self._bases[key] = base, load_tokenizer(config)
        base, tokenizer = self._bases[key]
        check_fits(terms.model.max_length, base, tokenizer)
        return base, tokenizer

    def _adapted(self, terms: RunTerms, base: nn.Module) -> AdaptedModel:
        model = adapted_model(
            _sharing_weights(base),
            self._policy.model_config_of(terms),
            terms.adapter,
            terms.federation,
            num_classes=len(terms.labels),
        )
        model.set_trainable(AGGREGATORS[terms.federation.aggregator].trained_factors)
        return model


class ClientWorkplace:
    """See `federated.client_round.Workplace`.

    Attributes:
        max_tokens: Bound on the padded tokens of one physical batch.
    """

    def __init__(
        self,
        rows: ClientRows,
        models: Models,
        *,
        tombstones: Tombstones,
        max_tokens: int,
        note: Callable[[str], None],
    ) -> None:
        """Takes one client's rows.

        Args:
            rows: All of them.
            models: Shared with other clients of the process.
            tombstones: Of those that are to be forgotten.
            max_tokens: Bound on the padded tokens of one physical batch.
            note: Is told how many rows a run cannot use.
        """
        self._rows = rows
        self._models = models
        self._tombstones = tombstones
        self.max_tokens = max_tokens
        self._note = note
        self._encoded: _Latest[Dataset] = _Latest()

    @property
    def num_examples(self) -> int:
        """Number of rows."""
        return self._rows.num_examples

    @property
    def dataset(self) -> str:
        """Fingerprint of the rows in the client's ledger."""
        return self._rows.dataset

    @property
    def removed(self) -> str:
        """Which of the rows are to be forgotten."""
        return self._tombstones.version

    def prepared(self, terms: RunTerms) -> tuple[AdaptedModel, Dataset]:
        """See `federated.client_round.Workplace.prepared`."""
        model, tokenizer = self._models.for_run(terms)
        key = terms.digest + self.removed
        return model, self._encoded.get(key, lambda: self._encode(terms, tokenizer))

    def _encode(self, terms: RunTerms, tokenizer: "PreTrainedTokenizerBase") -> Dataset:
        removed = self._tombstones.held(self._rows.known_by())
        dataset, num_unused = self._rows.encoded(terms, tokenizer, removed)
        if num_unused:
            self._note(
                f"run {terms.run_id}: {num_unused} of {self.num_examples} rows count and teach "
                f"nothing: {len(removed)} are to be forgotten, others have no value in its columns "
                "or a label that it does not know"
            )
        return dataset


class _Latest(Generic[_T]):
    """Values by key, the latest few of them."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, _T] = OrderedDict()

    def get(self, key: str, make: Callable[[], _T]) -> _T:
        if key not in self._values:
            while len(self._values) >= _MOST_RUNS:
                self._values.popitem(last=False)
            self._values[key] = make()
        self._values.move_to_end(key)
        return self._values[key]


def _sharing_weights(base: nn.Module) -> nn.Module:
    """Returns a copy whose modules are its own and whose weights are those of `base`."""
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    return copy.deepcopy(base, shared)
