"""fedpeft's own rounds: the coordinator in this process, its model in another, each client in two.

    python benchmarks/rounds/ours.py JOB.json RESULT.json

Everything of a round is real but the base model; `idle` has what takes its place. The control
plane, over which clients enrol and runs are submitted, has no part in a round: this program writes
to the server's database instead.
"""

import base64
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from counter import Counter
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from job import Place, ended, mean_step, read_job, ready, running, write_result

from fedpeft import __version__
from fedpeft.bench.round_job import RoundJob, RoundResult
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.keys import new_key
from fedpeft.identity.roles import Role
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.registry.signing import RegistrySigner
from fedpeft.warm_worker import WarmWorker
from fedpeft.wire.blobs import read_blob
from fedpeft_server import events
from fedpeft_server.access.trust import Trust
from fedpeft_server.correspondence import Correspondence
from fedpeft_server.engine import Engine
from fedpeft_server.fleet import Fleet, FleetConfig, build_bundle
from fedpeft_server.fleet_post import open_fleet_post
from fedpeft_server.manifests import Manifests
from fedpeft_server.nodes import Nodes
from fedpeft_server.records import Client, RunRecord, RunStatus
from fedpeft_server.state import State

_RUN = "00000000000000bb"
_OPERATOR = "operator"
_DELTA = 1e-5
_NUM_ROWS = 100


def main() -> None:
    job, path = read_job(sys.argv)
    with ExitStack() as stack:
        place = Place(stack)
        server = Credentials.in_folder(place.server)
        state = stack.enter_context(State.open(str(place.folder / "server.db")))
        artifacts = ArtifactStore(str(place.folder / "artifacts"))
        folders = [_enrolled(place, state, number) for number in range(job.num_clients)]
        fleet = Fleet(FleetConfig(certificate=place.certificate, key=place.key))
        nodes, bundle, watch = Nodes(fleet, state), build_bundle(), _Watch(job.num_rounds)
        engine = Engine(
            state,
            artifacts,
            Correspondence(
                key=server.key,
                certificate=server.certificate,
                identify=Trust(server.authority, place.revocations).identify,
            ),
            Manifests(
                state=state,
                signer=RegistrySigner.open(
                    place.folder, server_key=server.key, certificate=server.certificate
                ),
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
                server.certificate.public_bytes(Encoding.DER)
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
        state.add_run(_run(job), _RUN, _OPERATOR)
        engine.start(_RUN)
        watch.ended.wait()
        run = state.run(_RUN)
        if run.status is not RunStatus.FINISHED:
            raise RuntimeError(f"the run is {run.status}: {run.reason}")
        write_result(
            path,
            RoundResult(
                error=_error(state, artifacts, mean_step(job.num_clients)),
                wire_bytes=counter.num_bytes if counter else None,
                stack={"fedpeft": __version__},
            ),
        )


class _Watch:
    """Is told of events in the run's own thread, and so holds the run between two rounds."""

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._began = 0.0
        self.ended = threading.Event()

    def __call__(self, kind: str, body: Mapping[str, Any]) -> None:
        if kind == events.ROUND_STARTED and body["round"] == 1:
            ready()
            self._began = time.monotonic()
        if kind == events.ROUND_FINISHED:
            seconds = time.monotonic() - self._began
            ended(seconds, is_last=body["round"] == self._num_rounds)
            self._began = time.monotonic()
        if kind == "error":
            print(body["error"], file=sys.stderr)
        if kind == events.STATUS and body["status"] in (RunStatus.FINISHED, RunStatus.FAILED):
            self.ended.set()


def _enrolled(place: Place, state: State, number: int) -> Path:
    """Makes a client's folder with rows and keys, and enrols it."""
    name = f"client-{number:03}"
    folder = place.issue(name, Role.DATA_OWNER)
    rows = [json.dumps({"text": f"row {row} of {name}"}) for row in range(_NUM_ROWS)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    key, now = new_key(folder / "node.key.pem"), datetime.now(UTC)
    client = Client(
        client_id=name,
        certificate_serial=f"{Credentials.in_folder(folder).certificate.serial_number:x}",
        node_public_key=key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        ),
        protocol=1,
        version=__version__,
        enrolled_at=now,
    )
    token = f"{number:064x}"
    state.add_invitation(name, token, now + timedelta(days=1), _OPERATOR)
    state.enrol(name, token, client, now)
    return folder


def _run(job: RoundJob) -> RunRecord:
    config = {
        "model": {"name": "none", "task": "causal-lm", "device": "cpu"},
        "data": {"test": "none.jsonl"},
        "adapter": {"rank": job.rank, "target_modules": ["query", "value"]},
        "federation": {
            "clients": "remote",
            "num_clients": job.num_clients,
            "num_rounds": job.num_rounds,
            "quorum": job.num_clients,
            "local_steps": 1,
            "expected_batch_size": _NUM_ROWS / 10,
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
        submitted_by=_OPERATOR,
    )


def _idle_worker(job: RoundJob, run_math: Callable[[], object], *, name: str) -> WarmWorker:
    """Takes the engine's `RunMath` apart: its configuration goes to the idle one."""
    assert isinstance(run_math, partial)
    return WarmWorker(partial(_idle_math, run_math.args[0], job), name=name)


def _idle_math(config: Mapping[str, object], job: RoundJob) -> object:
    from idle import IdleMath  # torch, in the other process alone

    return IdleMath(config, job)


def _error(state: State, artifacts: ArtifactStore, step: float) -> float:
    """Returns how far the last product B·A is from what the updates must give, relative.

    Each product is applied to a random vector, which spares computing it.
    """
    import torch

    from fedpeft.adapters.lora import lora_pairs

    adapters = sorted(state.adapters(_RUN), key=lambda adapter: adapter.round)
    before, after = (lora_pairs(read_blob(artifacts.get(a.artifact))) for a in adapters[-2:])
    off = norm = 0.0
    for module, (a_RI, b_OR) in after.items():
        old_a_RI, old_b_OR = before[module]
        x_I = torch.randn(a_RI.shape[1], dtype=torch.float64)
        expected_O = (old_b_OR.double() + step) @ (old_a_RI.double() @ x_I)
        off += float((b_OR.double() @ (a_RI.double() @ x_I) - expected_O).square().sum())
        norm += float(expected_O.square().sum())
    return math.sqrt(off / norm)


if __name__ == "__main__":
    main()
