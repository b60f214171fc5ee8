"""The whole flow through the command line, on real components: once, again, changed, wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from llambert import STAGES
from llambert.config import load
from llambert.pipeline import Pipeline
from llambert.plan import compare
from llambert.step import made
from tests.mlflow_server import mlflow_server
from tests.tiny_roberta import easy_records, make_tiny_roberta

RECORDS = 3000
HOSTILE = [
    {"id": "null", "text": None},
    {"id": "empty", "text": "  "},
    {"id": "r00007", "text": "the same id again"},
    {"id": None, "text": "no id"},
]


def llambert(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "llambert", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def write_run(folder: Path, **changes) -> str:
    """A run over easy records: corpus in three files, recorded answers, gold with a test share."""
    records = easy_records(RECORDS)
    gold = easy_records(400, seed=1)
    gold = gold.set_column(0, "id", pa.array([f"g{i}" for i in range(400)]))
    asked = pa.concat_tables([records, gold])
    answers = asked["label"].to_pylist()
    answers[::50] = ["Hard to say."] * len(answers[::50])
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for part in range(3):
        rows = records.select(["id", "text"]).to_pylist()[part::3] + (HOSTILE if part == 2 else [])
        pq.write_table(pa.Table.from_pylist(rows), corpus / f"part-{part}.parquet")
    (corpus / "torn.parquet").write_bytes((corpus / "part-0.parquet").read_bytes()[:2000])
    pq.write_table(gold, folder / "gold.parquet")
    table = pa.table({"id": asked["id"], "response": pa.array(answers)})
    pq.write_table(table, folder / "answers.parquet")
    run = {
        "name": "films",
        "workdir": "out",
        "task": {"labels": {"negative": [], "positive": []}, "prompt": "Good? {text}"},
        "corpus": {"path": "corpus", "id": "id"},
        "gold": {"train": "gold.parquet", "id": "id", "test_share": 0.5},
        "sample": {"size": 400},
        "annotate": {
            "engine": "recorded",
            "recorded": {"path": "answers.parquet", "id": "id", "response": "response"},
        },
        "train": {
            "model": make_tiny_roberta(folder / "encoder"),
            "variants": ["llambert"],  # the demo's test trains another
            "epochs": 4,
            "learning_rate": 1e-2,
            "max_length": 32,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**run, **changes}))
    return str(path)


def labels_of(folder: Path) -> dict[str, str]:
    """id -> label of the one labels folder of a run; every id must be there once."""
    (labels,) = (folder / "out" / "labels").iterdir()
    tables = [pq.read_table(path) for path in sorted(labels.glob("*.parquet"))]
    table = pa.concat_tables(tables)
    found = dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert len(found) == table.num_rows
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory, joined):
    """A folder in which a run has been done, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    finished = llambert("run", write_run(folder))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder, finished


def _versions(folder: Path) -> dict[str, int]:
    """Every file of the run's workdir with its modification time; the lease aside."""
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in files if path.parent.name != "_lock"}


def test_every_good_record_is_labelled_once_and_rightly(done):
    folder, _ = done
    truth = easy_records(RECORDS)
    labels = labels_of(folder)
    assert set(labels) == set(truth["id"].to_pylist())
    right = [labels[row["id"]] == row["label"] for row in truth.to_pylist()]
    assert sum(right) / RECORDS > 0.9


def test_what_was_refused_is_in_quarantine_with_its_reason(done):
    folder, _ = done
    refused = pq.read_table(folder / "out" / "quarantine").to_pylist()
    reasons = {(row["id"], row["refused"]) for row in refused}
    assert reasons == {
        ("null", "null_text"),
        ("empty", "empty_text"),
        ("r00007", "duplicate_id"),
        (None, "null_id"),
        (None, "corrupt_file"),
    }
    torn = [row for row in refused if row["refused"] == "corrupt_file"]
    assert [Path(row["source"]).name for row in torn] == ["torn.parquet"]


