"""Lower bounds on epsilon: valid where the truth is known, and not empty. m canaries, r guesses."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fedpeft.dp import auditing, membership
from fedpeft.dp.accounting import DpSgdEvent, epsilon
from fedpeft.dp.auditing import (
    Guesses,
    audit_one_run,
    count_correct,
    effective_noise,
    fair_coins,
    one_run_epsilon,
    one_run_p_value,
)
from fedpeft.dp.intervals import clopper_pearson
from fedpeft.dp.membership import auc, membership_attack, roc_curve
from fedpeft.dp.noise import standard_normal
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import PrivacyError

_ALPHA = 1e-6


def _uniform(count: int, keystream: Keystream) -> NDArray[np.float64]:
    return keystream.words(count) * 2.0**-64


def _accuracy(eps: float) -> float:
    return 1 / (1 + math.exp(-eps))


def _not_more_often(failures: int, trials: int, rate: float) -> bool:
    """Whether so many failures are plausible (up to one in a million) at that rate."""
    return stats.binomtest(failures, trials, rate, "greater").pvalue > _ALPHA


# --- The p-value of one run.


def _exact_p_value(m: int, r: int, v: int, odds: Fraction, delta: Fraction) -> Fraction:
    """Theorem 5.2 in rational arithmetic, term by term as it is stated; odds is e^eps."""
    q = odds / (1 + odds)
    law = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]

    def between(low: int, high: int) -> Fraction:
        return sum((law[k] for k in range(max(low, 0), min(high, r + 1))), Fraction(0))

    steepest = max(2 * between(v - i, v) / i for i in range(1, m + 1))
    return min(Fraction(1), between(v, r + 1) + m * delta * steepest)


@pytest.mark.parametrize(("m", "r"), [(1, 1), (6, 4), (20, 20), (30, 11)])
@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 10**5), Fraction(1, 50)])
def test_p_value_is_the_theorem(m: int, r: int, delta: Fraction):
    for odds in (Fraction(1), Fraction(3), Fraction(40)):
        for v in range(r + 1):
            found = one_run_p_value(
                num_canaries=m,
                num_guesses=r,
                num_correct=v,
                epsilon=math.log(odds),
                delta=float(delta),
            )
            assert found == pytest.approx(float(_exact_p_value(m, r, v, odds, delta)), rel=1e-9)


@pytest.mark.parametrize("eps", [0.0, 0.7, 2.0, 5.0])
def test_p_value_is_exact_for_randomised_response(eps: float):
    """It is pure DP with equality: the number of correct answers is the theorem's binomial."""
    for v in (40, 60, 75, 80):
        exact = float(stats.binom.sf(v - 1, 80, _accuracy(eps)))
        counts = {"num_canaries": 80, "num_guesses": 80, "num_correct": v}
        assert one_run_p_value(**counts, epsilon=eps, delta=0.0) == pytest.approx(exact)
        if eps and 1e-12 < exact < 0.9:
            assert one_run_p_value(**counts, epsilon=0.8 * eps, delta=0.0) < exact


