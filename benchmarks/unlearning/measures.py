"""What a version shows of TOFU's rows, as TOFU measures it. Legend: N rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from cells import Setting
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from tofu_rows import Rows, Truths
from torch import Tensor

from fedpeft.adapters.config import AdapterConfig
from fedpeft.dp.membership import auc
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.base_model import load_base_model
from fedpeft.models.dataset import Dataset, collate, physical_batches
from fedpeft.unlearning.metrics.continuations import continuations
from fedpeft.unlearning.metrics.extraction import overlap, prefix_lengths
from fedpeft.unlearning.metrics.relearning import relearning_curve
from fedpeft.unlearning.metrics.truth_ratio import model_utility, truth_ratios, truthfulness
from fedpeft.unlearning.objectives.answers import answers_of

Values = NDArray[np.float64]
NGRAM, NUM_PREFIXES = 5, 2
RELEARNING_STEPS, RELEARNING_RATE, RELEARNING_ROWS = 6, 1e-3, 20


def told(model: AdaptedModel, rows: Dataset, max_tokens: int) -> tuple[Values, Values]:
    """Returns the loss and the share of tokens predicted (MA) of each row's answer, (N,) each."""
    losses_N, accuracy_N = np.zeros(len(rows)), np.zeros(len(rows))
    with torch.inference_mode():
        for some in physical_batches(rows, range(len(rows)), max_tokens, model.device):
            batch = collate(rows, some, model.device)
            answers = answers_of(model.task_model.logits(batch, "bfloat16"), batch)
            right_K = answers.logits_KV.argmax(1) == answers.targets_K
            losses_N[some] = answers.means(answers.token_losses()).double().numpy()
            accuracy_N[some] = answers.means(right_K.float()).double().numpy()
    return losses_N, accuracy_N


def probability(model: AdaptedModel, rows: Dataset, max_tokens: int) -> float:
    """Returns the mean of exp(-loss)."""
    return float(np.exp(-told(model, rows, max_tokens)[0]).mean())


def of_base(setting: Setting, rows: Rows) -> tuple[Values, Values]:
    """Losses without an adapter, of rows to be forgotten and of held-out rows; see membership."""
    model, most = setting.adapted(None), setting.model.max_tokens_per_batch
    return tuple(told(model, some, most)[0] for some in (rows.truths["forget"].rows, rows.held_out))


def measure(
    setting: Setting,
    rows: Rows,
    adapter: AdapterConfig,
    tensors: Mapping[str, Tensor],
    never: tuple[Values, Values],
) -> dict:
    """Everything of one version; truth ratios of rows to be forgotten are listed for the test.

    TOFU's utility has two more parts, ROUGE-L on real authors and on facts of the world. Fine-tuned
    on so few rows, a model of 135M answers these questions in TOFU's manner and right almost never,
    so that the harmonic mean of nine is zero before anything is forgotten.

    Args:
        setting: Of the base model.
        rows: Of the split.
        adapter: Of the version.
        tensors: Of the version.
        never: See `of_base`.
    """
    most = setting.model.max_tokens_per_batch
    model = AdaptedModel(setting.base(), setting.model, adapter, num_classes=0, seed=0)
    model.load(tensors)
    forget, check = rows.truths["forget"].rows, rows.check
    losses_N, accuracy_N = told(model, forget, most)
    kept_N, _ = told(model, check, most)
    members_N = never[0] - losses_N
    others_N = never[1] - told(model, rows.held_out, most)[0]
    area = auc(members_N, others_N, 0.95)
    ratios, shares = {}, {}
    for kind, truths in rows.truths.items():
        ratios[kind], shares[kind] = _truth(model, truths, most)
    said = _said(setting, adapter, tensors, rows)
    parts = {
        "probability on rows that stay": float(np.exp(-kept_N).mean()),
        **{f"probability on {kind}": shares[kind] for kind in ("real_authors", "world_facts")},
        **{
            f"truth on {kind}": truthfulness(ratios[kind])
            for kind in ("check", "real_authors", "world_facts")
        },
        "ROUGE-L recall on check": said["rouge"]["check"],
    }
    learned = relearning_curve(
        model,
        rows.few,
        num_steps=RELEARNING_STEPS,
        learning_rate=RELEARNING_RATE,
        batch_size=RELEARNING_ROWS,
        max_tokens=most,
        seed=0,
    )
    return {
        "forget_loss": float(losses_N.mean()),
        "forget_probability": float(np.exp(-losses_N).mean()),
        "memorization_accuracy": float(accuracy_N.mean()),
        "extraction": said["extraction"],
        "forget_rouge": said["rouge"]["forget"],
        "membership": {"auc": area.value, "low": area.low, "high": area.high},
        "truth_ratios": [round(float(ratio), 5) for ratio in ratios["forget"]],
        "utility": model_utility(list(parts.values())),
        "parts": parts,
        "relearning": learned,
    }


def _truth(model: AdaptedModel, truths: Truths, most: int) -> tuple[Values, float]:
    """Truth ratios, and the right answer's share of the probability of all that the row has.

    The share is what TOFU calls probability on real authors and facts of the world, whose right
    answer has no paraphrase: there it is the row's own.
    """
    right_N = told(model, truths.others.paraphrased, most)[0]
    wrong = told(model, truths.others.wrong, most)[0]
    wrong_NW = np.split(wrong, np.cumsum(truths.others.num_wrong)[:-1])
    other_N = np.array([np.exp(-of_row).sum() for of_row in wrong_NW])
    share_N = np.exp(-right_N) / (np.exp(-right_N) + other_N)
    return truth_ratios(right_N, wrong_NW), float(share_N.mean())


def _said(
    setting: Setting,
    adapter: AdapterConfig,
    tensors: Mapping[str, Tensor],
    rows: Rows,
) -> dict:
    """Greedy answers, of the whole model with its adapter merged and its weights in bfloat16."""
    model = AdaptedModel(
        load_base_model(setting.model), setting.model, adapter, num_classes=0, seed=0
    )
    model.load(tensors)
    model.method.merge(model.task_model)
    model.task_model.to(torch.bfloat16)
    tokenizer = setting.tokenizer

    def after(texts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[list[int]]:
        return continuations(
            model.task_model.base,
            [text[:at] for text, at in zip(texts, lengths, strict=True)],
            [len(text) - at for text, at in zip(texts, lengths, strict=True)],
            pad_id=rows.few.pad_id,
            end_ids=[tokenizer.eos_token_id],
        )

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    asked = {"forget": rows.few, "check": rows.truths["check"].rows}
    rouge = {}
    for kind, some in asked.items():
        answers = after(some.input_ids, some.targets)
        pairs = [
            [tokenizer.decode(ids, skip_special_tokens=True) for ids in (text[first:], answer)]
            for text, first, answer in zip(some.input_ids, some.targets, answers, strict=True)
        ]
        rouge[kind] = float(np.mean([scorer.score(*pair)["rougeL"].recall for pair in pairs]))
    by_prefix = [
        (text, lengths[int(i)])
        for text, first in zip(rows.few.input_ids, rows.few.targets, strict=True)
        for lengths in [prefix_lengths(text, first, NGRAM)]
        if len(lengths)
        for i in np.linspace(0, len(lengths) - 1, NUM_PREFIXES).round()
    ]
    continued = after([text for text, _ in by_prefix], [at for _, at in by_prefix])
    overlaps = [
        overlap(said, text[at:], NGRAM)
        for (text, at), said in zip(by_prefix, continued, strict=True)
    ]
    return {"rouge": rouge, "extraction": float(np.mean(overlaps))}
