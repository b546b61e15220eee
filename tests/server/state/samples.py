"""Records with plausible content, each field of which a test may change."""

import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from fedpeft_server.records import (
    AdapterRecord,
    BudgetRecord,
    Client,
    ExportedFile,
    Participant,
    RemovalRecord,
    RemovalState,
    RoundRecord,
    RunPlanRecord,
    RunRecord,
    RunStatus,
    UpdateRecord,
)
from fedpeft_server.state import State

NOW = datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)
SOON = NOW + timedelta(hours=1)
COHORT = ("north", "south", "west")


def digest(*names: object) -> str:
    return sha256(repr(names).encode()).hexdigest()


FILES = {"README.md": ExportedFile(sha256=digest("card"), size_bytes=3)}


def a_client(
    client_id: str = "north", key: str = "key", serial: str = "a1", **other: Any
) -> Client:
    return replace(
        Client(
            client_id=client_id,
            certificate_serial=serial,
            node_public_key=f"{key} of {client_id}".encode(),
            protocol=1,
            version="0.1.0",
            enrolled_at=NOW,
        ),
        **other,
    )


def enrol(state: State, client: Client) -> Client:
    token = secrets.token_hex(32)
    state.add_invitation(client.client_id, token, SOON, "operator")
    return state.enrol(client.client_id, token, client, NOW)


def a_run(run_id: str = "run-1", **other: Any) -> RunRecord:
    run = RunRecord(
        run_id=run_id,
        name="first run",
        config_json='{"federation":{"num_rounds":3}}',
        clients="remote",
        status=RunStatus.SUBMITTED,
        num_rounds=3,
        submitted_at=NOW,
        submitted_by="operator",
    )
    return replace(run, **other)


def a_plan() -> RunPlanRecord:
    participants = tuple(
        Participant(
            client_id=client,
            num_examples=100 + number,
            noise_multiplier=1 / 3,
            expected_batch_size=0.1 + 0.2,
            weight=1 / 7,
            num_rounds_planned=3,
            dataset=digest(client),
        )
        for number, client in enumerate(COHORT)
    )
    return RunPlanRecord(
        terms_json='{"name":"größer"}', participants=participants, cohorts=(COHORT, COHORT[:2])
    )


def an_update(client: str = "north", round_number: int = 1, **other: Any) -> UpdateRecord:
    content = digest("update", client, round_number)
    update = UpdateRecord(
        run_id="run-1",
        round=round_number,
        client_id=client,
        plan_digest=digest("plan", round_number),
        update_digest=content,
        artifact=digest("artifact", content),
        size_bytes=10_000_000_000,
        received_at=NOW,
        envelope=b"\x00signed\xff",
    )
    return replace(update, **other)


def a_budget(client: str = "north", round_number: int = 1, **other: Any) -> BudgetRecord:
    budget = BudgetRecord(
        client_id=client,
        dataset=digest(client),
        epsilon_spent=0.1 * round_number,
        epsilon_budget=6.0,
        delta=1e-5,
        ledger_head=f"{round_number}:{digest('head')}",
        reported_at=NOW,
        run_id="run-1",
        round=round_number,
    )
    return replace(budget, **other)


def an_adapter(round_number: int, run_id: str = "run-1", **other: Any) -> AdapterRecord:
    content = digest("adapter", run_id, round_number)
    adapter = AdapterRecord(
        digest=content,
        run_id=run_id,
        round=round_number,
        parent=digest("adapter", run_id, round_number - 1) if round_number else None,
        base_model="minilm",
        base_digest=digest("base"),
        artifact=digest("artifact", content),
        participants=COHORT if round_number else (),
        epsilon=dict.fromkeys(COHORT, 0.1 * round_number) if round_number else {},
        metrics={"accuracy": 0.1 + 0.2, "loss": float("nan")},
        created_at=NOW,
    )
    return replace(adapter, **other)


def a_round(round_number: int, run_id: str = "run-1", **other: Any) -> RoundRecord:
    finished = RoundRecord(
        round=round_number,
        cohort=COHORT,
        missing={"east": "late"},
        seconds=1.5,
        metrics={"accuracy": 2 / 3},
        diagnostics={"spectral_gap": 1e-300},
        update_norms=dict.fromkeys(COHORT, 1 / 3),
        adapter=digest("adapter", run_id, round_number),
        uplink_bytes=5_000_000_000,
        downlink_bytes=7,
        finished_at=NOW,
    )
    return replace(finished, **other)


def a_removal(number: str = "1", **other: Any) -> RemovalRecord:
    """A request whose id ends so; all of them remove the same records."""
    removal = RemovalRecord(
        request_id=number.rjust(16, "0"),
        state=RemovalState.RECEIVED,
        client_id="north",
        adapter=digest("adapter", "run-1", 2),
        run_id="run-1",
        round=2,
        place="server",
        method="loku",
        num_records=20,
        records_digest=digest("records"),
        settings={},
        void_guarantee=False,
        private_job=False,
        deadline=None,
        plan={"claim": "approximate"},
        requested_by="north",
        created_at=NOW - timedelta(hours=1),
        updated_at=NOW,
    )
    return replace(removal, **other)


def begin(state: State, run_id: str = "run-1") -> None:
    """Submits a run and records what it starts from."""
    state.add_run(a_run(run_id), run_id, "operator")
    state.start_adapter(an_adapter(0, run_id))


def finish(state: State, round_number: int, run_id: str = "run-1") -> None:
    state.finish_round(run_id, a_round(round_number, run_id), an_adapter(round_number, run_id))


def exported(state: State, number: int, run_id: str = "run-1") -> AdapterRecord:
    """A version that can be deployed."""
    finish(state, number, run_id)
    adapter = an_adapter(number, run_id)
    state.set_export(adapter.digest, FILES, run_id=run_id, manifest_json='{"body":{}}')
    return adapter
