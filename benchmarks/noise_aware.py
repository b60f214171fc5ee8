"""Whether LLM labels that look wrong are better left out of training: confident learning.

    export IMDB=$PWD/runs/imdb LLAMBERT_ENCODER=MODEL
    python benchmarks/noise_aware.py benchmarks/imdb.yaml --place runs/noise-aware

The records of CONFIG's gold.train get the LLM's labels. The encoder is fine-tuned on all but one of
several parts and labels that one, in turns, and cleanlab finds by confident learning (Northcutt,
Jiang, Chuang: Confident Learning, JAIR 2021) which labels its probabilities contradict. Encoders
are then fine-tuned on all records, without the suspects, and without those that gold contradicts,
which is the most that any such method could bring; gold.test measures them. Every training is a
step: stopped, the same command goes on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from noise import measured
from numpy.typing import NDArray
from paper_runs import do, located, mean_told, train_run
from provenance import provenance

from llambert.cluster import connection
from llambert.config import load
from llambert.evaluate import read_predictions
from llambert.gold import load_gold
from llambert.pipeline import Pipeline
from llambert.storage import Folder
from llambert.trial import VARIANT, Trials

_WAYS = ("all records", "suspects left out", "wrong ones left out")


def main() -> None:
    a = _arguments()
    config, runs = load(a.config, a.set), located(a.place)
    annotated = train_run(config, runs)
    do(annotated, "run", "--until", "annotate")
    records, _ = Pipeline(annotated).asked.annotated_sample()
    records = records.sort_by("id")
    gold, labels = load_gold(config.gold, config.task), list(config.task.labels)
    wrong = contradicted(records, gold.train)
    trials = Trials(config.train, config.label, labels, gold.test)
    accuracies: dict[str, list[float]] = {way: [] for way in _WAYS}
    found: list[dict[str, Any]] = []
    with connection():
        for seed in a.seeds:
            folder = Folder(runs) / f"seed-{seed}"
            suspects = _suspects(trials, records, a.folds, seed, folder)
            found.append({"seed": seed} | hits(suspects, wrong))
            print(f"seed {seed}: {found[-1]}", flush=True)
            for way, left_out in zip(_WAYS, (wrong & False, suspects, wrong), strict=True):
                part, place = records.filter(pa.array(~left_out)), folder / way.split()[0]
                step = trials.step(f"{way}, seed {seed}", part, seed, place)
                accuracies[way].append(measured(step))
    for line in _table(accuracies):
        print(line)
    if a.json:
        result = {"accuracies": accuracies, "suspects": found} | provenance(a)
        Path(a.json).write_text(json.dumps(result, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="run file")
    parser.add_argument("--place", required=True, help="folder of the trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folds", type=int, default=3, help="parts that are labelled in turns")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--json", help="write all figures to this file")
    return parser.parse_args()


def contradicted(records: pa.Table, gold: pa.Table) -> NDArray[np.bool_]:
    """Which of `records` (sorted by id) have another label than `gold`, which has all of them."""
    truth = dict(zip(gold["id"].to_pylist(), gold["label"].to_pylist(), strict=True))
    rows = zip(records["id"].to_pylist(), records["label"].to_pylist(), strict=True)
    return np.array([truth[id] != label for id, label in rows], dtype=bool)


def hits(suspects: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> dict[str, int]:
    """How many labels are suspected, how many are wrong, and how many are both."""
    counted = {"suspected": suspects, "wrong": wrong, "both": suspects & wrong}
    return {"records": len(wrong)} | {name: int(each.sum()) for name, each in counted.items()}


def _suspects(
    trials: Trials, records: pa.Table, folds: int, seed: int, folder: Folder
) -> NDArray[np.bool_]:
    """Which of `records` (sorted by id) have a label that encoders trained on others contradict."""
    from cleanlab.filter import find_label_issues
    from sklearn.model_selection import StratifiedKFold

    targets = np.array([trials.labels.index(label) for label in records["label"].to_pylist()])
    predicted = []
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(targets, targets)
    for number, (others, part) in enumerate(parts):
        title, place = f"part {number + 1} of {folds}, seed {seed}", folder / f"part-{number}"
        on_part = Trials(
            trials.config, trials.measuring, trials.labels, records.take(pa.array(part))
        )
        measured(on_part.step(title, records.take(pa.array(others)), seed, place))
        predicted.append(read_predictions(place / "evaluation", VARIANT, seed))
    table = pa.concat_tables(predicted).sort_by("id")
    assert table["id"].to_pylist() == records["id"].to_pylist()
    return find_label_issues(targets, np.stack(table["probabilities"].to_numpy()), n_jobs=1)


def _table(accuracies: dict[str, list[float]]) -> list[str]:
    """Accuracies with their intervals over seeds, and the difference from all records."""
    lines = ["| trained on | accuracy, % | more than all, points |", "|---|---|---|"]
    for way, values in accuracies.items():
        gains = np.subtract(values, accuracies[_WAYS[0]])
        lines.append(f"| {way} | {mean_told(values)} | {mean_told(gains.tolist())} |")
    return lines


if __name__ == "__main__":
    main()
