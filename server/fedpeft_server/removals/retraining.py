"""Removal by rounds: a new run, through the ordinary round path, that the rows are not in.

What "exact" rests on. The run starts from the last version that no update of the client is in, or
from nothing. Of remote clients each holds its own rows: the rows that are to be removed are
tombstoned in the owner's own folder before the request is made, and its process trains on no
tombstoned row, so no update of the new run depends on them. The coordinator cannot see that; the
owner can. Of simulated clients the rows are the server's: they are taken out of its files by their
content before the run begins, every copy of them, whichever client has it; and the request ends if
one of them is not found. Where an earlier removal took rows out that nobody has marked, `planning`
refuses: the rounds would bring them back.

The other clients take part again, and are charged again for what they train.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedpeft.errors import DataError, FedpeftError
from fedpeft.files import write_atomically, write_text
from fedpeft.models.sources import read_table
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.unlearning.plan import RemovalPlan
from fedpeft.unlearning.records import JobRows
from fedpeft.unlearning.sealing import open_sealed
from fedpeft_server.records import AdapterRecord, RemovalRecord, RunRecord, RunStatus
from fedpeft_server.removals.family import Family
from fedpeft_server.removals.orders import named_version
from fedpeft_server.removals.planning import known_of, training_run
from fedpeft_server.state import NotFoundError, State


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """Begins such runs and tells how they ended.

    Attributes:
        state: The database of record.
        artifacts: Where the sealed records are.
        folder: Where files of runs are kept.
        start_run: Begins a run that is recorded, or goes on with it.
    """

    state: State
    artifacts: ArtifactStore
    folder: Path
    start_run: Callable[[str], object]

    def run_id(self, request_id: str) -> str:
        """Returns the id of the run that a request has, begun or not."""
        return hashlib.sha256(f"retrain {request_id}".encode()).hexdigest()[:16]

    def begin(self, removal: RemovalRecord) -> str:
        """Begins the run of a request, or goes on with it; returns its id, always the same.

        Raises:
            DataError: If a row that is to be removed is not in the server's files.
            VerificationError: If the records are gone or cannot be opened.
        """
        run_id = self.run_id(removal.request_id)
        try:
            self.state.run(run_id)
        except NotFoundError:
            self._record(run_id, removal)
        self.start_run(run_id)
        return run_id

    def outcome(self, run_id: str) -> AdapterRecord | None:
        """Returns the last version of a run that finished, None while it is under way.

        Raises:
            FedpeftError: If it ended otherwise.
        """
        run = self.state.run(run_id)
        if run.status in (RunStatus.FAILED, RunStatus.STOPPED):
            raise FedpeftError(f"run {run_id}, which retrains, is {run.status}: {run.reason}")
        if run.status is not RunStatus.FINISHED:
            return None
        newest = self.state.newest_adapter(run_id)
        assert newest is not None
        return newest

    def _record(self, run_id: str, removal: RemovalRecord) -> None:
        named = named_version(self.state, removal)
        trained = training_run(named, known_of(self.state, removal.client_id))
        if trained is None:
            raise DataError(
                f"adapter {named.digest[:12]} was imported: no run here can be trained again; "
                "remove the rows by another method"
            )
        config: dict[str, Any] = json.loads(trained.config_json)
        start, num_rounds = None, trained.num_rounds
        if trained.clients == "simulated":
            config["data"] = self._without(config["data"], removal, self.folder / run_id)
        else:
            start, num_rounds = self._start(removal, named, trained)
            config["federation"]["num_rounds"] = num_rounds
        self.state.add_run(
            RunRecord(
                run_id=run_id,
                name=f"{trained.name}, retrained",
                config_json=json.dumps(config, sort_keys=True),
                clients=trained.clients,
                status=RunStatus.SUBMITTED,
                num_rounds=num_rounds,
                submitted_at=datetime.now(UTC),
                submitted_by=removal.requested_by,
                held_out=trained.held_out,
                held_out_suffix=trained.held_out_suffix,
                start_from=start,
            ),
            f"retrain {removal.request_id}",
            removal.requested_by,
        )

    def _start(
        self, removal: RemovalRecord, named: AdapterRecord, trained: RunRecord
    ) -> tuple[str | None, int]:
        """The clean version, and how many rounds of the line came after it.

        Round 0 of a run that starts from no version is drawn from its seed: the new run has the
        same by itself.
        """
        clean = RemovalPlan.from_body(removal.plan).clean_ancestor
        runs = {run.run_id: run for run in self.state.runs()}
        num_rounds = 0
        for version in Family(self.state.adapters()).line(named):
            run = runs.get(version.run_id)
            if version.digest == clean:
                is_drawn = version.round == 0 and (run is None or run.start_from is None)
                return (None if is_drawn else clean), max(1, num_rounds)
            made_by_rounds = run is not None and run.clients in ("remote", "simulated")
            num_rounds += made_by_rounds and version.round > 0
        return None, max(1, num_rounds, trained.num_rounds)

    def _without(
        self, data: Mapping[str, Any], removal: RemovalRecord, folder: Path
    ) -> dict[str, Any]:
        """The `[data]` of a run, on copies of its training files without the rows."""
        assert removal.sealed is not None
        assert removal.job_private_key is not None
        sealed = self.artifacts.get(removal.sealed)
        rows = JobRows.from_bytes(open_sealed(removal.job_private_key, removal.request_id, sealed))
        gone = {_content(row): 0 for row in rows.forget}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if "client_files" in data:
            files = [
                str(_filtered(name, gone, folder / f"rows-{number}"))
                for number, name in enumerate(data["client_files"])
            ]
            changed = dict(data) | {"client_files": files}
        else:
            changed = dict(data) | {"train": str(_filtered(data["train"], gone, folder / "rows"))}
        missing = sum(found == 0 for found in gone.values())
        if missing:
            raise DataError(
                f"{missing} of {len(gone)} records are not in the rows that the run was trained "
                "on; name each as it stands in the file"
            )
        return changed


def _filtered(location: str, gone: dict[str, int], output: Path) -> Path:
    """Writes the rows of a file without those, each copy of them, and counts what it left out."""
    table = read_table(location, [])
    kept = []
    for number, row in enumerate(table.records()):
        content = _content(row)
        if content in gone:
            gone[content] += 1
        else:
            kept.append(number)
    if location.lower().endswith(".parquet"):
        path = output.with_suffix(".parquet")
        _write_parquet(location, kept, path)
        return path
    path = output.with_suffix(".jsonl")
    rows = table.take(kept).records()
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_text(path, "".join(f"{line}\n" for line in lines))
    return path


def _write_parquet(location: str, kept: list[int], path: Path) -> None:
    """With the types of the columns as they are."""
    import pyarrow.parquet as pq

    table = pq.read_table(location).take(kept)
    write_atomically(path, lambda partial: pq.write_table(table, partial))


def _content(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, default=str)
