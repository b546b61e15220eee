"""`fedpeft client`: clients, as their owners run them and as an operator sees them."""

import typer

from fedpeft.cli import client_join, client_simulate, client_status, clients

app = typer.Typer(no_args_is_help=True, help="Take part with your rows; invite and revoke clients.")
app.command("init")(client_join.init)
app.command("join")(client_join.join)
app.command("status")(client_status.status)
app.command("simulate")(client_simulate.simulate)
app.command("invite")(clients.invite)
app.command("list")(clients.list_)
app.command("revoke")(clients.revoke)
