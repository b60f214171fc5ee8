"""Nights like those before pass; each of the three kinds of drift is told, alone, by its name."""

import numpy as np
import pytest

from llambert.corpus import _EDGES
from llambert.drift import (
    LENGTH_EDGES,
    NightlyConfig,
    Profile,
    length_histogram,
    reasons,
    shifts,
    together,
    training_profile,
)


def profile(
    records: int, seed: int, positive: float = 0.5, confidence: float = 0.9, length: float = 200
) -> Profile:
    """Drawn by chance: labels, and texts of a median `length`."""
    rng = np.random.default_rng(seed)
    said = int(rng.binomial(records, positive))
    lengths = length_histogram(rng.lognormal(np.log(length), 0.6, records).astype(int))
    return Profile({"positive": said, "negative": records - said}, confidence, lengths)


REFERENCE = profile(10_000, 0)


@pytest.mark.parametrize("seed", range(20))
def test_chance_alone_holds_no_night_of_the_least_size(seed):
    config = NightlyConfig()
    night = profile(config.least_records, seed + 1, confidence=0.88)
    assert reasons(config, night, REFERENCE, "the training data") == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"positive": 0.7}, ["label shares", "label_shift: 0.1", "instead of 5"]),
        ({"confidence": 0.8}, ["mean confidence is 0.800", "0.900", "confidence_drop: 0.05"]),
        ({"length": 340}, ["text lengths", "length_shift: 0.25", "instead of 102, 203, 512"]),
    ],
)
def test_each_drift_is_told_alone_with_figure_reference_and_bound(change, says):
    night = profile(2000, 1, **change)
    (reason,) = reasons(NightlyConfig(), night, REFERENCE, "the training data")
    for words in [*says, "the training data"]:
        assert words in reason


def test_a_bound_that_is_raised_lets_the_night_pass():
    night = profile(2000, 1, positive=0.7)
    assert reasons(NightlyConfig(label_shift=0.3), night, REFERENCE, "it") == []


def test_a_rise_of_confidence_is_no_drift():
    assert reasons(NightlyConfig(), profile(2000, 1, confidence=0.99), REFERENCE, "it") == []


def test_a_label_that_only_one_side_has_counts_whole():
    lengths = {"10": 100}
    night = Profile({"a": 50, "new": 50}, None, lengths)
    found = shifts(night, Profile({"a": 50, "old": 50}, 0.9, lengths))
    assert found == {"label_shift": 0.5, "length_shift": 0.0}  # no confidence to compare


def test_lengths_of_one_value_are_told_from_another():
    one = Profile({"a": 1000}, 0.9, length_histogram(np.full(1000, 80)))
    other = Profile({"a": 1000}, 0.9, length_histogram(np.full(1000, 4000)))
    assert shifts(other, one)["length_shift"] > 1
    assert shifts(one, one)["length_shift"] == 0


def test_the_index_is_that_of_its_definition():
    """Ten buckets of equal shares, against as many of which half the records are in the last."""
    edges = [str(edge) for edge in LENGTH_EDGES[:10]]
    even = Profile({"a": 10**6}, None, dict.fromkeys(edges, 10**5))
    swapped = Profile(
        {"a": 10**6}, None, dict(zip(edges, [5 * 10**4, 15 * 10**4] * 5, strict=True))
    )
    expected = 5 * (0.05 * np.log(0.15 / 0.1) - 0.05 * np.log(0.05 / 0.1))
    assert shifts(swapped, even)["length_shift"] == pytest.approx(expected, rel=0.1)


def test_the_corpus_stage_counts_in_finer_buckets_of_the_same_edges():
    lengths = np.random.default_rng(0).integers(1, 5000, 3000)
    fine = np.bincount(np.searchsorted(_EDGES, lengths), minlength=len(_EDGES))
    assert length_histogram(_EDGES, fine) == length_histogram(lengths)
    assert sum(length_histogram(lengths).values()) == 3000
    assert length_histogram([2**40]) == {str(2**31): 1}
    assert length_histogram([], []) == {}


def test_profiles_are_taken_together_by_their_records():
    both = together(
        [Profile({"a": 30}, 0.8, {"10": 30}), Profile({"a": 5, "b": 5}, 0.4, {"10": 10})]
    )
    assert both == Profile({"a": 35, "b": 5}, pytest.approx(0.7), {"10": 40})
    assert together([]).records == 0


def test_a_model_of_elsewhere_has_no_profile():
    assert training_profile({"validation_accuracy": 0.9}) is None
    details = {"records_by_label": {"a": 2}, "text_lengths": {"10": 2}}
    assert training_profile(details) == Profile({"a": 2}, None, {"10": 2})
