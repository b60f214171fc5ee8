"""The artefacts of a finished run that the report reads, made by hand: no Ray, no model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llambert.evaluate import ERRORS, Trained, _compare, _llm_metrics, _mistakes, _right
from llambert.measures import measure, over_seeds
from llambert.schema import ANNOTATION, GOLD, SAMPLE
from llambert.storage import Folder, Manifest

RECORDS = 100_000
SEEDS = (1, 2)
RIGHT = {"baseline": 0.80, "llambert": 0.86, "combined": 0.90}  # shares of the gold records
_GOLD = 600
_PROMPT = "Is this review positive or negative?\n\n{text}"
_MEASURED = {"device": "gpu", "workers": 2}  # beside the figures of an evaluation


def manifest(
    stage: str, out: int, details: Any = None, dropped: Any = None, made: str = "f00", **inputs: str
) -> Manifest:
    """A manifest whose counts add up."""
    dropped = dropped or {}
    counts = {"in": out + sum(dropped.values()), "out": out, "dropped": dropped}
    return Manifest(
        stage, "5e771265", made, counts, 12.34, details or {}, inputs, {"ray": "2.60.0"}
    )


def finished_run(
    folder: Path, mark: str = "", labels: tuple[str, str] = ("negative", "positive")
) -> dict[str, tuple[Folder, Manifest]]:
    """Write what a run of three variants and two seeds leaves: folder and manifest by title.

    Args:
        mark: stands in every text, response, id and message.
    """
    rng = np.random.default_rng(7)
    gold = pa.table(
        {
            "id": [f"g{i:03d}{mark}" for i in range(_GOLD)],
            "text": [f"Gold review {i}. {mark}" for i in range(_GOLD)],
            "label": [labels[i % 2] for i in range(_GOLD)],
        },
        schema=GOLD,
    )
    metrics: dict[str, Any] = {"gold_records": _GOLD}
    answered = _said(rng, gold, labels, 0.94).append_column("text", gold["text"])
    metrics["llm"] = _llm_metrics(answered, labels) | {"rejected": 3}
    found: dict[int, dict[str, pa.Table]] = {
        seed: {who: _said(rng, gold, labels, share) for who, share in RIGHT.items()}
        for seed in SEEDS
    }
    for who in RIGHT:
        metrics[who] = over_seeds(
            {seed: measure(found[seed][who], labels) for seed in SEEDS}, _GOLD
        )
    right = {seed: {who: _right(t) for who, t in found[seed].items()} for seed in SEEDS}
    metrics["comparisons"] = _compare(right, _right(answered))
    Folder(str(folder / "evaluation")).write_table(
        ERRORS,
        pa.concat_tables(
            _mistakes(found[seed][who], gold, Trained(who, seed, ""), 50)
            for seed in SEEDS
            for who in RIGHT
        ),
    )
    _write_answers(folder, mark)
    evaluated = manifest("evaluate", _GOLD, metrics | _MEASURED)
    steps = {
        "corpus": ("corpus", _corpus()),
        "sample": ("sample", manifest("sample", 1000, dropped={"not_drawn": RECORDS - 1000})),
        "annotate": ("annotations/a", _annotate(mark)),
        **{
            f"train {who} seed {seed}": (f"models/{who}/seed-{seed}", _train(who, seed))
            for seed in SEEDS
            for who in RIGHT
        },
        "evaluate": ("evaluation", replace(evaluated, seconds=15.0)),
        "label": ("labels/m", _label()),
    }
    return {title: (Folder(str(folder / place)), each) for title, (place, each) in steps.items()}


def settings(mark: str = "", labels: tuple[str, str] = ("negative", "positive")) -> dict[str, Any]:
    """What the report is told of the run file."""
    config = {
        "name": "films",
        "task": {"labels": {label: [] for label in labels}, "prompt": _PROMPT + mark},
        "sample": {"size": 1000, "seed": 42},
        "annotate": {"engine": "vllm", "model": "an-llm", "temperature": 0.0, "seed": 0},
        "train": {"model": "an-encoder", "seeds": list(SEEDS), "epochs": 3, "batch_size": 16},
    }
    config["task"] |= {"system": f"One word! {mark}", "examples": [{"text": mark, "label": mark}]}
    config["annotate"] |= {"parse": "answer"}
    config["train"] |= {"learning_rate": 1e-5, "max_length": 512}
    return {"config": config, "commit": "0123456789ab"}


def write_curve(folder: Path, mark: str = "") -> dict[str, Any]:
    """Leave a learning curve of two sizes and a law beside the run, and return it."""
    sizes = [
        {"records": 100, "accuracy": 0.8, "accuracy_interval": [0.7, 0.85]},
        {"records": 200, "accuracy": 0.85, "accuracy_interval": [0.82, 0.88]},
    ]
    law = {"a": 1.0, "b": 0.4, "c": 0.03}
    outlook = {"law": law, "size": 400, "accuracy": 0.88, "accuracy_interval": [0.86, 0.9]}
    outlook |= {"advice": f"200 records are enough {mark}", "why": ""}
    outlook |= {"gain": 0.03, "gain_interval": [0.01, 0.05]}
    costs = {"further_records": 200, "training_seconds": 61.0, "cost": None, "currency": "EUR"}
    told = {
        "against": f"600 records {mark}",
        "variants": {
            "llambert": {"sizes": sizes, "outlook": outlook, "doubling_costs": costs},
        },
    }
    Folder(str(folder / "curve")).write_json("curve.json", told)
    return told


def _said(
    rng: np.random.Generator, gold: pa.Table, labels: tuple[str, str], share: float
) -> pa.Table:
    """What a model that is right in `share` of the records made of them."""
    right = rng.random(gold.num_rows) < share
    truth = gold["label"].to_pylist()
    said = [own if ok else labels[own == labels[0]] for own, ok in zip(truth, right, strict=True)]
    sure = np.where(right, rng.beta(6, 1, len(right)), rng.beta(2, 2, len(right)))
    return pa.table(
        {
            "id": gold["id"],
            "gold": gold["label"],
            "label": pa.array(said),
            "confidence": pa.array(0.5 + sure / 2, pa.float32()),
        }
    )


def _write_answers(folder: Path, mark: str) -> None:
    ids = [f"r{i:04d}{mark}" for i in range(1000)]
    sample = pa.table({"id": ids, "text": [f"Review {i}. {mark}" for i in range(1000)]}, SAMPLE)
    Folder(str(folder / "sample")).write_table("sample.parquet", sample)
    odd = {0: "Hard to say.", 3: f"Mixed {mark}", 6: "Hard to say."}
    rows = [
        {
            "id": id,
            "response": odd.get(i, "positive"),
            "label": None if i in odd else "positive",
            "reject_reason": {0: "no_label", 3: "off_list", 6: "no_label"}.get(i),
        }
        for i, id in enumerate(ids)
    ]
    table = pa.Table.from_pylist(rows, schema=ANNOTATION)
    Folder(str(folder / "annotations" / "a")).write_table("annotations.parquet", table)


def _corpus() -> Manifest:
    return manifest("corpus", RECORDS, dropped={"empty_text": 3, "duplicate_id": 1})


def _annotate(mark: str) -> Manifest:
    details = {
        "asked": 1000,
        "prompt_tokens": 123_456,
        "output_tokens": 2000,
        "seconds": 95.5,
        "records_per_s": 17.25,
        "device": "gpu",
        "device_seconds": 191.0,
        "gold_refused": {f"unknown_label{mark}": 2},
        "errors": {f"TimeoutError {mark}": 1},
        "warnings": [f"1 request failed {mark}"],
        "truncated": 4,
    }
    return manifest("annotate", 997, details, {"no_label": 2, "off_list": 1})


def _train(who: str, seed: int) -> Manifest:
    details = {
        "records_per_s": 33.3,
        "tokens": 4500,
        "training_seconds": 60.0,
        "device": "gpu",
        "workers": 2,
        "device_seconds": 120.0,
    }
    return manifest("train", 900, details, made=f"{who}{seed}")


def _label() -> Manifest:
    details = {
        "records": RECORDS,
        "labelled_now": RECORDS,
        "records_per_s": 5120.4,
        "tokens": 30_000_000,
        "padding_share": 0.034,
        "seconds": 25.0,
        "device": "gpu",
        "workers": 2,
        "device_seconds": 39.0,
    }
    return manifest("label", RECORDS, details, train="combined1")
