"""A coordinator's engine and real clients in one process; only the transport is left out.

Letters are signed and checked, rows trained on, ledgers charged, updates stored: as in a
federation of many machines.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from safetensors.torch import load

from fedpeft.config import RunConfig
from fedpeft.dp.randomness import Keystream
from fedpeft.federated.client_round import ClientRound
from fedpeft.federated.messages import RoundPlan, RoundReply
from fedpeft.identity.authority import CERTIFICATE, REVOKED, Authority
from fedpeft.identity.certificates import Identity, identify, read_certificate, read_revocations
from fedpeft.identity.keys import new_key, read_key, write_request
from fedpeft.identity.roles import Role
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.registry.signing import RegistrySigner
from fedpeft.types import derive_seed
from fedpeft.warm_worker import WarmWorker
from fedpeft.wire import serde
from fedpeft.wire.blobs import to_blob
from fedpeft.wire.envelope import seal, unseal
from fedpeft_server.correspondence import Correspondence
from fedpeft_server.engine import Engine
from fedpeft_server.manifests import Manifests
from fedpeft_server.post import Answer, Letter
from fedpeft_server.records import Client as ClientRecord
from fedpeft_server.records import RunRecord, RunStatus
from fedpeft_server.state import State
from tests.federated.client_rounds import Client, make_client

Tamper = Callable[[str, RoundPlan, RoundReply, bytes | None], tuple[RoundReply, bytes | None]]
"""What a dishonest client makes of its answer."""


class Identities:
    """An authority and the folders of those that it issued certificates to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = folder / "ca"
        self.authority = Authority.create(self._ca, "test")

    def issue(self, name: str, role: Role) -> None:
        folder = self._folder / name
        write_request(new_key(folder / "key.pem"), name, folder / "request.pem")
        hosts = ["localhost"] if role is Role.SERVER else []
        path = folder / "cert.pem"
        self.authority.issue(folder / "request.pem", [role], path, days=2, hosts=hosts)

    def seal(self, name: str, kind: str, body: bytes) -> bytes:
        folder = self._folder / name
        key, certificate = read_key(folder / "key.pem"), read_certificate(folder / "cert.pem")
        return seal(kind, body, key, certificate)

    def identify(self, certificate: x509.Certificate, now: datetime) -> Identity:
        authority = read_certificate(self._ca / CERTIFICATE)
        return identify(certificate, authority, read_revocations(self._ca / REVOKED), now)

    def correspondence(self) -> Correspondence:
        folder = self._folder / "server"
        return Correspondence(
            key=read_key(folder / "key.pem"),
            certificate=read_certificate(folder / "cert.pem"),
            identify=self.identify,
        )

    def signer(self, folder: Path) -> RegistrySigner:
        server = self._folder / "server"
        return RegistrySigner.open(
            folder,
            server_key=read_key(server / "key.pem"),
            certificate=read_certificate(server / "cert.pem"),
        )


class InProcess(WarmWorker):
    """Calls the object here: a process that loads torch takes longer than a tiny run."""

    def call(self, method: str, *args: Any, **settings: Any) -> Any:
        if self._made is None:
            self._made = self._factory()
        return getattr(self._made, method)(*args)

    _made: object | None = None


@dataclass
class LocalPost:
    """Hands each letter to its client when answers are collected."""

    clients: Mapping[str, Client]
    identities: Identities
    tamper: Tamper = lambda client_id, plan, reply, blob: (reply, blob)
    coin_seed: int | None = None
    away: set[str] = field(default_factory=set)
    asked: list[tuple[str, int]] = field(default_factory=list)
    recalled: int = 0
    _letters: dict[str, tuple[str, Letter]] = field(default_factory=dict)

    def send(self, client_id: str, letter: Letter, *, ttl_s: float) -> str | None:
        letter_id = secrets.token_hex(4)
        self._letters[letter_id] = client_id, letter
        return letter_id

    def collect(self, letter_ids: Collection[str], *, timeout_s: float) -> list[Answer]:
        for letter_id in letter_ids:
            client_id, letter = self._letters[letter_id]
            if client_id not in self.away:
                del self._letters[letter_id]
                return [self._answer(letter_id, client_id, letter)]
        return []

    def recall(self, letter_ids: Collection[str]) -> None:
        for letter_id in letter_ids:
            self.recalled += self._letters.pop(letter_id, None) is not None

    def online(self) -> frozenset[str]:
        return frozenset(self.clients) - self.away

    def _answer(self, letter_id: str, client_id: str, letter: Letter) -> Answer:
        kind = "RunOffer" if letter.kind == "query" else "RoundPlan"
        body, signer = unseal(kind, letter.envelope, self.identities.identify)
        assert signer.roles == {Role.SERVER}
        self.asked.append((client_id, letter.round))
        half = self._half(client_id)
        if kind == "RunOffer":
            answer = half.answer_offer(serde.offer_from_bytes(body))
            envelope = self.identities.seal(client_id, "OfferReply", serde.answer_to_bytes(answer))
            return Answer(letter_id=letter_id, envelope=envelope, blob=None)
        assert letter.blob is not None
        plan = serde.plan_from_bytes(body)
        if self.coin_seed is not None:
            seed = derive_seed(self.coin_seed, "coins", plan.round, client_id)
            half = self._half(client_id, coins=lambda: Keystream.insecure_from_seed(seed))
        digest = hashlib.sha256(body).hexdigest()
        reply, tensors = half.train(plan, load(letter.blob), digest)
        blob = None if tensors is None else to_blob(tensors)
        reply, blob = self.tamper(client_id, plan, reply, blob)
        envelope = self.identities.seal(client_id, "RoundReply", serde.reply_to_bytes(reply))
        return Answer(letter_id=letter_id, envelope=envelope, blob=blob)

    def _half(self, client_id: str, **changed: Any) -> ClientRound:
        return self.clients[client_id].round(client_id=client_id, **changed)


