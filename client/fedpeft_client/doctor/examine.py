"""All checks, in the order in which somebody would put things right."""

from collections.abc import Callable, Iterator

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

_CHECKS: tuple[Callable[[Machine], Finding | Iterator[Finding]], ...] = (
    check_certificate,
    check_control_port,
    check_fleet_port,
    check_clock,
    check_protocol,
    check_policy,
    check_rows,
    check_ledger,
    check_disk,
    check_memory,
    check_processors,
    check_gpu,
    check_base_models,
)


def examine(machine: Machine) -> Iterator[Finding]:
    """Yields what each check found, as it is found; nothing on the machine is changed."""
    for check in _CHECKS:
        found = check(machine)
        if isinstance(found, Finding):
            yield found
        else:
            yield from found
