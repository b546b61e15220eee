"""Two other accountants for the same events, to check the first against.

`rdp_epsilon` composes Rényi divergences (Mironov, 2017; Mironov, Talwar and Zhang, 2019) and is
looser. `prv_interval` composes privacy loss random variables (Gopi, Lee and Wutschitz, 2021) with
another library, Opacus (in `fedpeft[dev]`), and brackets epsilon. Budgets are computed by neither.

Where sampling_prob is 0.001 to 0.2, the noise multiplier 0.7 to 5, the steps 1 to 1000 and delta
1e-5, the tests hold that

- PLD never exceeds RDP, and PLD lies in the interval of PRV;
- that interval is at most 2.3e-3 wide where RDP is at most 1, else 2.3e-3 times RDP;
- RDP is at most 1.7 times PLD where PLD is 1 or more. Below that it can be eighty times as much:
  one sampled step has rare large losses, which moments bound badly.

Where PRV fails, it raises, also where Opacus itself returns a wrong number: for a small delta after
many steps, and for an epsilon above 709. Opacus looks at one direction of the relation only, the
dearer one for a sampled Gaussian in all that we have computed; PLD looks at both.
"""

import math
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fedpeft.dp.composition import (
    Releases,
    check_delta,
    checked_epsilon,
    composition,
    countable,
    rounding,
)
from fedpeft.errors import PrivacyError

# Half the width of PRV's interval, relative to an epsilon known from RDP; never beyond what its
# proof allows with a wide margin (its domain was shown to be large enough below 1).
_PRV_PRECISION, _LARGEST_ERROR = 1e-3, 0.1
_PRV_DELTA_ERROR = 1e-3  # relative to delta
_MOST_ENTRIES = 2**23
_LARGEST_EPSILON = 700.0


class EpsilonInterval(NamedTuple):
    """The true epsilon lies between the two."""

    low: float
    high: float


def rdp_epsilon(events: Iterable[object], delta: float) -> float:
    """Returns an upper bound on epsilon at `delta` from Rényi differential privacy.

    Infinity where `accounting.epsilon` has no bound for its numerics.

    Raises:
        PrivacyError: As `accounting.epsilon` does.
    """
    check_delta(delta)
    releases = composition(events)
    return _rdp(releases, delta) if countable(releases) else math.inf


def prv_epsilon(events: Iterable[object], delta: float) -> float:
    """Returns the upper end of `prv_interval`."""
    return prv_interval(events, delta).high


def prv_interval(events: Iterable[object], delta: float) -> EpsilonInterval:
    """Returns bounds on epsilon at `delta` from privacy loss random variables.

    Raises:
        PrivacyError: As `accounting.epsilon` does; and where PRV has no answer: epsilon of 700
            or more, delta of less than 1e-14 a step, or a table of more than 8 million entries.
    """
    check_delta(delta)
    releases = composition(events)
    if not releases:
        return EpsilonInterval(0.0, 0.0)
    rough = _rdp(releases, delta) if countable(releases) else math.inf
    if not math.isfinite(rough):
        raise PrivacyError("PRV has no answer where epsilon is infinite; use the PLD accountant")
    error = min(_LARGEST_ERROR, _PRV_PRECISION * max(1.0, rough))
    try:
        # At sampling_prob 1 Opacus divides by zero and takes logarithms of it, to no harm; and it
        # warns where the best order is the last.
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            low, high = _prv(releases, delta, error)
    except (ValueError, RuntimeError, ArithmeticError) as failure:
        raise PrivacyError(
            f"PRV has no answer for {releases} at delta {delta:g} ({failure}); use the PLD "
            "accountant"
        ) from failure
    return EpsilonInterval(
        checked_epsilon(max(0.0, low), "PRV", releases),
        checked_epsilon(max(0.0, high), "PRV", releases),
    )


def _rdp(releases: tuple[Releases, ...], delta: float) -> float:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    for some in releases:
        release = dp_accounting.GaussianDpEvent(some.noise_multiplier)
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(some.sampling_prob, release), some.count
        )
    return checked_epsilon(accountant.get_epsilon(delta), "RDP", releases)


def _prv(releases: tuple[Releases, ...], delta: float, error: float) -> tuple[float, float]:
    from opacus.accountants.analysis import prv

    counts = [some.count for some in releases]
    losses = [
        prv.PoissonSubsampledGaussianPRV(some.sampling_prob, some.noise_multiplier)
        for some in releases
    ]
    # Opacus refuses a small delta too, but by the precision of long doubles, which it does not use.
    if rounding(releases) > delta / 10:
        raise ValueError("rounding errors would dominate so small a delta")
    delta_error = _PRV_DELTA_ERROR * delta + rounding(releases)
    half = prv.compute_safe_domain_size(losses, counts, error, delta_error)
    mesh = error / math.sqrt(sum(counts) * math.log(12 / delta_error) / 2)
    if not 2 * half / mesh <= _MOST_ENTRIES:
        raise ValueError(f"its table would have {2 * half / mesh:.2g} entries")
    domain = prv.Domain.create_aligned(-half, half, mesh)
    ends = domain.t_min, domain.t_max
    tables = [
        prv.discretize(prv.TruncatedPrivacyRandomVariable(loss, *ends), domain) for loss in losses
    ]
    composed = prv.compose_heterogeneous(tables, counts)
    low, _, high = composed.compute_epsilon(delta, delta_error, error)
    # Opacus takes e^epsilon: from 709 on the answer is infinite, or 709 whatever the truth is.
    if not high < _LARGEST_EPSILON:
        raise ValueError(f"its exponentials overflow above epsilon {_LARGEST_EPSILON:g}")
    return float(low), float(high)
