"""The rows that would be trained on."""

from pathlib import Path

from fedpeft.errors import DataError
from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine


def check_rows(machine: Machine) -> Finding:
    """Reads them all, as joining will."""
    location = machine.data
    if location is None:
        return Finding.skipped("no --data")
    from fedpeft.models.sources import read_table

    try:
        table = read_table(location, machine.columns)
    except DataError as error:
        return Finding.fail(str(error), "correct the file, or name another")
    found = f"{table.num_rows} in {location}, with the columns {', '.join(table.columns)}"
    path = Path(location)
    if path.is_file() and path.stat().st_mode & 0o007:
        return Finding.warn(
            f"{found}; everybody on this machine can read it", f"run: chmod o= {location}"
        )
    return Finding.ok(found)
