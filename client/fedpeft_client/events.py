"""What happens in a client, for those who show it or keep it. None of it leaves the machine."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

READY: Final = "ready"
CONNECTING: Final = "connecting"
CONNECTED: Final = "connected"
OFFERED: Final = "offered"
ACCEPTED: Final = "accepted"
ROUND_STARTED: Final = "round-started"
STEP: Final = "step"
ROUND_FINISHED: Final = "round-finished"
REFUSED: Final = "refused"
NOTE: Final = "note"
STOPPING: Final = "stopping"
STOPPED: Final = "stopped"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: One of those above.
        client_id: To which client.
        run_id: In which run; None: in none.
        round: In which round; None: in none.
        body: What else there is to say, as JSON values.
    """

    kind: str
    client_id: str
    run_id: str | None = None
    round: int | None = None
    body: dict[str, Any] = field(default_factory=dict)


Emit = Callable[[Event], None]
