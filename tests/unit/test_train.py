"""The train stage without Ray: settings, the split, the dealing of batches, the early checks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from llambert import cluster
from llambert import train as stage
from llambert.deepspeed_settings import DeepSpeedConfig, deepspeed_settings
from llambert.errors import UserError
from llambert.finetune import deal
from llambert.models import check_model
from llambert.schema import GOLD
from llambert.storage import fingerprint
from llambert.train import TrainConfig, check, required_resources
from llambert.training_data import content_hash, label_weights, prepared, split

LABELS = ["negative", "positive"]
AUTO = {"lr": 1e-5, "weight_decay": 0.01, "total_num_steps": 90}
BATCH = {"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 2}


def gold(*labels: str) -> pa.Table:
    rows = [{"id": f"r{i}", "text": f"text {i}", "label": each} for i, each in enumerate(labels)]
    return pa.Table.from_pylist(rows, schema=GOLD)


def test_every_record_is_dealt_once_whatever_the_workers():
    for records in (1, 2, 5, 16):
        rows, weights = np.arange(100, 100 + records), np.linspace(0.5, 2, records)
        for world in (1, 2, 3, 8):
            for passes in (1, 2, 3):
                hands = [h for r in range(world) for h in deal(rows, weights, r, world, passes)]
                assert len(hands) == world * passes
                assert all(len(mine) for mine, _ in hands)  # all workers make every pass
                real = [(mine[w > 0], w[w > 0]) for mine, w in hands]
                assert sorted(np.concatenate([mine for mine, _ in real])) == list(rows)
                assert np.concatenate([w for _, w in real]).sum() == pytest.approx(weights.sum())


def test_split_keeps_every_label_on_both_sides_and_repeats_for_a_seed():
    targets = np.array([0] * 80 + [1] * 20 + [2])
    training, validation = split(targets, 0.1, seed=3)
    assert sorted([*training, *validation]) == list(range(101))
    assert np.bincount(targets[validation], minlength=3).tolist() == [8, 2, 0]
    again = split(targets, 0.1, seed=3)[1]
    assert validation.tolist() == again.tolist()
    assert validation.tolist() != split(targets, 0.1, seed=4)[1].tolist()
    assert len(split(targets, 0.0, seed=3)[1]) == 0


def test_label_weights_even_out_the_labels():
    targets = np.array([0] * 90 + [2] * 10)
    weights = np.array(label_weights(targets, 3, weighted=True))
    assert weights[0] * 90 == pytest.approx(weights[2] * 10)
    assert weights[targets].mean() == pytest.approx(1)
    assert weights[1] == 0
    assert label_weights(targets, 3, weighted=False) == [1, 1, 1]


def test_preparation_does_not_depend_on_the_order_of_records():
    records = gold("positive", "negative", "negative", "positive")
    table = prepared(records, LABELS)
    turned = prepared(records.take([2, 0, 3, 1]), LABELS)
    assert table.equals(turned)
    assert table["target"].to_pylist() == [1, 0, 0, 1]
    assert content_hash(table) == content_hash(turned)
    other = prepared(gold("positive", "negative", "negative", "negative"), LABELS)
    assert content_hash(table) != content_hash(other)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["positive", "negative", "positive"], "positive: 2"),
        (["positive"] * 9, "negative: 0"),
        (["positive", "negative", "neutral", "positive"], "neutral"),
    ],
)
def test_records_that_cannot_be_learned_from_are_refused(labels, said):
    with pytest.raises(UserError, match=said):
        prepared(gold(*labels), LABELS)


def test_what_a_training_holds():
    config = TrainConfig(workers=4)
    assert required_resources(config, {"CPU": 64}) == cluster.Workers(4, {"CPU": 1})
    two = {"CPU": 2, "GPU": 1, "accelerator_type:L40S": 0.001}
    config = TrainConfig(workers=4, accelerator_type="L40S")
    assert required_resources(config, {"CPU": 64, "GPU": 8}) == cluster.Workers(4, two)


def test_configs_that_contradict_themselves_are_refused():
    with pytest.raises(ValidationError, match="batch_size 2"):
        TrainConfig(workers=4, batch_size=2)
    with pytest.raises(ValidationError, match="same seed"):
        TrainConfig(seeds=[1, 1])
    with pytest.raises(ValidationError, match="zero_stage"):
        DeepSpeedConfig(zero_stage=0, offload="cpu")


def test_another_version_makes_no_training_stale():
    """The fingerprint is that of the version before `freeze_encoder` came."""
    assert fingerprint(TrainConfig(model="an/encoder", epochs=3).what_matters()) == "34a2f4d1d990"
    assert TrainConfig(freeze_encoder=True).what_matters()["freeze_encoder"]
    assert TrainConfig(workers=2).what_matters() == TrainConfig().what_matters()


def test_batch_is_accumulated_where_a_workers_share_is_too_large():
    config = TrainConfig(workers=3, batch_size=32, micro_batch_size=4)
    settings = stage._engine_settings(config, records=320, gpu=False)
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert settings["gradient_accumulation_steps"] == 3  # 3 x 3 x 4 >= 32


def test_own_deepspeed_file_wins_and_auto_takes_ours(tmp_path):
    file = tmp_path / "ds.json"
    theirs = {
        "train_batch_size": "auto",
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "overlap_comm": False},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "eps": 1e-6}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}},
    }
    file.write_text(json.dumps(theirs))
    config = DeepSpeedConfig(zero_stage=1, offload="cpu", config=str(file))
    settings = deepspeed_settings(config, BATCH, AUTO, bfloat16=True, gpu=False)
    assert settings["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "overlap_comm": False,
    }
    assert settings["optimizer"]["params"] == {"lr": 1e-5, "eps": 1e-6, "torch_adam": True}
    assert settings["scheduler"]["params"] == {"total_num_steps": 90}
    assert settings["bf16"] == {"enabled": True}
    assert settings["train_micro_batch_size_per_gpu"] == 8
    assert "train_batch_size" not in settings

    file.write_text('{"fp16": {"enabled": true}}')
    settings = deepspeed_settings(config, BATCH, AUTO, bfloat16=True, gpu=True)
    assert "bf16" not in settings


@pytest.mark.parametrize("bfloat16", [True, False])
def test_the_usual_file_of_autos_takes_our_precision(tmp_path, bfloat16):
    file = tmp_path / "ds.json"
    usual = {
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "bf16": {"enabled": "auto"},
        "optimizer": "auto",
    }
    file.write_text(json.dumps(usual))
    config = DeepSpeedConfig(config=str(file))
    settings = deepspeed_settings(config, BATCH, AUTO, bfloat16=bfloat16, gpu=True)
    assert settings["bf16"] == ({"enabled": True} if bfloat16 else {})
    assert settings["fp16"] == {"loss_scale": 0}
    assert "optimizer" not in settings


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no file"),
        (Path, "cannot read"),  # a folder
        ("{", "not JSON"),
        ("[]", "no JSON object"),
        ('{"train_batch_size": 9}', "9"),
        ('{"fp16": true}', "fp16 to True, which is not an object"),
        ('{"fp16": {"enabled": "false"}}', "fp16.enabled to 'false'"),
        ('{"zero_optimization": true}', "zero_optimization to True"),
        ('{"optimizer": null}', "optimizer to None"),
        ('{"optimizer": {"type": 1}}', "optimizer.type to 1"),
        ('{"optimizer": {"params": [1]}}', "optimizer.params"),
    ],
)
def test_deepspeed_files_that_cannot_be_used(tmp_path, content, said):
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    (encoder / "model.safetensors").touch()
    file = tmp_path / "ds.json"
    if content is Path:
        file.mkdir()
    elif content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=said):
        check(TrainConfig(model=str(encoder), deepspeed={"config": str(file)}))


def test_local_models_are_checked_by_their_files(tmp_path):
    with pytest.raises(UserError, match=r"train\.model: there is no folder"):
        check_model(str(tmp_path / "absent"), "train.model")
    with pytest.raises(UserError, match=r"no config\.json"):
        check_model(str(tmp_path), "train.model")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="safetensors only"):
        check_model(str(tmp_path), "train.model")
    (tmp_path / "model.safetensors").touch()
    check_model(str(tmp_path), "train.model")


@pytest.mark.parametrize("name", ["roberta large", "s3://bucket/model", "nobody/no-such-model"])
def test_names_that_are_no_model(name, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        check_model(name, "train.model")
    assert name in str(error.value)


def test_import_and_check_load_nothing_heavy(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    code = (
        "import sys, llambert.finetune; from llambert.train import TrainConfig, check; "
        f"check(TrainConfig(model={str(tmp_path)!r})); "
        "print({'torch', 'ray', 'transformers', 'deepspeed'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
