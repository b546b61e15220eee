"""One round of a remote run: ask the cohort, check what comes back, make the next adapter of it."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fedpeft.dp.events import DpSgdEvent
from fedpeft.errors import IdentityError, PrivacyError, ProtocolError, QuorumError
from fedpeft.federated import refusals
from fedpeft.federated.messages import BudgetStatement, Refusal, RoundPlan, UpdateHeader
from fedpeft.federated.robustness import min_num_updates
from fedpeft.federated.terms import RunTerms
from fedpeft_server import events
from fedpeft_server.conversation import converse
from fedpeft_server.correspondence import plan_digest
from fedpeft_server.missing import LATE, MAY_HAVE_RELEASED, REJECTED, REVOKED, SURPLUS
from fedpeft_server.post import Answer
from fedpeft_server.records import (
    AdapterRecord,
    BudgetRecord,
    Participant,
    RoundRecord,
    RunPlanRecord,
    UpdateRecord,
)
from fedpeft_server.releases import before_run, num_rounds, round_event
from fedpeft_server.run_context import RunContext
from fedpeft_server.run_math import Aggregated, Start
from fedpeft_server.state import RowsRemovedMeanwhileError

# Asked again at the next attempt: what it failed at may have passed.
_PASSING = frozenset({LATE, REJECTED, refusals.REMOVED, refusals.LOST, refusals.INTERNAL})


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter version with its tensors at hand."""

    record: AdapterRecord
    blob: bytes


