import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedpeft.errors import DataError
from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import (
    Dataset,
    collate,
    encode_causal_lm,
    encode_classification,
    physical_batches,
)
from fedpeft.models.label_space import LabelSpace
from fedpeft.models.table import Table
from tests.tiny_models import VOCABULARY, random_dataset, tokenizer

CPU = torch.device("cpu")
PAD, UNK, CLS, SEP, BOS, EOS = range(6)
TEXT = DataConfig(train="train.jsonl", test="test.jsonl")
ANSWERS = DataConfig(
    train="train.jsonl", test="test.jsonl", question_column="question", answer_column="answer"
)


def words(text: str) -> list[int]:
    return [VOCABULARY.index(word) for word in text.split()]


def of_lengths(lengths: list[int]) -> Dataset:
    return Dataset(input_ids=[[9] * n for n in lengths], targets=lengths, pad_id=0)


# --- physical batches


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    max_tokens=st.integers(1, 200),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_every_row_is_in_one_batch_and_no_batch_is_too_large(
    lengths: list[int], max_tokens: int, data: st.DataObject
) -> None:
    dataset = of_lengths(lengths)
    rows = data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True))
    batches = list(physical_batches(dataset, rows, max_tokens, CPU))
    assert sorted(row for batch in batches for row in batch) == sorted(rows)
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) * longest <= max_tokens or len(batch) == 1
        assert collate(dataset, batch, CPU).input_ids_NT.shape == (len(batch), longest)
    # Sorted by length: no row of a batch is longer than one of the next.
    for one, two in itertools.pairwise(batches):
        assert max(lengths[row] for row in one) <= min(lengths[row] for row in two)


def test_batches_are_filled() -> None:
    def sizes(max_tokens: int) -> list[int]:
        batches = physical_batches(of_lengths([4] * 10), range(10), max_tokens, CPU)
        return sorted(map(len, batches))

    assert sizes(16) == [2, 4, 4]
    assert sizes(15) == [1, 3, 3, 3]
    assert list(physical_batches(of_lengths([4]), [], 16, CPU)) == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_no_other_cut_costs_less(device: str, lengths: list[int]) -> None:
    overhead, max_tokens = {"cpu": 24, "cuda": 2048}[device], 200
    dataset, ordered = of_lengths(lengths), sorted(lengths)

    def cost(batches: list[list[int]]) -> float:
        tokens = [len(batch) * max(batch) for batch in batches]
        fits = all(t <= max_tokens or len(b) == 1 for t, b in zip(tokens, batches, strict=True))
        return sum(tokens) + overhead * len(batches) if fits else math.inf

    every_cut = [
        [ordered[a:b] for a, b in itertools.pairwise([0, *cuts, len(ordered)])]
        for size in range(len(ordered))
        for cuts in itertools.combinations(range(1, len(ordered)), size)
    ]
    rows = physical_batches(dataset, range(len(dataset)), max_tokens, torch.device(device))
    found = [[lengths[row] for row in batch] for batch in rows]
    assert cost(found) == min(map(cost, every_cut))


def test_the_order_of_the_rows_does_not_matter() -> None:
    dataset = of_lengths([3, 1, 3, 2, 3])
    expected = list(physical_batches(dataset, range(5), 6, CPU))
    assert list(physical_batches(dataset, [4, 2, 0, 3, 1], 6, CPU)) == expected


# --- collate


def test_collate_pads_on_the_right_and_masks() -> None:
    dataset = Dataset(input_ids=[[7, 8, 9], [6], [5, 4]], targets=[1, 0, 1], pad_id=3)
    batch = collate(dataset, [0, 2, 1], CPU)
    assert batch.input_ids_NT.tolist() == [[7, 8, 9], [5, 4, 3], [6, 3, 3]]
    assert batch.attention_mask_NT.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert batch.targets_N.tolist() == [1, 1, 0]
    assert batch.num_rows == 3
    assert {t.dtype for t in vars(batch).values()} == {torch.int64}


