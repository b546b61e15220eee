"""Canary rows, the attacks on a run, and membership inference: on tiny models, whole runs."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedpeft.config import RunConfig
from fedpeft.dp import mechanism
from fedpeft.dp.auditing import fair_coins
from fedpeft.dp.clipping import ClippedSum
from fedpeft.dp.grad_sample import per_example_grads
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import ConfigError, DataError
from fedpeft.federated.audit_adapter import audit_adapter
from fedpeft.federated.audit_canaries import draw_canaries
from fedpeft.federated.audit_membership import ALL_CLIENTS
from fedpeft.federated.audit_run import RunAudit, audit_run
from fedpeft.federated.audit_updates import UpdateAttack
from fedpeft.federated.run_folder import RunFolder
from fedpeft.models.dataset import Dataset, collate
from tests.dp.models import bert, llama, rows_of_tokens
from tests.federated.small_runs import OFF, SmallRun, run_config
from tests.tiny_models import SPECIAL, VOCABULARY

LLAMA = {"rank": 8, "target_modules": ("q_proj", "v_proj", "up_proj", "down_proj")}
STRICT = {"target_epsilon": 0.5, "delta": 1e-3, "insecure_seeded_noise": True}


class Stages:
    """A progress that keeps how far each stage came."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def stage_started(self, name: str, total: int) -> None:
        self.name = name
        self.totals[name], self.done[name] = total, 0

    def stage_advanced(self, count: int) -> None:
        self.done[self.name] += count


def tiny_config(
    model: Path, scratch: Path, privacy: Mapping[str, object] = STRICT, **federation: object
) -> RunConfig:
    rounds = {"num_clients": 2, "local_steps": 5, "sampling_prob": 0.5}
    return run_config(
        model,
        scratch,
        privacy=privacy,
        task="causal-lm",
        adapter=LLAMA,
        num_rows=40,
        **{**rounds, **federation},
    )


def audit(config: RunConfig, *, stages: Stages | None = None, **options: Any) -> RunAudit:
    return audit_run(
        config.model,
        config.data,
        config.adapter,
        config.federation,
        config.privacy,
        stages or Stages(),
        **{"num_canaries": 60, **options},
    )


def no_noise(total: ClippedSum, noise_multiplier: float, keystream: Keystream) -> dict[str, Tensor]:
    return {name: units * total.grid.step for name, units in total.units.items()}


# --- Canary rows.


@pytest.mark.parametrize("build", [bert, llama])
def test_canary_that_is_out_has_no_gradient_and_one_that_is_in_has(build: Any):
    model = build()
    num_classes = 3 if build is bert else 0
    held_out = rows_of_tokens([5, 9, 12, 7])
    included = np.array([True, False, True, False, False, True])
    canaries = draw_canaries(
        held_out, included, vocabulary=range(2, 40), special=[], num_classes=num_classes, seed=0
    )
    data = canaries.inserted_into(rows_of_tokens([4, 6], seed=1))
    batch = collate(data, range(len(data)), model.device)
    grads = per_example_grads(model.task_model, len(data), lambda: model.task_model.losses(batch))
    squares_N = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0)
    assert (squares_N > 0).tolist() == [True, True, *included.tolist()]


def test_canaries_are_random_where_rows_have_words():
    pad, cls, sep = 0, SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")
    held_out = Dataset(
        input_ids=[[cls, 10, 11, 12, 13, 14, sep], [cls, 15, 16, sep], [cls, sep]],
        targets=[0, 1, 0],
        pad_id=pad,
    )
    coins = fair_coins(200, Keystream.insecure_from_seed(0))
    ordinary = range(len(SPECIAL), len(VOCABULARY))
    canaries = draw_canaries(
        held_out,
        coins,
        vocabulary=range(len(VOCABULARY)),
        special=range(len(SPECIAL)),
        num_classes=4,
        seed=0,
    )
    # One of the two rows that have words: the longer one.
    assert {len(ids) for ids in canaries.rows.input_ids} == {7}
    assert {(ids[0], ids[-1]) for ids in canaries.rows.input_ids} == {(cls, sep)}
    words = [token for ids in canaries.rows.input_ids for token in ids[1:-1]]
    assert set(words) == set(ordinary)
    assert set(canaries.rows.targets) == {0, 1, 2, 3}
    assert len({tuple(ids) for ids in canaries.rows.input_ids}) == 200


