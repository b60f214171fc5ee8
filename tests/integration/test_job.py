"""`ray job submit` to a Ray cluster of its own, from and to an S3 server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.tiny_roberta import easy_records, make_tiny_roberta

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")
RECORDS = 2000


@contextmanager
def _cluster(folder: Path) -> Iterator[str]:
    """A Ray head in processes of its own; yields the address that jobs are submitted to."""
    port, jobs = _free_port(), _free_port()
    command = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={jobs}"]
    command += [f"--ray-client-server-port={_free_port()}"]
    # By default the agent, which starts the jobs, wants the port that any other Ray here has
    command += [f"--dashboard-agent-listen-port={_free_port()}"]
    command += ["--num-cpus=2", "--disable-usage-stats"]
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=_environment()
        )
    address = f"http://127.0.0.1:{jobs}"
    try:
        deadline = time.monotonic() + 90
        while not _answers(address):
            assert head.poll() is None, (folder / "ray.log").read_text()
            assert time.monotonic() < deadline, "the cluster did not start"
            time.sleep(0.5)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)  # on SIGTERM it takes half a minute
        head.wait(timeout=60)


def _environment() -> dict[str, str]:
    """No token is asked for: the cluster is on loopback and lives as long as the test."""
    return {**os.environ, "RAY_AUTH_MODE": "disabled"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5).read()
    except OSError:
        return False
    return True


def _submit(address: str, folder: Path, job: str) -> str:
    """Run `jobs/JOB.py` to its end; what it said. Submits until it is taken, for a minute.

    For the agent, which starts jobs, comes up after the server that takes them.
    """
    shutil.copy(ROOT / "jobs" / f"{job}.py", folder)
    command = [RAY, "job", "submit", f"--address={address}", f"--working-dir={folder}"]
    command += [f"--submission-id={job}", "--", sys.executable, f"{job}.py", "run.yaml"]
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=400, env=_environment()
        )
        if done.returncode == 0 or _is_known(address, job) or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "succeeded" in done.stdout + done.stderr
    return done.stdout


def _is_known(address: str, job: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/api/jobs/{job}", timeout=5).read()
    except urllib.error.HTTPError:
        return False
    return True


def _write_run(uri: str, folder: Path) -> None:
    """Corpus and answers on S3; the run file goes with the job."""
    records = easy_records(RECORDS)
    fs = fsspec.filesystem("s3")
    tables = {
        "corpus/part-0.parquet": records.select(["id", "text"]).slice(0, 900),
        "corpus/part-1.parquet": records.select(["id", "text"]).slice(900),
        "answers.parquet": pa.table({"id": records["id"], "response": records["label"]}),
    }
    for name, table in tables.items():
        with fs.open(f"{uri}/{name}", "wb") as file:
            pq.write_table(table, file)
    run = {
        "name": "films",
        "workdir": f"{uri}/out",
        "task": {"labels": {"negative": [], "positive": []}, "prompt": "Good? {text}"},
        "corpus": {"path": f"{uri}/corpus", "id": "id"},
        "sample": {"size": 400},
        "annotate": {"engine": "recorded", "recorded": {"path": f"{uri}/answers.parquet"}},
        "train": {
            "model": make_tiny_roberta(folder / "encoder"),
            "epochs": 4,
            "learning_rate": 1e-2,
            "max_length": 32,
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))


def _finished(uri: str) -> set[str]:
    """The folders of the workdir that hold something finished."""
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    out = f"{uri}/out/".removeprefix("s3://")
    manifests = fs.glob(f"{out}**/manifest.json")
    return {path.removeprefix(out).partition("/")[0] for path in manifests}


def _labels(folder: str) -> dict[str, str]:
    """The label of each id; fails where an id has two."""
    fs = fsspec.filesystem("s3")
    tables = []
    for path in fs.glob(f"{folder}/*.parquet"):
        with fs.open(path, "rb") as file:
            tables.append(pq.read_table(file, columns=["id", "label"]))
    rows = pa.concat_tables(tables).to_pylist()
    labels = {row["id"]: row["label"] for row in rows}
    assert len(labels) == len(rows)
    return labels


def test_every_job_submitted_in_turn_from_s3_to_s3(s3, tmp_path):
    uri = f"{s3}/job"
    _write_run(uri, tmp_path)
    with _cluster(tmp_path) as address:
        _submit(address, tmp_path, "annotate")
        assert _finished(uri) == {"corpus", "sample", "annotations"}
        _submit(address, tmp_path, "train")
        assert _finished(uri) == {"corpus", "sample", "annotations", "models", "evaluation"}
        said = _submit(address, tmp_path, "label")
        assert "evaluate                 no encoder is measured" in said and " 0 in" not in said
        assert "for there are no gold test records" in said
        _submit(address, tmp_path, "label_nightly")
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    (folder,) = fs.ls(f"{uri}/out/labels", detail=False)
    labels = _labels(folder)
    truth = {row["id"]: row["label"] for row in easy_records(RECORDS).to_pylist()}
    assert labels.keys() == truth.keys()
    assert sum(truth[id] == label for id, label in labels.items()) / RECORDS > 0.9
    report = json.loads(fs.cat_file(f"{uri}/out/report/report.json"))
    assert report["steps"]["label"]["counts"]["out"] == RECORDS
    (night,) = fs.glob(f"{uri}/out/nightly/*/night-0001")
    assert _labels(f"{night}/labels") == labels and fs.exists(f"{night}/_SUCCESS")
    assert "testing" not in fs.cat_file(f"{uri}/out/config.yaml").decode()  # the key of the server
