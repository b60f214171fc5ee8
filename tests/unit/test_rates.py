"""Which rate a plan goes by, and what stages' own figures say of it; by hand-made manifests."""

import pyarrow as pa
import pytest

from llambert.annotate import annotator_id
from llambert.config import RunConfig
from llambert.plan import Range, Rate, as_json
from llambert.rates import KINDS, _key, annotate_rate, known_rates, label_rate, to_ask, train_rate
from llambert.sample import HASHES
from llambert.schema import RESPONSE
from llambert.storage import Manifest, text_hash
from llambert.survey import Survey
from llambert.workdir import Workdir

ASKED = {
    "asked": 1000,
    "seconds": 160.0,
    "records_per_s": 10.0,
    "tokens_per_s": 3000.0,
    "prompt_tokens": 290_000,
    "output_tokens": 10_000,
    "device": "gpu",
    "devices_per_replica": 4,
    "replicas": [1, 2],
    "device_seconds": 1280.0,
}
TRAINED = {
    "epochs": [
        {"epoch": 1, "seconds": 25.0, "validation_seconds": 5.0},
        {"epoch": 2, "seconds": 40.0, "validation_seconds": 10.0},
    ],
    "tokens": 100_000,
    "training_records": 450,
    "workers": 2,
    "device": "gpu",
    "settings": {
        "model": "an/encoder",
        "max_length": 128,
        "dtype": "auto",
        "batch_size": 16,
        "workers": 2,
    },
}
LABELLED = {
    "labelled_now": 9000,
    "records_per_s": 100.0,
    "tokens_per_s": 10_000.0,
    "workers": 2,
    "device": "gpu",
}


def test_the_llms_rate_is_of_one_device_and_without_the_start():
    rate = annotate_rate(ASKED, 1000)
    assert (rate.unit, rate.per_s, rate.start_s, rate.records) == ("tokens", 375.0, 60.0, 1000)
    assert (rate.prompt_tokens, rate.output_tokens) == (290.0, 10.0)
    assert (rate.device, rate.devices) == ("gpu", 8)


def test_an_endpoints_rate_is_in_records_of_all_of_it():
    http = {k: v for k, v in ASKED.items() if k not in ("device", "devices_per_replica")}
    del http["replicas"], http["device_seconds"]
    rate = annotate_rate({**http, "failed": 500}, 1000)
    assert (rate.unit, rate.per_s, rate.prompt_tokens) == ("records", 10.0, 580.0)
    assert annotate_rate({"asked": 0, "prompt_tokens": 9, "output_tokens": 9}, 9) is None


def test_validating_takes_its_part_of_a_training_and_is_no_start():
    whole = train_rate(TRAINED, seconds=80.0)
    assert (whole.per_s, whole.start_s, whole.records) == (1000.0, 30.0, 900)
    steady = train_rate(TRAINED, seconds=80.0, steady=True)
    assert (steady.per_s, steady.start_s) == (50_000 / 40, 30.0)


def test_the_labellers_rate_is_of_one_of_them_and_without_the_start():
    rate = label_rate(LABELLED, seconds=100.0)
    assert (rate.per_s, rate.devices) == (5000.0, 2)
    assert (rate.start_s, rate.records) == (10.0, 9000)
    assert label_rate({"labelled_now": 0}, 1.0) is None


def test_a_cluster_without_gpus_is_one_device_whatever_its_workers():
    cpu = {"device": "cpu"}
    label = label_rate({**LABELLED, **cpu}, seconds=100.0)
    assert (label.per_s, label.device, label.devices) == (10_000.0, "cpu", 1)
    train = train_rate({**TRAINED, **cpu}, seconds=80.0)
    assert (train.per_s, train.devices) == (2000.0, 1)
    llm = annotate_rate({**ASKED, **cpu}, 1000)
    assert (llm.per_s, llm.devices) == (3000.0, 1)


