"""Memory for a base model and a batch."""

from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.limits import available_memory
from fedpeft_client.doctor.machine import Machine

_GIB = 2**30
_LEAST, _ROOMY = 1 * _GIB, 3 * _GIB


def check_memory(machine: Machine) -> Finding:
    """Asks for what torch and a small base model need; a large one needs its own size on top."""
    free = available_memory()
    found = f"{free / _GIB:.1f} GiB can be used"
    remedy = (
        "stop other programs, or give the container more; max_tokens_per_batch in the policy "
        f"(now {machine.policy_or_default.max_tokens_per_batch}) bounds what a batch takes"
    )
    if free < _LEAST:
        return Finding.fail(f"{found}, training needs at least 1 GiB", remedy)
    if free < _ROOMY:
        return Finding.warn(found, remedy)
    return Finding.ok(found)
