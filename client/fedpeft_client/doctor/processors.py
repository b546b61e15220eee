"""Cores and threads."""

from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.limits import available_cores
from fedpeft_client.doctor.machine import Machine


def check_processors(machine: Machine) -> Finding:
    """Compares the threads that torch would start with the cores that there are for them."""
    import torch

    cores, threads = available_cores(), torch.get_num_threads()
    found = f"torch would use {threads} threads on {cores:g} cores"
    if threads > max(cores, 1.0):
        return Finding.warn(
            found,
            f"join with --threads {max(int(cores), 1)}: more threads than cores are slower",
        )
    return Finding.ok(found)
