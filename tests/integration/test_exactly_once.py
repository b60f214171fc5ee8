"""Labelling under SIGKILL of its driver, of a worker and of a whole node, at random moments.

A Ray cluster of a head and two nodes, each with processes of its own, runs the nightly job. In
every disturbed night each of the three is killed, one after the other in a random order;
LLAMBERT_NIGHTS says how many such nights there are, 1 by default. One that ends before its last
kill is held to the same labels, and another is made in its place. Then the cluster is one node with
a GPU.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from llambert.encoder import load_classifier
from tests.tiny_roberta import easy_records, make_tiny_roberta

RECORDS = 20_000
NIGHTS = int(os.environ.get("LLAMBERT_NIGHTS", "1"))
KINDS = ("driver", "worker", "node")
NODE = {"num_cpus": 2, "object_store_memory": 200 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    # the processes of a cluster on loopback need no token to trust each other
    before, os.environ["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE"), "disabled"
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        started.add_node(**NODE)
    try:
        yield started
    finally:
        started.shutdown()
        os.environ.pop("RAY_AUTH_MODE")
        if before is not None:
            os.environ["RAY_AUTH_MODE"] = before


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A corpus and a classifier whose head is random, so that its confidence tells texts apart."""
    folder = tmp_path_factory.mktemp("exactly")
    table = easy_records(RECORDS).select(["id", "text"])
    (folder / "corpus").mkdir()
    for number in range(8):
        part = table.slice(number * RECORDS // 8, RECORDS // 8)
        pq.write_table(part, folder / "corpus" / f"{number}.parquet")
    encoder = make_tiny_roberta(folder / "encoder")
    load_classifier(encoder, ["negative", "positive"]).save_pretrained(encoder)
    return folder


def _config(place: Path, name: str, **label: Any) -> str:
    run = {
        "name": name,
        "workdir": name,
        "task": {"labels": {"negative": [], "positive": []}, "prompt": "{text}"},
        "corpus": {"path": "corpus", "id": "id"},
        "sample": {"size": 10},
        "train": {"model": "encoder"},
        "annotate": {"engine": "recorded", "recorded": {"path": "corpus"}},
        "label": label or {"batch_tokens": 32, "workers": [2, 2]},  # slow, to be killed at it
    }
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(run))
    return str(path)


def _start(config: str, place: Path, cluster: Any) -> subprocess.Popen:
    command = [sys.executable, "-m", "llambert", "nightly", config]
    with open(Path(config).with_suffix(".log"), "a") as log:
        return subprocess.Popen(
            [*command, "--model", str(place / "encoder")],
            env=os.environ | {"RAY_ADDRESS": cluster.address},
            stdout=log,
            stderr=log,
        )


def _labels(workdir: Path) -> dict[str, tuple[str, float]]:
    (folder,) = workdir.glob("nightly/*/night-0001/labels")
    rows = [row for file in folder.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    found = {row["id"]: (row["label"], round(row["confidence"], 4)) for row in rows}
    assert len(rows) == len(found), "an id is there twice"
    return found


def _committed(workdir: Path) -> dict[str, int]:
    """The files of labels whose checkpoint is there too, and when each was written."""
    checkpoints = workdir.glob("nightly/*/*/labels/_checkpoint/*.parquet")
    done = tuple(file.stem for file in checkpoints if not file.stem.endswith(".pending"))
    files = workdir.glob("nightly/*/*/labels/*.parquet")
    return {str(file): file.stat().st_mtime_ns for file in files if file.name.startswith(done)}


def _kill(kind: str, driver: subprocess.Popen, cluster: Any, rng: random.Random) -> bool:
    """SIGKILL to the driver, to one of the workers at work, or to all of a node.

    Returns:
        Whether it was killed: a night that is about to end has no worker left.
    """
    nodes = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)
    if kind == "driver":
        driver.kill()
    elif kind == "node":
        cluster.remove_node(rng.choice(nodes), allow_graceful=False)
        cluster.add_node(**NODE)  # as an autoscaler would
    else:
        raylets = [psutil.Process(n.all_processes["raylet"][0].process.pid) for n in nodes]
        deadline = time.monotonic() + 200
        while not (workers := [p for r in raylets for p in r.children() if _at_work(p)]):
            if driver.poll() is not None:
                return False
            assert time.monotonic() < deadline, "no worker was there"
            time.sleep(0.02)
        rng.choice(workers).send_signal(signal.SIGKILL)
    return True


