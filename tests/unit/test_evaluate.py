"""Metrics against values worked out by hand."""

import pyarrow as pa
import pytest

from llambert.evaluate import (
    EvaluateConfig,
    Trained,
    _mistakes,
    _over_seeds,
    evaluate,
    measure,
    wilson_interval,
)
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


def test_measure():
    found = measure(TABLE, ["no", "yes"])
    assert found["accuracy"] == 0.75
    assert found["confusion"] == [[1, 1], [0, 2]]
    assert found["labels"]["no"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "records": 2,
    }
    assert found["labels"]["yes"]["precision"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    # bins: 0.5-0.6 one right at 0.55, 0.6-0.7 one wrong at 0.65, 0.9-1.0 two right at 0.95
    assert found["calibration_error"] == pytest.approx((0.45 + 0.65 + 0.10) / 4, abs=1e-6)


def test_wilson_interval_of_a_textbook_case():
    """9 of 10: 59.6 % to 98.2 % (Newcombe, Statistics in Medicine 1998, method 3)."""
    low, high = wilson_interval(9, 10)
    assert (low, high) == (pytest.approx(0.5958, abs=1e-3), pytest.approx(0.9821, abs=1e-3))


def test_seeds_are_averaged_with_students_interval():
    runs = {
        s: {"accuracy": a, "macro_f1": a, "accuracy_interval": [0, 1]}
        for s, a in enumerate([0.90, 0.92, 0.94])
    }
    over = _over_seeds(runs)
    assert over["accuracy"] == pytest.approx(0.92)
    # standard error 0.02 / sqrt(3), Student's t with 2 degrees of freedom 4.303
    assert over["accuracy_interval"] == pytest.approx([0.92 - 0.04968, 0.92 + 0.04968], abs=1e-4)


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
    )
    assert outcome.counts == {"in": 0, "out": 0, "dropped": {}}
    assert outcome.details == folder.read_json("metrics.json") == {"gold_records": 0}
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
