"""What makes a step stale, and what a run leaves beside its steps; answers are stored by hand."""

import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llambert.config import RunConfig, load
from llambert.pipeline import Pipeline
from llambert.progress import Progress
from llambert.schema import RESPONSE
from llambert.step import Step, commit, made, run_step
from llambert.storage import Outcome, text_hash
from tests.tiny_roberta import easy_records

SAMPLE = 60


def config_of(folder: Path, gold_records: int = 10) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "films",
            "workdir": str(folder / "out"),
            "task": {"labels": {"negative": [], "positive": []}, "prompt": "Good? {text}"},
            "corpus": {"path": str(folder / "corpus.parquet"), "id": "id"},
            "gold": {
                **{"train": str(folder / "train.parquet"), "test": str(folder / "test.parquet")},
                **{"id": "id"},
            },
            "sample": {"size": SAMPLE},
            "annotate": {"engine": "openai", "model": "an-llm", "gold_records": gold_records},
            "train": {"model": "an/encoder", "variants": ["llambert"]},
        }
    )


def run(step: Step, outcome: Outcome | None = None) -> None:
    """Finish a step: by hand where an outcome is given."""
    done = replace(step, run=lambda _: outcome) if outcome else step
    with Progress(step.stage, quiet=True) as progress:
        run_step(done, progress)


def steps(config: RunConfig, stage: str) -> list[Step]:
    return Pipeline(config, may_ask=False).steps(stage)


def answer(key: str, text: str, response: str) -> dict[str, Any]:
    """A row of the stored answers."""
    tokens = {"prompt_tokens": 7, "output_tokens": 1, "truncated": False}
    return {"id": key, "text_hash": text_hash(text), "response": response, **tokens}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Corpus, sample, annotate and train are done, by an LLM that has answered for all of gold."""
    records, gold = easy_records(200), easy_records(100, seed=1)
    pq.write_table(records.select(["id", "text"]), tmp_path / "corpus.parquet")
    pq.write_table(gold.slice(0, 50), tmp_path / "train.parquet")
    pq.write_table(gold.slice(50), tmp_path / "test.parquet")
    config = config_of(tmp_path)
    sample = records.select(["id", "text"]).slice(0, SAMPLE)
    for stage in ("corpus", "sample"):
        (step,) = steps(config, stage)
        run(step, Outcome({"in": 200, "out": 200, "dropped": {}}))
    step.folder.write_table("sample.parquet", sample)
    asked = [*records.slice(0, SAMPLE).to_pylist(), *gold.to_pylist()]
    rows = [
        answer(key, row["text"], row["label"])
        for row in asked
        for key in (row["id"], f"gold:{row['id']}")
    ]
    (annotate,) = steps(config, "annotate")
    stored = pa.Table.from_pylist(rows, schema=RESPONSE)
    (annotate.folder / "responses").write_table("round-0001.parquet", stored)
    run(annotate)
    (train,) = steps(config, "train")
    details = {"validation_accuracy": 1.0}
    run(train, Outcome({"in": SAMPLE, "out": SAMPLE, "dropped": {}}, details, "weights"))
    return tmp_path


def test_more_gold_records_to_answer_train_nothing_again(folder):
    config = config_of(folder, gold_records=20)
    (annotate,) = steps(config, "annotate")
    assert annotate.why == "changed: annotate.gold_records (was 10)"
    before = steps(config_of(folder), "evaluate")[0].fingerprint
    run(annotate)
    (train,) = steps(config, "train")
    assert train.state == "done"
    assert steps(config, "evaluate")[0].fingerprint != before  # the LLM is measured by more


def test_another_answer_for_the_sample_trains_again(folder):
    config = config_of(folder)
    (annotate,) = steps(config, "annotate")
    first = easy_records(1).to_pylist()[0]
    row = answer(first["id"], first["text"], "Hard to say.")
    responses = annotate.folder / "responses"
    stored = responses.read_table("round-0001.parquet").slice(2)  # under both ids of the record
    other = pa.Table.from_pylist([row], schema=RESPONSE)
    responses.write_table("round-0001.parquet", pa.concat_tables([other, stored]))
    run(annotate)
    (train,) = steps(config, "train")
    assert train.why == "changed: annotate"


def test_a_gold_test_record_that_was_sampled_trains_again(folder):
    gold = pq.read_table(folder / "test.parquet")
    twin = gold.slice(0, 1).set_column(1, "text", [easy_records(1)["text"].to_pylist()])
    pq.write_table(pa.concat_tables([gold.slice(1), twin]), folder / "test.parquet")
    (annotate,) = steps(config_of(folder), "annotate")
    run(annotate)
    (train,) = steps(config_of(folder), "train")
    assert train.why == "changed: annotate"


def test_gold_training_records_of_no_label_are_in_quarantine_and_train_nothing_again(folder):
    gold = pq.read_table(folder / "train.parquet").slice(0, 1)
    other = gold.set_column(2, "label", [["maybe"]]).set_column(0, "id", [["new"]])
    pq.write_table(
        pa.concat_tables([pq.read_table(folder / "train.parquet"), other]), folder / "train.parquet"
    )
    config = config_of(folder)
    (annotate,) = steps(config, "annotate")
    assert annotate.why == "changed: gold.refused"
    run(annotate)
    (row,) = pq.read_table(folder / "out" / "quarantine" / "gold.parquet").to_pylist()
    assert (row["id"], row["row"], row["refused"]) == ("new", 50, "unknown_label")
    assert made(steps(config, "annotate")[0]).details["gold_refused"] == {"unknown_label": 1}
    assert steps(config, "train")[0].state == "done"
    assert "gold.refused" in steps(config, "report")[0].inputs  # which tells how many


def test_a_bound_that_is_moved_makes_the_report_alone_anew(folder):
    def fingerprints(gates: dict[str, float]) -> dict[str, str]:
        config = RunConfig.model_validate(config_of(folder).model_dump() | {"gates": gates})
        stages = ("corpus", "sample", "annotate", "train", "evaluate", "label", "report")
        return {s.title: s.fingerprint for stage in stages for s in steps(config, stage)}

    open_, loose, strict = (
        fingerprints(g) for g in ({}, *({"llm_accuracy": b} for b in (0.8, 0.9)))
    )
    for one, other in ((open_, loose), (loose, strict)):
        assert {title for title in one if one[title] != other[title]} == {"report"}


def test_the_resolved_run_file_is_left_with_versions_and_commit(folder):
    config = config_of(folder)
    Pipeline(config).write_config()
    path = folder / "out" / "config.yaml"
    head = [line[2:].split() for line in path.read_text().splitlines() if line.startswith("# ")]
    told = {name: version for name, version in head}
    for package in ("llambert", "ray", "torch", "transformers", "deepspeed", "pyarrow"):
        assert told[package] == importlib.metadata.version(package)
    assert told["commit"] == commit()
    assert load(str(path)) == config
