"""A node's work as a Flower ClientApp.

`fedpeft_client.flower_app:app` is what a run's bundle names. Started by Flower itself, outside
`fedpeft client join`, it has neither data nor policy nor budget, and so refuses.
"""

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedpeft.errors import ConfigError

BUNDLE_KEY = "fedpeft-bundle"


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """A message that a node is to answer.

    Attributes:
        message: As it was delivered; `message.content` is for `wire.records.from_record`.
        bundle_hash: SHA-256 of its run's app bundle as the server states it, for the node's policy.
    """

    message: Message
    bundle_hash: str

    @property
    def message_type(self) -> str:
        """What is asked: "query" for the offer of a run, "train" for a round."""
        return self.message.metadata.message_type

    @property
    def run_id(self) -> int:
        """Flower's id of the run."""
        return self.message.metadata.run_id

    @property
    def round(self) -> str:
        """The round, as the server names the group of messages."""
        return self.message.metadata.group_id

    @property
    def expires_at(self) -> float:
        """When a reply is worth nothing any more, in seconds since the epoch."""
        return self.message.metadata.created_at + self.message.metadata.ttl


Handler = Callable[[Incoming], RecordDict]


def client_app(handler: Handler) -> ClientApp:
    """Makes the app that answers offers of runs and rounds with a handler."""
    made = ClientApp()

    @made.query()
    @made.train()
    def answer(message: Message, context: Context) -> Message:
        bundle_hash = str(context.run_config[BUNDLE_KEY])
        content = handler(Incoming(message=message, bundle_hash=bundle_hash))
        return Message(content, reply_to=message)

    return made


def _refuse(_: Incoming) -> RecordDict:
    raise ConfigError("this node was not started by `fedpeft client join`; start it so")


app = client_app(_refuse)
