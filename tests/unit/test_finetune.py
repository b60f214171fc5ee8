"""What a training worker decides by itself: the learning rate, and which epoch is kept."""

import numpy as np
import pytest

from llambert.deepspeed_engine import rate_share, warmup_steps
from llambert.finetune import _is_best


def rates(steps: int, share: float) -> list[float]:
    warmup = warmup_steps(steps, share)
    return [rate_share(step, steps, warmup) for step in range(steps + 1)]


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing():
    found = rates(steps=100, share=0.1)
    assert found[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert found[10] == 1.0 and max(found) == 1.0
    assert found[10:] == pytest.approx(np.linspace(1, 0, 91))


def test_the_learning_rate_of_short_trainings_and_without_a_warm_up():
    assert rates(steps=1, share=0.1) == [1.0, 0.0]
    assert rates(steps=4, share=0.0) == pytest.approx([1.0, 1.0, 2 / 3, 1 / 3, 0.0])
    assert rates(steps=2, share=0.9) == [0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("accuracies", "losses", "best"),
    [
        ([0.7, 0.9, 0.8], [0.5, 0.3, 0.2], 2),  # not the last, whose loss is lower
        ([0.9, 0.9, 0.9], [0.5, 0.3, 0.4], 2),
        ([0.9, 0.9, 0.9], [0.3, 0.3, 0.3], 1),
        ([0.7, 0.8, 0.9], [0.5, 0.4, 0.3], 3),
    ],
)
def test_the_best_epoch_is_the_last_that_is_exported(accuracies, losses, best):
    history = [
        {"validation_accuracy": accuracy, "validation_loss": loss}
        for accuracy, loss in zip(accuracies, losses, strict=True)
    ]
    exported = [epoch for epoch in (1, 2, 3) if _is_best(history[:epoch])]
    assert exported[0] == 1 and exported[-1] == best


def test_without_validation_every_epoch_takes_the_place_of_the_one_before():
    assert all(_is_best([{"train_loss": 0.1 * epoch}] * epoch) for epoch in (1, 2, 3))
