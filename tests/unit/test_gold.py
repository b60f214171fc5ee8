"""Gold labels: aliases, refusals, and a test set that training never sees."""

import json

import pytest

from llambert.errors import UserError
from llambert.gold import GoldConfig, check_not_empty, load_gold
from llambert.schema import GOLD, REFUSALS
from llambert.task import TaskConfig

TASK = TaskConfig(labels={"no": ["neg"], "yes": ["pos"]}, prompt="{text}?")


@pytest.fixture
def write(tmp_path):
    def write_gold(name: str, rows: list[dict]) -> str:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_gold


def _rows(count: int, start: int = 0) -> list[dict]:
    return [
        {"id": f"r{i}", "text": f"text {i}", "label": "yes" if i % 2 else "no"}
        for i in range(start, start + count)
    ]


def test_labels_may_be_aliases_and_unknown_ones_are_counted(write):
    rows = [
        {"id": "a", "text": "one", "label": "Pos."},
        {"id": "b", "text": "two", "label": "maybe"},
        {"id": "c", "text": "", "label": "no"},
        {"id": "d", "text": "four", "label": None},
    ]
    gold = load_gold(GoldConfig(train=write("train", rows), id="id"), TASK)
    assert gold.train.to_pylist() == [{"id": "a", "text": "one", "label": "yes"}]
    assert gold.test.num_rows == 0
    assert gold.refusals() == {"empty_text": 1, "unknown_label": 2}
    assert REFUSALS.keys() >= {*gold.refusals(), "in_test"}  # the report tells their meanings
    refused = {row["id"]: row for row in gold.refused.to_pylist()}
    assert refused["b"]["detail"] == "the label is 'maybe'" and refused["b"]["row"] == 1
    assert refused["c"]["source"].endswith("train.jsonl")


def test_a_share_is_held_back_by_id_alone(write):
    few = load_gold(GoldConfig(train=write("few", _rows(500)), id="id", test_share=0.2), TASK)
    many = load_gold(GoldConfig(train=write("many", _rows(1000)), id="id", test_share=0.2), TASK)
    assert 60 < few.test.num_rows < 140
    assert few.test.num_rows + few.train.num_rows == 500
    assert set(few.test["id"].to_pylist()) <= set(many.test["id"].to_pylist())


def test_no_text_of_the_test_set_is_trained_on(write):
    train = [*_rows(4), {"id": "copy", "text": "text 9", "label": "no"}]
    config = GoldConfig(train=write("train", train), test=write("test", _rows(1, start=9)), id="id")
    gold = load_gold(config, TASK)
    assert gold.train["id"].to_pylist() == ["r0", "r1", "r2", "r3"]
    assert gold.refusals() == {"in_test": 1}
    (twin,) = gold.refused.to_pylist()
    assert (twin["id"], twin["row"], twin["source"]) == ("copy", 4, config.train)
    assert gold.train.schema == gold.test.schema == GOLD


@pytest.mark.parametrize("key", ["id", None])
def test_ids_that_are_the_same_by_chance_cost_no_record(tmp_path, key):
    """Two splits that number their records from 0, or whose files bear the same name."""
    for split, word in (("train", "one"), ("test", "two")):
        (tmp_path / split).mkdir()
        rows = [{"id": i, "text": f"{word} {i}", "label": "no"} for i in range(5)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / split / "data.jsonl").write_text(text)
    places = {split: str(tmp_path / split / "data.jsonl") for split in ("train", "test")}
    gold = load_gold(GoldConfig(**places, id=key), TASK)
    assert (gold.train.num_rows, gold.test.num_rows) == (5, 5)


def test_no_gold_at_all():
    gold = load_gold(None, TASK)
    assert (gold.train.num_rows, gold.test.num_rows, gold.refusals()) == (0, 0, {})


def test_a_gold_set_without_a_usable_record_is_refused_before_anything_is_paid(write):
    rows = [{"id": str(i), "text": f"text {i}", "label": i % 2} for i in range(10)]
    config = GoldConfig(train=write("train", rows), id="id")
    with pytest.raises(UserError, match="no usable record") as caught:
        check_not_empty(config, TASK, load_gold(config, TASK))
    told = str(caught.value)
    assert "unknown_label" in told and "the label is '0'" in told and "'yes'" in told


def test_a_missing_label_column_is_named_before_anything_starts(write):
    config = GoldConfig(train=write("train", [{"id": "a", "text": "b", "stars": 3}]), id="id")
    with pytest.raises(UserError, match="label") as caught:
        load_gold(config, TASK)
    assert "stars" in str(caught.value)


@pytest.mark.parametrize(
    "fields", [{}, {"train": "a", "test": "b", "test_share": 0.1}, {"test": "b", "test_share": 0.1}]
)
def test_one_way_to_a_test_set(fields):
    with pytest.raises(ValueError, match=r"given|share"):
        GoldConfig(**fields)