@pytest.mark.parametrize("delta", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("eps", [0.5, 2.0])
def test_p_value_holds_for_mechanisms_that_fail_with_delta(eps: float, delta: float):
    """Exact tails of two (eps, delta)-DP mechanisms: each coin leaks alone, or all leak at once."""
    m = 60
    exceeded = 0
    for v in range(m + 1):
        bound = one_run_p_value(
            num_canaries=m, num_guesses=m, num_correct=v, epsilon=eps, delta=delta
        )
        alone = stats.binom.sf(v - 1, m, delta + (1 - delta) * _accuracy(eps))
        together = delta + (1 - delta) * stats.binom.sf(v - 1, m, _accuracy(eps))
        assert bound >= alone * (1 - 1e-9)
        assert bound >= together * (1 - 1e-9)
        without = one_run_p_value(
            num_canaries=m, num_guesses=m, num_correct=v, epsilon=eps, delta=0.0
        )
        exceeded += without < max(alone, together) * (1 - 1e-9)
    assert exceeded > 10, "without its term in delta the bound would be wrong"


def test_epsilon_is_where_the_p_value_crosses():
    counts = {"num_canaries": 500, "num_guesses": 300, "num_correct": 270, "delta": 1e-5}
    lower = one_run_epsilon(**counts, confidence=0.95)
    assert one_run_p_value(**counts, epsilon=lower) <= 0.05
    assert one_run_p_value(**counts, epsilon=lower + 1e-4) > 0.05
    assert one_run_epsilon(**counts, confidence=0.99) < lower


def test_chance_guesses_show_nothing_and_perfect_ones_are_bounded_by_their_number():
    counts = {"num_canaries": 200, "delta": 0.0, "confidence": 0.95}
    assert one_run_epsilon(num_guesses=100, num_correct=50, **counts) == 0
    perfect = one_run_epsilon(num_guesses=100, num_correct=100, **counts)
    accuracy = 0.05 ** (1 / 100)
    assert perfect == pytest.approx(math.log(accuracy / (1 - accuracy)), abs=1e-5)


# --- Whole audits of mechanisms with a known epsilon.


def _randomised_response(m: int, eps: float, stream: Keystream) -> tuple[NDArray, NDArray]:
    included = fair_coins(m, stream)
    told = included == (_uniform(m, stream) < _accuracy(eps))
    return told.astype(np.float64), included


def _gaussian(m: int, sigma: float, stream: Keystream) -> tuple[NDArray, NDArray]:
    included = fair_coins(m, stream)
    return included + sigma * standard_normal(m, stream), included


def _lower_bounds(
    draw: Callable[[Keystream], tuple[NDArray, NDArray]],
    guesses: Guesses,
    delta: float,
    confidence: float,
    trials: int,
) -> NDArray[np.float64]:
    stream = Keystream.insecure_from_seed(7)
    cached: dict[int, float] = {}
    bounds = []
    for _ in range(trials):
        scores, included = draw(stream)
        correct = count_correct(scores, included, guesses)
        if correct not in cached:
            cached[correct] = audit_one_run(
                scores, included, guesses=guesses, delta=delta, confidence=confidence
            ).epsilon_lower
        bounds.append(cached[correct])
    return np.array(bounds)


def test_one_run_coverage_and_power_on_randomised_response():
    """Nearly tight: about 5 % of the bounds at 95 % are wrong, and half the truth always is."""
    m, eps, trials = 1000, 1.5, 2000
    guesses = Guesses(num_in=300, num_out=300)
    bounds = _lower_bounds(
        lambda stream: _randomised_response(m, eps, stream), guesses, 0.0, 0.95, trials
    )
    wrong = int((bounds > eps).sum())
    assert _not_more_often(wrong, trials, 0.05)
    assert not _not_more_often(wrong, trials, 0.01), "the bound is valid, but loose"
    assert bounds.mean() > 0.8 * eps
    # Decisive: an implementation that lost a third of its epsilon on paper is always caught.
    assert (bounds > eps * 2 / 3).mean() > 0.95


@pytest.mark.parametrize(("sigma", "share"), [(2.0, 0.3), (1.0, 0.35)])
def test_one_run_coverage_and_power_on_the_gaussian(sigma: float, share: float):
    event = DpSgdEvent(noise_multiplier=sigma, sampling_prob=1.0, num_steps=1)
    true, trials = epsilon([event], 1e-5), 300
    guesses = Guesses(num_in=50, num_out=50)
    bounds = _lower_bounds(
        lambda stream: _gaussian(2000, sigma, stream), guesses, 1e-5, 0.95, trials
    )
    assert not (bounds > true).any()
    assert bounds.mean() > share * true
    # Decisive: an implementation with a third of the claimed noise is caught now and then.
    claim = DpSgdEvent(noise_multiplier=3 * sigma, sampling_prob=1.0, num_steps=1)
    assert (bounds > epsilon([claim], 1e-5)).mean() > 0.3


def test_scores_without_information_give_nothing_more_often_than_stated():
    stream = Keystream.insecure_from_seed(3)
    found = [
        audit_one_run(
            standard_normal(400, stream),
            fair_coins(400, stream),
            guesses=Guesses.quarters(400),
            delta=1e-5,
            confidence=0.9,
        ).epsilon_lower
        for _ in range(300)
    ]
    assert _not_more_often(int(np.count_nonzero(found)), 300, 0.1)


def test_guesses_are_the_extremes_and_ties_go_by_index():
    included = np.array([True, False, True, False])
    guesses = Guesses(num_in=1, num_out=1)
    assert count_correct(np.array([3.0, 0.0, 1.0, 2.0]), included, guesses) == 2
    assert count_correct(np.array([0.0, 3.0, 2.0, 1.0]), included, guesses) == 0
    assert count_correct(np.zeros(4), included, guesses) == 0  # last in: out; first out: in
    assert count_correct(np.array([np.nan, -1.0, 1.0, np.nan]), included, guesses) == 2
    assert count_correct(np.array([np.inf, -np.inf, 0.0, 0.0]), included, guesses) == 2
    assert count_correct(np.full(4, np.nan), included, guesses) == 0


def test_coins_are_fair():
    flips = fair_coins(100_000, Keystream.insecure_from_seed(0))
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / math.sqrt(100_000)


@pytest.mark.parametrize(
    "counts",
    [
        {"num_correct": 5, "num_guesses": 4},
        {"num_guesses": 11},
        {"num_guesses": 0, "num_correct": 0},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"delta": 1.0},
    ],
)
def test_contradicting_numbers_are_refused(counts: dict[str, float]):
    sound = {"num_canaries": 10, "num_guesses": 4, "num_correct": 2, "epsilon": 1.0, "delta": 0.0}
    with pytest.raises(PrivacyError):
        one_run_p_value(**{**sound, **counts})


