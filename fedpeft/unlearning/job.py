"""A removal job: from an affected version and rows to a measured successor."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fedpeft.adapters.config import AdapterConfig
from fedpeft.errors import ConfigError, ModelError, PrivacyError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.assembly import encode
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import Dataset
from fedpeft.models.label_space import LabelSpace
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.table import Table
from fedpeft.registry.fingerprint import Fingerprint
from fedpeft.settings import validate
from fedpeft.types import derive_seed, tensor_digest
from fedpeft.unlearning.blobs import read_tensors, write_tensors
from fedpeft.unlearning.config import UnlearningConfig
from fedpeft.unlearning.exported import Exported, Frame, export_and_reload, outputs
from fedpeft.unlearning.gate.config import GateConfig
from fedpeft.unlearning.gate.report import GateReport
from fedpeft.unlearning.gate.rows import gate_rows
from fedpeft.unlearning.gate.shown import Look
from fedpeft.unlearning.gate.verify import Verification, Version, verify
from fedpeft.unlearning.job_rows import JobTables, job_tables
from fedpeft.unlearning.low_rank_edit import Successor
from fedpeft.unlearning.methods import METHODS, Claim, Method, Removal
from fedpeft.unlearning.order import JobOrder, JobResult, run_config_after
from fedpeft.unlearning.records import JobRows
from fedpeft.unlearning.unlearn import Deployed, Progress

__all__ = [
    "JobOrder",
    "JobResult",
    "Told",
    "measure_private",
    "measure_retrained",
    "run_config_after",
    "run_job",
]

Told = Callable[[str, float], None]
"""Hears a phase, and the share of the whole job that is done."""

_PHASES = {"load": 0.0, "importance": 0.05, "steps": 0.15, "export": 0.55, "verify": 0.6}
"""Where each begins, as a share of the job: a guess, for a progress bar."""
_REFUSAL = " I don't know."


def run_job(
    order: JobOrder,
    rows: JobRows,
    adapter: bytes,
    told: Told = lambda phase, share: None,
    *,
    load_base: Callable[[ModelConfig], nn.Module] = load_base_model,
    reference: Version | None = None,
    method: Method | None = None,
) -> tuple[JobResult, bytes, dict[str, bytes]]:
    """Makes a successor, writes it as it is served, and measures it.

    The same order, rows and adapter give the same successor on one machine. A job keeps nothing:
    the rows are in memory only, and a job that was killed begins again.

    Args:
        order: What is to be done.
        rows: Of the request, opened.
        adapter: Tensors of the affected version, as safetensors.
        told: Hears how far it is.
        load_base: Loads the base model; a client's policy may have another place for it.
        reference: An adapter that was retrained without the rows, to compare with.
        method: In place of the one that the order names, and of the same name.

    Returns:
        What came of it, the successor's tensors as safetensors, and the files of its export in PEFT
        format. Whether the gate passed is in the result: a successor that failed is not to be
        published.

    Raises:
        AdapterError: If the adapter does not fit the run's configuration.
        ConfigError: If the order's settings are wrong, or its method does not run in a job.
        DataError: If the rows cannot be used; see `job_rows.job_tables`.
        DivergedError: If a loss became NaN or infinite.
        ModelError: If the base model is another one than the adapter was made for.
        PrivacyError: If the order says that the job is charged: see `private_job`.
        VerificationError: If the exported files are not the successor.
    """
    clock = _Clock()
    method = _chosen(order, method)
    with clock.phase("load"):
        told("load", 0.0)
        job = _Job.opened(order, rows, adapter, load_base)
    with clock.phase("method"):
        made = job.make(method, told)
    with clock.phase("export"):
        told("export", _PHASES["export"])
        exported = job.export(made)
    with clock.phase("verify"):
        gate = job.verify(
            Version(adapter=made.config, tensors=exported.tensors),
            reference,
            is_exact=method.claim == "exact",
            told=told,
        )
    result = JobResult(
        parent=tensor_digest(job.affected.tensors),
        digest=tensor_digest(exported.tensors),
        method=method.name,
        claim=method.claim,
        adapter=made.config.model_dump(mode="json"),
        lost=made.lost,
        seconds=clock.seconds,
        gate=gate,
        fingerprint={
            "before": job.fingerprint(job.affected).to_json(),
            "after": job.fingerprint(
                Version(adapter=made.config, tensors=exported.tensors)
            ).to_json(),
            "expected": exported.fingerprint.to_json(),
        },
    )
    told("verify", 1.0)
    return result, write_tensors(exported.tensors), exported.files


def measure_retrained(
    order: JobOrder,
    rows: JobRows,
    adapter: bytes,
    successor: bytes,
    told: Told = lambda phase, share: None,
    *,
    load_base: Callable[[ModelConfig], nn.Module] = load_base_model,
) -> tuple[JobResult, bytes, dict[str, bytes]]:
    """Measures a successor that the rounds of a run made, as `run_job` measures its own.

    Args:
        order: Its method is "retrain".
        rows: As in `run_job`.
        adapter: Tensors of the affected version, as safetensors.
        successor: Tensors of the retrained one; its rank and modules are those of the run.
        told: As in `run_job`.
        load_base: As in `run_job`.

    Raises:
        FedpeftError: See `run_job`.
    """
    retrained = read_tensors(successor)
    return run_job(order, rows, adapter, told, load_base=load_base, method=_Retrained(retrained))


def measure_private(
    order: JobOrder,
    rows: JobRows,
    adapter: bytes,
    successor: bytes,
    told: Told = lambda phase, share: None,
    *,
    load_base: Callable[[ModelConfig], nn.Module] = load_base_model,
) -> GateReport:
    """Measures what a private job made, for its owner alone: no epsilon covers the figures.

    Args:
        order: Of a private job.
        rows: As in `run_job`.
        adapter: Tensors of the affected version, as safetensors.
        successor: Tensors of what was made.
        told: As in `run_job`.
        load_base: As in `run_job`.

    Raises:
        FedpeftError: See `run_job`.
    """
    job = _Job.opened(order, rows, adapter, load_base)
    version = Version(adapter=job.affected.adapter, tensors=read_tensors(successor))
    return job.verify(version, None, is_exact=False, told=told)


class _Retrained:
    """Retraining, once the rounds are done."""

    name = "retrain"
    claim: Claim = "exact"
    place: Literal["job", "rounds"] = "job"
    requestable = False

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def make(self, removal: Removal) -> Successor:
        """Returns what the rounds made."""
        config = removal.deployed.adapter
        return Successor(config=config, tensors=self._tensors, lost=0.0)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A job's parts, checked."""

    order: JobOrder
    frame: Frame
    data: DataConfig
    affected: Version
    tables: JobTables
    unlearning: UnlearningConfig
    gate: GateConfig

    @classmethod
    def opened(
        cls,
        order: JobOrder,
        rows: JobRows,
        adapter: bytes,
        load_base: Callable[[ModelConfig], nn.Module],
    ) -> "_Job":
        model = order.section(ModelConfig, "model")
        data = order.section(DataConfig, "data")
        unlearning = validate(
            UnlearningConfig, order.settings.get("unlearning", {}), "settings of the method"
        )
        gate = validate(GateConfig, order.settings.get("gate", {}), "settings of the gate")
        tables = job_tables(
            rows, model, data, check_share=gate.check_share, seed=derive_seed(order.seed, "rows")
        )
        found = tensor_digest(load_base(model).state_dict())
        if found != order.base_digest:
            raise ModelError(
                f"the adapter was made for the base model of digest {order.base_digest}, and "
                f"{model.name} is {found}; use the model that the run used"
            )
        return cls(
            order=order,
            frame=Frame(
                load_base=lambda: load_base(model),
                model=model,
                labels=order.labels,
                tokenizer=load_tokenizer(model),
            ),
            data=data,
            affected=Version(
                adapter=order.section(AdapterConfig, "adapter"), tensors=read_tensors(adapter)
            ),
            tables=tables,
            unlearning=unlearning,
            gate=gate,
        )

    def make(self, method: Method, told: Told) -> Successor:
        """Lets the method make the successor."""
        frame = self.frame

        def progressed(progress: Progress) -> None:
            begin = _PHASES[progress.phase]
            end = _PHASES["steps" if progress.phase == "importance" else "export"]
            told(progress.phase, begin + (end - begin) * progress.done / progress.total)

        return method.make(
            Removal(
                base=frame.load_base(),
                deployed=Deployed(
                    model=frame.model,
                    adapter=self.affected.adapter,
                    tensors=self.affected.tensors,
                    num_classes=len(frame.labels),
                ),
                forget=self._encoded(self.tables.forget),
                retain=self._encoded(self.tables.retain),
                config=self.unlearning,
                seed=derive_seed(self.order.seed, "method"),
                told=progressed,
                refusal=frame.tokenizer(_REFUSAL, add_special_tokens=False)["input_ids"],
            )
        )

    def export(self, successor: Successor) -> Exported:
        """Writes the successor as it is served, and reads it again."""
        rows = [self._encoded(self.tables.forget), self._encoded(self.tables.check)]
        return export_and_reload(successor, self.frame, rows)

    def verify(
        self, successor: Version, reference: Version | None, *, is_exact: bool, told: Told
    ) -> GateReport:
        """Puts the successor through the gate."""
        tables, most, begin = self.tables, self.gate.max_rows, _PHASES["verify"]
        rows = gate_rows(
            {
                "forget": _first(tables.forget, most),
                "retain": _first(tables.check, most),
                "held_out": _first(tables.held_out, most),
            },
            self.data,
            self._encoded,
        )
        report = verify(
            Verification(
                load_base=self.frame.load_base,
                model=self.frame.model,
                num_classes=len(self.frame.labels),
                affected=self.affected,
                successor=successor,
                reference=reference,
                look=Look(
                    rows=rows,
                    tokenizer=self.frame.tokenizer,
                    config=self.gate,
                    max_tokens=self.frame.model.max_tokens_per_batch,
                ),
                precisions=self.order.precisions,
                is_exact=is_exact,
                seed=self.order.seed,
            ),
            lambda share: told("verify", begin + (1 - begin) * share),
        )
        if not tables.shares:
            return report
        seen = "utility on rows that the method did not see: there were too few to set some apart"
        return report.model_copy(update={"not_measured": (*report.not_measured, seen)})

    def fingerprint(self, version: Version) -> Fingerprint:
        """Returns the outputs of a version on the probes."""
        frame = self.frame
        model = AdaptedModel(
            frame.load_base(), frame.model, version.adapter, num_classes=len(frame.labels), seed=0
        )
        model.load(version.tensors)
        return outputs(model.task_model, frame)

    def _encoded(self, table: Table) -> Dataset:
        labels = LabelSpace(self.frame.labels) if self.frame.labels else None
        return encode(table, self.frame.model, self.data, labels, self.frame.tokenizer)


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def _chosen(order: JobOrder, given: Method | None) -> Method:
    if order.method not in METHODS:
        raise ConfigError(f"there is no method {order.method!r}; there are {', '.join(METHODS)}")
    method = METHODS[order.method] if given is None else given
    if method.name != order.method:
        raise ConfigError(f"the order's method is {order.method!r}, and {method.name!r} was given")
    if method.place != "job":
        raise ConfigError(f"{method.name!r} goes through the rounds of a run and not through a job")
    if order.is_private:
        raise PrivacyError(
            f"the order says that the job is charged to a ledger, and {method.name!r} as it is "
            "here adds no noise; a private job runs at the client: `fedpeft removal run`"
        )
    return method


def _first(table: Table, most: int) -> Table:
    return table.take(range(min(table.num_rows, most)))
