"""What the demo lays out, without running it."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llambert.config import load
from llambert.demo.demo import LEAST_RECORDS, MODELS, lay_out
from llambert.errors import UserError

MODEL_BYTES = 20e6  # both models together, in the repository for ever


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_everything_is_laid_out_once(tmp_path):
    run_file = lay_out(tmp_path / "demo", 300)
    config = load(str(run_file))
    assert config.sample.size == 150
    for model in (config.annotate.model, config.train.model):
        assert (Path(model) / "config.json").exists()
    assert pq.read_table(config.corpus.paths[0]).num_rows == 300
    run_file.write_text(run_file.read_text() + "# a change of the user's own\n")
    before = contents(tmp_path / "demo")
    assert lay_out(tmp_path / "demo", 300) == run_file
    assert contents(tmp_path / "demo") == before


def test_another_size_is_another_corpus(tmp_path):
    lay_out(tmp_path, 300)
    config = load(str(lay_out(tmp_path, 4000)))
    assert config.sample.size == 1000
    assert pq.read_table(config.corpus.paths[0]).num_rows == 4000


def test_what_was_half_laid_out_is_laid_out_again(tmp_path):
    run_file = lay_out(tmp_path / "demo", 300)
    whole = contents(tmp_path / "demo")
    (tmp_path / "demo" / "input" / "gold.parquet").write_bytes(b"half")
    run_file.unlink()
    lay_out(tmp_path / "demo", 300)
    assert contents(tmp_path / "demo") == whole


def test_too_few_records(tmp_path):
    with pytest.raises(UserError, match="too few"):
        lay_out(tmp_path, LEAST_RECORDS - 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", MODELS)
def test_the_models_are_small_and_state_what_they_are(model):
    folder = Path(__file__).parents[2] / "llambert" / "demo" / model
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert sum(sizes) < MODEL_BYTES / len(MODELS)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    card = (folder / "README.md").read_text()
    for heading in ("## Data", "## Quality", "## Limits", "## Licence", "## Made by"):
        assert heading in card
