"""The law of a learning curve against curves that are known, the paper's among them."""

import math
import re

import numpy as np
import pytest
from learning_curve import published
from paper import CURVE
from pydantic import ValidationError

from llambert.power_law import CurveConfig, Law, Point, doublings, fit_law, look_ahead


def along(law: Law, sizes: list[int], seeds: int = 3, spread: float = 0.0) -> list[Point]:
    rng = np.random.default_rng(1)
    return [Point(n, tuple(1 - law.error(n) + rng.normal(0, spread, seeds))) for n in sizes]


@pytest.mark.parametrize("law", [Law(0.9, 0.3, 0.05), Law(2.0, 0.7, 0.0), Law(0.3, 0.12, 0.02)])
def test_a_law_is_found_again(law):
    sizes = [200, 400, 800, 1600, 3200]
    found = fit_law(sizes, [law.error(n) for n in sizes], [1.0] * 5)
    assert [found.error(n) for n in (300, 6400)] == pytest.approx(
        [law.error(n) for n in (300, 6400)], abs=1e-5
    )
    assert found.doubling(law.enough(0.01)) == pytest.approx(0.01, abs=1e-4)


@pytest.mark.parametrize("most", [3200, 6400, 12800])
def test_the_papers_gold_curve_is_foretold(most):
    """Every next doubling, from what came before, to a tenth of a point or within the interval."""
    ahead = look_ahead(published("gold", most), 0.003)
    measured, half = CURVE["gold"].get(2 * most, CURVE["gold"][25000])
    low, high = (100 * each for each in ahead.accuracy_interval)
    assert 100 * ahead.accuracy == pytest.approx(measured, abs=0.17)
    assert low - half < measured < high + half
    assert ahead.gain_interval[0] < ahead.gain < ahead.gain_interval[1]


def test_the_papers_llm_curve_is_worth_no_more_labels():
    ahead = look_ahead(published("llm", 25000), 0.003)
    assert 100 * ahead.gain < 0.1
    assert 100 * ahead.law.c == pytest.approx(5.0, abs=0.3)  # Llama-2-70b itself is wrong in 5.1 %
    assert ahead.enough == 200 and ahead.advice.startswith("stop: from 200")


def test_where_to_stop():
    law = Law(1.0, 0.5, 0.1)
    points = along(law, [200, 400, 800, 1600])
    before, within = look_ahead(points, 0.03), look_ahead(points, 0.01)
    assert before.advice.startswith("stop: from 200 records on, the fewest measured")
    assert within.enough == pytest.approx(law.enough(0.01), rel=0.01)
    assert within.advice.startswith("stop: from about 860 records on")
    assert look_ahead(points, 0.005).advice.startswith("go on to about 3,400 records")
    far = look_ahead(points, 0.0001)
    assert far.advice.startswith("go on to 3,200 records and ask again") and far.enough is None


def line(slope: float, spread: float) -> list[Point]:
    rng = np.random.default_rng(3)
    return [
        Point(n, tuple(0.7 + slope * math.log2(n / 200) + rng.normal(0, spread, 3)))
        for n in (200, 400, 800, 1600, 3200)
    ]


@pytest.mark.parametrize("slope", [0.0, -0.01])
def test_a_curve_that_does_not_rise_has_no_law(slope):
    ahead = look_ahead(line(slope, 0.004), 0.005)
    assert ahead.law is None and ahead.gain is None
    assert ahead.enough == 200 and ahead.advice.startswith("stop: 200 records are enough")


def test_a_curve_that_falls_brings_nothing():
    ahead = look_ahead(line(-0.05, 0.004), 0.005)
    assert ahead.advice == "stop: 200 records are enough, a doubling brings at most 0 points"


def test_trainings_that_failed_are_left_out_of_the_law():
    law, sizes = Law(1.0, 0.5, 0.1), [200, 400, 800, 1600, 3200]
    points = along(law, sizes, spread=0.002)
    whole = look_ahead(points, 0.01, 0.5)
    for place, failed in ((0, 1), (0, 2), (4, 1), (4, 2)):  # one of three seeds, all but one
        kept = points[place].accuracies[failed:]
        with_them, without = list(points), list(points)
        with_them[place] = Point(sizes[place], (*[0.5] * failed, *kept))
        without[place] = Point(sizes[place], kept)
        ahead = look_ahead(with_them, 0.01, 0.5)
        assert ahead == look_ahead(without, 0.01) and ahead.accuracy_interval
        assert ahead.accuracy == pytest.approx(whole.accuracy, abs=0.005)
    none = [Point(3200, (0.5, 0.5, 0.4)) if p.size == 3200 else p for p in points]
    ahead = look_ahead(none, 0.001, 0.5)
    assert ahead.size == 6400 and ahead.law.error(3200) == pytest.approx(law.error(3200), abs=0.01)
    assert "go on to 6,400 records" in ahead.advice
    assert "there are 0" in look_ahead([Point(n, (0.5,)) for n in sizes], 0.01, 0.5).why


