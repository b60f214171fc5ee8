"""How fast a classifier labels a corpus with Ray: ours beside what others would write.

    python benchmarks/label_throughput.py --corpus ../shared/imdb/corpus.parquet --model MODEL

MODEL is a hub name or a folder; one without a classification head gets a new one, for the speed
does not depend on its weights. All candidates label the same records with the same model on the
same cores or GPU, in turns.

What is timed: of ours and of Ray's recipe all of reading, tokenizing, labelling and writing, from
Parquet to Parquet: from the moment that every actor has loaded and has run the model once, with
nothing read before, to the last file written. (Ray Data would read, and ours tokenize, while the
actors load; both are held until then.) Of `transformers.pipeline` and vLLM, which have the texts
in memory and write nothing, from a warm model to the last answer. Records should be enough for a
minute of work, so that what the first and the last blocks wait for weighs little.

Of each peer's settings the best on a part of the records is taken, with batches growing until two
sizes in a row are slower than one before; vLLM runs its model both as it is and compiled. A peer
that fails in a turn has no figure for it, and the turns so far are in the file of `--json`.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from labelling_peers import PEERS, Run, Work, calibrate, free_memory, prepare, run_ours
from matmul import matmul_gflops
from provenance import provenance

from llambert.cluster import connection

_FIRST = "ray_recipe_64"  # the recipe as documented

Runs = dict[str, list[float | None]]  # of each candidate its rate in each turn; None: it failed


def main() -> None:
    a = _arguments()
    if a.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the label stage takes a GPU where Ray has one
    about = provenance(a)
    with tempfile.TemporaryDirectory() as place, connection():
        work = prepare(a.corpus, a.text, a.model, a.records, a.max_length, a.device, a.dtype, place)
        chosen, tried = calibrate(work, a.peers, a.calibrate)
        runs: Runs = {"ours": [], **{name: [] for name in chosen}}
        paddings: dict[str, float] = {}
        products: list[float] = []
        failed: list[str] = []
        for turn in range(a.turns):
            free_memory()
            products.append(matmul_gflops(work.device, work.dtype, work.workers))
            one_turn(turn, {"ours": partial(run_ours, turn)} | chosen, work, runs, paddings, failed)
            result = summary(work, runs, paddings, products)
            result |= {"calibration": tried, "failed": failed} | about
            if a.json:
                Path(a.json).write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def one_turn(
    turn: int,
    candidates: dict[str, Run],
    work: Work,
    runs: Runs,
    paddings: dict[str, float],
    failed: list[str],
) -> None:
    """Add each candidate's rate to `runs` and its padding to `paddings`, or why not to `failed`.

    In every other turn they come in the opposite order, so that of an even number of turns what
    one candidate leaves behind disturbs both its neighbours alike.
    """
    for name, run in list(candidates.items())[:: -1 if turn % 2 else 1]:
        free_memory()
        rate = None
        try:
            rate, paddings[name] = run(work)
            print(f"turn {turn + 1}: {name:<24} {rate:9.2f} records/s", flush=True)
        except Exception as error:  # hours of the other candidates are not lost for it
            if name == "ours":
                raise
            failed.append(f"turn {turn + 1}: {name}: {type(error).__name__}: {error}")
            print(failed[-1], flush=True)
        runs[name].append(rate)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="Parquet file or folder")
    parser.add_argument("--text", default="text", help="its column of texts")
    parser.add_argument("--model", required=True)
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--max-length", type=int, default=512, help="tokens")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument(
        "--calibrate",
        type=int,
        help="records for each setting; by default 256, on GPU 4096 a worker",
    )
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--json", help="write all figures to this file, after each turn")
    return parser.parse_args()


def summary(
    work: Work, runs: Runs, paddings: dict[str, float], products: list[float]
) -> dict[str, Any]:
    """The figures of each candidate that ran, and the ratios as medians of the turns' own."""
    figures = {
        name: _figures(work, rates, paddings[name]) for name, rates in runs.items() if any(rates)
    }
    peers = {name: each for name, each in figures.items() if name != "ours"}
    best = max(peers, key=lambda name: peers[name]["records_per_s"], default=None)
    gflops = [rate and rate * work.gflop / work.records for rate in runs["ours"]]
    return {
        "ours": figures["ours"],
        "peers": peers,
        "matmul_gflops": statistics.median(products),
        "matmul_runs": products,
        "ratio_to_ray_recipe_64": _ratio(runs["ours"], runs.get(_FIRST)),
        "best_peer": best,
        "ratio_to_best_peer": _ratio(runs["ours"], best and runs[best]),
        "fraction_of_matmul": _ratio(gflops, products),
        "work": work.describe(),
    }


def _figures(work: Work, rates: list[float | None], padding_share: float) -> dict[str, Any]:
    rate = statistics.median(rate for rate in rates if rate)
    return {
        "records_per_s": rate,
        "tokens_per_s": rate * work.tokens / work.records,
        "useful_gflops": rate * work.gflop / work.records,
        "padding_share": padding_share,
        "runs": rates,
    }


def _ratio(ours: Sequence[float | None], theirs: Sequence[float | None] | None) -> float | None:
    """The median over the turns that both have run; None where there is none."""
    pairs = zip(ours, theirs or [None] * len(ours), strict=True)
    ratios = [a / b for a, b in pairs if a and b]
    return statistics.median(ratios) if ratios else None


def table(result: dict[str, Any]) -> str:
    """The result as a person reads it."""
    lines = [f"{'':<24} {'records/s':>10} {'tokens/s':>10} {'useful GFLOP/s':>15} {'padding':>8}"]
    for name, each in {"ours": result["ours"], **result["peers"]}.items():
        lines.append(
            f"{name:<24} {each['records_per_s']:10.2f} {each['tokens_per_s']:10.0f} "
            f"{each['useful_gflops']:15.1f} {each['padding_share']:8.1%}"
        )
    lines.append(f"{'matrix product':<24} {'':10} {'':10} {result['matmul_gflops']:15.1f}")
    for key in ("ratio_to_ray_recipe_64", "ratio_to_best_peer", "fraction_of_matmul"):
        value = result[key]
        lines.append(f"{key:<24} {'-' if value is None else f'{value:.2f}':>10}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
