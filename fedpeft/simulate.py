"""A whole simulated run, from a configuration to a verified adapter and its report."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.config import RunConfig, validate_config
from fedpeft.errors import DataError
from fedpeft.federated.accounts import open_accounts
from fedpeft.federated.assembly import Assembly, assemble
from fedpeft.federated.export import compare_metrics, export_adapter, reload_and_score
from fedpeft.federated.observer import Observer
from fedpeft.federated.run_folder import RunFolder, check_unused
from fedpeft.federated.simulation import Simulation
from fedpeft.federated.trainer import LocalTrainer, Trainer
from fedpeft.report.build import build_report
from fedpeft.report.schema import Report
from fedpeft.report.write import write_report
from fedpeft.workers import RayTrainer, RayWorkers, WorkersConfig, started_ray

ADAPTER_FOLDER = "adapter"


def simulate(
    config: RunConfig,
    output: Path,
    observer: Observer,
    *,
    workers: WorkersConfig | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Report:
    """Starts a new run in `output`, a new or empty folder, and takes it to its report.

    Everything that can be wrong with the input is found before the folder is made.

    Args:
        config: The run.
        output: Its folder.
        observer: What watches.
        workers: Who trains; None: this process. The results are the same.
        stop_requested: Asked between groups of clients.

    Raises:
        InputError: If anything in the input cannot be used; nothing was written.
        Stopped: If it was asked to stop; `resume` goes on.
        VerificationError: If the adapter never changed, or does not score the same when reloaded.
    """
    check_unused(output)
    config = _with_absolute_ledger(config)
    started = time.monotonic()
    with _started(config, workers) as actors:
        assembly = _assemble(config)
        seconds = time.monotonic() - started
        run_id = secrets.token_hex(8)
        _check_budgets(config, assembly, run_id)
        about = {
            "run_id": run_id,
            "config": config.model_dump(mode="json"),
            "base_digest": assembly.base_digest,
            "data_digest": assembly.data_digest,
        }
        folder = RunFolder.create(output, about)
        run = _Run(config=config, assembly=assembly, folder=folder, run_id=run_id)
        return _finish(run, observer, actors, stop_requested, started, seconds)


def resume(
    output: Path,
    observer: Observer,
    *,
    workers: WorkersConfig | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Report:
    """Goes on with the run in `output`, in the open round, on the same base model and data.

    Raises:
        DataError: If the folder holds no run, or model or data are no longer what they were.
    """
    started = time.monotonic()
    folder, run = RunFolder.reopen(output)
    config = _stored_config(run, output)
    with _started(config, workers) as actors:
        assembly = _assemble(config)
        seconds = time.monotonic() - started
        for name, found in (("base", assembly.base_digest), ("data", assembly.data_digest)):
            if run.get(f"{name}_digest") != found:
                raise DataError(
                    f"the run in {output} cannot go on: its {name} is not what it started with "
                    f"(expected digest {run.get(f'{name}_digest')}, got {found})"
                )
        reopened = _Run(config=config, assembly=assembly, folder=folder, run_id=run["run_id"])
        return _finish(reopened, observer, actors, stop_requested, started, seconds)


@dataclass(frozen=True, kw_only=True)
class _Run:
    config: RunConfig
    assembly: Assembly
    folder: RunFolder
    run_id: str


def _with_absolute_ledger(config: RunConfig) -> RunConfig:
    """So that `resume` finds the same ledger from another working directory."""
    ledger = config.privacy.ledger
    if ledger is None or "://" in ledger:
        return config
    privacy = config.privacy.model_copy(update={"ledger": str(Path(ledger).resolve())})
    return config.model_copy(update={"privacy": privacy})


def _check_budgets(config: RunConfig, assembly: Assembly, run_id: str) -> None:
    """Refuses a run that the budgets in a ledger of the user's do not allow to its end."""
    privacy = config.privacy
    if privacy.ledger is not None:
        with open_accounts(
            privacy.ledger,
            assembly.rows,
            run_id=run_id,
            delta=privacy.delta,
        ) as accounts:
            accounts.check_affordable(assembly.plan, config.federation.local_steps)


def _assemble(config: RunConfig) -> Assembly:
    return assemble(config.model, config.data, config.adapter, config.federation, config.privacy)


def _stored_config(run: Mapping[str, Any], output: Path) -> RunConfig:
    content = run.get("config")
    if not isinstance(content, dict) or not isinstance(run.get("run_id"), str):
        raise DataError(f"{output / 'run.json'} is damaged: it holds no configuration or no run_id")
    return validate_config(content, str(output / "run.json"))


@contextmanager
def _started(config: RunConfig, workers: WorkersConfig | None) -> Iterator[RayWorkers | None]:
    if workers is None:
        yield None
    else:
        with started_ray(workers):
            yield RayWorkers(config, workers)


def _trainer(config: RunConfig, assembly: Assembly, actors: RayWorkers | None) -> Trainer:
    if actors is not None:
        return RayTrainer(actors, assembly, config.federation.local_steps)
    return LocalTrainer(
        assembly.model,
        assembly.datasets,
        assembly.plan.clients,
        config.federation,
        max_tokens=config.model.max_tokens_per_batch,
    )


def _finish(
    run: _Run,
    observer: Observer,
    actors: RayWorkers | None,
    stop_requested: Callable[[], bool],
    started: float,
    assembly_seconds: float,
) -> Report:
    config, assembly, folder = run.config, run.assembly, run.folder
    simulation = Simulation(
        run_id=run.run_id,
        model=assembly.model,
        trainer=_trainer(config, assembly, actors),
        rows=assembly.rows,
        test=assembly.test,
        plan=assembly.plan,
        federation=config.federation,
        privacy=config.privacy,
        task=config.model.task,
        max_tokens=config.model.max_tokens_per_batch,
        folder=folder,
        observer=observer,
        stop_requested=stop_requested,
    )
    simulation.run()
    adapter = folder.path / ADAPTER_FOLDER
    export_adapter(adapter, assembly.model, simulation.tensors, config.model, assembly.labels)
    observer.note("loading the exported adapter with peft in another process")
    reloaded = reload_and_score(
        adapter, config.model, config.data, assembly.labels, seed=config.federation.seed
    )
    report = build_report(
        name=config.output.name,
        config=config.model_dump(mode="json"),
        model=config.model,
        adapter=config.adapter,
        assembly=assembly,
        simulation=simulation,
        reload_metrics=reloaded,
        reload_difference=compare_metrics(simulation.final_metrics, reloaded),
        adapter_path=ADAPTER_FOLDER,
        calibration_seconds=assembly_seconds,
        total_seconds=time.monotonic() - started,
    )
    write_report(report, folder.path)
    return report