def test_more_guesses_than_canaries_are_refused():
    with pytest.raises(PrivacyError, match="too many"):
        count_correct(np.zeros(3), np.zeros(3, bool), Guesses(num_in=2, num_out=2))
    with pytest.raises(PrivacyError, match="at least one guess"):
        Guesses(num_in=0, num_out=0)


# --- Effective noise.


@pytest.mark.parametrize("sigma", [0.6, 1.5])
def test_region_of_the_gaussian_is_the_known_one(sigma: float):
    """Its boundary is TPR = Phi(Phi^-1(FPR) + 1/sigma) (Dong, Roth & Su, 2022)."""
    event = DpSgdEvent(noise_multiplier=sigma, sampling_prob=1.0, num_steps=1)
    for fpr in (0.01, 0.2, 0.5):
        tpr = float(stats.norm.cdf(stats.norm.ppf(fpr) + 1 / sigma))
        assert auditing._outside_region(tpr + 0.01, fpr, event)
        assert not auditing._outside_region(tpr - 0.001, fpr, event)


@pytest.mark.parametrize(("sigma", "seed"), [(1.0, 0), (1.0, 1), (1.5, 2)])
def test_effective_noise_is_near_the_truth_and_below_it(sigma: float, seed: int):
    scores, included = _gaussian(20_000, sigma, Keystream.insecure_from_seed(seed))
    claim = DpSgdEvent(noise_multiplier=2 * sigma, sampling_prob=1.0, num_steps=1)
    found = effective_noise(
        scores, included, threshold=0.5, event=claim, delta=1e-5, confidence=0.999
    )
    assert found.noise_multiplier_upper is not None
    assert sigma < found.noise_multiplier_upper < 1.25 * sigma
    true = DpSgdEvent(noise_multiplier=sigma, sampling_prob=1.0, num_steps=1)
    assert 0.75 * epsilon([true], 1e-5) < found.epsilon_lower < epsilon([true], 1e-5)
    assert found.epsilon_lower > 1.3 * epsilon([claim], 1e-5), "half the noise is not noticed"


def test_effective_noise_of_chance_is_unbounded():
    stream = Keystream.insecure_from_seed(0)
    claim = DpSgdEvent(noise_multiplier=1.0, sampling_prob=1.0, num_steps=1)
    found = effective_noise(
        standard_normal(500, stream),
        fair_coins(500, stream),
        threshold=0.0,
        event=claim,
        delta=1e-5,
        confidence=0.99,
    )
    assert (found.noise_multiplier_upper, found.epsilon_lower) == (None, 0.0)


# --- Members and non-members.


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (70, 1000)])
def test_clopper_pearson_inverts_the_binomial(successes: int, trials: int):
    found = clopper_pearson(successes, trials, 0.025)
    exact = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert found.value == successes / trials


