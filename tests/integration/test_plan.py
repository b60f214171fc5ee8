"""A calibration on real components: what is measured, what is asked, and that it is asked once."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llambert import rates as rates_module
from llambert import sample as sample_stage
from llambert.annotate import annotate, annotator_id
from llambert.config import RunConfig
from llambert.pipeline import Pipeline
from llambert.planner import make_plan
from llambert.progress import Progress
from llambert.rates import KINDS, calibrate, known_rates
from llambert.survey import survey
from tests.chat_server import KEY, MODEL, chat_server
from tests.tiny_roberta import easy_records, make_tiny_roberta

pytestmark = pytest.mark.usefixtures("ray_session")

ASKED = 64  # of the 100 records that the run draws
PRICES = {
    **{"llm_device_hour": 3.0, "encoder_device_hour": 1.0},
    **{"million_prompt_tokens": 10.0, "million_output_tokens": 100.0},
}


def test_a_calibration_measures_every_rate_and_pays_for_no_answer_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAT_KEY", KEY)
    monkeypatch.setattr(rates_module, "_WORK_S", 0.5)  # enough to see that there is a rate
    records = easy_records(600)
    (tmp_path / "corpus").mkdir()
    pq.write_table(records.select(["id", "text"]), tmp_path / "corpus" / "part.parquet")
    with chat_server(tmp_path, delay_s=0.01) as server:
        config = RunConfig.model_validate(
            {
                "name": "films",
                "workdir": str(tmp_path / "out"),
                "task": {"labels": {"negative": [], "positive": []}, "prompt": "{text}"},
                "corpus": {"path": str(tmp_path / "corpus"), "id": "id"},
                "sample": {"size": 100, "seed": 3},
                "annotate": {
                    **{"engine": "openai", "model": MODEL, "batch_size": 8},
                    "openai": {"base_url": server.url, "api_key_env": "CHAT_KEY"},
                },
                "train": {"model": make_tiny_roberta(tmp_path / "encoder"), "max_length": 32},
                "plan": {"calibration_records": ASKED, "prices": PRICES},
            }
        )
        pipeline = Pipeline(config)
        guessed = make_plan(pipeline)
        assert guessed["llambert"]["total"]["cost"] is None  # the encoder's rate is not known
        assert guessed["llambert"]["stages"]["annotate"]["cost"]["expected"] > 0
        assert not server.requests()

        seen = survey(pipeline.corpus, config.sample.seed, config.plan.sample)
        rates = calibrate(config, pipeline.workdir, KINDS, seen)
        assert set(rates) == set(KINDS)
        assert all(rate.per_s > 0 for rate in rates.values())
        assert known_rates(config, pipeline.workdir) == rates
        kept = f"before-{config.planned_for(pipeline.corpus)}.json"
        assert pipeline.workdir.plan.files() == [kept, "calibration.json", "plan.json"]
        assert pipeline.workdir.plan.folders() == []

        rows = {row["id"]: row["text"] for row in records.to_pylist()}
        drawn = sorted(rows, key=lambda id: sample_stage._hash(3, id))[:100]
        assert set(server.asked()) == {rows[id] for id in drawn[:ASKED]}
        wanted = pa.table({"id": drawn, "text": [rows[id] for id in drawn]})
        answers = pipeline.workdir.annotations(annotator_id(config.annotate, config.task))
        with Progress("annotate", quiet=True) as progress:
            outcome = annotate(config.annotate, config.task, wanted, answers, progress)
        assert outcome.details["asked"] == 100 - ASKED
        assert len(server.requests()) == 100

    plan = make_plan(pipeline)
    asking = plan["llambert"]["stages"]["annotate"]
    assert asking["records"]["expected"] == 100
    assert asking["tokens"]["expected"] == 100 * (7 + 2)  # as the endpoint counts
    assert asking["cost"]["expected"] == pytest.approx(100 * (7 * 10 + 2 * 100) / 1e6)
    everything = plan["llm_on_everything"]["total"]
    assert everything["cost"]["expected"] == pytest.approx(6 * asking["cost"]["expected"])
    total = plan["llambert"]["total"]
    assert 0 < total["cost"]["low"] < total["cost"]["expected"] < total["cost"]["high"]
