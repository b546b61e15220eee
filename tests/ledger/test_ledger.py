"""What every ledger keeps, in SQLite and in PostgreSQL."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedpeft.dp.accounting import DpSgdEvent, epsilon
from fedpeft.errors import BudgetError, LedgerError, PrivacyError
from fedpeft.ledger import Ledger, chain
from tests.ledger.samples import DELTA, DIGEST, EVENT, rows


def budgeted(ledger: Ledger, first: int, last: int, limit: float = 0.1, **kwargs: str) -> str:
    fingerprint = ledger.register(rows(first, last), **kwargs)
    ledger.set_budget(fingerprint, epsilon=limit, delta=DELTA)
    return fingerprint


def test_what_is_reserved_is_spent_and_stays_spent(location: str) -> None:
    with Ledger.open(location) as ledger:
        data = budgeted(ledger, 0, 10)
        assert ledger.balance(data).spent == 0
        first = ledger.reserve(data, EVENT, purpose="run 1, round 1")
        ledger.reserve(data, EVENT)
        ledger.commit(first, DIGEST)
    with Ledger.open(location) as ledger:
        balance = ledger.balance(data)
        assert balance.spent == epsilon([EVENT, EVENT], DELTA) == ledger.spent_epsilon(data, DELTA)
        assert (balance.num_events, balance.num_open, balance.num_rows) == (2, 1, 10)
        assert ledger.reservations(data)[0] == first
        assert [entry.kind for entry in ledger.history()] == [
            *("created", "registered", "budget", "reserved", "reserved", "committed")
        ]
        assert ledger.verify() == ledger.head()


def test_a_ledger_opened_before_sees_what_another_wrote(location: str) -> None:
    with Ledger.open(location) as one, Ledger.open(location) as other:
        data = budgeted(one, 0, 10)
        assert other.balance(data).spent == 0
        one.reserve(data, EVENT)
        other.reserve(data, EVENT)
        assert one.balance(data).num_events == other.balance(data).num_events == 2


def test_no_budget_no_training(ledger: Ledger) -> None:
    data = ledger.register(rows(0, 3))
    with pytest.raises(BudgetError, match="no budget, no training"):
        ledger.reserve(data, EVENT)
    with pytest.raises(BudgetError, match="no budget"):
        ledger.remaining_events(data, EVENT)
    assert ledger.balance(data).spent is None
    assert ledger.head().count == 2


def test_remaining_events_are_exactly_those_that_reserve_admits(ledger: Ledger) -> None:
    data = budgeted(ledger, 0, 10, 0.05)
    fits = ledger.remaining_events(data, EVENT)
    assert fits > 3
    assert not ledger.balance(data).exhausted
    for done in range(fits):
        assert ledger.remaining_events(data, EVENT) == fits - done
        ledger.reserve(data, EVENT)
    before = ledger.head()
    with pytest.raises(BudgetError) as refusal:
        ledger.reserve(data, EVENT)
    assert ledger.head() == before
    assert ledger.balance(data).exhausted
    spent = epsilon([EVENT] * fits, DELTA)
    cost = epsilon([EVENT] * (fits + 1), DELTA) - spent
    message = str(refusal.value)
    numbers = [float(number) for number in re.findall(r"\d+\.\d{4}", message)]
    assert numbers == pytest.approx([spent, cost], abs=1.01e-4)
    assert numbers[0] >= spent
    assert "epsilon 0.05 at delta 1e-05" in message
    assert "0 such events still fit" in message
    # A shorter event can still fit, as the message says.
    steps = int(re.findall(r"of its releases (\d+)", message)[0])
    assert 0 <= steps < EVENT.num_steps
    if steps:
        ledger.reserve(data, DpSgdEvent(noise_multiplier=4.0, sampling_prob=0.01, num_steps=steps))
    with pytest.raises(BudgetError):
        ledger.reserve(data, DpSgdEvent(noise_multiplier=4.0, sampling_prob=0.01, num_steps=1))


def test_different_events_compose(ledger: Ledger) -> None:
    data = budgeted(ledger, 0, 10, 3.0)
    other = DpSgdEvent(noise_multiplier=1.3, sampling_prob=0.02, num_steps=3)
    ledger.reserve(data, EVENT)
    ledger.reserve(data, other)
    assert ledger.balance(data).spent == epsilon([EVENT, other], DELTA)


class TestSharedRows:
    def test_adding_a_row_does_not_reset_the_budget(self, ledger: Ledger) -> None:
        data = budgeted(ledger, 0, 10)
        ledger.reserve(data, EVENT)
        more = ledger.register(rows(0, 11))
        assert more != data
        assert ledger.spent_epsilon(more, DELTA) == ledger.spent_epsilon(data, DELTA) > 0
        assert ledger.balance(more).overlaps == {data: 10}
        assert ledger.balance(data).overlaps == {more: 10}

    def test_removing_rows_does_not_reset_it_either(self, ledger: Ledger) -> None:
        data = budgeted(ledger, 0, 10)
        ledger.reserve(data, EVENT)
        fewer = budgeted(ledger, 9, 10)
        assert ledger.balance(fewer).spent == epsilon([EVENT], DELTA)

    def test_the_smaller_budget_binds_wherever_its_rows_go(self, ledger: Ledger) -> None:
        data = budgeted(ledger, 0, 10, 0.05)
        more = budgeted(ledger, 0, 11, 5.0)
        fits = ledger.remaining_events(more, EVENT)
        assert fits == ledger.remaining_events(data, EVENT)
        for _ in range(fits):
            ledger.reserve(more, EVENT)
        with pytest.raises(BudgetError, match=f"{data[:12]}, which shares 10 rows"):
            ledger.reserve(more, EVENT)
        assert ledger.balance(more).exhausted
        ledger.verify()

    def test_sharing_is_not_passed_on(self, ledger: Ledger) -> None:
        left, middle, right = (budgeted(ledger, *ends) for ends in ((0, 5), (4, 8), (7, 12)))
        ledger.reserve(left, EVENT)
        assert ledger.balance(middle).spent == epsilon([EVENT], DELTA)
        assert ledger.balance(right).spent == 0
        ledger.reserve(right, EVENT)
        assert ledger.balance(middle).spent == epsilon([EVENT, EVENT], DELTA)
        assert ledger.balance(left).spent == epsilon([EVENT], DELTA)
        ledger.verify()

    def test_disjoint_data_sets_do_not_add_up(self, ledger: Ledger) -> None:
        one, other = budgeted(ledger, 0, 5), budgeted(ledger, 5, 10)
        ledger.reserve(one, EVENT)
        assert ledger.balance(other).spent == 0

    def test_order_repetition_and_spelling_do_not_matter(self, ledger: Ledger) -> None:
        data = ledger.register(rows(0, 5))
        assert ledger.register([*rows(3, 5), *rows(0, 5)]) == data
        spelled = [{"LABEL": f"{i % 3}.0", "body": f" Message  {i}", "x": None} for i in range(5)]
        assert ledger.register(spelled) == data
        assert ledger.head().count == 2

    def test_owners_are_kept_apart(self, ledger: Ledger) -> None:
        one = budgeted(ledger, 0, 5, owner="one")
        other = budgeted(ledger, 0, 5, owner="other")
        ledger.reserve(one, EVENT)
        assert ledger.balance(other).spent == 0
        assert ledger.balance(other).overlaps == {}
        ledger.verify()


class TestBudget:
    def test_it_can_be_raised_and_lowered_to_what_is_spent(self, ledger: Ledger) -> None:
        data = budgeted(ledger, 0, 5, 0.02)
        while True:
            try:
                ledger.reserve(data, EVENT)
            except BudgetError:
                break
        ledger.set_budget(data, epsilon=1.0, delta=DELTA)
        ledger.reserve(data, EVENT)
        spent = ledger.spent_epsilon(data, DELTA)
        ledger.set_budget(data, epsilon=spent, delta=DELTA)
        with pytest.raises(BudgetError):
            ledger.reserve(data, EVENT)
        ledger.verify()

    def test_lowering_it_below_what_is_spent_is_refused(self, ledger: Ledger) -> None:
        data = budgeted(ledger, 0, 5)
        ledger.reserve(data, EVENT)
        before = ledger.head()
        with pytest.raises(BudgetError, match=r"spent already.*cannot be 0\.001; give at least"):
            ledger.set_budget(data, epsilon=0.001, delta=DELTA)
        with pytest.raises(BudgetError, match="spent already"):  # a smaller delta costs more
            ledger.set_budget(data, epsilon=ledger.spent_epsilon(data, DELTA), delta=1e-9)
        assert ledger.head() == before
        assert ledger.balance(data).epsilon == 0.1

    def test_the_same_budget_again_is_no_entry(self, ledger: Ledger) -> None:
        data = budgeted(ledger, 0, 5)
        before = ledger.head()
        ledger.set_budget(data, epsilon=0.1, delta=DELTA)
        assert ledger.head() == before

    def test_zero_forbids_training(self, ledger: Ledger) -> None:
        data = budgeted(ledger, 0, 5, 0)
        with pytest.raises(BudgetError, match="0 such events"):
            ledger.reserve(data, EVENT)

    def test_one_that_means_nothing_is_refused(self, ledger: Ledger) -> None:
        data = ledger.register(rows(0, 5))
        nan, inf = float("nan"), float("inf")
        odd = [(nan, 1e-5), (inf, 1e-5), (-1, 1e-5), (1, 0), (1, 1), (1, nan), (1, -1e-5), (1, inf)]
        for limit, delta in odd:
            with pytest.raises(PrivacyError, match="of a budget must"):
                ledger.set_budget(data, epsilon=limit, delta=delta)
        assert ledger.head().count == 2


class TestCommit:
    def test_one_reservation_pays_for_one_release(self, ledger: Ledger) -> None:
        data = budgeted(ledger, 0, 5)
        reservation = ledger.reserve(data, EVENT)
        ledger.commit(reservation, DIGEST)
        before = ledger.head()
        ledger.commit(reservation.id, DIGEST)  # the same once more: the first answer got lost
        with pytest.raises(PrivacyError, match="needs a reservation of its own"):
            ledger.commit(reservation, "a" * 64)
        assert ledger.head() == before

    def test_it_must_have_been_made(self, ledger: Ledger) -> None:
        with pytest.raises(LedgerError, match="no reservation 'f00'"):
            ledger.commit("f00", DIGEST)

    def test_a_release_is_named_by_its_sha256(self, ledger: Ledger) -> None:
        reservation = ledger.reserve(budgeted(ledger, 0, 5), EVENT)
        for digest in ("", "xyz", DIGEST[:-1], DIGEST.upper(), DIGEST + "\n"):
            with pytest.raises(LedgerError, match="64 hex digits"):
                ledger.commit(reservation, digest)


def test_an_unknown_data_set_is_refused(ledger: Ledger) -> None:
    unknown = "0" * 64
    for call in (
        lambda: ledger.balance(unknown),
        lambda: ledger.reserve(unknown, EVENT),
        lambda: ledger.set_budget(unknown, epsilon=1, delta=DELTA),
        lambda: ledger.remaining_events(unknown, EVENT),
        lambda: ledger.spent_epsilon(unknown, DELTA),
        lambda: ledger.reservations(unknown),
    ):
        with pytest.raises(LedgerError, match="knows no data set"):
            call()
    with pytest.raises(LedgerError, match="no data sets in this ledger begin with 'ab'"):
        ledger.find("ab")
    assert ledger.head().count == 1


def test_find_wants_one_match(ledger: Ledger) -> None:
    names = [ledger.register(rows(i, i + 1)) for i in range(17)]
    assert ledger.find(names[3][:20]) == names[3]
    first = next(n[0] for n in names if sum(m[0] == n[0] for m in names) > 1)
    with pytest.raises(LedgerError, match="data sets in this ledger begin"):
        ledger.find(first)


def test_an_event_that_the_ledger_cannot_write_is_refused(ledger: Ledger) -> None:
    class Quieter(DpSgdEvent):
        pass

    data = budgeted(ledger, 0, 5)
    before = ledger.head()
    odd = Quieter(noise_multiplier=4.0, sampling_prob=0.01, num_steps=5)
    with pytest.raises(PrivacyError, match="does not know the privacy event"):
        ledger.reserve(data, odd)
    with pytest.raises(LedgerError, match="printable text"):
        ledger.reserve(data, EVENT, purpose="two\nlines")
    with pytest.raises(LedgerError, match="printable text"):
        ledger.register(rows(0, 2), owner="x" * 201)
    assert ledger.head() == before


def test_a_clock_that_goes_back_is_recorded_and_changes_nothing(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(year: int) -> None:
        monkeypatch.setattr(chain, "utc_now", lambda: datetime(year, 1, 1, tzinfo=UTC))

    at(2030)
    with Ledger.open(location) as ledger:
        data = budgeted(ledger, 0, 5)
        at(2020)
        ledger.reserve(data, EVENT)
        at(2031)
        ledger.reserve(data, EVENT)
        *_, before, behind, after = ledger.history()
        assert before.clock is after.clock is None
        assert behind.recorded_at == before.recorded_at
        assert behind.clock is not None
        assert behind.clock.startswith("2020-01-01T00:00:00")
        assert after.recorded_at.startswith("2031")
        assert ledger.balance(data).num_events == 2
        ledger.verify()


def test_a_read_only_ledger_is_read_and_not_written(location: str) -> None:
    with Ledger.open(location) as ledger:
        data = budgeted(ledger, 0, 5)
        with Ledger.open(location, read_only=True) as reader:
            ledger.reserve(data, EVENT)
            assert reader.balance(data).num_events == 1
            assert reader.verify() == ledger.head()
            assert reader.register(rows(0, 5)) == data
            with pytest.raises(LedgerError, match="opened for reading only"):
                reader.reserve(data, EVENT)
            with pytest.raises(LedgerError, match="opened for reading only"):
                reader.register(rows(0, 6))


def test_a_fork_goes_on_with_a_connection_of_its_own(location: str, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = """
import os, sys
from fedpeft.ledger import Ledger
from tests.ledger.samples import DELTA, EVENT, rows
with Ledger.open(sys.argv[1]) as ledger:
    data = ledger.register(rows(0, 5))
    ledger.set_budget(data, epsilon=1.0, delta=DELTA)
    ledger.reserve(data, EVENT)
    child = os.fork()
    for _ in range(5):
        ledger.reserve(data, EVENT)
    if child == 0:
        ledger.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ledger.balance(data).num_events == 11
    ledger.verify()
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, location], check=True, cwd=root)


