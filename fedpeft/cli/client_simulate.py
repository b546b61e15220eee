"""`fedpeft client simulate`: several clients of one process group, real to the server."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.client_join import (
    AllowModelOption,
    BudgetOption,
    DataOption,
    JsonOption,
    ServerArgument,
    ThreadsOption,
    parse_budget,
    stopped_by_signals,
)

_ABANDONED = 130


def simulate(
    server: ServerArgument,
    data: DataOption,
    identity_root: Annotated[
        Path,
        typer.Option(
            "--identity-root", metavar="FOLDER", help="A folder for each client, kept for later."
        ),
    ],
    num_clients: Annotated[int, typer.Option("--num-clients", min=1, help="Clients.")] = 10,
    partition: Annotated[
        str, typer.Option(metavar="HOW", help="iid, dirichlet:ALPHA or column:NAME.")
    ] = "dirichlet:0.5",
    label_column: Annotated[str, typer.Option(help="Column that dirichlet is over.")] = "label",
    seed: Annotated[int, typer.Option(min=0, help="Of the partition.")] = 0,
    budget: BudgetOption = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            metavar="FOLDER",
            help="The authority's folder: certificates that are missing are issued here, and the "
            "clients invited by an operator of its own. For test federations.",
        ),
    ] = None,
    operator: Annotated[
        Path | None,
        typer.Option(
            "--operator", metavar="FOLDER", help="Identity of an operator who invites the clients."
        ),
    ] = None,
    allow_model: AllowModelOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Join many clients that share this machine and one base model.

    Each has a certificate, a folder, a ledger, a policy and a connection of its own; only the
    process that trains is one, and trains for one client after the other.
    """
    epsilon_delta = parse_budget(budget)

    from fedpeft.cli.client_output import ClientTable, output
    from fedpeft.remote import Connection
    from fedpeft_client.main import open_clients
    from fedpeft_client.simulated import OPERATOR, make_identities, requests, split_rows

    rows = split_rows(
        data, partition, num_clients=num_clients, label_column=label_column, seed=seed
    )
    make_identities(identity_root, list(rows), ca)
    inviter = operator or (identity_root / OPERATOR if ca is not None else None)
    emit = output(as_json=as_json, num_clients=num_clients)
    with ExitStack() as stack:
        if isinstance(emit, ClientTable):
            stack.enter_context(emit)
        invite = None
        if inviter is not None:
            connection = stack.enter_context(Connection.open(server, inviter))

            def invite(client_id: str) -> str:
                return connection.invite_client(client_id).token

        clients = stack.enter_context(
            open_clients(
                requests(
                    rows,
                    server=server,
                    root=identity_root,
                    data=data,
                    budget=epsilon_delta,
                    allow_models=allow_model or (),
                ),
                invite=invite,
                num_threads=threads,
                emit=emit,
            )
        )
        with stopped_by_signals(clients.stop, clients.abandon) as was_abandoned:
            clients.run()
    if was_abandoned():
        raise typer.Exit(_ABANDONED)
