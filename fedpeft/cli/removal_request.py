"""`fedpeft removal plan|request`: have records forgotten by the adapter in use."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli import removal_options as options
from fedpeft.cli.client_status import only_client
from fedpeft.cli.remote_options import IdentityOption, JsonOption, ServerOption, connect, echo_json
from fedpeft.cli.removal_follow import PATIENCE_S, follow
from fedpeft.cli.removal_rows import Choice, choose, deadline_of
from fedpeft.errors import InputError


def plan(
    adapter: options.AdapterOption,
    num_records: Annotated[
        int, typer.Option("--num-records", min=1, help="How many would be forgotten.")
    ] = 1,
    client: options.ClientOption = None,
    method: options.MethodOption = "loku",
    here: options.HereOption = False,
    private: options.PrivateOption = False,
    void_guarantee: options.VoidOption = False,
    settings: options.SettingsOption = None,
    overrides: options.SetOption = None,
    precisions: options.PrecisionOption = None,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a request would do: versions, aliases, guarantee. It changes nothing."""
    from fedpeft.cli.removal_view import show_plan
    from fedpeft.remote.removal_records import RemovalOrder

    with connect(server, identity) as connection:
        made = connection.plan_removal(
            RemovalOrder(
                adapter=adapter,
                client_id=client or connection.caller,
                num_records=num_records,
                place="client" if here or private else "server",
                method=method,
                settings=options.settings_of(settings, overrides, precisions),
                void_guarantee=void_guarantee,
                private_job=private,
            )
        )
    if as_json:
        echo_json(made.to_body())
    else:
        show_plan(made)


def request(
    adapter: options.AdapterOption,
    client: options.ClientOption = None,
    data: options.DataOption = None,
    ids: options.IdsOption = "",
    id_column: options.IdColumnOption = "id",
    records: options.RecordsOption = None,
    query: options.QueryOption = None,
    method: options.MethodOption = "loku",
    here: options.HereOption = False,
    private: options.PrivateOption = False,
    measure: options.MeasureOption = True,
    retain: options.RetainOption = 256,
    held_out: options.HeldOutOption = None,
    settings: options.SettingsOption = None,
    overrides: options.SetOption = None,
    precisions: options.PrecisionOption = None,
    void_guarantee: options.VoidOption = False,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline",
            metavar="TIME",
            help="30d, 12h, 90m, or a date; earlier ones go first.",
            show_default=False,
        ),
    ] = None,
    state: options.StateOption = None,
    salt: options.SaltOption = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="The same key again gives the same request, not a second one."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until it has ended, as `fedpeft removal watch`.")
    ] = False,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask for the removal of records. Run again after a crash it goes on with the same request.

    Your own records are first marked as removed in your client's folder: no later round trains on
    them, whatever becomes of the request. Then the records, and some rows that stay, are sealed and
    sent: only the columns that the adapter was trained on. The server destroys them after the job.
    With --here nothing of them is sent: the job runs now, on this machine, and the adapter goes.
    """
    from fedpeft.cli.removal_asking import ask, marks_in
    from fedpeft.cli.removal_here import do_here
    from fedpeft.cli.removal_view import removal_json, show_removal
    from fedpeft.config import validate_config
    from fedpeft.remote.removal_records import RemovalOrder, RemovalState
    from fedpeft.types import derive_seed
    from fedpeft.unlearning.salt import FILE, salt_in

    content = options.settings_of(settings, overrides, precisions)
    until = deadline_of(deadline, datetime.now(UTC))
    with connect(server, identity, patience_s=PATIENCE_S if wait else 10.0) as connection:
        owner = client or connection.caller
        folder = (state or only_client()) if owner == connection.caller else None
        at_client = here or private
        if at_client and folder is None:
            raise InputError(f"a job on this machine is on your own rows, not those of {owner}")
        if at_client and method == "retrain":
            raise InputError("retraining goes through the rounds of all clients; leave out --here")
        chosen = choose(
            Choice(
                data=data or _joined_with(folder),
                ids=ids,
                id_column=id_column,
                records=records,
                query=query or (),
            ),
            held_out,
        )
        run = connection.get_run(connection.get_adapter(adapter).run_id)
        assert identity is not None
        own_salt = salt_in(salt or identity / FILE)
        config = validate_config(run.config, "the adapter's run")
        rows = chosen.job_rows(
            config.model,
            config.data,
            num_retain=retain,
            seed=derive_seed(int.from_bytes(own_salt, "big"), "rows that stay"),
            checked=method != "retrain",
        )
        order = RemovalOrder(
            adapter=adapter,
            client_id=owner,
            num_records=len(rows.forget),
            place="client" if at_client else "server",
            method=method,
            settings=content,
            void_guarantee=void_guarantee,
            private_job=private,
            deadline=until,
        )
        marks = None if folder is None else marks_in(folder, chosen.forget)
        removal = ask(connection, order, rows, salt=own_salt, key=key, marks=marks)
        if (
            at_client
            and folder is not None
            and removal.state in (RemovalState.PLANNED, RemovalState.RUNNING)
        ):
            from fedpeft_client.removals import Asked

            typer.echo(f"removal {removal.request_id}", err=True)
            removal = do_here(
                connection,
                identity,
                folder,
                removal.request_id,
                held_out=chosen.held_out,
                retain=retain,
                measure=measure,
                asked=Asked(
                    method=method,
                    private=private,
                    num_records=len(rows.forget),
                    settings=content,
                ),
            )
        if wait:
            if not at_client:
                typer.echo(f"removal {removal.request_id}", err=True)
            follow(connection, removal.request_id, as_lines=as_json)
        elif as_json:
            echo_json(removal_json(removal))
        else:
            show_removal(removal)


def _joined_with(folder: Path | None) -> str:
    """The file that a client joined with."""
    from fedpeft_client.state_folder import StateFolder

    membership = StateFolder(folder).membership() if folder is not None else None
    if membership is None:
        raise InputError("name the file with all rows of the client: --data")
    return membership.data
