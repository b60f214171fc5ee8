"""What the benchmarks work out by themselves: parts, flipped labels, claims."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from imdb_splits import split
from noise import flipped
from paper_runs import _written
from paper_table import claim, column
from provenance import provenance
from scaling import growth, watch

from tests.tiny_roberta import easy_records


def source(folder: Path) -> str:
    records = easy_records(100)
    columns = {"id": records["id"], "text": records["text"], "gold": records["label"]}
    pq.write_table(pa.table(columns | {"llama2_70b": records["label"]}), folder / "all.parquet")
    return str(folder / "all.parquet")


def ids(table: pa.Table) -> list[str]:
    return table["id"].to_pylist()


def test_parts_are_apart_and_larger_ones_contain_smaller_ones(tmp_path):
    small = split(source(tmp_path), str(tmp_path), train=10, extra=20, test=30)
    large = split(source(tmp_path), str(tmp_path), train=20, extra=50, test=30)
    assert ids(small["test"]) == ids(large["test"])
    assert set(ids(small["train"])) < set(ids(large["train"]))
    assert set(ids(small["extra"])) < set(ids(large["extra"]))
    parts = [ids(large[name]) for name in ("test", "train", "extra")]
    assert sorted(id for part in parts for id in part) == sorted(ids(large["answers"]))
    assert pq.read_schema(tmp_path / "extra.parquet").names == ["id", "text"]  # no gold
    with pytest.raises(SystemExit, match="more than the 100"):
        split(source(tmp_path), str(tmp_path), train=60, extra=50, test=30)


def test_a_file_that_a_run_goes_by_is_written_once(tmp_path):
    table = easy_records(10)
    path = Path(_written(str(tmp_path), "answers.parquet", table))
    os.utime(path, (1, 1))
    _written(
        str(tmp_path), "answers.parquet", pa.concat_tables([table.slice(0, 4), table.slice(4)])
    )
    assert path.stat().st_mtime == 1
    _written(str(tmp_path), "answers.parquet", table.slice(4))
    assert path.stat().st_mtime > 1 and pq.read_table(path).num_rows == 6


def test_a_share_of_the_labels_is_flipped_and_a_larger_one_contains_it():
    records, labels = easy_records(200), ["negative", "positive", "mixed"]

    def changed(percent: float, seed: int) -> set[str]:
        noisy = flipped(records, labels, percent, seed)
        assert noisy["text"].equals(records["text"])
        before, after = records["label"].to_pylist(), noisy["label"].to_pylist()
        assert set(after) <= set(labels)
        return {i for i, a, b in zip(ids(records), before, after, strict=True) if a != b}

    assert changed(0, 1) == set()
    assert len(changed(10, 1)) == 20
    assert changed(10, 1) < changed(48.5, 1) and len(changed(48.5, 1)) == 97
    assert changed(10, 1) != changed(10, 2)


def test_claims_are_as_sure_as_their_interval():
    rng = np.random.default_rng(0)
    right = {name: rng.random((3, 5000)) < p for name, p in {"a": 0.9, "b": 0.9, "c": 0.8}.items()}
    assert claim(right, "a", "c", 0.0, None)["verdict"] == "confirmed"
    assert claim(right, "c", "b", -1.0, None)["verdict"] == "refuted"
    assert claim(right, "a", "b", 0.0, None)["verdict"] == "undecided"
    assert claim(right, "a", "b", None, 3.0)["verdict"] == "confirmed"
    one_seed = {name: each[:1] for name, each in right.items()}
    found = claim(one_seed, "a", "c", 0.0, None)
    # two independent shares: 1.96 * sqrt(0.9 * 0.1 / 5000 + 0.8 * 0.2 / 5000)
    assert found["half_interval"] == pytest.approx(1.386, abs=0.06)
    assert column(one_seed["a"])["over_seeds"] is None
    assert column(right["a"])["over_seeds"][0] < 90 < column(right["a"])["over_seeds"][1]


def test_a_command_that_says_much_is_watched_to_its_end():
    much = (
        "import sys, time; print('a' * 10**6); print('b' * 10**6, file=sys.stderr); time.sleep(1)"
    )
    said, series = watch([sys.executable, "-c", much])
    assert said == "a" * 10**6 + "\n"
    assert len(series["seconds"]) == len(series["driver"]) and max(series["driver"]) > 0
    with pytest.raises(SystemExit, match="what was wrong"):
        watch([sys.executable, "-c", "raise SystemExit('what was wrong')"])


def test_growth_is_that_of_the_two_largest_sizes_with_as_many_workers():
    def row(records: int, workers: int, mib: float, rate: float) -> dict[str, Any]:
        parts = ("driver", "largest_worker", "all_workers", "object_store")
        peaks = {part: mib * (1 + (part == "all_workers")) for part in parts}
        sizes = {"records": records, "workers": workers}
        return sizes | {"peak_mib": peaks, "records_per_s": rate}

    rows = [row(10, 1, 1, 1), row(100, 1, 200, 10), row(100, 2, 100, 20)]
    rows += [row(1000, 1, 210, 9), row(1000, 2, 150, 22)]
    one, two = growth(rows)
    assert (one["workers"], one["from"], one["to"]) == (1, 100, 1000)
    assert one["change"] == pytest.approx(
        {
            "driver": 0.05,
            "largest_worker": 0.05,
            "all_workers": 0.05,
            "object_store": 0.05,
            "records_per_s": -0.1,
        }
    )
    assert two["change"]["driver"] == 0.5
    assert two["change"]["records_per_s"] == pytest.approx(0.1)
    assert growth(rows[:1]) == []


def test_a_result_says_what_it_stands_on():
    found = provenance(argparse.Namespace(records=3, json="x.json"))
    assert found["arguments"] == {"records": 3, "json": "x.json"}
    assert {"command", "date", "commit"} < set(found)
    assert found["hardware"]["cores"] == os.cpu_count() and found["hardware"]["cpu"]
    assert found["versions"]["ray"] and found["versions"]["torch"] and found["versions"]["python"]
    json.dumps(found)


def test_a_dataset_held_until_ready_is_timed_to_its_last_task():
    from clock import Clock, all_ready
    from ray.data import DataContext

    context = DataContext.get_current()
    with all_ready() as seconds:
        assert context.wait_for_min_actors_s > 0
        assert Clock in context.custom_execution_callback_classes
        with pytest.raises(RuntimeError, match="no Dataset"):
            seconds()
        outer, inner = Clock(), Clock()  # an execution may start another
        outer.before_execution_starts(None)
        time.sleep(0.05)
        inner.before_execution_starts(None)
        inner.on_execution_step(None)
        inner.after_execution_succeeds(None)
        outer.on_execution_step(None)
        time.sleep(0.5)  # stopping the actors
        outer.after_execution_succeeds(None)
        assert 0.05 <= seconds() < 0.5
    assert context.wait_for_min_actors_s <= 0
    assert Clock not in context.custom_execution_callback_classes