def _at_work(process: psutil.Process) -> bool:
    """Whether a Ray worker runs a task or holds an actor: tokenizes, labels or writes.

    A raylet's agents bear titles like theirs, and with one of them the whole node ends.
    """
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False
    return bool(re.match(r"ray::(?!IDLE|\w+Agent)", title))


def _wait_for(workdir: Path, driver: subprocess.Popen, files: int) -> None:
    deadline = time.monotonic() + 200
    while len(_committed(workdir)) < files and driver.poll() is None:
        assert time.monotonic() < deadline, "nothing was labelled"
        time.sleep(0.02)


@pytest.mark.timeout(240 * NIGHTS + 600)
def test_labels_are_those_of_an_undisturbed_run_whatever_is_killed(cluster, place):
    whole = _start(_config(place, "whole"), place, cluster)
    assert whole.wait() == 0, (place / "whole.log").read_text()
    expected = _labels(place / "whole")
    assert len(expected) == RECORDS
    files = len(list((place / "whole").glob("nightly/*/*/labels/*.parquet")))

    rng, disturbed = random.Random(0), 0
    for number in range(1, 2 * NIGHTS + 2):
        name = f"killed-{number}"
        config, workdir = _config(place, name), place / name
        driver = _start(config, place, cluster)
        for kind in rng.sample(KINDS, len(KINDS)):
            _wait_for(workdir, driver, len(_committed(workdir)) + 1)
            time.sleep(rng.random())
            before = _committed(workdir)
            if driver.poll() is not None or not _kill(kind, driver, cluster, rng):
                print(f"night {number}: ended before the {kind} could be killed")
                break
            print(f"night {number}: {kind} killed after {len(before)} of about {files} files")
            if kind == "driver":
                driver.wait()
                driver = _start(config, place, cluster)
                _wait_for(workdir, driver, len(before) + 1)
                # Of a worker or node that is gone Ray repeats the writes whose outcome it had not
                # fetched yet: the same file with the same rows. A driver repeats nothing.
                assert {f: Path(f).stat().st_mtime_ns for f in before} == before
        else:
            disturbed += 1
        assert driver.wait() == 0, (place / f"{name}.log").read_text()
        found = _labels(workdir)
        assert found.keys() == expected.keys()
        differing = sum(found[key] != expected[key] for key in expected)
        print(f"night {number}: {len(found):,} labels, each id once, {differing} other than whole")
        assert differing == 0
        if disturbed == NIGHTS:
            break
    assert disturbed == NIGHTS, "too many nights ended before anything could be killed"


def test_a_killed_night_goes_on_where_a_gpu_has_two_cores_beside_it(cluster, place):
    """Ray is told of a GPU that is not there: what is asked of it and the cores is as with one."""
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)
    cluster.add_node(**NODE, num_gpus=1)
    config, workdir = _config(place, "gpu", workers=[1, 1]), place / "gpu"
    driver = _start(config, place, cluster)
    _wait_for(workdir, driver, 1)
    assert driver.poll() is None, "it ended before it could be killed"
    driver.kill()
    driver.wait()
    again = _start(config, place, cluster)
    try:
        assert again.wait(timeout=200) == 0, (place / "gpu.log").read_text()
    finally:
        again.kill()
    assert len(_labels(workdir)) == RECORDS
    (told,) = workdir.glob("nightly/*/night-0001/labels/manifest.json")
    details = json.loads(told.read_text())["details"]
    assert details["device"] == "gpu" and details["labelled_now"] < RECORDS