class Round:
    """The open round."""

    def __init__(
        self, context: RunContext, start: Start, plan: RunPlanRecord, number: int, adapter: Adapter
    ) -> None:
        """Takes the adapter that the round starts from."""
        self._context, self._start, self._number, self._adapter = context, start, number, adapter
        self._terms: RunTerms = start.terms
        self._participants = {p.client_id: p for p in plan.participants}
        self._cohort = plan.cohorts[number - 1]
        self._plans = {c: self._plan_of(self._participants[c]) for c in self._cohort}
        federation = self._terms.federation
        self._wanted = min(federation.clients_per_round or len(self._cohort), len(self._cohort))
        self._quorum = max(
            federation.quorum or (self._wanted + 1) // 2,
            min_num_updates(federation.combine, federation.num_byzantine),
        )

    def run(self) -> Adapter:
        """Takes the round to its end and returns the next adapter.

        Raises:
            StoppedError: If the run was asked to stop.
            QuorumError: If the quorum was not reached.
        """
        started = time.monotonic()
        self._tell(events.ROUND_STARTED, cohort=list(self._cohort))
        while True:
            try:
                return self._done(*self._collect(), started)
            except RowsRemovedMeanwhileError as error:
                # Nobody has used the update yet: it is asked for again, without those rows.
                self._tell(events.NOTE, message=str(error))

    def _done(
        self, updates: Sequence[UpdateRecord], missing: dict[str, str], started: float
    ) -> Adapter:
        """Makes the next adapter of what was collected, and records the round."""
        chosen = sorted(updates, key=lambda u: (u.received_at, u.client_id))[: self._wanted]
        missing |= {u.client_id: SURPLUS for u in updates if u not in chosen}
        # In the order of their names, so that a sum of floats does not depend on who was faster.
        chosen = sorted(chosen, key=lambda u: u.client_id)
        made = self._aggregate(chosen)
        record = self._record(chosen, missing, made, started)
        self._context.state.finish_round(self._context.run_id, *record)
        for update in updates:
            self._context.artifacts.delete(update.artifact)
        round_record, adapter_record = record
        self._tell(
            events.ROUND_FINISHED,
            cohort=list(round_record.cohort),
            missing=dict(round_record.missing),
            metrics=dict(round_record.metrics),
            max_epsilon=max(adapter_record.epsilon.values(), default=None),
            adapter=adapter_record.digest,
            seconds=round_record.seconds,
        )
        return Adapter(record=adapter_record, blob=made.adapter)

    def _collect(self) -> tuple[list[UpdateRecord], dict[str, str]]:
        """Returns the updates that came, and why the others did not."""
        context, federation = self._context, self._terms.federation
        # An update whose tensors are gone, as after a restore, is asked for again: it is the same.
        # So is one whose client wants rows of it forgotten since: it makes one without them.
        got = {
            u.client_id: u
            for u in context.state.updates(context.run_id, self._number)
            if context.artifacts.has(u.artifact)
            and not context.state.rows_removed_since(u.client_id, u.received_at)
        }
        missing: dict[str, str] = {}
        for _ in range(federation.most_attempts):
            asked = [c for c in self._cohort if c not in got and self._may_still(c, missing)]
            if len(got) >= self._wanted or not asked:
                break
            letters = {
                c: context.correspondence.plan(self._plans[c], self._adapter.blob) for c in asked
            }
            missing |= dict.fromkeys(asked, LATE)
            for client_id, answer in converse(
                context.post,
                letters,
                enrolled=context.enrolled,
                timeout_s=federation.round_deadline_s,
                stop=context.stop,
            ):
                taken = self._take(client_id, answer)
                if isinstance(taken, UpdateRecord):
                    got[client_id] = taken
                    del missing[client_id]
                else:
                    missing[client_id] = taken
                if len(got) >= self._wanted:
                    break
            if len(got) >= self._quorum:
                break
            self._tell(
                events.NOTE,
                message=f"round {self._number}: {len(got)} updates of the {self._quorum} it needs",
            )
            context.wait(1.0)
        self._check_quorum(got, missing)
        enrolled = context.enrolled()
        gone = [c for c in self._cohort if c not in got and c not in enrolled]
        return list(got.values()), missing | dict.fromkeys(gone, REVOKED)

    def _check_quorum(self, updates: Sized, missing: Mapping[str, str]) -> None:
        if len(updates) < self._quorum:
            reasons = ", ".join(f"{n} {code}" for code, n in Counter(missing.values()).items())
            raise QuorumError(
                f"round {self._number} has {len(updates)} updates of the {self._quorum} it needs "
                f"({reasons}); resume the run when more clients can take part"
            )

    def _may_still(self, client_id: str, missing: Mapping[str, str]) -> bool:
        return missing.get(client_id, LATE) in _PASSING and client_id in self._context.enrolled()

    def _take(self, client_id: str, answer: Answer) -> UpdateRecord | str:
        """Checks one answer and makes it durable; returns the update, or why there is none."""
        context, plan = self._context, self._plans[client_id]
        try:
            reply = context.correspondence.read_reply(plan, answer)
            context.heard(client_id)
            if isinstance(reply.answer, Refusal):
                context.refused(self._number, client_id, reply.answer)
                return reply.answer.code
            norm = self._checked_norm(answer, reply.answer)
            update, budget = self._received(client_id, answer, reply.answer)
        except (ProtocolError, IdentityError, PrivacyError) as error:
            context.reject(self._number, client_id, error)
            return REJECTED
        try:
            is_new = context.state.add_update(update, budget)
        except RowsRemovedMeanwhileError:
            return refusals.REMOVED
        if is_new:
            said = reply.answer.budget
            self._tell(
                events.UPDATE,
                client_id=client_id,
                size_bytes=update.size_bytes,
                norm=norm,
                epsilon_spent=said and said.epsilon_spent,
                epsilon_budget=said and said.epsilon_budget,
                train_seconds=reply.answer.train_seconds,
            )
        return update

    def _checked_norm(self, answer: Answer, header: UpdateHeader) -> float:
        if answer.blob is None:
            raise ProtocolError("an update came without its tensors")
        start, compute = self._adapter, self._context.compute
        while True:
            norm: float | None = compute(
                "check_update", answer.blob, header.digest, start.record.digest
            )
            if norm is not None:
                return norm
            compute("hold", start.blob, start.record.digest)

    def _received(
        self, client_id: str, answer: Answer, header: UpdateHeader
    ) -> tuple[UpdateRecord, BudgetRecord | None]:
        assert answer.blob is not None
        assert answer.envelope is not None
        now = datetime.now(UTC)
        update = UpdateRecord(
            run_id=self._context.run_id,
            round=self._number,
            client_id=client_id,
            plan_digest=plan_digest(self._plans[client_id]),
            update_digest=header.digest,
            artifact=self._context.artifacts.put(answer.blob),
            size_bytes=len(answer.blob),
            received_at=now,
            envelope=answer.envelope,
        )
        if not self._terms.privacy.enabled:
            return update, None
        if header.budget is None:
            raise ProtocolError("an update of a private run came without a statement of its budget")
        return update, self._budget(client_id, header.budget, now)

    def _budget(self, client_id: str, said: BudgetStatement, now: datetime) -> BudgetRecord:
        if said.delta != self._terms.privacy.delta:
            raise ProtocolError(f"a budget is stated at delta {said.delta}, the run's is another")
        return BudgetRecord(
            client_id=client_id,
            dataset=said.dataset,
            epsilon_spent=said.epsilon_spent,
            epsilon_budget=said.epsilon_budget,
            delta=said.delta,
            ledger_head=said.ledger_head,
            reported_at=now,
            run_id=self._context.run_id,
            round=self._number,
        )

    def _aggregate(self, chosen: list[UpdateRecord]) -> Aggregated:
        context = self._context
        blobs = [(context.artifacts.get(u.artifact), u.update_digest) for u in chosen]
        weights = [self._participants[u.client_id].weight for u in chosen]
        made: Aggregated = context.compute(
            "aggregate", self._adapter.blob, self._adapter.record.digest, blobs, weights
        )
        return made

    def _record(
        self,
        chosen: list[UpdateRecord],
        missing: Mapping[str, str],
        made: Aggregated,
        started: float,
    ) -> tuple[RoundRecord, AdapterRecord]:
        context, start = self._context, self._start
        parent = self._adapter.record
        cohort = tuple(u.client_id for u in chosen)
        federation = self._terms.federation
        metrics: Mapping[str, float] = {}
        last = self._number == federation.num_rounds
        if last or self._number % federation.evaluate_every == 0:
            metrics = context.compute("evaluate", made.adapter, made.digest)
        now = datetime.now(UTC)
        adapter = AdapterRecord(
            digest=made.digest,
            run_id=context.run_id,
            round=self._number,
            parent=parent.digest,
            base_model=parent.base_model,
            base_digest=parent.base_digest,
            artifact=context.artifacts.put(made.adapter),
            participants=tuple(sorted({*parent.participants, *cohort})),
            epsilon=self._epsilon(missing),
            metrics=metrics,
            created_at=now,
            export=None,
        )
        round_record = RoundRecord(
            round=self._number,
            cohort=cohort,
            missing=missing,
            seconds=time.monotonic() - started,
            metrics=metrics,
            diagnostics=dict(made.diagnostics) | _kept(cohort, made),
            update_norms=dict(zip(cohort, made.update_norms, strict=True)),
            adapter=made.digest,
            uplink_bytes=start.update_bytes * len(chosen),
            downlink_bytes=start.adapter_bytes * len(self._cohort),
            finished_at=now,
        )
        return round_record, adapter

    def _epsilon(self, missing: Mapping[str, str]) -> dict[str, float]:
        """Returns each client's epsilon: what its ledger says, and never less than it may be.

        Whose update came has just stated it. Who was asked and did not answer may have released
        all the same: the accountant says what that would have cost. In the last round everybody is
        computed, so that no statement below the truth stays in the adapter.
        """
        context, terms = self._context, self._terms
        if not terms.privacy.enabled:
            return {}
        spent = dict(self._adapter.record.epsilon)
        for budget in context.state.budgets(None):
            if budget.client_id in self._participants:
                before = spent.get(budget.client_id, 0.0)
                spent[budget.client_id] = max(before, budget.epsilon_spent)
        unsure = set(self._participants)
        if self._number < terms.federation.num_rounds:
            unsure = {c for c, code in missing.items() if code in MAY_HAVE_RELEASED}
        for client_id in sorted(unsure):
            computed = context.compute("spent_epsilon", self._released(client_id, missing))
            spent[client_id] = max(computed, spent.get(client_id, 0.0))
        return spent

    def _released(self, client_id: str, missing: Mapping[str, str]) -> list[DpSgdEvent]:
        """Returns what the client may have released into this version, or one before it."""
        state, run_id = self._context.state, self._context.run_id
        here = client_id in self._cohort and missing.get(client_id, LATE) in MAY_HAVE_RELEASED
        count = num_rounds(state, run_id, client_id) + here
        event = round_event(self._participants[client_id], self._terms)
        own = [event.repeated(count)] if count else []
        return [*before_run(state, run_id, client_id), *own]

    def _tell(self, kind: str, *, client_id: str | None = None, **body: Any) -> None:
        self._context.tell(kind, round_number=self._number, client_id=client_id, **body)

    def _plan_of(self, participant: Participant) -> RoundPlan:
        return RoundPlan(
            terms=self._terms,
            client_id=participant.client_id,
            round=self._number,
            adapter_digest=self._adapter.record.digest,
            num_examples=participant.num_examples,
            expected_batch_size=participant.expected_batch_size,
            num_rounds=participant.num_rounds_planned,
            noise_multiplier=participant.noise_multiplier,
        )


def _kept(cohort: Sequence[str], made: Aggregated) -> dict[str, float]:
    kept = zip(cohort, made.kept, strict=True) if made.kept else ()
    return {f"share_kept_of_{client_id}": share for client_id, share in kept}
