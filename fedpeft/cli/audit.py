"""`fedpeft audit`: attacks on the installed mechanism, a configured run, or a finished adapter."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpeft.config import RunConfig, load_config, validate_config
from fedpeft.errors import ConfigError, DataError, VerificationError

if TYPE_CHECKING:
    from rich.table import Table

    from fedpeft.dp.accounting import DpSgdEvent
    from fedpeft.federated.audit_adapter import AdapterAudit
    from fedpeft.federated.audit_mechanism import MechanismAudit
    from fedpeft.federated.audit_run import Progress
    from fedpeft.report.audit import AuditReport

_STOPPED = 130
_RED = "bold red"


def audit(
    config: Annotated[
        Path | None, typer.Argument(help="The run as TOML, as `fedpeft simulate` takes it.")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", metavar="RUN_DIR", help="Attack a finished run's adapter."),
    ] = None,
    mechanism: Annotated[
        bool,
        typer.Option("--mechanism", help="Attack the installed DP-SGD only; train no model."),
    ] = False,
    sampling_prob: Annotated[
        float | None, typer.Option(help="With --mechanism and no CONFIG: of each row and step.")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="With --mechanism and no CONFIG: noise / clip norm.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="With --mechanism and no CONFIG: number of steps.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="With --mechanism and no CONFIG. Default: 1e-5.")
    ] = None,
    client: Annotated[
        str | None, typer.Option(help="Whose rows get the canaries. Default: the largest client.")
    ] = None,
    canaries: Annotated[
        int | None,
        typer.Option(
            help="Canary rows (default: as many as the client has rows, within 200 to 1000), or "
            "with --mechanism canary gradients (default: 10,000)."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of every lower bound.")] = 0.95,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New or empty folder for audit.json and audit.html."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; repeatable."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print audit.json instead of progress and summary.")
    ] = False,
) -> None:
    """Attack the privacy of a run, and compare what was found with what the accountant claims.

    `fedpeft audit CONFIG` attacks the mechanism with the run's own noise and sampling, then trains
    the run with canary rows in one client's data, in memory, and attacks these and the real rows.
    `--adapter RUN_DIR` attacks the adapter of a finished run. Exit code 3: a claim was refuted.
    """
    from fedpeft.federated.run_folder import check_unused

    numbers = (sampling_prob, noise_multiplier, steps)
    _check_arguments(config, adapter, mechanism, numbers, delta, client, canaries, overrides)
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"--confidence must lie in [0.5, 1), got {confidence}")
    named = adapter or config or Path("mechanism")
    folder = output or Path(f"runs/{named.resolve().stem if adapter else named.stem}-audit")
    check_unused(folder)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    started = time.monotonic()
    run_config: RunConfig | None = None
    parts: dict[str, Any] = {}
    try:
        with _progress(quiet or as_json) as progress:
            if adapter is not None:
                run_config, parts["adapter"] = _adapter(adapter, confidence, progress)
            elif config is not None:
                run_config = load_config(config, overrides or [])
                parts = _run(run_config, mechanism, client, canaries, confidence, progress)
            else:
                parts["mechanism"] = _mechanism(
                    _event(numbers),
                    1e-5 if delta is None else delta,
                    canaries,
                    confidence,
                    progress,
                )
    except KeyboardInterrupt:
        typer.echo("stopped; nothing was written, and an audit starts anew", err=True)
        raise typer.Exit(_STOPPED) from None
    report = _report(run_config, f"Audit of {named.name}", parts, time.monotonic() - started)
    _show(report, folder, as_json)
    if report.failures:
        raise VerificationError(
            "the privacy claim does not hold: "
            + "; ".join(report.failures)
            + ". The releases gave away more than the accountant counts, so noise, sampling, "
            "clipping or accounting of this installation is not what it should be. Do not release "
            "what it trained; see docs/audit.md"
        )


def _check_arguments(
    config: Path | None,
    adapter: Path | None,
    mechanism: bool,
    numbers: tuple[float | None, float | None, int | None],
    delta: float | None,
    client: str | None,
    canaries: int | None,
    overrides: list[str] | None,
) -> None:
    given = [number is not None for number in numbers]
    if adapter is not None:
        if (
            config
            or mechanism
            or any(given)
            or delta is not None
            or client
            or canaries
            or overrides
        ):
            raise ConfigError(
                "--adapter audits the run as it was; give it --output and --confidence alone"
            )
    elif config is not None:
        if any(given) or delta is not None:
            raise ConfigError(
                "CONFIG says how much noise there is; leave out --sampling-prob, "
                "--noise-multiplier, --steps and --delta, or override it with --set"
            )
    elif not mechanism:
        raise ConfigError(
            "name a configuration file, --adapter and the folder of a finished run, or --mechanism"
        )
    elif not all(given) or client or overrides:
        raise ConfigError(
            "--mechanism without CONFIG takes --sampling-prob, --noise-multiplier and --steps, "
            "and neither --client nor --set"
        )


def _event(numbers: tuple[float | None, float | None, int | None]) -> "DpSgdEvent":
    from fedpeft.dp.accounting import DpSgdEvent

    sampling_prob, noise_multiplier, steps = numbers
    assert sampling_prob is not None
    assert noise_multiplier is not None
    assert steps is not None
    return DpSgdEvent(
        sampling_prob=sampling_prob, noise_multiplier=noise_multiplier, num_steps=steps
    )


def _mechanism(
    event: "DpSgdEvent",
    delta: float,
    canaries: int | None,
    confidence: float,
    progress: "Progress",
) -> "MechanismAudit":
    from fedpeft.federated import audit_mechanism as audits

    count = canaries or audits.NUM_CANARIES
    progress.stage_started("mechanism", audits.num_mechanism_steps(event, count))
    return audits.audit_mechanism(
        event,
        delta=delta,
        confidence=confidence,
        num_canaries=count,
        advanced=progress.stage_advanced,
    )


def _run(
    config: RunConfig,
    only_mechanism: bool,
    client: str | None,
    canaries: int | None,
    confidence: float,
    progress: "Progress",
) -> dict[str, Any]:
    from fedpeft.federated.assembly import cross_talk, read_and_partition
    from fedpeft.federated.audit_run import audit_run, check_example_level, choose_client
    from fedpeft.federated.plan import plan_run

    if only_mechanism and not config.privacy.enabled:
        raise ConfigError("privacy is off in this configuration: there is no mechanism to audit")
    parts: dict[str, Any] = {}
    if config.privacy.enabled:
        check_example_level(config.privacy)
    if config.privacy.enabled:
        rows = read_and_partition(config.model, config.data, config.federation)
        counts = {client_id: len(part) for client_id, part in rows.parts.items()}
        plan = plan_run(
            counts,
            config.federation,
            config.privacy,
            cross_talk=cross_talk(config.model),
        )
        chosen = plan.clients[choose_client(plan, client)]
        assert chosen.dp is not None
        parts["mechanism"] = _mechanism(
            chosen.dp.event(chosen.num_steps),
            config.privacy.delta,
            canaries if only_mechanism else None,
            confidence,
            progress,
        )
    if not only_mechanism:
        parts["run"] = audit_run(
            config.model,
            config.data,
            config.adapter,
            config.federation,
            config.privacy,
            progress,
            client_id=client,
            num_canaries=canaries,
            confidence=confidence,
        )
    return parts


def _adapter(
    folder: Path, confidence: float, progress: "Progress"
) -> tuple[RunConfig, "AdapterAudit"]:
    from fedpeft.federated.audit_adapter import audit_adapter
    from fedpeft.federated.run_folder import RunFolder

    _, run = RunFolder.reopen(folder)
    content, source = run.get("config"), folder / "run.json"
    if not isinstance(content, dict):
        raise DataError(f"{source} is damaged: it holds no configuration")
    config = validate_config(content, str(source))
    found = audit_adapter(
        folder,
        config.model,
        config.data,
        config.adapter,
        config.federation,
        config.privacy,
        progress,
        base_digest=str(run.get("base_digest")),
        data_digest=str(run.get("data_digest")),
        confidence=confidence,
    )
    return config, found


def _report(
    config: RunConfig | None, name: str, parts: dict[str, Any], seconds: float
) -> "AuditReport":
    import platform
    from importlib import metadata

    from fedpeft import __version__
    from fedpeft.report.audit import AuditReport

    packages = ("torch", "dp-accounting", "numpy", "scipy")
    return AuditReport(
        name=name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        insecure_seeded_noise=config is not None and config.privacy.insecure_seeded_noise,
        config={} if config is None else config.model_dump(mode="json"),
        versions={
            "fedpeft": __version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in packages},
        },
        seconds=seconds,
        **parts,
    )


def _show(report: "AuditReport", folder: Path, as_json: bool) -> None:
    from fedpeft.report.audit import HTML_NAME, audit_json, write_audit

    write_audit(report, folder)
    if as_json:
        typer.echo(audit_json(report), nl=False)
        return
    from rich.console import Console

    console = Console()
    console.print(summary(report, ascii_only=console.options.ascii_only))
    console.print(f"report  {folder / HTML_NAME}", style="dim", highlight=False)


def summary(report: "AuditReport", *, ascii_only: bool = False) -> "Table":
    """The audit in a few lines; red where a claim was refuted or there is none."""
    from rich.table import Table
    from rich.text import Text

    from fedpeft.cli.progress import NO_PRIVACY, _fit
    from fedpeft.report import text
    from fedpeft.report.audit import bound_lines, membership_line

    rows = [("refuted", failure, _RED) for failure in report.failures]
    part = report.run or report.adapter
    if part is not None and part.epsilon_upper is None:
        rows.append(("privacy", f"{NO_PRIVACY}: nothing is claimed", _RED))
    rows += [(title, sentence, "") for title, sentence in bound_lines(report)]
    rows += [
        (f"membership, {found.members}", membership_line(found), "")
        for found in report.membership[:4]
    ]
    if not report.failures and (report.mechanism or report.run):
        rows.append(("verdict", "nothing contradicts the claim; that does not prove it", ""))
    table = Table.grid(padding=(0, 3))
    table.add_column()
    table.add_column(overflow="fold")
    for title, value, style in rows:
        table.add_row(
            Text(_fit(text.printable(title, 40), ascii_only), style=style or "dim"),
            Text(_fit(text.printable(value), ascii_only), style=style),
        )
    return table


class _Silent:
    def stage_started(self, name: str, total: int) -> None:
        """Nothing is shown."""

    def stage_advanced(self, count: int) -> None:
        """Nothing is shown."""


@contextmanager
def _progress(silent: bool) -> Iterator["Progress"]:
    """A bar for each stage on a terminal, a line for each stage anywhere else."""
    if silent:
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    live = console.file.isatty() and not console.is_dumb_terminal
    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=32, complete_style="cyan", finished_style="green"),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, disable=not live) as bars:

        class Shown:
            def stage_started(self, name: str, total: int) -> None:
                self.task = bars.add_task(name, total=total)
                if not live:
                    typer.echo(f"{name} ...", err=True)

            def stage_advanced(self, count: int) -> None:
                bars.advance(self.task, count)

        yield Shown()
