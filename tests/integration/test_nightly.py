"""Night after night through the command line, on one Ray cluster that outlives them all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from llambert import cluster
from llambert.lease import Lease
from llambert.progress import Progress
from llambert.storage import Folder, Manifest
from llambert.train import TrainConfig, train
from llambert.workdir import Workdir
from tests.tiny_roberta import easy_records, make_tiny_roberta

RECORDS = 10_000  # of a file: half a MiB, labelled in several blocks
LABELS = ["negative", "positive"]
MAIN = """
import sys
from llambert.cli import main
try:
    main(sys.argv[1:])
finally:
    print("ray" in sys.modules)
"""


def write_file(folder: Path, name: str, seed: int, records: int = RECORDS, **more) -> None:
    """A corpus file of easy records, whose ids bear the seed."""
    table = easy_records(records, seed, **more).select(["id", "text"])
    ids = pa.array([f"{seed}-{id}" for id in table["id"].to_pylist()])
    pq.write_table(table.set_column(0, "id", ids), folder / "corpus" / f"{name}.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_session):
    """A run file, a corpus of two files, and a workdir that holds a trained model."""
    folder = tmp_path_factory.mktemp("nights")
    (folder / "corpus").mkdir()
    write_file(folder, "a", seed=1)
    write_file(folder, "b", seed=2)
    settings = {"epochs": 4, "learning_rate": 5e-3, "max_length": 32}
    run = {
        "name": "films",
        "workdir": "out",
        "task": {"labels": {label: [] for label in LABELS}, "prompt": "Good? {text}"},
        "corpus": {"path": "corpus", "id": "id"},
        "sample": {"size": 600},
        "annotate": {"engine": "recorded", "recorded": {"path": "none.parquet"}},
        "train": {"model": make_tiny_roberta(folder / "encoder"), **settings},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    model = Workdir(str(folder / "out")).model("llambert", 1)
    config = TrainConfig(model=str(folder / "encoder"), **settings)
    with Progress("train", quiet=True) as progress:
        outcome = train(config, LABELS, easy_records(600), config.model, 1, model, progress)
    assert outcome.details["validation_confidence"] > 0.9
    model.finish(Manifest("train", "of-then", "0123456789ab", outcome.counts, 1.0, outcome.details))
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "RAY_ADDRESS": cluster.address()}


def nightly(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, "nightly", str(folder / "run.yaml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())


def night(folder: Path, number: int, model: str = "0123456789ab") -> Path:
    return folder / "out" / "nightly" / model / f"night-{number:04d}"


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def rows(night: Path) -> Counter[str]:
    """How often each id is in the night's labels."""
    tables = [pq.read_table(path, columns=["id"]) for path in (night / "labels").glob("*.parquet")]
    return Counter(pa.concat_tables(tables)["id"].to_pylist())


