"""The base models that the policy allows."""

from collections.abc import Iterator

from fedpeft.errors import FedpeftError
from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine
from fedpeft_client.policy import AllowedModel, ClientPolicy


def check_base_models(machine: Machine) -> Iterator[Finding]:
    """Loads each and compares its digest."""
    if not isinstance(machine.policy, ClientPolicy):
        yield Finding.skipped("there is no policy to say which")
        return
    allowed = machine.policy.base_models
    if not allowed:
        yield Finding.warn(
            "the policy allows none, so every run will be refused",
            "join with --allow-model NAME",
        )
    by_place: dict[tuple[str, str | None], list[str]] = {}
    for digest, model in allowed.items():
        by_place.setdefault((model.name, model.revision), []).append(digest)
    for (name, revision), digests in by_place.items():
        yield _finding(AllowedModel(name=name, revision=revision), digests)


def _finding(model: AllowedModel, expected: list[str]) -> Finding:
    from fedpeft.models.base_digest import base_digests

    try:
        found = base_digests(model.name, revision=model.revision)
    except FedpeftError as error:
        remedy = "put the model there, or take it out of the policy"
        return Finding.fail(str(error), remedy)
    wrong = [digest for digest in expected if digest not in found.values()]
    if wrong:
        return Finding.fail(
            f"{model.name} is another model than the policy names: expected {wrong[0][:12]}…, got "
            + " or ".join(f"{digest[:12]}…" for digest in found.values()),
            "put the right model there; if this one is right, correct base_models in the policy",
        )
    digests = ", ".join(f"{digest[:12]}…" for digest in expected)
    return Finding.ok(f"{model.name} is {digests}")
