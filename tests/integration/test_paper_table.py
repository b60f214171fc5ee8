"""What the paper's table refuses before it pays."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from imdb_splits import split
from paper_runs import check_apart

from llambert.config import load
from tests.tiny_roberta import easy_records, make_tiny_roberta

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Parts of 100 records each, the LLM's answers to them, and an encoder."""
    records = easy_records(300)
    labels = records["label"]
    columns = {"id": records["id"], "text": records["text"], "gold": labels, "llama2_70b": labels}
    pq.write_table(pa.table(columns), tmp_path / "all.parquet")
    split(str(tmp_path / "all.parquet"), str(tmp_path / "imdb"), train=100, extra=100, test=100)
    monkeypatch.setenv("IMDB", str(tmp_path / "imdb"))
    monkeypatch.setenv("LLAMBERT_ENCODER", make_tiny_roberta(tmp_path / "encoder"))
    return tmp_path


def test_ids_in_common_are_refused_before_the_llm_is_asked(joined, data):
    shared = pq.read_table(data / "imdb/train.parquet").slice(0, 3).select(["id", "text"])
    extra = data / "imdb/extra.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(extra), shared]), extra)
    place = data / "table"
    with pytest.raises(SystemExit, match=f"3 ids in common, '{min(shared['id'].to_pylist())}'"):
        check_apart(load(str(BENCHMARKS / "imdb.yaml"), []), str(place))
    assert not (place / "extra/annotations").exists()
