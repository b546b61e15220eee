"""A change of a deployed adapter in the making: its model, where the change starts, what it is."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.linear import is_transposed, linear_module, weight_of
from fedpeft.adapters.lora import LORA_A, LORA_B, lora_pairs
from fedpeft.adapters.targets import match_targets
from fedpeft.federated.adapted_model import AdaptedModel, adapter_tensors, head_tensors
from fedpeft.models.model_config import ModelConfig
from fedpeft.unlearning.config import UnlearningConfig
from fedpeft.unlearning.low_rank_start import low_rank_start
from fedpeft.unlearning.recompress import LowRankTerm, recompress


@dataclass(frozen=True, kw_only=True)
class Successor:
    """An adapter on the original base, with the change in it.

    Attributes:
        config: Rank, scaling and modules of the successor.
        tensors: Adapter and head, by name.
        lost: Part of the whole update's Frobenius norm that recompression lost, 0 to 1.
    """

    config: AdapterConfig
    tensors: dict[str, Tensor]
    lost: float


def merged_weights(
    deployed: AdaptedModel, tensors: Mapping[str, Tensor], patterns: Sequence[str]
) -> dict[str, nn.Parameter]:
    """Merges a deployed adapter into its base model, in place.

    Returns:
        The weights of the modules that a change may touch, by module name.

    Raises:
        AdapterError: If the tensors do not fit the model.
        ModelError: If a pattern matches no module.
    """
    deployed.load(tensors)
    deployed.method.merge(deployed.task_model)
    return {
        name: deployed.task_model.get_parameter(f"{name}.weight")
        for name in match_targets(deployed.task_model, patterns)
    }


class LowRankEdit:
    """A low-rank change on top of a model that a deployed adapter was merged into.

    What comes out is an adapter on the original base. The published trap, an adapter that was
    trained beside the residual of W and is scored on W itself, cannot occur.

    Attributes:
        model: What runs; its adapter is the change.
    """

    def __init__(
        self,
        merged: AdaptedModel,
        tensors: Mapping[str, Tensor],
        model_config: ModelConfig,
        config: UnlearningConfig,
        *,
        num_classes: int,
        seed: int,
        importance: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Puts the change on the modules; the model computes what it did before.

        Args:
            merged: After `merged_weights`; it is used up.
            tensors: Of the deployed adapter and head.
            model_config: Of the model.
            config: Rank, scaling and modules of the change.
            num_classes: Of a classifier.
            seed: Of a start at zero: it draws A.
            importance: By module, (O, I): see `relative_importance`. Without, B starts at zero.

        Raises:
            AdapterError: If a rank does not fit a module.
            ModelError: If a pattern matches no module.
        """
        self._deployed = merged.adapter_config
        self._tensors = dict(tensors)
        self._config = config
        self.model = AdaptedModel(
            merged.task_model.base,
            model_config,
            AdapterConfig(
                rank=config.rank,
                alpha=config.scaling * config.rank,
                target_modules=config.target_modules or self._deployed.target_modules,
            ),
            num_classes=num_classes,
            seed=seed,
        )
        start = self.model.tensors() | head_tensors(tensors)
        self._start = {} if importance is None else self._started(importance)
        self.model.load(start | self._start)

    def _started(self, importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Splits every weight; the residual takes its place, the factors are returned."""
        factors: dict[str, Tensor] = {}
        for name in self.model.adapted_modules:
            base = linear_module(self.model.task_model, f"{name}.base")
            found = low_rank_start(
                weight_of(base), importance[name], self._config.rank, self._config.scaling
            )
            residual = found.residual_OI.T if is_transposed(base) else found.residual_OI
            base.weight.data.copy_(residual)
            factors |= {
                f"{name}.{LORA_A}": found.lora_a_RI.cpu(),
                f"{name}.{LORA_B}": found.lora_b_OR.cpu(),
            }
        return factors

    def successor(self) -> Successor:
        """Returns the deployed adapter with the change as it is now, as one adapter.

        Raises:
            AdapterError: If the rank of the successor does not fit a module.
        """
        now = self.model.tensors()
        terms: dict[str, list[LowRankTerm]] = defaultdict(list)
        scaled = (
            (self._tensors, self._deployed.scaling),
            (now, self._config.scaling),
            (self._start, -self._config.scaling),
        )
        for tensors, scaling in scaled:
            for name, (a, b) in lora_pairs(adapter_tensors(tensors)).items():
                terms[name].append(LowRankTerm(lora_a_RI=a, lora_b_OR=b, scaling=scaling))
        rank = self._config.result_rank or self._lossless_rank(terms)
        found = {
            name: recompress(some, rank=rank, scaling=self._deployed.scaling)
            for name, some in terms.items()
        }
        total = sum(each.total_squared for each in found.values())
        lost = sum(each.lost_squared for each in found.values())
        factors: dict[str, Tensor] = {}
        for name, each in found.items():
            factors[f"{name}.{LORA_A}"] = each.term.lora_a_RI
            factors[f"{name}.{LORA_B}"] = each.term.lora_b_OR
        return Successor(
            config=self._deployed.model_copy(
                update={
                    "rank": rank,
                    "alpha": self._deployed.scaling * rank,
                    "target_modules": self._all_patterns(),
                }
            ),
            tensors=factors | head_tensors(now),
            lost=math.sqrt(lost / total) if total else 0.0,
        )

    def _lossless_rank(self, terms: Mapping[str, Sequence[LowRankTerm]]) -> int:
        """The smallest rank at which nothing is lost, or the largest that every module takes."""
        ranks = [sum(t.lora_a_RI.shape[0] for t in some) for some in terms.values()]
        fits = [min(t.lora_a_RI.shape[1], t.lora_b_OR.shape[0]) for t, *_ in terms.values()]
        return min(max(ranks), min(fits))

    def _all_patterns(self) -> tuple[str, ...]:
        patterns = self._config.target_modules or ()
        return tuple(dict.fromkeys((*self._deployed.target_modules, *patterns)))
