"""What the settings of labelling ask of the actors that run the encoder."""

import inspect

import pytest

from llambert import cluster, label
from llambert.classify import label_rows
from llambert.cluster import Workers
from llambert.label import LabelConfig, _block_bytes, required_resources
from llambert.storage import Folder


def test_the_actors_are_those_that_the_run_file_asks_for():
    """Evaluate runs the encoder by the same settings, for the same reasons of memory and kind."""
    asked = {"workers": (1, 2), "cpus_per_worker": 3, "accelerator_type": "L40S"}
    actors = LabelConfig(**asked, dtype="float16", batch_tokens=512).actors()
    assert actors == {**asked, "dtype": "float16", "batch_tokens": 512}
    inspect.signature(label_rows).bind("rows", "model", "counter", **actors)
    assert LabelConfig().actors()["batch_tokens"] == 0  # found out on the device


def test_what_the_actors_hold():
    config = LabelConfig(workers=[2, 8], accelerator_type="L40S")
    kind = {"accelerator_type:L40S": 0.001}
    assert required_resources(config, {"CPU": 64, "GPU": 8}) == Workers(2, {"GPU": 1} | kind)
    assert required_resources(LabelConfig(cpus_per_worker=64), {"CPU": 2}) == Workers(
        1, {"CPU": 64}
    )
    assert required_resources(LabelConfig(), {"CPU": 2}) == Workers(1, {"CPU": 1})


@pytest.mark.parametrize(
    ("corpus", "actors", "blocks"),
    [
        (2**13, 1, 1),
        (2**18, 1, 8),  # small ones, so that a crash repeats little of a small corpus
        (2**21, 2, 16),
        (2**23, 2, 64),
        (2**26, 2, 64),
        (2**26, 64, 512),  # so that as many actors have something to do
        (2**30, 2, 256),  # of the largest size
    ],
)
def test_how_many_blocks_a_corpus_becomes(monkeypatch, corpus, actors, blocks):
    monkeypatch.setattr(cluster, "resources", lambda: {"CPU": actors})
    assert max(1, corpus // _block_bytes(corpus, actors)) == blocks


def test_a_run_goes_on_in_the_precision_that_it_began_with(monkeypatch, tmp_path):
    folder, config = Folder(str(tmp_path / "labels")), LabelConfig()
    monkeypatch.setattr(cluster, "gpus", lambda: 0)
    monkeypatch.setattr(cluster, "cpus_have", lambda *features: True)
    assert label._begin(config, "run", folder) == "bfloat16"
    folder.write_json("rows.json", [])
    (folder / label.CHECKPOINT).write_json("ids.json", [])
    monkeypatch.setattr(cluster, "cpus_have", lambda *features: False)
    warned = []
    monkeypatch.setattr(label.log, "warning", lambda text, *values: warned.append(text % values))
    assert label._begin(config, "run", folder) == "bfloat16"
    assert folder.exists("rows.json") and "label.dtype=float32 begins anew" in warned[0]
    assert label._begin(config, "another run", folder) == "float32"
    assert not folder.exists("rows.json")


def test_labels_that_lost_their_checkpoint_are_made_anew(tmp_path):
    folder = Folder(str(tmp_path / "labels"))
    label._begin(LabelConfig(dtype="float32"), "run", folder)
    folder.write_json("rows.json", [])
    label._begin(LabelConfig(dtype="float32"), "run", folder)
    assert not folder.exists("rows.json")
