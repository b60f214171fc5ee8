"""What a curve trains on and measures with, and what a doubling costs; nothing is trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from learning_curve import published

from llambert.config import RunConfig
from llambert.curve import Curve
from llambert.curve_text import show
from llambert.errors import GateError, UserError
from llambert.pipeline import Pipeline
from llambert.plan import PlanConfig
from llambert.power_law import CurveConfig, Outlook, look_ahead
from llambert.progress import Progress
from llambert.schema import ANNOTATION
from llambert.step import run_step
from llambert.storage import Manifest, Outcome
from tests.tiny_roberta import easy_records

ASKED = 300
REJECTED = 30
FIGURES = {
    "prompt_tokens": 100 * ASKED,
    "output_tokens": 2 * ASKED,
    "asked": ASKED,
    "seconds": 40.0,
    "records_per_s": 10.0,
    "tokens_per_s": 1020.0,
    "device": "gpu",
    "devices_per_replica": 4,
    "replicas": [1, 2],
    "device_seconds": 320.0,
}
PRICES = {"currency": "EUR", "llm_device_hour": 3.6, "encoder_device_hour": 0.36}


def run_file(folder: Path, gold: dict[str, Any] | None, **curve: Any) -> RunConfig:
    records = easy_records(1000)
    (folder / "corpus").mkdir(exist_ok=True)
    pq.write_table(records.select(["id", "text"]), folder / "corpus" / "part.parquet")
    golden = easy_records(200, seed=1)
    pq.write_table(golden.slice(0, 100), folder / "train.parquet")
    pq.write_table(golden.slice(100), folder / "test.parquet")
    values = {
        "name": "films",
        "workdir": str(folder / "out"),
        "task": {"labels": {"negative": [], "positive": []}, "prompt": "Good? {text}"},
        "corpus": {"path": str(folder / "corpus"), "id": "id"},
        "gold": gold and {name: str(folder / file) for name, file in gold.items()},
        "sample": {"size": ASKED},
        "annotate": {
            **{"engine": "vllm", "model": "an/llm"},
            **{"tensor_parallel_size": 4, "replicas": [1, 2]},
        },
        "train": {"model": "an/encoder"},
        "curve": curve,
    }
    return RunConfig.model_validate(values)


def annotated(config: RunConfig) -> list[str]:
    """Leave what corpus, sample and annotate would, by hand; the ids with a label, in order."""
    records = easy_records(1000).take(list(range(999, -1, -1))).slice(0, ASKED)
    labels = [
        None if i % 10 == 0 else label for i, label in enumerate(records["label"].to_pylist())
    ]
    rows = [{"id": i, "label": x} for i, x in zip(records["id"].to_pylist(), labels, strict=True)]
    tables = {
        "sample": records.select(["id", "text"]),
        "annotations": pa.Table.from_pylist(rows, schema=ANNOTATION),
    }
    counts = {
        "corpus": {"in": 1000, "out": 1000, "dropped": {}},
        "sample": {"in": 1000, "out": ASKED, "dropped": {"not_drawn": 1000 - ASKED}},
        "annotate": {"in": ASKED, "out": ASKED - REJECTED, "dropped": {"off_list": REJECTED}},
    }
    for stage, counted in counts.items():
        (step,) = Pipeline(config).steps(stage)
        name = {"sample": "sample", "annotate": "annotations"}.get(stage)
        if name:
            step.folder.write_table(f"{name}.parquet", tables[name])
        figures = FIGURES | {"setup": config.annotate.setup} if stage == "annotate" else {}
        outcome = Outcome(counted, figures)
        with Progress(stage, quiet=True) as progress:
            run_step(replace(step, run=lambda _, outcome=outcome: outcome), progress)
    return [row["id"] for row in rows if row["label"]]


def test_sizes_are_the_first_of_the_sample(tmp_path):
    config = run_file(tmp_path, {"test": "test.parquet"}, sizes=[50, 100, 5000])
    ids = annotated(config)
    curve = Curve(config, 0.005)
    records = curve._records["llambert"]
    assert [i for i in ids if i in set(records["id"].to_pylist())] == records["id"].to_pylist()
    assert curve._sizes == {"llambert": [50, 100, records.num_rows]}
    assert curve.against == "100 gold test records"
    assert f"largest size is {records.num_rows}" in curve._warnings[0]
    texts = set(curve._test["text"].to_pylist())
    assert not texts & set(records["text"].to_pylist())
    titles = [step.title for step in curve._trials().values()]
    assert titles[0] == "curve llambert 50 seed 1" and len(titles) == len(set(titles)) == 9


def test_without_gold_the_first_annotations_are_held_back(tmp_path):
    config = run_file(tmp_path, None, held_back=40)
    ids = annotated(config)
    curve = Curve(config, 0.005)
    assert curve._test["id"].to_pylist() == ids[:40]
    assert not set(curve._test["text"].to_pylist()) & set(
        curve._records["llambert"]["text"].to_pylist()
    )
    assert "LLM's own labels" in curve.against
    most = config.model_copy(update={"curve": CurveConfig(held_back=1000)})
    fifth = Curve(most, 0.005)
    assert fifth._test.num_rows == len(ids) // 5


def test_what_a_doubling_costs(tmp_path):
    gold, variants = {"train": "train.parquet", "test": "test.parquet"}, ["llambert", "baseline"]
    config = run_file(tmp_path, gold, variants=variants)
    annotated(config)
    curve = Curve(config, 0.005)
    last = {"records": 270, "training_seconds": 8.0, "device_seconds": 16.0, "device": "gpu"}
    cost = curve._cost("llambert", last)
    assert cost["answers"] == 300  # nine in ten have a label
    assert cost["prompt_tokens"] == 30_000 and cost["output_tokens"] == 600
    assert cost["llm_seconds"] == pytest.approx(30)  # its start left out
    assert cost["llm_device_seconds"] == pytest.approx(240)  # of 2 x 4 GPUs
    assert cost["llm_device"] == "gpu" and cost["cost"] is None
    assert cost["training_seconds"] == 16 and cost["training_device_seconds"] == 32
    assert not curve._warnings
    assert curve._cost("llambert", last | {"records": 540})["answers"] == 900
    assert "1,000 records, too few" in curve._warnings[0]
    assert "answers" not in curve._cost("baseline", last)
    there = curve._cost("llambert", last | {"records": 100})  # 200 of the 270 that are annotated
    assert there["further_records"] == there["answers"] == there["llm_device_seconds"] == 0

    known = {"annotate": {"records_per_s": 1.0, "device": "gpu", "source": "a benchmark"}}
    plan = PlanConfig(prices=PRICES, rates=known)
    priced = Curve(config.model_copy(update={"plan": plan}), 0.005)
    cost = priced._cost("llambert", last)
    assert cost["llm_device_seconds"] == pytest.approx(300)  # by the rate that is given
    assert (cost["cost"], cost["currency"]) == (pytest.approx(300 * 0.001 + 32 * 0.0001), "EUR")
    assert priced._cost("baseline", last)["cost"] == pytest.approx(0.0032)


def test_sizes_that_cannot_be_learned_from_are_left_out(tmp_path):
    """200 is the least default, which a task of 150 labels could never begin with."""
    config = run_file(tmp_path, None, held_back=40, sizes=[50, 100, 200])
    annotated(config)
    records = Curve(config, 0.005)._records["llambert"]
    alike = records.slice(0, 120).set_column(
        records.schema.get_field_index("label"), "label", pa.array(["negative"] * 120, pa.string())
    )
    curve = Curve(config, 0.005)
    curve._records["llambert"] = pa.concat_tables([alike, records.slice(120)])
    assert curve._sizes_of("llambert") == [200]
    assert "it begins with 200 records" in curve._warnings[-1]
    curve._records["llambert"] = alike
    with pytest.raises(UserError, match="even 120 records are all of one label"):
        curve._sizes_of("llambert")


def test_how_much_is_ahead_is_told_by_what_was_trained(tmp_path):
    config = run_file(tmp_path, None, sizes=[50, 100], seeds=[1, 2])
    annotated(config)
    curve = Curve(config, 0.005)
    left = list(curve._trials())
    assert curve._ahead(left, {}) == "trainings to go: 4, of 300 records in all"
    details = {"training_records": 45, "validation_records": 5, "training_seconds": 20.0}
    done = {left[0]: Manifest("trial", "f", "f", {}, 50.0, details)}
    told = curve._ahead(left[1:], done)  # 0.4 s a record, and 30 s a training beside
    assert told.startswith("trainings to go: 3, of 250 records in all; about 3 min 10 s")


@pytest.mark.parametrize("gain", [float("nan"), float("inf"), -0.1, 0.0, 5.0])
def test_no_doubling_brings_such_a_gain(tmp_path, gain):
    with pytest.raises(UserError, match=f"{100 * gain:g} points"):
        Curve(run_file(tmp_path, None), gain)


def test_what_a_curve_wants(tmp_path):
    gold = {"train": "train.parquet", "test": "test.parquet"}
    with pytest.raises(UserError, match="needs what annotate makes"):
        Curve(run_file(tmp_path, gold), 0.005)
    alone = Curve(run_file(tmp_path, gold, variants=["baseline"]), 0.005)  # asks no LLM
    assert list(alone._sizes) == ["baseline"]
    config = run_file(tmp_path, {"test": "test.parquet"}, variants=["baseline"])
    with pytest.raises(UserError, match="0 gold training records are too few"):
        Curve(config, 0.005)


def test_nothing_is_trained_on_labels_that_do_not_pass_the_gates(tmp_path):
    config = run_file(tmp_path, None)
    annotated(config)
    bound = config.gates.model_copy(update={"rejects_share": 0.05})
    with pytest.raises(GateError, match=r"rejects_share: 0\.1000"):
        Curve(config.model_copy(update={"gates": bound}), 0.005).run(lambda *told: None)


def test_what_is_measured_already_becomes_a_curve_without_ray(tmp_path):
    gold = {"train": "train.parquet", "test": "test.parquet"}
    config = run_file(tmp_path, gold, sizes=[20, 40, 80, 160], seeds=[1, 2])
    annotated(config)
    for (_, size, seed), step in Curve(config, 0.005)._trials().items():
        right = 0.4 if (size, seed) == (20, 2) else 1 - 2 / size**0.5 + 0.001 * seed
        details = {"accuracy": right, "training_seconds": size / 10, "device": "cpu"}
        details |= {"accuracy_interval": [0.0, 1.0], "device_seconds": size / 10, "macro_f1": right}
        counts = {"in": size, "out": size, "dropped": {}}
        with Progress("curve", quiet=True) as progress:
            outcome = Outcome(counts, details)
            run_step(replace(step, run=lambda _, outcome=outcome: outcome), progress)
    single = config.model_copy(update={"curve": CurveConfig(sizes=[20, 40, 80, 160], seeds=[1])})
    alone = Curve(single, 0.005).run(lambda *_: pytest.fail("nothing is to be trained"))
    (warning,) = alone["warnings"]
    assert warning.startswith("the law is that of one seed")
    found = Curve(config, 0.005).run(lambda *_: pytest.fail("nothing is to be trained"))
    (warning,) = found["warnings"]
    assert "1 of 8 trainings did no better" in warning and "llambert 20 seed 2" in warning
    first, *_, last = found["variants"]["llambert"]["sizes"]
    assert first["accuracy_interval"][0] == 0.0  # two seeds that far apart say nothing
    assert (last["records"], last["training_seconds"]) == (160, 16)
    assert last["accuracy"] == pytest.approx(1 - 2 / 160**0.5 + 0.0015)
    assert set(last["seeds"]) == {"1", "2"}
    curve = tmp_path / "out" / "curve"
    assert json.loads((curve / "curve.json").read_text())["variants"].keys() == {"llambert"}
    assert json.loads((curve / "manifest.json").read_text())["counts"]["in"] == 8
    assert (curve / "curve.svg").read_bytes().startswith(b"<?xml")

    pipeline = Pipeline(config)
    stored = pipeline.workdir.measured_curve(pipeline.curve_of())
    assert stored == json.loads((curve / "curve.json").read_text())
    train = config.train.model_copy(update={"learning_rate": 1e-3})
    other = Pipeline(config.model_copy(update={"train": train}))
    assert other.workdir.measured_curve(other.curve_of()) is None  # of another encoder
    (report,) = Pipeline(config).steps("report")  # shows it, and copies nothing of it
    assert report.inputs["curve"] and report.by_name == {}


def figures(ahead: Outlook) -> dict[str, Any]:
    """A curve.json."""
    row = {"records": 200, "accuracy": 0.8, "accuracy_interval": (0.7, 0.9)}
    row |= {"training_seconds": 3.0, "device_seconds": 3.0, "device": "cpu"}
    cost = {"further_records": 200, "answers": 202, "llm_seconds": 50.0, "llm_device_seconds": 200}
    cost |= {"llm_device": "gpu", "prompt_tokens": 5000, "output_tokens": 400}
    cost |= {"training_seconds": 6.0, "training_device_seconds": 6.0, "training_device": "cpu"}
    cost |= {"cost": 1.25, "currency": "EUR"}
    outlook = vars(ahead) | {"law": ahead.law and vars(ahead.law)}
    one = {"sizes": [row], "outlook": outlook, "doubling_costs": cost}
    return {
        **{"against": "9 gold test records", "wanted_gain": 0.005, "warnings": ["few"]},
        "variants": {"llambert": one},
    }


def test_what_is_printed(capsys):
    law = look_ahead(published("gold", 25000), 0.003)
    show(figures(law), "out/curve/curve.svg")
    told = capsys.readouterr().out
    assert "error in % = 11 n^-0.112 + 0" in told
    low, high = (100 * each for each in law.gain_interval)
    assert f"to 50,000, would bring +0.26 points ({low:.2f} to {high:.2f}): by" in told
    assert "by this law from 96.46 to 96.73 %" in told
    assert "202 further answers of the LLM, 5,000 prompt and 400 output tokens" in told
    assert (
        "200 gpu-seconds" in told
        and "cpu-seconds): 1.25 EUR" in told
        and told.endswith("note: few\nout/curve/curve.svg\n")
    )
    show(figures(look_ahead(published("gold", 800), 0.003)), "")
    assert "no law is fitted: a law of three parameters takes 4 sizes" in capsys.readouterr().out
