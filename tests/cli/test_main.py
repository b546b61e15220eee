"""What stands before a command."""

from typer.testing import CliRunner

from fedpeft import __version__
from fedpeft.cli.main import app


def test_version_needs_no_command() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"fedpeft {__version__}\n")
