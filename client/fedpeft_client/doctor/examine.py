"""All checks, in the order in which somebody would put things right."""

from collections.abc import Callable, Iterator, Mapping

from fedpeft_client.doctor.base_models import check_base_models
from fedpeft_client.doctor.certificate import check_certificate
from fedpeft_client.doctor.clock import check_clock
from fedpeft_client.doctor.control_port import check_control_port
from fedpeft_client.doctor.disk import check_disk
from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.fleet_port import check_fleet_port
from fedpeft_client.doctor.gpu import check_gpu
from fedpeft_client.doctor.ledger import check_ledger
from fedpeft_client.doctor.machine import Machine
from fedpeft_client.doctor.memory import check_memory
from fedpeft_client.doctor.policy import check_policy
from fedpeft_client.doctor.processors import check_processors
from fedpeft_client.doctor.protocol import check_protocol
from fedpeft_client.doctor.rows import check_rows

_CHECKS: Mapping[str, Callable[[Machine], Finding | Iterator[Finding]]] = {
    "certificate": check_certificate,
    "control port": check_control_port,
    "fleet port": check_fleet_port,
    "clock": check_clock,
    "protocol": check_protocol,
    "policy": check_policy,
    "rows": check_rows,
    "ledger": check_ledger,
    "disk": check_disk,
    "memory": check_memory,
    "processors": check_processors,
    "GPU": check_gpu,
    "base model": check_base_models,
}


def examine(machine: Machine) -> Iterator[tuple[str, Finding]]:
    """Yields each check's name with what it found, as it is found; nothing is changed."""
    for name, check in _CHECKS.items():
        try:
            found = check(machine)
            findings = [found] if isinstance(found, Finding) else list(found)
        except OSError as error:  # mostly a file or folder of somebody else's
            reason = f"{error.filename or 'something'} cannot be used ({error.strerror})"
            findings = [Finding.fail(reason, "run this as who will run the client")]
        for finding in findings:
            yield name, finding
