"""Fine-tune an encoder on labelled records: Ray Train workers, a DeepSpeed engine in each."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from llambert import cluster
from llambert.deepspeed_engine import warmup_steps
from llambert.deepspeed_settings import DeepSpeedConfig, deepspeed_settings, user_file
from llambert.drift import length_histogram
from llambert.models import check_model, fingerprint_model
from llambert.progress import Progress
from llambert.ray_train import run_workers
from llambert.section import ModelName, Section, Variant
from llambert.storage import (
    Folder,
    Outcome,
    fingerprint,
    is_remote,
    list_files,
)
from llambert.training_data import content_hash, label_weights, prepared, split

_GPU_WORKER_CPUS = 2  # one computes, one tokenizes the next batch
# Settings that do not change the weights, or that a checkpoint may outlive.
_NOT_IN_IDENTITY = {
    *("variants", "seeds", "cpus_per_worker", "accelerator_type"),
    *("max_failures", "checkpoint_every_s"),
}


class TrainConfig(Section):
    """Which encoder is fine-tuned, on which labels, and how."""

    model: ModelName = Field(
        "FacebookAI/roberta-large", description="The encoder: a hub name or a folder."
    )
    variants: list[Variant] | None = Field(
        None,
        description="baseline: gold labels; llambert: the LLM's; combined: the LLM's, then gold. "
        "By default all that the run's data allows.",
    )
    seeds: list[int] = Field(
        [1], min_length=1, description="One training for each, of every variant."
    )
    epochs: int = Field(3, ge=1, description="Passes over the training records (the paper: 5).")
    batch_size: int = Field(
        16, ge=1, description="Records of an optimizer step, all workers together."
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="The most records that a worker computes at once; a larger share of the batch "
        "is accumulated over several passes. By default the share is computed at once.",
    )
    max_length: int = Field(
        512, ge=8, description="Tokens of a text that are read; the model's limit where lower."
    )
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.01, ge=0, description="Not applied to biases and norms.")
    warmup_share: float = Field(
        0.1, ge=0, lt=1, description="Share of the steps that warm up; the rest decay linearly."
    )
    gradient_clipping: float = Field(1.0, ge=0, description="Largest norm of a step; 0: none.")
    validation_share: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Share of each label's records held back to find the best epoch; 0 keeps the "
        "last epoch.",
    )
    freeze_encoder: bool = Field(
        False,
        description="Train the classification head alone (with BERT its pooler too): quicker, and "
        "less accurate. The head wants a learning rate of 1e-3 or so.",
    )
    class_weights: bool = Field(
        False, description="Weigh a record by the inverse frequency of its label."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bfloat16 (with float32 master weights) on GPUs, else float32."
    )
    workers: int = Field(1, ge=1, description="Ray Train workers, each with one GPU where any is.")
    accelerator_type: str | None = Field(
        None, description="Kind of GPU to use where the cluster has several, in Ray's spelling."
    )
    cpus_per_worker: int | None = Field(
        None,
        ge=1,
        description="CPUs of a worker. By default 2 beside a GPU, else an even share of the CPUs.",
    )
    deepspeed: DeepSpeedConfig = Field(DeepSpeedConfig(), description="DeepSpeed's settings.")
    max_failures: int = Field(
        3, ge=0, description="Lost or failed workers after which a training is given up."
    )
    checkpoint_every_s: float = Field(
        300.0,
        ge=0,
        description="Seconds between checkpoints within an epoch; each epoch ends in one.",
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with the model.")

    def what_matters(self) -> dict[str, Any]:
        """The settings that change what is learned, and not only how fast."""
        later = set() if self.freeze_encoder else {"freeze_encoder"}  # older trainings stay done
        return self.model_dump(exclude=_NOT_IN_IDENTITY | {"workers"} | later)

    @model_validator(mode="after")
    def _adds_up(self) -> "TrainConfig":
        if self.batch_size < self.workers:
            raise ValueError(
                f"batch_size {self.batch_size} is less than one record for each of the "
                f"{self.workers} workers"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} holds the same seed twice")
        return self


def check(config: TrainConfig) -> None:
    """Find out before Ray starts what can be wrong with the model and the DeepSpeed file.

    Raises:
        UserError: no such model, no safetensors, or a DeepSpeed file that cannot be used.
    """
    check_model(config.model, "train.model")
    user_file(config.deepspeed)


def required_resources(config: TrainConfig, have: Mapping[str, float]) -> cluster.Workers:
    """What the workers of a training hold on a cluster that has `have`.

    Ray Train's controller and the progress counter hold nothing.
    """
    gpu = have.get("GPU", 0) > 0
    each = {"CPU": float(config.cpus_per_worker or (_GPU_WORKER_CPUS if gpu else 1))}
    each |= ({"GPU": 1.0} if gpu else {}) | cluster.kind_of_gpu(config.accelerator_type)
    return cluster.Workers(config.workers, each)


def train(
    config: TrainConfig,
    labels: list[str],
    records: pa.Table,
    init_from: str,
    seed: int,
    folder: Folder,
    progress: Progress,
) -> Outcome:
    """Fine-tune one classifier and leave it in `folder` as a Hugging Face folder.

    The folder holds the weights of the best epoch in float32, the tokenizer, and metrics.json.
    It also holds `ray_train.CHECKPOINTS`, which is the caller's to remove: called again after a
    crash with the same arguments, it goes on from there, or has nothing left to do. On several
    machines `folder` must be on storage that all of them see.

    Args:
        labels: the model's outputs, in this order.
        records: `schema.GOLD`; labels as in `labels`. Their order does not matter.
        init_from: the model to start from: a hub name or a folder, also on an object store.
        seed: of the new head, the split, the batches and dropout.

    Raises:
        UserError: too few records, labels off the list, or a wrong DeepSpeed file.
        StageError: the workers failed more often than `max_failures`.
    """
    folder = folder if is_remote(folder.uri) else Folder(os.path.abspath(folder.uri))
    gpu = cluster.gpus() > 0
    table = prepared(records, labels)
    targets = table["target"].to_numpy()
    training, validation = split(targets, config.validation_share, seed)
    settings = _engine_settings(config, len(training), gpu)
    fixed = config.what_matters() | {"workers": config.workers}  # a checkpoint is of so many
    name = fingerprint(
        [fixed, settings, labels, _identity(init_from), seed, gpu, content_hash(table)]
    )
    progress.begin(len(training) * config.epochs, progress.note)
    import ray

    from llambert.finetune import Job

    job = Job(
        model=os.path.abspath(init_from) if os.path.isdir(init_from) else init_from,
        labels=labels,
        records=ray.put(table.drop_columns("id")),
        training=training,
        validation=validation,
        label_weights=label_weights(targets[training], len(labels), config.class_weights),
        batch_size=config.batch_size,
        accumulation=settings["gradient_accumulation_steps"],
        epochs=config.epochs,
        max_length=config.max_length,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_share=config.warmup_share,
        freeze_encoder=config.freeze_encoder,
        seed=seed,
        deepspeed=settings,
        checkpoint_every_s=config.checkpoint_every_s,
        threads=_cpus_per_worker(config, gpu),
        folder=folder,
        counter=progress.ray_counter(),
        trust_remote_code=config.trust_remote_code,
    )
    scaling = {
        "num_workers": config.workers,
        "use_gpu": gpu,
        "resources_per_worker": {"CPU": job.threads} | ({"GPU": 1} if gpu else {}),
        "accelerator_type": config.accelerator_type,
    }
    figures = run_workers(job, name, scaling, config.max_failures)
    details = _details(config, job, figures, targets, gpu)
    details["text_lengths"] = length_histogram(table["length"].to_numpy())
    folder.write_json("metrics.json", details | {"init_from": init_from, "seed": seed})
    return Outcome({"in": len(targets), "out": len(targets), "dropped": {}}, details)


def _engine_settings(config: TrainConfig, records: int, gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for `records` training records."""
    share = -(-config.batch_size // config.workers)  # of a batch, for one worker
    micro = min(config.micro_batch_size or share, share)
    steps = -(-records // config.batch_size) * config.epochs
    return deepspeed_settings(
        config.deepspeed,
        batch={
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": -(-share // micro),
            "gradient_clipping": config.gradient_clipping,
        },
        auto={
            "lr": config.learning_rate,
            "weight_decay": config.weight_decay,
            "warmup_min_lr": 0.0,
            "warmup_max_lr": config.learning_rate,
            "warmup_num_steps": warmup_steps(steps, config.warmup_share),
            "total_num_steps": steps,
        },
        bfloat16=config.dtype == "bfloat16" or (config.dtype == "auto" and gpu),
        gpu=gpu,
    )


def _identity(model: str) -> Any:
    """What tells one model to start from apart from another at the same place."""
    if is_remote(model):
        return list_files([model], (".safetensors",))
    return fingerprint_model(model)


def _cpus_per_worker(config: TrainConfig, gpu: bool) -> int:
    if config.cpus_per_worker:
        return config.cpus_per_worker
    if gpu:
        return _GPU_WORKER_CPUS
    return cluster.even_share(cluster.node_cpus(), config.workers)


def _details(
    config: TrainConfig,
    job: Any,
    figures: dict[str, Any],
    targets: NDArray[np.int64],
    gpu: bool,
) -> dict[str, Any]:
    """The stage's figures for the manifest and metrics.json."""
    counts = np.bincount(targets, minlength=len(job.labels))
    best = figures["history"][figures["best_epoch"] - 1]
    seconds = figures["seconds"]
    missing = [label for label, n in zip(job.labels, counts, strict=True) if not n]
    warnings = [f"no record has the label {label!r}: it will not be predicted" for label in missing]
    if figures["max_length"] < config.max_length:
        warnings.append(
            f"the model reads {figures['max_length']} tokens, less than max_length "
            f"{config.max_length}"
        )
    return {
        "validation_accuracy": best.get("validation_accuracy"),
        "validation_confidence": best.get("validation_confidence"),
        "best_epoch": figures["best_epoch"],
        "epochs": figures["history"],
        "training_records": len(job.training),
        "validation_records": len(job.validation),
        "records_by_label": {label: int(n) for label, n in zip(job.labels, counts, strict=True)},
        "tokens": figures["tokens"],
        "padding_share": figures["padding_share"],
        "training_seconds": seconds,
        "records_per_s": round(len(job.training) * config.epochs / seconds, 2) if seconds else None,
        "device": "gpu" if gpu else "cpu",
        "workers": config.workers,
        "device_seconds": round(seconds * config.workers, 2),
        "resumed": figures["resumed"],
        "max_length": figures["max_length"],
        "deepspeed": job.deepspeed,
        "settings": config.model_dump(mode="json", exclude={"deepspeed", "variants", "seeds"}),
        "warnings": warnings,
    }
