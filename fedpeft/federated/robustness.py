"""What a combination of updates asks of a run; without torch, for it checks configurations."""

from typing import Literal

Combination = Literal["weighted-mean", "norm-bound", "median", "trimmed-mean", "multi-krum"]

# What each needs to be told, beside the weighted mean and the median, which need nothing.
_PARAMETER: dict[Combination, str] = {
    "norm-bound": "max_update_norm",
    "trimmed-mean": "num_byzantine",
    "multi-krum": "num_byzantine",
}
_COUNTS_CLIENTS: tuple[Combination, ...] = ("median", "trimmed-mean", "multi-krum")


def min_num_updates(combine: Combination, num_byzantine: int | None) -> int:
    """Returns the fewest updates that can be combined with that many of them malicious.

    A trimmed mean needs one value left between f trimmed at each end, 2f + 1. Krum needs every
    honest update to have more honest neighbours than there are attackers, 2f + 3 (Blanchard et
    al., 2017). The others combine any number.
    """
    if combine == "trimmed-mean":
        assert num_byzantine is not None
        return 2 * num_byzantine + 1
    if combine == "multi-krum":
        assert num_byzantine is not None
        return 2 * num_byzantine + 3
    return 1


def check_combination(
    combine: Combination,
    *,
    max_update_norm: float | None,
    num_byzantine: int | None,
    weighting: Literal["examples", "uniform"],
    num_updates: int | None,
) -> None:
    """Refuses parameters that do not go together.

    Args:
        combine: How the updates of a round are combined.
        max_update_norm: Parameter of the norm bound.
        num_byzantine: Parameter of the trimmed mean and of multi-Krum.
        weighting: How clients are weighted.
        num_updates: Updates of a round; None where that is not known yet.

    Raises:
        ValueError: If a parameter is missing or has no use, the weights cannot be honoured, or a
            round has too few updates.
    """
    given = {"max_update_norm": max_update_norm, "num_byzantine": num_byzantine}
    needed = _PARAMETER.get(combine)
    if needed is not None and given[needed] is None:
        raise ValueError(f"combine = '{combine}' needs {needed}")
    for name, value in given.items():
        if value is not None and name != needed:
            users = " or ".join(f"'{user}'" for user, key in _PARAMETER.items() if key == name)
            raise ValueError(f"{name} goes with combine = {users}, not with '{combine}'")
    if combine in _COUNTS_CLIENTS and weighting != "uniform":
        raise ValueError(
            f"combine = '{combine}' counts clients, each as one, and cannot weight them by their "
            "rows; set weighting = 'uniform'"
        )
    if num_updates is not None:
        check_num_updates(combine, num_byzantine, num_updates, "a round")


def check_num_updates(
    combine: Combination, num_byzantine: int | None, num_updates: int, what: str
) -> None:
    """Refuses a round, or a quorum, too small for what is assumed about its clients.

    Args:
        combine: How the updates of a round are combined.
        num_byzantine: Parameter of the trimmed mean and of multi-Krum.
        num_updates: Updates to be combined.
        what: What has that many, for the message.

    Raises:
        ValueError: If there are fewer than `min_num_updates`.
    """
    needed = min_num_updates(combine, num_byzantine)
    if num_updates < needed:
        raise ValueError(
            f"combine = '{combine}' with num_byzantine = {num_byzantine} needs at least {needed} "
            f"updates, but {what} has {num_updates}; ask more clients or lower num_byzantine"
        )
