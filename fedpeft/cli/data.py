"""`fedpeft data`: the generated data set, and who would hold which rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.config import load_config
from fedpeft.errors import DataError

if TYPE_CHECKING:
    from fedpeft.models.table import Table

app = typer.Typer(no_args_is_help=True, help="Generate data and look at partitions.")


@app.command()
def synth(
    directory: Annotated[Path, typer.Argument(help="Folder for train.jsonl and test.jsonl.")],
) -> None:
    """Write the generated service messages as JSONL; no real person or message is in them."""
    from fedpeft.models.sources import read_table

    splits = ("train", "test")
    _write({split: read_table(f"synthetic:messages/{split}", []) for split in splits}, directory)


@app.command()
def partition(
    config: Annotated[Path, typer.Argument(help="Configuration of a run (TOML).")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw it: .svg, .png or .pdf.")
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FOLDER", help="Also write each client's rows there."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Client → label → rows.")] = False,
) -> None:
    """Show how many rows of which label each client would hold; trains nothing."""
    run = load_config(config, overrides or [])

    from fedpeft.federated.assembly import read_and_partition

    rows = read_and_partition(run.model, run.data, run.federation)
    histogram = rows.histogram(run.data.label_column)
    if write is not None:
        _write({client: rows.train.take(part) for client, part in rows.parts.items()}, write)
    if plot is not None:
        from fedpeft.report.plots import partition_figure, save_figure

        save_figure(partition_figure(histogram, title=run.output.name), plot)
    if as_json:
        typer.echo(json.dumps(histogram, indent=2))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable("client", "rows", "labels", "largest share")
    for client, counts in histogram.items():
        total, largest = sum(counts.values()), max(counts, key=lambda name: counts[name])
        held = sum(count > 0 for count in counts.values())
        share = f"{counts[largest] / total:.0%} {largest}"
        table.add_row(Text(client), str(total), str(held), Text(share))
    Console().print(table)


def _write(tables: "Mapping[str, Table]", directory: Path) -> None:
    """Writes each table as JSONL where there is no such file yet; says what on standard error."""
    from fedpeft.files import write_text

    paths = {name: directory / f"{name}.jsonl" for name in tables}
    for path in paths.values():
        if path.exists():
            raise DataError(f"{path} exists; name another folder")
    directory.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        lines = [json.dumps(dict(record)) for record in table.records()]
        write_text(paths[name], "\n".join(lines) + "\n")
        typer.echo(f"{paths[name]}: {table.num_rows} rows", err=True)