@dataclass(kw_only=True)
class LocalFederation:
    """Everything of a coordinator but its listeners; `coordinator()` is one process's life."""

    folder: Path
    post: LocalPost
    identities: Identities
    make_worker: type[WarmWorker] = InProcess

    @contextmanager
    def coordinator(self) -> Iterator[tuple[Engine, State]]:
        @contextmanager
        def open_post(run_id: str) -> Iterator[LocalPost]:
            yield self.post

        with State.open(self.folder / "state.db") as state:
            engine = Engine(
                state,
                self.artifacts,
                self.identities.correspondence(),
                Manifests(state=state, signer=self.identities.signer(self.folder)),
                open_post,
                folder=self.folder / "runs",
                watch=lambda kind, body: None,
                make_worker=self.make_worker,
            )
            try:
                yield engine, state
            finally:
                engine.close()

    @property
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(self.folder / "artifacts")

    def enrol(self) -> None:
        with State.open(self.folder / "state.db") as state:
            now = datetime.now(UTC)
            for client_id in self.post.clients:
                token = hashlib.sha256(client_id.encode()).hexdigest()
                state.add_invitation(client_id, token, now.replace(year=now.year + 1), "operator")
                client = ClientRecord(
                    client_id=client_id,
                    certificate_serial=f"{len(client_id)}",
                    node_public_key=client_id.encode(),
                    protocol=1,
                    version="test",
                    enrolled_at=now,
                )
                state.enrol(client_id, token, client, now)

    def submit(
        self,
        config: RunConfig,
        run_id: str = "00000000000000aa",
        start_from: str | None = None,
    ) -> str:
        with State.open(self.folder / "state.db") as state:
            run = RunRecord(
                run_id=run_id,
                name="test",
                config_json=json.dumps(config.model_dump(mode="json", exclude_unset=True)),
                clients=config.federation.clients,
                status=RunStatus.SUBMITTED,
                num_rounds=config.federation.num_rounds,
                submitted_at=datetime.now(UTC),
                submitted_by="operator",
                start_from=start_from,
            )
            return state.add_run(run, run_id, "operator").run_id


def ended(state: State, run_id: str) -> RunRecord:
    """Waits until a run has ended, one way or the other."""
    position = 0
    while True:
        run = state.run(run_id)
        if run.status in (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.STOPPED):
            return run
        for event in state.wait_events(run_id, position, 60.0):
            position = event.position


def remote_config(config: RunConfig, **federation: Any) -> RunConfig:
    """The same run for clients that bring their own rows."""
    content = config.model_dump(mode="json", exclude_unset=True)
    content["data"] = {"test": content["data"]["test"]}
    content["federation"] = {
        name: value
        for name, value in (content["federation"] | {"clients": "remote"} | federation).items()
        if name != "clients_at_once"
    }
    return RunConfig.model_validate(content)


def make_federation(
    folder: Path, model: Path, *, budget: float = 20.0, **num_rows: int
) -> LocalFederation:
    """Clients by name with so many rows each, enrolled with a coordinator that has no run yet."""
    identities = Identities(folder)
    identities.issue("server", Role.SERVER)
    clients = {}
    for name, count in num_rows.items():
        identities.issue(name, Role.DATA_OWNER)
        clients[name] = make_client(
            folder / name,
            model,
            budget=budget,
            num_rows=count,
            policy={"allow_without_privacy": True},
        )
    federation = LocalFederation(
        folder=folder, post=LocalPost(clients, identities), identities=identities
    )
    federation.enrol()
    return federation
