"""What a run tells those who watch it: kinds of events, and what their bodies hold."""

from typing import Final

STATUS: Final = "status"
"""`status` and `reason`."""
WAITING: Final = "waiting"
"""For clients: `accepted`, `needed`."""
ACCEPTED: Final = "accepted"
"""By a client: `num_examples`."""
REFUSED: Final = "refused"
"""By a client, an offer or a round: `code`, `message`."""
PLANNED: Final = "planned"
"""`clients`, `num_rounds`, `target_epsilon`, `delta`; null where there is no privacy."""
ROUND_STARTED: Final = "round-started"
"""`cohort`."""
UPDATE: Final = "update"
"""From a client: `size_bytes`, `norm`, `epsilon_spent`, `epsilon_budget`, `train_seconds`."""
REJECTED: Final = "rejected"
"""An update that cannot be used: `code`."""
ROUND_FINISHED: Final = "round-finished"
"""`cohort`, `missing`, `metrics`, `max_epsilon`, `adapter`, `seconds`."""
NOTE: Final = "note"
"""`message`."""
EXPORTED: Final = "exported"
"""`adapter`, `metrics`."""

KINDS = (
    STATUS,
    WAITING,
    ACCEPTED,
    REFUSED,
    PLANNED,
    ROUND_STARTED,
    UPDATE,
    REJECTED,
    ROUND_FINISHED,
    NOTE,
    EXPORTED,
)
"""Every kind."""
