"""Removal by rounds: a new run, through the ordinary round path, that the rows are not in.

What "exact" rests on. The run starts from the last version that no update of the client is in, or
from nothing. Of remote clients each holds its own rows: the rows that are to be removed are
tombstoned in the owner's own folder before the request is made, and its process trains on no
tombstoned row, so no update of the new run depends on them. The coordinator cannot see that; the
owner can. Of simulated clients the rows are the server's: they are taken out of its files by their
content before the run begins, and the request ends if one of them is not found.

The other clients take part again, and are charged again for what they train.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedpeft.errors import DataError, FedpeftError
from fedpeft.files import write_text
from fedpeft.models.sources import read_table
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.unlearning.plan import RemovalPlan
from fedpeft.unlearning.records import JobRows
from fedpeft.unlearning.sealing import open_sealed
from fedpeft_server.records import AdapterRecord, RemovalRecord, RunRecord, RunStatus
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

    def begin(self, removal: RemovalRecord) -> str:
        """Begins the run of a request, or goes on with it; returns its id, always the same.

        Raises:
            DataError: If a row that is to be removed is not in the server's files.
            VerificationError: If the records are gone or cannot be opened.
        """
        run_id = hashlib.sha256(f"retrain {removal.request_id}".encode()).hexdigest()[:16]
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
            start, num_rounds = self._start(removal, trained)
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

    def _start(self, removal: RemovalRecord, trained: RunRecord) -> tuple[str | None, int]:
        """The clean version of the same run, if rounds have been before it, and how many are left.

        Round 0 of a run is drawn from its seed: the new run has the same by itself.
        """
        clean = RemovalPlan.from_body(removal.plan).clean_ancestor
        for version in self.state.adapters(trained.run_id):
            if version.digest == clean and 0 < version.round < trained.num_rounds:
                return clean, trained.num_rounds - version.round
        return None, trained.num_rounds

    def _without(
        self, data: Mapping[str, Any], removal: RemovalRecord, folder: Path
    ) -> dict[str, Any]:
        """The `[data]` of a run, on copies of its training files without the rows."""
        assert removal.sealed is not None
        assert removal.job_private_key is not None
        sealed = self.artifacts.get(removal.sealed)
        rows = JobRows.from_bytes(open_sealed(removal.job_private_key, removal.request_id, sealed))
        left = Counter(map(_content, rows.forget))
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if "client_files" in data:
            files = [
                str(_filtered(name, left, folder / f"rows-{number}.jsonl"))
                for number, name in enumerate(data["client_files"])
            ]
            changed = dict(data) | {"client_files": files}
        else:
            train = _filtered(data["train"], left, folder / "rows.jsonl")
            changed = dict(data) | {"train": str(train)}
        missing = +left
        if missing:
            raise DataError(
                f"{missing.total()} of {len(rows.forget)} records are not in the rows that the run "
                "was trained on; name each as it stands in the file"
            )
        return changed


def _filtered(location: str, left: Counter[str], output: Path) -> Path:
    table = read_table(location, [])
    kept: list[str] = []
    for row in table.records():
        content = _content(row)
        if left[content] > 0:
            left[content] -= 1
        else:
            kept.append(json.dumps(row, ensure_ascii=False))
    write_text(output, "".join(f"{line}\n" for line in kept))
    return output


def _content(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, default=str)
