"""A CUDA device, where one is wanted."""

from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine

_GIB = 2**30


def check_gpu(machine: Machine) -> Finding:
    """Computes something on the device: a driver that is too old says so only then."""
    device = machine.policy_or_default.device
    needed = machine.needs_gpu or device == "cuda"
    if device == "cpu" and not machine.needs_gpu:
        return Finding.ok("not used: the policy says device = 'cpu'")
    import torch

    if not torch.cuda.is_available():
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        found = f"none that torch can use (torch {torch.__version__}, {build})"
        if needed:
            return Finding.fail(
                found, "install driver and a CUDA build of torch, or train on the CPU"
            )
        return Finding.ok(f"{found}; training will use the CPU")
    try:
        torch.ones(256, 256, device="cuda").matmul(torch.ones(256, 256, device="cuda")).sum().item()
        free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        return Finding.fail(
            f"{torch.cuda.get_device_name()} does not compute: {str(error).splitlines()[0]}",
            "update the driver, or set device = 'cpu' in the policy",
        )
    return Finding.ok(
        f"{torch.cuda.get_device_name()}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free",
    )