def test_a_reservation_without_release_is_found_again(ledger: Ledger) -> None:
    data, other = budgeted(ledger, 0, 10), budgeted(ledger, 5, 15)
    assert ledger.open_reservation(data, EVENT, purpose="round 1") is None
    first = ledger.reserve(data, EVENT, purpose="round 1")
    assert ledger.open_reservation(data, EVENT, purpose="round 1") == first
    # Neither for rows that only overlap, nor for another event or purpose.
    assert ledger.open_reservation(other, EVENT, purpose="round 1") is None
    assert ledger.open_reservation(data, EVENT.single(), purpose="round 1") is None
    assert ledger.open_reservation(data, EVENT, purpose="round 2") is None
    assert ledger.release_of(first) is None
    ledger.commit(first, DIGEST)
    assert ledger.release_of(first) == ledger.release_of(first.id) == DIGEST
    assert ledger.open_reservation(data, EVENT, purpose="round 1") is None
    second = ledger.reserve(data, EVENT, purpose="round 1")
    assert ledger.open_reservation(data, EVENT, purpose="round 1") == second
    with pytest.raises(LedgerError, match="knows no reservation 'mine'"):
        ledger.release_of("mine")
    with pytest.raises(LedgerError, match="knows no data set"):
        ledger.open_reservation("ab" * 32, EVENT, purpose="round 1")
