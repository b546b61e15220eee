"""A round as a strategy of Flower's: who gets what, and what becomes of the replies."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedpeft.errors import ProtocolError
from fedpeft.wire.records import from_arrays, from_record, to_arrays, to_record


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A body and the signature over it."""

    body: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a node answered.

    Attributes:
        signed: Not checked yet.
        blob: Its tensors; None where it sent none.
    """

    signed: Signed
    blob: bytes | None


class CohortStrategy(Strategy):
    """Every node of a cohort gets its own signed order and the same tensors."""

    def __init__(
        self,
        *,
        orders: Callable[[int], Mapping[int, Signed]],
        aggregate: Callable[[int, Mapping[int, Reply]], bytes | None],
        ttl_s: float,
    ) -> None:
        """Makes a strategy.

        Args:
            orders: The orders of a round by node; the cohort are its keys.
            aggregate: Makes the tensors of the next round out of the replies by node.
            ttl_s: Seconds until a message and its reply are worth nothing.
        """
        self._orders = orders
        self._aggregate = aggregate
        self._ttl_s = ttl_s

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Returns one message a node of the cohort; `config` is not used, orders are signed."""
        blob = from_arrays(arrays)
        return [
            grid.create_message(
                to_record(order.body, order.signature, blob),
                MessageType.TRAIN,
                node_id,
                str(server_round),
                ttl=self._ttl_s,
            )
            for node_id, order in self._orders(server_round).items()
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the next tensors, and how many nodes answered and how many did not."""
        answered, num_failed = {}, 0
        for message in replies:
            try:
                reply = None if message.has_error() else read_reply(message)
            except ProtocolError:
                reply = None
            if reply is None:
                num_failed += 1
            else:
                answered[message.metadata.src_node_id] = reply
        blob = self._aggregate(server_round, answered)
        metrics = MetricRecord({"num_replies": len(answered), "num_failed": num_failed})
        return (None if blob is None else to_arrays(blob)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Returns no messages: the coordinator evaluates on its own data."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Returns nothing."""
        return None

    def summary(self) -> None:
        """Says nothing: the run's log does."""


def read_reply(message: Message) -> Reply:
    """Unpacks a reply.

    The gate has made sure that `message.metadata.src_node_id` is the node whose key asked.

    Raises:
        ProtocolError: If it is not packed as agreed.
    """
    body, signature, blob = from_record(message.content)
    return Reply(signed=Signed(body=body, signature=signature), blob=blob)
