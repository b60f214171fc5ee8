"""What the LLM is asked of sample and gold, and whose its answers are."""

import pyarrow as pa
import pytest

from llambert.asked import Asked
from llambert.gold import Gold
from llambert.schema import ANNOTATION, GOLD, QUARANTINE, SAMPLE
from llambert.storage import Folder

SAMPLED = [("5", "dull"), ("6", "great"), ("7", "odd")]


def gold(*rows) -> pa.Table:
    """(id, text, label)"""
    names = GOLD.names
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=GOLD)


@pytest.fixture
def asked(tmp_path) -> Asked:
    """Gold whose ids the sample has: 5 for another text, 6 for the same; x for a sampled text."""
    sample, annotator = Folder(str(tmp_path / "sample")), Folder(str(tmp_path / "annotator"))
    rows = [{"id": key, "text": text} for key, text in SAMPLED]
    sample.write_table("sample.parquet", pa.Table.from_pylist(rows, schema=SAMPLE))
    test = gold(("5", "fine", "pos"), ("6", "great", "pos"), ("x", "odd", "neg"), ("9", "q", "neg"))
    return Asked(sample, annotator, Gold(gold(), test, QUARANTINE.empty_table()), most=10)


def test_ids_are_unique_and_no_text_is_asked_twice(asked):
    records = [tuple(row.values()) for row in asked.records().to_pylist()]
    assert records[:3] == SAMPLED
    assert sorted(records[3:]) == [("9", "q"), ("gold:5", "fine")]


def test_of_records_with_one_text_one_is_asked_and_measured(tmp_path):
    sample, annotator = Folder(str(tmp_path / "sample")), Folder(str(tmp_path / "annotator"))
    rows = [{"id": key, "text": "twin"} for key in ("1", "2")]
    sample.write_table("sample.parquet", pa.Table.from_pylist(rows, schema=SAMPLE))
    test = gold(*[(key, text, "pos") for key, text in [("a", "two"), ("b", "two"), ("c", "twin")]])
    asked = Asked(sample, annotator, Gold(gold(), test, QUARANTINE.empty_table()), most=10)
    texts = asked.records()["text"].to_pylist()
    assert texts == ["twin", "twin", "two"]  # of the corpus every record is asked
    said = [{"id": id, "label": "pos"} for id in asked.records()["id"].to_pylist()]
    annotator.write_table("annotations.parquet", pa.Table.from_pylist(said, schema=ANNOTATION))
    assert sorted(asked.annotated_gold()["text"].to_pylist()) == ["twin", "two"]


def test_answers_find_their_gold_record_by_its_text(asked):
    answers = [
        {"id": row["id"], "label": "pos" if row["text"] == "fine" else "neg"}
        for row in asked.records().to_pylist()
    ]
    table = pa.Table.from_pylist(answers, schema=ANNOTATION)
    asked.annotator.write_table("annotations.parquet", table)
    rows = asked.annotated_gold().to_pylist()
    assert [(row["id"], row["text"], row["gold"], row["label"]) for row in rows] == [
        ("5", "fine", "pos", "pos"),
        ("6", "great", "pos", "neg"),
        ("9", "q", "neg", "neg"),
        ("x", "odd", "neg", "neg"),
    ]
