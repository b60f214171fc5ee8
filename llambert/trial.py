"""One training to learn a figure from: an encoder is trained and measured, and does not stay."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from llambert.asked import ANNOTATED_GOLD
from llambert.deepspeed_settings import user_file
from llambert.evaluate import EvaluateConfig, Trained, evaluate
from llambert.label import LabelConfig
from llambert.models import fingerprint_model
from llambert.progress import Progress
from llambert.step import Step, run_step
from llambert.storage import Folder, Outcome, fingerprint_rows
from llambert.train import TrainConfig, train

VARIANT = "trial"  # as which its predictions are kept
_KEPT = (
    *("training_records", "validation_records", "validation_accuracy", "best_epoch", "tokens"),
    *("training_seconds", "records_per_s", "device", "workers", "device_seconds", "warnings"),
)


@dataclass(frozen=True)
class Trials:
    """What trainings that are compared have in common; `test` (`schema.GOLD`) measures them all.

    `measuring` tells in which dtype and batches the encoders are run on it: as on a corpus.
    """

    config: TrainConfig
    measuring: LabelConfig
    labels: list[str]
    test: pa.Table

    @cached_property
    def _tested(self) -> str:
        return _content(self.test)

    @cached_property
    def _model(self) -> list[Any]:
        return [fingerprint_model(self.config.model), user_file(self.config.deepspeed)]

    def step(self, title: str, records: pa.Table, seed: int, folder: Folder) -> Step:
        """The step that trains on `records` (`schema.GOLD`) and measures.

        Its folder keeps evaluation/ and the manifest, with `accuracy`, `accuracy_interval`,
        `macro_f1` and the training's figures as details; the model is removed. A step that was
        killed goes on from the training's last checkpoint, or from the finished model.
        """
        config, labels = self.config, self.labels
        made_from = [config.what_matters(), self._model, self.measuring.dtype, labels, seed]
        inputs: dict[str, str | None] = {"records": _content(records)}

        def fit(progress: Progress) -> Outcome:
            return train(config, labels, records, config.model, seed, folder / "model", progress)

        def run(progress: Progress) -> Outcome:
            progress.begin(None, title)
            training = Step("train", title, folder / "model", fit, inputs, made_from)
            trained = training.manifest or run_step(training, progress)
            found = self._measure(seed, folder, progress)
            training.folder.remove()
            details = {name: trained.details[name] for name in _KEPT} | found
            return Outcome(trained.counts, details)

        both = inputs | {"test": self._tested}
        return Step("trial", title, folder, run, both, made_from)

    def _measure(self, seed: int, folder: Folder, progress: Progress) -> dict[str, Any]:
        settings = self.measuring.actors()
        actors = {name: settings[name] for name in ("dtype", "batch_tokens")}
        actors["accelerator_type"] = self.config.accelerator_type  # what trained is there
        found = evaluate(
            EvaluateConfig(errors=0),
            self.labels,
            self.test,
            ANNOTATED_GOLD.empty_table(),
            [Trained(VARIANT, seed, (folder / "model").uri)],
            folder / "evaluation",
            progress,
            actors,
            trust_remote_code=self.config.trust_remote_code,
        ).details[VARIANT]["seeds"][str(seed)]
        figures = {name: found[name] for name in ("accuracy", "accuracy_interval", "macro_f1")}
        return figures | {"test_records": found["records"]}


def _content(records: pa.Table) -> str:
    return fingerprint_rows(records, "id", "text", "label")
