"""One client of fedpeft: its node, its letters, and the process that trains, which does not.

    python benchmarks/rounds/client.py CLIENT.json
"""

import base64
import json
import sys
from functools import partial
from pathlib import Path

from fedpeft.bench.round_job import RoundJob
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.keys import read_key
from fedpeft_client.fleet_node import FleetNode
from fedpeft_client.letters import Letters
from fedpeft_client.policy import AllowedModel, ClientPolicy
from fedpeft_client.training import ClientSetup, TrainingProcess
from fedpeft_client.trust import ServerTrust

BASE_DIGEST = "0" * 64


def main() -> None:
    about = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(about["folder"])
    job = RoundJob.model_validate_json(Path(about["job"]).read_bytes())
    credentials = Credentials.in_folder(folder)
    policy = ClientPolicy(base_models={BASE_DIGEST: AllowedModel(name="none")})
    setup = ClientSetup(
        client_id=credentials.name,
        folder=folder / "updates",
        ledger=str(folder / "ledger.db"),
        data=str(folder / "rows.jsonl"),
        budget=(1000.0, about["delta"]),
        policy=policy,
    )
    training = TrainingProcess([setup], make_executor=partial(_idle_executor, job))
    training.account(credentials.name)
    server = base64.b64decode(about["server_certificate"])
    letters = Letters(
        credentials,
        trust=ServerTrust(credentials.authority, folder, server),
        bundle_digest=about["bundle_digest"],
        policy=policy,
        training=training,
        emit=lambda event: None,
    )
    node = FleetNode(
        about["address"],
        authority=credentials.authority_pem,
        key=read_key(folder / "node.key.pem"),
        max_message_bytes=policy.max_adapter_bytes,
    )
    node.serve(letters.answer)


def _idle_executor(job: RoundJob, setups, num_threads):
    from idle import IdleExecutor

    return IdleExecutor(job, setups, num_threads)


if __name__ == "__main__":
    main()
