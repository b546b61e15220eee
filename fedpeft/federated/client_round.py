"""The client's half of a run: whether it takes part, and what it makes of a round.

The guarantee, stated here and nowhere else: whatever a coordinator asks, however often, and
wherever this process or its machine dies, everything that a client ever sent that depends on its
rows was charged to its own ledger before the first gradient of it was computed. One reservation
pays for one update. Why:

1. `train` reserves before it trains, and the ledger makes that durable and never refunds it.
2. The update is made durable, then the reservation is committed to its digest, then it is returned
   to be sent. A ledger commits a reservation to one digest and refuses any other, for ever, also
   where two processes or two machines try. So of all that was ever trained under a reservation at
   most one update can be sent.
3. So a reservation that is not committed has released nothing, and after a crash between reserve
   and commit the round may be trained again, with new coins, under the same one. What the first
   attempt computed is gone with the process, or it is the stored update, which is then the one
   that is committed and sent.
4. A reservation that is committed is never trained under again. Its stored update is returned,
   bit for bit, as often as it is asked for. Where that is gone or damaged the round is refused: the
   owner's budget would allow a new reservation perhaps, but a coordinator that has the first update
   would then hold two, and nothing but the coordinator gains by it.
5. A round has one content: terms, adapter, noise, batch. Asked for the same round with another one,
   the client refuses. So a coordinator that forgets, or lies, gets no second look at the same step.
6. An update with NaN or infinite values is stored and committed like any other, and every answer is
   then that it diverged: that answer, too, depends on the rows and is paid for.
7. What is said without a charge (the number of rows, their columns, the budget, refusals of terms,
   plans and adapters) does not depend on what is in the rows; see `client_rows`. The number of rows
   is taken as public, as in `dp.mechanism`.

8. Rows that their owner wants forgotten are in no gradient from then on; they count like rows that
   the terms cannot use, so that the sampling, its amplification and the number of rows stay what
   they were. An update that was trained before is not sent from then on: not for the first time,
   and, where it is still asked for, not again. Whether there are such rows shows in that refusal.

What is not covered: how long training took, and that a process died of it. Both depend on the
sampled rows and can be seen from outside; the size of a physical batch is bounded, so that memory
does not. A copy of the client's folder and ledger from an earlier time (a restored backup, a cloned
machine) has forgotten what was spent since, and says so to nobody. Who can read the client's disk
reads its rows. Runs without privacy, which a policy must allow, have no charge and no guarantee.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from fedpeft.dp.mechanism import DpSgdConfig
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import (
    BudgetError,
    DivergedError,
    FedpeftError,
    LedgerError,
    PrivacyError,
    ProtocolError,
    RowsRemovedError,
)
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.assembly import cross_talk
from fedpeft.federated.client_checks import (
    check_adapter,
    check_num_examples,
    check_plan,
    content_digest,
    is_same_round,
    purpose_of,
)
from fedpeft.federated.client_store import ClientStore, StoredUpdate
from fedpeft.federated.local_training import LocalClient, train_locally
from fedpeft.federated.messages import (
    Acceptance,
    BudgetStatement,
    OfferAnswer,
    Refusal,
    RoundPlan,
    RoundReply,
    UpdateHeader,
)
from fedpeft.federated.plan import ClientPlan
from fedpeft.federated.refusals import refusal_of
from fedpeft.federated.terms import RunTerms
from fedpeft.ledger import Ledger
from fedpeft.models.dataset import Dataset
from fedpeft.types import is_finite, tensor_digest


class RoundPolicy(Protocol):
    """What the client's owner allows."""

    def check_terms(self, terms: RunTerms) -> None:
        """Raises PolicyError if the client takes no part in such a run."""

    def check_plan(self, plan: RoundPlan) -> None:
        """Raises PolicyError if the client does not train such a round."""


class Workplace(Protocol):
    """What a client trains with."""

    @property
    def num_examples(self) -> int:
        """Number of its rows."""

    @property
    def dataset(self) -> str:
        """Their fingerprint in its ledger."""

    @property
    def removed(self) -> str:
        """Which of them are to be forgotten; see `tombstones.Tombstones.version`.

        Raises LedgerError if that is not known.
        """

    @property
    def max_tokens(self) -> int:
        """Bound on the padded tokens of one physical batch; a run may ask for less."""

    def prepared(self, terms: RunTerms) -> tuple[AdaptedModel, Dataset]:
        """Returns the run's model, set to train what the run trains, and the rows for it.

        Raises InputError if they are not there, or cannot be used under the terms.
        """


class Watcher(Protocol):
    """What the client's owner is told; none of it leaves the machine."""

    def note(self, message: str) -> None:
        """Something worth a line."""

    def step_finished(self, step: int, num_steps: int) -> None:
        """A local step is done."""


