"""Which modules a name pattern means."""

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from fedpeft.adapters.linear import is_linear
from fedpeft.errors import ModelError


def match_targets(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Returns the names of the linear modules that any pattern matches, in the model's order.

    A pattern is matched against the whole name and against each of its ends after a dot, so that
    'query' means every module called query.

    Raises:
        ModelError: If a pattern matches nothing; the message lists what it could have matched.
    """
    linear = [name for name, module in model.named_modules() if is_linear(module)]
    chosen: set[str] = set()
    for pattern in patterns:
        hits = {name for name in linear if _matches(name, pattern)}
        if not hits:
            kinds = Counter(name.rpartition(".")[2] for name in linear)
            known = ", ".join(f"{kind} (x{count})" for kind, count in sorted(kinds.items()))
            example = f"; a full name is {linear[0]}" if linear else ""
            raise ModelError(
                f"target_modules pattern {pattern!r} matches no linear module; the model has "
                f"{known or 'none at all'}{example}"
            )
        chosen |= hits
    return [name for name in linear if name in chosen]


def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[i:]), pattern) for i in range(len(parts)))
