"""What coordinator and client say to each other, as values; `fedpeft.wire` puts them into bytes.

Legend of the conversation: offer → answer, once a run; plan → reply, once a round.
"""

from dataclasses import dataclass

from fedpeft.federated.terms import RunTerms


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why something is not done; `code` is one of `fedpeft.federated.refusals`."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """A client takes part.

    Attributes:
        num_examples: Rows that it would train on, taken as public.
        dataset: Their fingerprint in its own ledger.
        remaining_epsilon: What its budget has left at the run's delta; None without privacy.
    """

    num_examples: int
    dataset: str
    remaining_epsilon: float | None


@dataclass(frozen=True, kw_only=True)
class OfferAnswer:
    """A client's answer to the offer of a run."""

    run_id: str
    client_id: str
    terms_digest: str
    answer: Acceptance | Refusal


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """What one client is asked to do in one round; the adapter's tensors come beside it.

    Attributes:
        terms: Of the run.
        client_id: Whom it is for.
        round: Counts from 1.
        adapter_digest: Digest of the tensors that training starts from.
        num_examples: Rows that the client said it has.
        expected_batch_size: Public divisor of the summed gradients.
        num_rounds: Rounds that this client is planned for in the whole run.
        noise_multiplier: In each local step; None where the run has no privacy.
    """

    terms: RunTerms
    client_id: str
    round: int
    adapter_digest: str
    num_examples: int
    expected_batch_size: float
    num_rounds: int
    noise_multiplier: float | None


@dataclass(frozen=True, kw_only=True)
class BudgetStatement:
    """Where a client's budget stands, as its own ledger says.

    Attributes:
        ledger_head: `count:hash`.
        dataset: Fingerprint of the rows.
    """

    epsilon_spent: float
    epsilon_budget: float
    delta: float
    ledger_head: str
    dataset: str


@dataclass(frozen=True, kw_only=True)
class UpdateHeader:
    """What is said beside an update's tensors.

    Attributes:
        digest: Of the tensors.
        budget: After this round; None without privacy.
        train_seconds: Of the local steps.
    """

    digest: str
    budget: BudgetStatement | None
    train_seconds: float


@dataclass(frozen=True, kw_only=True)
class RoundReply:
    """A client's answer to a plan; with an update, its tensors come beside it.

    Attributes:
        plan_digest: sha256 of the plan's bytes that this answers, hex.
    """

    run_id: str
    client_id: str
    round: int
    plan_digest: str
    answer: UpdateHeader | Refusal
