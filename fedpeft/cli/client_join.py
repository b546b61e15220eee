"""`fedpeft client init|join`: take part in a federation with rows of one's own."""

import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from fedpeft.errors import ConfigError

_ABANDONED = 130

IdentityOption = Annotated[
    Path,
    typer.Option(
        "--identity",
        envvar="FEDPEFT_IDENTITY",
        metavar="FOLDER",
        help="With key.pem, cert.pem and authority.cert.pem; see `fedpeft pki`.",
    ),
]
ServerArgument = Annotated[
    str,
    typer.Argument(
        metavar="SERVER", envvar="FEDPEFT_SERVER", help="host or host:port, as in its certificate."
    ),
]
DataOption = Annotated[
    str, typer.Option("--data", metavar="FILE", help="Your rows: .jsonl, .csv or .parquet.")
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="EPSILON:DELTA",
        help="What may be spent on these rows, in all runs together, such as 6:1e-5. It can be "
        "raised, and lowered to what is spent. Default: as it was set before.",
        show_default=False,
    ),
]
AllowModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-model",
        metavar="NAME",
        help="A base model that you have and trust: a folder, package:NAME or a hub id. Its digest "
        "goes into the policy. Repeatable.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of training. Default: all.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="A JSON object for each event.")]


def init(
    folder: Annotated[Path, typer.Argument(help="New folder of the client.")],
) -> None:
    """Make a client's folder, with a policy that explains itself; read it before you join."""
    from fedpeft_client.policy_file import template
    from fedpeft_client.state_folder import StateFolder

    made = StateFolder.create(folder, template())
    typer.echo(f"read and change {made.policy}, then: fedpeft client join SERVER --state {folder}")


def join(
    server: ServerArgument,
    identity: IdentityOption,
    data: DataOption,
    budget: BudgetOption = None,
    token: Annotated[
        str,
        typer.Option(
            envvar="FEDPEFT_TOKEN",
            help="From `fedpeft client invite`; needed once. Other users of this machine can read "
            "arguments, but not the variable.",
            show_default=False,
        ),
    ] = "",
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FOLDER",
            help="The client's folder; it is made where there is none. Default: one for each "
            "server and name in ~/.local/share/fedpeft/clients.",
            show_default=False,
        ),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(
            "--ledger",
            envvar="FEDPEFT_LEDGER",
            metavar="PATH_OR_URL",
            help="Where all that is spent on your rows stands. Two clients with the same rows need "
            "the same one. Default: ledger.db in --state; without that "
            "~/.local/share/fedpeft/ledger.db.",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="A,B",
            help="Those that a row is known by in the ledger; keep to them. Default: all.",
        ),
    ] = None,
    allow_model: AllowModelOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take part in the runs of a server, until you stop it with Ctrl-C or SIGTERM.

    The first signal lets a round that is being trained end; the second ends it at once. Either way,
    and also after a crash, the same command goes on where it was, and no round is paid for twice.
    """
    from fedpeft_client.join import JoinRequest

    request = JoinRequest(
        server=server,
        identity=identity,
        state=state or _default_state(server, identity),
        data=data,
        columns=None if columns is None else tuple(c.strip() for c in columns.split(",")),
        budget=parse_budget(budget),
        ledger=ledger or (_default_ledger() if state is None else None),
        allow_models=allow_model or (),
    )

    from fedpeft.cli.client_output import output
    from fedpeft_client.main import open_clients

    emit = output(as_json=as_json, num_clients=1)
    _log_to_stderr()
    with (
        open_clients([request], token=token, num_threads=threads, emit=emit) as clients,
        stopped_by_signals(clients.stop, clients.abandon) as was_abandoned,
    ):
        clients.run()
    if was_abandoned():
        raise typer.Exit(_ABANDONED)


def parse_budget(text: str | None) -> tuple[float, float] | None:
    """Reads EPSILON:DELTA.

    Raises:
        ConfigError: If it is something else.
        PrivacyError: If it is no budget.
    """
    if text is None:
        return None
    from fedpeft.ledger.state import Budget, check_budget

    epsilon, colon, delta = text.partition(":")
    try:
        budget = (float(epsilon), float(delta if colon else "none"))
    except ValueError as error:
        raise ConfigError(
            f"expected a budget as EPSILON:DELTA, such as 6:1e-5, got {text!r}"
        ) from error
    check_budget(Budget(*budget))
    return budget


@contextmanager
def stopped_by_signals(
    stop: Callable[[], None], abandon: Callable[[], None]
) -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM stops, the next one abandons; yields whether it did."""
    num_asked = 0

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 1:
            stop()
        else:
            abandon()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: num_asked > 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_to_stderr() -> None:
    """What the transport has to say; what happens in runs is shown as events."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")


def _default_state(server: str, identity: Path) -> Path:
    from fedpeft.identity.credentials import Credentials
    from fedpeft_client.state_folder import default_root

    name = f"{Credentials.in_folder(identity).name}-at-{server}"
    return default_root() / re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _default_ledger() -> str:
    """One for all clients of this user: rows keep one budget in several federations."""
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    path = Path(home).expanduser() / "fedpeft" / "ledger.db"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return str(path)
