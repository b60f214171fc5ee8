"""What MLflow is told, and when it cannot be; a real server is told in the integration tests."""

import math
import re
import sys
from typing import Any

import pytest

from llambert import tracking
from llambert.config import RunConfig
from llambert.errors import UserError
from llambert.gates import Gate
from llambert.plan import PlanConfig, Range, Work, estimate
from llambert.report import report
from llambert.storage import Folder, public
from llambert.tracking import MlflowConfig, TrackingConfig, metrics, parameters
from tests.finished_run import finished_run, settings


@pytest.fixture
def written(tmp_path) -> dict[str, Any]:
    """The report.json of a run with a gate, a plan and labels that MLflow would not take."""
    labels = ("so/so?", "..")
    made = finished_run(tmp_path, labels=labels)
    work = Work(Range.exactly(100_004))
    plan: dict[str, Any] = {"created": "2026-11-21T10:00:00+00:00", "rates": {}, "prices": {}}
    plan["llambert"] = estimate({"corpus": work}, {}, PlanConfig().prices)
    gates = [Gate("llm_accuracy", 0.8, 9, 10, ""), Gate("label_share", 0.1, 0, 0, "")]
    folder = Folder(str(tmp_path / "report"))
    report("films", made, settings(labels=labels), folder, gates, plan)
    return folder.read_json("report.json")


def test_every_figure_once_under_a_name_that_mlflow_takes(written):
    found = metrics(written)
    llm, seeds = written["evaluation"]["llm"], written["evaluation"]["combined"]["seeds"]
    expected = {
        "answer/labelled": 100_000,
        "answer/accuracy": seeds["1"]["accuracy"],
        "answer/accuracy_interval/low": seeds["1"]["accuracy_interval"][0],
        "answer/accuracy_interval/high": seeds["1"]["accuracy_interval"][1],
        "evaluation/gold_records": 600,
        "evaluation/llm/accuracy": llm["accuracy"],
        "evaluation/llm/labels/so_so__3e9a1e/f1": llm["labels"]["so/so?"]["f1"],
        "evaluation/llm/labels/.._5ec1f7/f1": llm["labels"][".."]["f1"],
        "evaluation/combined/seeds/2/accuracy": seeds["2"]["accuracy"],
        "cost/share": written["cost"]["share"],
        "plan/corpus/records/planned/high": 100_004,
        "plan/corpus/records/actual": 100_000,
        "gates/llm_accuracy": 0.9,
        "work/label/records_per_s": 5120.4,
        "seconds/train llambert seed 1": 12.34,
        "counts/sample/in": 100_000,
        "counts/sample/dropped/not_drawn": 99_000,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert all(math.isfinite(value) for value in found.values())
    assert not [name for name in found if not re.fullmatch(r"[\w.: /-]+", name)]
    assert not {"gates/label_share", "evaluation/llm/confusion"} & found.keys()  # no one number


def test_what_an_earlier_report_or_a_run_without_it_lacks_is_left_out(written):
    for name in ("answer", "cost", "plan", "gates", "work", "steps"):
        written.pop(name, None)
    found = metrics(written)
    assert {name.partition("/")[0] for name in found} == {"evaluation"}


def test_two_labels_that_mlflow_would_not_tell_apart_stay_two(written):
    alike = ["a/b", "a?b", "long " * 100, "long " * 101]
    written["evaluation"]["llm"]["labels"] = {name: {"f1": 0.5} for name in alike}
    names = [name for name in metrics(written) if name.startswith("evaluation/llm/labels/")]
    assert len(names) == len(alike) and max(map(len, names)) <= 250


def test_a_figure_that_is_no_number_is_left_out(written):
    written["evaluation"]["llm"]["accuracy"] = math.nan
    cascade = {"gold": {"records": 5, "cascade": {"accuracy": 1.0}}, "share": 0.1}
    written["steps"]["cascade"] = {**written["steps"]["label"], "details": cascade}
    found = metrics(written)
    assert "evaluation/llm/accuracy" not in found
    assert (found["cascade/records"], found["cascade/cascade/accuracy"]) == (5, 1)


def test_settings_bear_their_names_in_the_run_file(tmp_path):
    config = RunConfig.model_validate(
        {
            "name": "films",
            "workdir": str(tmp_path / "out"),
            "task": {"labels": {"so, so": ["meh"], "good": []}, "prompt": "Good? {text}"},
            "corpus": {"path": str(tmp_path / "corpus")},
            "sample": {"size": 10},
            "annotate": {"engine": "recorded", "recorded": {"path": str(tmp_path / "a.parquet")}},
            "train": {"seeds": [1, 2], "learning_rate": 1e-5},
            "tracking": {},
        }
    )
    found = parameters(config)
    expected = {
        "name": "films",
        "task.labels": '{"so, so": ["meh"], "good": []}',
        "task.prompt": "Good? {text}",
        "annotate.recorded.path": str(tmp_path / "a.parquet"),
        "train.seeds": "[1, 2]",
        "train.learning_rate": "1e-05",
        "label.probabilities": "false",
    }
    assert expected.items() <= found.items()
    assert not {"gold", "cascade", "train.micro_batch_size"} & found.keys()  # have no value


@pytest.mark.parametrize("uri", ["http://me:secret@host:5000", "postgresql://me@host/db"])
def test_a_password_is_refused_and_not_repeated(uri):
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD") as raised:
        MlflowConfig(tracking_uri=uri)
    assert "which would be stored" in raised.value.errors()[0]["msg"]
    assert public(uri) in ("http://host:5000", "postgresql://host/db")
    said = "API request to {}/api failed, ask me@host"
    assert public(said.format(uri)) == said.format(public(uri))


@pytest.mark.parametrize("uri", ["http://host:5000/a@b", "sqlite:////tmp/a@b.db", "databricks"])
def test_what_holds_no_password_is_taken_as_it_is(uri):
    assert MlflowConfig(tracking_uri=uri).tracking_uri == public(uri) == uri


def test_what_is_missing_is_said_before_the_run(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"neither tracking\.mlflow\.tracking_uri nor"):
        tracking.check(TrackingConfig())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    tracking.check(TrackingConfig())
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(UserError, match=r"pip install 'llambert\[mlflow\]'"):
        tracking.check(TrackingConfig())
