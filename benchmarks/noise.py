"""How much label noise an encoder stands: a share of the gold train labels flipped, two ways.

    IMDB=$PWD/runs/imdb LLAMBERT_ENCODER=MODEL python benchmarks/noise.py benchmarks/imdb.yaml \\
        --place runs/noise --shares 0 10 20 30 40 45 48 50

Encoders are fine-tuned end to end, and with the encoder frozen, on gold.train of CONFIG with labels
flipped at random, and measured on gold.test. With one seed, labels flipped at a smaller share are
flipped at a larger one too. Every training is a step: stopped, the same command goes on.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from paper import NOISE
from paper_runs import located, mean_told
from provenance import provenance

from llambert.cluster import connection
from llambert.config import RunConfig, load
from llambert.gold import load_gold
from llambert.progress import Progress
from llambert.step import Step, run_step
from llambert.storage import Folder
from llambert.trial import Trials

_WAYS = ("end to end", "encoder frozen")


def main() -> None:
    a = _arguments()
    config = load(a.config, a.set)
    gold = load_gold(config.gold, config.task)
    if not (gold.train.num_rows and gold.test.num_rows):
        raise SystemExit("the run file must have gold to train on and gold to test on")
    labels = list(config.task.labels)
    trials = {way: _trials(config, a, gold.test, way) for way in a.ways}
    accuracies: dict[tuple[float, str], list[float]] = {}
    with connection():
        for seed in a.seeds:
            for share in a.shares:
                records = flipped(gold.train, labels, share, seed)
                for way in a.ways:
                    title = f"{share:g} % flipped, {way}, seed {seed}"
                    place = Folder(located(a.place)) / way.replace(" ", "-") / f"{share:g}"
                    step = trials[way].step(title, records, seed, place / f"seed-{seed}")
                    accuracies.setdefault((share, way), []).append(measured(step))
    for line in _table(accuracies, a.ways):
        print(line)
    if a.json:
        runs = [{"flipped": s, "way": w, "accuracies": v} for (s, w), v in accuracies.items()]
        result = {"runs": runs} | provenance(a)
        Path(a.json).write_text(json.dumps(result, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="run file")
    parser.add_argument("--place", required=True, help="folder of the trainings")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=list(NOISE), help="of the labels flipped, %%"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=list(_WAYS))
    parser.add_argument(
        "--frozen-learning-rate", type=float, help="with the encoder frozen; else the run file's"
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--json", help="write all figures to this file")
    return parser.parse_args()


def measured(step: Step) -> float:
    """The accuracy, in per cent, of a trial that is done, or is done now; printed too."""
    with Progress("noise") as progress:
        found = (step.manifest or run_step(step, progress)).details
    print(f"{step.title}: {100 * found['accuracy']:.2f} %", flush=True)
    return 100 * found["accuracy"]


def flipped(records: pa.Table, labels: list[str], percent: float, seed: int) -> pa.Table:
    """`records` with the label of so many of them replaced by another of `labels`, at random."""
    rng = np.random.default_rng(seed)
    records = records.sort_by("id")
    order = rng.permutation(records.num_rows)
    further = rng.integers(1, len(labels), records.num_rows)  # places to go on in the list
    changed = set(order[: round(records.num_rows * percent / 100)].tolist())
    wrong = [
        labels[(labels.index(label) + further[row]) % len(labels)] if row in changed else label
        for row, label in enumerate(records["label"].to_pylist())
    ]
    at = records.schema.get_field_index("label")
    return records.set_column(at, "label", pa.array(wrong, pa.string()))


def _trials(config: RunConfig, a: argparse.Namespace, test: pa.Table, way: str) -> Trials:
    settings = config.train
    if way == "encoder frozen":
        rate = a.frozen_learning_rate or settings.learning_rate
        settings = settings.model_copy(update={"freeze_encoder": True, "learning_rate": rate})
    return Trials(settings, config.label, list(config.task.labels), test)


def _table(accuracies: dict[tuple[float, str], list[float]], ways: list[str]) -> list[str]:
    """Accuracies with their intervals over seeds, the paper's of RoBERTa-large beside."""
    heads = ["flipped, %", *(f"{way}{whose}" for way in ways for whose in ("", ", the paper"))]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for share in sorted({share for share, _ in accuracies}):
        cells = [f"{share:g}"]
        for way in ways:
            found = accuracies[share, way]
            paper = NOISE.get(share)
            cells += [mean_told(found), f"{paper[_WAYS.index(way)]:.2f}" if paper else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
