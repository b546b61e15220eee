"""Text from tokens, piece by piece, up to a text that ends it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 5
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """Turns tokens into text as they come.

    A character of several tokens is held back until it is whole, and whatever may be the beginning
    of a stop text until it is known not to be.

    Attributes:
        stopped: Whether a stop text came; it is no part of the answer.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], stop: Sequence[str]
    ) -> None:
        """Takes the prompt, whose end decides whether a word begins with a space."""
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._ids = list(prompt[-_CONTEXT:])
        self._from, self._until = 0, len(self._ids)
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Returns the text that is certain now, and was not before."""
        self._ids.append(token)
        before = self._decode(self._from, self._until)
        text = self._decode(self._from, len(self._ids))
        if len(text) <= len(before) or text.endswith(_UNFINISHED):
            return ""
        self._from, self._until = self._until, len(self._ids)
        return self._release(text[len(before) :])

    def end(self) -> str:
        """Returns what was held back; after a stop text there is nothing."""
        if self.stopped:
            return ""
        before = self._decode(self._from, self._until)
        rest = self._decode(self._from, len(self._ids))[len(before) :]
        text = self._release(rest)
        held, self._held = self._held, ""
        return text + ("" if self.stopped else held)

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decode(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop text."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
