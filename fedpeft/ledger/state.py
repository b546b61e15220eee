"""What a chain of entries adds up to, and the rules that each entry must keep.

The same rules admit an entry before it is written, read the ledger when it is opened and check it
for an auditor: what this module does not accept is in no ledger that works.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpeft.canonical import read_float
from fedpeft.dp.accounting import epsilon
from fedpeft.dp.events import PrivacyEvent
from fedpeft.errors import PrivacyError, VerificationError
from fedpeft.ledger import events
from fedpeft.ledger.chain import NO_ENTRY, Entry, Head
from fedpeft.ledger.records import Reservation

_Effect = Callable[[], None]


@dataclass(frozen=True)
class Budget:
    """A bound on what may be spent."""

    epsilon: float
    delta: float


@dataclass(kw_only=True)
class DataSet:
    """One registered data set and what was done to it alone."""

    fingerprint: str
    owner: str
    num_rows: int
    overlaps: dict[str, int]
    budget: Budget | None = None
    reservations: list[Reservation] = field(default_factory=list)


class State:
    """The sum of all entries up to `head`."""

    def __init__(self) -> None:
        """Starts before the first entry."""
        self.head = Head(0, NO_ENTRY)
        self.last_time = ""
        self.salt_digest = ""
        self.datasets: dict[str, DataSet] = {}
        self.releases: dict[str, str | None] = {}
        self._reservations: dict[str, Reservation] = {}

    def follow(self, entry: Entry) -> None:
        """Takes the entry in.

        Raises:
            VerificationError: If it does not follow, or breaks a rule; nothing is taken in then.
        """
        self.check(entry)()
        self.head, self.last_time = entry.head, entry.recorded_at

    def check(self, entry: Entry) -> _Effect:
        """Returns what the entry does; raises as `follow` does."""
        try:
            return self._rule(entry)(self, entry)
        except (ValueError, TypeError, PrivacyError) as error:
            raise VerificationError(f"entry {entry.position} of the ledger: {error}") from error

    def affected(self, fingerprint: str) -> list[DataSet]:
        """Returns the data set and those that share rows with it."""
        dataset = self.datasets[fingerprint]
        return [dataset, *(self.datasets[other] for other in dataset.overlaps)]

    def budgeted(self, fingerprint: str) -> list[tuple[DataSet, Budget]]:
        """Returns those of them that have a budget: an event on one counts in each."""
        return [(d, d.budget) for d in self.affected(fingerprint) if d.budget is not None]

    def reservations(self, fingerprint: str) -> list[Reservation]:
        """Returns all that was reserved on rows of the data set, oldest first."""
        found = (r for dataset in self.affected(fingerprint) for r in dataset.reservations)
        return sorted(found, key=lambda reservation: reservation.position)

    def spent(self, fingerprint: str, delta: float, extra: PrivacyEvent | None = None) -> float:
        """Returns epsilon at `delta` of everything on rows of the data set, and `extra`.

        What one row has lost is at most this: each event that the row was in is among these.
        """
        done = [reservation.event for reservation in self.reservations(fingerprint)]
        return epsilon([*done, extra] if extra else done, delta)

    def reservation(self, id_: str) -> Reservation | None:
        """Returns the reservation of that id."""
        return self._reservations.get(id_)

    def _rule(self, entry: Entry) -> "_Rule":
        entry.check_follows(self.head, self.last_time)
        if (entry.position == 1) != (entry.kind == "created"):
            raise ValueError("the first entry, and no other, must be of kind 'created'")
        rule = _RULES.get(entry.kind)
        if rule is None:
            raise ValueError(f"its kind {entry.kind!r} is unknown")
        return rule

    # --- one rule a kind: check the entry's body, return what it does

    def _created(self, entry: Entry) -> _Effect:
        body = _fields(entry.body, ledger=str, salt_digest=str, version=int)
        if body["version"] != 1:
            raise ValueError(f"this fedpeft reads ledgers of version 1, not {body['version']}")

        def effect() -> None:
            self.salt_digest = body["salt_digest"]

        return effect

    def _registered(self, entry: Entry) -> _Effect:
        body = _fields(entry.body, dataset=str, owner=str, num_rows=int, overlaps=dict)
        name, overlaps = body["dataset"], body["overlaps"]
        _check_digest(name)
        if name in self.datasets:
            raise ValueError(f"data set {name} was registered before")
        if body["num_rows"] < 1:
            raise ValueError("a data set has at least one row")
        for other, shared in overlaps.items():
            most = min(body["num_rows"], self._dataset(other).num_rows)
            if type(shared) is not int or not 1 <= shared <= most:
                raise ValueError(f"it cannot share {shared!r} rows with data set {other}")

        def effect() -> None:
            self.datasets[name] = DataSet(
                fingerprint=name,
                owner=body["owner"],
                num_rows=body["num_rows"],
                overlaps=dict(overlaps),
            )
            for other, shared in overlaps.items():
                self.datasets[other].overlaps[name] = shared

        return effect

    def _budget(self, entry: Entry) -> _Effect:
        body = _fields(entry.body, dataset=str, epsilon=str, delta=str)
        dataset = self._dataset(body["dataset"])
        budget = Budget(read_float(body["epsilon"]), read_float(body["delta"]))
        check_budget(budget)

        def effect() -> None:
            dataset.budget = budget

        return effect

    def _reserved(self, entry: Entry) -> _Effect:
        body = _fields(
            entry.body, reservation=str, dataset=str, event=dict, purpose=str, spent=dict
        )
        dataset = self._dataset(body["dataset"])
        if dataset.budget is None:
            raise ValueError(f"data set {dataset.fingerprint} had no budget")
        budgets = {d.fingerprint: b for d, b in self.budgeted(dataset.fingerprint)}
        if set(body["spent"]) != set(budgets):
            raise ValueError("it does not state what was spent of each budget that it counts in")
        for name, budget in budgets.items():
            after = read_float(body["spent"][name])
            if not 0 <= after <= budget.epsilon:
                raise ValueError(
                    f"it brought data set {name} to epsilon {after:g}, beyond its budget "
                    f"{budget.epsilon:g}"
                )
        reservation = Reservation(
            id=body["reservation"],
            fingerprint=dataset.fingerprint,
            event=events.decode(body["event"]),
            purpose=body["purpose"],
            position=entry.position,
        )
        if reservation.id in self._reservations:
            raise ValueError(f"reservation {reservation.id} was made before")

        def effect() -> None:
            dataset.reservations.append(reservation)
            self._reservations[reservation.id] = reservation
            self.releases[reservation.id] = None

        return effect

    def _committed(self, entry: Entry) -> _Effect:
        body = _fields(entry.body, reservation=str, release=str)
        _check_digest(body["release"])
        if body["reservation"] not in self.releases:
            raise ValueError(f"reservation {body['reservation']} was never made")
        if self.releases[body["reservation"]] is not None:
            raise ValueError(f"reservation {body['reservation']} was committed before")

        def effect() -> None:
            self.releases[body["reservation"]] = body["release"]

        return effect

    def _dataset(self, fingerprint: str) -> DataSet:
        found = self.datasets.get(fingerprint)
        if found is None:
            raise ValueError(f"data set {fingerprint} was never registered")
        return found


_Rule = Callable[[State, Entry], _Effect]
_RULES: dict[str, _Rule] = {
    "created": State._created,
    "registered": State._registered,
    "budget": State._budget,
    "reserved": State._reserved,
    "committed": State._committed,
}


def check_budget(budget: Budget) -> None:
    """Refuses a budget that means nothing."""
    if not 0 <= budget.epsilon < float("inf"):
        raise PrivacyError(f"epsilon of a budget must be a finite number ≥ 0, got {budget.epsilon}")
    if not 0 < budget.delta < 1:
        raise PrivacyError(f"delta of a budget must lie in (0, 1), got {budget.delta}")


def _fields(body: Mapping[str, Any], **kinds: type) -> Mapping[str, Any]:
    if set(body) != set(kinds):
        raise ValueError(f"missing or unknown fields: {sorted(set(body) ^ set(kinds))}")
    for name, kind in kinds.items():
        if type(body[name]) is not kind:
            raise ValueError(f"{name} should be {kind.__name__}, but is {body[name]!r}")
    return body


def _check_digest(text: str) -> None:
    if re.fullmatch(r"[0-9a-f]{64}", text) is None:
        raise ValueError(f"{text!r} is no sha256 in hex")
