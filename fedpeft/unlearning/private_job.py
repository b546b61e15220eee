"""LoKU under DP-SGD: a removal job at the client that is charged to the client's own ledger.

The guarantee, stated here and nowhere else. Whatever is asked, however often, and wherever this
process or its machine dies: all that leaves the machine of a private job is computed from tensors
that DP-SGD made over all rows of the client, and that was charged to its ledger before the first
gradient was computed. Why:

1. A row gets one of three losses: the inverted hinge where it is marked under this request, nothing
   where it is marked under another, else cross-entropy. Which one is a property of the row alone,
   so one row more or less moves a step's sum by one clipped gradient; see `dp.mechanism`.
2. A in the adapter is kept and B is trained, from the version in use. LoKU's start by importance
   would be a look at the rows without noise, and there is none here. So rank, scaling and modules
   stay, and nothing is recompressed.
3. The charge is reserved, the tensors are made durable, the reservation is committed to their
   digest, and only then are they returned; asked again, the same ones are. After a crash before the
   commit nothing was released, and the steps are taken again under the same reservation with new
   coins. What was released and is gone from the folder is not made again. All as in
   `federated.client_round`, where it is argued.
4. The result holds what was asked, what was charged, and what follows from the tensors. No loss, no
   figure of a gate, no time, no count of rows that could not be used.

What is not covered: how long it took, that it was asked for, and how many records were named.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.adapters.config import AdapterConfig
from fedpeft.dp.accounting import calibrate_noise_multiplier, epsilon
from fedpeft.dp.config import PrivacyConfig
from fedpeft.dp.events import DpSgdEvent
from fedpeft.dp.grad_sample import trainable_parameters
from fedpeft.dp.mechanism import DpSgd, DpSgdConfig, PhysicalBatch
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import (
    AdapterError,
    BudgetError,
    DataError,
    DivergedError,
    LedgerError,
    PrivacyError,
    ProtocolError,
    RowsRemovedError,
)
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.assembly import cross_talk
from fedpeft.federated.client_rows import ClientRows
from fedpeft.federated.client_store import ClientStore, StoredUpdate
from fedpeft.federated.tombstones import Tombstones
from fedpeft.ledger import Ledger
from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import Dataset, collate, physical_batches
from fedpeft.types import is_finite, tensor_digest
from fedpeft.unlearning.blobs import read_tensors, write_tensors
from fedpeft.unlearning.exported import Frame, export_and_reload, outputs
from fedpeft.unlearning.low_rank_edit import Successor
from fedpeft.unlearning.order import JobOrder, JobResult
from fedpeft.unlearning.private_config import PrivateConfig
from fedpeft.unlearning.private_loss import row_losses
from fedpeft.unlearning.statement import PrivacyStatement

Told = Callable[[str, float], None]
METHOD = "loku"
_ROUND = 1  # of the store: a request has one release


@dataclass(frozen=True, kw_only=True)
class PrivateJob:
    """One request's job.

    Attributes:
        order: What is asked; nothing of it is trusted beyond its form.
        adapter: Tensors of the affected version, as safetensors.
        frame: The base model as this machine has it, its digest checked, and the classes.
        rows: All rows of the client.
        tombstones: Which of them are to be forgotten, by request.
        ledger: The client's own, open.
        store: What it released by removals.
        check_noise: Raises if the owner does not allow such a job; it is given the multiplier.
        told: Hears how far it is.
        coins: Makes the source of sampling and noise; another one protects nobody.
    """

    order: JobOrder
    adapter: bytes
    frame: Frame
    rows: ClientRows
    tombstones: Tombstones
    ledger: Ledger
    store: ClientStore
    check_noise: Callable[[PrivateConfig, float], None]
    told: Told = lambda phase, share: None
    coins: Callable[[], Keystream] = Keystream.from_system

    def run(self) -> tuple[JobResult, bytes, dict[str, bytes]]:
        """Returns the result, the successor's tensors as safetensors, and the files of its export.

        Raises:
            AdapterError: If the adapter does not fit the run's configuration.
            BudgetError: If there is no budget, or the job would exceed it. Nothing is computed.
            DataError: If no row is marked under the request, or columns are missing.
            DivergedError: If the tensors are not finite; the charge stays.
            LedgerError: If the successor was released before and is gone.
            PolicyError: If the owner does not allow such a job.
            PrivacyError: If the order is of no private job, or delta is not the budget's.
            ProtocolError: If the request was done before from another version or with other
                settings.
            RowsRemovedError: If more rows were marked since it was made; it is not sent.
        """
        if not self.order.is_private or self.order.method != METHOD:
            raise PrivacyError("the order is of no private job")
        with self.store.exclusively():
            stored = self.store.load(self.order.request_id, _ROUND)
            removed = self.tombstones.version
            if stored is not None and stored.removed != removed and not self._may_be_out(stored):
                stored = None  # nobody has it: it is made again, without those rows
            if stored is None:
                stored = self._made(removed)
                self._check_removed(stored)
                self.store.save(self.order.request_id, _ROUND, stored)
            elif stored.content != self._content:
                raise ProtocolError(
                    "this request was done before, from another version or with other settings; a "
                    "request is released once: cancel it, and ask again"
                )
            self._check_removed(stored)
            assert stored.reservation is not None
            self.ledger.commit(stored.reservation, tensor_digest(stored.tensors))
        if not all(map(is_finite, stored.tensors.values())):
            raise DivergedError(
                "the successor holds NaN or infinite values and is not sent; its charge stays: set "
                "private.learning_rate lower"
            )
        return self._result(stored)

    # --- the steps

    def _made(self, removed: str) -> StoredUpdate:
        """The job, top to bottom; the order is what the module's docstring rests on."""
        asked, data = self.order.private, self.order.section(DataConfig, "data")
        delta = self._delta()
        forget = self.tombstones.held(self.rows.known_by(), self.order.request_id)
        if not forget:
            raise DataError(
                f"no row here is marked under removal {self.order.request_id}; the data's owner "
                "asks for it with `fedpeft removal request --here`, which marks them"
            )
        others = set(self.tombstones.held(self.rows.known_by())) - set(forget)
        model = self._adapted()
        dataset, _ = self.rows.encoded_as(
            self.frame.model, data, self.frame.labels, self.frame.tokenizer, others
        )
        expected_batch_size = asked.sampling_prob * self.rows.num_examples
        noise_multiplier = calibrate_noise_multiplier(
            target_epsilon=asked.epsilon,
            delta=delta,
            sampling_prob=expected_batch_size / self.rows.num_examples,  # to the last bit
            num_steps=asked.num_steps,
        )
        self.check_noise(asked, noise_multiplier)
        mechanism = DpSgdConfig(
            num_examples=self.rows.num_examples,
            expected_batch_size=expected_batch_size,
            l2_clip_norm=self.order.private.l2_clip_norm,
            noise_multiplier=noise_multiplier,
            cross_talk=cross_talk(self.frame.model),
        )
        reservation = self._reserve(mechanism.event(asked.num_steps))
        self._take_steps(model, dataset, forget, mechanism, asked)
        return StoredUpdate(
            content=self._content,
            reservation=reservation,
            dataset=self.rows.dataset,
            train_seconds=0.0,
            tensors=model.tensors(),
            removed=removed,
        )

    def _take_steps(
        self,
        model: AdaptedModel,
        dataset: Dataset,
        forget: list[int],
        config: DpSgdConfig,
        asked: PrivateConfig,
    ) -> None:
        is_forgotten = torch.zeros(len(dataset), dtype=torch.bool)
        is_forgotten[forget] = True
        # The mean over rows to be forgotten and the mean over the others weigh the same, by the
        # numbers that are public.
        weight = min(1.0, self.order.num_records / max(1, len(dataset) - self.order.num_records))
        max_tokens = self.frame.model.max_tokens_per_batch

        def losses(rows: list[int]) -> torch.Tensor:
            batch = collate(dataset, rows, model.device)
            logits = model.task_model.logits(batch, self.frame.model.precision)
            return row_losses(logits, batch, is_forgotten[rows].to(model.device), weight)

        def to_batches(sample: NDArray[np.int64]) -> list[PhysicalBatch]:
            cut = physical_batches(dataset, sample.tolist(), max_tokens, model.device)
            return [(np.asarray(rows), partial(losses, list(rows))) for rows in cut]

        trained = trainable_parameters(model.task_model)
        optimizer = torch.optim.Adam(trained.values(), lr=asked.learning_rate)
        mechanism = DpSgd(model.task_model, config, self.coins())
        for step in range(1, asked.num_steps + 1):
            released = mechanism.step(to_batches)
            for name, parameter in trained.items():
                parameter.grad = released.mean[name]
            optimizer.step()
            self.told("steps", step / asked.num_steps)

    def _adapted(self) -> AdaptedModel:
        """The model with the affected version, set to train B and the trained head."""
        model = AdaptedModel(
            self.frame.load_base(),
            self.frame.model,
            self._adapter_config,
            num_classes=len(self.frame.labels),
            seed=0,
        )
        model.set_trainable(("lora_b",))
        model.load(read_tensors(self.adapter))
        return model

    def _result(self, stored: StoredUpdate) -> tuple[JobResult, bytes, dict[str, bytes]]:
        """What follows from tensors that were released, and from what everybody knows."""
        self.told("export", 1.0)
        config, tensors = self._adapter_config, dict(stored.tensors)
        exported = export_and_reload(
            Successor(config=config, tensors=tensors, lost=0.0), self.frame, []
        )
        digest = tensor_digest(exported.tensors)
        if digest != tensor_digest(tensors):
            raise AdapterError("the export holds other tensors than those that were charged for")
        before = self._adapted()
        after = self._adapted()
        after.load(tensors)
        result = JobResult(
            parent=tensor_digest(read_tensors(self.adapter)),
            digest=digest,
            method=METHOD,
            claim="approximate",
            adapter=config.model_dump(mode="json"),
            lost=0.0,
            seconds={},
            gate=None,
            fingerprint={
                "before": outputs(before.task_model, self.frame).to_json(),
                "after": outputs(after.task_model, self.frame).to_json(),
                "expected": exported.fingerprint.to_json(),
            },
            privacy=self._statement(stored),
        )
        return result, write_tensors(exported.tensors), exported.files

    # --- what was done before

    @cached_property
    def _content(self) -> str:
        """Names what is asked for, and from which version."""
        text = f"{self.order.to_json()}\n{hashlib.sha256(self.adapter).hexdigest()}"
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _adapter_config(self) -> AdapterConfig:
        return self.order.section(AdapterConfig, "adapter")

    def _may_be_out(self, stored: StoredUpdate) -> bool:
        """Whether it may have been sent, so that it is not made again."""
        paid = [r for r in self.ledger.reservations(stored.dataset) if r.id == stored.reservation]
        return not paid or self.ledger.release_of(paid[0]) is not None

    def _check_removed(self, stored: StoredUpdate) -> None:
        if stored.removed != self.tombstones.version:
            raise RowsRemovedError(
                "more rows were marked as removed since the successor was made from them; it is "
                "not sent, and its charge stays: cancel this removal, and ask again"
            )

    # --- the budget

    def _delta(self) -> float:
        """Delta of the budget, which must be that of every epsilon of the adapter."""
        privacy = self.order.section(PrivacyConfig, "privacy")
        balance = self.ledger.balance(self.rows.dataset)
        if balance.delta is None:
            raise BudgetError(
                "no budget, no job: nobody has set one for these rows; their owner does with "
                "`fedpeft client join --budget EPSILON:DELTA`"
            )
        if balance.delta != privacy.delta:
            raise PrivacyError(
                f"the budget is stated at delta {balance.delta:g}, the adapter's run at "
                f"{privacy.delta:g}; the two must be the same"
            )
        return privacy.delta

    def _reserve(self, event: DpSgdEvent) -> str:
        """Pays for the job, or finds that it was paid for and that nothing was released yet."""
        dataset, of_request = self.rows.dataset, f"removal {self.order.request_id} "
        for reservation in self.ledger.reservations(dataset):
            if not reservation.purpose.startswith(of_request):
                continue
            if self.ledger.release_of(reservation) is not None:
                raise LedgerError(
                    "the successor of this request was released before and is no longer in this "
                    "client's folder; it is not made again, since that would be a second release: "
                    "restore the folder, or cancel the request and ask again"
                )
        purpose = f"{of_request}order {self._content[:16]}"
        before = self.ledger.open_reservation(dataset, event, purpose=purpose)
        return (before or self.ledger.reserve(dataset, event, purpose=purpose)).id

    def _statement(self, stored: StoredUpdate) -> PrivacyStatement:
        """Of what the ledger was charged, whatever this version would calibrate now."""
        delta = self.order.section(PrivacyConfig, "privacy").delta
        paid = [r for r in self.ledger.reservations(stored.dataset) if r.id == stored.reservation]
        event = paid[0].event
        assert isinstance(event, DpSgdEvent)
        alone = epsilon([event], delta)
        return PrivacyStatement(
            epsilon=alone,
            epsilon_spent=max(alone, self.ledger.spent_epsilon(stored.dataset, delta)),
            delta=delta,
            noise_multiplier=event.noise_multiplier,
            sampling_prob=event.sampling_prob,
            num_steps=event.num_steps,
            l2_clip_norm=self.order.private.l2_clip_norm,
        )
