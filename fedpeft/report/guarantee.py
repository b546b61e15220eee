"""What a run guarantees and what it does not, in plain words derived from the report's fields.

This module states claims; it computes none. Every number in it comes from the report.
"""

from dataclasses import dataclass

from fedpeft.report import text
from fedpeft.report.schema import Report


@dataclass(frozen=True, kw_only=True)
class Banner:
    """A warning that nobody may overlook."""

    headline: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """The two lists of the page's section, each point a title and a sentence or two."""

    heading: str
    covered: list[tuple[str, str]]
    not_covered: list[tuple[str, str]]


def banners(report: Report) -> list[Banner]:
    """The red banners that this report must carry; none for a sound private run."""
    privacy, found = report.privacy, []
    if not privacy.enabled:
        return [
            Banner(
                headline="NO PRIVACY: this run gives no privacy guarantee at all",
                detail="Differential privacy was off. No noise was added, so the updates and the "
                "adapter may reveal training rows.",
            )
        ]
    if privacy.insecure_seeded_noise:
        found.append(
            Banner(
                headline="INSECURE NOISE: sampling and noise came from a seed",
                detail="Whoever knows the seed can compute the noise and subtract it. The ε shown "
                "is what the same settings would give with secret noise; this run does not have "
                "it. Never deploy this adapter.",
            )
        )
    for client in report.clients:
        spent, budget = client.epsilon, client.budget_epsilon
        if spent is not None and budget is not None and spent > budget:
            found.append(
                Banner(
                    headline="BUDGET EXCEEDED: a client spent more than its budget",
                    detail=f"{client.client_id} stands at ε = {text.epsilon(spent)}, its budget is "
                    f"{text.budget(budget)}. This should be impossible: please report it.",
                )
            )
            break
    return found


def max_epsilon(report: Report) -> float | None:
    """The largest ε that any client spent; None where no client has one."""
    return max((c.epsilon for c in report.clients if c.epsilon is not None), default=None)


def budget_of_max(report: Report) -> float | None:
    """The budget of the client whose ε is the largest; None where no client has one."""
    spenders = [client for client in report.clients if client.epsilon is not None]
    return max(spenders, key=lambda c: c.epsilon or 0.0).budget_epsilon if spenders else None


def guarantee(report: Report) -> Guarantee:
    """The section "what this guarantees and what it does not"."""
    if not report.privacy.enabled:
        return Guarantee(
            heading="Guaranteed",
            covered=[],
            not_covered=[_no_guarantee(), *_simulation(private=False)],
        )
    claims = [_unit(report), _mechanism(report), _reach(report), _accounting(report)]
    if report.privacy.insecure_seeded_noise:
        caveat = (
            "Anything, for whoever knows the seed",
            "The other list describes the same settings with secret noise. With seeded noise "
            "none of it holds against someone who has the seed.",
        )
        return Guarantee(
            heading="Guaranteed, had the noise been secret",
            covered=claims,
            not_covered=[caveat, *_limits(report)],
        )
    return Guarantee(heading="Guaranteed", covered=claims, not_covered=_limits(report))


def _no_guarantee() -> tuple[str, str]:
    return (
        "Any training row",
        "Treat every update and the adapter as confidential as the training data itself.",
    )


def _unit(report: Report) -> tuple[str, str]:
    privacy, highest = report.privacy, max_epsilon(report)
    at_most = f" No ε is above {text.epsilon(highest)}." if highest is not None else ""
    if privacy.privacy_unit == "client":
        return (
            "Everything that one client has",
            "Each client has its own (ε, δ) guarantee for all of its rows together: if its updates "
            "were all zero, the probability of anything seen of the adapter would change by at "
            f"most a factor of exp(ε), up to δ = {text.delta(privacy.delta or 0.0)}.{at_most}",
        )
    at_delta = f", at δ = {text.delta(privacy.delta)}" if privacy.delta is not None else ""
    return (
        "One row of one client",
        "Each client has its own (ε, δ) guarantee for its own data: adding or removing any one "
        f"training example changes the probability of anything the client sends by at most a "
        f"factor of exp(ε), up to δ. The table of clients lists every ε{at_delta}.{at_most}",
    )