def test_data_set_is_copied_and_keeps_its_rows():
    rows = rows_of_tokens([4, 6, 3])
    before = ([list(ids) for ids in rows.input_ids], list(rows.targets))
    coins = fair_coins(10, Keystream.insecure_from_seed(0))
    canaries = draw_canaries(rows, coins, vocabulary=range(40), special=[0], num_classes=2, seed=0)
    longer = canaries.inserted_into(rows)
    assert len(longer) == 13
    assert longer.input_ids[:3] == rows.input_ids
    assert ([list(ids) for ids in rows.input_ids], list(rows.targets)) == before


def test_held_out_rows_without_words_or_loss_make_no_canary():
    silent = Dataset(input_ids=[[1, 2, 3]], targets=[3], pad_id=0)
    with pytest.raises(DataError, match="no canary"):
        draw_canaries(
            silent, np.ones(2, bool), vocabulary=range(9), special=[], num_classes=0, seed=0
        )
    with pytest.raises(DataError, match="no canary"):
        draw_canaries(
            silent, np.ones(2, bool), vocabulary=range(9), special=[1, 2, 3], num_classes=2, seed=0
        )


# --- The attack on a run.


@pytest.mark.parametrize("seed", [0, 1])
def test_honest_run_is_not_accused(tiny_llama: Path, tmp_path: Path, seed: int):
    found = audit(tiny_config(tiny_llama, tmp_path, seed=seed))
    assert found.failures == ()
    assert found.epsilon_lower < 0.5
    assert found.epsilon_upper == pytest.approx(0.5, rel=0.02)
    assert [attack.name for attack in found.attacks] == ["updates", "adapter"]
    assert {attack.bound.num_guesses for attack in found.attacks} == {30}
    assert {attack.bound.confidence for attack in found.attacks} == {0.975}
    assert [report.members for report in found.membership] == [
        ALL_CLIENTS,
        "client-00",
        "client-01",
    ]
    assert [report.attack.num_members for report in found.membership] == [40, 20, 20]


def test_run_whose_noise_is_missing_is_accused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mechanism, "add_gaussian_noise", no_noise)
    stages = Stages()
    found = audit(tiny_config(tiny_llama, tmp_path), stages=stages)
    assert found.epsilon_lower > 1
    assert "epsilon of client client-00 is at least 1." in found.failures[0]
    assert stages.done == stages.totals
    assert list(stages.totals) == ["loading", "training", "updates", "losses"]


def test_more_noise_leaves_fewer_guesses_correct(tiny_llama: Path, tmp_path: Path):
    correct = {}
    for target in (0.5, 400.0):
        privacy = {**STRICT, "target_epsilon": target, "min_noise_multiplier": 0.1}
        found = audit(tiny_config(tiny_llama, tmp_path / str(target), privacy))
        correct[target] = found.attacks[0].bound.num_correct
    assert correct[400.0] > 25 > correct[0.5]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_run_without_privacy_claims_nothing_and_gives_canaries_away(
    tiny_llama: Path, tmp_path: Path, optimizer: str
):
    rate = 0.01 if optimizer == "adam" else 0.5
    config = tiny_config(
        tiny_llama, tmp_path, OFF, optimizer=optimizer, learning_rate=rate, num_rounds=4
    )
    found = audit(config)
    assert found.epsilon_upper is None
    assert found.failures == ()
    assert found.epsilon_lower > (1 if optimizer == "sgd" else 0.1)


def test_classifier_is_audited_too(tiny_bert: Path, tmp_path: Path):
    config = run_config(tiny_bert, tmp_path, privacy=STRICT, num_rows=40)
    found = audit(config, client_id="client-02", num_canaries=40)
    assert (found.client_id, len(found.included)) == ("client-02", 40)
    assert found.failures == ()


