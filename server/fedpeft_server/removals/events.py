"""What a removal request tells those who watch it: kinds of events, and what their bodies hold.

No body holds anything of a row.
"""

from typing import Final

STATE: Final = "state"
"""`state` and `reason`."""
RECORDS: Final = "records"
"""The sealed records came: `size_bytes`."""
ATTEMPT: Final = "attempt"
"""The job began: `number`, `max_attempts`."""
PROGRESS: Final = "progress"
"""Of the job: `phase`, `share` in [0, 1]."""
LOST: Final = "lost"
"""Whoever worked on it was lost and it begins again: `what`."""
GATE: Final = "gate"
"""The gate decided: `passed`, `reasons`, `measured_by`."""
PUBLISHED: Final = "published"
"""`adapter`, `withdrawn`, `aliases`, `receipt` (its sha256)."""
CONFIRMED: Final = "confirmed"
"""Every replica serves the successor: `replicas`."""
UNCONFIRMED: Final = "unconfirmed"
"""A replica does not say that it serves the successor: `replicas`, each with its `problem`."""
LATE: Final = "late"
"""The deadline has passed: `deadline`."""
NOTE: Final = "note"
"""`message`."""

KINDS = (
    STATE,
    RECORDS,
    ATTEMPT,
    PROGRESS,
    LOST,
    GATE,
    PUBLISHED,
    CONFIRMED,
    UNCONFIRMED,
    LATE,
    NOTE,
)
