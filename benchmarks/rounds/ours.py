"""fedpeft's own rounds: the coordinator in this process, every client in two of its own.

    python benchmarks/rounds/ours.py JOB.json RESULT.json

Everything of a round is real but the base model: see `idle`. The control plane, over which clients
enrol and runs are submitted, has no part in a round: this program writes to the database instead.
"""

import base64
import json
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

from counter import Counter
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from job import Place, read_job, running, write_result

from fedpeft import __version__
from fedpeft.bench.round_job import RoundJob, RoundResult
from fedpeft.identity.certificates import read_certificate
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.keys import new_key
from fedpeft.identity.roles import Role
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.warm_worker import WarmWorker
from fedpeft_server import events
from fedpeft_server.access.trust import Trust
from fedpeft_server.correspondence import Correspondence
from fedpeft_server.engine import Engine
from fedpeft_server.fleet import Fleet, FleetConfig, build_bundle
from fedpeft_server.fleet_post import open_fleet_post
from fedpeft_server.nodes import Nodes
from fedpeft_server.records import Client, RunRecord, RunStatus
from fedpeft_server.state import State

_RUN = "00000000000000bb"
_DELTA = 1e-5
_NUM_ROWS = 100


def main() -> None:
    job, path = read_job(sys.argv)
    with ExitStack() as stack:
        place = Place(stack)
        credentials = Credentials.in_folder(place.key.parent)
        state = stack.enter_context(State.open(str(place.folder / "server.db")))
        folders = [_client(place, state, n) for n in range(job.num_clients)]
        fleet = Fleet(FleetConfig(certificate=place.certificate, key=place.key))
        nodes, bundle = Nodes(fleet, state), build_bundle()
        watch = _Watch(job.num_rounds)
        engine = Engine(
            state,
            ArtifactStore(str(place.folder / "artifacts")),
            Correspondence(
                key=credentials.key,
                certificate=credentials.certificate,
                identify=Trust(credentials.authority, place.revocations).identify,
            ),
            lambda run_id: open_fleet_post(fleet, nodes, bundle),
            folder=place.folder / "runs",
            watch=watch,
            make_worker=partial(_idle_worker, job),
        )
        stack.enter_context(fleet)
        counter = stack.enter_context(Counter(fleet.port)) if job.count_bytes else None
        about = {
            "address": f"127.0.0.1:{counter.port if counter else fleet.port}",
            "bundle_digest": bundle.hash,
            "delta": _DELTA,
            "job": str(Path(sys.argv[1]).resolve()),
            "server_certificate": base64.b64encode(
                credentials.certificate.public_bytes(Encoding.DER)
            ).decode(),
        }
        for folder in folders:
            told = folder / "client.json"
            told.write_text(json.dumps(about | {"folder": str(folder)}), encoding="utf-8")
            program = str(Path(__file__).with_name("client.py"))
            stack.enter_context(running([sys.executable, program, str(told)]))
        stack.callback(engine.close)
        while len(nodes.online()) < job.num_clients:
            time.sleep(0.1)
        state.add_run(_run(job), _RUN, "operator")
        engine.start(_RUN)
        if not watch.ended.wait(job.deadline_s):
            raise TimeoutError(f"the run did not end within {job.deadline_s:g} s")
        run = state.run(_RUN)
        if run.status is not RunStatus.FINISHED:
            raise RuntimeError(f"the run is {run.status}: {run.reason}")
        write_result(
            path,
            RoundResult(
                seconds=[end - start for start, end in pairwise(watch.at)],
                is_right=_is_right(state, job),
                wire_bytes=counter.num_bytes if counter else None,
                stack={"fedpeft": __version__},
            ),
        )


class _Watch:
    """Notes when the rounds began and ended."""

    def __init__(self, num_rounds: int) -> None:
        self.at: list[float] = []
        self.ended = threading.Event()

    def __call__(self, kind, body) -> None:
        if kind == events.ROUND_FINISHED or (kind == events.ROUND_STARTED and not self.at):
            self.at.append(time.monotonic())
        if kind == "error":
            print(body, file=sys.stderr)
        if kind == events.STATUS and body["status"] in ("finished", "failed", "stopped"):
            self.ended.set()


def _client(place: Place, state: State, number: int) -> Path:
    """Makes a client's folder, and enrols it."""
    name = f"client-{number:02}"
    folder = place.issue(name, Role.DATA_OWNER)
    key = new_key(folder / "node.key.pem")
    rows = [json.dumps({"text": f"{name} {row}"}) for row in range(_NUM_ROWS)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    certificate, now = read_certificate(folder / "cert.pem"), datetime.now(UTC)
    state.add_invitation(name, f"{number:064x}", now + timedelta(days=1), "operator")
    client = Client(
        client_id=name,
        certificate_serial=f"{certificate.serial_number:x}",
        node_public_key=key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        ),
        protocol=1,
        version=__version__,
        enrolled_at=now,
    )
    state.enrol(name, f"{number:064x}", client, now)
    return folder


def _run(job: RoundJob) -> RunRecord:
    config = {
        "model": {"name": "none", "task": "causal-lm", "device": "cpu"},
        "data": {"test": "none.jsonl"},
        "adapter": {"rank": job.payload.rank, "target_modules": ["query", "value"]},
        "federation": {
            "clients": "remote",
            "num_clients": job.num_clients,
            "num_rounds": job.num_rounds,
            "quorum": job.num_clients,
            "local_steps": 1,
            "expected_batch_size": 10,
            "evaluate_every": job.num_rounds,
        },
        "privacy": {"target_epsilon": 6.0, "delta": _DELTA},
    }
    return RunRecord(
        run_id=_RUN,
        name="rounds without training",
        config_json=json.dumps(config),
        clients="remote",
        status=RunStatus.SUBMITTED,
        num_rounds=job.num_rounds,
        submitted_at=datetime.now(UTC),
        submitted_by="operator",
    )


def _idle_worker(job: RoundJob, factory, *, name: str) -> WarmWorker:
    config, _ = factory.args
    return WarmWorker(partial(_idle_math, config, job), name=name)


def _idle_math(config, job: RoundJob):
    from idle import IdleMath

    return IdleMath(config, job)


def _is_right(state: State, job: RoundJob) -> bool:
    return len(state.rounds(_RUN)) == job.num_rounds


if __name__ == "__main__":
    main()
