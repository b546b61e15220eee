"""Room for what a client keeps, on a disk that it may write to."""

import shutil
import tempfile
from pathlib import Path

from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine

_GIB = 2**30


def check_disk(machine: Machine) -> Finding:
    """Writes a file where the state goes, and looks at what is free.

    An update is at most as large as the adapter that it is for, and is kept until its run has
    ended; the ledger grows by less than a kilobyte a round.
    """
    if machine.state is None:
        return Finding.skipped("no --state")
    place = _nearest(machine.state)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"fedpeft doctor")
            file.flush()
    except OSError as error:
        return Finding.fail(
            f"{place} cannot be written ({error.strerror})",
            "give the folder to who runs the client, on a disk with room that is not read-only",
        )
    free = shutil.disk_usage(place).free
    needed = 4 * machine.policy_or_default.max_adapter_bytes
    found = f"{free / _GIB:.1f} GiB are free in {place}"
    remedy = f"make room: {needed / _GIB:.1f} GiB for updates of the largest adapter allowed"
    if free < needed:
        return Finding.fail(found, remedy)
    if free < 4 * needed:
        return Finding.warn(found, remedy)
    return Finding.ok(found)


def _nearest(path: Path) -> Path:
    """The folder, or the one that it would be made in."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path
