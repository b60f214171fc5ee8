"""Which night `--publish` means; the nights themselves are tested on Ray."""

from pathlib import Path

import pytest

from llambert.config import RunConfig
from llambert.errors import UserError
from llambert.nightly import PUBLISHED, publish
from llambert.storage import Folder, Manifest
from llambert.workdir import Workdir


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "films",
            "workdir": str(tmp_path / "out"),
            "task": {"labels": {"bad": [], "good": []}, "prompt": "Good? {text}"},
            "corpus": {"path": str(tmp_path / "corpus")},
            "sample": {"size": 10},
            "annotate": {"engine": "recorded", "recorded": {"path": "answers.parquet"}},
            "train": {},
        }
    )


def leave(config: RunConfig, model: str, number: int, published: bool = False) -> Folder:
    """What a finished night leaves, labels aside."""
    folder = Workdir(config.workdir).nightly(model) / f"night-{number:04d}"
    folder.finish(Manifest("nightly", "f", "o"))
    if published:
        folder.write_bytes(PUBLISHED, b"")
    return folder


def test_the_night_of_a_model_that_is_trained_no_more(config):
    leave(config, "old", 1, published=True)
    held = leave(config, "old", 2)
    leave(config, "new", 1)
    leave(config, "new", 2, published=True)
    assert publish(config, "2").uri == held.uri
    assert held.exists(PUBLISHED)


def test_a_night_that_several_models_hold_back_is_not_guessed(config):
    leave(config, "old", 2)
    new = leave(config, "new", 2)
    with pytest.raises(UserError, match=r"2 models have a night 2: new, old\n.*new/2"):
        publish(config, "2")
    assert publish(config, "new/2").uri == new.uri
    assert publish(config, "2").uri != new.uri  # the one that is left


def test_once_more_changes_nothing(config):
    night = leave(config, "old", 3)
    assert publish(config, "3").uri == publish(config, "3").uri == night.uri


@pytest.mark.parametrize(
    ("night", "says"),
    [
        ("1", "no finished night 1"),  # begun, but without a manifest
        ("9", "no finished night 9"),
        ("new/2", "no finished night 2"),
        ("../2/2", "names no night"),
        ("two", "names no night"),
    ],
)
def test_what_is_no_night(config, night, says):
    leave(config, "old", 1).unfinish()
    leave(config, "old", 2)
    with pytest.raises(UserError, match=says):
        publish(config, night)
