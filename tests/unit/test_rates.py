"""Which rate a plan goes by, and what stages' own figures say of it; by hand-made manifests."""

from llambert.annotate import annotator_id
from llambert.config import RunConfig
from llambert.plan import Rate, as_json
from llambert.rates import _key, annotate_rate, known_rates, label_rate, train_rate
from llambert.storage import Manifest
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
}
TRAINED = {
    "epochs": [{"epoch": 1, "seconds": 30.0}, {"epoch": 2, "seconds": 50.0}],
    "tokens": 100_000,
    "training_records": 450,
    "workers": 2,
    "device_seconds": 100.0,
    "settings": {"model": "an/encoder", "max_length": 128},
}
LABELLED = {
    "labelled_now": 9000,
    "records_per_s": 100.0,
    "tokens_per_s": 10_000.0,
    "workers": 2,
}


def test_the_llms_rate_is_of_one_device_and_without_the_start():
    rate = annotate_rate(ASKED, 1000)
    assert (rate.unit, rate.per_s, rate.start_s, rate.records) == ("tokens", 375.0, 60.0, 1000)
    assert (rate.prompt_tokens, rate.output_tokens) == (290.0, 10.0)


def test_an_endpoints_rate_is_in_records_of_all_of_it():
    http = {k: v for k, v in ASKED.items() if k not in ("device", "devices_per_replica")}
    del http["replicas"]
    rate = annotate_rate({**http, "failed": 500}, 1000)
    assert (rate.unit, rate.per_s, rate.prompt_tokens) == ("records", 10.0, 580.0)
    assert annotate_rate({"asked": 0, "prompt_tokens": 9, "output_tokens": 9}, 9) is None


def test_a_trainings_rate_with_and_without_its_first_epoch():
    whole = train_rate(TRAINED, seconds=80.0)
    assert (whole.per_s, whole.start_s, whole.records) == (1000.0, 30.0, 900)
    steady = train_rate(TRAINED, seconds=80.0, steady=True)
    assert (steady.per_s, steady.start_s) == (50_000 / 40, 30.0)


def test_the_labellers_rate_is_of_one_of_them_and_without_the_start():
    rate = label_rate(LABELLED, seconds=100.0)
    assert (rate.per_s, rate.devices) == (5000.0, 2)
    assert (rate.start_s, rate.records) == (10.0, 9000)
    assert label_rate({"labelled_now": 0}, 1.0) is None


def config(tmp_path, **plan) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "films",
            "workdir": str(tmp_path),
            "task": {"labels": {"good": [], "bad": []}, "prompt": "Good? {text}"},
            "corpus": {"path": str(tmp_path / "elsewhere.jsonl")},
            "sample": {"size": 100},
            "annotate": {"engine": "openai", "model": "a-model"},
            "train": {"model": "an/encoder", "max_length": 128},
            "plan": plan,
        }
    )


def finish(folder, stage: str, output: str, details: dict) -> None:
    counts = {"in": 1000, "out": 1000, "dropped": {}}
    folder.finish(Manifest(stage, "f", output, counts, 100.0, details))


def test_where_a_rate_is_from(tmp_path):
    """An earlier run of the same models; a calibration where it saw more; the run file's first."""
    run, workdir = config(tmp_path), Workdir(str(tmp_path))
    assert known_rates(run, workdir) == {}
    finish(workdir.model("llambert", 1), "train", "w1", TRAINED)
    finish(workdir.labels("w1"), "label", "l1", LABELLED)
    other = {**TRAINED, "settings": {"model": "another", "max_length": 128}, "tokens": 9}
    finish(workdir.model("llambert", 2), "train", "w2", other)
    finish(workdir.labels("w2"), "label", "l2", {**LABELLED, "labelled_now": 99_000})
    found = known_rates(run, workdir)
    assert set(found) == {"train", "label"}
    assert found["train"].per_s == 1000.0 and found["train"].source.startswith("an earlier run")
    assert found["label"].records == 9000

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


def test_looking_answers_up_says_nothing_of_an_llm(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": "a", "response": "good"}\n')
    answers = {"path": str(tmp_path / "answers.jsonl"), "id": "id", "response": "response"}
    values = config(tmp_path).model_dump() | {"annotate": {"engine": "recorded"}}
    values["annotate"]["recorded"] = answers
    run, workdir = RunConfig.model_validate(values), Workdir(str(tmp_path))
    details = {**ASKED, "prompt_tokens": 0, "output_tokens": 0}
    finish(workdir.annotations(annotator_id(run.annotate, run.task)), "annotate", "a", details)
    assert known_rates(run, workdir) == {}
