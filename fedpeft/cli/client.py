"""`fedpeft client`: clients, as their owners run them and as an operator sees them."""

import typer

from fedpeft.cli import clients

app = typer.Typer(no_args_is_help=True, help="Take part with your rows; invite and revoke clients.")
app.command("invite")(clients.invite)
app.command("list")(clients.list_)
app.command("revoke")(clients.revoke)
