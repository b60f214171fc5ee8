"""Metrics against values worked out by hand."""

import numpy as np
import pyarrow as pa
import pytest

from llambert.interval import wilson_interval
from llambert.measures import mcnemar, measure, over_seeds, risk_coverage

TABLE = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "gold": ["no", "no", "yes", "yes"],
        "label": ["no", "yes", "yes", "yes"],
        "confidence": pa.array([0.95, 0.65, 0.95, 0.55], pa.float32()),
    }
)


def test_measure():
    found = measure(TABLE, ["no", "yes"])
    assert found["accuracy"] == 0.75
    assert found["confusion"] == [[1, 1], [0, 2]]
    assert found["labels"]["no"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "records": 2,
    }
    assert found["labels"]["yes"]["precision"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    # bins: 0.5-0.6 one right at 0.55, 0.6-0.7 one wrong at 0.65, 0.9-1.0 two right at 0.95
    assert found["calibration_error"] == pytest.approx((0.45 + 0.65 + 0.10) / 4, abs=1e-6)


def test_wilson_interval_of_a_textbook_case():
    """9 of 10: 59.6 % to 98.2 % (Newcombe, Statistics in Medicine 1998, method 3)."""
    low, high = wilson_interval(9, 10)
    assert (low, high) == (pytest.approx(0.5958, abs=1e-3), pytest.approx(0.9821, abs=1e-3))


def test_the_interval_over_seeds_is_of_the_trainings_and_of_the_records():
    runs = {s: {"accuracy": a, "macro_f1": a} for s, a in enumerate([0.90, 0.92, 0.94])}
    over = over_seeds(runs, 10**9)
    assert over["accuracy"] == pytest.approx(0.92)
    # standard error 0.02 / sqrt(3), Student's t with 2 degrees of freedom 4.303
    assert over["accuracy_interval"] == pytest.approx([0.92 - 0.04968, 0.92 + 0.04968], abs=1e-4)
    low, high = over_seeds(runs, 500)["accuracy_interval"]
    # Wilson's of 460 in 500: 0.8929 to 0.9407
    assert (low, high) == (
        pytest.approx(0.92 - np.hypot(0.04968, 0.0271), abs=1e-4),
        pytest.approx(0.92 + np.hypot(0.04968, 0.0207), abs=1e-4),
    )


def test_seeds_that_agree_are_no_surer_than_their_records():
    alike = {seed: {"accuracy": 0.9, "macro_f1": 0.9} for seed in (1, 2)}
    assert over_seeds(alike, 100)["accuracy_interval"] == list(wilson_interval(90, 100))
    assert over_seeds({1: alike[1]}, 100)["accuracy_interval"] == list(wilson_interval(90, 100))
    wide = {1: {"accuracy": 0.9, "macro_f1": 0.9}, 2: {"accuracy": 0.99, "macro_f1": 0.99}}
    assert over_seeds(wide, 100)["accuracy_interval"][1] == 1.0


def test_calibration_counts_every_record_in_one_bin():
    bins = measure(TABLE, ["no", "yes"])["calibration"]
    told = [(bin["low"], bin["high"], bin["records"], bin["accuracy"]) for bin in bins]
    assert told == [(0.5, 0.6, 1, 1.0), (0.6, 0.7, 1, 0.0), (0.9, 1.0, 2, 1.0)]
    assert bins[2]["confidence"] == pytest.approx(0.95)


def test_risk_and_coverage_take_equal_confidences_together():
    points = measure(TABLE, ["no", "yes"])["risk_coverage"]
    told = [(point["coverage"], point["accuracy"]) for point in points]
    assert told == [(0.5, 1.0), (0.75, pytest.approx(2 / 3)), (1.0, 0.75)]
    assert [point["confidence"] for point in points] == pytest.approx([0.95, 0.65, 0.55])


def test_risk_and_coverage_of_many_records_are_a_few_points_up_to_all():
    points = risk_coverage(np.linspace(0.5, 1, 10_000), np.arange(10_000) >= 1000)
    assert len(points) == 40
    assert points[-1] == {"coverage": 1.0, "accuracy": 0.9, "confidence": 0.5}
    assert points[35] == {
        "coverage": 0.9,
        "accuracy": 1.0,
        "confidence": pytest.approx(0.55, abs=1e-4),
    }


def test_without_confidences_there_is_neither():
    found = measure(TABLE.drop_columns("confidence"), ["no", "yes"])
    assert found["calibration"] is found["risk_coverage"] is found["calibration_error"] is None


def test_a_record_without_confidence_is_left_out_of_what_goes_by_it():
    sure = pa.array([0.95, None, 0.95, 0.55], pa.float32())
    found = measure(TABLE.set_column(3, "confidence", sure), ["no", "yes"])
    assert found["accuracy"] == 0.75
    assert sum(bin["records"] for bin in found["calibration"]) == 3
    assert found["calibration_error"] == pytest.approx((0.45 + 0.10) / 3, abs=1e-6)
    assert found["risk_coverage"] is None  # of all records


def test_mcnemar_counts_what_only_one_got_right():
    first = {str(i): i >= 15 for i in range(100)}
    second = {str(i): not 15 <= i < 20 for i in range(100)}
    assert mcnemar(first, second | {"more": True}) == {
        "records": 100,
        "only_first_right": 5,
        "only_second_right": 15,
        # 2 (C(20, 0) + … + C(20, 5)) / 2^20
        "p_value": pytest.approx(2 * 21_700 / 2**20),
    }
    assert mcnemar(first, first)["p_value"] == 1.0
    assert mcnemar(first, {"x": True}) is None
