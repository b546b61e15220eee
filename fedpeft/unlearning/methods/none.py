"""A control of the gate: an unlearner that does nothing."""

from typing import Literal

from fedpeft.adapters.lora import LORA_A, LORA_B, lora_pairs
from fedpeft.federated.adapted_model import adapter_tensors
from fedpeft.unlearning.low_rank_edit import Successor
from fedpeft.unlearning.methods.contract import Claim, Removal
from fedpeft.unlearning.recompress import LowRankTerm, recompress


class Nothing:
    """Writes the affected version in other factors: another digest, the same model."""

    name = "none"
    claim: Claim = "approximate"
    place: Literal["job", "rounds"] = "job"
    requestable = False

    def make(self, removal: Removal) -> Successor:
        """See `Method.make`."""
        deployed = removal.deployed
        factors = dict(deployed.tensors)
        for name, (a, b) in lora_pairs(adapter_tensors(deployed.tensors)).items():
            term = LowRankTerm(lora_a_RI=a, lora_b_OR=b, scaling=deployed.adapter.scaling)
            again = recompress([term], rank=a.shape[0], scaling=deployed.adapter.scaling).term
            factors |= {f"{name}.{LORA_A}": again.lora_a_RI, f"{name}.{LORA_B}": again.lora_b_OR}
        return Successor(config=deployed.adapter, tensors=factors, lost=0.0)
