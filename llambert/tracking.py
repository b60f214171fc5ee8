"""Stage, on request: the run's settings, figures and report go to MLflow, as one run of it."""

import hashlib
import importlib.util
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from llambert.errors import StageError, UserError
from llambert.progress import Progress
from llambert.section import Section
from llambert.storage import Folder, Outcome, public

_URI = "MLFLOW_TRACKING_URI"
_ENVIRONMENT = {  # unless the environment says otherwise
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # of its own 7 the last waits minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_PART_CHARACTERS = 100  # of a metric's name between two slashes: MLflow takes 250 in all
_KEY = "llambert.key"  # a tag of what was logged


class MlflowConfig(Section):
    """Where in MLflow a run is recorded."""

    tracking_uri: str | None = Field(
        None,
        description=f"The tracking server; by default {_URI}. Its user and password come from "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, never from a config.",
    )
    experiment: str | None = Field(
        None, min_length=1, description="The experiment; by default the name of the run file's run."
    )

    @field_validator("tracking_uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri and public(uri) != uri:
            raise ValueError(  # without the value
                "holds a user or a password, which would be stored: export "
                f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or all of it as {_URI}"
            )
        return uri


class TrackingConfig(Section):
    """Who is told of a run that is done."""

    mlflow: MlflowConfig = Field(MlflowConfig(), description="An MLflow server.")


def check(config: TrackingConfig) -> None:
    """Find out at once whether MLflow can be told at all; its server is not asked.

    Raises:
        UserError: its client is not installed, or no server is named.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise UserError(
            "the run file has `tracking`, and MLflow's client is not installed",
            "pip install 'llambert[mlflow]'",
        )
    if not (config.mlflow.tracking_uri or os.environ.get(_URI)):
        raise UserError(
            f"neither tracking.mlflow.tracking_uri nor {_URI} names an MLflow server",
            "set one of them, such as http://mlflow.example:5000",
        )


def track(
    config: TrackingConfig,
    name: str,
    settings: Section,
    run_file: str,
    report: Folder,
    key: str,
    progress: Progress,
) -> Outcome:
    """Log one run to MLflow: parameters, metrics, and as artifacts the report and the run file.

    What an attempt that was cut short left there is deleted, so that a report is there once.

    Args:
        settings: the whole run's; every field with a value becomes a parameter.
        run_file: the resolved run file.
        report: the report stage's folder.
        key: changes with what is logged.

    Returns:
        An outcome whose counts are metrics rather than records; details: `experiment`, `run_id`
        and `tracking_uri`.

    Raises:
        StageError: MLflow does not answer, or refuses.
    """
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    uri = config.mlflow.tracking_uri or os.environ[_URI]
    experiment = config.mlflow.experiment or name
    progress.begin(None, f"logging to MLflow at {public(uri)}")
    params, found = parameters(settings), metrics(report.read_json("report.json"))
    try:
        client, run_id = _begin(uri, experiment, name, key)
        _log_figures(client, run_id, params, found)
        _log_files(client, run_id, run_file, report)
        client.set_terminated(run_id)
    except Exception as error:  # whatever its client and the network raise, the remedy is the same
        raise StageError(
            f"cannot log to MLflow at {public(uri)!r}: {public(str(error))}",
            "labels and report are done; the same command tries again, and does nothing else",
        ) from error
    details = {"experiment": experiment, "run_id": run_id, "tracking_uri": public(uri)}
    return Outcome({"in": len(found), "out": len(found), "dropped": {}}, details)


def _begin(uri: str, experiment: str, name: str, key: str) -> tuple[Any, str]:
    """A client and the id of a new run in MLflow, in place of an earlier one with the same key."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    known = client.get_experiment_by_name(experiment)
    place = known.experiment_id if known else client.create_experiment(experiment)
    for earlier in client.search_runs([place], f"tags.`{_KEY}` = '{key}'"):
        client.delete_run(earlier.info.run_id)
    return client, client.create_run(place, run_name=name, tags={_KEY: key}).info.run_id


def _log_figures(
    client: Any, run_id: str, params: Mapping[str, str], found: Mapping[str, float]
) -> None:
    from mlflow.entities import Metric, Param

    now = int(1000 * time.time())
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in found.items()],
        params=[Param(name, value) for name, value in params.items()],
    )


def _log_files(client: Any, run_id: str, run_file: str, report: Folder) -> None:
    """Log config.yaml, and the files of the report under report/."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(run_file, "utf-8")
        copies = Path(folder) / "report"
        copies.mkdir()
        for each in report.files():
            (copies / each).write_bytes(report.read_bytes(each))
        client.log_artifacts(run_id, folder)


def parameters(section: Section, prefix: str = "") -> dict[str, str]:
    """Every field that has a value by its name in the run file, as MLflow takes it.

    A mapping whose keys are the user's own, such as the labels, is one value, as JSON: MLflow does
    not take every character in a name.
    """
    found: dict[str, str] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            found |= parameters(value, f"{prefix}{name}.")
        elif value is not None:
            plain = section.model_dump(mode="json", include={name})[name]
            text = plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
            found[prefix + name] = text
    return found


def metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a report.json, by names such as evaluation/llm/accuracy.

    What an earlier version's report does not have is left out.
    """
    plain, steps = ("answer", "evaluation", "cost", "plan", "work"), report.get("steps", {})
    chosen = {name: report.get(name) for name in plain} | {
        "seconds": {title: step["seconds"] for title, step in steps.items()},
        "cascade": steps.get("cascade", {}).get("details", {}).get("gold"),
        "gates": {gate["name"]: gate["figure"] for gate in report.get("gates", [])},
        "curve": {
            variant: {
                "outlook": one["outlook"],
                "sizes": {str(size["records"]): size["accuracy"] for size in one["sizes"]},
            }
            for variant, one in (report.get("curve") or {}).get("variants", {}).items()
        },
        "counts": {title: step["counts"] for title, step in steps.items()},
    }
    return dict(_leaves(chosen, ""))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """The finite numbers in `value`; of lists only the two ends of an interval."""
    if name.endswith("_interval") and value:
        value = {"low": value[0], "high": value[1]}
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}/{_part(key)}" if name else _part(key))
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)


def _part(key: str) -> str:
    """`key` with what MLflow takes in a metric's name: a label may be any text.

    A changed one bears a hash of the original, so that two labels stay two.
    """
    kept = re.sub(r"[^\w.: -]", "_", key)[:_PART_CHARACTERS]
    if kept == key and kept.strip(". "):
        return kept
    return f"{kept}_{hashlib.sha256(key.encode()).hexdigest()[:6]}"
