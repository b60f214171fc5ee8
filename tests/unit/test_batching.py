"""Batches: every row once, the budget kept, little padding."""

import numpy as np
import pytest

from llambert.batching import length_grouped, token_budget


def padding(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """The share of the batches' cells that hold no token."""
    return 1 - lengths.sum() / sum(lengths[batch].max() * len(batch) for batch in batches)


@pytest.mark.parametrize("budget", [1, 100, 512, 4096, 10**9])
def test_token_budget_takes_every_row_once_within_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 513, size=997)
    batches = token_budget(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(997))
    for rows in batches:
        assert len(rows) == 1 or lengths[rows].max() * len(rows) <= budget


def test_token_budget_of_nothing_and_of_empty_sequences():
    assert token_budget(np.array([], dtype=int), 100) == []
    assert [len(rows) for rows in token_budget(np.zeros(5, dtype=int), 2)] == [2, 2, 1]


def test_sorting_leaves_little_padding():
    lengths = np.random.default_rng(0).integers(10, 513, size=2000)
    arrival = [np.arange(i, min(i + 64, 2000)) for i in range(0, 2000, 64)]
    assert padding(lengths, token_budget(lengths, 8192)) < 0.03
    assert padding(lengths, arrival) > 0.4


def test_length_grouped_takes_every_row_once_and_depends_on_the_seed_alone():
    lengths = np.random.default_rng(0).integers(10, 513, size=1001)
    first = length_grouped(lengths, 16, np.random.default_rng(1))
    again = length_grouped(lengths, 16, np.random.default_rng(1))
    other = length_grouped(lengths, 16, np.random.default_rng(2))
    assert sorted(np.concatenate(first)) == list(range(1001))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not all(len(a) == len(b) and (a == b).all() for a, b in zip(first, other, strict=True))
    assert padding(lengths, first) < 0.1
    assert max(len(rows) for rows in first) == 16
