"""What the demo lays out, without running it, and what it says of a run."""

import json
import shutil
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llambert.config import load
from llambert.demo import reviews
from llambert.demo.demo import MODELS, lay_out
from llambert.errors import UserError

ROOT = Path(__file__).parents[2]
CARD = ["## Made by", "## Data", "## Quality", "## Limits", "## Licence"]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_everything_is_laid_out_once(tmp_path):
    run_file = lay_out(str(tmp_path / "demo"), 300)
    config = load(str(run_file))
    assert config.sample.size == 150
    for model in (config.annotate.model, config.train.model):
        assert (Path(model) / "config.json").exists()
    assert pq.read_table(config.corpus.paths[0]).num_rows == 300
    run_file.write_text(run_file.read_text() + "# a change of the user's own\n")
    before = contents(tmp_path / "demo")
    assert lay_out(str(tmp_path / "demo"), 300) == run_file
    assert contents(tmp_path / "demo") == before


def test_another_size_is_another_corpus_but_never_another_run_file_unasked(tmp_path):
    lay_out(str(tmp_path), 300)
    config = load(str(lay_out(str(tmp_path), 4000)))
    assert config.sample.size == 1000
    assert pq.read_table(config.corpus.paths[0]).num_rows == 4000
    run_file = tmp_path / "run.yaml"
    run_file.write_text(run_file.read_text().replace("epochs: 4", "epochs: 9"))
    with pytest.raises(UserError, match="has been changed"):
        lay_out(str(tmp_path), 300)
    assert load(str(run_file)).train.epochs == 9
    assert pq.read_table(config.corpus.paths[0]).num_rows == 4000


def test_what_was_half_laid_out_is_laid_out_again(tmp_path, monkeypatch):
    def cut_off(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reviews, "write_gold", cut_off)
        with pytest.raises(KeyboardInterrupt):
            lay_out(str(tmp_path), 300)
    assert (tmp_path / "input" / "reviews").exists() and not (tmp_path / "run.yaml").exists()
    config = load(str(lay_out(str(tmp_path), 300)))
    assert pq.read_table(config.gold.train).num_rows == 2500


@pytest.mark.parametrize("place", ["file/demo", "s3://bucket/demo"])
def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot lay out|not on this machine") as caught:
        lay_out(place, 300)
    assert "--dir" in caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("model", "most"), [("mini-llama", 8e6), ("mini-roberta", 12e6)])
def test_the_models_are_small_and_state_what_they_are(model, most):
    folder = files("llambert.demo") / model
    assert sum(len(each.read_bytes()) for each in folder.iterdir()) < most
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    card = (folder / "README.md").read_text()
    assert [line for line in card.splitlines() if line.startswith("## ")] == CARD


def test_a_wheel_has_all_that_the_demo_and_the_report_need(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "llambert", tmp_path / "llambert")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {"llambert/report.html", "llambert/report.css"} <= packed
    for folder in ("", *MODELS):
        here = Path(str(files("llambert.demo") / folder))
        shipped = [path for path in here.iterdir() if path.is_file()]
        assert {
            f"llambert/demo/{path.relative_to(here.parent if folder else here)}" for path in shipped
        } <= packed
