"""Pure: how accuracy grows with the number of training records, and what more would bring.

The error is taken to fall as a * n^-b + c, the form of Cortes et al. (Learning Curves, NIPS 1993)
that Hestness et al. (arXiv 1712.00409) found from translation to images. c is what no number of
records brings down: the noise of the labels, or the encoder's own limit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from llambert.section import Section

LEAST_SIZES = 4  # one more than the law has parameters
FIRST_SIZE = 200
LEAST_RECORDS = 20  # of a size

_EXPONENTS = np.geomspace(0.02, 3.0, 40)
_RESAMPLES = 300
_APART = 1.25  # times the last doubling, for all records to be a size of their own
_BEYOND = 4  # times the largest size: further than two doublings no law is relied upon
_LOG_LARGEST = 700.0  # e to the power of it is still a number
_LEAST_ERROR = 1e-4  # of a mean over seeds that happen to agree: 0.01 points

Array = NDArray[np.float64]
Interval = tuple[float, float]


class CurveConfig(Section):
    """`llambert curve`: trainings on ever larger parts of the annotated sample."""

    variants: list[Literal["baseline", "llambert"]] = Field(
        ["llambert"],
        min_length=1,
        description="llambert: the LLM's labels, of which more can be had; baseline: gold labels, "
        "to compare with.",
    )
    sizes: list[int] | None = Field(
        None,
        description="Numbers of training records; by default 200 and its doublings, and all there "
        "are. Each size contains the smaller ones.",
    )
    seeds: list[int] = Field(
        [1, 2, 3], min_length=1, description="One training for each, of every size and variant."
    )
    held_back: int = Field(
        1000,
        ge=10,
        description="Annotations to measure with where there is no gold test set, at most a fifth "
        "of all: as long as it is less than this number, a larger sample is measured by others.",
    )

    @field_validator("sizes", "seeds")
    @classmethod
    def _each_once(cls, values: list[int] | None) -> list[int] | None:
        if values is not None and len(set(values)) != len(values):
            raise ValueError(f"{values} holds the same number twice")
        return values

    @field_validator("sizes")
    @classmethod
    def _large_enough(cls, sizes: list[int] | None) -> list[int] | None:
        if sizes is not None and (not sizes or min(sizes) < LEAST_RECORDS):
            raise ValueError(f"{sizes} must hold sizes of {LEAST_RECORDS} records or more")
        return sizes


@dataclass(frozen=True)
class Point:
    """What was measured with so many training records."""

    size: int
    accuracies: tuple[float, ...]  # 0..1, one for each seed

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.accuracies))


@dataclass(frozen=True)
class Law:
    """error(n) = a * n^-b + c, as a share (0..1)."""

    a: float
    b: float
    c: float

    def error(self, size: float) -> float:
        return self.a * size**-self.b + self.c

    def doubling(self, size: float) -> float:
        """The accuracy that twice `size` records win."""
        return self.error(size) - self.error(2 * size)

    def enough(self, gain: float) -> float:
        """The size from which on a doubling wins less than `gain`."""
        of_one = self.a * (1 - 2**-self.b) / gain  # what doubling one record wins, in gains
        return math.exp(min(math.log(of_one) / self.b, _LOG_LARGEST)) if of_one > 0 else 0.0


@dataclass(frozen=True)
class Outlook:
    """What a curve says of the records that are not there yet; accuracies and gains in 0..1."""

    law: Law | None
    why: str  # there is no law; empty where there is one
    size: int  # the next doubling's
    accuracy: float | None
    accuracy_interval: Interval | None  # 95 %, by a bootstrap over seeds; None for one
    gain: float | None  # over the largest size
    gain_interval: Interval | None
    # records from which on a doubling wins less than was asked for: the fewest measured at least;
    # None beyond four times the most, which is too far to say, and which the interval ends at
    enough: int | None
    enough_interval: Interval | None
    advice: str


def doublings(most: int) -> list[int]:
    """200 and its doublings, and at the end all the records that there are."""
    sizes, size = [], FIRST_SIZE
    while size * _APART <= most:
        sizes.append(size)
        size *= 2
    return [*sizes, most]


def fit_law(sizes: Sequence[float], errors: Sequence[float], spread: Sequence[float]) -> Law:
    """The law nearest to `errors`, each weighed by its standard error `spread`.

    For a given b the law is linear in a and c, both of which are at least 0; so b alone is
    searched, and there is no start to choose and nothing that may fail to converge.
    """
    from scipy.optimize import minimize_scalar, nnls

    scale = float(np.min(sizes))  # so that a and c are of one magnitude
    n, y, s = np.asarray(sizes) / scale, np.asarray(errors), np.asarray(spread)

    def solve(b: float) -> tuple[Array, float]:
        terms = np.stack([n**-b, np.ones_like(n)], axis=1)
        return nnls(terms / s[:, None], y / s)

    coarse = int(np.argmin([solve(b)[1] for b in _EXPONENTS]))
    around = _EXPONENTS[max(coarse - 1, 0)], _EXPONENTS[min(coarse + 1, len(_EXPONENTS) - 1)]
    b = float(minimize_scalar(lambda b: solve(b)[1], bounds=around, method="bounded").x)
    (a, c), _ = solve(b)
    return Law(float(a) * scale**b, b, float(c))


def look_ahead(points: Sequence[Point], gain: float, chance: float = 0.0) -> Outlook:
    """What the next doubling of the largest size would bring, and which size is enough.

    Args:
        points: by size.
        gain: in accuracy (0..1), below which a doubling is not worth its price.
        chance: the accuracy of one label for all: trainings that are no better have failed, and
            tell nothing of what the records are worth.
    """
    last, points = points[-1], _learned(points, chance)
    sizes = [point.size for point in points]
    if len(sizes) < LEAST_SIZES:
        why = f"a law of three parameters takes {LEAST_SIZES} sizes, and there are {len(sizes)}"
        return _no_law(last, why, "give more sizes (curve.sizes)")
    spread = _standard_errors(points)
    law = fit_law(sizes, [1 - point.accuracy for point in points], spread)
    laws = _resampled(points, spread)
    if not _rises(law, laws, sizes):
        return _no_rise(points, last, gain)
    enough = law.enough(gain)
    within = (sizes[0], _BEYOND * last.size)
    between = _interval([float(np.clip(each.enough(gain), *within)) for each in laws])
    return Outlook(
        law=law,
        why="",
        size=2 * last.size,
        accuracy=1 - law.error(2 * last.size),
        accuracy_interval=_interval([1 - each.error(2 * last.size) for each in laws]),
        gain=law.doubling(last.size),
        gain_interval=_interval([each.doubling(last.size) for each in laws]),
        enough=round(max(enough, within[0])) if enough <= within[1] else None,
        enough_interval=between,
        advice=_advice(sizes[0], last.size, enough, between, gain),
    )


def _learned(points: Sequence[Point], chance: float) -> list[Point]:
    """`points` without the trainings that failed; a size that has no other is none."""
    learned = {p.size: tuple(each for each in p.accuracies if each > chance) for p in points}
    return [Point(size, accuracies) for size, accuracies in learned.items() if accuracies]


def _no_law(last: Point, why: str, advice: str, enough: int | None = None) -> Outlook:
    return Outlook(None, why, 2 * last.size, None, None, None, None, enough, None, advice)


def _no_rise(points: Sequence[Point], last: Point, gain: float) -> Outlook:
    """What is said of sizes that do not differ, or by no more than the seeds do."""
    first, most = points[0], max(_steepest(points), 0.0)
    if most >= gain:
        why = "the trainings differ by more than the sizes do"
        return _no_law(last, why, "nothing can be said: give more seeds (curve.seeds)")
    why = "accuracy does not rise with the number of records"
    advice = f"stop: {first.size:,} records are enough, a doubling brings at most {100 * most:.2g} "
    return _no_law(last, why, advice + "points", enough=first.size)


def _steepest(points: Sequence[Point]) -> float:
    """The most that a doubling may win on average: the upper 95 % limit of a straight line's slope.

    The line is that of accuracy over log2(size), through every training.
    """
    from scipy.stats import linregress, t

    pairs = [(np.log2(p.size), accuracy) for p in points for accuracy in p.accuracies]
    line = linregress([x for x, _ in pairs], [y for _, y in pairs])
    return float(line.slope + t.ppf(0.975, len(pairs) - 2) * line.stderr)


def _advice(fewest: int, most: int, enough: float, between: Interval | None, gain: float) -> str:
    little, sure = f"a doubling brings less than {100 * gain:g} points", ""
    if between and between[1] > fewest and between[0] < _BEYOND * most:
        low, high = (f"{_rounded(each):,}" for each in between)
        low = low if between[0] > fewest else f"{fewest:,} or fewer"
        high = high if between[1] < _BEYOND * most else f"beyond {_BEYOND * most:,}"
        sure = f" (95 %: {low} to {high})"
    if enough <= fewest:
        return f"stop: from {fewest:,} records on{sure}, the fewest measured, {little}"
    if enough <= most:
        return f"stop: from about {_rounded(enough):,} records on{sure} {little}"
    if enough <= _BEYOND * most:
        return f"go on to about {_rounded(enough):,} records{sure}, from where on {little}"
    return (
        f"go on to {2 * most:,} records and ask again: {little} only past "
        f"{_BEYOND * most:,}{sure}, which is too far from what was measured to say where"
    )


def _rounded(size: float) -> int:
    """Two significant digits: more is not known."""
    return int(float(f"{size:.1e}"))


def _standard_errors(points: Sequence[Point]) -> list[float]:
    """Of each mean; equal where there is one seed.

    A variance of few seeds is itself hardly known, and is drawn halfway to that of all sizes.
    """
    several = [np.var(p.accuracies, ddof=1) for p in points if len(p.accuracies) > 1]
    if not several:
        return [1.0] * len(points)
    pooled = float(np.mean(several))
    errors = []
    for point in points:
        seeds = len(point.accuracies)
        own = float(np.var(point.accuracies, ddof=1)) if seeds > 1 else pooled
        errors.append(max(math.sqrt((own + pooled) / 2 / seeds), _LEAST_ERROR))
    return errors


def _resampled(points: Sequence[Point], spread: Sequence[float]) -> list[Law]:
    """The laws of a parametric bootstrap over seeds; none for one seed.

    Each mean is drawn anew from Student's distribution: three seeds drawn from three seeds vary
    too little. Of simulated curves the 95 % intervals so made hold the truth in 89 to 99 %.
    """
    freedom = sum(len(point.accuracies) - 1 for point in points) / 2  # the spread is half pooled
    if not freedom:
        return []
    rng = np.random.default_rng(0)
    sizes, errors = [p.size for p in points], [1 - p.accuracy for p in points]
    drawn = errors + rng.standard_t(freedom, (_RESAMPLES, len(points))) * np.asarray(spread)
    return [fit_law(sizes, list(row), spread) for row in drawn]


def _rises(law: Law, laws: Sequence[Law], sizes: Sequence[int]) -> bool:
    """Whether accuracy grows from the first size to the last beyond what seeds explain."""
    rise = [each.error(sizes[0]) - each.error(sizes[-1]) for each in [law, *laws]]
    return rise[0] > 0 and float(np.quantile(rise, 0.025)) > 0


def _interval(values: Sequence[float]) -> Interval | None:
    if not values:
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
