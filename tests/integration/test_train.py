"""Fine-tuning with the real Ray Train and DeepSpeed, killed on the way and compared."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from llambert.progress import Progress
from llambert.ray_train import CHECKPOINTS
from llambert.storage import Folder, Outcome
from llambert.train import TrainConfig, train
from tests.tiny_roberta import easy_records, make_tiny_roberta

LABELS = ["negative", "positive"]
SNAPSHOT = f"{CHECKPOINTS}/*/checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints
SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "learning_rate": 5e-3,
    "max_length": 32,
    "validation_share": 0.2,
    "cpus_per_worker": 1,
    "checkpoint_every_s": 0,
}
ZERO_0 = {"workers": 2, "deepspeed": {"zero_stage": 0}}


def fit(encoder: str, folder: str, records: pa.Table | None = None, **changes) -> Outcome:
    start = changes.pop("init_from", encoder)
    config = TrainConfig(model=encoder, **SETTINGS | changes)
    records = easy_records(320) if records is None else records
    with Progress("train", quiet=True) as progress:
        return train(config, LABELS, records, start, 7, Folder(folder), progress)


def weights(folder: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(f"{folder}/model.safetensors")


def right(folder: str) -> dict[str, float]:
    """Share of unseen records that plain transformers labels right, by their label."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == torch.float32
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {"negative": 0, "positive": 1}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == SETTINGS["max_length"]
    records = easy_records(200, seed=99)
    with torch.inference_mode():
        inputs = tokenizer(records["text"].to_pylist(), padding=True, return_tensors="pt")
        found = [model.config.id2label[int(i)] for i in model(**inputs).logits.argmax(-1)]
    gold = records["label"].to_pylist()
    pairs = list(zip(gold, found, strict=True))
    return {each: np.mean([f == g for g, f in pairs if g == each]) for each in LABELS}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two trainings went the same way, but for the clock."""
    clock = {"seconds": 0, "validation_seconds": 0}
    for epoch, again in zip(one["epochs"], other["epochs"], strict=True):
        assert epoch | clock == again | clock
    assert one["tokens"] == other["tokens"]
    assert 0 <= one["padding_share"] == other["padding_share"] < 0.5
    assert one["best_epoch"] == other["best_epoch"]


def same_weights(folder: str, other: str) -> None:
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def wait_for_checkpoints(folder: Path, count: int, give_up_s: float = 120) -> None:
    deadline = time.monotonic() + give_up_s
    while time.monotonic() < deadline:
        for snapshot in folder.glob(SNAPSHOT):
            try:
                if json.loads(snapshot.read_text())["current_report_index"] >= count:
                    return
            except ValueError:  # being written
                pass
        time.sleep(0.02)
    raise TimeoutError(f"no {count} checkpoints in {folder}")


def train_workers() -> list[int]:
    """Process ids of the training workers of this process's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # others come and go meanwhile
            if "RayTrainWorker" in "".join(process.cmdline()[:1]):
                found.append(process.pid)
    return found


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return make_tiny_roberta(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory) -> dict[str, Any]:
    """ZeRO 3 on two workers, every weight really in two parts (small ones are kept whole)."""
    file = tmp_path_factory.mktemp("deepspeed") / "ds.json"
    file.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')
    return {"workers": 2, "deepspeed": {"zero_stage": 3, "config": str(file)}}


def test_two_workers_that_share_nothing_out_leave_a_plain_folder(ray_session, encoder, tmp_path):
    folder = str(tmp_path / "model")
    details = fit(encoder, folder, **ZERO_0).details
    assert details["workers"] == 2
    assert min(right(folder).values()) > 0.9
    assert details["validation_accuracy"] > 0.9
    assert details["training_records"] == 256
    assert details["validation_records"] == 64
    assert [epoch["epoch"] for epoch in details["epochs"]] == [1, 2, 3, 4]
    assert details["resumed"] == 0
    assert details["records_per_s"] > 0
    names = {path.name for path in Path(folder).iterdir()}
    assert names == {
        CHECKPOINTS,  # until the step is finished
        "config.json",
        "metrics.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    metrics = json.loads(Path(folder, "metrics.json").read_text())
    assert metrics["best_epoch"] == details["best_epoch"]
    assert metrics["deepspeed"]["zero_optimization"]["stage"] == 0
    assert metrics["seed"] == 7 and metrics["init_from"] == encoder


def test_worker_killed_under_zero_3(ray_session, encoder, two_workers, tmp_path):
    """SIGKILL to one of two workers; Ray Train restarts both from the last checkpoint."""
    longer = two_workers | {"epochs": 8}  # so that the kill falls well before the end
    undisturbed = fit(encoder, str(tmp_path / "quiet"), **longer).details
    assert undisturbed["deepspeed"]["zero_optimization"]["stage"] == 3
    assert min(right(str(tmp_path / "quiet")).values()) > 0.9

    killed = []

    def kill() -> None:
        wait_for_checkpoints(tmp_path / "killed", 2)
        last = train_workers()[-1]
        os.kill(last, signal.SIGKILL)
        killed.append(last)

    killer = threading.Thread(target=kill)
    killer.start()
    details = fit(encoder, str(tmp_path / "killed"), **longer).details
    killer.join()
    assert killed and details["resumed"] == 1
    same(undisturbed, details)
    same_weights(str(tmp_path / "quiet"), str(tmp_path / "killed"))


def test_own_deepspeed_file_class_weights_and_a_second_stage_on_s3(
    s3, ray_session, encoder, tmp_path
):
    theirs = {
        "train_batch_size": "auto",
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.98]}},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "total_num_steps": "auto",
                "warmup_num_steps": "auto",
                "warmup_max_lr": "auto",
            },
        },
    }
    (tmp_path / "ds.json").write_text(json.dumps(theirs))
    settings = {
        "workers": 2,
        "epochs": 5,
        "micro_batch_size": 4,
        "class_weights": True,
        "deepspeed": {"zero_stage": 2, "config": str(tmp_path / "ds.json")},
    }
    first = f"{s3}/train/{tmp_path.name}/first"
    outcome = fit(encoder, first, easy_records(480, negative_share=0.3), **settings)
    assert outcome.details["validation_accuracy"] > 0.9
    assert outcome.details["records_by_label"]["negative"] < 160
    assert outcome.details["deepspeed"]["gradient_accumulation_steps"] == 2
    assert outcome.details["deepspeed"]["bf16"] == {"enabled": True}
    assert Folder(first).folders() == [CHECKPOINTS]

    second = f"{s3}/train/{tmp_path.name}/second"
    changes = {"init_from": first, "epochs": 1, "learning_rate": 1e-6, "freeze_encoder": True}
    again = fit(encoder, second, easy_records(96, seed=5), **settings | changes)
    assert again.details["validation_accuracy"] > 0.9  # such a step teaches nothing by itself
    for name in Folder(second).files():
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(Folder(second).read_bytes(name))
    assert min(right(str(tmp_path / "copy")).values()) > 0.9
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "model.safetensors").write_bytes(
        Folder(first).read_bytes("model.safetensors")
    )
    before, after = weights(str(tmp_path / "first")), weights(str(tmp_path / "copy"))
    for name in (name for name in before if name.startswith("roberta.")):
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
