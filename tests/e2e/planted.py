"""Copies of the code with one mistake in them, to show what the tests would find."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.federation import ROOT

_PARTS = ("fedpeft", "server", "client")


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """In one file, once."""

    file: str
    right: str
    wrong: str

    def planted(self, folder: Path) -> Path:
        """Makes the copy in a new folder."""
        for part in _PARTS:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        path = folder / self.file
        text = path.read_text()
        assert text.count(self.right) == 1, f"{self.file} has another wording now: {self.right}"
        path.write_text(text.replace(self.right, self.wrong))
        return folder
