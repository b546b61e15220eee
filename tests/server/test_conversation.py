"""Letters are answered, lost, sent again, taken back, and given up at the deadline."""

import threading
from collections.abc import Collection, Iterator

import pytest

from fedpeft_server import conversation
from fedpeft_server.conversation import StoppedError, converse
from fedpeft_server.post import Answer, Letter

LETTER = Letter(kind="train", round=1, envelope=b"plan", blob=None)


class ScriptedPost:
    """Answers each client's letters from a script: bytes, None for a loss, "never", "absent"."""

    def __init__(self, **scripts: list[bytes | str | None]) -> None:
        self.scripts = scripts
        self.sent: list[str] = []
        self.recalled: list[str] = []
        self.revoked: set[str] = set()
        self._open: dict[str, bytes | str | None] = {}

    def send(self, client_id: str, letter: Letter, *, ttl_s: float) -> str | None:
        assert letter is LETTER
        assert ttl_s > 0
        step = self.scripts[client_id].pop(0)
        self.sent.append(client_id)
        if step == "absent":
            return None
        letter_id = f"{client_id}-{len(self.sent)}"
        self._open[letter_id] = step
        return letter_id

    def collect(self, letter_ids: Collection[str], *, timeout_s: float) -> list[Answer]:
        assert set(letter_ids) <= self._open.keys()
        ready = [i for i in letter_ids if self._open[i] != "never"]
        return [self._answer(i) for i in ready]

    def _answer(self, letter_id: str) -> Answer:
        envelope = self._open.pop(letter_id)
        assert not isinstance(envelope, str)
        return Answer(letter_id=letter_id, envelope=envelope, blob=None)

    def recall(self, letter_ids: Collection[str]) -> None:
        self.recalled += letter_ids

    def online(self) -> frozenset[str]:
        return frozenset(self.scripts)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "_WAIT_S", 0.001)


def _start(
    post: ScriptedPost, stop: threading.Event, timeout_s: float = 60.0
) -> Iterator[tuple[str, Answer]]:
    return converse(
        post,
        dict.fromkeys(post.scripts, LETTER),
        enrolled=lambda: post.scripts.keys() - post.revoked,
        timeout_s=timeout_s,
        stop=stop,
    )


def _talk(post: ScriptedPost, timeout_s: float = 60.0) -> dict[str, bytes | None]:
    answers = _start(post, threading.Event(), timeout_s)
    return {client_id: answer.envelope for client_id, answer in answers}


def test_everybody_is_asked_once_and_answers() -> None:
    post = ScriptedPost(a=[b"1"], b=[b"2"])

    assert _talk(post) == {"a": b"1", "b": b"2"}
    assert post.sent == ["a", "b"]
    assert not post.recalled


def test_who_lost_a_letter_is_asked_again() -> None:
    post = ScriptedPost(a=[None, None, b"1"], b=["absent", b"2"])

    assert _talk(post) == {"a": b"1", "b": b"2"}
    assert post.sent.count("a") == 3


def test_nobody_waits_for_who_was_revoked() -> None:
    post = ScriptedPost(a=[b"1"], b=[None, "absent"])
    post.revoked = {"b"}

    assert _talk(post) == {"a": b"1"}
    assert post.sent == ["a", "b", "b"]


def test_at_the_deadline_letters_are_taken_back() -> None:
    post = ScriptedPost(a=[b"1"], b=["never"])

    assert _talk(post, timeout_s=0.05) == {"a": b"1"}
    assert post.recalled == ["b-2"]


def test_a_caller_that_leaves_early_takes_letters_back() -> None:
    post = ScriptedPost(a=[b"1"], b=["never"])
    answers = _start(post, threading.Event())
    assert next(answers)[0] == "a"
    answers.close()
    assert post.recalled == ["b-2"]


def test_a_stopped_run_takes_letters_back() -> None:
    post, stop = ScriptedPost(a=["never"]), threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        list(_start(post, stop))
    assert post.recalled == ["a-1"]


def test_who_loses_every_letter_is_asked_ever_more_rarely() -> None:
    pauses = [conversation._pause_s(count) for count in range(1, 30)]

    assert pauses == sorted(pauses)
    assert pauses[-1] <= conversation._LONGEST_PAUSE_S


def test_nobody_to_ask_is_no_wait() -> None:
    assert _talk(ScriptedPost()) == {}
