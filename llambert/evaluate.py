"""Stage: how good the LLM and each encoder are, measured against gold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from llambert.classify import label_rows
from llambert.errors import CountError
from llambert.interval import student_interval, wilson_interval
from llambert.progress import Counter, Progress
from llambert.section import Section
from llambert.storage import Folder, Outcome

_BLOCKS = 16  # of the gold test set, so that several actors share it
_BLOCK_RECORDS = 128  # at least: each block's tokenizer may be a new process, seconds in starting
_BINS = 10  # of equal width, for the calibration error
PREDICTIONS = "predictions"
_ERRORS = "errors.parquet"
_ERROR = pa.schema(
    [
        pa.field("variant", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("gold", pa.string()),
        pa.field("label", pa.string()),
        pa.field("confidence", pa.float32()),  # probability of `label`
        pa.field("text", pa.string()),
    ]
)


class EvaluateConfig(Section):
    """Measuring against gold."""

    errors: int = Field(200, ge=0, description="Most confident mistakes kept for each variant.")


@dataclass(frozen=True)
class Trained:
    """A fine-tuned encoder."""

    variant: str
    seed: int
    folder: str


def evaluate(
    config: EvaluateConfig,
    labels: Sequence[str],
    gold: pa.Table,
    annotated: pa.Table,
    models: Sequence[Trained],
    folder: Folder,
    progress: Progress,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Outcome:
    """Write metrics.json, errors.parquet and predictions/ to `folder`.

    What an earlier evaluation left there, of other models perhaps, is removed first.

    Args:
        gold: the test records, `schema.GOLD`; every model labels all of them.
        annotated: id, text, gold, label of the gold records that the LLM was asked about, test
            and train alike; label is null where its answer was rejected.
        dtype: as the corpus is labelled with.
        trust_remote_code: whether code that comes with a model may run.

    Raises:
        CountError: a model's predictions are not of the gold records.
    """
    (folder / PREDICTIONS).remove()
    if folder.exists(_ERRORS):
        folder.fs.rm_file(folder.path(_ERRORS))
    metrics: dict[str, Any] = {"gold_records": gold.num_rows}
    if annotated.num_rows:
        metrics["llm"] = _llm_metrics(annotated, labels)
    progress.begin(gold.num_rows * len(models), "labelling the gold test records")
    errors = [_ERROR.empty_table()]
    by_variant: dict[str, dict[int, dict[str, Any]]] = {}
    if gold.num_rows and models:
        counter = progress.ray_counter()
        for model in models:
            predicted = _predict(gold, model.folder, counter, dtype, trust_remote_code)
            name = f"{model.variant}-seed-{model.seed}.parquet"
            (folder / PREDICTIONS).write_table(name, predicted)
            one = measure(predicted, labels)
            one["against_llm"] = _agreement(predicted, annotated)
            by_variant.setdefault(model.variant, {})[model.seed] = one
            errors.append(_mistakes(predicted, gold, model, config.errors))
    for variant, seeds in by_variant.items():
        metrics[variant] = _over_seeds(seeds)
    folder.write_table(_ERRORS, pa.concat_tables(errors))
    folder.write_json("metrics.json", metrics)
    return Outcome({"in": gold.num_rows, "out": gold.num_rows, "dropped": {}}, metrics)


def measure(predicted: pa.Table, labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its 95 % Wilson interval, macro F1, per-label figures, confusion, calibration.

    Args:
        predicted: gold, label and, where known, confidence (0..1) of each record.

    Returns:
        Shares in 0..1; `confusion` has a row for each gold label and a column for each
        predicted one; `calibration_error` is the expected calibration error over ten bins of
        equal width (Guo et al., ICML 2017), null without confidences.
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
        "calibration_error": _calibration_error(predicted, correct),
    }


def _calibration_error(predicted: pa.Table, correct: NDArray[np.bool_]) -> float | None:
    if "confidence" not in predicted.column_names or predicted["confidence"].null_count:
        return None
    confidence = predicted["confidence"].to_numpy()
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    weights = np.bincount(bins, minlength=_BINS)
    gaps = np.abs(
        np.bincount(bins, weights=correct, minlength=_BINS)
        - np.bincount(bins, weights=confidence, minlength=_BINS)
    )
    return float(gaps.sum() / weights.sum())


def _llm_metrics(annotated: pa.Table, labels: Sequence[str]) -> dict[str, Any]:
    """The LLM against gold, over the answers that gave a label; rejects are counted beside."""
    answered = annotated.filter(annotated["label"].is_valid())
    rejected = annotated.num_rows - answered.num_rows
    if not answered.num_rows:
        return {"records": 0, "rejected": rejected}
    return {**measure(answered, labels), "rejected": rejected}


def _predict(
    gold: pa.Table, model: str, counter: Counter, dtype: str, trust_remote_code: bool
) -> pa.Table:
    """id, gold, label, confidence, probabilities of every gold record, sorted by id."""
    import ray

    blocks = max(1, min(_BLOCKS, gold.num_rows // _BLOCK_RECORDS))
    rows = ray.data.from_arrow(gold).repartition(blocks)
    labelled = label_rows(
        rows,
        model,
        counter,
        dtype=dtype,
        probabilities=True,
        trust_remote_code=trust_remote_code,
    )
    tables = list(labelled.iter_batches(batch_size=None, batch_format="pyarrow"))
    table = pa.concat_tables(tables).combine_chunks().sort_by("id")
    truth = gold.sort_by("id")
    if table["id"].to_pylist() != truth["id"].to_pylist():
        raise CountError(f"{gold.num_rows:,} gold records came in and others came out")
    return table.add_column(1, "gold", truth["label"])


def _agreement(predicted: pa.Table, annotated: pa.Table) -> dict[str, Any] | None:
    """How often the encoder says what the LLM said, on the records that both labelled."""
    if not annotated.num_rows:
        return None
    said = annotated.select(["id", "label"]).rename_columns(["id", "llm"])
    both = predicted.select(["id", "label"]).join(said, "id", join_type="inner")
    both = both.filter(both["llm"].is_valid())
    if not both.num_rows:
        return None
    same = sum(
        a == b for a, b in zip(*(both[c].to_pylist() for c in ("label", "llm")), strict=True)
    )
    return {"records": both.num_rows, "agreement": same / both.num_rows}


def _mistakes(predicted: pa.Table, gold: pa.Table, model: Trained, most: int) -> pa.Table:
    """The mistakes that the model was surest of, with their texts."""
    wrong = predicted.filter(
        pa.array(
            [
                a != b
                for a, b in zip(
                    predicted["gold"].to_pylist(), predicted["label"].to_pylist(), strict=True
                )
            ]
        )
    ).select(["id", "gold", "label", "confidence"])
    worst = wrong.sort_by([("confidence", "descending"), ("id", "ascending")]).slice(0, most)
    with_text = worst.join(gold.select(["id", "text"]), "id")
    columns = {name: with_text[name] for name in with_text.column_names}
    columns["variant"] = pa.array([model.variant] * with_text.num_rows, pa.string())
    columns["seed"] = pa.array([model.seed] * with_text.num_rows, pa.int64())
    mistakes = pa.table(columns).select(_ERROR.names).cast(_ERROR)
    return mistakes.sort_by([("confidence", "descending"), ("id", "ascending")])


def _over_seeds(seeds: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds; its 95 % interval is Student's over seeds, Wilson's for one seed."""
    accuracies = [one["accuracy"] for one in seeds.values()]
    if len(accuracies) == 1:
        interval = next(iter(seeds.values()))["accuracy_interval"]
    else:
        low, high = student_interval(accuracies)
        interval = [max(low, 0.0), min(high, 1.0)]
    return {
        "accuracy": float(np.mean(accuracies)),
        "accuracy_interval": interval,
        "macro_f1": float(np.mean([one["macro_f1"] for one in seeds.values()])),
        "seeds": {str(seed): one for seed, one in seeds.items()},
    }
