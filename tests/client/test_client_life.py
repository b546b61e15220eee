"""A client over real TLS: it enrols, answers, stops, and meets a server that forgot or changed."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.app import Message, RecordDict

from fedpeft.errors import EnrolmentError, RemoteError, UnavailableError
from fedpeft.federated.messages import Acceptance
from fedpeft.identity.credentials import CERTIFICATE, KEY
from fedpeft.identity.roles import Role
from fedpeft.remote.records import Enrolment
from fedpeft.wire import serde
from fedpeft_client import client as client_module
from fedpeft_client import events
from fedpeft_client.client import Client
from fedpeft_client.policy_file import template
from fedpeft_client.state_folder import StateFolder
from fedpeft_server.fleet import Fleet, FleetConfig, build_bundle
from tests.client.letter_box import LetterBox
from tests.federated.client_rounds import CLIENT, make_client, terms_for
from tests.fleet.parts import collect

LONG_S = 60.0


@dataclass
class Server:
    """A fleet, and what answers enrolments."""

    box: LetterBox
    fleet: Fleet
    certificate_of: str = "coordinator"
    fails_with: list[Exception] = field(default_factory=list)
    forgets: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    node_id: int = 0

    def enrol(self, node_public_key: bytes, *, token: str, version: str) -> Enrolment:
        self.asked.append((token, version))
        if self.fails_with:
            raise self.fails_with.pop(0)
        if not self.forgets:
            self.node_id = self.fleet.register(node_public_key)
        certificate = self.box.holders.of(self.certificate_of).certificate
        return Enrolment(
            client_id=CLIENT,
            fleet_address=f"127.0.0.1:{self.fleet.port}",
            server_certificate=certificate.public_bytes(Encoding.DER),
            bundle_digest=build_bundle().hash,
        )

    def ask(self, content: RecordDict) -> Message:
        grid = self.fleet.grid(self.fleet.open_run(build_bundle()))
        message = grid.create_message(content, "query", self.node_id, "0", ttl=LONG_S)
        [message_id] = grid.push_messages([message])
        return collect(grid, [message_id])[message_id]


class Running:
    """A client that runs in a thread; `error` is what ended it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.client.run()
        except Exception as error:
            self.error = error

    def ended(self) -> Exception | None:
        self._thread.join(LONG_S)
        assert not self._thread.is_alive()
        return self.error


@pytest.fixture
def box(tmp_path: Path, tiny_bert: Path) -> LetterBox:
    return LetterBox(make_client(tmp_path / "client", tiny_bert), tmp_path / "holders")


@pytest.fixture
def server(box: LetterBox) -> Iterator[Server]:
    identity = box.folder / "coordinator"
    config = FleetConfig(certificate=identity / CERTIFICATE, key=identity / KEY)
    with Fleet(config) as fleet:
        yield Server(box, fleet)


@pytest.fixture
def start(
    box: LetterBox, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Running]]:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(client_module, "_LOOK_S", 0.05)
    started: list[Running] = []

    def begin() -> Running:
        made = Client(
            credentials=box.holders.of(CLIENT),
            identity=box.folder / CLIENT,
            folder=StateFolder.create(tmp_path / "state", template()),
            policy=box.client.policy,
            training=box.training,  # type: ignore[arg-type]
            enrol=server.enrol,
            token="once",
            emit=box.emit,
        )
        started.append(Running(made))
        return started[-1]

    yield begin
    for running in started:
        running.client.stop()
        running.ended()


def test_a_client_enrols_answers_and_stops(
    box: LetterBox, server: Server, start: Callable[[], Running], tiny_bert: Path
) -> None:
    running = start()
    box.wait_for(events.CONNECTED)
    reply = server.ask(box.offer(terms_for(tiny_bert)))
    body, _ = box.opened("OfferReply", reply.content)
    assert isinstance(serde.answer_from_bytes(body).answer, Acceptance)
    assert server.asked[0][0] == "once"
    running.client.stop()
    assert running.ended() is None
    assert server.fleet.online() == {}


def test_a_server_that_cannot_be_reached_is_asked_again(
    box: LetterBox, server: Server, start: Callable[[], Running]
) -> None:
    server.fails_with = [UnavailableError("no route"), UnavailableError("no route")]
    start()
    box.wait_for(events.CONNECTED)
    assert len(server.asked) == 3
    notes = [event.body["text"] for event in box.events if event.kind == events.NOTE]
    assert notes == ["no route; trying again"] * 2


def test_a_server_that_refuses_is_not_asked_again(
    server: Server, start: Callable[[], Running]
) -> None:
    server.fails_with = [RemoteError("bad-token", "the token is unknown")]
    error = start().ended()
    assert isinstance(error, RemoteError)
    assert (error.code, len(server.asked)) == ("bad-token", 1)


def test_a_server_that_forgets_it_again_and_again_is_given_up(
    server: Server, start: Callable[[], Running]
) -> None:
    server.forgets = True
    assert isinstance(start().ended(), EnrolmentError)
    assert len(server.asked) == 4


def test_a_server_with_a_new_certificate_is_believed_once_it_says_so_over_tls(
    box: LetterBox, server: Server, start: Callable[[], Running], tiny_bert: Path
) -> None:
    box.holders.issue("coordinator", Role.SERVER, hosts=["127.0.0.1"], at="renewed")
    letter = box.offer(terms_for(tiny_bert), by="renewed")
    start()
    box.wait_for(events.CONNECTED)
    # Signed by a server of the authority, which is not this one: no answer, but that it failed.
    assert server.ask(letter).has_error()
    assert len(server.asked) == 2
    server.certificate_of = "renewed"
    box.opened("OfferReply", server.ask(letter).content)
    assert len(server.asked) == 3
    box.opened("OfferReply", server.ask(letter).content)
    assert len(server.asked) == 3
    assert server.ask(box.offer(terms_for(tiny_bert))).has_error()
