"""Many clients of a server in one process, each with keys, a connection and signed answers.

    python benchmarks/scale/clients.py '{"server": "HOST:PORT", "folders": [FOLDER, ...]}'

Each folder holds a client's identity and the token of its invitation. Everything that a client says
to a server is real: it enrols, connects, checks who signed a letter, and signs its answer. Nothing
is trained: an update is the adapter's B with noise, made once a round for all clients here.
"""

import hashlib
import json
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedpeft import __version__
from fedpeft.federated.messages import (
    Acceptance,
    BudgetStatement,
    OfferAnswer,
    RoundPlan,
    RoundReply,
    UpdateHeader,
)
from fedpeft.federated.terms import RunTerms
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.keys import new_key
from fedpeft.remote import Connection
from fedpeft_client.fleet_node import FleetNode
from fedpeft_client.letters import Letters
from fedpeft_client.policy import ClientPolicy
from fedpeft_client.trust import ServerTrust

NUM_ROWS = 1000
BUDGET = 100.0


class Idle:
    """Answers as `fedpeft_client.training.TrainingProcess` does, without rows or model."""

    def answer_offer(self, client_id: str, terms: RunTerms, told: object) -> OfferAnswer:
        """Accepts."""
        accepted = Acceptance(
            num_examples=NUM_ROWS, dataset=dataset_of(client_id), remaining_epsilon=BUDGET
        )
        return OfferAnswer(
            run_id=terms.run_id,
            client_id=client_id,
            terms_digest=terms.digest,
            answer=accepted,
        )

    def train(
        self, client_id: str, plan: RoundPlan, adapter: bytes, plan_digest: str, told: object
    ) -> tuple[RoundReply, bytes]:
        """Returns a round's answer and update."""
        digest, blob = update_of(adapter)
        statement = BudgetStatement(
            epsilon_spent=plan.terms.privacy.target_epsilon * plan.round / plan.num_rounds,
            epsilon_budget=BUDGET,
            delta=plan.terms.privacy.delta,
            ledger_head=f"{plan.round}:{'0' * 64}",
            dataset=dataset_of(client_id),
        )
        reply = RoundReply(
            run_id=plan.terms.run_id,
            client_id=client_id,
            round=plan.round,
            plan_digest=plan_digest,
            answer=UpdateHeader(digest=digest, budget=statement, train_seconds=0.0),
        )
        return reply, blob


@lru_cache(maxsize=2)
def update_of(adapter: bytes) -> tuple[str, bytes]:
    """Returns the digest of an update that starts from an adapter, and its bytes."""
    import torch

    from fedpeft.types import tensor_digest
    from fedpeft.wire.blobs import read_blob, to_blob

    tensors = {
        name: tensor + 0.01 * torch.randn_like(tensor)
        for name, tensor in read_blob(adapter).items()
        if "lora_a" not in name
    }
    return tensor_digest(tensors), to_blob(tensors)


def dataset_of(client_id: str) -> str:
    return hashlib.sha256(client_id.encode()).hexdigest()


def serve(folder: Path, server: str) -> None:
    """One client, until the process is ended."""
    credentials = Credentials.in_folder(folder)
    key = new_key(folder / "node.key.pem")
    public_key = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with Connection(server, credentials, patience_s=120.0, timeout_s=120.0) as connection:
        enrolled = connection.enrol_client(
            public_key, token=(folder / "token").read_text(), version=__version__
        )
    training: Any = Idle()
    letters = Letters(
        credentials,
        trust=ServerTrust(credentials.authority, folder, enrolled.server_certificate),
        bundle_digest=enrolled.bundle_digest,
        policy=ClientPolicy(),
        training=training,
        emit=lambda event: None,
    )
    with FleetNode(enrolled.fleet_address, authority=credentials.authority_pem, key=key) as node:
        node.serve(letters.answer)


def main() -> None:
    about = json.loads(sys.argv[1])
    threads = [
        threading.Thread(target=serve, args=(Path(folder), about["server"]))
        for folder in about["folders"]
    ]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main()
