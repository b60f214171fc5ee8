"""How fast a classifier labels a corpus with Ray: ours beside what others would write.

    python benchmarks/label_throughput.py --corpus ../shared/imdb/corpus.parquet --model MODEL

MODEL is a hub name or a folder; one without a classification head gets a new one, for the speed
does not depend on its weights. All candidates label the same records with the same model on the
same cores or GPU, in turns, Parquet in and (the pipeline and vLLM excepted) Parquet out. Loading
and warming up are left out. Of each peer's settings the best on a part of the records is taken.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from labelling_peers import PEERS, Work, calibrate, matmul_gflops, prepare, run_ours

from llambert.cluster import connection

_FIRST = "ray_recipe_64"  # the recipe as documented


def main() -> None:
    a = _arguments()
    if a.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the label stage takes a GPU where Ray has one
    with tempfile.TemporaryDirectory() as place, connection():
        work = prepare(a.corpus, a.text, a.model, a.records, a.max_length, a.device, a.dtype, place)
        chosen, tried = calibrate(work, a.peers, a.calibrate)
        runs: dict[str, list[float]] = {"ours": [], **{name: [] for name in chosen}}
        paddings: dict[str, float] = {}
        products = []
        for turn in range(a.turns):
            products.append(matmul_gflops(work))
            for name, rates in runs.items():
                rate, paddings[name] = (
                    run_ours(work, turn) if name == "ours" else chosen[name](work)
                )
                rates.append(rate)
                print(f"turn {turn + 1}: {name:<24} {rate:9.2f} records/s", flush=True)
    result = summary(work, runs, paddings, products) | {"calibration": tried, "command": vars(a)}
    print(table(result))
    if a.json:
        Path(a.json).write_text(json.dumps(result, indent=2) + "\n")


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
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--calibrate", type=int, default=300, help="records for each setting")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--json", help="write all figures to this file")
    return parser.parse_args()


def summary(
    work: Work, runs: dict[str, list[float]], paddings: dict[str, float], products: list[float]
) -> dict[str, Any]:
    """The figures of each candidate, and the ratios as medians of the turns' own."""
    per_record = work.tokens / work.records
    figures = {
        name: {
            "records_per_s": statistics.median(rates),
            "tokens_per_s": statistics.median(rates) * per_record,
            "useful_gflops": statistics.median(rates) * work.gflop / work.records,
            "padding_share": paddings[name],
            "runs": rates,
        }
        for name, rates in runs.items()
    }
    peers = {name: each for name, each in figures.items() if name != "ours"}
    best = max(peers, key=lambda name: peers[name]["records_per_s"], default=None)
    gflops = [rate * work.gflop / work.records for rate in runs["ours"]]

    def ratio(to: str | None) -> float | None:
        if to is None:
            return None
        return statistics.median(a / b for a, b in zip(runs["ours"], runs[to], strict=True))

    return {
        "ours": figures["ours"],
        "peers": peers,
        "matmul_gflops": statistics.median(products),
        "matmul_runs": products,
        "ratio_to_ray_recipe_64": ratio(_FIRST if _FIRST in runs else None),
        "best_peer": best,
        "ratio_to_best_peer": ratio(best),
        "fraction_of_matmul": statistics.median(
            a / b for a, b in zip(gflops, products, strict=True)
        ),
        "work": work.describe(),
    }


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
