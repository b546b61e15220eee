"""The `[federation]` section of a run."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedpeft.federated.robustness import (
    Combination,
    check_combination,
    check_num_updates,
)


class FederationConfig(BaseModel):
    """Who trains, how long, and how the updates become one adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clients: Literal["simulated", "remote"] = Field(
        default="simulated",
        description="'simulated': the run holds all rows and plays every client. 'remote': clients "
        "that are enrolled with a server train on rows of their own; for `fedpeft run submit`.",
    )
    num_clients: int | None = Field(
        default=None,
        ge=1,
        description="Number of clients. Required for the 'iid' and 'dirichlet' partitions; with "
        "'column' the clients with the most rows take part; not used with 'files'. With remote "
        "clients: the run begins when that many have agreed to it; default 1.",
    )
    num_rounds: int = Field(default=20, ge=1, description="Communication rounds.")
    clients_per_round: int | None = Field(
        default=None,
        ge=1,
        description="Cohort size. Cohorts are drawn from the seed before the run, so that each "
        "client's noise fits the number of rounds that it really takes part in. Default: all.",
    )
    quorum: int | None = Field(
        default=None,
        ge=1,
        description="Remote clients: updates that a round needs. With fewer at its deadline the "
        "same round begins again. Default: half of those that it wants, rounded up, or what "
        "combine needs.",
    )
    over_selection: int = Field(
        default=0,
        ge=0,
        description="Remote clients: so many more than clients_per_round are asked, and the round "
        "ends with the first clients_per_round updates. Who is asked pays, whether or not its "
        "update arrives in time: each client's noise fits the rounds that it is asked in.",
    )
    round_deadline_s: float = Field(
        default=3600.0,
        gt=0,
        allow_inf_nan=False,
        description="Remote clients: seconds after which a round goes on without those that did "
        "not answer.",
    )
    most_attempts: int = Field(
        default=5,
        ge=1,
        description="Remote clients: deadlines that one round may miss its quorum at before the "
        "run fails; it can be resumed. Updates that arrived are kept.",
    )
    local_steps: int = Field(default=5, ge=1, description="Local steps of each client per round.")
    clients_at_once: int = Field(
        default=16,
        ge=1,
        description="Clients that a simulation trains in one forward and backward pass. Memory and "
        "speed only. A run can be stopped between such groups, and workers share them out.",
    )
    expected_batch_size: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Expected Poisson batch of every client (at most its number of rows). Give "
        "this or sampling_prob.",
    )
    sampling_prob: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Probability of each example in each step, the same for every client.",
    )
    optimizer: Literal["sgd", "adam"] = Field(
        default="sgd", description="The client's optimizer; its state starts anew every round."
    )
    learning_rate: float = Field(
        default=0.5, gt=0, allow_inf_nan=False, description="For the adapter's factors."
    )
    head_learning_rate: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="For the head. Default: the adapter's."
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="For 'sgd'; reset every round.")
    weight_decay: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Decay of the trained tensors."
    )
    aggregator: Literal["fedsvd", "fedavg", "ffa-lora", "frozen-orthonormal"] = Field(
        default="fedsvd",
        description="'fedsvd': average B, refactorize BA by SVD. 'ffa-lora': average B, A never "
        "changes. 'frozen-orthonormal': average B, A made orthonormal once. 'fedavg': train and "
        "average A and B apart.",
    )
    weighting: Literal["examples", "uniform"] = Field(
        default="examples",
        description="Public weight of a client in the average: its number of rows, or one. Fixed "
        "before the run; no client can claim another one.",
    )
    combine: Combination = Field(
        default="weighted-mean",
        description="How the updates of a round become one before the aggregator has them. "
        "'weighted-mean': any one client can move it anywhere. 'norm-bound': the weighted mean of "
        "updates clipped to max_update_norm. 'median', 'trimmed-mean': of each value on its own. "
        "'multi-krum': the mean of the updates with the closest neighbours. The last three count "
        "clients and need weighting = 'uniform'. None spends epsilon; docs/robust.md has what they "
        "cost in accuracy. With client-level privacy: 'weighted-mean'.",
    )
    max_update_norm: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="For 'norm-bound': bound on the L2 norm, over all trained tensors, of what one "
        "client changes in a round. Public; the noise of a private update counts as well.",
    )
    num_byzantine: int | None = Field(
        default=None,
        ge=1,
        description="For 'trimmed-mean' and 'multi-krum': how many clients of one round may be "
        "malicious, f. A round needs 2f + 1 updates, or 2f + 3 with 'multi-krum'; where fewer "
        "come, the adapter stays as it is.",
    )
    evaluate_every: int = Field(
        default=1, ge=1, description="Rounds between evaluations; the last round always is."
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of initialisation, partition and cohorts. Never of the noise and the "
        "sampling of a private run: those come from the operating system.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.expected_batch_size is None) == (self.sampling_prob is None):
            raise ValueError("give one of expected_batch_size and sampling_prob")
        if self.clients == "remote":
            self._check_remote()
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum goes with optimizer = 'sgd'")
        if (
            self.clients_per_round is not None
            and self.num_clients is not None
            and self.clients_per_round > self.num_clients
        ):
            raise ValueError(
                f"clients_per_round ({self.clients_per_round}) is larger than num_clients "
                f"({self.num_clients})"
            )
        check_combination(
            self.combine,
            max_update_norm=self.max_update_norm,
            num_byzantine=self.num_byzantine,
            weighting=self.weighting,
            num_updates=self.clients_per_round or self.num_clients,
        )
        return self

    def _check_remote(self) -> None:
        if self.aggregator == "fedavg":
            raise ValueError("remote clients send B alone; 'fedavg' would have them send A as well")
        cohort = self.clients_per_round
        if self.quorum is not None and cohort is not None and self.quorum > cohort:
            raise ValueError(f"quorum ({self.quorum}) is larger than clients_per_round ({cohort})")
        if self.quorum is not None:
            check_num_updates(self.combine, self.num_byzantine, self.quorum, "a quorum")
        if self.over_selection and cohort is None:
            raise ValueError("over_selection needs clients_per_round: without it all are asked")