def test_auc_is_the_share_of_ordered_pairs_and_its_variance_delongs():
    stream = Keystream.insecure_from_seed(0)
    members = np.round(0.5 + standard_normal(30, stream), 1)
    others = np.round(standard_normal(50, stream), 1)
    pairs = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    found = auc(members, others, 0.95)
    assert found.value == pytest.approx(pairs.mean())
    variance = pairs.mean(1).var(ddof=1) / 30 + pairs.mean(0).var(ddof=1) / 50
    half = 1.959964 * math.sqrt(variance) / (pairs.mean() * (1 - pairs.mean()))
    logit = math.log(found.value / (1 - found.value))
    assert math.log(found.high / (1 - found.high)) - logit == pytest.approx(half, rel=1e-6)
    assert logit - math.log(found.low / (1 - found.low)) == pytest.approx(half, rel=1e-6)


@pytest.mark.parametrize(("num_in", "num_out", "shift"), [(40, 60, 0.0), (30, 200, 1.5)])
def test_auc_interval_covers_as_stated(num_in: int, num_out: int, shift: float):
    stream, trials = Keystream.insecure_from_seed(5), 800
    true = float(stats.norm.cdf(shift / math.sqrt(2)))
    missed = 0
    for _ in range(trials):
        members = shift + standard_normal(num_in, stream)
        interval = auc(members, standard_normal(num_out, stream), 0.95)
        missed += not interval.low <= true <= interval.high
    assert 0.025 < missed / trials < 0.08


def test_auc_of_samples_that_do_not_overlap_is_not_certain():
    found = auc(np.arange(10.0, 30.0), np.arange(0.0, 5.0), 0.95)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 5))
    assert auc(np.arange(5.0), np.arange(10.0, 30.0), 0.95).high < 0.6


def test_equal_scores_are_no_attack():
    found = membership_attack(np.zeros(300), np.zeros(200), delta=1e-5, confidence=0.95)
    assert found.auc.value == 0.5
    assert found.auc.low < 0.5 < found.auc.high
    assert [rate.true_positive.value for rate in found.rates] == [0.0, 0.0]
    assert found.epsilon_lower == 0


def test_false_positive_interval_allows_for_the_chosen_threshold():
    """Scores are uniform, so that the true rate at a threshold is known: 1 - threshold."""
    stream, trials = Keystream.insecure_from_seed(0), 3000
    wrong = too_narrow = 0
    for _ in range(trials):
        members, others = _uniform(50, stream), _uniform(150, stream)
        rate = membership._rate(members, others, 0.01, error=0.05)
        wrong += 1 - rate.threshold > rate.false_positive.high
        too_narrow += 1 - rate.threshold > clopper_pearson(1, 150, 0.2).high
    assert _not_more_often(wrong, trials, 0.05)
    assert not _not_more_often(wrong, trials, 0.03)
    assert not _not_more_often(too_narrow, trials, 0.05)


def test_membership_epsilon_coverage_and_power():
    """Members in randomised response: each side answers truly with odds e^eps."""
    stream, trials, eps = Keystream.insecure_from_seed(9), 300, 2.0
    bounds = []
    for _ in range(trials):
        # An answer, and noise that breaks ties between equal answers.
        members = (_uniform(2000, stream) < _accuracy(eps)) + 0.5 * _uniform(2000, stream)
        others = (_uniform(2000, stream) >= _accuracy(eps)) + 0.5 * _uniform(2000, stream)
        bounds.append(membership_attack(members, others, delta=0.0, confidence=0.95).epsilon_lower)
    wrong = int((np.array(bounds) > eps).sum())
    assert _not_more_often(wrong, trials, 0.05)
    assert np.mean(bounds) > 0.7 * eps


def test_roc_runs_from_corner_to_corner():
    fpr, tpr = roc_curve(np.array([2.0, 1.0, 1.0]), np.array([1.0, 0.0]))
    assert fpr.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert tpr.tolist() == pytest.approx([0.0, 1 / 3, 1.0, 1.0])


@pytest.mark.parametrize(("members", "others"), [([1.0], [0.0, 1.0]), ([1.0, np.nan], [0.0, 1.0])])
def test_too_few_or_unknown_scores_are_refused(members: list[float], others: list[float]):
    with pytest.raises(PrivacyError):
        membership_attack(np.array(members), np.array(others), delta=0.0, confidence=0.95)
