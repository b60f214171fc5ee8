"""Pure: how good predictions are: accuracy, calibration, risk and coverage, McNemar's test."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llambert.interval import interval_over_seeds, wilson_interval

_BINS = 10  # of equal width, for calibration
_POINTS = 40  # of a risk-coverage curve


def measure(predicted: pa.Table, labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its 95 % Wilson interval, macro F1, per-label figures, confusion, calibration.

    Args:
        predicted: gold, label and, where known, confidence (0..1) of each record.

    Returns:
        Shares in 0..1; `confusion` has a row for each gold label and a column for each
        predicted one. Null without confidences: `calibration_error`, the expected calibration
        error (Guo et al., ICML 2017) over the bins of `calibration`, and `risk_coverage`.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    truth = np.array(predicted["gold"].to_pylist())
    said = np.array(predicted["label"].to_pylist())
    correct = truth == said
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, said, labels=list(labels), zero_division=0.0
    )
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return {
        "records": len(correct),
        "accuracy": float(correct.mean()),
        "accuracy_interval": [low, high],
        "macro_f1": float(np.mean(f1)),
        "labels": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "records": int(n)}
            for name, p, r, f, n in zip(labels, precision, recall, f1, support, strict=True)
        },
        "confusion": confusion_matrix(truth, said, labels=list(labels)).tolist(),
        **_by_confidence(predicted, correct),
    }


def _by_confidence(predicted: pa.Table, correct: NDArray[np.bool_]) -> dict[str, Any]:
    """Calibration over the records that have a confidence, which an LLM's answer may not.

    What is covered at a risk is told of all records, and so only where each has one.
    """
    nothing = {"calibration_error": None, "calibration": None, "risk_coverage": None}
    if "confidence" not in predicted.column_names:
        return nothing
    known = predicted["confidence"].is_valid().to_numpy()
    if not known.any():
        return nothing
    confidence, correct = predicted["confidence"].drop_null().to_numpy(), correct[known]
    bins = calibration(confidence, correct)
    gaps = [bin["records"] * abs(bin["accuracy"] - bin["confidence"]) for bin in bins]
    return {
        "calibration_error": float(sum(gaps) / len(correct)),
        "calibration": bins,
        "risk_coverage": risk_coverage(confidence, correct) if known.all() else None,
    }


def calibration(confidence: NDArray[Any], correct: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Mean confidence and accuracy of the records in each of ten bins; empty ones are left out."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    records = np.bincount(bins, minlength=_BINS)
    right = np.bincount(bins, weights=correct, minlength=_BINS)
    sure = np.bincount(bins, weights=confidence, minlength=_BINS)
    return [
        {
            "low": i / _BINS,
            "high": (i + 1) / _BINS,
            "records": int(records[i]),
            "confidence": float(sure[i] / records[i]),
            "accuracy": float(right[i] / records[i]),
        }
        for i in np.flatnonzero(records).tolist()
    ]


def risk_coverage(confidence: NDArray[Any], correct: NDArray[np.bool_]) -> list[dict[str, float]]:
    """How often the model is right on its surest records, from few of them to all.

    The risk-coverage curve of Geifman and El-Yaniv (NeurIPS 2017), the risk as 1 - accuracy.
    Records of equal confidence come in together, so that their order does not matter.

    Returns:
        Points by growing `coverage` (share of the records), with their `accuracy` and the
        least `confidence` among them.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, right = confidence[order], np.cumsum(correct[order])
    last = np.append(np.flatnonzero(np.diff(sure)), len(sure) - 1)  # of each run of equal ones
    wanted = np.arange(1, _POINTS + 1) / _POINTS * len(sure)
    ends = last[np.unique(np.searchsorted(last + 1, np.ceil(wanted)))]
    return [
        {
            "coverage": float((end + 1) / len(sure)),
            "accuracy": float(right[end] / (end + 1)),
            "confidence": float(sure[end]),
        }
        for end in ends
    ]


def mcnemar(first: Mapping[str, bool], second: Mapping[str, bool]) -> dict[str, Any] | None:
    """Whether two models differ by more than chance on the records that both labelled.

    Args:
        first: whether it was right, by record id.

    Returns:
        `p_value` is that of `exact_mcnemar`. None where no record was labelled by both.
    """
    both = first.keys() & second.keys()
    if not both:
        return None
    only_first = sum(first[key] and not second[key] for key in both)
    only_second = sum(second[key] and not first[key] for key in both)
    return {
        "records": len(both),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": exact_mcnemar(only_first, only_second),
    }


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's test (Psychometrika 1947) in its exact form.

    Of the records that only one of the two got right, either is as likely to be the one.
    """
    from scipy.stats import binomtest

    apart = only_first + only_second
    return float(binomtest(only_first, apart).pvalue) if apart else 1.0


def over_seeds(seeds: Mapping[int, dict[str, Any]], records: int) -> dict[str, Any]:
    """The mean over seeds and its 95 % interval, by the trainings and by the `records` measured."""
    accuracies = [one["accuracy"] for one in seeds.values()]
    return {
        "accuracy": float(np.mean(accuracies)),
        "accuracy_interval": list(interval_over_seeds(accuracies, records)),
        "macro_f1": float(np.mean([one["macro_f1"] for one in seeds.values()])),
        "seeds": {str(seed): one for seed, one in seeds.items()},
    }
