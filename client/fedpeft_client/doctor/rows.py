"""The rows that would be trained on."""

from pathlib import Path

from fedpeft.errors import DataError
from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine

_CHECK = "rows"


def check_rows(machine: Machine) -> Finding:
    """Reads them all, as joining will."""
    location = machine.data
    if location is None:
        return Finding.skipped(_CHECK, "no --data")
    from fedpeft.models.sources import read_table

    try:
        table = read_table(location, machine.columns)
    except DataError as error:
        return Finding.fail(_CHECK, str(error), "correct the file, or name another")
    found = f"{table.num_rows} in {location}, with the columns {', '.join(table.columns)}"
    path = Path(location)
    if path.is_file() and path.stat().st_mode & 0o007:
        return Finding.warn(
            _CHECK, f"{found}; everybody on this machine can read it", f"run: chmod o= {location}"
        )
    return Finding.ok(_CHECK, found)
