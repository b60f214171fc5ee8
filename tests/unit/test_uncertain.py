"""The least certain rows of label files, against a sort of all of them."""

import random

import pyarrow as pa
import pytest

from llambert import uncertain
from llambert.errors import CountError
from llambert.schema import LABEL, with_id_type
from llambert.storage import Folder
from llambert.uncertain import check_found, least_certain


def written(tmp_path, ids: pa.Array, confidences: list[float], files: int = 3) -> Folder:
    """Labels in several files, in no order; every other one 'by' the LLM."""
    folder = Folder(str(tmp_path / "labels"))
    schema = with_id_type(LABEL, ids.type)
    columns = [ids, pa.array(["x"] * len(ids)), pa.array(confidences, pa.float32())]
    table = pa.table(columns, schema=schema)
    by = [("encoder", "llm")[row % 2] for row in range(len(ids))]
    table = table.append_column("by", pa.array(by))
    order = list(range(len(ids)))
    random.Random(1).shuffle(order)
    for file in range(files):
        folder.write_table(f"{file}.parquet", table.take(order[file::files]))
    folder.write_json("manifest.json", {})
    return folder


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_the_least_certain_come_first_and_ties_go_by_id(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(uncertain, "_ROWS", 10)  # so that the rows are cut back many times
    rng = random.Random(0)
    ids = pa.array(range(500), pa.int64()).cast(kind)
    confidences = [rng.choice([0.5, 0.6, 0.7, 0.8]) for _ in range(500)]
    folder = written(tmp_path, ids, confidences)
    order = sorted(zip(confidences, ids.to_pylist(), strict=True))
    before: list = []
    for size in (1, 7, 40, 260, 499, 500, 900):
        least = least_certain(folder, size)
        found = least["id"].to_pylist()
        assert found == [id for _, id in order[:size]]
        assert found[: len(before)] == before
        assert least.schema.names == ["id", "label", "confidence"]
        assert least.schema.field("id").type == kind
        before = found


def test_only_the_rows_that_one_of_the_two_decided(tmp_path):
    ids = pa.array([f"r{i}" for i in range(6)])
    folder = written(tmp_path, ids, [0.9, 0.5, 0.7, 0.6, 0.8, 0.4])
    assert least_certain(folder, 2, by="encoder")["id"].to_pylist() == ["r2", "r4"]
    assert least_certain(folder, 9, by="llm")["id"].to_pylist() == ["r5", "r1", "r3"]
    assert least_certain(folder, 9, by="nobody").num_rows == 0


def test_an_empty_folder_is_not_taken_for_certainty(tmp_path):
    with pytest.raises(CountError, match="no labels"):
        least_certain(Folder(str(tmp_path)), 5)


def test_a_labelled_record_without_a_text_is_told(tmp_path):
    check_found(["a"], {"a": "text"})
    with pytest.raises(CountError, match="2 labelled records"):
        check_found(["a", "b", "c"], {"a": "text"})
