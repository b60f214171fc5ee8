"""A plan before its run and after: which is kept, and what it says; without Ray, by given rates."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from llambert.config import RunConfig
from llambert.pipeline import Pipeline
from llambert.plan import compare
from llambert.planner import _side_by_side, make_plan, show
from llambert.progress import Progress
from llambert.step import made, run_step
from llambert.storage import Outcome
from tests.tiny_roberta import easy_records, make_tiny_roberta

RECORDS, SAMPLE, GOLD, GOLD_ASKED = 1000, 100, 300, 10
RATES = {
    "annotate": {"records_per_s": 10.0, "margin": 0.0, "source": "a guess"},
    "train": {"records_per_s": 20.0, "margin": 0.0, "device": "cpu", "source": "a guess"},
    "label": {"records_per_s": 50.0, "margin": 0.0, "device": "cpu", "source": "a guess"},
}
RANGE = {"low": 1.0, "expected": 2.0, "high": 4.0}
PRICES = {
    **{"encoder_device_hour": 1.8},
    **{"million_prompt_tokens": 10.0, "million_output_tokens": 100.0},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "corpus").mkdir()
    records = easy_records(RECORDS).select(["id", "text"])
    pq.write_table(records, folder / "corpus" / "part.parquet")
    pq.write_table(easy_records(GOLD, seed=1), folder / "gold.parquet")
    return RunConfig.model_validate(
        {
            "name": "films",
            "workdir": str(folder / "out"),
            "task": {"labels": {"negative": [], "positive": []}, "prompt": "{text}"},
            "corpus": {"path": str(folder / "corpus"), "id": "id"},
            "gold": {"test": str(folder / "gold.parquet")},
            "sample": {"size": SAMPLE},
            "annotate": {"engine": "openai", "model": "an-llm", "gold_records": GOLD_ASKED},
            "train": {"model": make_tiny_roberta(folder / "encoder"), "epochs": 2},
            "label": {"workers": [1, 2]},
            "cascade": {"share": 0.1},
            "plan": {"rates": RATES, "prices": PRICES},
        }
    )


def finish(config: RunConfig) -> list:
    """Leave the manifests that a run would: everything took twice as long as it was planned."""
    figures = {
        "annotate": {
            **{"asked": SAMPLE + GOLD_ASKED, "seconds": 22.0, "records_per_s": 5.0},
            **{"prompt_tokens": 1100, "output_tokens": 110},
        },
        "train": {
            **{"training_seconds": 18.0, "device": "cpu", "workers": 1},
            **{"tokens": 900, "validation_accuracy": 1.0, "settings": {"model": "another"}},
        },
        "label": {
            **{"labelled_now": RECORDS, "seconds": 40.0, "records_per_s": 25.0},
            **{"device": "cpu", "workers": 2, "tokens": 9000},
        },
    }
    records = {"annotate": SAMPLE + GOLD_ASKED, "train": SAMPLE, "sample": SAMPLE}
    found = []
    for stage in ("corpus", "sample", "annotate", "train", "label"):
        (step,) = Pipeline(config).steps(stage)
        n = records.get(stage, RECORDS)
        outcome = Outcome({"in": n, "out": n, "dropped": {}}, figures.get(stage, {}))
        with Progress(stage, quiet=True) as progress:
            run_step(replace(step, run=lambda _, outcome=outcome: outcome), progress)
        found.append(made(Pipeline(config).steps(stage)[0]))
    return found


def test_a_run_is_held_against_the_plan_made_before_it(config):
    pipeline = Pipeline(config)
    before = make_plan(pipeline)
    assert before["done"] == []
    assert pipeline.workdir.plan_before(config.planned_for(pipeline.corpus)) == before
    stages = before["llambert"]["stages"]
    assert stages["label"]["hours"]["expected"] == pytest.approx(20 / 3600, rel=1e-5)
    assert stages["label"]["devices"] == 1  # two workers share a cluster without GPUs
    assert stages["evaluate"]["devices"] == 1
    # a tenth of the corpus, and of the gold records no more than annotate may ask
    assert stages["cascade"]["records"]["expected"] == RECORDS * 0.1 + GOLD_ASKED

    manifests = finish(config)
    after = make_plan(Pipeline(config))
    assert set(after["done"]) == {"corpus", "sample", "annotate", "train", "label"}
    assert pipeline.workdir.plan.read_json("plan.json") == after
    kept = pipeline.workdir.plan_before(config.planned_for(pipeline.corpus))
    assert kept == before
    found = compare(kept, manifests)
    assert found["annotate"]["hours"]["ratio"] == 2.0
    assert found["annotate"]["cost"]["actual"] == pytest.approx((1100 * 10 + 110 * 100) / 1e6)
    assert found["train"]["hours"]["ratio"] == 2.0
    assert {name: found["label"][name]["ratio"] for name in ("device_hours", "hours", "cost")} == {
        **{"device_hours": 2.0, "hours": 2.0, "cost": 2.0}
    }
    assert not set(compare(after, manifests)) & set(after["done"])

    sample = config.sample.model_copy(update={"size": 50})
    other = config.model_copy(update={"sample": sample})
    assert pipeline.workdir.plan_before(other.planned_for(pipeline.corpus)) is None
    grown = replace(pipeline.corpus, sources=pipeline.corpus.sources * 2)
    assert pipeline.workdir.plan_before(config.planned_for(grown)) is None


def test_recorded_answers_are_said_not_to_count(config, tmp_path, capsys):
    (tmp_path / "answers.jsonl").write_text('{"id": "a", "response": "good"}\n')
    recorded = {"path": str(tmp_path / "answers.jsonl"), "id": "id", "response": "response"}
    values = config.model_dump() | {"annotate": {"engine": "recorded", "recorded": recorded}}
    values["plan"]["rates"]["label"]["start_s"] = 75.0
    run = RunConfig.model_validate(values | {"workdir": str(tmp_path / "out")})
    plan = make_plan(Pipeline(run))
    assert plan["llm_on_everything"]["total"]["hours"]["expected"] == pytest.approx(100 / 3600)
    assert any("The answers are recorded" in note for note in plan["notes"])
    show(plan, "plan.json")
    printed = capsys.readouterr().out
    assert ", after a start of 1 min 15 s; " in printed
    rows = [line.split()[0] for line in printed.splitlines() if line[:2] == "  "]
    shown = [row for row in rows if row in plan["llambert"]["stages"]]
    assert shown == ["annotate", "train", "evaluate", "label", "cascade", "annotate"]


def test_the_time_of_one_gpu_is_said_to_be_that_where_the_run_may_take_more(config):
    def told(**changes) -> bool:
        values = config.model_dump()
        values["plan"]["rates"]["label"]["device"] = "gpu"
        run = RunConfig.model_validate(values | changes)
        return any("is that of 1 GPU" in note for note in make_plan(Pipeline(run))["notes"])

    assert told(label={"workers": None})
    assert not told()


def test_hours_of_a_gpu_are_not_held_against_those_of_a_cluster_without():
    def plan(encoder: str | None) -> dict:
        total = {"cost": None, "device_hours": RANGE, "hours": RANGE}
        ways = {way: {"total": total} for way in ("llambert", "llm_on_everything")}
        return ways | {"rates": {"annotate": {}, "train": {"device": encoder}}}

    assert "times the device-hours" in _side_by_side(plan("gpu"))
    assert "times the device-hours" in _side_by_side(plan(None))  # a GPU's, too
    assert "times the time" in _side_by_side(plan("cpu"))
