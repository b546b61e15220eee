"""Terms of a run that tests talk about."""

from typing import Any

from fedpeft.federated.terms import RunTerms

BASE = "b" * 64


def terms(*, run_id: str = "0123456789abcdef", **sections: dict[str, Any]) -> RunTerms:
    return RunTerms.model_validate(
        {
            "run_id": run_id,
            "name": "a run",
            "model": {"name": "package:model", "task": "classification"}
            | sections.get("model", {}),
            "adapter": {"rank": 4, "target_modules": ["query"]} | sections.get("adapter", {}),
            "federation": {"clients": "remote", "num_rounds": 2, "expected_batch_size": 5}
            | sections.get("federation", {}),
            "privacy": {"target_epsilon": 4.0, "delta": 0.02} | sections.get("privacy", {}),
            "columns": {"text": "text", "label": "label", "question": None, "answer": None},
            "labels": ["cold", "warm"],
            "base_digest": BASE,
        }
    )