def config(tmp_path, **plan) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "films",
            "workdir": str(tmp_path),
            "task": {"labels": {"good": [], "bad": []}, "prompt": "Good? {text}"},
            "corpus": {"path": str(tmp_path / "elsewhere.jsonl")},
            "sample": {"size": 100},
            "annotate": {"engine": "openai", "model": "a-model"},
            "train": {"model": "an/encoder", "max_length": 128, "workers": 2},
            "plan": plan,
        }
    )


def finish(folder, stage: str, output: str, details: dict) -> None:
    counts = {"in": 1000, "out": 1000, "dropped": {}}
    folder.finish(Manifest(stage, "f", output, counts, 100.0, details))


def test_a_calibration_asks_what_has_no_answer_and_the_run_draws(tmp_path):
    """Of a corpus of 4,000 records 1,000 are drawn, those with hashes below a quarter."""
    run, workdir = config(tmp_path), Workdir(str(tmp_path))
    run = run.model_copy(update={"sample": run.sample.model_copy(update={"size": 1000})})
    rows = {
        "hash": pa.array([i * (HASHES // 400) for i in range(400)], pa.uint64()),
        "id": [f"r{i:03d}" for i in range(400)],
        "text": [f"text {i}" for i in range(400)],
    }
    seen = Survey(Range.exactly(4000), False, 400, pa.table(rows))
    records, unused = to_ask(run, workdir, seen)
    assert (records["id"].to_pylist(), unused) == (rows["id"][:100], 0)

    answered = workdir.annotations(annotator_id(run.annotate, run.task)) / "responses"
    stored = [
        {"id": id, "text_hash": text_hash(text), "response": "good"}
        for id, text in zip(rows["id"][:70], rows["text"][:70], strict=True)
    ]
    answered.write_table("round-0001.parquet", pa.Table.from_pylist(stored, schema=RESPONSE))
    records, unused = to_ask(run, workdir, seen)
    assert (records["id"].to_pylist(), unused) == (rows["id"][70:134], 34)


def test_where_a_rate_is_from(tmp_path):
    """An earlier run of the same models; a calibration where it saw more; the run file's first."""
    run, workdir = config(tmp_path), Workdir(str(tmp_path))
    assert known_rates(run, workdir) == {}
    finish(workdir.model("llambert", 1), "train", "w1", TRAINED)
    labelled = LABELLED | {"setup": run.label.setup}
    finish(workdir.labels("w1"), "label", "l1", labelled)
    other = {**TRAINED, "settings": {**TRAINED["settings"], "model": "another"}, "tokens": 9}
    finish(workdir.model("llambert", 2), "train", "w2", other)
    finish(workdir.labels("w2"), "label", "l2", {**labelled, "labelled_now": 99_000})
    found = known_rates(run, workdir)
    assert set(found) == {"train", "label"}
    assert found["train"].per_s == 1000.0 and found["train"].source.startswith("an earlier run")
    assert found["label"].records == 9000
    frozen = run.model_copy(update={"train": run.train.model_copy(update={"freeze_encoder": True})})
    assert set(known_rates(frozen, workdir)) == {"label"}  # a head alone trains faster
    wider = run.model_copy(update={"label": run.label.model_copy(update={"workers": (1, 9)})})
    assert set(known_rates(wider, workdir)) == {"train"}
    assert _key(frozen, "train") != _key(run, "train") and _key(frozen, "label") == _key(
        run, "label"
    )

    small = Rate("tokens", 1.0, "a calibration", 0.5, records=50)
    large = Rate("tokens", 2.0, "a calibration", 0.5, records=50_000, output_tokens=3.5)
    stored = {
        "train": {"key": _key(run, "train"), "rate": as_json(small)},
        "label": {"key": _key(run, "label"), "rate": as_json(large)},
        "annotate": {"key": "of another prompt", "rate": as_json(large)},
    }
    workdir.plan.write_json("calibration.json", stored)
    found = known_rates(run, workdir)
    assert found["train"].per_s == 1000.0
    assert found["label"] == large
    assert "annotate" not in found

    stored["annotate"]["key"] = _key(run, "annotate")
    workdir.plan.write_json("calibration.json", stored)
    assert known_rates(run, workdir)["annotate"] == large
    given = {"records_per_s": 7, "margin": 0.1, "source": "our benchmark of May"}
    run = config(tmp_path, rates={"annotate": given})
    rate = known_rates(run, workdir)["annotate"]
    assert (rate.unit, rate.per_s, rate.margin, rate.output_tokens) == ("records", 7.0, 0.1, 3.5)
    assert rate.source == "our benchmark of May (the run file)"


@pytest.mark.parametrize(
    ("kind", "section", "change"),
    [
        ("annotate", "annotate", {"openai": {"concurrency": 2}}),
        ("train", "train", {"batch_size": 256}),
        ("train", "train", {"workers": 1}),
        ("label", "label", {"workers": (1, 1)}),
        ("train", "train", {"deepspeed": {"zero_stage": 3}}),
        ("label", "label", {"batch_tokens": 1024}),
        ("label", "label", {"accelerator_type": "T4"}),
    ],
)
def test_what_was_calibrated_otherwise_is_measured_anew(tmp_path, kind, section, change):
    run, workdir = config(tmp_path), Workdir(str(tmp_path))
    rate = as_json(Rate("tokens", 1.0, "a calibration", 0.5, records=50))
    stored = {each: {"key": _key(run, each), "rate": rate} for each in KINDS}
    workdir.plan.write_json("calibration.json", stored)
    assert known_rates(run, workdir).keys() == set(KINDS)
    values = run.model_dump()
    values[section] |= change
    assert known_rates(RunConfig.model_validate(values), workdir).keys() == set(KINDS) - {kind}


def test_an_llm_spread_otherwise_is_measured_anew(tmp_path):
    values = config(tmp_path).model_dump(exclude={"annotate": {"openai"}})
    values["annotate"] |= {"engine": "vllm", "model": str(tmp_path)}
    keys = []
    for change in ({}, {"tensor_parallel_size": 8}, {"engine_kwargs": {"enforce_eager": True}}):
        changed = values | {"annotate": values["annotate"] | change}
        keys.append(_key(RunConfig.model_validate(changed), "annotate"))
    assert len(set(keys)) == 3


def test_looking_answers_up_says_nothing_of_an_llm(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": "a", "response": "good"}\n')
    answers = {"path": str(tmp_path / "answers.jsonl"), "id": "id", "response": "response"}
    values = config(tmp_path).model_dump() | {"annotate": {"engine": "recorded"}}
    values["annotate"]["recorded"] = answers
    run, workdir = RunConfig.model_validate(values), Workdir(str(tmp_path))
    details = {**ASKED, "prompt_tokens": 0, "output_tokens": 0, "setup": run.annotate.setup}
    finish(workdir.annotations(annotator_id(run.annotate, run.task)), "annotate", "a", details)
    assert known_rates(run, workdir) == {}


def test_an_llm_that_was_set_up_otherwise_tells_no_rate(tmp_path):
    run, workdir = config(tmp_path), Workdir(str(tmp_path))
    folder = workdir.annotations(annotator_id(run.annotate, run.task))
    http = {k: v for k, v in ASKED.items() if k not in ("device", "replicas", "device_seconds")}
    finish(folder, "annotate", "a", {**http, "setup": run.annotate.setup})
    assert set(known_rates(run, workdir)) == {"annotate"}
    other = run.annotate.openai.model_copy(update={"concurrency": 2})
    slower = run.annotate.model_copy(update={"openai": other})
    assert known_rates(run.model_copy(update={"annotate": slower}), workdir) == {}
    finish(folder, "annotate", "a", {**http, "setup": run.annotate.setup, "last_round": http})
    assert known_rates(run, workdir) == {}  # whose setup is not known
