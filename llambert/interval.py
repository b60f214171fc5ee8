"""How sure a measured share, or a mean of several measurements, is."""

from collections.abc import Sequence
from math import hypot


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share (Wilson, JASA 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of two values or more (Student, Biometrika 1908)."""
    from scipy.stats import t

    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(t.ppf(0.975, count - 1)) * (variance / count) ** 0.5
    return mean - half, mean + half


def interval_over_seeds(shares: Sequence[float], trials: int) -> tuple[float, float]:
    """The 95 % interval of the mean share of models that differ in their seed.

    Which records were drawn (Wilson's, at the mean) and how a training went (Student's) are
    independent causes, so that the half widths add up as squares. Student's is left out of one.

    Args:
        shares: of the same `trials` records, one for each seed.
    """
    mean = sum(shares) / len(shares)
    drawn = wilson_interval(round(mean * trials), trials)
    if len(shares) == 1:
        return drawn
    trained = student_interval(shares)
    low, high = (hypot(mean - one, mean - other) for one, other in zip(drawn, trained, strict=True))
    return max(mean - low, 0.0), min(mean + high, 1.0)
