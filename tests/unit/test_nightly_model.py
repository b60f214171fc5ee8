"""The encoder that labels the nights: the best of the run's, or the folder that is named."""

import json
import os
from pathlib import Path

import pytest

from llambert.config import RunConfig
from llambert.drift import Profile
from llambert.errors import UserError
from llambert.models import encoder_files, fingerprint_encoder
from llambert.nightly_model import encoder_version, find_model
from llambert.storage import Folder, Manifest
from llambert.workdir import Workdir

LABELS = ["bad", "good"]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "films",
            "workdir": str(tmp_path / "out"),
            "task": {"labels": {label: [] for label in LABELS}, "prompt": "Good? {text}"},
            "corpus": {"path": str(tmp_path / "corpus")},
            "gold": {"train": "gold.parquet"},
            "sample": {"size": 10},
            "annotate": {"engine": "recorded", "recorded": {"path": "answers.parquet"}},
            "train": {"seeds": [1, 2, 3]},
        }
    )


def leave(folder: Folder, accuracy: float, init_from: str = "org/encoder", good: int = 5) -> None:
    """What a finished training leaves, weights aside."""
    folder.write_json("config.json", {"id2label": dict(enumerate(LABELS))})
    folder.write_json("metrics.json", {"init_from": init_from})
    folder.write_bytes("model.safetensors", folder.uri.encode())
    details = {
        "validation_accuracy": accuracy,
        "validation_confidence": accuracy,
        "records_by_label": {"bad": 5, "good": good},
        "text_lengths": {"128": 5 + good},
    }
    folder.finish(Manifest("train", "of-then", f"weights-{folder.uri[-6:]}", details=details))


def test_the_best_finished_seed_of_the_variant_that_labels(config):
    workdir = Workdir(config.workdir)
    with pytest.raises(UserError, match=r"variant combined.*\n.*llambert run CONFIG"):
        find_model(config, None)
    leave(workdir.model("llambert", 1), 0.99)  # of another variant
    leave(workdir.model("combined", 1), 0.90)
    leave(workdir.model("combined", 2), 0.95)
    leave(workdir.model("combined", 3), 0.97)
    workdir.model("combined", 3).unfinish()  # being trained anew: tomorrow it may be the best
    with pytest.raises(UserError, match="2 of 3 seeds"):
        find_model(config, None)
    leave(workdir.model("combined", 3), 0.94)
    leave(workdir.model("combined", 4), 0.98)  # a seed that the run has no more
    found = find_model(config, None)
    assert found.folder.uri == workdir.model("combined", 2).uri
    assert found.id == "weights-seed-2"


def test_a_combined_model_learned_from_both_its_trainings(config):
    workdir = Workdir(config.workdir)
    first = workdir.model("llambert", 1)
    leave(first, 0.8, good=15)
    for seed, accuracy in ((1, 0.9), (2, 0.8), (3, 0.7)):
        leave(workdir.model("combined", seed), accuracy, init_from=first.uri)
    assert find_model(config, None).training == Profile({"bad": 10, "good": 20}, 0.9, {"128": 30})


def test_a_named_folder_is_known_by_what_its_labels_depend_on(config, tmp_path):
    folder = Folder(str(tmp_path / "own"))
    leave(folder, 0.9)
    found = find_model(config, folder.uri)
    assert found.id == fingerprint_encoder(folder)
    before = found.version
    folder.write_bytes("model.safetensors", b"other weights")
    again = find_model(config, folder.uri)
    assert again.id != found.id and again.version != before
    told = folder.read_json("config.json")
    names = list(told["id2label"].values())[::-1]  # the labels' names were the wrong way round
    folder.write_json("config.json", {**told, "id2label": dict(zip("01", names, strict=True))})
    assert find_model(config, folder.uri).id not in (found.id, again.id)
    folder.unfinish()
    assert find_model(config, folder.uri).training is None


@pytest.mark.parametrize("name", ["special_tokens_map.json", "bpe.codes", "modeling_own.py"])
def test_a_named_folder_is_known_by_its_tokenizer_and_code_too(config, tmp_path, name):
    folder = Folder(str(tmp_path / "own"))
    leave(folder, 0.9)
    before = find_model(config, folder.uri)
    folder.write_bytes("README.md", b"told anew")
    assert find_model(config, folder.uri).id == before.id
    folder.write_bytes(name, b"{}")
    after = find_model(config, folder.uri)
    assert after.id != before.id and after.version != before.version


def test_what_is_no_model_for_the_task_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"config\.json and model\.safetensors"):
        find_model(config, str(tmp_path))
    folder = Folder(str(tmp_path / "own"))
    leave(folder, 0.9)
    config_file = Path(folder.path("config.json"))
    config_file.write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    with pytest.raises(UserError, match=r"LABEL_0.*'bad', 'good'"):
        find_model(config, folder.uri)


def test_weights_on_an_object_store_are_read_once_for_each_etag(config, s3, monkeypatch):
    folder = Folder(f"{s3}/nightly-model")
    leave(folder, 0.9)
    first = find_model(config, folder.uri)
    assert first.id == fingerprint_encoder(folder)
    monkeypatch.setattr("llambert.nightly_model.fingerprint_encoder", lambda model: "read again")
    assert find_model(config, folder.uri).id == first.id
    copy = Folder(f"{s3}/nightly-model-copy")
    leave(copy, 0.9)
    for name in encoder_files(folder):
        copy.write_bytes(name, folder.fs.cat_file(folder.path(name)))
    assert encoder_version(copy) == encoder_version(folder)  # whatever way it is reached
    assert find_model(config, copy.uri).id == "read again"  # not every store tells versions
    folder.write_bytes("model.safetensors", b"x" * len(folder.uri))  # of the same size
    assert find_model(config, folder.uri).id == "read again"


def test_local_weights_of_the_same_size_and_time_are_told_apart(config, tmp_path):
    folder = Folder(str(tmp_path / "own"))
    leave(folder, 0.9)
    weights = Path(folder.path("model.safetensors"))
    os.utime(weights, (0, 0))  # as in images that are built to be the same every time
    first = find_model(config, folder.uri)
    weights.write_bytes(b"x" * weights.stat().st_size)
    os.utime(weights, (0, 0))
    assert find_model(config, folder.uri).id != first.id
