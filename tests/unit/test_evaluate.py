"""What evaluating leaves behind."""

import pyarrow as pa

from llambert.asked import ANNOTATED_GOLD
from llambert.evaluate import (
    EvaluateConfig,
    Trained,
    _agreement,
    _compare,
    _missed,
    _mistakes,
    evaluate,
)
from llambert.interval import wilson_interval
from llambert.label import LabelConfig
from llambert.progress import Progress
from llambert.schema import GOLD
from llambert.storage import Folder

TABLE = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "gold": ["no", "no", "yes", "yes"],
        "label": ["no", "yes", "yes", "yes"],
        "confidence": pa.array([0.95, 0.65, 0.95, 0.55], pa.float32()),
    }
)


def test_the_surest_mistakes_come_with_their_text():
    gold = pa.table(
        {"id": ["a", "b", "c", "d"], "text": list("wxyz"), "label": ["no", "no", "yes", "yes"]}
    )
    (row,) = _mistakes(TABLE, gold, Trained("llambert", 1, ""), 5).to_pylist()
    assert (row["id"], row["text"], row["gold"], row["label"]) == ("b", "x", "no", "yes")
    assert _mistakes(TABLE, gold, Trained("llambert", 1, ""), 0).num_rows == 0


def test_without_gold_there_are_no_mistakes_and_nothing_of_an_earlier_evaluation(tmp_path):
    folder = Folder(str(tmp_path))
    (folder / "predictions").write_table("combined-seed-1.parquet", TABLE)
    folder.write_table("errors.parquet", TABLE)
    none = GOLD.empty_table()
    outcome = evaluate(
        EvaluateConfig(),
        ["no", "yes"],
        none,
        none.rename_columns(["id", "text", "gold"]).append_column("label", none["label"]),
        [Trained("llambert", 1, "/no/model")],
        folder,
        Progress("evaluate", quiet=True),
        LabelConfig().actors(),
    )
    assert outcome.counts == {"in": 0, "out": 0, "dropped": {}}
    assert folder.read_json("metrics.json") == {"gold_records": 0}
    assert outcome.details == {"gold_records": 0, "warnings": []}
    assert folder.files() == ["errors.parquet", "metrics.json"]
    assert folder.folders() == []
    errors = folder.read_table("errors.parquet")
    mistakes = _mistakes(
        TABLE,
        pa.table({"id": ["b"], "text": ["x"], "label": ["no"]}, schema=GOLD),
        Trained("llambert", 1, ""),
        5,
    )
    assert errors.num_rows == 0
    assert errors.schema == mistakes.schema


def test_a_label_that_is_found_less_often_than_by_guessing_is_told():
    labels = {
        "no": {"recall": 0.13, "records": 1000},
        "yes": {"recall": 0.98, "records": 1000},
        "few": {"recall": 0.2, "records": 5},  # which may be chance
        "none": {"recall": 0.0, "records": 0},
    }
    (told,) = _missed({"combined": {7: {"labels": labels}}})
    assert told.startswith("combined, seed 7, finds 130 of 1,000 gold records with label 'no', ")
    assert "by guessing" in told and "train.epochs" in told


def test_encoder_and_llm_agree_where_both_gave_a_label():
    said = [("a", "yes"), ("b", "yes"), ("d", "yes"), ("c", None), ("train:c", "no")]
    rows = [{"id": i, "text": "", "gold": "no", "label": label} for i, label in said]
    annotated = pa.Table.from_pylist(rows, schema=ANNOTATED_GOLD)
    found = _agreement(TABLE, annotated)  # gold says nothing: of a, b and d the encoder has b and d
    interval = wilson_interval(2, 3)
    assert found == {"records": 3, "agreement": 2 / 3, "agreement_interval": interval}
    assert _agreement(TABLE, annotated.slice(3)) is None
    assert _agreement(TABLE, annotated.slice(0, 0)) is None


def test_every_two_variants_of_a_seed_are_compared_and_each_with_the_llm():
    right = {"a": True, "b": False}
    found = _compare({1: {"llambert": right, "combined": right}, 2: {"llambert": right}}, right)
    assert [(each["seed"], each["first"], each["second"]) for each in found] == [
        (1, "llambert", "combined"),
        (1, "llambert", "llm"),
        (1, "combined", "llm"),
        (2, "llambert", "llm"),
    ]
    assert _compare({1: {"llambert": right}}, {"train:c": True}) == []