def files(folder: Path) -> dict[str, int]:
    """When each file was written, but for the lease."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "_lock"]
    return {str(path): path.stat().st_mtime_ns for path in found}


def test_the_first_night_labels_all_and_a_second_process_is_refused(folder):
    command = [sys.executable, "-m", "llambert", "nightly", str(folder / "run.yaml")]
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    while not (night(folder, 1) / "sources.json").exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    second = nightly(folder)
    assert second.returncode == 2
    assert f"process {first.pid}" in second.stderr and "wait for it" in second.stderr
    said, _ = first.communicate(timeout=300)
    assert first.returncode == 0, said
    assert "night 1: published; files: 2 new, 0 changed, 0 unchanged" in said
    assert "compared with the training data: label_shift 0.0" in said
    assert (night(folder, 1) / "_SUCCESS").exists()
    assert not (night(folder, 1) / "labels" / "_checkpoint").exists()
    found = rows(night(folder, 1))
    assert len(found) == 2 * RECORDS and set(found.values()) == {1}
    assert manifest(night(folder, 1))["counts"] == {
        "in": 2 * RECORDS, "out": 2 * RECORDS, "dropped": {}
    }  # fmt: skip


def test_a_night_with_nothing_new_is_short_and_starts_no_ray(folder):
    before = files(folder / "out")
    started = time.monotonic()
    empty = nightly(folder)
    assert time.monotonic() - started < 15
    assert empty.returncode == 0, empty.stderr
    assert "Nothing new since night 1." in empty.stdout
    assert empty.stdout.endswith("False\n")  # Ray is not even imported
    assert files(folder / "out") == before


def test_only_added_and_changed_files_are_labelled(folder):
    os.utime(folder / "corpus" / "a.parquet", (1, 1))
    write_file(folder, "b", seed=2, records=700)
    write_file(folder, "c", seed=3, records=600)
    done = nightly(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "night 2: published; files: 1 new, 1 changed, 1 unchanged" in done.stdout
    assert "compared with night 1: label_shift 0.0" in done.stdout
    found = rows(night(folder, 2))
    assert Counter(id.partition("-")[0] for id in found) == {"2": 700, "3": 600}
    assert len(rows(night(folder, 1))) == 2 * RECORDS
    sources = json.loads((night(folder, 2) / "sources.json").read_text())["sources"]
    assert [source["name"] for source in sources] == ["b.parquet", "c.parquet"]


def test_a_kill_before_the_last_file_is_repaired(folder):
    ledger = night(folder, 1).parent / "ledger.parquet"
    whole = pq.read_table(ledger)
    earlier = whole.filter(pc.less(whole["night"], 2))
    pq.write_table(earlier.replace_schema_metadata({"night": "1"}), ledger)
    (night(folder, 2) / "_SUCCESS").unlink()
    repaired = nightly(folder)
    assert "Nothing new since night 2." in repaired.stdout, repaired.stdout + repaired.stderr
    assert (night(folder, 2) / "_SUCCESS").exists()
    assert pq.read_table(ledger).sort_by("uri")["night"].to_pylist() == [1, 2, 2]


@pytest.fixture(scope="module")
def other_model(folder) -> str:
    """Another program's model: like the run's, with other weights and no figures."""
    from safetensors.torch import load_file, save_file

    model = folder / "other"
    shutil.copytree(folder / "out" / "models" / "llambert" / "seed-1", model)
    (model / "manifest.json").unlink()
    weights = load_file(model / "model.safetensors")
    weights["classifier.out_proj.bias"] += 0.01
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return str(model)


def kill_while_labelling(folder: Path, *arguments: str) -> None:
    """Start a first night and SIGKILL it when two of its files are committed."""
    command = [sys.executable, "-m", "llambert", "nightly", str(folder / "run.yaml"), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    pattern = "out/nightly/*/night-0001/labels/_checkpoint/*.parquet"
    deadline = time.monotonic() + 200
    while sum(not path.match("*.pending.parquet") for path in folder.glob(pattern)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_night_of_a_new_model_goes_on_and_what_came_since_is_judged(folder, other_model):
    for name, seed in {"d": 4, "e": 5}.items():
        write_file(folder, name, seed)
    before = files(night(folder, 1).parent)
    (old,) = os.listdir(folder / "out" / "nightly")
    kill_while_labelling(folder, "--model", other_model)
    (new,) = set(os.listdir(folder / "out" / "nightly")) - {old}
    first, second = night(folder, 1, new), night(folder, 2, new)
    done = [path for path in first.glob("labels/_checkpoint/*") if ".pending." not in path.name]
    # As a kill within a commit to an object store leaves it, which is a copy and then a removal.
    # Ray takes back the labels and both checkpoints, for these lie in the folder of the labels.
    shutil.copy(done[0], done[0].with_suffix(".pending.parquet"))
    assert not (first / "manifest.json").exists()
    sources = (first / "sources.json").read_text()
    write_file(folder, "f", seed=6, records=1000, negative_share=0.95)

    resumed = nightly(folder, "--model", other_model)
    assert resumed.returncode == 3, resumed.stdout + resumed.stderr
    assert "compared with nothing: the model's folder has no figures" in resumed.stdout
    assert (first / "sources.json").read_text() == sources
    labels = manifest(first / "labels")
    assert labels["details"]["labelled_now"] < labels["counts"]["out"]
    found = rows(first)
    assert len(found) == RECORDS + 700 + 600 + 2 * RECORDS and set(found.values()) == {1}
    assert (first / "_SUCCESS").exists()
    assert files(night(folder, 1).parent) == before  # the old model's labels stay

    assert "night 2: held back; files: 1 new, 0 changed, 5 unchanged" in resumed.stdout
    for words in ("the label shares", "those of night 1", "label_shift: 0.1", "negative 9"):
        assert words in resumed.stderr and words in resumed.stdout
    assert "Traceback" not in resumed.stderr
    assert len(rows(second)) == 1000 and not (second / "_SUCCESS").exists()

    later = nightly(folder, "--model", other_model)
    assert later.returncode == 0  # its files are not labelled again
    assert "Nothing new since night 2." in later.stdout
    assert "held back and not published: night 2" in later.stdout
    remedy = resumed.stderr.split("`")[1].split()  # the command that the message names
    assert remedy[:2] == ["llambert", "nightly"] and remedy[-2:] == ["--publish", "2"]
    assert nightly(folder, *remedy[3:]).returncode == 0
    assert (second / "_SUCCESS").exists()
    assert "held back" not in nightly(folder, "--model", other_model).stdout


def test_a_night_without_one_good_record_is_held(folder, other_model):
    table = pa.table({"id": ["x", "y"], "text": pa.nulls(2, pa.string())})
    pq.write_table(table, folder / "corpus" / "g.parquet")
    large = nightly(folder, "--model", other_model, "--set=label.cpus_per_worker=64")
    assert large.returncode == 2 and "the night needs 64 CPU" in large.stderr, large.stderr
    write_file(folder, "h", seed=8, records=50)  # which waits: night 3 was begun without it
    held = nightly(folder, "--model", other_model)
    assert held.returncode == 3, held.stdout + held.stderr
    assert (
        "night 4" not in held.stdout
        and "night 3 looks wrong: not one of its records is good" in held.stderr
    )
    assert "null_text 2" in held.stdout
    assert "--discard in its place" in held.stderr

    discarded = nightly(folder, "--model", other_model, "--discard", "3")
    assert discarded.returncode == 0, discarded.stderr
    assert discarded.stdout.startswith("discarded night 3: ")
    (folder / "corpus" / "g.parquet").unlink()
    later = nightly(folder, "--model", other_model)
    assert later.returncode == 0 and "held back" not in later.stdout, later.stdout + later.stderr
    (published,) = (folder / "out" / "nightly").glob("*/night-0004/_SUCCESS")
    assert len(rows(published.parent)) == 50


DEADLY = """
import os, pathlib, signal, time
from transformers import RobertaConfig, RobertaForSequenceClassification

