"""`llambert demo` as a newcomer types it, small: real vLLM, DeepSpeed, Ray and shipped models."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llambert.demo.demo import lay_out
from llambert.demo.reviews import HOSTILE, review, write_corpus

RECORDS = 1200
SEED = 1  # of the demo's corpus
COMMAND = [sys.executable, "-m", "llambert", "demo", "--records", str(RECORDS), "--dir"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """A demo of one variant, for the time it takes: a run file once changed is run as it is."""
    folder = tmp_path_factory.mktemp("demo") / "here"
    run_file = lay_out(str(folder), RECORDS)
    text = run_file.read_text()
    assert "[baseline, llambert, combined]" in text
    run_file.write_text(text.replace("[baseline, llambert, combined]", "[llambert]"))
    done = subprocess.run([*COMMAND, str(folder)], capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr
    assert "nothing back yet: workers load first" in done.stderr  # while vLLM starts
    assert ".cc:" not in done.stderr  # Ray's core says nothing of what Ray Data does
    return folder, done.stdout


def test_its_figures_are_those_of_the_run(demo, tmp_path):
    folder, said = demo
    assert "starting Ray on this machine" in said and "cheaper by the LLM alone" in said
    report = json.loads((folder / "report" / "report.json").read_text())
    evaluation = report["evaluation"]
    for key in ("llm", "llambert"):
        low, high = evaluation[key]["accuracy_interval"]
        assert 0.5 < low < evaluation[key]["accuracy"] < high <= 1
        assert f"{evaluation[key]['accuracy']:.1%}" in said
    assert evaluation["llm"]["accuracy"] > 0.8
    for stage in ("annotate", "label"):
        assert f"{report['steps'][stage]['details']['records_per_s']:,.1f}" in said
    hostile = write_corpus(tmp_path / "again", RECORDS, SEED)
    refused = {kind: hostile[kind] for kind, reason in HOSTILE.items() if reason}
    read = report["steps"]["corpus"]["counts"]
    assert read["in"] == RECORDS
    assert sum(read["dropped"].values()) == sum(refused.values()) > 0
    assert report["steps"]["label"]["details"]["records"] == RECORDS - sum(refused.values())


def test_its_labels_are_mostly_right(demo):
    folder, _ = demo
    report = json.loads((folder / "report" / "report.json").read_text())
    written = Path(report["steps"]["label"]["folder"]).glob("*.parquet")
    labels = [row for file in written for row in pq.read_table(file).to_pylist()]
    right = sum(review(SEED, int(row["id"][2:])).label == row["label"] for row in labels)
    assert right / len(labels) > 0.65  # of so few labels an encoder of this size learns little


def test_the_second_time_nothing_is_left_to_do(demo):
    folder, _ = demo
    started = time.monotonic()
    done = subprocess.run([*COMMAND, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Nothing to do" in done.stdout
    assert time.monotonic() - started < 20


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = subprocess.run([*COMMAND, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "not empty" in done.stderr and [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
