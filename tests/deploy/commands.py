"""Whether a `fedpeft` command line that a file names is one that the CLI takes."""

import re
import shlex
from collections.abc import Iterator, Sequence

import click
import typer.main

from fedpeft.cli.main import app

_START = re.compile(r"(?:^|[\s`(\['\"]|/bin/)fedpeft\s+(?=[a-z-])")
_CODE_BLOCK = re.compile(r"^```\w*\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def problem(words: Sequence[str], *, complete: bool = True) -> str | None:
    """Returns what the CLI's own parser says against `fedpeft WORDS`; None: nothing.

    Args:
        words: What stands after `fedpeft`; "$@" and "$OPTIONS" stand for more of them.
        complete: Whether it must be a whole command, and not only the beginning of one.
    """
    command: click.Command = typer.main.get_command(app)
    left = [word for word in words if word not in ("$@", "$OPTIONS")]
    complete = complete and len(left) == len(words)
    while isinstance(command, click.Group):
        if not (left or complete):
            return None
        name = left.pop(0) if left else ""
        if name in ("--help", "--version"):
            return None
        if name not in command.commands:
            return f"{command.name} has no command {name!r}"
        command = command.commands[name]
    try:
        command.make_context(command.name, left)
    except click.exceptions.Exit:  # --help
        return None
    except click.ClickException as error:
        # What is still to come may well make it right.
        if complete or not isinstance(error, click.MissingParameter | click.BadOptionUsage):
            return f"{command.name}: {error.format_message()}"
    return None


def commands(text: str) -> Iterator[list[str]]:
    """Yields the words after each `fedpeft` of a script, a unit or a block of code."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.lstrip().startswith("#"):
            continue
        for match in _START.finditer(line):
            words = list(_words(line[match.end() :]))
            if words:
                yield words


def blocks_of_page(text: str) -> str:
    """Returns all blocks of code of a Markdown page."""
    return "\n".join(_CODE_BLOCK.findall(text))


def words_of_page(text: str) -> str:
    """Returns all code that stands in the sentences of a Markdown page, a piece a line."""
    return "\n".join(re.findall(r"`([^`\n]+)`", _CODE_BLOCK.sub("", text)))


def _words(rest: str) -> Iterator[str]:
    """The words of one simple command: until a redirection, a pipe, a comment or a bracket."""
    rest = re.sub(r"\s\d(?=>)", " ", rest)
    lexer = shlex.shlex(rest, posix=True, punctuation_chars="|&;<>()`")
    lexer.whitespace_split = True
    try:
        for word in lexer:
            if word[0] in "|&;<>()`":
                return
            yield word
    except ValueError:  # a quote that began before the command, or ends on a later line
        return