def _mechanism(report: Report) -> tuple[str, str]:
    clip = report.privacy.l2_clip_norm
    if report.privacy.privacy_unit == "client":
        return (
            "Noise before anyone sees the adapter",
            "Each client's whole update is clipped to "
            f"{'a fixed L2 norm' if clip is None else f'an L2 norm of {text.number(clip)}'}, all "
            "count the same, and Gaussian noise of \N{GREEK SMALL LETTER SIGMA} times that norm is "
            "added once to their sum, which is divided by the planned number of clients.",
        )
    limit = f"an L2 norm of {text.number(clip)}" if clip is not None else "a fixed L2 norm"
    return (
        "Noise before anything leaves the client",
        "Every local step draws a Poisson sample (each row enters by its own coin), clips each "
        f"row's gradient to {limit} over all layers together, sums, and adds Gaussian noise of "
        "\N{GREEK SMALL LETTER SIGMA} times that norm. The noise is added at the client; the "
        "server is not trusted with it.",
    )


def _reach(report: Report) -> tuple[str, str]:
    if report.privacy.privacy_unit == "client":
        return (
            "Everything computed from the adapter",
            "Later adapters, their exports, and whatever they generate need no further budget: "
            "processing what was already released cannot weaken the guarantee. It also holds "
            "against the other clients.",
        )
    return (
        "Everything computed from the updates",
        "Aggregated adapters, their exports, and whatever they generate need no further budget: "
        "processing what was already released cannot weaken the guarantee. It also holds "
        "against the server and the other clients.",
    )


def _accounting(report: Report) -> tuple[str, str]:
    return (
        "Every charged step counts",
        f"The {text.printable(report.privacy.accountant, 40)} accountant composes all releases "
        "that a client was charged for, including those whose update never arrived. ε is shown "
        "rounded up.",
    )


def _limits(report: Report) -> list[tuple[str, str]]:
    if report.privacy.privacy_unit == "client":
        unit = (
            "What the coordinator sees",
            "It receives every update without noise and must be trusted to clip, to add noise and "
            "to forget. Clients who do not trust it need mechanism = 'dp-sgd'. Who takes part in a "
            "round is public, an organisation under two ids is two clients, and runs on other rows "
            "of the same client are not in this ε.",
        )
    else:
        unit = (
            "A person with many rows",
            "The unit is one example. Someone whose data fills k rows of a client has a weaker "
            "protection: about k times the ε, and a larger δ. Rows held by two clients count in "
            "both.",
        )
    rounding = [
        (
            "Rounding in bfloat16",
            "The rows of a batch touch each other by rounding in the forward pass. The noise was "
            "raised by 2 % to allow for it; that this is enough was measured, not proven.",
        )
    ]
    in_half = report.config.get("model", {}).get("precision") == "bfloat16"
    return [
        unit,
        *(rounding if in_half and report.privacy.privacy_unit == "example" else []),
        (
            "How many rows a client has",
            "Row counts, weights and sampling probabilities are treated as public numbers.",
        ),
        *_simulation(private=True),
        (
            "What another ledger was charged for",
            f"ε counts all that the ledger {text.printable(report.privacy.ledger or '', 80)} was "
            "charged for on these rows under the same client id. Runs that were charged elsewhere, "
            "or nowhere, or had the rows under another id, add to it.",
        ),
        (
            "The base model",
            "Whatever the base model has memorised from its own training is outside of this.",
        ),
    ]


def _simulation(*, private: bool) -> list[tuple[str, str]]:
    cover = "They are not covered by any ε." if private else ""
    diagnostics = (
        "The diagnostics on this page",
        "Label counts, update norms and counts of non-finite examples are read from inside the "
        f"simulation. On a real client they would not leave the machine. {cover}".strip(),
    )
    held_out = (
        "The held-out set",
        "Accuracy, loss and perplexity are computed on held-out rows that are assumed to be "
        "public: their texts, labels and scores are not protected.",
    )
    return [diagnostics, held_out]
