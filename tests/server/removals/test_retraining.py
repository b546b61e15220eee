"""Removal through rounds: what the new run is trained on, from where, and whose updates count."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedpeft.errors import DataError, RemoteError
from fedpeft.unlearning.records import JobRows
from fedpeft_server.records import RemovalRecord, RemovalState, RunStatus
from fedpeft_server.removals.retraining import Retraining
from fedpeft_server.round import Round
from fedpeft_server.state import State
from tests.server.control_rig import Rig, listening
from tests.server.local_federation import LocalFederation, ended, remote_config
from tests.server.removal_requests import asked, exported, trained
from tests.server.runs import digest
from tests.server.test_remote_run import OFF, federation, simulated_config

__all__ = ["federation"]  # the fixture

GONE = {"text": "is to go", "label": "x"}
STAYS = {"text": "stays", "label": "y"}


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    with listening(tmp_path) as opened:
        yield opened


def retraining(rig: Rig) -> Retraining:
    return Retraining(
        state=rig.state,
        artifacts=rig.artifacts,
        folder=rig.folder / "runs",
        start_run=lambda run_id: None,
    )


def written(rig: Rig, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    path = rig.folder / "data" / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def simulated(rig: Rig, **data: Any) -> str:
    sections = {"clients": "simulated", "sampling_prob": 0.1}
    return trained(rig, federation=sections, data=data)


def begun(rig: Rig, adapter: str, *rows: Mapping[str, Any]) -> dict[str, Any]:
    """`[data]` of the run that retrains without these rows."""
    removal = asked(rig, adapter, by="operator", method="retrain", num_records=len(rows))
    rig.connect("operator").upload_records(removal, JobRows(forget=[dict(row) for row in rows]))
    run_id = retraining(rig).begin(rig.state.removal(removal.request_id))
    data: dict[str, Any] = json.loads(rig.state.run(run_id).config_json)["data"]
    return data


def test_each_copy_of_a_row_goes_whichever_client_has_it(rig: Rig) -> None:
    first = written(rig, "first.jsonl", [GONE, STAYS])
    second = written(rig, "second.jsonl", [STAYS, GONE, GONE])
    adapter = simulated(rig, partition="files", client_files=[first, second])
    files = begun(rig, adapter, GONE)["client_files"]
    rows = [[json.loads(line) for line in Path(f).read_text().splitlines()] for f in files]
    assert rows == [[STAYS], [STAYS]]
    assert Path(first).read_text().count("is to go") == 1, "the files themselves stay"


def test_a_row_that_is_not_there_ends_it(rig: Rig) -> None:
    adapter = simulated(rig, train=written(rig, "rows.jsonl", [STAYS]))
    with pytest.raises(DataError, match="1 of 1 records are not in the rows"):
        begun(rig, adapter, GONE)


def test_types_of_a_parquet_file_stay(rig: Rig) -> None:
    path = rig.folder / "data" / "rows.parquet"
    rows = {"text": ["a", "b"], "label": ["x", "y"], "on": [date(2020, 1, 1), date(2021, 2, 2)]}
    pq.write_table(pa.table(rows), path)
    adapter = simulated(rig, train=str(path))
    left = begun(rig, adapter, {"text": "a", "label": "x", "on": "2020-01-01"})["train"]
    assert pq.read_table(left).to_pydict() == {
        "text": ["b"],
        "label": ["y"],
        "on": [date(2021, 2, 2)],
    }


def test_rows_that_were_removed_before_do_not_come_back(rig: Rig) -> None:
    adapter = simulated(rig, train=written(rig, "rows.jsonl", [GONE, STAYS]))
    source = rig.state.adapter(adapter)
    request_id = "ab" * 8
    removal_run = replace(
        rig.state.run(source.run_id),
        run_id=request_id,
        clients="removal",
        status=RunStatus.FINISHED,
        num_rounds=1,
    )
    rig.state.add_run(removal_run, "key", "operator")
    successor = replace(
        source,
        run_id=request_id,
        round=0,
        parent=adapter,
        digest=digest("successor"),
        export=None,
        manifest_json=None,
    )
    rig.state.start_adapter(successor)
    exported(rig, successor.digest)
    with pytest.raises(RemoteError, match="would bring them back") as refused:
        asked(rig, successor.digest, by="operator", method="retrain", num_records=1)
    assert refused.value.code == "invalid"


# --- updates of open rounds


def mark_and_ask(federation: LocalFederation, state: State, client_id: str) -> None:
    """Marks a row at the client, then records its request, as the command and the server do."""
    client, request_id = federation.post.clients[client_id], "ef" * 8
    client.tombstones.add(request_id, list(client.rows.table.records())[:1])
    now, version = datetime.now(UTC), state.adapters()[0]
    removal = RemovalRecord(
        request_id=request_id,
        state=RemovalState.RECEIVED,
        client_id=client_id,
        adapter=version.digest,
        run_id=version.run_id,
        round=0,
        place="server",
        method="loku",
        num_records=1,
        records_digest="0" * 64,
        settings={},
        void_guarantee=False,
        private_job=False,
        deadline=None,
        plan={},
        requested_by=client_id,
        created_at=now,
        updated_at=now,
    )
    state.add_removal(removal, request_id)


def test_an_update_from_before_a_request_is_asked_for_again(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    """In the same round, also where the round needs everybody."""
    config = simulated_config(federation, tiny_bert, OFF, num_rounds=1)
    run_id = federation.submit(remote_config(config, num_clients=3, quorum=3))
    with federation.coordinator() as (engine, state):
        first: list[str] = []

        def tamper(client_id: str, plan: Any, reply: Any, blob: Any) -> tuple[Any, Any]:
            got = {u.client_id: u.update_digest for u in state.updates(run_id, 1)}
            if len(got) == 2 and not first:
                first.extend(got)
                mark_and_ask(federation, state, first[0])
            return reply, blob

        federation.post.tamper = tamper
        engine.recover()
        run = ended(state, run_id)
        assert run.status is RunStatus.FINISHED, run.reason
        [record] = state.rounds(run_id)
        assert len(record.cohort) == 3
        assert federation.post.asked.count((first[0], 1)) == 2


def test_a_request_while_the_round_is_made_does_not_slip_through(
    federation: LocalFederation, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = simulated_config(federation, tiny_bert, OFF, num_rounds=1)
    run_id = federation.submit(remote_config(config, num_clients=3, quorum=2))
    with federation.coordinator() as (engine, state):
        real, asked_for = Round._aggregate, []

        def aggregate(self: Round, chosen: Any) -> Any:
            if not asked_for:
                asked_for.append(chosen[0].client_id)
                mark_and_ask(federation, state, chosen[0].client_id)
            return real(self, chosen)

        monkeypatch.setattr(Round, "_aggregate", aggregate)
        engine.recover()
        run = ended(state, run_id)
        assert run.status is RunStatus.FINISHED, run.reason
        assert federation.post.asked.count((asked_for[0], 1)) == 2
