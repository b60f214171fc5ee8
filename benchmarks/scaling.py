"""Whether memory stays and throughput holds as the corpus grows, and what a second worker brings.

    python benchmarks/scaling.py --model llambert/demo/mini-roberta --png scaling.png

Short invented records go through the corpus stage and the label stage, each size and number of
workers in a process and a Ray of its own. Twice a second its memory is read: of the driver, of the
largest worker and of all workers what they have allocated themselves (Linux' anonymous memory; what
of libraries is theirs alone depends on which other processes there are), of the object store what
is in use, by Ray's own word. Printed at the end is what changes from the last but one size to the
largest: with the sizes by default from 100,000 to 1,000,000 records.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from provenance import provenance

from llambert.demo.writing import write_review
from llambert.schema import SAMPLE
from llambert.storage import Folder

_CHARACTERS = 80  # of each record
_ROWS_A_FILE = 50_000
_EVERY_S = 0.5
_PROCESSES = ("driver", "largest_worker", "all_workers")
_PARTS = (*_PROCESSES, "object_store")

_DRIVER = """
import json, sys, threading, time
started = time.monotonic()
import ray
from llambert import cluster
from llambert.corpus import inspect_corpus
from llambert.label import LabelConfig, label
from llambert.progress import Progress
from llambert.records import CorpusConfig, open_corpus
from llambert.storage import Folder

place, corpus, model, workers, every_s = sys.argv[1:]
store = {"seconds": [], "mib": []}

def look():
    while True:
        there, free = ray.cluster_resources(), ray.available_resources()
        if "object_store_memory" in free:
            used = there["object_store_memory"] - free["object_store_memory"]
            store["mib"].append(round(used / 2**20, 1))
            store["seconds"].append(round(time.monotonic() - started, 1))
        time.sleep(float(every_s))

found = open_corpus(CorpusConfig(path=corpus, id="id"))
with cluster.connection(), Progress("label", quiet=True) as progress:
    threading.Thread(target=look, daemon=True).start()
    inventory = Folder(place + "/inventory")
    good = inspect_corpus(found, inventory, Folder(place + "/quarantine"), progress).counts["out"]
    config = LabelConfig(workers=(int(workers), int(workers)), cpus_per_worker=1)
    labels = Folder(place + "/labels")
    outcome = label(config, found, inventory, good, model, "scaling", labels, progress)
print("told", json.dumps([outcome.details["records_per_s"], store]))
"""


def main() -> None:
    a = _arguments()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for records in a.records:
            corpus = f"{place}/corpus-{records}"
            _write(corpus, records)
            for workers in a.workers:
                rows.append(_measure(f"{place}/{records}-{workers}", corpus, a.model, workers))
                rows[-1] |= {"records": records, "workers": workers}
                print(_line(rows[-1]), flush=True)
    grown = growth(rows)
    for each in grown:
        changes = ", ".join(f"{name} {share:+.1%}" for name, share in each["change"].items())
        print(f"{each['from']:,} to {each['to']:,} records, {each['workers']} workers: {changes}")
    if a.json:
        result = {"runs": rows, "growth": grown} | provenance(a)
        Path(a.json).write_text(json.dumps(result, indent=2) + "\n")
    if a.png:
        _draw(rows, a.png)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of an encoder")
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--png", help="draw memory over time to this file")
    return parser.parse_args()


def _write(corpus: str, records: int) -> None:
    for number, start in enumerate(range(0, records, _ROWS_A_FILE)):
        indices = range(start, min(start + _ROWS_A_FILE, records))
        texts = [write_review(0, index)[0][:_CHARACTERS] for index in indices]
        table = pa.table([[f"r{i:08d}" for i in indices], texts], schema=SAMPLE)
        Folder(corpus).write_table(f"{number:05d}.parquet", table)


def _measure(place: str, corpus: str, model: str, workers: int) -> dict[str, Any]:
    """Throughput, and the memory of each part over time in MiB."""
    arguments = [place, corpus, model, str(workers), str(_EVERY_S)]
    said, series = watch([sys.executable, "-c", _DRIVER, *arguments])
    (told,) = [line for line in said.splitlines() if line.startswith("told ")]
    rate, store = json.loads(told.removeprefix("told "))
    seconds = series.pop("seconds")
    over_time = {part: {"seconds": seconds, "mib": series[part]} for part in _PROCESSES}
    over_time["object_store"] = store
    peaks = {part: max(over_time[part]["mib"]) for part in _PARTS}
    return {"records_per_s": rate, "peak_mib": peaks, "over_time": over_time}


def watch(command: list[str]) -> tuple[str, dict[str, list[float]]]:
    """What a command prints, and over time the seconds and the MiB of its processes."""
    # files, for a full pipe would stop it
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=said, stderr=errors)
        started, series = time.monotonic(), defaultdict(list)
        while process.poll() is None:
            series["seconds"].append(round(time.monotonic() - started, 1))
            for part, size in _memory(process.pid).items():
                series[part].append(round(size / 2**20, 1))
            time.sleep(_EVERY_S)
        for file in (said, errors):
            file.seek(0)
        if process.returncode:
            raise SystemExit(errors.read())
        return said.read(), dict(series)


def growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """From the last but one size to the largest: the change of peaks and rate, as shares."""
    sizes = sorted({row["records"] for row in rows})[-2:]
    if len(sizes) < 2:
        return []
    found = []
    for workers in sorted({row["workers"] for row in rows}):
        small, large = (
            next(r for r in rows if (r["records"], r["workers"]) == (size, workers))
            for size in sizes
        )
        pairs = {part: (small["peak_mib"][part], large["peak_mib"][part]) for part in _PARTS}
        pairs["records_per_s"] = (small["records_per_s"], large["records_per_s"])
        change = {name: b / a - 1 for name, (a, b) in pairs.items() if a}
        found.append({"workers": workers, "from": sizes[0], "to": sizes[1], "change": change})
    return found


def _memory(driver: int) -> dict[str, int]:
    """Bytes of the processes, as they are now."""
    found = dict.fromkeys(_PROCESSES, 0)
    for process in [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]:
        try:
            name = " ".join(process.cmdline()[:1])
            if process.pid == driver:
                found["driver"] = _anonymous(process.pid)
            elif name.startswith("ray::"):
                size = _anonymous(process.pid)
                found["largest_worker"] = max(found["largest_worker"], size)
                found["all_workers"] += size
        except (psutil.Error, OSError):  # it has just ended
            continue
    return found


def _anonymous(pid: int) -> int:
    """Bytes that a process has allocated and are in memory."""
    told = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (line,) = [line for line in told if line.startswith("Anonymous:")]
    return int(line.split()[1]) * 1024


def _line(row: dict[str, Any]) -> str:
    peaks = ", ".join(
        f"{part.replace('_', ' ')} {row['peak_mib'][part]:,.0f} MiB" for part in _PARTS
    )
    return (
        f"{row['records']:>9,} records, {row['workers']} workers: "
        f"{row['records_per_s']:8,.1f} records/s; peaks: {peaks}"
    )


def _draw(rows: list[dict[str, Any]], path: str) -> None:
    """Memory over time of the run with most records and most workers."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    row = max(rows, key=lambda row: (row["records"], row["workers"]))
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for part in _PARTS:
        seen = row["over_time"][part]
        axes.plot(seen["seconds"], seen["mib"], label=part.replace("_", " "))
    axes.set(
        xlabel="seconds",
        ylabel="MiB",
        ylim=(0, None),
        title=f"memory while {row['records']:,} records are labelled, {row['workers']} workers",
    )
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
