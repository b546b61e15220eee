"""Clients of one process: made, started, stopped."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from fedpeft.errors import BudgetError
from fedpeft.remote import Connection
from fedpeft_client import events
from fedpeft_client.client import Client
from fedpeft_client.events import Emit, Event
from fedpeft_client.join import Joining, JoinRequest
from fedpeft_client.status import StatusFile
from fedpeft_client.training import TrainingProcess

logger = logging.getLogger(__name__)

Invite = Callable[[str], str]
"""Returns a token for the client of that name."""


class Clients:
    """One client, or several that train in one process; use it in a `with` block of `open_clients`.

    `stop` and `abandon` may be called from any thread, or a signal handler.
    """

    def __init__(
        self, clients: Mapping[str, Client], training: TrainingProcess, emits: Mapping[str, Emit]
    ) -> None:
        """Use `open_clients`."""
        self._clients = clients
        self._training = training
        self._emits = emits

    def run(self) -> None:
        """Takes part until all are stopped; one that fails does not stop the others.

        Raises:
            FedpeftError: What the first one that failed did so with.
        """
        failed: list[Exception] = []

        def run(client: Client, client_id: str) -> None:
            try:
                client.run()
            except Exception as error:  # raised below, when the others have ended
                failed.append(error)
                self._tell(client_id, events.NOTE, text=str(error))
            finally:
                self._tell(client_id, events.STOPPED)

        threads = [
            threading.Thread(target=run, args=(client, client_id), name=client_id)
            for client_id, client in self._clients.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    def stop(self) -> None:
        """Ends `run` when the rounds that are being trained are done and answered."""
        for client_id, client in self._clients.items():
            self._tell(client_id, events.STOPPING)
            client.stop()

    def abandon(self) -> None:
        """Ends `run` now; a round in the middle can be asked for again, and is paid for once."""
        self.stop()
        self._training.close()

    def _tell(self, client_id: str, kind: str, **body: object) -> None:
        self._emits[client_id](Event(kind=kind, client_id=client_id, body=body))


@contextmanager
def open_clients(
    requests: Sequence[JoinRequest],
    *,
    token: str = "",
    invite: Invite | None = None,
    num_threads: int | None = None,
    emit: Emit,
) -> Iterator[Clients]:
    """Makes the clients ready to run: folders, policies, rows, budgets.

    Args:
        requests: One for each client.
        token: Of an invitation; empty where the clients are enrolled.
        invite: Makes tokens for those that are not.
        num_threads: CPU threads of training.
        emit: Is told what happens, from several threads.

    Raises:
        InputError: Whatever is wrong with an identity, a folder, a policy, rows or a budget.
    """
    joinings = [Joining.of(request) for request in requests]
    with ExitStack() as stack:
        for joining in joinings:
            stack.enter_context(joining.folder.running())
        training = TrainingProcess([j.setup for j in joinings], num_threads=num_threads)
        stack.callback(training.close)
        for joining in joinings:
            _register(joining, training, emit)
        clients, emits = {}, {}
        for joining in joinings:
            client_id, request = joining.credentials.name, joining.request
            own = token
            if not own and invite is not None and joining.folder.enrolment() is None:
                own = invite(client_id)
            emits[client_id] = _both(StatusFile(joining.folder), emit)
            connection = stack.enter_context(Connection(request.server, joining.credentials))
            clients[client_id] = Client(
                credentials=joining.credentials,
                identity=request.identity,
                folder=joining.folder,
                policy=joining.policy,
                training=training,
                enrol=connection.enrol_client,
                token=own,
                emit=emits[client_id],
            )
        yield Clients(clients, training, emits)


def _register(joining: Joining, training: TrainingProcess, emit: Emit) -> None:
    account = joining.register(training)
    if account.epsilon is None and not joining.policy.allow_without_privacy:
        raise BudgetError(
            "no budget, no training: nobody has set one for these rows; name it with --budget "
            "EPSILON:DELTA, such as 6:1e-5"
        )
    body = {
        "num_rows": account.num_rows,
        "dataset": account.dataset,
        "epsilon_budget": account.epsilon,
        "epsilon_spent": account.spent,
        "delta": account.delta,
        "ledger": joining.setup.ledger,
        "folder": str(joining.folder.path),
    }
    emit(Event(kind=events.READY, client_id=joining.credentials.name, body=body))


def _both(first: Emit, second: Emit) -> Emit:
    def emit(event: Event) -> None:
        for told in (first, second):
            try:
                told(event)
            except OSError as error:  # a full disk, a closed terminal: no reason not to answer
                logger.warning("%s of %s could not be told: %s", event.kind, event.client_id, error)

    return emit
