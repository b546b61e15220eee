"""What runs in the process that trains, here in the tests' own."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpeft.errors import BudgetError, DataError
from fedpeft.federated import refusals
from fedpeft.federated.messages import Acceptance, Refusal
from fedpeft_client.executor import Executor
from fedpeft_client.training import Account
from tests.client.trainings import Told, blob_of, setup_of
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


@pytest.fixture(autouse=True)
def _signals_and_umask() -> Iterator[None]:
    """An executor changes both, for its whole process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    umask = os.umask(0o077)
    yield
    os.umask(umask)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def client(tmp_path: Path, tiny_bert: Path) -> Client:
    return make_client(tmp_path / "client", tiny_bert)


def executor(client: Client, **fields: Any) -> Executor:
    return Executor([setup_of(client, **fields)], num_threads=1)


def account(client: Client, **fields: Any) -> Account:
    return executor(client, **fields).account(CLIENT)


def test_whatever_goes_wrong_is_answered_by_a_code_alone(client: Client, tiny_bert: Path) -> None:
    terms, told = terms_for(tiny_bert), Told()
    plan, half = plan_for(terms, client.adapter(terms)), executor(client)
    for blob in (b"", b"no safetensors at all", blob_of(client, terms)[:-1]):
        reply, update = half.train(CLIENT, plan, blob, PLAN_DIGEST, progress=told)
        assert isinstance(reply.answer, Refusal)
        assert (reply.answer.code, update) == (refusals.PROTOCOL, None)
    # An error that none of ours expects: torch cannot take this rate.
    absurd = terms_for(tiny_bert, run_id="ab" * 8, federation={"learning_rate": 1e39})
    plan = plan_for(absurd, client.adapter(terms))
    reply, _ = half.train(CLIENT, plan, blob_of(client, terms), PLAN_DIGEST, progress=told)
    assert reply.answer == refusals.refusal_of(RuntimeError())
    assert "Traceback" in told.notes[-1]


def test_a_ledger_that_is_gone_is_a_refusal(client: Client, tiny_bert: Path) -> None:
    half, told = executor(client), Told()
    half.account(CLIENT)
    client.ledger.close()
    (client.folder / "ledger.db").write_bytes(b"not a ledger")
    answer = half.answer_offer(CLIENT, terms_for(tiny_bert), progress=told).answer
    assert isinstance(answer, Refusal)
    assert answer.code == refusals.LEDGER
    assert str(client.folder) in told.notes[-1]


def test_rows_and_budget_are_checked_first(client: Client, tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(DataError, match="there is no data file"):
        account(client, data=str(tmp_path / "nothing.jsonl"))
    terms, adapter = terms_for(tiny_bert), client.adapter(terms_for(tiny_bert))
    client.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    with pytest.raises(BudgetError, match="is spent already"):
        account(client, budget=(0.1, DELTA))
    found = account(client, budget=(5.0, DELTA))
    assert (found.epsilon, found.spent) == (5.0, client.spent())


def test_columns_say_what_a_row_is_known_by(client: Client) -> None:
    """And never what a run reads: the same rows are the same data set under any terms."""
    found = account(client, columns=("text", "label"))
    assert found.dataset != client.rows.dataset
    assert found.num_rows == NUM_ROWS
    with pytest.raises(DataError, match="no column 'name'"):
        account(client, columns=("name",))


def test_clients_of_one_process_share_weights_and_nothing_else(
    client: Client, tmp_path: Path, tiny_bert: Path
) -> None:
    other = make_client(tmp_path / "other", tiny_bert, num_rows=9)
    parts = {"data": str(client.folder / "rows.jsonl")}
    half = Executor(
        [
            setup_of(client, rows=tuple(range(5)), budget=(20.0, DELTA)),
            setup_of(
                other, client_id="other", rows=tuple(range(5, 12)), budget=(9.0, DELTA), **parts
            ),
        ],
        num_threads=1,
    )
    first, second = half.account(CLIENT), half.account("other")
    assert (first.num_rows, second.num_rows, second.epsilon) == (5, 7, 9.0)
    terms = terms_for(tiny_bert)
    answers = [half.answer_offer(c, terms, progress=Told()).answer for c in (CLIENT, "other")]
    assert [a.num_examples for a in answers if isinstance(a, Acceptance)] == [5, 7]
    workplaces = [half._clients[c].workplace for c in (CLIENT, "other")]
    assert workplaces[0].prepared(terms)[0] is workplaces[1].prepared(terms)[0]
    # Two runs have models of their own, on the same weights.
    later = terms_for(tiny_bert, run_id="ab" * 8, adapter={"rank": 2})
    models = [workplaces[0].prepared(t)[0].task_model for t in (terms, later)]
    weights = [m.base.embeddings.word_embeddings.weight.data_ptr() for m in models]
    assert weights[0] == weights[1]
    assert models[0] is not models[1]