class ClientRound:
    """One client's half of every round that it is asked for."""

    def __init__(
        self,
        client_id: str,
        *,
        policy: RoundPolicy,
        workplace: Workplace,
        ledger: Ledger,
        store: ClientStore,
        watcher: Watcher,
        coins: Callable[[], Keystream] = Keystream.from_system,
    ) -> None:
        """Takes what the client has; nothing is read yet.

        Args:
            client_id: The name that the federation knows it by.
            policy: What its owner allows.
            workplace: Its rows, and where its models come from.
            ledger: Its own, open.
            store: What it remembers of its runs.
            watcher: What its owner is told.
            coins: Makes the source of a round's sampling and noise; another one than the operating
                system's protects nobody.
        """
        self._client_id = client_id
        self._policy = policy
        self._workplace = workplace
        self._ledger = ledger
        self._store = store
        self._watcher = watcher
        self._coins = coins

    def answer_offer(self, terms: RunTerms) -> OfferAnswer:
        """Returns whether the client takes part in the run; the same offer again, the same answer.

        An acceptance is remembered: other terms for the same run are refused from then on.
        """
        answer: Acceptance | Refusal
        try:
            with self._store.exclusively():
                answer = self._accept(terms)
        except FedpeftError as error:
            self._watcher.note(f"run {terms.run_id}: not taking part: {error}")
            answer = refusal_of(error)
        return OfferAnswer(
            run_id=terms.run_id,
            client_id=self._client_id,
            terms_digest=terms.digest,
            answer=answer,
        )

    def train(
        self, plan: RoundPlan, tensors: Mapping[str, Tensor], plan_digest: str
    ) -> tuple[RoundReply, Mapping[str, Tensor] | None]:
        """Returns the client's answer to a plan, and its update unless it refuses.

        Args:
            plan: What is asked.
            tensors: The adapter that came with it; nothing of it has been checked.
            plan_digest: Of the plan's bytes, for the answer.
        """
        answer: UpdateHeader | Refusal
        update: Mapping[str, Tensor] | None
        try:
            with self._store.exclusively():
                answer, update = self._update(plan, tensors)
        except FedpeftError as error:
            self._watcher.note(f"run {plan.terms.run_id} round {plan.round}: refused: {error}")
            answer, update = refusal_of(error), None
        reply = RoundReply(
            run_id=plan.terms.run_id,
            client_id=self._client_id,
            round=plan.round,
            plan_digest=plan_digest,
            answer=answer,
        )
        return reply, update

    def _accept(self, terms: RunTerms) -> Acceptance:
        self._policy.check_terms(terms)
        self._workplace.prepared(terms)
        remaining = self._remaining_epsilon(terms)
        self._store.agree(terms.run_id, terms.digest)
        return Acceptance(
            num_examples=self._workplace.num_examples,
            dataset=self._workplace.dataset,
            remaining_epsilon=remaining,
        )

    def _update(
        self, plan: RoundPlan, tensors: Mapping[str, Tensor]
    ) -> tuple[UpdateHeader, Mapping[str, Tensor]]:
        """The round, top to bottom; the order is what the module's docstring rests on."""
        terms, content = plan.terms, content_digest(plan)
        check_plan(plan, self._client_id)
        self._policy.check_plan(plan)
        self._store.agree(terms.run_id, terms.digest)
        stored = self._store.load(terms.run_id, plan.round)
        removed = self._workplace.removed
        if stored is not None and stored.removed != removed and not self._may_be_out(stored):
            stored = None  # nobody has it: the round is trained again, without those rows
        if stored is None:
            check_num_examples(plan, self._workplace.num_examples)
            model, dataset = self._workplace.prepared(terms)
            check_adapter(tensors, expected=model.tensors(), digest=plan.adapter_digest)
            client = LocalClient(
                plan=self._client_plan(plan), dataset=dataset, keystream=self._coins()
            )
            reservation = self._reserve(plan, client.plan.dp)
            model.load(tensors)
            update, seconds = self._trained(plan, model, client)
            stored = StoredUpdate(
                content=content,
                reservation=reservation,
                dataset=self._workplace.dataset,
                train_seconds=seconds,
                tensors=update,
                removed=removed,
            )
            self._check_removed(stored)
            self._store.save(terms.run_id, plan.round, stored)
        elif stored.content != content:
            raise ProtocolError(
                f"round {plan.round} was trained for another plan ({stored.content[:12]}… and not "
                f"{content[:12]}…); a round is released once, the operator submits a new run"
            )
        self._check_removed(stored)
        digest = tensor_digest(stored.tensors)
        if stored.reservation is not None:
            self._ledger.commit(stored.reservation, digest)
        if not all(map(is_finite, stored.tensors.values())):
            raise DivergedError(
                "the update holds NaN or infinite values and is not sent; its charge stays: the "
                "operator lowers learning_rate"
            )
        header = UpdateHeader(
            digest=digest,
            budget=self._statement(stored),
            train_seconds=stored.train_seconds,
        )
        return header, stored.tensors

    # --- the steps

    def _may_be_out(self, stored: StoredUpdate) -> bool:
        """Whether an update may have been sent that was charged for, and is not made again."""
        if stored.reservation is None:
            return False
        reservations = self._ledger.reservations(stored.dataset)
        paid = [r for r in reservations if r.id == stored.reservation]
        return not paid or self._ledger.release_of(paid[0]) is not None

    def _check_removed(self, stored: StoredUpdate) -> None:
        """Keeps back an update that rows went into which are to be forgotten since."""
        if stored.removed != self._workplace.removed:
            raise RowsRemovedError(
                "rows that are to be forgotten went into the update; it is not sent, and its "
                "charge stays"
            )

    def _client_plan(self, plan: RoundPlan) -> ClientPlan:
        """Puts the parameters together from the terms and the client's own numbers."""
        terms, dp = plan.terms, None
        if plan.noise_multiplier is not None:
            dp = DpSgdConfig(
                num_examples=self._workplace.num_examples,
                expected_batch_size=plan.expected_batch_size,
                l2_clip_norm=terms.privacy.l2_clip_norm,
                noise_multiplier=plan.noise_multiplier,
                cross_talk=cross_talk(terms.model),
            )
        return ClientPlan(
            client_id=self._client_id,
            num_examples=self._workplace.num_examples,
            weight=1.0,
            expected_batch_size=plan.expected_batch_size,
            num_rounds=plan.num_rounds,
            num_steps=plan.num_rounds * terms.federation.local_steps,
            dp=dp,
        )

    def _reserve(self, plan: RoundPlan, dp: DpSgdConfig | None) -> str | None:
        """Pays for the round, or finds that it was paid for and that nothing was released yet."""
        if dp is None:
            return None
        self._check_delta(plan.terms)
        self._check_unreleased(plan)
        dataset, purpose = self._workplace.dataset, purpose_of(plan)
        event = dp.event(plan.terms.federation.local_steps)
        before = self._ledger.open_reservation(dataset, event, purpose=purpose)
        if before is not None:
            self._watcher.note(
                f"run {plan.terms.run_id} round {plan.round}: training again; it was paid for "
                "before, and nothing was sent"
            )
            return before.id
        return self._ledger.reserve(dataset, event, purpose=purpose).id

    def _check_unreleased(self, plan: RoundPlan) -> None:
        for reservation in self._ledger.reservations(self._workplace.dataset):
            if not is_same_round(reservation.purpose, plan):
                continue
            if reservation.purpose != purpose_of(plan):
                raise ProtocolError(
                    f"round {plan.round} was paid for with another plan; a round has one plan, the "
                    "operator submits a new run"
                )
            if self._ledger.release_of(reservation) is not None:
                raise LedgerError(
                    f"the update of round {plan.round} was released before and is no longer in "
                    "this client's folder; it is not made again, since that would be a second "
                    "release: restore the folder, or sit the round out"
                )

    def _trained(
        self, plan: RoundPlan, model: AdaptedModel, client: LocalClient
    ) -> tuple[Mapping[str, Tensor], float]:
        """Returns the update and the seconds that it took."""
        terms, num_steps = plan.terms, plan.terms.federation.local_steps
        started = time.monotonic()
        [result] = train_locally(
            model,
            [client],
            terms.federation,
            max_tokens=min(terms.model.max_tokens_per_batch, self._workplace.max_tokens),
            step_finished=lambda step: self._watcher.step_finished(step, num_steps),
        )
        if result.num_nonfinite:
            self._watcher.note(f"{result.num_nonfinite} gradients were not finite and count as 0")
        return result.tensors, time.monotonic() - started

    # --- the budget

    def _check_delta(self, terms: RunTerms) -> None:
        balance = self._ledger.balance(self._workplace.dataset)
        if balance.delta is None:
            raise BudgetError(
                "no budget, no training: nobody has set one for these rows; their owner does with "
                "`fedpeft client join --budget EPSILON:DELTA`"
            )
        if balance.delta != terms.privacy.delta:
            raise PrivacyError(
                f"the budget is stated at delta {balance.delta:g}, the run at "
                f"{terms.privacy.delta:g}; the two must be the same"
            )

    def _remaining_epsilon(self, terms: RunTerms) -> float | None:
        if not terms.privacy.enabled:
            return None
        self._check_delta(terms)
        balance = self._ledger.balance(self._workplace.dataset)
        # What is charged here counts in the budget of every data set that shares a row.
        balances = [balance, *(self._ledger.balance(name) for name in balance.overlaps)]
        left = min(b.remaining for b in balances if b.remaining is not None)
        if not left > 0:
            raise BudgetError(f"nothing is left of the budget of epsilon {balance.epsilon:g}")
        return left

    def _statement(self, stored: StoredUpdate) -> BudgetStatement | None:
        """Where the budget stands after the commit: never lower than what was released."""
        if stored.reservation is None:
            return None
        balance = self._ledger.balance(stored.dataset)
        assert balance.spent is not None
        assert balance.epsilon is not None
        assert balance.delta is not None
        return BudgetStatement(
            epsilon_spent=balance.spent,
            epsilon_budget=balance.epsilon,
            delta=balance.delta,
            ledger_head=str(self._ledger.head()),
            dataset=stored.dataset,
        )
