"""Every `fedpeft` command that deploy/ and the pages on it name is one that there is."""

from pathlib import Path

import pytest

from tests.deploy.commands import blocks_of_page, commands, problem, words_of_page
from tests.deploy.conftest import ROOT

_FILES = (
    *(ROOT / "deploy").rglob("*.sh"),
    *(ROOT / "deploy" / "systemd").glob("*.service"),
    ROOT / "deploy" / "compose.yaml",
    ROOT / "deploy" / "helm" / "fedpeft" / "templates" / "NOTES.txt",
)
_PAGES = (ROOT / "docs" / "runbook.md", *(ROOT / "deploy").rglob("*.md"))


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_commands_of_files(path: Path) -> None:
    found = list(commands(path.read_text(encoding="utf-8")))
    assert found, f"{path} names no command; the test looks for none"
    assert [(words, said) for words in found if (said := problem(words))] == []


@pytest.mark.parametrize("path", _PAGES, ids=lambda path: path.name)
def test_commands_of_pages(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    whole, begun = commands(blocks_of_page(text)), commands(words_of_page(text))
    wrong = [(words, said) for words in whole if (said := problem(words))]
    wrong += [(words, said) for words in begun if (said := problem(words, complete=False))]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fedpeft pki refresh --ca ca", None),
        ("fedpeft pki refres --ca ca", "no command"),
        ("fedpeft pki refresh --authority ca", "No such option"),
        ("fedpeft pki refresh", "Missing option"),
        ("fedpeft pki new x --ca ca --role doctor -o y", "doctor"),
        ("$ FEDPEFT_SERVER=a fedpeft client invite x y 2> z", "unexpected extra"),
    ],
)
def test_a_wrong_command_is_found(line: str, said: str | None) -> None:
    (words,) = commands(line)
    found = problem(words)
    assert found is None if said is None else said in (found or "")
