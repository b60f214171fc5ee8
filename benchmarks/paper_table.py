"""The paper's table: gold labels, the LLM's labels, more of them, and both, beside its figures.

    python benchmarks/imdb_splits.py ../shared/imdb/train.parquet runs/imdb --train 2000
    export IMDB=$PWD/runs/imdb LLAMBERT_ENCODER=MODEL
    python benchmarks/paper_table.py benchmarks/imdb.yaml --place runs/table

CONFIG is any run file with a corpus, gold to train and to test on, and an LLM:
jobs/imdb-llama2-70b.yaml makes the paper's own table. It comes down to three ordinary runs in PLACE
(paper_runs.py), of which every training (variant, seed) is made once: stopped, the same command
goes on. Printed are means over seeds with Student's 95 % interval, as the paper has them, and the
interval of the test set.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from paper import COLUMNS, TABLE
from paper_runs import both_run, check_apart, do, extra_run, located, mean_told, train_run
from provenance import provenance

from llambert.config import RunConfig, load
from llambert.interval import student_interval, wilson_interval
from llambert.pipeline import Pipeline
from llambert.progress import duration
from llambert.step import made
from llambert.workdir import Workdir

# What the paper says of two columns: their difference, and the least or most it may be, in points.
_CLAIMS = (
    ("llambert within 1 point of baseline", "llambert", "baseline", -1.0, None),
    ("combined above baseline", "combined", "baseline", 0.0, None),
    (
        "more extra data changes little (by less than 1 point)",
        "llambert + extra",
        "llambert",
        -1.0,
        1.0,
    ),
)


def main() -> None:
    a = _arguments()
    config = load(a.config, [*a.set, f"train.seeds={a.seeds}"] if a.seeds else a.set)
    if not (config.gold and config.gold.train and (config.gold.test or config.gold.test_share)):
        raise SystemExit("the run file must have gold to train on and gold to test on")
    place = located(a.place)
    check_apart(config, place)
    for make in (extra_run, train_run, both_run):
        do(make(config, place), "run", "--until", "evaluate")
    right = correctness(config, place)
    columns = {name: column(right[name]) for name in COLUMNS}
    claims = {what: claim(right, *each) for what, *each in _CLAIMS}
    published = {a.paper: TABLE[a.paper]} if a.paper else TABLE
    for line in table(columns, claims, published):
        print(line)
    seconds = training_seconds(config, place)
    print(f"trained in {duration(seconds)}")
    if a.json:
        figures = {"columns": columns, "claims": claims, "training_seconds": seconds}
        figures |= provenance(a)
        Path(a.json).write_text(json.dumps(figures, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="run file")
    parser.add_argument("--place", required=True, help="folder of the three runs")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the run file's")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--paper", choices=TABLE, help="the encoder beside; all by default")
    parser.add_argument("--json", help="write all figures to this file")
    return parser.parse_args()


def correctness(config: RunConfig, place: str) -> dict[str, np.ndarray]:
    """Whether each model is right on each gold test record: bool (seeds, records), by column."""
    where = {
        "baseline": ("train", "baseline"),
        "llambert": ("train", "llambert"),
        "llambert + extra": ("both", "llambert"),
        "combined": ("extra", "combined"),
    }
    found = {}
    for name, (run, variant) in where.items():
        predictions = Workdir(f"{place}/{run}").evaluation / "predictions"
        tables = [
            predictions.read_table(f"{variant}-seed-{seed}.parquet", ["gold", "label"])
            for seed in config.train.seeds
        ]  # sorted by id, all of them
        found[name] = np.array(
            [np.array(t["gold"].to_pylist()) == np.array(t["label"].to_pylist()) for t in tables]
        )
    return found


def training_seconds(config: RunConfig, place: str) -> float:
    """What all trainings of the table took together."""
    found = 0.0
    for make in (extra_run, train_run, both_run):
        steps = Pipeline(make(config, place)).steps("train")
        found += sum(made(step).details["training_seconds"] for step in steps)
    return found


def column(right: np.ndarray) -> dict[str, Any]:
    """Accuracy in %, with its interval over seeds (None for one) and that of the test set."""
    means = [float(100 * seed.mean()) for seed in right]
    records = right.shape[1]
    return {
        "accuracy": float(np.mean(means)),
        "seeds": means,
        "over_seeds": student_interval(means) if len(means) > 1 else None,
        "test_set": [
            100 * each for each in wilson_interval(round(right.mean() * records), records)
        ],
    }


def claim(
    right: dict[str, np.ndarray], one: str, other: str, least: float | None, most: float | None
) -> dict[str, Any]:
    """A difference of two columns in points, its 95 % interval, and whether it is as claimed.

    Seeds and test records are both paired; their two variances are added. One seed decides
    nothing: how far chance moves a training is not known.
    """
    difference = 100 * (right[one].astype(float) - right[other].astype(float))
    mean, (seeds, records) = float(difference.mean()), difference.shape
    half = 1.96 * float(difference.mean(axis=0).std(ddof=1)) / records**0.5
    if seeds > 1:
        low, high = student_interval([float(seed.mean()) for seed in difference])
        half = float(np.hypot(half, (high - low) / 2))
    inside = (least is None or mean - half > least) and (most is None or mean + half < most)
    outside = (least is not None and mean + half < least) or (
        most is not None and mean - half > most
    )
    verdict = "confirmed" if inside else "refuted" if outside else "undecided"
    if seeds == 1:
        verdict = "undecided with one seed"
    return {"points": mean, "half_interval": half, "verdict": verdict, "columns": [one, other]}


def table(
    columns: dict[str, Any], claims: dict[str, Any], paper: dict[str, tuple[float, ...]]
) -> list[str]:
    """The table and the claims as Markdown."""
    seeds = len(columns["baseline"]["seeds"])
    rows = {
        f"here, {seeds} seeds": [mean_told(each["seeds"]) for each in columns.values()],
        "test set's interval": [
            "{:.2f} to {:.2f}".format(*c["test_set"]) for c in columns.values()
        ],
    }
    for encoder, values in paper.items():
        rows[f"the paper, {encoder}"] = [f"{value:.2f}" for value in values]
    lines = ["| accuracy, % | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    for what, found in claims.items():
        one, other = (COLUMNS.index(name) for name in found["columns"])
        theirs = sorted({round(values[one] - values[other], 2) for values in paper.values()})
        bounds = dict.fromkeys([theirs[0], theirs[-1]])
        beside = "; the paper: " + " to ".join(f"{each:+.2f}" for each in bounds)
        difference = f"{found['points']:+.2f} ± {found['half_interval']:.2f} points"
        lines.append(f"- {what}: {found['verdict']} ({difference}{beside})")
    return lines


if __name__ == "__main__":
    main()
