"""What a step that fails leaves, and what `llambert status` says of one that is stale."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llambert.config import RunConfig
from llambert.errors import CountError
from llambert.pipeline import Pipeline
from llambert.progress import Progress
from llambert.ray_train import CHECKPOINTS
from llambert.step import Step, check_writable, run_step
from llambert.storage import Folder, Outcome

SECTION = {"epochs": 3, "learning_rate": 1e-5, "betas": (0.9, 0.99), "classes": {"a": [], "b": []}}


def step(folder: Path, settings, inputs=None, named=None) -> Step:
    def run(progress: Progress) -> Outcome:
        return Outcome({"in": 0, "out": 0, "dropped": {}})

    inputs = {"sample": "one"} if inputs is None else inputs
    return Step("train", "train", Folder(str(folder)), run, inputs, settings, named or {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Progress("train", quiet=True) as progress:
        run_step(step(tmp_path, [SECTION, "encoder"], named={"task.labels": ["a"]}), progress)
    return tmp_path


def test_what_is_as_it_was_is_done(folder):
    same = step(folder, [dict(SECTION, betas=[0.9, 0.99]), "encoder"], named={"task.labels": ["a"]})
    assert same.state == "done" and same.why == ""


@pytest.mark.parametrize(
    ("changes", "inputs", "labels", "says"),
    [
        ({"epochs": 5}, None, ["a"], "changed: train.epochs (was 3)"),
        ({"dtype": "auto"}, None, ["a"], "changed: train.dtype (was None)"),
        ({}, {"sample": "two"}, ["a"], "changed: sample"),
        (
            {"learning_rate": 1e-4},
            {"sample": "two"},
            ["b"],
            "changed: sample, train.learning_rate (was 1e-05), task.labels (was ['a'])",
        ),
    ],
)
def test_what_changed_is_named(folder, changes, inputs, labels, says):
    stale = step(folder, [SECTION | changes, "encoder"], inputs, {"task.labels": labels})
    # the labels are among the settings of a real step, which is how they change its fingerprint
    assert stale.fingerprint != step(folder, [SECTION, "encoder"]).fingerprint
    assert stale.state == "stale" and stale.why == says


def test_what_has_no_name_is_not_guessed(folder):
    stale = step(folder, [SECTION, "another encoder"], named={"task.labels": ["a"]})
    assert stale.why == "changed: its settings or files"


def test_an_older_manifest_tells_no_settings(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("settings")["train.epochs"] == 3
    path.write_text(json.dumps(manifest))
    stale = step(folder, [SECTION | {"epochs": 5}, "encoder"])
    assert stale.why == "changed: its settings or files"


def test_a_training_keeps_its_checkpoints_until_it_is_finished(tmp_path):
    """One that was killed after its last epoch goes on from there, and has nothing left to do."""
    (tmp_path / "corpus.txt").write_text("one\ntwo\n")
    values = {
        **{"name": "run", "workdir": str(tmp_path / "out"), "sample": {"size": 1}},
        "task": {"labels": {"no": [], "yes": []}, "prompt": "{text}"},
        "corpus": {"path": str(tmp_path / "corpus.txt")},
        "annotate": {"engine": "openai", "model": "an-llm"},
        "train": {"model": "an/encoder"},
    }
    (unit,) = Pipeline(RunConfig.model_validate(values)).steps("train")

    def run(out: int) -> None:
        def train(progress: Progress) -> Outcome:
            assert "old" not in (unit.folder / CHECKPOINTS).files()
            (unit.folder / CHECKPOINTS).write_bytes("state", b"weights")
            return Outcome({"in": 2, "out": out, "dropped": {}})

        trained = replace(unit, run=train, inputs={})
        with Progress("train", quiet=True) as progress:
            run_step(trained, progress)

    with pytest.raises(CountError) as lost:
        run(out=1)
    assert "'out': 1" in lost.value.message and "again" in lost.value.remedy
    assert unit.folder.folders() == [CHECKPOINTS] and unit.folder.manifest() is None
    run(out=2)
    assert unit.folder.folders() == [] and unit.folder.manifest()

    (unit.folder / CHECKPOINTS).write_bytes("old", b"weights")  # a kill came before its removal
    run(out=2)
    assert unit.folder.folders() == []


def test_two_who_try_a_workdir_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    """Another process begins and ends its own trial in the middle of ours."""
    workdir, write, inside = Folder(str(tmp_path)), Folder.write_bytes, []

    def meanwhile(folder: Folder, name: str, data: bytes) -> None:
        write(folder, name, data)
        if not inside:
            inside.append(name)
            check_writable(workdir)

    monkeypatch.setattr(Folder, "write_bytes", meanwhile)
    check_writable(workdir)
    assert inside and not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from llambert.progress import Progress
from llambert.step import Step, run_step
from llambert.storage import Folder

removed, unlink = [], os.unlink

def kill_at_the_third(*args, **kwargs):
    removed.append(args)
    if len(removed) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    unlink(*args, **kwargs)

os.unlink = kill_at_the_third
step = Step("label", "label", Folder(sys.argv[1]), print, settings=[{}], scratch="scratch")
with Progress("label", quiet=True) as progress:
    run_step(step, progress)
"""


def test_a_kill_as_a_finished_step_is_done_again_leaves_it_not_done(tmp_path):
    def run(progress: Progress) -> Outcome:
        return Outcome({"in": 0, "out": 0, "dropped": {}})

    folder = Folder(str(tmp_path / "labels"))
    again = Step("label", "label", folder, run, settings=[{}], scratch="scratch")
    with Progress("label", quiet=True) as progress:
        run_step(again, progress)
    for number in range(50):  # as a kill leaves it when the step has just been finished
        (folder / "scratch").write_json(f"{number}.json", [])
    assert replace(again).state == "done"
    killed = subprocess.run([sys.executable, "-c", KILLED, folder.uri])
    assert killed.returncode == -signal.SIGKILL
    assert 40 < len((folder / "scratch").files(".json")) < 50
    assert replace(again).state == "missing"
