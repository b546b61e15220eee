"""A text classification set that this project generates: short customer-service messages.

Everything in it is made up by a seeded grammar (`messages_grammar`): no message was written by
a customer, and no name belongs to a person. It is there to try the platform without a
download; a result on it says little about real text.

12,000 training and 2,000 test rows, 10 intents, 15.9 words a row. No text occurs twice, within a
split or across the two, even when case and punctuation are ignored; across the two this holds for
any pair of seeds. In 9 % of the rows the sentence that matters is one that two intents share, so
that half of those cannot be told apart and 100 % is out of reach: logistic regression on words
reaches 76 % of the test rows from 300 training rows, 92 % from 1,000 and 96 % from all; always
guessing the commonest intent, 15 %.
"""

import hashlib
import random
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Final, Literal, TypeVar

from fedpeft.models import messages_grammar as grammar
from fedpeft.models.table import Table

NUM_ROWS: Final = {"train": 12_000, "test": 2_000}

_AMBIGUOUS_SHARE = 0.09
_T = TypeVar("_T")


def generate(split: Literal["train", "test"], *, seed: int = 0) -> Table:
    """Generate one split of the synthetic messages.

    The same seed gives the same rows on every platform and Python version: only
    `random.Random.random` is used, whose sequence Python guarantees.

    Args:
        split: "train" (12,000 rows) or "test" (2,000 rows).
        seed: Any whole number. Splits of any two seeds are disjoint, so that test rows of seed
            0 may judge training rows of seed 1.

    Returns:
        Columns `text`, `label` (name of the intent) and `channel` ("app", "mail", "phone" or
        "web"; it goes along with the style and, weakly, with the intent).
    """
    writer = _Writer(f"fedpeft messages 1 {split} {seed}")
    columns: dict[str, list[str]] = {"text": [], "label": [], "channel": []}
    seen: set[str] = set()
    while len(seen) < NUM_ROWS[split]:
        label = writer.weighted(grammar.INTENTS)
        channel = writer.weighted(_channel_weights(label))
        text = writer.message(label, channel)
        key = "".join(filter(str.isalnum, text.casefold()))
        # The text itself says to which split it belongs: no row can be in both.
        if _is_test(key) == (split == "test") and key not in seen:
            seen.add(key)
            for name, value in (("text", text), ("label", label), ("channel", channel)):
                columns[name].append(value)
    return Table(f"synthetic:messages/{split}", columns)


def _is_test(key: str) -> bool:
    return hashlib.sha256(key.encode()).digest()[0] < 64


@cache
def _channel_weights(label: str) -> Mapping[str, float]:
    factors = grammar.PREFERENCES
    return {name: w * factors.get((label, name), 1.0) for name, w in grammar.CHANNELS.items()}


