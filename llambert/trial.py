"""One training to learn a figure from: an encoder is trained and measured, and does not stay."""

from typing import Any

import pyarrow as pa

from llambert.asked import ANNOTATED_GOLD
from llambert.deepspeed_settings import user_file
from llambert.evaluate import EvaluateConfig, Trained, evaluate
from llambert.progress import Progress
from llambert.step import Step, run_step
from llambert.storage import Folder, Outcome, fingerprint, fingerprint_model
from llambert.train import TrainConfig, train

_VARIANT = "trial"
_KEPT = (
    *("training_records", "validation_records", "validation_accuracy", "best_epoch", "tokens"),
    *("training_seconds", "records_per_s", "device", "workers", "device_seconds", "warnings"),
)


def trial_step(
    title: str,
    config: TrainConfig,
    labels: list[str],
    records: pa.Table,
    test: pa.Table,
    seed: int,
    folder: Folder,
) -> Step:
    """The step that trains on `records` and measures on `test` (both `schema.GOLD`).

    Its folder keeps evaluation/ and the manifest, with `accuracy`, `accuracy_interval`,
    `macro_f1` and the training's figures as details; the model is removed. A step that was
    killed goes on from the training's last checkpoint, or from the finished model.
    """
    model = [fingerprint_model(config.model), user_file(config.deepspeed)]
    made_from = [config.what_matters(), model, labels, seed]
    inputs: dict[str, str | None] = {"records": _content(records)}

    def fit(progress: Progress) -> Outcome:
        return train(config, labels, records, config.model, seed, folder / "model", progress)

    def run(progress: Progress) -> Outcome:
        progress.begin(None, title)
        training = Step("train", title, folder / "model", fit, inputs, made_from)
        trained = training.manifest or run_step(training, progress)
        found = _measure(config, labels, test, seed, folder, progress)
        training.folder.remove()
        details = {name: trained.details[name] for name in _KEPT} | found
        return Outcome(trained.counts, details)

    both = inputs | {"test": _content(test)}
    return Step("trial", title, folder, run, both, made_from)


def _measure(
    config: TrainConfig,
    labels: list[str],
    test: pa.Table,
    seed: int,
    folder: Folder,
    progress: Progress,
) -> dict[str, Any]:
    found = evaluate(
        EvaluateConfig(errors=0),
        labels,
        test,
        ANNOTATED_GOLD.empty_table(),
        [Trained(_VARIANT, seed, (folder / "model").uri)],
        folder / "evaluation",
        progress,
        trust_remote_code=config.trust_remote_code,
    ).details[_VARIANT]["seeds"][str(seed)]
    return {name: found[name] for name in ("accuracy", "accuracy_interval", "macro_f1")} | {
        "test_records": found["records"]
    }


def _content(records: pa.Table) -> str:
    """A fingerprint of the records, whatever their order."""
    columns = [records[name].to_pylist() for name in ("id", "text", "label")]
    return fingerprint(sorted(zip(*columns, strict=True)))
