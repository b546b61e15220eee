"""Text from tokens, and the texts that end it."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedpeft.models.base_model import load_tokenizer
from fedpeft.serving.answer_text import AnswerText
from tests.serving.exports import stories_config

STORY = "Once upon a time, there was a little girl named Lily. She said: “Größe 3!”"


@pytest.fixture(scope="module")
def stories(shared_models: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(stories_config(shared_models))


@pytest.fixture(scope="module")
def by_bytes() -> PreTrainedTokenizerBase:
    """A token a byte, so that a character has up to four."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(params=["stories", "by_bytes"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = request.getfixturevalue(request.param)
    return found


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("cut", [1, 3, 9])
def test_pieces_make_the_text_after_the_prompt(
    tokenizer: PreTrainedTokenizerBase, cut: int
) -> None:
    ids = ids_of(tokenizer, STORY)
    answer = AnswerText(tokenizer, ids[:cut], [])
    pieces = [answer.add(token) for token in ids[cut:]] + [answer.end()]
    whole, before = tokenizer.decode(ids), tokenizer.decode(ids[:cut])
    assert "".join(pieces) == whole[len(before) :]
    assert not any("�" in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) > 10


def test_half_a_character_at_the_end_is_shown_as_such(by_bytes: PreTrainedTokenizerBase) -> None:
    ids = ids_of(by_bytes, "aé")
    answer = AnswerText(by_bytes, ids[:1], [])
    assert answer.add(ids[1]) == ""
    assert answer.end() == "�"


@pytest.mark.parametrize("stop", ["time", " a little", "y. S", "there was", "e", ", t"])
def test_an_answer_ends_before_a_stop_text(tokenizer: PreTrainedTokenizerBase, stop: str) -> None:
    ids = ids_of(tokenizer, STORY)
    whole = tokenizer.decode(ids)[len(tokenizer.decode(ids[:2])) :]
    answer = AnswerText(tokenizer, ids[:2], ["never said", stop])
    said = ""
    for token in ids[2:]:
        said += answer.add(token)
        assert not any(said.endswith(stop[:n]) for n in range(1, len(stop))) or answer.stopped
        if answer.stopped:
            break
    assert answer.stopped
    assert answer.end() == ""
    assert said == whole[: whole.index(stop)]


def test_what_only_looked_like_a_stop_text_is_said(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ids_of(tokenizer, STORY)
    whole = tokenizer.decode(ids)[len(tokenizer.decode(ids[:2])) :]
    answer = AnswerText(tokenizer, ids[:2], ["little boy", "3!”?"])
    said = "".join(answer.add(token) for token in ids[2:])
    assert whole.startswith(said)
    assert said != whole  # its end may yet become the second one
    assert said + answer.end() == whole
    assert not answer.stopped