def test_a_padding_token_in_the_text_is_text() -> None:
    batch = collate(Dataset(input_ids=[[7, 3], [3]], targets=[0, 0], pad_id=3), [0, 1], CPU)
    assert batch.attention_mask_NT.tolist() == [[1, 1], [1, 0]]


def test_take_keeps_rows_together() -> None:
    dataset = random_dataset(6, seed=0)
    taken = dataset.take(iter([4, 0]))
    assert taken.input_ids == [dataset.input_ids[4], dataset.input_ids[0]]
    assert taken.targets == [dataset.targets[4], dataset.targets[0]]
    assert len(taken) == 2
    assert taken.pad_id == dataset.pad_id


def test_labels_begin_after_what_carries_no_loss_and_end_before_padding() -> None:
    dataset = Dataset(input_ids=[[5, 6, 7, 8], [5, 6]], targets=[2, 1], pad_id=6)
    labels = collate(dataset, [0, 1], CPU).labels_NT()
    assert labels.tolist() == [[-100, -100, 7, 8], [-100, 6, -100, -100]]


# --- classification


def encode(texts: list[str], max_length: int = 32, *, specials: bool = True) -> Dataset:
    table = Table("train.jsonl", {"text": texts, "label": ["cold", "warm"] * (len(texts) // 2)})
    labels = LabelSpace(("cold", "warm"))
    made = tokenizer(classifier=True, specials=specials)
    return encode_classification(table, TEXT, labels, made, max_length)


def test_classification_rows() -> None:
    dataset = encode(["red sky", "zebra"])
    assert dataset.input_ids == [[CLS, *words("red sky"), SEP], [CLS, UNK, SEP]]
    assert dataset.targets == [0, 1]
    assert dataset.pad_id == PAD


def test_classification_rows_are_cut_with_their_special_tokens() -> None:
    dataset = encode(["red sky sea hill tree", "ice"], max_length=4)
    assert dataset.input_ids == [[CLS, *words("red sky"), SEP], [CLS, *words("ice"), SEP]]


def test_rows_are_not_padded_whatever_the_tokenizer_was_saved_with() -> None:
    dataset = encode(["red", "red sky sea"])
    padding = tokenizer(classifier=True)
    padding.backend_tokenizer.enable_padding(length=12, pad_token="[PAD]", pad_id=PAD)
    padding.backend_tokenizer.enable_truncation(max_length=2)
    table = Table("t", {"text": ["red", "red sky sea"], "label": ["cold", "warm"]})
    labels = LabelSpace(("cold", "warm"))
    assert encode_classification(table, TEXT, labels, padding, 32) == dataset


@pytest.mark.parametrize("text", ["", "  \n "])
def test_blank_text_is_one_token_and_no_empty_row(text: str) -> None:
    """A row without tokens has no mean to pool: its loss would be NaN."""
    assert encode([text, "red"], specials=False).input_ids == [[PAD], words("red")]
    assert encode([text, "red"]).input_ids[0] == [CLS, SEP]


def test_unknown_labels_and_missing_columns_are_refused() -> None:
    made = tokenizer(classifier=True)
    for columns in ({"text": ["red"], "label": ["hot"]}, {"text": ["red"]}, {"label": ["cold"]}):
        with pytest.raises(DataError):
            encode_classification(Table("t", columns), TEXT, LabelSpace(("cold", "warm")), made, 32)


# --- causal LM


def encode_answers(
    question: str, answer: str, max_length: int = 32, *, specials: bool = True
) -> tuple[list[int], list[int]]:
    """Returns the tokens of one row, and of those the ones that carry loss."""
    table = Table("train.jsonl", {"question": [question], "answer": [answer]})
    made = tokenizer(classifier=False, specials=specials)
    dataset = encode_causal_lm(table, ANSWERS, made, max_length)
    labels = collate(dataset, [0], CPU).labels_NT()[0].tolist()
    ids = list(dataset.input_ids[0])
    assert [i for i, label in zip(ids, labels, strict=True) if label >= 0] == [
        label for label in labels if label >= 0
    ]
    return ids, [label for label in labels if label >= 0]


def test_only_the_answer_carries_loss() -> None:
    ids, counted = encode_answers("which is red ?", "the sun")
    prompt = words("Question : which is red ? Answer :")
    assert ids == [BOS, *prompt, *words("the sun"), EOS]
    assert counted == [*words("the sun"), EOS]


def test_without_special_tokens_only_the_answer_carries_loss_either() -> None:
    ids, counted = encode_answers("which is red ?", "the sun", specials=False)
    assert ids == words("Question : which is red ? Answer : the sun")
    assert counted == words("the sun")


def test_a_long_row_keeps_the_end_of_the_prompt_and_the_beginning_of_the_answer() -> None:
    prompt = words("Question : which is red ? Answer :")
    answer = words("the sun is red and the sky is blue")
    text = ("which is red ?", "the sun is red and the sky is blue")
    for length in range(2, 22):
        ids, counted = encode_answers(*text, max_length=length)
        kept = [*answer, EOS][: length - 1]
        room = length - 1 - len(kept)
        assert ids == [BOS, *prompt[max(0, len(prompt) - room) :], *kept]
        assert counted == kept
        assert len(ids) == min(length, 19)


def test_a_prompt_that_has_no_room_at_all() -> None:
    ids, counted = encode_answers("which is red ?", "the sun is red", 3, specials=False)
    assert ids == words("the sun is")
    assert counted == words("sun is"), "nothing predicts the first token"


def test_plain_text_carries_loss_on_all_but_the_first_token() -> None:
    table = Table("train.jsonl", {"text": ["red sky", "the sea is blue and grey"]})
    dataset = encode_causal_lm(table, TEXT, tokenizer(classifier=False), 6)
    assert dataset.input_ids == [
        [BOS, *words("red sky"), EOS],
        [BOS, *words("the sea is blue and")],
    ]
    assert dataset.targets == [1, 1]
    bare = encode_causal_lm(table, TEXT, tokenizer(classifier=False, specials=False), 6)
    assert bare.input_ids[0] == words("red sky")
    assert bare.targets == [1, 1]


@pytest.mark.parametrize("text", ["", "   "])
def test_blank_text_is_no_empty_row(text: str) -> None:
    table = Table("train.jsonl", {"text": [text]})
    bare = encode_causal_lm(table, TEXT, tokenizer(classifier=False, specials=False), 6)
    assert bare.input_ids == [[PAD]]
    assert collate(bare, [0], CPU).labels_NT().tolist() == [[-100]]
    dataset = encode_causal_lm(table, TEXT, tokenizer(classifier=False), 6)
    assert dataset.input_ids == [[BOS, EOS]]


def test_without_a_padding_token_the_end_token_pads() -> None:
    made = tokenizer(classifier=False)
    made.pad_token = None
    table = Table("t", {"text": ["red"]})
    assert encode_causal_lm(table, TEXT, made, 6).pad_id == EOS
    bare = PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer)
    assert encode_causal_lm(table, TEXT, bare, 6).pad_id == 0


def test_missing_columns_are_refused() -> None:
    for config in (TEXT, ANSWERS):
        with pytest.raises(DataError):
            encode_causal_lm(Table("t", {"other": ["red"]}), config, tokenizer(classifier=False), 6)


def test_answers_of_a_byte_level_model(shared_models: Path) -> None:
    """A published tokenizer: what carries loss decodes to the answer."""
    made = AutoTokenizer.from_pretrained(str(shared_models / "stories260k"))
    table = Table("t", {"question": ["Who found the red ball?"], "answer": ["Tom and Lily."]})
    dataset = encode_causal_lm(table, ANSWERS, made, 64)
    ids, first = list(dataset.input_ids[0]), dataset.targets[0]
    assert ids[0] == made.bos_token_id
    assert ids[-1] == made.eos_token_id
    assert made.decode(ids[first:-1]).strip() == "Tom and Lily."
    prompt = made.decode(ids[1:first])
    assert prompt.strip() == "Question: Who found the red ball?\nAnswer:"