def test_the_closing_summary_adds_up_and_says_where_all_lies(done):
    folder, finished = done
    started, _, ended = finished.stdout.partition("All done.")
    assert started.startswith("joining Ray at ")
    table, _, came_to = ended.partition("How good")
    lines = table.splitlines()
    counted = [line for line in lines if " in " in line and " out" in line]
    places = [Path(line.strip()) for line in lines if line.strip().endswith("/")]
    places.remove(folder / "out" / "quarantine")
    assert len(counted) == len(places) == 7
    for line, place in zip(counted, places, strict=True):
        manifest = json.loads((place / "manifest.json").read_text())
        counts, rate = manifest["counts"], manifest["details"].get("records_per_s")
        assert f" {counts['in']:,} in" in line and f" {counts['out']:,} out" in line
        assert counts["in"] == counts["out"] + sum(counts["dropped"].values())
        for reason, records in counts["dropped"].items():
            assert f"{reason} {records:,}" in line or not records
        assert not rate or line.endswith(f"  {rate:,.1f}/s")
    labelled = json.loads((places[5] / "manifest.json").read_text())
    assert labelled["stage"] == "label" and labelled["details"]["records_per_s"] > 0
    report = json.loads((folder / "out" / "report" / "report.json").read_text())
    for who in ("llm", "llambert"):
        assert f" {report['evaluation'][who]['accuracy']:.1%} " in came_to
    assert f"{places[5]}/\n" in came_to and came_to.endswith("/out/report/index.html\n")
    told = (folder / "out" / "config.yaml").read_text()
    assert f"# ray {labelled['versions']['ray']}\n" in told and "\n# commit " in told


def test_the_report_has_figures_that_add_up(done):
    folder, _ = done
    report = json.loads((folder / "out" / "report" / "report.json").read_text())
    for variant in ("llm", "llambert"):
        figures = report["evaluation"][variant]
        low, high = figures["accuracy_interval"]
        assert low <= figures["accuracy"] <= high
        assert figures["accuracy"] > 0.9
    labelled = report["steps"]["label"]["details"]
    assert labelled["records"] == RECORDS and labelled["records_per_s"] > 0
    assert report["steps"]["annotate"]["counts"]["dropped"]["off_list"] > 0
    page = (folder / "out" / "report" / "index.html").read_text()
    assert "3,000 records labelled" in page
    evaluated = json.loads((folder / "out" / "evaluation" / "manifest.json").read_text())
    held = evaluated["details"]
    assert held["device"] == "cpu" and held["workers"] >= 1
    step = report["cost"]["steps"]["evaluate"]
    assert (step["device"], step["records"]) == ("cpu", evaluated["counts"]["out"])
    assert step["amount"] == evaluated["seconds"] > 0


def test_the_models_are_hugging_face_folders(done):
    from transformers import pipeline

    folder, _ = done
    model = folder / "out" / "models" / "llambert" / "seed-1"
    classify = pipeline("text-classification", str(model))
    assert [row["label"] for row in classify(["a lovely film", "an awful film"])] == [
        "positive",
        "negative",
    ]


def test_a_second_run_does_nothing(done):
    folder, _ = done
    assert not list((folder / "out").rglob("_checkpoint*"))  # of use only until a step is finished
    before = _versions(folder)
    started = time.monotonic()
    again = llambert("run", str(folder / "run.yaml"))
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout
    assert time.monotonic() - started < 20
    assert _versions(folder) == before