class DeadlyConfig(RobertaConfig):
    model_type = "deadly"

class DeadlyClassifier(RobertaForSequenceClassification):
    config_class = DeadlyConfig

    def forward(self, input_ids=None, **more):
        if (input_ids == self.config.deadly_token).any():
            pathlib.Path(self.config.deaths, str(time.monotonic_ns())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(input_ids=input_ids, **more)
"""


def test_a_record_that_ends_every_labeller_ends_the_night_and_costs_no_other(
    folder, other_model, tmp_path
):
    """By a model whose code kills its process at one token, as a lack of memory would."""
    from llambert.encoder import load_tokenizer

    (token,) = load_tokenizer(other_model).encode("Q", add_special_tokens=False)
    model, deaths = tmp_path / "deadly", tmp_path / "deaths"
    shutil.copytree(other_model, model)
    deaths.mkdir()
    (model / "modeling_deadly.py").write_text(DEADLY)
    classes = {"AutoConfig": "Config", "AutoModelForSequenceClassification": "Classifier"}
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "deadly", "deadly_token": token, "deaths": str(deaths)}
    config["auto_map"] = {name: f"modeling_deadly.Deadly{kind}" for name, kind in classes.items()}
    (model / "config.json").write_text(json.dumps(config))
    (tmp_path / "corpus").mkdir()
    for seed, name in enumerate("abc", start=7):  # some come to the labeller before that record
        write_file(tmp_path, name, seed=seed)
    text = pa.table({"id": ["deadly"], "text": ["Q"]})
    pq.write_table(text, tmp_path / "corpus" / "d.parquet")
    there = [f"--set=corpus.path={tmp_path}/corpus", f"--set=workdir={tmp_path}/out"]
    trusted = "--set=train.trust_remote_code=true"
    said = nightly(folder, f"--model={model}", *there, trusted)
    assert said.returncode == 1, said.stdout + said.stderr
    assert "an actor died 5 times at the same block" in said.stderr
    assert "Traceback" not in said.stderr and "deprecated" not in said.stderr
    assert len(list(deaths.iterdir())) == 5
    (labels,) = tmp_path.glob("out/nightly/*/night-0001/labels")
    kept = [pq.read_table(path, columns=["id"]) for path in labels.glob("*.parquet")]
    ids = pa.concat_tables(kept)["id"].to_pylist()
    assert len(set(ids)) == len(ids) > 0 and "deadly" not in ids


def test_nights_on_s3(folder, other_model, s3):
    uri = f"{s3}/nights"
    fs = fsspec.filesystem("s3")
    fs.put_file(str(folder / "corpus" / "c.parquet"), f"{uri}/corpus/c.parquet")
    there = [f"--set=workdir={uri}/out", f"--set=corpus.path={uri}/corpus", "--model", other_model]
    first = nightly(folder, *there)
    assert "night 1: published; files: 1 new" in first.stdout, first.stdout + first.stderr
    second = nightly(folder, *there)
    assert "Nothing new since night 1." in second.stdout, second.stdout + second.stderr
    (labels,) = Folder(f"{uri}/out/nightly").folders()
    assert (Folder(f"{uri}/out/nightly") / labels / "night-0001" / "labels").row_count() == 600


def test_what_cannot_be_is_said_in_one_message(folder):
    wrong = {
        "0 of 1 seeds of the variant llambert are trained": [
            "--set",
            f"workdir={folder}/elsewhere",
        ],
        "holds no config.json": ["--model", str(folder / "corpus")],
        "with another corpus.id": ["--set", "corpus.id=text"],
        "the task's labels are": ["--set", "task.labels={bad: [], good: []}"],
        "no finished night 9": ["--publish", "9"],
        "--discard 'x' names no night": ["--discard", "x"],
        "either published or discarded": ["--publish", "1", "--discard", "1"],
    }
    for says, arguments in wrong.items():
        said = nightly(folder, *arguments)
        assert said.returncode == 2 and says in said.stderr, said.stdout + said.stderr
        assert "Traceback" not in said.stderr
    with Lease(Folder(str(night(folder, 1).parent))):
        assert "another run holds" in nightly(folder).stderr
