"""Tokenization with the real MiniLM tokenizer; a machine's copies of remote models."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import fsspec
import pytest
from transformers import AutoTokenizer

import llambert.demo
from llambert.encoder import (
    _tokenizer_class,
    freeze,
    load_classifier,
    load_tokenizer,
    local_folder,
    longest_text,
    tokenize,
)
from llambert.errors import UserError
from tests.tiny_roberta import make_tiny_roberta


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


def test_a_text_of_next_to_no_tokens_is_not_read_to_its_end(minilm):
    tokenizer = load_tokenizer(minilm)
    blank, good = (tokenizer(text)["input_ids"] for text in ("", "good"))
    texts = [" " * 82_000 + "good", " " * 81_000 + "good", "x" * 30_000_000]
    found = [ids.tolist() for ids in tokenize(tokenizer, texts, 128)]
    assert found[:2] == [blank, good]  # 128 tokens of 640 characters are 81,920
    assert found[2] == tokenizer("x" * 81_920)["input_ids"]


def test_a_head_for_another_number_of_labels_is_refused(tmp_path):
    three = str(tmp_path / "three")
    load_classifier(make_tiny_roberta(tmp_path / "bare"), ["a", "b", "c"]).save_pretrained(three)
    assert load_classifier(three).num_labels == 3
    assert load_classifier(three, ["x", "y", "z"]).config.id2label[2] == "z"
    with pytest.raises(UserError, match=r"2 labels: .*classifier\.out_proj\.bias"):
        load_classifier(three, ["no", "yes"])


def test_a_frozen_encoder_leaves_the_head_to_be_trained(minilm, tmp_path):
    def trained(model: str) -> set[str]:
        classifier = load_classifier(model, ["no", "yes"])
        freeze(classifier)
        return {name for name, p in classifier.named_parameters() if p.requires_grad}

    both = ("weight", "bias")
    bert = {f"{layer}.{kind}" for layer in ("bert.pooler.dense", "classifier") for kind in both}
    assert trained(minilm) == bert
    layers = ("classifier.dense", "classifier.out_proj")
    roberta = {f"{layer}.{kind}" for layer in layers for kind in both}
    assert trained(make_tiny_roberta(tmp_path)) == roberta


def test_a_tokenizer_of_a_plain_class_is_autotokenizer_s(minilm, tmp_path):
    """It is loaded without AutoTokenizer, which is slow to import."""
    demo = Path(llambert.demo.__path__[0])
    texts = ["A <film> of “wörds”, naïve; 漢字 " * 3, "<s> </s> <|user|> [CLS]", ""]
    roberta = make_tiny_roberta(tmp_path)
    for folder in (str(demo / "mini-llama"), str(demo / "mini-roberta"), minilm, roberta):
        ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        assert type(ours) is type(theirs)
        assert ours(texts) == theirs(texts)
        for name in ("model_max_length", "pad_token_id", "all_special_ids", "chat_template"):
            assert getattr(ours, name) == getattr(theirs, name)


def test_what_a_tokenizer_was_trained_for_is_its_longest_text(minilm, tmp_path):
    model = shutil.copytree(minilm, tmp_path / "model")
    tokenizer = load_tokenizer(minilm)
    tokenizer.model_max_length = 64
    assert longest_text(str(model), tokenizer) == 64
    tokenizer.model_max_length = 10**30  # no limit; the model has 512 positions
    assert longest_text(str(model), tokenizer) == 512
    (model / "manifest.json").write_text('{"name": "of another program"}')
    assert longest_text(str(model), tokenizer) == 512


@pytest.mark.parametrize("kind", ["xlm-roberta", "qwen2"])
def test_a_tokenizer_of_another_kind_is_left_to_autotokenizer(tmp_path, kind):
    folder = make_tiny_roberta(tmp_path)
    for name, key, value in (
        ("config.json", "model_type", kind),
        ("tokenizer_config.json", "tokenizer_class", "TokenizersBackend"),
    ):
        file = tmp_path / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert _tokenizer_class(folder) is None


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
