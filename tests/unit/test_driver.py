"""How stages are run, as far as that needs no Ray: what is checked, told and left."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from llambert import cli
from llambert.config import RunConfig, load
from llambert.driver import StageProcesses, run_stages
from llambert.pipeline import Pipeline
from llambert.progress import Progress
from llambert.step import run_step
from llambert.storage import Outcome
from tests.tiny_roberta import easy_records

COUNTS = {
    "corpus": {"in": 1010, "out": 1000, "dropped": {"empty_text": 7, "duplicate_id": 3}},
    "sample": {"in": 1000, "out": 100, "dropped": {"not_drawn": 900}},
    "annotate": {"in": 100, "out": 98, "dropped": {"off_list": 2}},
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A run file whose first three stages are done, by an endpoint whose key is not set."""
    import pyarrow.parquet as pq

    pq.write_table(easy_records(1000).select(["id", "text"]), tmp_path / "corpus.parquet")
    run = {
        "name": "films",
        "workdir": "out",
        "task": {"labels": {"negative": [], "positive": []}, "prompt": "Good? {text}"},
        "corpus": {"path": "corpus.parquet", "id": "id"},
        "sample": {"size": 100},
        "annotate": {
            "engine": "openai",
            "model": "an-llm",
            "openai": {"api_key_env": "NOT_SET_ANYWHERE"},
        },
        "train": {"model": "org/encoder"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    for stage, counts in COUNTS.items():
        (step,) = Pipeline(load(str(path))).steps(stage)
        outcome = Outcome(counts, {"records_per_s": 12.5} if stage == "annotate" else {})
        with Progress(stage, quiet=True) as progress:
            run_step(replace(step, run=lambda _, outcome=outcome: outcome), progress)
    return str(path)


def told(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The exit code of a command, and what it printed."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return ended.value.code or 0, *capfd.readouterr()


@pytest.mark.parametrize(
    "words", [["annotate", "--force"], ["run", "--from", "annotate", "--until", "annotate"]]
)
def test_a_stage_that_is_done_is_checked_where_it_is_to_be_done_again(config, capfd, words):
    command, *options = words
    code, _, said = told(capfd, command, config, *options)
    assert code == 2 and "the environment variable NOT_SET_ANYWHERE is not set" in said
    assert told(capfd, "annotate", config)[:2] == (0, "annotate: done already\n")


def test_the_closing_summary_has_counts_rates_and_places(config, capfd, tmp_path):
    code, said, _ = told(capfd, "run", config, "--until", "annotate")
    _, head, *lines = said.splitlines()
    assert (code, head) == (0, "Nothing to do: all is done.")
    lines.remove(f"{'':<24} {tmp_path}/out/quarantine/")
    for counts, line in zip(COUNTS.values(), lines[::2], strict=True):
        reasons = ", ".join(f"{reason} {n}" for reason, n in counts["dropped"].items())
        assert f" {counts['in']:,} in" in line and f" {counts['out']:,} out" in line
        assert f"s; dropped: {reasons}" in line
    assert [line.split()[0] for line in lines[::2]] == list(COUNTS)
    assert lines[4].endswith("  12.5/s")
    corpus, sample, annotations = [Path(line.strip()) for line in lines[1::2]]
    assert (corpus, sample) == (tmp_path / "out" / "corpus", tmp_path / "out" / "sample")
    assert annotations.parent == tmp_path / "out" / "annotations"
    assert all((folder / "manifest.json").is_file() for folder in (corpus, sample, annotations))


def test_a_process_that_is_not_needed_is_ended_before_its_turn(capfd):
    """It has begun while another stage was at work, and its own turned out to be done."""
    others = set(psutil.Process().children())
    script = "import os, sys; told = os.read(0, 1); print(sys.argv[1], len(told))"
    stages = ("sample", "annotate", "train", "evaluate")
    commands = {name: [sys.executable, "-c", script, name] for name in stages}
    with StageProcesses(commands, ["sample", "annotate", "train"], {}) as processes:
        processes.run("sample")  # annotate waits
        processes.run("train")
        processes.run("evaluate")  # which was not expected
    assert capfd.readouterr().out == "sample 1\ntrain 1\nevaluate 1\n"
    assert set(psutil.Process().children()) == others


def test_an_edit_of_the_run_file_is_the_next_runs(config, capfd):
    """The stage reads its file in a process of its own, and so says what that holds."""
    pipeline = Pipeline(load(config))
    Path(config).write_text("no run file any more")
    with pytest.raises(SystemExit) as ended:
        run_stages(pipeline, ("report",), forced=("report",))
    said = capfd.readouterr().err
    assert ended.value.code == 2 and "report needs what train llambert seed 1" in said
    assert load(f"{pipeline.workdir.uri}/config.yaml") == pipeline.config


def test_the_resolved_run_file_is_printed_and_loads_back(config, capfd, tmp_path):
    code, printed, _ = told(capfd, "config", config, "--set", "sample.seed=7")
    assert code == 0
    values = yaml.safe_load(printed)
    assert values["sample"] == {"size": 100, "seed": 7}
    assert values["workdir"] == str(tmp_path / "out")
    assert values["train"]["epochs"] == load(config).train.epochs  # a default
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    assert load(str(again)) == load(config, ["sample.seed=7"])


def test_the_schema_is_printed_as_json(capfd):
    code, printed, _ = told(capfd, "schema")
    schema = json.loads(printed)
    assert code == 0 and schema["properties"].keys() == RunConfig.model_fields.keys()
    assert set(schema["required"]) >= {"name", "workdir", "task", "corpus", "sample"}
    size = schema["$defs"]["SampleConfig"]["properties"]["size"]
    assert size["type"] == "integer" and size["description"]
