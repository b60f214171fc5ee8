"""Pure: sequence lengths become batches with little padding."""

import numpy as np
from numpy.typing import NDArray

_WINDOW_BATCHES = 50  # batches whose records are sorted together before training


def token_budget(
    lengths: NDArray[np.integer], budget: int, padded: bool = True
) -> list[NDArray[np.int64]]:
    """Batches of row numbers, longest first, that stay within `budget` tokens.

    Args:
        lengths: tokens of each sequence, shape (rows,).
        budget: the most tokens of a batch; a longer sequence goes alone.
        padded: whether the tokens of padding count, up to the longest sequence of the batch.

    Returns:
        Row numbers of each batch; every row is in exactly one.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    batches = []
    start = 0
    while start < len(order):
        if padded:
            size = budget // max(int(lengths[order[start]]), 1)
        else:
            before = ends[start] - lengths[order[start]]
            size = int(np.searchsorted(ends, before + budget, side="right")) - start
        batches.append(order[start : start + max(size, 1)])
        start += max(size, 1)
    return batches


def length_grouped(
    lengths: NDArray[np.integer], batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Shuffled training batches of `batch_size` rows of similar length; the last may be smaller.

    Rows are shuffled, sorted by length within windows of 50 batches, cut into batches, and the
    batches shuffled: random enough to train on, with little padding.
    """
    order = rng.permutation(len(lengths))
    window = batch_size * _WINDOW_BATCHES
    batches = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(-lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    rng.shuffle(batches)
    return batches