class _Writer:
    """Writes messages from one stream of random numbers."""

    def __init__(self, seed: str) -> None:
        digest = hashlib.sha256(seed.encode()).digest()
        self._random = random.Random(int.from_bytes(digest, "big")).random  # noqa: S311

    def message(self, label: str, channel: str) -> str:
        """One message: an opener, the sentence that matters, context, a closer."""
        sentences = [self.fill(self._frame(label))]
        while self.chance(0.4) and len(sentences) < 4:
            at = 0 if self.chance(0.4) else len(sentences)
            sentences.insert(at, self.fill(self.choice(grammar.CONTEXT)))
        opener = self.fill(self.choice(grammar.OPENERS[channel]))
        closer = self.fill(self.choice(grammar.CLOSERS[channel]))
        match channel:
            case "mail":
                return f"{opener} {_punctuated(sentences)} {closer}"
            case "web":
                words = _punctuated(sentences).split()
                words = [self.typo(w) if self.chance(0.02) else w for w in words]
            case "phone":
                return self._spoken(opener, sentences, closer)
            case _:
                words = self._typed(sentences)
        before = [opener] if self.chance(0.35) else []
        after = [closer] if self.chance(0.35) else []
        return " ".join(before + words + after)

    def _frame(self, label: str) -> str:
        if self.chance(_AMBIGUOUS_SHARE):
            return self.choice(_shared_frames(label))
        return self.choice(grammar.FRAMES[label])

    def _typed(self, sentences: Sequence[str]) -> list[str]:
        """Typed on a phone: little punctuation, shorthand, slips, words left out."""
        text = self.choice((", ", " ", ". ", " - ")).join(sentences)
        words = (text.lower() if self.chance(0.75) else text).split()
        words = [w for w in words if len(w) > 4 or not self.chance(0.06)]
        words = [grammar.SHORTHAND.get(w, w) if self.chance(0.35) else w for w in words]
        return [self.typo(w) if self.chance(0.06) else w for w in words]

    def _spoken(self, opener: str, sentences: Sequence[str], closer: str) -> str:
        """Transcribed from a call: no punctuation, fillers, repeated words."""
        parts = [opener] * self.chance(0.6) + list(sentences) + [closer] * self.chance(0.4)
        words: list[str] = []
        for word in re.sub(r"[,.?:]", "", " ".join(parts)).lower().split():
            if self.chance(0.08):
                words.append(self.choice(grammar.FILLERS))
            words.extend([word] * (1 + self.chance(0.03)))
        return " ".join(words)

    def fill(self, frame: str) -> str:
        """Fill the slots of a frame, and the slots in what was filled in."""
        while "{" in frame:
            pieces = _pieces(frame)
            frame = "".join(p if i % 2 == 0 else self._slot(p) for i, p in enumerate(pieces))
        return frame

    def _slot(self, name: str) -> str:
        match name:
            case "order":
                return self.choice(("", "#", "no. ", "A-")) + str(self.between(10_000, 99_999))
            case "amount":
                euros = self.between(5, 320)
                cents = self.choice(("", ".50", ".90", ".99"))
                return self.choice((f"{euros}{cents} euros", f"EUR {euros}{cents}"))
            case "date":
                day = self.between(1, 28)
                return self.choice((f"{day} {{month}}", f"{{month}} {day}", "{weekday}"))
            case "time":
                return self.choice((f"{self.between(7, 12)} am", f"{self.between(1, 9)} pm"))
            case "days":
                return str(self.between(2, 19))
            case "number":
                return str(self.between(2, 240))
            case _:
                return self.choice(grammar.SLOTS[name])

    def typo(self, word: str) -> str:
        """Swap, drop or double one inner letter; short words and numbers stay."""
        if len(word) < 4 or not word.isalpha():
            return word
        i = self.between(1, len(word) - 2)
        slips = (word[:i] + word[i + 1] + word[i] + word[i + 2 :], word[:i] + word[i + 1 :])
        return self.choice((*slips, word[:i] + word[i] + word[i:]))

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return self._random() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + int(self._random() * (high - low + 1))

    def choice(self, options: Sequence[_T]) -> _T:
        """One of the options, each equally likely."""
        return options[int(self._random() * len(options))]

    def weighted(self, weights: Mapping[str, float]) -> str:
        """One of the keys, in proportion to its weight."""
        sums = list(accumulate(weights.values()))
        return list(weights)[bisect_right(sums, self._random() * sums[-1])]


@cache
def _shared_frames(label: str) -> tuple[str, ...]:
    return tuple(
        frame for labels, frames in grammar.AMBIGUOUS if label in labels for frame in frames
    )


@cache
def _pieces(frame: str) -> tuple[str, ...]:
    """Text at even positions, slot names at odd ones."""
    return tuple(re.split(r"[{}]", frame))


_QUESTIONS = re.compile(
    "(can|could|is|are|do|when|where|how|what|which|who|at what|until when)\\b", re.IGNORECASE
)


def _punctuated(sentences: Sequence[str]) -> str:
    return " ".join(s[0].upper() + s[1:] + ("?" if _QUESTIONS.match(s) else ".") for s in sentences)
