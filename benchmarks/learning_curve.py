"""How many annotations are enough: `llambert curve` with the LLM's labels and with gold ones.

    python benchmarks/learning_curve.py
    IMDB=$PWD/runs/imdb LLAMBERT_ENCODER=MODEL python benchmarks/learning_curve.py \\
        --config benchmarks/imdb.yaml --place runs/curve

Without CONFIG no encoder is trained: of the paper's own curves the first sizes foretell the next
one, which is compared with what the paper then measured. With CONFIG both curves are made of its
gold training records, and stand beside the paper's.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from paper import CURVE
from paper_runs import do, located, mean_told, train_run
from provenance import provenance

from llambert.config import RunConfig, load
from llambert.power_law import LEAST_SIZES, Point, look_ahead
from llambert.storage import Folder

_SEEDS = 5  # of the paper
_NAMES = {"llm": "llambert", "gold": "baseline"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="run file with gold to train and to test on")
    parser.add_argument("--place", help="folder of the run")
    parser.add_argument("--sizes", type=int, nargs="+", help="by default 200 and its doublings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--gain", type=float, default=0.5, help="wanted of a doubling, points")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    a = parser.parse_args()
    if a.json and not a.config:
        parser.error("--json is for what is measured: it wants --config")
    if not a.config:
        for line in foretold():
            print(line)
        return
    if not a.place:
        parser.error("--config wants --place")
    about = provenance(a)
    run = train_run(load(a.config, a.set), located(a.place))
    curve = {"variants": list(_NAMES.values()), "sizes": a.sizes, "seeds": a.seeds}
    run = RunConfig.model_validate(run.model_dump() | {"curve": run.curve.model_dump() | curve})
    do(run, "run", "--until", "annotate")
    do(run, "curve", "--gain", str(a.gain))
    found = (Folder(run.workdir) / "curve").read_json("curve.json")
    for line in beside(found["variants"]):
        print(line)
    if a.json:
        Path(a.json).write_text(json.dumps(found | about, indent=2) + "\n")


def foretold() -> list[str]:
    """The next size of each published curve, foretold from those before it."""
    lines = ["| labels | from | next | foretold | its interval | measured |", "|---" * 6 + "|"]
    for labels, curve in CURVE.items():
        sizes = list(curve)
        for known in range(LEAST_SIZES, len(sizes)):
            law = look_ahead(published(labels, sizes[known - 1]), 0.005)
            measured, half = curve[sizes[known]]
            told, between = "no law", ""
            if law.accuracy is not None and law.accuracy_interval is not None:
                told = f"{100 * law.accuracy:.2f}"
                between = "{:.2f} to {:.2f}".format(*(100 * x for x in law.accuracy_interval))
            cells = [labels, f"{sizes[0]:,} to {sizes[known - 1]:,}", f"{sizes[known]:,}", told]
            lines.append(f"| {' | '.join(cells)} | {between} | {measured:.2f} ± {half:.2f} |")
    return lines


def published(labels: str, most: int) -> list[Point]:
    """Of each size up to `most`, values of five seeds with the paper's mean and interval."""
    from scipy.stats import t

    shape = np.linspace(-1, 1, _SEEDS) / np.std(np.linspace(-1, 1, _SEEDS), ddof=1)
    scale = _SEEDS**0.5 / t.ppf(0.975, _SEEDS - 1)  # from half an interval to a deviation
    return [
        Point(size, tuple((mean + half * scale * shape) / 100))
        for size, (mean, half) in CURVE[labels].items()
        if size <= most
    ]


def beside(found: dict[str, Any]) -> list[str]:
    """What was measured of each variant, the paper's figures of RoBERTa-large beside.

    Both with Student's 95 % interval over seeds.
    """
    heads = [f"{labels}{whose}" for labels in _NAMES for whose in (", %", ", the paper")]
    lines = ["| records | " + " | ".join(heads) + " |", "|---" * 5 + "|"]
    rows = {name: {r["records"]: r for r in found[v]["sizes"]} for name, v in _NAMES.items()}
    for size in sorted({size for each in rows.values() for size in each}):
        cells = [f"{size:,}"]
        for name in _NAMES:
            row, paper = rows[name].get(size), CURVE[name].get(size)
            here = ""
            if row:
                here = mean_told([100 * each for each in row["seeds"].values()])
            cells += [here, "{:.2f} ± {:.2f}".format(*paper) if paper else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
