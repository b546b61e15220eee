"""What can happen in a run, as those who watch it are told.

A watcher that meets a kind which it does not know shows it as it is: a newer server may have more.
"""

from enum import StrEnum


class EventKind(StrEnum):
    """Kinds of event, and what their bodies hold.

    Attributes:
        SUBMITTED: `name`, `num_rounds`, `clients`, `by`.
        PREPARING: Nothing; clients are asked.
        CLIENT_ACCEPTED: `num_examples`.
        CLIENT_REFUSED: `code`, `message`; to the run or, with a round, to that round.
        STARTED: `num_rounds`, `num_clients`, `target_epsilon` (null without privacy), `metrics`
            (before the first round); with `resumed_at`, the round that the run goes on with.
        ROUND_STARTED: `cohort`, `attempt` (counts from 1).
        UPDATE_RECEIVED: `size_bytes`, `epsilon_spent` (null without privacy).
        UPDATE_REFUSED: `code`; an update that was not what was asked for.
        CLIENT_MISSING: `code`; it did not answer in time, or was lost.
        ROUND_FINISHED: `metrics` (may be empty), `epsilon` (the largest; null without privacy),
            `num_updates`, `num_missing`, `seconds`, `adapter`.
        FINISHED: `metrics`, `epsilon`, `adapter`.
        STOPPED: `reason`, `by`.
        FAILED: `reason`.
        RESUMED: `by`.
        NOTE: `message`.
    """

    SUBMITTED = "submitted"
    PREPARING = "preparing"
    CLIENT_ACCEPTED = "client-accepted"
    CLIENT_REFUSED = "client-refused"
    STARTED = "started"
    ROUND_STARTED = "round-started"
    UPDATE_RECEIVED = "update-received"
    UPDATE_REFUSED = "update-refused"
    CLIENT_MISSING = "client-missing"
    ROUND_FINISHED = "round-finished"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    RESUMED = "resumed"
    NOTE = "note"
