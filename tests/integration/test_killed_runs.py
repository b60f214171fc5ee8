"""SIGKILL in annotate, in train and in label; then the same command, and the same labels."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from llambert.config import load
from llambert.engines import openai
from tests.chat_server import KEY, MODEL, ChatServer, chat_server
from tests.integration.test_pipeline import labels_of, llambert
from tests.tiny_roberta import easy_records, make_tiny_roberta

RECORDS = 12_000  # a dozen blocks, of which the last kill leaves most to do
SAMPLE = 300
CONCURRENCY = 4


def _prepare(folder: Path, url: str) -> str:
    folder.mkdir()
    ids, texts = easy_records(RECORDS).select(["id", "text"]).columns
    # each text once, so that the endpoint's log tells which record was asked for
    told_apart = pc.binary_join_element_wise(texts, ids, " ")
    corpus = pa.table({"id": ids, "text": told_apart})
    pq.write_table(corpus, folder / "corpus.parquet", row_group_size=4000)
    run = {
        "name": "films",
        "workdir": "out",
        "task": {"labels": {"negative": [], "positive": []}, "prompt": "Well? {text}"},
        "corpus": {"path": "corpus.parquet", "id": "id"},
        "sample": {"size": SAMPLE},
        "annotate": {
            "engine": "openai",
            "model": MODEL,
            "batch_size": 16,
            "openai": {"base_url": url, "api_key_env": "JUDGE_KEY", "concurrency": CONCURRENCY},
        },
        "train": {
            "model": "encoder",
            "epochs": 4,
            "learning_rate": 1e-2,
            "max_length": 32,
            "checkpoint_every_s": 0,
        },
    }
    make_tiny_roberta(folder / "encoder")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return str(path)


def _kill_when(config: str, ready: Callable[[], bool], whole_group: bool) -> None:
    """Start the run and SIGKILL it, or it and the stage it has started, once `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llambert", "run", config],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not ready():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run did not come so far"
            time.sleep(0.02)
    except BaseException:
        whole_group = True  # it must not go on beside the tests that follow
        raise
    finally:
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()  # the stage must notice by itself
        process.wait()


def _answered(folder: Path) -> set[str]:
    """The texts whose answers a run that was killed has stored."""
    corpus = pq.read_table(folder / "corpus.parquet")
    texts = dict(zip(corpus["id"].to_pylist(), corpus["text"].to_pylist(), strict=True))
    files = (folder / "out" / "annotations").glob("*/running/*/*.parquet")
    return {texts[id] for file in files for id in pq.read_table(file)["id"].to_pylist()}


def _undisturbed(folder: Path, server: ChatServer) -> dict[str, str]:
    config = _prepare(folder, server.url)
    done = llambert("run", config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(server.asked().values()) == {1}
    return labels_of(folder)


def test_a_run_killed_in_every_stage_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    (tmp_path / "one").mkdir()
    with chat_server(tmp_path / "one") as server:
        expected = _undisturbed(tmp_path / "whole", server)
    assert len(expected) == RECORDS

    with chat_server(tmp_path, delay_s=0.05) as server:
        folder = tmp_path / "killed"
        config = _prepare(folder, server.url)
        out = folder / "out"
        _kill_when(config, lambda: len(server.requests()) > SAMPLE // 3, whole_group=True)
        kept = _answered(folder)
        _kill_when(config, lambda: any(out.glob("models/*/*/_checkpoints/*/checkpoint_*")), True)
        asked = server.asked()
        again = sum(asked.values()) - len(asked)
        assert len(asked) == SAMPLE
        assert kept and {asked[f"Well? {text}"] for text in kept} == {1}
        annotating = load(config).annotate
        in_flight = openai.block_rows(annotating) * openai._tasks(annotating)
        assert again <= in_flight, "more was asked again than the batches in flight"

        _kill_when(config, lambda: any(out.glob("labels/*/_checkpoint/*.parquet")), False)
        assert not any(out.glob("labels/*/manifest.json"))
        done = llambert("run", config)
        assert done.returncode == 0, done.stdout + done.stderr
        assert sum(server.asked().values()) == sum(asked.values())
    assert labels_of(folder) == expected
    assert "Nothing to do" in llambert("run", config).stdout
    shutil.rmtree(tmp_path)
