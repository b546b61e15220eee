import hashlib
import math
import re
from collections import Counter, defaultdict
from functools import cache
from typing import Literal

import pytest

from fedpeft.models import messages_grammar as grammar
from fedpeft.models.synthetic import NUM_ROWS, generate
from fedpeft.models.table import Table

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
DIGESTS = {
    "train": "335de22dbaa098cf9f9ecd895ca98a8c7896461525e86a52585805953d60ad34",
    "test": "946d8ed9ced9a74ef45c99f8d6031c14d885a2425b816c56cac2c6dfec9afe8e",
}

cached = cache(generate)


def keys(table: Table) -> list[str]:
    return [re.sub(r"[\W_]", "", text.casefold()) for text in table.column("text")]


@pytest.mark.parametrize("split", SPLITS)
def test_golden_digest(split: Split) -> None:
    """Whoever changes the data set on purpose changes these digests, and says so."""
    columns = cached(split).columns
    rows = zip(columns["text"], columns["label"], columns["channel"], strict=True)
    content = "\n".join(map("\t".join, rows))
    assert hashlib.sha256(content.encode()).hexdigest() == DIGESTS[split]


@pytest.mark.parametrize("split", SPLITS)
def test_shape(split: Split) -> None:
    table = cached(split)
    assert table.num_rows == NUM_ROWS[split] == {"train": 12_000, "test": 2_000}[split]
    assert list(table.columns) == ["text", "label", "channel"]
    assert set(table.column("label")) == set(grammar.INTENTS)
    assert set(table.column("channel")) == set(grammar.CHANNELS)
    for text in table.column("text"):
        assert text.isascii()
        assert text == " ".join(text.split()) != ""
        assert not set(text) & set("{}\t\n")


def test_no_text_twice_even_without_case_and_punctuation() -> None:
    train, test = keys(cached("train")), keys(cached("test"))
    assert len(set(train)) == len(train)
    assert len(set(test)) == len(test)
    assert not set(train) & set(test)


def test_splits_of_different_seeds_are_disjoint_and_differ() -> None:
    other = generate("test", seed=1)
    assert not set(keys(cached("train"))) & set(keys(other))
    assert len(set(keys(cached("test"))) & set(keys(other))) < 200


def test_generating_again_gives_the_same() -> None:
    assert generate("test") == cached("test")


def test_intents_follow_their_weights() -> None:
    counts = Counter(cached("train").column("label"))
    total = sum(grammar.INTENTS.values())
    for intent, weight in grammar.INTENTS.items():
        # Rejecting duplicates takes a little from the intents with few combinations.
        assert counts[intent] / 12_000 == pytest.approx(weight / total, rel=0.15)


def test_channels_differ_in_style_and_lean_to_intents() -> None:
    table = cached("train")
    texts: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for text, label, channel in zip(*table.columns.values(), strict=True):
        texts[channel].append(text)
        labels[channel][label] += 1
    assert set(labels) == {"app", "mail", "phone", "web"}
    assert all(text == text.lower() for text in texts["phone"])
    assert all(text[0].isupper() for text in texts["mail"])
    lower = sum(text == text.lower() for text in texts["app"]) / len(texts["app"])
    assert 0.4 < lower < 0.9
    mail_words, app_words = (
        sum(len(text.split()) for text in texts[c]) / len(texts[c]) for c in ("mail", "app")
    )
    assert mail_words > app_words + 3
    share = {c: labels[c]["opening_hours"] / labels[c].total() for c in labels}
    assert share["phone"] > 1.8 * share["web"]


def test_every_slot_of_the_grammar_exists() -> None:
    computed = {"order", "amount", "date", "time", "days", "number"}
    frames = [f for fs in grammar.FRAMES.values() for f in fs]
    frames += [f for _, fs in grammar.AMBIGUOUS for f in fs]
    frames += [
        f for group in (grammar.OPENERS, grammar.CLOSERS) for fs in group.values() for f in fs
    ]
    frames += [*grammar.CONTEXT, *(value for values in grammar.SLOTS.values() for value in values)]
    used = {slot for frame in frames for slot in re.findall(r"{(\w+)}", frame)}
    assert used <= computed | set(grammar.SLOTS)
    assert set(grammar.FRAMES) == set(grammar.INTENTS)
    shared = {intent for intents, _ in grammar.AMBIGUOUS for intent in intents}
    assert shared == set(grammar.INTENTS)  # every intent needs one: frames are drawn by intent


def accuracy(train: Table, test: Table) -> float:
    """Multinomial naive Bayes on words."""
    words: dict[str, Counter[str]] = defaultdict(Counter)
    for text, label in zip(train.column("text"), train.column("label"), strict=True):
        words[label].update(set(re.findall(r"\w+", text.lower())))
    priors = Counter(train.column("label"))
    num_words = len({word for counts in words.values() for word in counts})
    scale = {label: counts.total() + 0.3 * num_words for label, counts in words.items()}
    hits = 0
    for text, label in zip(test.column("text"), test.column("label"), strict=True):
        found = set(re.findall(r"\w+", text.lower()))
        scores = {
            name: math.log(priors[name])
            + sum(math.log((counts[w] + 0.3) / scale[name]) for w in found)
            for name, counts in words.items()
        }
        hits += max(scores, key=scores.__getitem__) == label
    return hits / test.num_rows


def test_neither_trivial_nor_hopeless() -> None:
    train, test = cached("train"), cached("test").take(range(1000))
    assert 0.5 < accuracy(train.take(range(300)), test) < 0.87
    assert 0.88 < accuracy(train, test) < 0.97
