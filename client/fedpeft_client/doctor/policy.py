"""The owner's policy."""

from fedpeft.errors import FedpeftError
from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine


def check_policy(machine: Machine) -> Finding:
    """Reads it, and says where it lets something through that most owners would not."""
    policy = machine.policy
    if policy is None:
        return Finding.skipped("there is no folder yet; `fedpeft client init` makes one")
    if isinstance(policy, FedpeftError):
        remedy = "put that in order: without its owner's word a client does nothing"
        return Finding.fail(str(policy), remedy)
    if policy.allow_without_privacy:
        return Finding.warn(
            "it allows runs without privacy: whoever sees an update can read rows out of it",
            "take allow_without_privacy out",
        )
    return Finding.ok(
        f"noise at least {policy.min_noise_multiplier:g}, at most {policy.max_rounds} rounds of "
        f"{policy.max_local_steps} steps",
    )
