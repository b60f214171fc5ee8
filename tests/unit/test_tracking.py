"""What MLflow is told, and when it cannot be; a real server is told in the integration tests."""

import math
import sys

import pytest

from llambert import tracking
from llambert.config import RunConfig
from llambert.errors import UserError
from llambert.tracking import MlflowConfig, TrackingConfig, metrics, parameters

REPORT = {
    "name": "films",
    "created": "2026-01-01",
    "sample": {"counts": {"in": 9, "out": 5, "dropped": {"not_drawn": 4}}, "folder": "/w"},
    "evaluation": {
        "gold_records": 5,
        "llm": {
            "accuracy": 0.9,
            "accuracy_interval": [0.8, 0.95],
            "confusion": [[1, 2], [3, 4]],
            "labels": {"so/so?": {"f1": 0.5}, "..": {"f1": 1}},
            "calibration_error": None,
        },
        "llambert": {"seeds": {"1": {"accuracy": math.nan}}},
    },
    "gates": [{"name": "llm_accuracy", "figure": 0.9}, {"name": "label_share", "figure": None}],
    "seconds": {"train llambert seed 1": 3.5},
    "work": {"label": {"records_per_s": 12.5, "device": "cpu"}},
    "cascade": {"gold": {"records": 5, "cascade": {"accuracy": 1.0}}, "share": 0.1},
}


def test_every_figure_once_under_a_name_that_mlflow_takes():
    assert metrics(REPORT) == {
        "evaluation/gold_records": 5,
        "evaluation/llm/accuracy": 0.9,
        "evaluation/llm/accuracy_interval/low": 0.8,
        "evaluation/llm/accuracy_interval/high": 0.95,
        "evaluation/llm/labels/so_so_/f1": 0.5,
        "evaluation/llm/labels/_../f1": 1,
        "cascade/records": 5,
        "cascade/cascade/accuracy": 1,
        "gates/llm_accuracy": 0.9,
        "work/label/records_per_s": 12.5,
        "seconds/train llambert seed 1": 3.5,
        "counts/sample/in": 9,
        "counts/sample/out": 5,
        "counts/sample/dropped/not_drawn": 4,
    }


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
    assert tracking._public(uri) in ("http://host:5000", "postgresql://host/db")
    said = "API request to {}/api failed, ask me@host"
    assert tracking._public(said.format(uri)) == said.format(tracking._public(uri))


@pytest.mark.parametrize("uri", ["http://host:5000/a@b", "sqlite:////tmp/a@b.db", "databricks"])
def test_what_holds_no_password_is_taken_as_it_is(uri):
    assert MlflowConfig(tracking_uri=uri).tracking_uri == tracking._public(uri) == uri


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
