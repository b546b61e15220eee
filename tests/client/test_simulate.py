"""`fedpeft client simulate`: so many clients to a real server, one model to the machine."""

import json
import signal
from pathlib import Path

import pytest

from fedpeft.ledger import Ledger
from tests.e2e.federation import DELTA, Host, federation, program
from tests.tiny_models import write_rows

NAMES = ("client-00", "client-01", "client-02")


@pytest.mark.slow
def test_three_clients_of_one_process_finish_a_run(tmp_path: Path, tiny_bert: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40, seed=5)
    root = tmp_path / "clients"
    with federation(tmp_path / "fed", tiny_bert) as fed:
        command = [
            *("client", "simulate", fed.address, "--num-clients", "3", "--data", str(rows)),
            *("--partition", "dirichlet:5", "--budget", f"20:{DELTA}", "--threads", "1"),
            *("--identity-root", str(root), "--ca", str(fed.holders.ca), "--json"),
            *("--allow-model", str(tiny_bert)),
        ]
        simulated = program("simulated", command, folder=fed.folder, host=Host(), source=fed.source)
        simulated.start()
        try:
            for name in NAMES:
                simulated.line(f'"client_id": "{name}", "kind": "connected"')
            run = fed.submit(fed.config(num_rounds=2))
            ended = run.finished()
            assert {p.client_id for p in ended.participants} == set(NAMES)
            assert sum(p.num_examples for p in ended.participants) == 40
            # One process that trains, for all of them.
            assert len(simulated.workers()) == 1
            budgets = {budget.client_id: budget for budget in fed.operator.list_budgets()}
            for name in NAMES:
                with Ledger.open(root / name / "state" / "ledger.db", read_only=True) as ledger:
                    ledger.verify()
                    [balance] = ledger.balances()
                assert (balance.num_events, balance.num_open) == (2, 0)
                assert budgets[name].epsilon_spent == balance.spent
            status = program(
                "status",
                ["client", "status", "--state", str(root / NAMES[0] / "state"), "--json"],
                folder=fed.folder,
                host=Host(),
                source=fed.source,
            )
            status.start()
            assert status.ended() == 0
            shown = json.loads("".join(status.lines))
            assert (shown["running"], shown["connected"]) == (True, True)
            assert shown["status"]["last_update"]["round"] == 2
            assert shown["budget"]["num_events"] == 2
            simulated.signal(signal.SIGTERM)
            assert simulated.ended() == 0
        finally:
            simulated.kill()
        said = [json.loads(line) for line in simulated.lines if line.startswith("{")]
        assert {e["client_id"] for e in said if e["kind"] == "stopped"} == set(NAMES)
        finished = [e for e in said if e["kind"] == "round-finished"]
        assert len(finished) == 6
