"""Options that commands of `fedpeft removal` share."""

from pathlib import Path
from typing import Annotated, Any

import typer

RequestArgument = Annotated[str, typer.Argument(metavar="REQUEST", help="Id of the request.")]
AdapterOption = Annotated[
    str,
    typer.Option("--adapter", metavar="ADAPTER", help="An alias, or 8 or more digits of a digest."),
]
ClientOption = Annotated[
    str | None,
    typer.Option(
        "--client",
        metavar="NAME",
        help="Whose data it is. Default: yours. Anyone else's: operators alone.",
        show_default=False,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="All rows of that client: .jsonl, .csv or .parquet. Default: what the client in "
        "--state joined with.",
        show_default=False,
    ),
]
IdsOption = Annotated[
    str, typer.Option("--ids", metavar="A,B", help="Rows by these values of --id-column.")
]
IdColumnOption = Annotated[str, typer.Option("--id-column", metavar="COLUMN")]
RecordsOption = Annotated[
    str | None,
    typer.Option(
        "--records",
        metavar="FILE",
        help="Rows by a file: those that agree with one of it in all columns that it has.",
        show_default=False,
    ),
]
QueryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--query", metavar="COLUMN=VALUE", help="Rows by a value; several: all must hold."
    ),
]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        help="loku, retrain, gradient-ascent, gradient-difference, kl, npo or simnpo.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="A setting of the method or the gate, such as unlearning.num_epochs=5, "
        "private.epsilon=0.5 or gate.max_remaining=0.3; repeatable.",
    ),
]
HereOption = Annotated[
    bool,
    typer.Option("--here", help="The job runs on this machine; no row leaves it."),
]
PrivateOption = Annotated[
    bool,
    typer.Option(
        "--private",
        help="The job runs on this machine, adds noise and is charged to your own ledger: for an "
        "adapter with a privacy guarantee.",
    ),
]
VoidOption = Annotated[
    bool,
    typer.Option(
        "--void-guarantee",
        help="Operator: give up the adapter's privacy guarantee for this client.",
    ),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="FOLDER",
        help="The client's folder, where its rows are marked as removed. Default: the only one in "
        "~/.local/share/fedpeft/clients.",
        show_default=False,
    ),
]
SaltOption = Annotated[
    Path | None,
    typer.Option(
        "--salt",
        metavar="FILE",
        help="Under which your records are named by a digest; made once. Default: records.salt in "
        "--identity. Keep it: with it alone can you show what a receipt is about.",
        show_default=False,
    ),
]
RetainOption = Annotated[
    int,
    typer.Option(
        "--retain", min=2, help="Rows that stay that the job looks at, at most; a private one: all."
    ),
]
HeldOutOption = Annotated[
    Path | None,
    typer.Option(
        "--held-out",
        metavar="FILE",
        help="Rows like those to be forgotten that nobody trained on; without them membership "
        "cannot be measured.",
        show_default=False,
    ),
]
MeasureOption = Annotated[
    bool,
    typer.Option(
        "--measure/--no-measure",
        help="Measure what a private job made, after it was sent, for you alone.",
    ),
]
SettingsOption = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        metavar="FILE",
        help="TOML with the sections unlearning and gate, or private and gate.",
        show_default=False,
    ),
]
PrecisionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="At which the successor is verified: fp32, bf16, int8, int4; repeatable. Default: "
        "all.",
    ),
]


def settings_of(
    file: Path | None, overrides: list[str] | None, precisions: list[str] | None
) -> dict[str, Any]:
    """Returns the settings of a request; what they may be the server checks.

    Raises:
        ConfigError: If the file cannot be read, or an override is not `section.key=value`.
    """
    from fedpeft.config import apply_override
    from fedpeft.settings import read_toml

    settings = read_toml(file) if file is not None else {}
    for override in overrides or ():
        apply_override(settings, override)
    return settings | ({"precisions": precisions} if precisions else {})
