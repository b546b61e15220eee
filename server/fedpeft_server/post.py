"""Letters to clients and their answers, as the run engine sees them, whatever carries them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class Letter:
    """What one client is asked.

    Attributes:
        kind: "query" for the offer of a run, "train" for a round.
        round: Of the run; 0 for an offer.
        envelope: Signed body.
        blob: Tensors beside it; None where there are none.
    """

    kind: Literal["query", "train"]
    round: int
    envelope: bytes
    blob: bytes | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for a letter.

    Attributes:
        letter_id: What `Post.send` returned.
        envelope: Signed body; None where the letter or its answer was lost.
        blob: Tensors beside it.
    """

    letter_id: str
    envelope: bytes | None
    blob: bytes | None


class Post(Protocol):
    """Carries letters of one run."""

    def send(self, client_id: str, letter: Letter, *, ttl_s: float) -> str | None:
        """Leaves a letter for a client; None where nobody by that name can be reached at all.

        It waits for a client that is away, at most `ttl_s`; one that was killed before it answered
        gets it again.
        """

    def collect(self, letter_ids: Collection[str], *, timeout_s: float) -> list[Answer]:
        """Returns answers, each once; waits for the first one, at most `timeout_s`."""

    def recall(self, letter_ids: Collection[str]) -> None:
        """Takes letters back: those not handed out never are, and no answer is collected."""

    def online(self) -> frozenset[str]:
        """Returns the clients that are connected now."""
