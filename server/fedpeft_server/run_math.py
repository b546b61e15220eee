"""What a run computes, in a process of its own: the coordinator itself never loads a model.

Tensors pass between the two as safetensors blobs. A crash here, or a kill, loses nothing: the
process is started again and asked again. The coordinator imports this module for its values, so
torch is imported where it is used.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.config import validate_config
from fedpeft.dp.events import DpSgdEvent
from fedpeft.errors import ProtocolError
from fedpeft.federated.messages import Acceptance
from fedpeft.federated.terms import RunTerms
from fedpeft.types import TensorDict, size_bytes, tensor_digest
from fedpeft.wire.blobs import TensorSpec, check_blob, from_blob, specs_of, to_blob
from fedpeft_server.records import Participant, RunPlanRecord

if TYPE_CHECKING:
    from fedpeft.federated.coordination import Coordination


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins.

    Attributes:
        terms: What its clients are asked to agree to.
        adapter: The first adapter, as a blob.
        digest: Of its tensors.
        metrics: Of the held-out rows, before the first round.
        adapter_bytes: Of the adapter's tensors: what goes down to each client.
        update_bytes: Of the trained tensors: what comes up.
    """

    terms: RunTerms
    adapter: bytes
    digest: str
    metrics: Mapping[str, float]
    adapter_bytes: int
    update_bytes: int


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """A round's next adapter; see `coordination.NextAdapter`."""

    adapter: bytes
    digest: str
    kept: tuple[float, ...]
    diagnostics: Mapping[str, float]
    update_norms: tuple[float, ...]


class RunMath:
    """The object that a `WarmWorker` holds for one run."""

    def __init__(self, config: Mapping[str, object], held_out: str | None) -> None:
        """Takes the run's configuration; loading is the first call's.

        Args:
            config: The content of a `RunConfig`.
            held_out: Path of the held-out file that was sent with the run; None: as configured.
        """
        self._config = validate_config(config, "the run")
        self._held_out = held_out
        self._held: tuple[str, TensorDict] = "", {}

    def start(self, run_id: str) -> Start:
        """Loads model and held-out rows and returns where the run begins.

        Raises:
            InputError: Whatever is wrong with them.
        """
        coordination = self._coordination
        initial = coordination.initial
        return Start(
            terms=coordination.terms(run_id, self._config.output.name),
            adapter=to_blob(initial),
            digest=tensor_digest(initial),
            metrics=coordination.evaluate(initial),
            adapter_bytes=size_bytes(initial),
            update_bytes=size_bytes({name: initial[name] for name in coordination.trained}),
        )

    def plan(self, terms: RunTerms, accepted: Mapping[str, Acceptance]) -> RunPlanRecord:
        """Returns what is planned for those who accepted; see `plan.plan_run`."""
        left = {c: a.remaining_epsilon for c, a in accepted.items()}
        plan = self._coordination.plan(
            {client_id: a.num_examples for client_id, a in accepted.items()},
            {client_id: epsilon for client_id, epsilon in left.items() if epsilon is not None},
        )
        participants = []
        for client_id, client in plan.clients.items():
            noise = plan.noise_multiplier(client_id)
            assert noise is None or math.isfinite(noise)
            participants.append(
                Participant(
                    client_id=client_id,
                    num_examples=client.num_examples,
                    noise_multiplier=noise,
                    expected_batch_size=client.expected_batch_size,
                    weight=client.weight,
                    num_rounds_planned=client.num_rounds,
                    dataset=accepted[client_id].dataset,
                )
            )
        return RunPlanRecord(
            terms_json=terms.to_json(), participants=tuple(participants), cohorts=plan.cohorts
        )

    def fits(self, adapter: bytes) -> bool:
        """Returns whether an adapter has the tensors that the run's has."""
        try:
            check_blob(adapter, self._adapter_specs)
        except ProtocolError:
            return False
        return True

    def hold(self, adapter: bytes, digest: str) -> None:
        """Keeps the adapter that a round's updates started from, for `check_update`."""
        self._held = digest, from_blob(adapter, self._adapter_specs, digest)

    def check_update(self, blob: bytes, digest: str, adapter_digest: str) -> float | None:
        """Returns the L2 norm of an update minus the adapter that it started from.

        None says that this process does not hold that adapter (any more): it was not sent here with
        every update, because it is larger than they are.

        Raises:
            ProtocolError: If it does not hold exactly the trained tensors, finite, with the digest.
        """
        from fedpeft.federated.aggregators.updates import update_norm

        held_digest, adapter = self._held
        if held_digest != adapter_digest:
            return None
        return update_norm(adapter, from_blob(blob, self._update_specs, digest))

    def aggregate(
        self,
        adapter: bytes,
        adapter_digest: str,
        updates: Sequence[tuple[bytes, str]],
        weights: Sequence[float],
    ) -> Aggregated:
        """Makes the next adapter of updates, each a blob and its digest.

        Raises:
            ProtocolError: If a blob is not what it was when it was checked.
        """
        made = self._coordination.aggregate(
            from_blob(adapter, self._adapter_specs, adapter_digest),
            [from_blob(blob, self._update_specs, digest) for blob, digest in updates],
            weights,
        )
        return Aggregated(
            adapter=to_blob(made.tensors),
            digest=tensor_digest(made.tensors),
            kept=made.kept,
            diagnostics=made.diagnostics,
            update_norms=made.update_norms,
        )

    def evaluate(self, adapter: bytes, digest: str) -> dict[str, float]:
        """Returns the held-out metrics of an adapter."""
        return self._coordination.evaluate(from_blob(adapter, self._adapter_specs, digest))

    def spent_epsilon(self, events: Sequence[DpSgdEvent]) -> float:
        """Returns what events cost together at the run's delta; none costs nothing."""
        return self._coordination.spent_epsilon(events)

    def export(self, adapter: bytes, digest: str) -> tuple[dict[str, bytes], dict[str, float]]:
        """Returns the PEFT export, file by file, and its metrics as peft finds them there.

        Raises:
            VerificationError: If the adapter never changed, or scores differently when reloaded.
        """
        tensors = from_blob(adapter, self._adapter_specs, digest)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "adapter")
            metrics = self._coordination.export(folder, tensors)
            return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}, metrics

    @cached_property
    def _coordination(self) -> "Coordination":
        import torch

        from fedpeft.federated.coordination import Coordination

        torch.set_num_threads(1)
        config = self._config
        data = config.data
        if self._held_out is not None:
            data = data.model_copy(update={"test": self._held_out})
        return Coordination(config.model, data, config.adapter, config.federation, config.privacy)

    @cached_property
    def _adapter_specs(self) -> dict[str, TensorSpec]:
        return specs_of(self._coordination.initial)

    @cached_property
    def _update_specs(self) -> dict[str, TensorSpec]:
        return {name: self._adapter_specs[name] for name in self._coordination.trained}
