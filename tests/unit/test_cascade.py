"""Who decides which record, and what that does to accuracy; the stage itself is tested on Ray."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from llambert import cascade
from llambert.asked import LABELLED_GOLD, GoldTest
from llambert.schema import ANNOTATION, SAMPLE


def answers(rows: list[tuple[str, str | None, int]]) -> pa.Table:
    """Annotations: id, label, prompt tokens."""
    columns = {name: pa.nulls(len(rows), ANNOTATION.field(name).type) for name in ANNOTATION.names}
    for place, name in enumerate(["id", "label", "prompt_tokens"]):
        columns[name] = pa.array([row[place] for row in rows], ANNOTATION.field(name).type)
    return pa.table(columns, schema=ANNOTATION)


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_a_rejected_answer_decides_nothing(kind):
    least = pa.table({"id": pa.array([7, 8, 9]).cast(kind), "label": ["good", "good", "bad"]})
    came = answers([("7", "bad", 1), ("9", "bad", 1), ("8", None, 1), ("gold:7", "good", 1)])
    decided = cascade._decided(least, came)
    assert decided.schema.field("id").type == kind
    assert [str(id) for id in decided["id"].to_pylist()] == ["7", "9"]
    assert decided["label"].to_pylist() == ["bad", "bad"]
    assert pc.sum(decided["changed"]).as_py() == 1


def test_a_gold_record_is_asked_under_an_id_of_its_own():
    texts = {"1": "one", "2": "two", "3": "three", "g5": "five"}
    unknown = [
        {"id": "2", "text": "another"},  # the corpus has this id, asked or not
        {"id": "3", "text": "other"},
        {"id": "g4", "text": "one"},  # a text that is asked already
        {"id": "g5", "text": "five"},  # a record of the corpus
        {"id": "g6", "text": "other"},
    ]
    for ids in (["1"], ["1", "2"]):  # with a larger share the names stay
        records, names = cascade._request(ids, unknown, texts)
        assert records.to_pylist() == [
            *({"id": id, "text": texts[id]} for id in ids),
            {"id": "gold:2", "text": "another"},
            {"id": "gold:3", "text": "other"},
            {"id": "g5", "text": "five"},
        ]
        assert names == {"2": "gold:2", "3": "gold:3", "g4": "1", "g5": "g5", "g6": "gold:3"}


@pytest.mark.parametrize(
    ("most", "known", "measured"),
    [
        (9, {}, "abcdef"),
        (2, {}, "abcd"),  # e is the third that would have to be asked
        (2, {"b": None}, "abcdef"),
        (1, {"b": "good", "c": "good"}, "abcdef"),
        (0, {}, ""),
        (0, {"b": "good", "c": "good", "e": "bad"}, "abcdef"),
    ],
)
def test_no_more_gold_records_are_asked_than_allowed(most, known, measured):
    confidences = [0.9, 0.5, 0.6, 0.8, 0.7, 0.9]  # b, c and e are doubted
    table = pa.table({"id": list("abcdef"), "confidence": pa.array(confidences, pa.float32())})
    gold = GoldTest(table, known, most)
    found = cascade._measured(gold, pa.scalar(0.7, pa.float32()))
    assert "".join(found["id"].to_pylist()) == measured
    empty = GoldTest(LABELLED_GOLD.empty_table(), {}, 0)
    assert cascade._measured(empty, pa.scalar(0.7, pa.float32())).num_rows == 0


def test_accuracy_with_and_without_the_llm():
    predictions = pa.table(
        {
            "id": ["a", "b", "c", "d", "e"],
            "gold": ["good", "good", "bad", "bad", "good"],
            "label": ["bad", "bad", "bad", "bad", "good"],
        }
    )
    doubted = predictions.slice(0, 4)
    # e was annotated with the sample, and is none of those that the cascade would ask about
    said = {"a": "good", "b": None, "c": "good", "d": "bad", "e": "bad"}
    figures = cascade._accuracies(predictions, doubted, said)
    assert figures is not None
    assert {name: figures[name] for name in ("records", "asked", "answered", "changed")} == {
        "records": 5,
        "asked": 4,
        "answered": 3,
        "changed": 2,
    }
    assert (figures["mended"], figures["spoilt"], figures["p_value"]) == (1, 1, 1.0)
    assert figures["encoder"]["accuracy"] == figures["cascade"]["accuracy"] == 3 / 5
    none = LABELLED_GOLD.empty_table()
    assert cascade._accuracies(none, none, {}) is None


def test_what_the_sample_has_paid_costs_nothing_more():
    rows = {"id": ["a", "b", "7"], "text": ["ta", "tb", "of the corpus"]}
    records = pa.table(rows, schema=SAMPLE)
    before = pa.table({"id": ["a", "7"], "text": ["ta", "of gold"]}, schema=SAMPLE)
    came = answers([("a", "good", 100), ("b", None, 10), ("7", "bad", 1)])
    cost = cascade._cost({"asked": 2, "seconds": 3.0, "failed": 0}, records, came, before)
    expected = {"answers": 2, "prompt_tokens": 11, "output_tokens": 0}
    assert cost == expected | {"asked": 2, "seconds": 3.0}
