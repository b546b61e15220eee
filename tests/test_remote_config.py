"""What a configuration of a run with remote clients must and must not say."""

from typing import Any

import pytest

from fedpeft.config import RunConfig, validate_config
from fedpeft.errors import ConfigError

REMOTE: dict[str, dict[str, Any]] = {
    "model": {"name": "package:model", "task": "classification"},
    "data": {"test": "held_out.jsonl"},
    "adapter": {"target_modules": ["query"]},
    "federation": {"clients": "remote", "expected_batch_size": 5},
}


def config(**sections: dict[str, Any]) -> RunConfig:
    content = {name: REMOTE.get(name, {}) | sections.get(name, {}) for name in REMOTE | sections}
    return validate_config(content, "the run")


def test_the_least_that_a_remote_run_says() -> None:
    assert config().federation.clients == "remote"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"train": "rows.jsonl"}}, "leave out data.train"),
        ({"data": {"partition": "iid"}}, "leave out data.partition"),
        ({"data": {"client_files": ["a.jsonl"]}}, "client_files goes with"),
        ({"data": {"test": None, "test_fraction": 0.2}}, "name held-out rows"),
        ({"privacy": {"mechanism": "client-level"}}, "client-level privacy is for simulated"),
        ({"privacy": {"insecure_seeded_noise": True}}, "draw their own noise"),
        ({"privacy": {"ledger": "budgets.db"}}, "ledgers of their own"),
        ({"federation": {"aggregator": "fedavg"}}, "B alone"),
        ({"federation": {"clients_per_round": 2, "quorum": 3}}, "quorum"),
        ({"federation": {"over_selection": 1}}, "needs clients_per_round"),
        ({"federation": {"round_deadline_s": float("nan")}}, "round_deadline_s"),
        ({"federation": {"round_deadline_s": 0}}, "round_deadline_s"),
        ({"federation": {"clients": "somewhere"}}, "federation.clients"),
    ],
)
def test_what_does_not_fit_is_refused(sections: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**sections)


def test_simulated_clients_still_need_rows() -> None:
    with pytest.raises(ConfigError, match=r"needs data\.train"):
        config(federation={"clients": "simulated", "num_clients": 3})