def test_a_curve_of_the_annotations_trains_once(done):
    folder, _ = done
    settings = ["curve.seeds=[1]", "curve.sizes=[5000]"]
    words = ["curve", str(folder / "run.yaml"), *(f"--set={each}" for each in settings)]
    first = llambert(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "(0 to go)" in first.stdout and "takes 4 sizes" in first.stdout
    curve = json.loads((folder / "out" / "curve" / "curve.json").read_text())
    assert curve["against"].endswith("gold test records")
    (all_of_them,) = curve["variants"]["llambert"]["sizes"]
    assert 380 < all_of_them["records"] < 400  # the sample less the rejects and the test's twins
    assert f"largest size is {all_of_them['records']}" in curve["warnings"][0]
    assert all_of_them["accuracy"] > 0.9 and all_of_them["training_seconds"] > 0
    costs = curve["variants"]["llambert"]["doubling_costs"]
    assert costs["answers"] > costs["further_records"] and costs["llm_seconds"] is None
    assert (folder / "out" / "curve" / "curve.svg").read_bytes().startswith(b"<?xml")
    assert not list((folder / "out" / "curve").rglob("*.safetensors"))
    again = llambert(*words, "--gain", "2")
    assert again.returncode == 0, again.stderr
    assert "to go)" not in again.stdout and f"{all_of_them['records']}" in again.stdout


def test_a_larger_sample_asks_only_for_the_difference_and_a_gate_stops_the_run(done):
    folder, _ = done
    config = str(folder / "run.yaml")
    strict = ["--set", "sample.size=500", "--set", "gates.rejects_share=0.001"]
    grown = llambert("run", config, *strict)
    assert grown.returncode == 4, grown.stdout + grown.stderr
    (annotator,) = (folder / "out" / "annotations").iterdir()
    for words in ("rejects_share: 0.0", "at most 0.001", f"{annotator}/annotations.parquet"):
        assert words in grown.stderr
    assert "Traceback" not in grown.stderr
    before = _versions(folder)
    again = llambert("run", config, *strict)
    assert (again.returncode, again.stderr) == (4, grown.stderr[grown.stderr.index("error:") :])
    assert _versions(folder) == before
    details = json.loads((annotator / "manifest.json").read_text())["details"]
    assert details["asked"] == 100
    status = llambert("status", config, "--set", "sample.size=500").stdout
    states = {line.split()[1]: line.split()[0] for line in status.splitlines()}
    assert states["corpus"] == states["sample"] == states["annotate"] == "done"
    assert states["train"] == "stale"
    assert states["label"] == "missing"  # which model will label is not known yet
    back = llambert("run", config, "--until", "annotate")
    assert back.returncode == 0, back.stderr
    details = json.loads((annotator / "manifest.json").read_text())["details"]
    assert details["asked"] == 0
    changed = llambert("status", config, "--set=train.epochs=5").stdout
    assert "changed: train.epochs (was 4)" in changed


def test_labelling_again_replaces_the_labels(done):
    folder, _ = done
    before = labels_of(folder)
    finished = llambert("label", str(folder / "run.yaml"), "--force")
    assert finished.returncode == 0, finished.stderr
    assert labels_of(folder) == before


def _begin(config: str, sign: Path) -> subprocess.Popen[str]:
    """A run that has got as far as to write `sign`."""
    command = [sys.executable, "-m", "llambert", "run", config, "--until", "sample"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not sign.exists():
        assert running.poll() is None
        time.sleep(0.02)
    return running


def test_a_run_goes_on_after_it_was_stopped_and_leaves_what_changes_meanwhile_to_the_next_one(
    joined, heeds_ctrl_c, tmp_path
):
    config = write_run(tmp_path, gold=None)
    sources = tmp_path / "out" / "corpus" / "sources.json"
    for sent in (signal.SIGINT, signal.SIGTERM):
        sources.unlink(missing_ok=True)
        stopped = _begin(config, sources)
        os.killpg(stopped.pid, sent)
        said, _ = stopped.communicate(timeout=60)
        assert stopped.returncode == 128 + sent, said
        assert said.strip().endswith("stopped; the same command goes on from here")
        assert "Traceback" not in said and "SIG" not in said

    running = _begin(config, tmp_path / "out" / "corpus" / "manifest.json")
    late = pa.table({"id": ["late"], "text": ["a good film that came late"]})
    pq.write_table(late, tmp_path / "corpus" / "part-9.parquet")
    written = Path(config).read_text()
    Path(config).write_text(written.replace("size: 400", "size: 10"))
    said, _ = running.communicate(timeout=120)
    Path(config).write_text(written)
    assert running.returncode == 0, said
    assert "All done." in said
    assert pq.read_table(tmp_path / "out" / "sample" / "sample.parquet").num_rows == 400
    first, second, *_ = llambert("status", config).stdout.splitlines()
    assert first.startswith("stale    corpus") and first.endswith("changed: its settings or files")
    assert second.endswith("waits for corpus")
    again = llambert("run", config, "--until", "sample", "--set", "sample.size=10000")
    assert again.returncode == 0, again.stderr
    sample = pq.read_table(tmp_path / "out" / "sample" / "sample.parquet")
    assert sample.num_rows == RECORDS + 1


def test_a_plan_by_the_runs_own_rates_is_what_the_run_took(done):
    """So it is not shown as a plan of that run. One made before it is tested without models."""
    folder, _ = done
    config = str(folder / "run.yaml")
    planned = llambert("plan", config, "--set", "plan.prices.encoder_device_hour=2")
    assert planned.returncode == 0, planned.stderr
    assert "LLM alone" in planned.stdout and "an earlier run" in planned.stdout
    again = llambert("report", config, "--force")
    assert again.returncode == 0, again.stderr
    assert "plan" not in json.loads((folder / "out" / "report" / "report.json").read_text())
    plan = json.loads((folder / "out" / "plan" / "plan.json").read_text())
    assert "label" in plan["done"]
    pipeline = Pipeline(load(config))
    manifests = [made(step) for stage in STAGES[:6] for step in pipeline.steps(stage)]
    ratios = {
        stage: {figure: row["ratio"] for figure, row in figures.items()}
        for stage, figures in compare(plan | {"done": []}, manifests).items()
    }
    assert ratios["corpus"] == ratios["sample"] == {"records": 1.0}
    assert ratios["annotate"] == {"records": 1.0}  # recorded: no tokens, no devices, no cost
    for stage in ("train", "label"):
        assert set(ratios[stage]) == {"records", "tokens", "device_hours", "hours", "cost"}
        assert all(0.8 < ratio < 1.25 for ratio in ratios[stage].values())


def test_parse_asks_no_model(done):
    folder, _ = done
    config = str(folder / "run.yaml")
    parsed = llambert("parse", config, "--set", "annotate.parse=exact")
    assert parsed.returncode == 0, parsed.stderr
    assert "off_list" in parsed.stdout
    assert llambert("parse", config).returncode == 0


def test_a_stage_before_its_turn_says_what_is_missing(tmp_path):
    finished = llambert("label", write_run(tmp_path))
    assert finished.returncode == 2
    assert "llambert run" in finished.stderr
    assert "Traceback" not in finished.stderr


WRONG = {
    "unknown field": ({"sample.sizes": "10"}, ["sample.sizes", "did you mean"]),
    "missing column": (
        {"corpus.text": "review"},
        ["'review'", "id, text; name one in corpus.text"],
    ),
    "label twice": ({"task.labels": "{good: [], Good: []}"}, ["names two labels"]),
    "prompt without {text}": ({"task.prompt": "Good?"}, ["task.prompt", "{text}"]),
    "no such path": (
        {"corpus.path": "/nowhere/at/all"},
        ["corpus.path: no such path", "'/nowhere/at/all'"],
    ),
    "no such model": ({"train.model": "./nowhere"}, ["train.model", "nowhere"]),
    "unwritable workdir": ({"workdir": "/proc/llambert"}, ["/proc/llambert", "workdir"]),
    "zero sample": ({"sample.size": "0"}, ["sample.size", "greater than 0"]),
    "unset variable": ({"corpus.path": "${NOT_SET_ANYWHERE}"}, ["NOT_SET_ANYWHERE", "not set"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_run_file_costs_five_seconds_and_one_message(done, tmp_path, what):
    folder, _ = done
    changes, says = WRONG[what]
    overrides = [f"--set={key}={value}" for key, value in changes.items()]
    workdir = [] if "workdir" in changes else [f"--set=workdir={tmp_path}/out"]
    started = time.monotonic()
    finished = llambert("run", str(folder / "run.yaml"), *workdir, *overrides)
    seconds = time.monotonic() - started
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("error:") == 1
    for words in says:
        assert words in finished.stderr
    assert seconds < 5


def test_tensor_parallel_larger_than_the_cluster(done, tmp_path):
    from tests.tiny_llama import make_tiny_llama

    folder, _ = done
    model = make_tiny_llama(tmp_path / "llama")
    changes = {
        "workdir": f"{tmp_path}/out",
        "annotate.engine": "vllm",
        "annotate.model": model,
        "annotate.tensor_parallel_size": "64",
    }
    overrides = [f"--set={key}={value}" for key, value in changes.items()]
    finished = llambert("run", str(folder / "run.yaml"), *overrides)
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert "64" in finished.stderr and "tensor_parallel_size" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "out" / "corpus").exists()  # said before any stage began


@pytest.mark.parametrize(
    ("stage", "setting", "says"),
    [
        ("train", "train.workers=16", "train needs 16 CPU and the cluster has"),
        ("evaluate", "label.accelerator_type=L40S", "evaluate asks for GPUs of kind 'L40S'"),
        ("label", "label.cpus_per_worker=64", "label needs 64 CPU and the cluster has"),
    ],
)
def test_a_stage_that_is_done_again_must_fit_the_cluster(done, stage, setting, says):
    folder, _ = done
    before = _versions(folder)
    finished = llambert(stage, str(folder / "run.yaml"), "--force", "--set", setting)
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert says in finished.stderr and "Traceback" not in finished.stderr
    assert _versions(folder) == before


def test_from_repeats_a_stage_and_no_secret_of_the_environment_is_kept(done):
    folder, _ = done
    secret = {"AWS_SECRET_ACCESS_KEY": "correct-horse-battery"}
    config = str(folder / "run.yaml")
    before = _versions(folder)
    bounds = {"rejects_share": 0.1, "label_share": 0.3, "llm_accuracy": 1}
    bounds |= {"encoder_validation": 0.8, "encoder_accuracy": 0.9}
    gates = [f"--set=gates.{name}={bound}" for name, bound in bounds.items()]
    finished = llambert("run", config, "--from", "report", *gates, env=os.environ | secret)
    assert finished.returncode == 0, finished.stderr
    assert "All done" in finished.stdout
    report = json.loads((folder / "out" / "report" / "report.json").read_text())
    assert {gate["name"]: gate["bound"] for gate in report["gates"]} == bounds
    assert all(gate["passed"] for gate in report["gates"])
    figures = {gate["name"]: gate["figure"] for gate in report["gates"]}
    assert figures["llm_accuracy"] == report["evaluation"]["llm"]["accuracy"] == 1
    assert figures["encoder_accuracy"] == report["evaluation"]["llambert"]["accuracy"]
    changed = {path for path, version in _versions(folder).items() if before.get(path) != version}
    assert {Path(path).parent.name for path in changed} == {"report", "out"}
    for path in (folder / "out").rglob("*"):
        if path.is_file():
            assert b"correct-horse-battery" not in path.read_bytes()


def test_mlflow_is_told_of_a_run_once(done, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder, _ = done
    config, workdir = str(folder / "run.yaml"), folder / "out"
    assert llambert("run", config).returncode == 0  # a report without another test's gates
    labelled = _versions(folder)
    silent = llambert("run", config, "--set=tracking.mlflow.tracking_uri=http://127.0.0.1:1")
    assert silent.returncode == 1, silent.stdout
    assert "cannot log to MLflow at 'http://127.0.0.1:1'" in silent.stderr
    assert "labels and report are done" in silent.stderr and "Traceback" not in silent.stderr
    with mlflow_server(tmp_path) as uri:
        override = f"--set=tracking.mlflow.tracking_uri={uri}"
        told = llambert("run", config, override)
        assert told.returncode == 0, told.stderr
        assert "Nothing to do" in llambert("run", config, override).stdout
        assert llambert("tracking", config, override, "--force").returncode == 0
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("films")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"
        assert run.data.params["train.epochs"] == "4"
        report = json.loads((workdir / "report" / "report.json").read_text())
        accuracy = report["evaluation"]["llambert"]["accuracy"]
        assert run.data.metrics["evaluation/llambert/accuracy"] == accuracy
        assert run.data.metrics["counts/label/out"] == RECORDS
        files = [each.path for each in client.list_artifacts(run.info.run_id, "report")]
        assert set(files) >= {"report/index.html", "report/report.json"}
        copy = client.download_artifacts(run.info.run_id, "report/report.json", str(tmp_path))
        assert json.loads(Path(copy).read_text()) == report
        assert client.list_artifacts(run.info.run_id)[0].path == "config.yaml"
    changed = {path for path, version in _versions(folder).items() if labelled.get(path) != version}
    assert changed == {str(workdir / "config.yaml"), str(workdir / "tracking" / "manifest.json")}


def test_from_after_until(done):
    folder, _ = done
    wrong = llambert("run", str(folder / "run.yaml"), "--from", "label", "--until", "sample")
    assert wrong.returncode == 2
    assert "--from label comes after --until sample" in wrong.stderr
