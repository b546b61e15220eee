"""Programs that tests run where other things are mounted; nobody else sees it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def in_sandbox(setup: str, program: str, path: Path) -> dict[str, Any]:
    """Runs a program after `setup` changed what is mounted, and returns the JSON it prints.

    Both find `path` in FILE, the program as its argument too, and its folder in FOLDER.
    """
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "--"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"]).returncode != 0:
        pytest.skip("no mount namespace is to be had here")
    done = subprocess.run(
        [*unshare, "sh", "-ec", setup + '\nexec "$PYTHON" -c "$PROGRAM" "$FILE"'],
        env=os.environ
        | {"PYTHON": sys.executable, "PROGRAM": program, "FILE": str(path)}
        | {"FOLDER": str(path.parent)},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def on_small_disk(program: str, folder: Path) -> dict[str, Any]:
    """Runs a program with FILE on a disk of 2 MB."""
    small = folder / "small"
    small.mkdir()
    return in_sandbox('mount -t tmpfs -o size=2m tmpfs "$FOLDER"', program, small / "file.db")
