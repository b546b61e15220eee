"""The process that trains, killed, hung and shared, as the one that asks it sees it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft.dp.accounting import epsilon
from fedpeft.errors import WorkerLostError
from fedpeft.federated.messages import Acceptance, UpdateHeader
from fedpeft.types import tensor_digest
from fedpeft.wire.blobs import read_blob
from fedpeft_client.training import TrainingProcess
from tests.client.trainings import EVENT, Told, blob_of, setup_of
from tests.federated.client_rounds import (
    CLIENT,
    DELTA,
    NUM_ROWS,
    PLAN_DIGEST,
    Client,
    make_client,
    plan_for,
    terms_for,
)


@pytest.fixture
def client(tmp_path: Path, tiny_bert: Path) -> Client:
    return make_client(tmp_path / "client", tiny_bert)


@pytest.fixture
def training(client: Client) -> Iterator[TrainingProcess]:
    process = TrainingProcess([setup_of(client)], num_threads=1)
    yield process
    process.close()


def kill(training: TrainingProcess, how: signal.Signals = signal.SIGKILL) -> None:
    assert training.pid is not None
    os.kill(training.pid, how)


def test_a_round_in_another_process(
    client: Client, training: TrainingProcess, tiny_bert: Path
) -> None:
    account = training.account(CLIENT)
    assert (account.num_rows, account.dataset) == (NUM_ROWS, client.rows.dataset)
    assert (account.epsilon, account.delta, account.spent) == (20.0, DELTA, 0.0)
    terms, told = terms_for(tiny_bert), Told()
    assert isinstance(training.answer_offer(CLIENT, terms, told).answer, Acceptance)
    plan = plan_for(terms, client.adapter(terms))
    first = training.train(CLIENT, plan, blob_of(client, terms), PLAN_DIGEST, told)
    reply, blob = first
    assert isinstance(reply.answer, UpdateHeader), told.notes
    assert blob is not None
    assert tensor_digest(read_blob(blob)) == reply.answer.digest
    assert (told.num_steps, client.spent()) == (2, epsilon([EVENT], DELTA))
    pid = training.pid
    assert training.train(CLIENT, plan, blob_of(client, terms), PLAN_DIGEST, told) == first
    assert (told.num_steps, training.pid) == (2, pid)
    # What is not sent yet, or was sent, is for nobody else on this machine.
    modes = {path.stat().st_mode & 0o077 for path in (client.folder / "updates").rglob("*")}
    assert modes == {0}


def test_a_killed_process_is_started_again_and_the_round_paid_for_once(
    client: Client, training: TrainingProcess, tiny_bert: Path
) -> None:
    killed: list[int] = []

    def kill_once(step: int) -> None:
        if not killed:
            killed.append(training.pid or 0)
            kill(training)

    terms, told = terms_for(tiny_bert), Told(kill_once)
    plan = plan_for(terms, client.adapter(terms))
    reply, blob = training.train(CLIENT, plan, blob_of(client, terms), PLAN_DIGEST, told)
    assert isinstance(reply.answer, UpdateHeader)
    assert blob is not None
    assert killed != [training.pid]
    assert "it is started again" in told.notes[0]
    assert "nothing was sent" in told.notes[1]
    assert (client.num_reservations(), client.spent()) == (1, epsilon([EVENT], DELTA))


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_is_given_up_and_nothing_is_lost(
    client: Client, training: TrainingProcess, tiny_bert: Path
) -> None:
    terms, told = terms_for(tiny_bert), Told(lambda step: kill(training))
    plan = plan_for(terms, client.adapter(terms))
    with pytest.raises(WorkerLostError, match="its process ended during train"):
        training.train(CLIENT, plan, blob_of(client, terms), PLAN_DIGEST, told)
    assert client.num_reservations() == 1
    reply, _ = training.train(CLIENT, plan, blob_of(client, terms), PLAN_DIGEST, Told())
    assert isinstance(reply.answer, UpdateHeader)
    assert client.num_reservations() == 1
    assert client.ledger.balance(client.rows.dataset).num_open == 0


@pytest.mark.slow
def test_a_round_that_hangs_is_given_up_at_its_deadline(
    client: Client, training: TrainingProcess, tiny_bert: Path
) -> None:
    terms = terms_for(tiny_bert)
    training.answer_offer(CLIENT, terms, Told())
    hasty = client.policy.model_copy(update={"task_deadline_s": 0.5})
    training._setups[CLIENT] = setup_of(client, policy=hasty)
    told = Told(lambda step: kill(training, signal.SIGSTOP))
    plan = plan_for(terms, client.adapter(terms))
    with pytest.raises(WorkerLostError, match=r"did not answer within 0\.5 s"):
        training.train(CLIENT, plan, blob_of(client, terms), PLAN_DIGEST, told)
    assert told.num_steps <= 1
    assert client.num_reservations() <= 1


@pytest.mark.slow
def test_closed_in_the_middle_it_ends_and_does_not_come_back(
    client: Client, training: TrainingProcess, tiny_bert: Path
) -> None:
    # So many steps that the end comes before theirs.
    terms = terms_for(tiny_bert, federation={"local_steps": 100})
    closer = threading.Thread(target=training.close)
    told = Told(lambda step: closer.start() if step == 1 else None)
    plan = plan_for(terms, client.adapter(terms))
    with pytest.raises(WorkerLostError):
        training.train(CLIENT, plan, blob_of(client, terms), PLAN_DIGEST, told)
    closer.join()
    with pytest.raises(WorkerLostError, match="stopping"):
        training.account(CLIENT)
    assert training.pid is None


def test_the_side_that_talks_to_the_server_loads_no_torch() -> None:
    modules = ["main", "simulated", "training", "letters", "policy_file", "status"]
    program = "import sys, " + ", ".join(f"fedpeft_client.{name}" for name in modules)
    program += "\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
