"""One question to each of several clients, and their answers as they come."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

from fedpeft_server.post import Answer, Letter, Post

# How soon a run sees that it is asked to stop.
_WAIT_S = 0.25
_LONGEST_PAUSE_S = 30.0


class StoppedError(Exception):
    """The run was asked to stop."""


def converse(
    post: Post,
    letters: Mapping[str, Letter],
    *,
    enrolled: Callable[[], Collection[str]],
    timeout_s: float,
    stop: threading.Event,
) -> Iterator[tuple[str, Answer]]:
    """Yields client ids with their answers until all have answered or the time is over.

    A client whose letter or answer was lost is asked again: it answers a round twice with the same
    update, so that nothing is paid or released a second time. The caller may leave early: letters
    that nobody has read yet are taken back, so that no client pays for an answer that is not
    wanted any more. Nobody waits for a client that was revoked meanwhile.

    Args:
        post: Carries the letters.
        letters: Client id → what it is asked.
        enrolled: Returns the clients that may take part now.
        timeout_s: From now.
        stop: Ends the wait.

    Raises:
        StoppedError: If `stop` was set.
    """
    now = time.monotonic()
    deadline = now + timeout_s
    due = dict.fromkeys(sorted(letters), now)
    num_sent: Counter[str] = Counter()
    sent: dict[str, str] = {}
    try:
        while due or sent:
            now = time.monotonic()
            if now >= deadline:
                return
            for client_id in [c for c, at in due.items() if at <= now]:
                letter_id = post.send(client_id, letters[client_id], ttl_s=deadline - now)
                num_sent[client_id] += 1
                due[client_id] = now + _pause_s(num_sent[client_id])
                if letter_id is not None:
                    del due[client_id]
                    sent[letter_id] = client_id
                elif client_id not in enrolled():
                    del due[client_id]
            for answer in post.collect(sent.keys(), timeout_s=min(deadline - now, _WAIT_S)):
                client_id = sent.pop(answer.letter_id)
                if answer.envelope is None:
                    due[client_id] = now + _pause_s(num_sent[client_id])
                else:
                    yield client_id, answer
            if stop.is_set():
                raise StoppedError
            if due and not sent:
                stop.wait(_WAIT_S)
    finally:
        post.recall(sent.keys())


def _pause_s(num_sent: int) -> float:
    """A client that loses every letter at once does not keep the coordinator busy."""
    return min(_LONGEST_PAUSE_S, _WAIT_S * 2.0 ** min(num_sent, 10))
