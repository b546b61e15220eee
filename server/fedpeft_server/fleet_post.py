"""The post of a run over Flower: a letter is a message to a client's node."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from fedpeft.errors import ProtocolError
from fedpeft.wire.records import from_record, to_record
from fedpeft_server.fleet import Bundle, Fleet, FleetGrid
from fedpeft_server.nodes import Nodes
from fedpeft_server.post import Answer, Letter


class FleetPost:
    """See `post.Post`."""

    def __init__(self, grid: FleetGrid, nodes: Nodes) -> None:
        """Takes the messages of an open run; see `open_fleet_post`."""
        self._grid, self._nodes = grid, nodes

    def send(self, client_id: str, letter: Letter, *, ttl_s: float) -> str | None:
        """See `post.Post.send`."""
        node_id = self._nodes.node_of(client_id)
        if node_id is None:
            return None
        message = self._grid.create_message(
            to_record(letter.envelope, letter.blob),
            letter.kind,
            node_id,
            str(letter.round),
            ttl_s,
        )
        [message_id] = self._grid.push_messages([message])
        return message_id or None

    def collect(self, letter_ids: Collection[str], *, timeout_s: float) -> list[Answer]:
        """See `post.Post.collect`."""
        if not letter_ids or not self._grid.wait(letter_ids, timeout_s):
            return []
        answers = []
        for reply in self._grid.pull_messages(letter_ids):
            letter_id = reply.metadata.reply_to_message_id
            if reply.has_error():
                answers.append(Answer(letter_id=letter_id, envelope=None, blob=None))
                continue
            try:
                envelope, blob = from_record(reply.content)
            except ProtocolError:
                envelope, blob = b"", None  # nobody's signature is on it, which its reader finds
            answers.append(Answer(letter_id=letter_id, envelope=envelope, blob=blob))
        return answers

    def recall(self, letter_ids: Collection[str]) -> None:
        """See `post.Post.recall`."""
        self._grid.withdraw(letter_ids)

    def online(self) -> frozenset[str]:
        """See `post.Post.online`."""
        return frozenset(self._nodes.online())


@contextmanager
def open_fleet_post(fleet: Fleet, nodes: Nodes, bundle: Bundle) -> Iterator[FleetPost]:
    """Opens a run of Flower's for one run of ours, for as long as the context is open."""
    flower_run = fleet.open_run(bundle)
    try:
        yield FleetPost(fleet.grid(flower_run), nodes)
    finally:
        fleet.close_run(flower_run)
