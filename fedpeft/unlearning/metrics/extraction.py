"""How much of a text a model gives away.

Jang et al., "Knowledge Unlearning for Mitigating Privacy Risks in Language Models", 2022. Legend: T
tokens of a text.
"""

from collections.abc import Sequence

from fedpeft.errors import DataError

Tokens = Sequence[int]


def overlap(continuation: Tokens, rest: Tokens, n: int) -> float:
    """Returns the part of a continuation's n-grams that are n-grams of the rest, 0 to 1."""
    found = ngrams(continuation, n)
    known = set(ngrams(rest, n))
    return sum(gram in known for gram in found) / len(found) if found else 0.0


def extraction_likelihood(text: Tokens, continuations: Sequence[Tokens], n: int) -> float:
    """Returns EL_n: the mean overlap of what a model says after each prefix with what comes there.

    Args:
        text: T tokens.
        continuations: What the model says greedily after the prefixes of `prefix_lengths`.
        n: Length of an n-gram.

    Raises:
        DataError: If there is no continuation, or more than there are tokens.
    """
    lengths = range(len(text) - n - len(continuations) + 1, len(text) - n + 1)
    if not continuations or lengths.start < 1:
        raise DataError(f"{len(continuations)} continuations do not fit {len(text)} tokens")
    return sum(
        overlap(said, text[t:], n) for t, said in zip(lengths, continuations, strict=True)
    ) / len(continuations)


def prefix_lengths(text: Tokens, first: int, n: int) -> range:
    """Returns the prefixes after which at least n tokens come: from `first` tokens, 1 or more."""
    return range(max(first, 1), len(text) - n + 1)


def memorization_accuracy(text: Tokens, greedy: Tokens) -> float:
    """Returns MA: the part of a text's tokens that a model predicts from those before.

    Args:
        text: T tokens.
        greedy: The most probable token after each prefix of 1 to T - 1 tokens.
    """
    if len(greedy) != len(text) - 1 or not greedy:
        raise DataError(f"expected {max(len(text) - 1, 1)} predictions, got {len(greedy)}")
    return sum(a == b for a, b in zip(greedy, text[1:], strict=True)) / len(greedy)


def ngrams(tokens: Tokens, n: int) -> list[tuple[int, ...]]:
    """Returns all runs of n tokens, in order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
