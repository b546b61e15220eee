"""`fedpeft client status`: what a client does, what it spent, what its owner allows."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpeft.errors import ConfigError

if TYPE_CHECKING:
    from fedpeft_client.status import Overview


def status(
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FOLDER",
            help="The client's folder. Default: the only one in ~/.local/share/fedpeft/clients.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show budget, rounds, the last update and the policy; also while it runs, or after it died."""
    from fedpeft_client.state_folder import StateFolder
    from fedpeft_client.status import Overview

    overview = Overview.of(StateFolder(state or only_client()))
    if as_json:
        typer.echo(json.dumps(_as_json(overview), indent=2))
        return
    _print(overview)


def only_client() -> Path:
    """Returns the folder of the only client of this user.

    Raises:
        ConfigError: If there is none, or more than one.
    """
    from fedpeft_client.state_folder import default_root

    root = default_root()
    found = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if len(found) != 1:
        names = ", ".join(str(path) for path in found[:10])
        raise ConfigError(
            f"there are {len(found)} clients in {root}{': ' if found else ''}{names}; name one "
            "with --state"
        )
    return found[0]


def _as_json(overview: "Overview") -> dict[str, Any]:
    status, membership, balance = overview.status, overview.membership, overview.balance
    return {
        "folder": str(overview.folder.path),
        "running": overview.running,
        "connected": overview.connected,
        "activity": overview.activity,
        "status": None if status is None else status.model_dump(),
        "membership": None if membership is None else membership.model_dump(),
        "budget": None
        if balance is None
        else {
            "epsilon": balance.epsilon,
            "delta": balance.delta,
            "spent": balance.spent,
            "remaining": balance.remaining,
            "num_events": balance.num_events,
            "num_open": balance.num_open,
            "exhausted": balance.exhausted,
        },
        "num_removed_rows": overview.num_removed,
        "policy": None if overview.policy is None else overview.policy.model_dump(mode="json"),
        "problems": list(overview.problems),
    }


def _print(overview: "Overview") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedpeft.report.text import printable

    table = Table.grid(padding=(0, 3))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, value, style in _rows(overview):
        table.add_row(Text(title, style=style or "dim"), Text(printable(value, 2000), style=style))
    Console().print(table)


def _rows(overview: "Overview") -> list[tuple[str, str, str]]:
    """Title, value and style of each line."""
    status, membership, policy = overview.status, overview.membership, overview.policy
    rows: list[tuple[str, str, str]] = []
    if membership is None:
        rows.append(("client", f"{overview.folder.path} has not joined a federation yet", ""))
    else:
        rows.append(("client", f"{membership.client_id}, in {overview.folder.path}", ""))
        reach = "connected to" if overview.connected else "not connected to"
        rows.append(("server", f"{reach} {membership.server}", ""))
        rows.append(("rows", f"{membership.num_rows} in {membership.data}", ""))
    if overview.num_removed:
        rows.append(("removed", f"{overview.num_removed} rows teach nothing any more", ""))
    since = f", since {status.since}" if status and overview.running else ""
    rows.append(("activity", f"{overview.activity}{since}", ""))
    if status is not None and status.run_id is not None:
        number = f", round {status.round} of {status.num_rounds}" if status.round else ""
        rows.append(("run", f"{status.run_id}{number}", ""))
    if status is not None and status.last_update is not None:
        update = status.last_update
        rows.append(("last update", f"round {update.round} of {update.run_id}, {update.at}", ""))
    rows.append(("budget", *_budget(overview)))
    if status is not None and status.last_note is not None:
        rows.append(("last note", status.last_note, ""))
    if policy is not None:
        rows.append(
            (
                "policy",
                f"noise at least {policy.min_noise_multiplier:g}, at most {policy.max_rounds} "
                f"rounds of {policy.max_local_steps} steps; base models: {len(policy.base_models)}",
                "",
            )
        )
        if policy.allow_without_privacy:
            rows.append(("policy", "runs without privacy are allowed", "bold red"))
    rows += [("problem", problem, "bold red") for problem in overview.problems]
    return rows


def _budget(overview: "Overview") -> tuple[str, str]:
    from fedpeft.report import text

    balance = overview.balance
    if balance is None:
        return "unknown", ""
    if balance.epsilon is None or balance.delta is None or balance.spent is None:
        return "none: no training with privacy", "bold red"
    releases = f"{balance.num_events} rounds were paid for"
    if balance.num_open:
        releases += f", {balance.num_open} of them without an update yet"
    return (
        f"ε {text.epsilon(balance.spent)} of {text.budget(balance.epsilon)} is spent at δ "
        f"{text.delta(balance.delta)}; {releases}",
        "bold red" if balance.exhausted else "",
    )