def test_a_tiny_gain_is_only_past_what_can_be_foretold():
    for law in (Law(0.3, 0.02, 0.0), Law(9.0, 0.021, 0.01)):
        assert law.enough(1e-12) > 1e100
    assert Law(0.0, 0.5, 0.1).enough(0.01) == 0
    ahead = look_ahead(along(Law(0.3, 0.02, 0.0), [200, 400, 800, 1600]), 1e-12)
    assert ahead.enough is None and ahead.advice.startswith("go on to 3,200 records")


def test_trainings_that_differ_more_than_the_sizes_say_nothing():
    ahead = look_ahead(line(0.01, 0.15), 0.005)
    assert ahead.law is None and ahead.enough is None
    assert "give more seeds" in ahead.advice


def test_where_to_stop_is_told_with_how_sure_it_is():
    law, sizes = Law(1.5, 0.4, 0.08), [200, 400, 800, 1600, 3200]
    rng = np.random.default_rng(1)
    points = [Point(n, tuple(1 - law.error(n) + rng.normal(0, 0.002, 3))) for n in sizes]
    ahead = look_ahead(points, 0.02)
    low, high = ahead.enough_interval
    assert low < ahead.enough < high and low <= law.enough(0.02) <= high
    told = r"^stop: from about [\d,]+ records on \(95 %: [\d,]+ to [\d,]+\) a doubling"
    assert re.search(told, ahead.advice)
    early = look_ahead(points, 0.2).advice  # all that was measured is more than enough
    assert early.startswith("stop: from 200 records on, the fewest measured")
    unsure = look_ahead(points, 0.0435).advice
    assert re.search(r"^stop: from .* records on \(95 %: 200 or fewer to [2-9]\d\d\)", unsure)
    never = look_ahead(points, 0.002).advice
    assert "only past 12,800, which is" in never
    far = look_ahead(points, 0.0085)
    assert re.search(r"^go on to about [\d,]+ records \(95 %: .* to beyond 12,800\),", far.advice)


def test_three_sizes_are_too_few_for_three_parameters():
    ahead = look_ahead(along(Law(1.0, 0.5, 0.1), [200, 400, 800]), 0.005)
    assert ahead.law is None and ahead.why.endswith("takes 4 sizes, and there are 3")


def test_one_seed_tells_no_interval():
    ahead = look_ahead(along(Law(1.0, 0.5, 0.1), [200, 400, 800, 1600], seeds=1), 0.005)
    assert ahead.accuracy == pytest.approx(1 - Law(1.0, 0.5, 0.1).error(3200), abs=1e-4)
    assert ahead.accuracy_interval is None and ahead.gain_interval is None


def test_the_interval_covers_what_comes():
    """Of 12 noisy curves, the truth lies in the interval of about 11."""
    law, sizes = Law(1.5, 0.4, 0.08), [200, 400, 800, 1600, 3200, 6400]
    inside = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        points = [Point(n, tuple(1 - law.error(n) + rng.normal(0, 0.004, 4))) for n in sizes]
        low, high = look_ahead(points, 0.005).accuracy_interval
        inside += low <= 1 - law.error(12800) <= high
    assert inside >= 10


def test_sizes_double_up_to_all():
    assert doublings(10_000) == [200, 400, 800, 1600, 3200, 6400, 10_000]
    assert doublings(6400) == [200, 400, 800, 1600, 3200, 6400]
    assert doublings(7000) == [200, 400, 800, 1600, 3200, 7000]
    assert doublings(150) == [150]


@pytest.mark.parametrize(
    ("values", "said"),
    [({"sizes": [200, 200]}, "twice"), ({"sizes": []}, "must hold"), ({"sizes": [4]}, "must hold")],
)
def test_sizes_that_are_none(values, said):
    with pytest.raises(ValidationError, match=said):
        CurveConfig(**values)
