"""One client of fedpeft: this process is its node, and starts the one that would train.

python benchmarks/rounds/client.py CLIENT.json
"""

import base64
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from job import BASE_DIGEST

from fedpeft.bench.round_job import RoundJob
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.keys import read_key
from fedpeft_client.fleet_node import FleetNode
from fedpeft_client.letters import Letters
from fedpeft_client.policy import AllowedModel, ClientPolicy
from fedpeft_client.training import ClientSetup, TrainingProcess
from fedpeft_client.trust import ServerTrust


def main() -> None:
    about = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(about["folder"])
    credentials = Credentials.in_folder(folder)
    policy = ClientPolicy(base_models={BASE_DIGEST: AllowedModel(name="none")})
    setup = ClientSetup(
        client_id=credentials.name,
        folder=folder / "updates",
        tombstones=folder / "tombstones",
        ledger=str(folder / "ledger.db"),
        data=str(folder / "rows.jsonl"),
        budget=(1000.0, about["delta"]),
        policy=policy,
    )
    job = RoundJob.model_validate_json(Path(about["job"]).read_bytes())
    training = TrainingProcess([setup], make_executor=partial(_idle_executor, job))
    training.account(credentials.name)
    letters = Letters(
        credentials,
        trust=ServerTrust(
            credentials.authority, folder, base64.b64decode(about["server_certificate"])
        ),
        bundle_digest=about["bundle_digest"],
        policy=policy,
        training=training,
        emit=lambda event: None,
    )
    with FleetNode(
        about["address"],
        authority=credentials.authority_pem,
        key=read_key(folder / "node.key.pem"),
        max_message_bytes=policy.max_adapter_bytes,
    ) as node:
        node.serve(letters.answer)


def _idle_executor(job: RoundJob, setups: Sequence[ClientSetup], _: int | None) -> object:
    from idle import IdleExecutor  # torch, in the other process alone

    return IdleExecutor(job, setups)


if __name__ == "__main__":
    main()
