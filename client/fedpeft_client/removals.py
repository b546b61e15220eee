"""A removal job on the client's own machine: its rows stay, the adapter goes.

A job without privacy releases what was computed from rows without noise, and the figures of the
gate; a policy must allow it, as it must allow runs without privacy. A private one releases what
`fedpeft.unlearning.private_job` says, and is charged to the client's ledger.

A server gives the order of a job, and could give another one than was asked for: without noise
where noise was asked for, or with a larger epsilon. So what was asked is written down here first,
and an order that differs is not done.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue
from torch import nn

from fedpeft.errors import ConfigError, DataError, FedpeftError, ModelError, ProtocolError
from fedpeft.federated.client_rows import ClientRows, check_fits
from fedpeft.federated.client_store import ClientStore
from fedpeft.federated.tombstones import Tombstones
from fedpeft.files import make_private_folder, write_private_text
from fedpeft.identity.credentials import Credentials
from fedpeft.ledger import Ledger
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.data_config import DataConfig
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.sources import read_table
from fedpeft.models.table import Table
from fedpeft.remote import Connection
from fedpeft.remote.removal_records import Removal
from fedpeft.types import derive_seed, tensor_digest
from fedpeft.unlearning.chosen import Chosen
from fedpeft.unlearning.exported import Frame
from fedpeft.unlearning.gate.report import GateReport
from fedpeft.unlearning.job import measure_private, run_job
from fedpeft.unlearning.order import JobOrder
from fedpeft.unlearning.private_job import PrivateJob
from fedpeft.unlearning.records import JobRows
from fedpeft_client.join import federation_of
from fedpeft_client.policy import ClientPolicy
from fedpeft_client.state_folder import Membership, StateFolder

Told = Callable[[str, float], None]
_PRECISIONS = "precisions"  # in an order they stand beside the settings


class Asked(BaseModel):
    """What the owner asked for, as it stands in the client's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    private: bool
    num_records: int
    settings: dict[str, JsonValue]

    def check(self, order: JobOrder) -> None:
        """Refuses the order of another job.

        Raises:
            ProtocolError: It says what differs.
        """
        for what, given, asked in (
            ("its method", order.method, self.method),
            ("whether it is private", order.is_private, self.private),
            ("the number of records", order.num_records, self.num_records),
            ("its settings", order.settings, _without_precisions(self.settings)),
        ):
            if given != asked:
                raise ProtocolError(
                    f"the server's order is not what was asked for: {what} is {given}, and was "
                    f"{asked}; nothing was computed. Cancel the request, and ask the operator"
                )


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What came of a job.

    Attributes:
        removal: The request, as the server has it now.
        gate: What was measured of a private job, for the owner alone. It does not leave the
            machine, and nothing that was sent depends on it.
        problem: Why that could not be measured.
    """

    removal: Removal
    gate: GateReport | None = None
    problem: str = ""


class ClientRemovals:
    """Does removal jobs of one client; use it from one process at a time."""

    def __init__(
        self, connection: Connection, credentials: Credentials, folder: StateFolder, told: Told
    ) -> None:
        """Reads what the client joined with; no row yet.

        Args:
            connection: To the server, as the client.
            credentials: Of the client.
            folder: Its own.
            told: Hears the phase, and the share of the job that is done.

        Raises:
            ConfigError: If nothing was joined from the folder, it is another client's, or of
                another federation.
        """
        self._connection, self._folder, self._told = connection, folder, told
        self._membership = _joined(folder, credentials)
        self._policy = ClientPolicy.read(folder.policy)
        self._tombstones = Tombstones(folder.tombstones)

    def remember(self, request_id: str, asked: Asked) -> None:
        """Writes down what a request asked for, before its job is done; the same again is no error.

        Raises:
            ConfigError: If something else is written down for it.
        """
        before = self._asked(request_id)
        if before is not None and before != asked:
            raise ConfigError(
                f"removal {request_id} was asked for otherwise; cancel it, and ask again"
            )
        make_private_folder(self._folder.removals)
        write_private_text(self._note(request_id), asked.model_dump_json(indent=1))

    def run(
        self,
        request_id: str,
        *,
        held_out: Table | None = None,
        num_retain: int = 256,
        measured: bool = True,
    ) -> Submitted:
        """Does a request's job and sends the successor; again after a crash, the same one.

        Args:
            request_id: A request whose job runs at the client.
            held_out: Rows like those to be forgotten that nobody trained on.
            num_retain: Rows that stay that a job without privacy looks at, at most.
            measured: Measure what a private job made, once it is sent.

        Raises:
            BudgetError: If a private job would exceed the budget.
            DataError: If no row is marked under the request, or the rows are not those that the
                client joined with.
            PolicyError: If the owner does not allow such a job.
            RemoteError: `wrong-state` where no job is waited for.
            FedpeftError: Whatever else `run_job` and `PrivateJob.run` say.
        """
        self._told("load", 0.0)
        job = self._connection.get_removal_job(request_id)
        order = JobOrder.from_json(job.order_json)
        if order.request_id != request_id:
            raise ProtocolError(f"the server sent the job of removal {order.request_id}")
        asked = self._asked(request_id)
        if asked is None:
            raise DataError(
                f"removal {request_id} was not asked for from {self._folder.path} with --here or "
                "--private, so that what may be done for it is not known; ask with `fedpeft "
                "removal request`"
            )
        asked.check(order)
        model = self._policy.model_here(order.section(ModelConfig, "model"), order.base_digest)
        self._policy.check_removal(model, private=order.is_private)
        with Ledger.open(self._folder.ledger_of(None)) as ledger:
            rows = self._rows(ledger)
            chosen = self._chosen(order, rows, held_out)
            get_rows = partial(self._job_rows, order, model, chosen, num_retain)
            # The coordinator's own place of the model is nothing to this machine.
            here = _with_model(order, model)
            if not order.is_private:
                result, adapter, files = run_job(here, get_rows(), job.adapter, self._told)
                return self._submitted(request_id, adapter, result.to_json(), files)
            private = PrivateJob(
                order=order,
                adapter=job.adapter,
                frame=_frame(order, model),
                rows=rows,
                tombstones=self._tombstones,
                ledger=ledger,
                store=ClientStore(self._folder.removals),
                check_noise=self._policy.check_private_job,
                told=self._told,
            )
            result, adapter, files = private.run()
        submitted = self._submitted(request_id, adapter, result.to_json(), files)
        if not measured:
            return submitted
        try:
            gate = measure_private(here, get_rows(), job.adapter, adapter, self._told)
        except FedpeftError as error:
            return Submitted(removal=submitted.removal, problem=str(error))
        return Submitted(removal=submitted.removal, gate=gate)

    # --- what was asked

    def _note(self, request_id: str) -> Path:
        return self._folder.removals / f"{request_id}.json"

    def _asked(self, request_id: str) -> Asked | None:
        path = self._note(request_id)
        try:
            return Asked.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is damaged: {str(error)[:200]}") from error

    def _submitted(
        self, request_id: str, adapter: bytes, result_json: str, files: Mapping[str, bytes]
    ) -> Submitted:
        import json

        result: dict[str, Any] = json.loads(result_json)
        return Submitted(
            removal=self._connection.submit_successor(request_id, adapter, result, files)
        )

    # --- rows

    def _rows(self, ledger: Ledger) -> ClientRows:
        """All rows of the client, known to its ledger as when it joined."""
        membership = self._membership
        table = read_table(membership.data, [])
        if membership.rows is not None:
            table = table.take(membership.rows)
        columns = membership.columns or tuple(table.columns)
        known_by = Table(table.location, {name: table.column(name) for name in columns})
        dataset = ledger.register(known_by.records())
        if dataset != membership.dataset:
            raise DataError(
                f"the rows in {membership.data} are not those that the client joined with; join "
                "again, or put the file back"
            )
        return ClientRows(table=table, dataset=dataset, columns=columns)

    def _chosen(self, order: JobOrder, rows: ClientRows, held_out: Table | None) -> Chosen:
        forget = self._tombstones.held(rows.known_by(), order.request_id)
        if not forget:
            raise DataError(
                f"no row here is marked under removal {order.request_id}; the data's owner asks "
                "for it with `fedpeft removal request --here`, which marks them"
            )
        gone = set(self._tombstones.held(rows.known_by()))
        stay = [row for row in range(rows.num_examples) if row not in gone]
        return Chosen(
            forget=rows.table.take(forget), retain=rows.table.take(stay), held_out=held_out
        )

    def _job_rows(
        self, order: JobOrder, model: ModelConfig, chosen: Chosen, num_retain: int
    ) -> JobRows:
        return chosen.job_rows(
            model,
            order.section(DataConfig, "data"),
            num_retain=num_retain,
            seed=derive_seed(order.seed, "rows that stay"),
        )


def _without_precisions(settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {name: value for name, value in settings.items() if name != _PRECISIONS}


def _joined(folder: StateFolder, credentials: Credentials) -> Membership:
    membership = folder.membership()
    if membership is None:
        raise ConfigError(
            f"the client in {folder.path} has not joined a federation; a removal job at the client "
            "needs the rows and the ledger that it joined with"
        )
    if membership.client_id != credentials.name:
        raise ConfigError(
            f"{folder.path} is the folder of client {membership.client_id!r}, this is "
            f"{credentials.name!r}; name another folder with --state"
        )
    if membership.federation != federation_of(credentials):
        raise ConfigError(f"{folder.path} belongs to the federation of another authority")
    return membership


def _with_model(order: JobOrder, model: ModelConfig) -> JobOrder:
    config = dict(order.run_config) | {"model": model.model_dump(mode="json")}
    return order.model_copy(update={"run_config": config})


def _frame(order: JobOrder, model: ModelConfig) -> Frame:
    """The base model as the policy has it, and nothing else than the order's digest says."""
    base, tokenizer = load_base_model(model), load_tokenizer(model)
    found = tensor_digest(base.state_dict())
    if found != order.base_digest:
        raise ModelError(
            f"{model.name} is not the base model that the policy names it for: expected digest "
            f"{order.base_digest}, got {found}"
        )
    check_fits(model.max_length, base, tokenizer)

    def load() -> nn.Module:
        return load_base_model(model)

    return Frame(load_base=load, model=model, labels=order.labels, tokenizer=tokenizer)
