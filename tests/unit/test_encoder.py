"""Tokenization with the real MiniLM tokenizer, and the forward pass against plain transformers."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from llambert.encoder import Labeller, load_tokenizer, local_folder, tokenize
from llambert.errors import UserError


def test_cutting_characters_first_changes_no_token(minilm):
    """Long words, runs of spaces and rare signs break the usual characters per token."""
    texts = [
        "a good film " * 500,
        " " * 60_000 + "good",
        "x" * 50_000,
        "\u4e2d" * 9000,
        "",
        "short",
    ]
    tokenizer = load_tokenizer(minilm)
    expected = tokenizer(texts, truncation=True, max_length=128)["input_ids"]
    assert [ids.tolist() for ids in tokenize(tokenizer, texts, 128)] == expected
    assert tokenize(tokenizer, [], 128) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.tiny_roberta import make_tiny_roberta

    return make_tiny_roberta(str(tmp_path_factory.mktemp("roberta")))


@pytest.mark.parametrize("batch_tokens", [0, 1, 100])
def test_predictions_are_those_of_one_text_at_a_time(folder, batch_tokens):
    import torch

    labeller = Labeller(folder, batch_tokens=batch_tokens)
    texts = ["a good film", "bad", "the plot is thin but the actors are very good " * 20, "so so"]
    found = labeller.predict(texts)
    with torch.inference_mode():
        for text, shares in zip(texts, found, strict=True):
            limit = labeller._tokenizer.model_max_length
            inputs = labeller._tokenizer(
                text, truncation=True, max_length=limit, return_tensors="pt"
            )
            alone = labeller._model(**inputs).logits.softmax(-1)[0].numpy()
            np.testing.assert_allclose(shares, alone, atol=1e-5)


def test_a_batch_keeps_ids_and_says_how_sure_it_is(folder):
    labeller = Labeller(folder, probabilities=True)
    table = labeller(pa.table({"id": [7, 8], "text": ["good", "bad"], "other": [1, 2]}))
    assert table.column_names == ["id", "label", "confidence", "probabilities"]
    assert table["id"].to_pylist() == [7, 8]
    for row in table.to_pylist():
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["confidence"] == max(row["probabilities"])


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A folder on a file system that is not the machine's, and an empty place for copies."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fs = fsspec.filesystem("memory")
    fs.pipe({"/bucket/model/config.json": b"{}", "/bucket/model/model.safetensors": b"1234"})
    yield fs
    fs.rm("/bucket", recursive=True)


def test_a_machine_keeps_one_copy_of_a_remote_model(store, tmp_path):
    target = local_folder("memory://bucket/model")
    cache = Path(target).parent
    assert sorted(os.listdir(target)) == ["config.json", "model.safetensors"]
    assert Path(target, "model.safetensors").read_bytes() == b"1234"
    assert list(cache.parent.iterdir()) == [cache] and cache.parent == tmp_path
    assert list(cache.iterdir()) == [Path(target)]  # no half copy is left
    written = os.stat(f"{target}/config.json").st_mtime_ns
    assert local_folder("memory://bucket/model") == target
    assert os.stat(f"{target}/config.json").st_mtime_ns == written


def test_a_changed_remote_model_is_another_copy(store):
    first = local_folder("memory://bucket/model")
    store.pipe("/bucket/model/model.safetensors", b"12345")
    second = local_folder("memory://bucket/model")
    assert Path(first, "model.safetensors").read_bytes() == b"1234"
    assert Path(second, "model.safetensors").read_bytes() == b"12345"


def test_a_copy_that_failed_leaves_nothing_and_is_made_again(store, monkeypatch, tmp_path):
    def broken(*args):
        raise ConnectionError("the store went away")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "get_file", broken)
        with pytest.raises(ConnectionError):
            local_folder("memory://bucket/model")
    (cache,) = tmp_path.iterdir()
    assert list(cache.iterdir()) == []
    assert os.listdir(local_folder("memory://bucket/model"))


def test_a_local_model_is_used_in_place_and_a_missing_one_refused(store, tmp_path):
    assert local_folder(str(tmp_path)) == str(tmp_path)
    assert local_folder("owner/name") == "owner/name"
    with pytest.raises(UserError, match="memory://bucket/none"):
        local_folder("memory://bucket/none")


OWN_CODE = """
from transformers import RobertaConfig, RobertaForSequenceClassification

class OwnConfig(RobertaConfig):
    model_type = "own"

class OwnClassifier(RobertaForSequenceClassification):
    config_class = OwnConfig
"""


def test_a_model_with_its_own_code_loads_only_where_that_is_allowed(folder, tmp_path, monkeypatch):
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    (own / "modeling_own.py").write_text(OWN_CODE)
    config = json.loads((own / "config.json").read_text()) | {
        "model_type": "own",
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForSequenceClassification": "modeling_own.OwnClassifier",
        },
    }
    (own / "config.json").write_text(json.dumps(config))
    labeller = Labeller(str(own), trust_remote_code=True)
    assert type(labeller._model).__name__ == "OwnClassifier"
    with pytest.raises(ValueError, match="trust_remote_code"):
        Labeller(str(own))
