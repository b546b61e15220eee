"""`fedpeft adapter list|show|deploy|withdraw|aliases|replicas`: the versions of a server."""

from typing import Annotated

import typer

from fedpeft.cli.remote_options import (
    IdentityOption,
    JsonOption,
    ServerOption,
    connect,
    echo_json,
    largest,
    moment,
    print_table,
)

AdapterArgument = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER",
        help="An alias, 8 or more leading digits of its digest, or a run's id for its newest one.",
    ),
]


def list_(
    run: Annotated[str, typer.Option("--run", metavar="RUN", help="Only of this run.")] = "",
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show adapter versions, oldest first."""
    with connect(server, identity) as connection:
        adapters = connection.list_adapters(run)
    if as_json:
        echo_json(adapters)
        return
    rows = [
        (
            adapter.digest[:12],
            adapter.run_id,
            str(adapter.round),
            (adapter.parent or "")[:12],
            str(len(adapter.participants)),
            largest(adapter.epsilon.values()),
            "yes" if adapter.exported else "",
            ", ".join(adapter.aliases) or ("withdrawn" if adapter.status == "withdrawn" else ""),
            moment(adapter.created_at),
        )
        for adapter in adapters
    ]
    titles = (
        "adapter",
        "run",
        "round",
        "made from",
        "clients",
        "ε",
        "exported",
        "in use",
        "made (UTC)",
    )
    print_table(titles, rows)


def show(
    adapter: AdapterArgument,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one version: what it was made from, and whose updates are in it."""
    from fedpeft.report import text

    with connect(server, identity) as connection:
        found = connection.get_adapter(adapter)
    if as_json:
        echo_json(found)
        return
    metrics = ", ".join(f"{name} {text.metric(name, x)}" for name, x in found.metrics.items())
    rows = [
        ("adapter", found.digest),
        ("run", f"{found.run_id}, round {found.round}"),
        ("made from", found.parent or ""),
        ("base model", f"{found.base_model} ({found.base_digest})"),
        ("held-out", metrics),
        ("made", f"{moment(found.created_at)} UTC"),
        ("exported", "yes" if found.exported else "no"),
        ("status", f"withdrawn by {found.withdrawn_by}" if found.withdrawn_by else found.status),
        ("aliases", ", ".join(found.aliases)),
    ]
    for title, value in rows:
        if value:
            typer.echo(f"{title:10s} {text.printable(value)}")
    if found.participants:
        typer.echo()
        spent = found.epsilon
        rows = [
            (client, text.epsilon(spent[client]) if client in spent else "")
            for client in found.participants
        ]
        print_table(("client", "ε after the round"), rows)


def deploy(
    adapter: AdapterArgument,
    alias: Annotated[str, typer.Option("--alias", help="The name that is to point at it.")],
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at a version: whatever serves the alias swaps to it. Operator."""
    with connect(server, identity) as connection:
        found = connection.deploy_adapter(adapter, alias)
    if as_json:
        echo_json(found)
        return
    typer.echo(f"{found.name} → {found.adapter}")


def withdraw(
    adapter: AdapterArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is audited.")] = "",
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a version out of use, for ever: it is served, deployed and trained on no more."""
    with connect(server, identity) as connection:
        found = connection.withdraw_adapter(adapter, reason)
    if as_json:
        echo_json(found)
        return
    typer.echo(f"{found.digest} is withdrawn")


def aliases(
    server: ServerOption = None, identity: IdentityOption = None, as_json: JsonOption = False
) -> None:
    """Show which version each alias points at."""
    with connect(server, identity) as connection:
        found = connection.list_aliases()
    if as_json:
        echo_json(found)
        return
    rows = [
        (a.name, a.adapter[:12], str(a.generation), moment(a.changed_at), a.changed_by)
        for a in found
    ]
    print_table(("alias", "adapter", "change", "changed (UTC)", "by"), rows)


def replicas(
    alias: Annotated[str, typer.Option("--alias", help="Only of this alias.")] = "",
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what serves the aliases, as each process last reported. Operator or auditor."""
    with connect(server, identity) as connection:
        found = connection.list_replicas(alias)
    if as_json:
        echo_json(found)
        return
    rows = [
        (
            r.alias,
            r.replica_id[:12],
            (r.adapter or "")[:12],
            f"{r.reported_at:%Y-%m-%d %H:%M:%S}",
            r.operated_by,
            r.problem,
        )
        for r in found
    ]
    print_table(("alias", "replica", "serves", "reported (UTC)", "operated by", "problem"), rows)
