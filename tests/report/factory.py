"""Realistic reports without training anything."""

import math
import random
from collections.abc import Sequence
from typing import Any, Literal

from fedpeft.report.schema import (
    AdapterReport,
    ClientReport,
    EvaluationReport,
    PrivacyReport,
    ReloadReport,
    Report,
    RoundReport,
    SecondsReport,
)

MODULES = [f"encoder.layer.{i}.attention.self.{m}" for i in range(6) for m in ("query", "value")]


def make_report(
    *,
    task: Literal["classification", "causal_lm"] = "classification",
    private: bool = True,
    insecure: bool = False,
    num_clients: int = 8,
    num_rounds: int = 20,
    labels: Sequence[str] = ("billing", "shipping", "returns", "other"),
    client_ids: Sequence[str] | None = None,
    cohort_size: int | None = None,
    evaluate_every: int = 1,
    target_epsilon: float = 6.0,
    **fields: Any,
) -> Report:
    """A run as `fedpeft simulate` would report it; `fields` replace those of the report."""
    rng = random.Random(7)
    ids = list(client_ids or (f"client-{i:02d}" for i in range(num_clients)))
    counts = {c: _label_counts(rng, labels) if task == "classification" else {} for c in ids}
    rows = {c: sum(counts[c].values()) or rng.randint(120, 900) for c in ids}
    steps = {c: rng.randint(8, 14) for c in ids}
    cohorts = [
        sorted(rng.sample(ids, cohort_size)) if cohort_size else list(ids)
        for _ in range(num_rounds)
    ]
    metrics = [_metrics(task, k / num_rounds, len(labels)) for k in range(num_rounds + 1)]
    spent = dict.fromkeys(ids, 0.0)
    rounds = []
    for number, cohort in enumerate(cohorts, start=1):
        for c in cohort:
            share = sum(c in done for done in cohorts[:number]) / sum(c in d for d in cohorts)
            spent[c] = (target_epsilon - 0.004 - 0.8 * (rows[c] % 7) / 7) * math.sqrt(share)
        rounds.append(
            RoundReport(
                round=number,
                cohort=cohort,
                seconds=3.1 + rng.random(),
                uplink_bytes=147_456 * len(cohort),
                downlink_bytes=294_912 * len(cohort),
                update_norms={c: 0.4 + 0.3 * rng.random() + 0.6 / number for c in cohort},
                epsilon={c: e for c, e in spent.items() if e > 0} if private else {},
                diagnostics={
                    "aggregation_error": 0.02 + 0.2 / number + 0.01 * rng.random(),
                    "singular_value_share": 0.9 - 0.1 / number,
                },
                metrics=metrics[number] if number % evaluate_every == 0 else None,
            )
        )
    clients = [
        ClientReport(
            client_id=c,
            num_examples=rows[c],
            weight=rows[c] / sum(rows.values()),
            label_counts=counts[c],
            sampling_prob=min(1.0, 32 / rows[c]),
            noise_multiplier=0.7 + 0.1 * rng.random() if private else None,
            planned_steps=steps[c] * sum(c in cohort for cohort in cohorts),
            charged_steps=steps[c] * sum(c in cohort for cohort in cohorts),
            epsilon=spent[c] if private else None,
            budget_epsilon=target_epsilon if private else None,
            num_nonfinite_examples=0,
        )
        for c in ids
    ]
    report = Report(
        name="support-tickets",
        created_at="2026-03-02T09:41:00Z",
        config={
            "name": "support-tickets",
            "model": {"base": "all-minilm-l6-v2", "task": task, "revision": None},
            "data": {"partition": "dirichlet", "dirichlet_alpha": 0.3, "client_files": []},
            "dp": {"enabled": private, "target_epsilon": target_epsilon, "delta": 1e-5},
        },
        seeds={"partition": 1, "initialization": 2},
        versions={"fedpeft": "0.1.0", "torch": "2.11.0", "peft": "0.19.1", "python": "3.11.9"},
        hardware={"cpu": "AMD EPYC 7B13, 2 cores", "memory": "8 GiB", "accelerator": "none"},
        privacy=PrivacyReport(
            enabled=private,
            insecure_seeded_noise=insecure,
            target_epsilon=target_epsilon if private else None,
            delta=1e-5 if private else None,
            l2_clip_norm=0.5 if private else None,
        ),
        clients=clients,
        rounds=rounds,
        evaluation=EvaluationReport(
            num_examples=1200,
            metrics=metrics[-1],
            initial_metrics=metrics[0],
            majority_accuracy=0.31 if task == "classification" else None,
        ),
        adapter=AdapterReport(
            method="ffa_lora",
            aggregator="fedavg",
            rank=8,
            alpha=16.0,
            digest="9f2c41d07be85a63" * 4,
            base_model="all-minilm-l6-v2",
            base_digest="03ab77e1c25d9f84" * 4,
            num_trainable_parameters=36_864,
            adapted_modules=MODULES,
            delta_norm=1.8342,
            path="adapter",
        ),
        reload=ReloadReport(metrics=metrics[-1], max_abs_difference=2.4e-7, peft_version="0.19.1"),
        seconds=SecondsReport(total=133.4, calibration=4.2, training=98.7, evaluation=21.5),
        uplink_bytes=sum(r.uplink_bytes for r in rounds),
        downlink_bytes=sum(r.downlink_bytes for r in rounds),
        notes=["Training ran on the CPU in float32."],
    )
    return report.model_copy(update=fields)


def _label_counts(rng: random.Random, labels: Sequence[str]) -> dict[str, int]:
    shares = [rng.gammavariate(0.4, 1.0) for _ in labels]
    drawn = rng.choices(labels, weights=shares, k=rng.randint(120, 900))
    return {label: drawn.count(label) for label in sorted(set(drawn))}


def _metrics(task: str, done: float, num_labels: int) -> dict[str, float]:
    gain = 1 - math.exp(-3 * done)
    if task == "causal_lm":
        loss = 4.1 - 1.6 * gain
        return {
            "loss": loss,
            "perplexity": math.exp(loss),
            "token_accuracy": 0.22 + 0.2 * gain,
        }
    start = 1 / max(num_labels, 1)
    return {
        "loss": math.log(max(num_labels, 2)) * (1 - 0.55 * gain),
        "accuracy": start + 0.56 * gain * (1 - start),
    }