def test_nothing_of_the_users_is_written(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tiny_config(tiny_llama, tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)

    def contents() -> dict[str, str]:
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in (tmp_path, tiny_llama)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    before = contents()
    audit(config)
    assert contents() == before


def test_seeded_audit_repeats(tiny_llama: Path, tmp_path: Path):
    config = tiny_config(tiny_llama, tmp_path)
    seeded = audit(config)
    assert audit(config) == seeded
    secret = tiny_config(tiny_llama, tmp_path, {"target_epsilon": 0.5, "delta": 1e-3})
    assert audit(secret).included != seeded.included


def test_default_number_of_canaries_follows_the_rows(tiny_llama: Path, tmp_path: Path):
    found = audit(tiny_config(tiny_llama, tmp_path, local_steps=1), num_canaries=None)
    assert len(found.included) == 200


def test_wrong_questions_are_refused(tiny_llama: Path, tmp_path: Path):
    config = tiny_config(tiny_llama, tmp_path, num_rounds=1, clients_per_round=1)
    with pytest.raises(DataError, match="no client nobody"):
        audit(config, client_id="nobody")
    with pytest.raises(ConfigError, match="20 canaries"):
        audit(config, num_canaries=19)
    taking_part = audit(config).client_id
    idle = {"client-00": "client-01", "client-01": "client-00"}[taking_part]
    with pytest.raises(ConfigError, match="takes part in no round"):
        audit(config, client_id=idle)


def test_attack_reads_off_how_often_each_row_was_drawn():
    """With orthogonal gradients and little noise the estimate is the count itself."""
    attack = object.__new__(UpdateAttack)
    values = {
        "canaries": rows_of_tokens([2] * 4),
        "others": rows_of_tokens([2] * 3),
        "plan": type("Plan", (), {"sampling_prob": 0.5, "dp": None})(),
        "federation": type("Federation", (), {"local_steps": 8})(),
    }
    for name, value in values.items():
        object.__setattr__(attack, name, value)
    counts = np.array([3.0, 0.0, 5.0, 4.0, 4.0, 2.0, 6.0])
    grads = torch.linalg.qr(torch.randn(20, 7, generator=torch.Generator().manual_seed(0)))[0].T
    gram, inner = (
        grads.double() @ grads.double().T,
        grads.double() @ (grads.double().T @ torch.from_numpy(counts)),
    )
    found = attack._times_drawn(gram, inner)
    assert found + 2 == pytest.approx(counts[:4], abs=1e-4)  # relative to the expected count


# --- The adapter of a finished run.


def finished_run(config: RunConfig, folder: Path) -> tuple[dict[str, Any], SmallRun]:
    run = SmallRun(config=config, folder=folder)
    run.finished()
    assembly = run.assemble()
    arguments = {
        "base_digest": assembly.base_digest,
        "data_digest": assembly.data_digest,
        "model": config.model,
        "data": config.data,
        "adapter": config.adapter,
        "federation": config.federation,
        "privacy": config.privacy,
        "progress": Stages(),
    }
    return arguments, run


def test_adapter_that_learned_its_rows_by_heart_gives_them_away(tiny_llama: Path, tmp_path: Path):
    config = tiny_config(tiny_llama, tmp_path, OFF, num_rounds=12, local_steps=10)
    arguments, run = finished_run(config, tmp_path / "run")
    before = sorted((p, p.stat().st_mtime_ns) for p in run.folder.rglob("*"))
    found = audit_adapter(run.folder, **arguments)
    assert sorted((p, p.stat().st_mtime_ns) for p in run.folder.rglob("*")) == before
    together = found.membership[0].attack
    assert (together.num_members, together.num_non_members) == (40, 16)
    assert together.auc.low > 0.6
    assert found.epsilon_upper is None
    assert arguments["progress"].done == arguments["progress"].totals
    saved = RunFolder(run.folder).load_round()
    assert saved is not None
    assert found.digest == saved[0].digest


def test_private_adapter_is_near_chance(tiny_llama: Path, tmp_path: Path):
    arguments, run = finished_run(tiny_config(tiny_llama, tmp_path), tmp_path / "run")
    found = audit_adapter(run.folder, **arguments)
    auc = found.membership[0].attack.auc
    assert auc.low < 0.5 < auc.high
    assert found.epsilon_upper == pytest.approx(0.5, rel=0.02)


def test_other_data_and_unfinished_runs_are_refused(tiny_llama: Path, tmp_path: Path):
    config = tiny_config(tiny_llama, tmp_path, OFF, num_rounds=1)
    arguments, run = finished_run(config, tmp_path / "run")
    for name in ("base_digest", "data_digest"):
        with pytest.raises(DataError, match="not what it was trained with"):
            audit_adapter(run.folder, **{**arguments, name: "0" * 64})
    longer = config.federation.model_copy(update={"num_rounds": 2})
    with pytest.raises(DataError, match="not finished"):
        audit_adapter(run.folder, **{**arguments, "federation": longer})
