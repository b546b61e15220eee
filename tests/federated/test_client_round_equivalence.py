"""A remote client's update is that of the same client in a simulation, bit for bit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedpeft.dp.randomness import Keystream
from fedpeft.federated.client_rows import ClientRows
from fedpeft.federated.observer import Observer
from fedpeft.federated.terms import Columns, RunTerms
from fedpeft.federated.trainer import Job
from fedpeft.ledger import Ledger
from fedpeft_client.policy import AllowedModel, ClientPolicy
from fedpeft_client.workplace import Models
from tests.federated.client_rounds import CLIENT, DELTA, PLAN_DIGEST, RUN, Client, plan_for
from tests.federated.small_runs import OFF, SEEDED, SmallRun, run_config
from tests.tiny_models import equal_tensors


@pytest.mark.parametrize("privacy", [OFF, SEEDED], ids=["plain", "private"])
@pytest.mark.parametrize(
    ("task", "federation"),
    [
        ("classification", {"aggregator": "fedsvd"}),
        ("classification", {"optimizer": "adam", "learning_rate": 0.05, "sampling_prob": 0.3}),
        ("causal-lm", {"aggregator": "ffa-lora"}),
    ],
)
def test_a_client_alone_trains_as_in_a_simulation(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    privacy: Mapping[str, object],
    task: str,
    federation: Mapping[str, Any],
) -> None:
    model = request.getfixturevalue("tiny_bert" if task == "classification" else "tiny_llama")
    adapter = {} if task == "classification" else {"target_modules": ["q_proj"]}
    config = run_config(model, tmp_path, privacy=privacy, task=task, adapter=adapter, **federation)
    simulation = SmallRun(config=config, folder=tmp_path / "run").simulation()
    simulation.model.set_trainable(["lora_b"])
    start = simulation.model.tensors()
    job = Job(
        round=1, group=("client-01",), reservations={"client-01": None}, coin_seeds={"client-01": 7}
    )
    expected = simulation.trainer.run(start, job, Observer())["client-01"].tensors

    planned = simulation.plan.clients["client-01"]
    assembly = SmallRun(config=config, folder=tmp_path / "other").assemble()
    columns = Columns(
        text="text",
        label="label",
        question=config.data.question_column,
        answer=config.data.answer_column,
    )
    terms = RunTerms(
        run_id=RUN,
        name="test",
        model=config.model,
        adapter=config.adapter,
        federation=config.federation.model_copy(update={"clients": "remote"}),
        # The coins are handed to the client below; its own would be secret.
        privacy=config.privacy.model_copy(update={"insecure_seeded_noise": False}),
        columns=columns,
        labels=assembly.labels,
        base_digest=assembly.base_digest,
    )
    policy = ClientPolicy(
        allow_without_privacy=True,
        device="cpu",
        base_models={terms.base_digest: AllowedModel(name=str(model))},
    )
    table = simulation.rows["client-01"]
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        dataset = ledger.register(table.records())
        ledger.set_budget(dataset, epsilon=20.0, delta=DELTA)
        client = Client(
            folder=tmp_path,
            policy=policy,
            ledger=ledger,
            rows=ClientRows(table=table, dataset=dataset, columns=tuple(table.columns)),
            models=Models(policy),
            coins=lambda: Keystream.insecure_from_seed(7),
        )
        plan = plan_for(
            terms,
            start,
            num_examples=planned.num_examples,
            expected_batch_size=planned.expected_batch_size,
            num_rounds=planned.num_rounds,
            noise_multiplier=planned.dp.noise_multiplier if planned.dp else None,
        )
        reply, update = client.round().train(plan, start, PLAN_DIGEST)
    assert reply.client_id == CLIENT
    assert update is not None, client.notes.notes
    assert equal_tensors(update, expected)
    assert not equal_tensors(update, {name: start[name] for name in update})
