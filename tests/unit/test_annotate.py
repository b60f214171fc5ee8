"""Stored answers become annotations, without Ray and without an engine; and the configuration."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from llambert import schema
from llambert.annotate import (
    AnnotateConfig,
    _devices,
    _reason,
    annotate,
    annotator_id,
    ask_apart,
    check,
    check_answered,
    required_resources,
)
from llambert.cluster import Workers
from llambert.engines import openai, recorded, vllm
from llambert.engines.config import RecordedConfig
from llambert.engines.orphans import FOLLOW
from llambert.engines.vllm import ENDED, _processor_config, engine_settings, may_be_lost
from llambert.errors import StageError, UserError
from llambert.held import figures as held_figures
from llambert.progress import Progress
from llambert.responses import collect, note_round, unanswered, with_hashes
from llambert.storage import Folder, Manifest, text_hash
from llambert.task import Example, TaskConfig, control_pattern

TASK = TaskConfig(labels={"positive": ["pos"], "negative": []}, prompt="Which? {text}")
VLLM = AnnotateConfig(model="org/chat", max_failed_share=0.25)


def answers(*rows) -> pa.Table:
    """(id, text, response) as stored responses; a null response is a failed request."""
    return pa.Table.from_pylist(
        [
            {
                "id": key,
                "text_hash": text_hash(text),
                "response": response,
                "error": None if response is not None else "HTTP 500",
                "prompt_tokens": 7,
                "output_tokens": 2,
                "truncated": key == "b",
                "first_token": [
                    {"token": "pos", "probability": 0.6},
                    {"token": " Pos", "probability": 0.3},
                    {"token": "neg", "probability": 0.1},
                ]
                if key == "a"
                else None,
            }
            for key, text, response in rows
        ],
        schema=schema.RESPONSE,
    )


def records(*rows) -> pa.Table:
    return pa.Table.from_pylist(
        [{"id": key, "text": text} for key, text in rows], schema=schema.SAMPLE
    )


def parse_again(folder, wanted, config=VLLM, task=TASK):
    with Progress("annotate", quiet=True) as progress:
        outcome = annotate(config, task, wanted, folder, progress, may_ask=False)
    return outcome, folder.read_table("annotations.parquet")


@pytest.fixture
def folder(tmp_path) -> Folder:
    folder = Folder(str(tmp_path / "annotator"))
    (folder / "responses").write_table(
        "round-0001.parquet",
        answers(
            ("a", "great", "Positive."),
            ("b", "dull", "It is negative"),
            ("c", "odd", None),
            ("d", "changed", "positive"),
            ("e", "mixed", "both positive and negative"),
        ),
    )
    return folder


def test_answers_are_parsed_and_counts_add_up(folder):
    wanted = records(("e", "mixed"), ("a", "great"), ("b", "dull"), ("c", "odd"))
    outcome, table = parse_again(folder, wanted)
    assert table.schema.equals(schema.ANNOTATION)
    assert table["id"].to_pylist() == ["e", "a", "b", "c"]
    assert table["label"].to_pylist() == [None, "positive", None, None]
    assert table["reject_reason"].to_pylist() == [
        "several_labels",
        None,
        "extra_text",
        "request_failed",
    ]
    assert outcome.counts == {
        "in": 4,
        "out": 1,
        "dropped": {"several_labels": 1, "extra_text": 1, "request_failed": 1},
    }
    assert outcome.details["asked"] == 0
    assert outcome.details["reused"] == 4
    assert outcome.details["truncated"] == 1
    assert (outcome.details["failed"], outcome.details["errors"]) == (1, {"HTTP 500": 1})
    failed, wordy = outcome.details["warnings"]
    assert failed == "1 requests failed; `llambert run CONFIG --from annotate` asks again"
    assert wordy.startswith("1 answers are dropped") and "annotate.parse: mention" in wordy


def test_details_tell_what_the_annotations_cost_and_what_was_ever_paid(folder):
    details = parse_again(folder, records(("e", "mixed"), ("a", "great")))[0].details
    assert (details["prompt_tokens"], details["output_tokens"]) == (14, 4)
    assert (details["paid_prompt_tokens"], details["paid_output_tokens"]) == (35, 10)
    assert details["paid_responses"] == 4


def test_parsing_anew_remembers_how_fast_the_llm_was(folder):
    figures = {"asked": 4, "seconds": 9.0, "records_per_s": 2.0, "device": "gpu"}
    wanted = records(("e", "mixed"), ("a", "great"))
    assert "last_round" not in parse_again(folder, wanted)[0].details
    note_round(folder, "round-0001", figures)
    note_round(folder, "round-0002", {"asked": 1, "seconds": 5.0, "records_per_s": None})
    details = parse_again(folder, wanted)[0].details
    assert (details["asked"], details["last_round"]) == (0, figures)
    manifest = Manifest("annotate", "f", "f", {"in": 2, "out": 1}, 0.1, details)
    assert held_figures(manifest)["records_per_s"] == 2.0


def test_a_failed_request_is_no_answer(folder):
    rows = records(("a", "great"), ("c", "odd"), ("z", "new"), ("d", "another text"))
    assert unanswered(rows, folder)["id"].to_pylist() == ["c", "z", "d"]


@pytest.mark.parametrize(("share", "rows"), [(0.2, "abec"), (1.0, "c")])
def test_too_many_failures_finish_nothing(folder, share, rows):
    texts = {"a": "great", "b": "dull", "c": "odd", "e": "mixed"}
    wanted = records(*[(key, texts[key]) for key in rows])
    config = VLLM.model_copy(update={"max_failed_share": share})
    with pytest.raises(StageError, match=rf"1 of {len(rows)} requests failed:\s+1 times: HTTP 500"):
        parse_again(folder, wanted, config)
    assert not folder.exists("annotations.parquet")


def test_confidence_is_the_probability_of_the_parsed_label(folder):
    _, table = parse_again(folder, records(("a", "great"), ("b", "dull")))
    assert table["confidence"].to_pylist() == [pytest.approx(0.9), None]
    assert table["probabilities"].to_pylist() == [pytest.approx([0.9, 0.1]), None]


class Engine:
    """Has `in_hand` records at once, or one: all are lost where one of them is deadly."""

    def __init__(self, part: Folder, in_hand: int) -> None:
        self.part, self.in_hand = part, in_hand
        self.asked: list[tuple[list[str], bool]] = []

    def __call__(self, requests: pa.Table, alone: bool) -> None:
        rows = requests.to_pylist()
        self.asked.append(([row["id"] for row in rows], alone))
        size = 1 if alone else self.in_hand
        for start in range(0, len(rows), size):
            together = rows[start : start + size]
            if not any("deadly" in row["text"] for row in together):
                said = [(row["id"], row["text"], "positive") for row in together]
                self.part.write_table(f"{len(self.asked)}-{start}.parquet", answers(*said))


def test_a_record_that_ends_the_engine_fails_and_the_others_are_answered(tmp_path):
    folder = Folder(str(tmp_path / "annotator"))
    texts = [(f"r{i}", "deadly" if i == 5 else f"text {i}") for i in range(12)]
    wanted = with_hashes(records(*texts))
    engine = Engine(folder / "running" / "round-0001", in_hand=4)
    assert ask_apart(wanted, pa.array([False] * 12), engine.part, engine) == 1
    ids = [key for key, _ in texts]
    assert engine.asked == [(ids, False), (ids[4:8], True)]
    collect(folder)
    outcome, table = parse_again(folder, records(*texts))
    assert outcome.counts == {"in": 12, "out": 11, "dropped": {"request_failed": 1}}
    assert outcome.details["errors"] == {ENDED: 1}
    assert table.filter(pa.array([key == "r5" for key in ids]))["label"].to_pylist() == [None]

    again = Engine(folder / "running" / "round-0002", in_hand=4)
    rows = with_hashes(records(*texts[4:7], ("new", "another")))
    told = pa.array([False, True, False, False])
    assert ask_apart(rows, told, again.part, again) == 1
    assert again.asked == [(["r4", "r6", "new"], False), (["r5"], True)]


@pytest.mark.parametrize(
    ("concurrency", "batch", "rows", "most"),
    [(32, 32, 8, 40), (256, 32, 32, 288), (4, 32, 4, 8), (1, 1, 1, 2)],
)
def test_a_crash_loses_little_more_than_the_requests_in_flight(concurrency, batch, rows, most):
    settings = {"concurrency": concurrency}
    config = AnnotateConfig(engine="openai", model="m", batch_size=batch, openai=settings)
    assert openai.block_rows(config) == rows
    assert openai._tasks(config) * rows == most


def test_records_asked_alone_are_never_in_an_engines_hand_together():
    config = AnnotateConfig(model="org/chat", batch_size=16, device="gpu")
    crowd = _processor_config(config, "gpu", 512, alone=False)
    assert (crowd.max_concurrent_batches, crowd.max_tasks_in_flight_per_actor) == (16, 18)
    assert may_be_lost(config) >= 18
    one = config.model_copy(update={"batch_size": 1})
    single = _processor_config(one, "gpu", 512, alone=True)
    assert (single.max_concurrent_batches, single.max_tasks_in_flight_per_actor) == (1, 1)
    assert may_be_lost(one, alone=True) < may_be_lost(config)


def test_another_parser_or_label_needs_no_engine(folder):
    wanted = records(("b", "dull"), ("a", "great"))
    config = VLLM.model_copy(update={"parse": "mention"})
    assert parse_again(folder, wanted, config)[1]["label"].to_pylist() == ["negative", "positive"]
    turned = TASK.model_copy(update={"labels": {"negative": [], "mixed": [], "positive": []}})
    _, table = parse_again(folder, wanted, config, turned)
    assert table["probabilities"].to_pylist()[1] == pytest.approx([0.1, 0.0, 0.9])
    assert annotator_id(config, turned) == annotator_id(VLLM, TASK)


def test_missing_answers_are_counted_and_not_asked_for(folder):
    with pytest.raises(UserError, match=r"2 of 3 records have no stored response"):
        parse_again(folder, records(("a", "great"), ("z", "new"), ("d", "text of before")))
    with pytest.raises(UserError, match=r"1 of 1 records have no stored response"):
        check_answered(records(("z", "new")), folder)
    check_answered(records(("a", "great"), ("c", "odd")), folder)
    assert folder.folders() == ["responses"] and not folder.files()


def test_a_later_answer_replaces_a_failure_and_an_answer_stays(folder):
    (folder / "responses").write_table(
        "round-0002.parquet", answers(("c", "odd", "negative"), ("a", "great", None))
    )
    _, table = parse_again(folder, records(("a", "great"), ("c", "odd")))
    assert table["label"].to_pylist() == ["positive", "negative"]


def test_a_killed_round_keeps_its_whole_files(folder):
    part = folder / "running" / "round-0002"
    part.write_table("x_000000-0.parquet", answers(("f", "fine", "positive")))
    part.write_table("x_000001-0.parquet", answers(("g", "lost", "positive")))
    whole = part.read_bytes("x_000001-0.parquet")
    part.write_bytes("x_000001-0.parquet", whole[: len(whole) // 2])
    part.write_bytes("x_000002-0.parquet", b"")
    with pytest.raises(UserError, match=r"1 of 2 records"):
        parse_again(folder, records(("f", "fine"), ("g", "lost")))
    _, table = parse_again(folder, records(("f", "fine")))
    assert table["label"].to_pylist() == ["positive"]


def test_what_a_killed_drivers_workers_write_late_is_added(folder):
    late = answers(("a", "great", "negative"), ("h", "late", "positive"))
    (folder / "running" / "round-0001").write_table("x_000009-0.parquet", late)
    collect(folder)
    assert folder.folders() == ["responses", "running"]
    assert not (folder / "running").folders()
    wanted = records(("a", "great"), ("h", "late"), ("e", "mixed"))
    _, table = parse_again(folder, wanted)
    assert table["label"].to_pylist() == ["positive", "positive", None]
    assert (folder / "responses").row_count() == 6


def test_an_answer_to_the_text_under_another_id_is_not_paid_again(folder):
    rows = records(("gold:a", "great"), ("5", "dull"), ("z", "odd"), ("e", "great"))
    assert unanswered(rows, folder)["id"].to_pylist() == ["z"]
    _, table = parse_again(folder, rows.slice(0, 2))
    assert table["id"].to_pylist() == ["gold:a", "5"]
    assert table["label"].to_pylist() == ["positive", None]
    stored = answers(("f", "failed once", None), ("g", "failed once", "negative"))
    (folder / "responses").write_table("round-0002.parquet", stored)
    _, table = parse_again(folder, records(("f", "failed once"), ("g", "failed once")))
    assert table["label"].to_pylist() == ["negative", "negative"]


def test_a_recorded_answer_belongs_to_its_id(tmp_path):
    folder = Folder(str(tmp_path / "annotator"))
    free = answers(("a", "twice", "positive")).drop_columns("output_tokens")
    tokens = pa.array([None], pa.int32())
    free = free.add_column(5, schema.RESPONSE.field("output_tokens"), tokens)
    (folder / "responses").write_table("round-0001.parquet", free)
    both = records(("a", "twice"), ("b", "twice"))
    assert unanswered(both, folder)["id"].to_pylist() == ["b"]


def test_an_id_for_two_records_is_refused(folder):
    with pytest.raises(UserError, match="'a' stands for more than one record"):
        parse_again(folder, records(("a", "great"), ("a", "other")))


@pytest.mark.parametrize(
    ("update", "same"),
    [
        ({"parse": "mention"}, True),
        ({"tensor_parallel_size": 4, "replicas": (2, 8), "batch_size": 64}, True),
        ({"engine_kwargs": {"gpu_memory_utilization": 0.8}, "gold_records": 7}, True),
        ({"engine_kwargs": {"download_dir": "/models", "async_scheduling": True}}, True),
        ({"engine_kwargs": {"quantization": "fp8"}}, False),
        ({"engine_kwargs": {"load_format": "dummy"}}, False),  # weights at random
        ({"model": "org/other"}, False),
        ({"openai": {"first_token": False, "timeout_s": 5}, "max_failed_share": 0.5}, True),
        ({"temperature": 1.0}, False),
        ({"seed": 1}, False),
        ({"max_tokens": 11}, False),
        ({"structured": True}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
    ],
)
def test_annotator_id_goes_by_what_determines_answers(update, same):
    assert (annotator_id(VLLM.model_copy(update=update), TASK) == annotator_id(VLLM, TASK)) is same


@pytest.mark.parametrize(
    ("update", "same"),
    [
        ({"labels": {"positive": ["good"], "negative": []}}, True),
        ({"prompt": "Which, please? {text}"}, False),
        ({"system": "One word."}, False),
    ],
)
def test_annotator_id_goes_by_the_prompt(update, same):
    assert (annotator_id(VLLM, TASK.model_copy(update=update)) == annotator_id(VLLM, TASK)) is same


def test_annotator_id_goes_by_the_endpoint_however_it_is_written():
    ids = [
        annotator_id(AnnotateConfig(engine="openai", model="m", openai={"base_url": url}), TASK)
        for url in ("https://one.test/v1", "https://one.test/v1/", "https://two.test/v1")
    ]
    assert ids[0] == ids[1] != ids[2]


def test_annotator_id_goes_by_the_examples_as_they_are_shown():
    shown = TASK.model_copy(update={"examples": [Example(text="A joy.", label="positive")]})
    ids = [
        annotator_id(VLLM.model_copy(update={"parse": mode}), shown)
        for mode in ("answer", "mention", "json")
    ]
    assert ids[0] == ids[1] != ids[2]


def test_what_an_endpoint_is_asked():
    limited = {"max_text_chars": 6, "first_token": False}
    config = AnnotateConfig(
        engine="openai", model="m", structured=True, parse="json", openai=limited
    )
    shown = TASK.model_copy(update={"examples": [Example(text="A joy.", label="pos")]})
    chat, truncated = openai._chat(config, shown, "START of it END", control_pattern())
    assert [turn["content"] for turn in chat] == [
        "Which? A joy.",
        '{"label": "positive"}',
        "Which? STA … END",
    ]
    assert truncated and not openai._chat(config, TASK, "short", control_pattern())[1]
    asked = openai._parameters(config, TASK)
    assert "logprobs" not in asked
    assert asked["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "annotation",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"label": {"type": "string", "enum": ["positive", "negative"]}},
                "required": ["label"],
                "additionalProperties": False,
            },
        },
    }
    free = config.model_copy(update={"structured": False})
    assert "response_format" not in openai._parameters(free, TASK)


def test_annotator_id_of_a_constrained_answer_goes_by_the_labels():
    config = VLLM.model_copy(update={"structured": True})
    other = TASK.model_copy(update={"labels": {"positive": [], "mixed": []}})
    assert annotator_id(config, TASK) != annotator_id(config, other)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "engine vllm needs annotate.model"),
        ({"engine": "recorded"}, "annotate.recorded.path"),
        ({"engine": "openai", "model": "m", "structured": True}, "parse: json"),
        ({"model": "m", "replicas": [3, 2]}, "no range"),
        (
            {"engine": "openai", "model": "m", "max_model_len": 4096},
            "max_model_len does nothing with engine openai",
        ),
        (
            {"engine": "recorded", "recorded": {"path": "a.csv"}, "replicas": [1, 2]},
            "replicas does nothing with engine recorded",
        ),
        (
            {"engine": "recorded", "recorded": {"path": "a.csv"}, "structured": True},
            "structured does nothing with engine recorded",
        ),
        ({"model": "m", "engine_kwargs": {"hf_token": "x"}}, "'hf_token' looks like a secret"),
        ({"model": "m", "max_model_len": 10}, "leaves no room"),
        ({"model": "m", "engine_kwargs": {"max_model_len": 9}}, "annotate.max_model_len instead"),
        ({"model": "m", "max_tokens": 0}, "greater than or equal to 1"),
        ({"model": "m", "top_q": 0}, "Extra inputs"),
        ({"model": "m", "openai": {"api_key_env": "sk-a1"}}, "not the name of an environment"),
    ],
)
def test_a_wrong_configuration_is_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        AnnotateConfig(**fields)


def test_check_of_each_engine(tmp_path, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    http = AnnotateConfig(engine="openai", model="m", openai={"api_key_env": "SOME_KEY"})
    with pytest.raises(UserError, match="SOME_KEY is not set"):
        check(http, TASK)
    monkeypatch.setenv("SOME_KEY", "sk-1")
    check(http, TASK)
    with pytest.raises(UserError, match="no folder"):
        check(AnnotateConfig(model="/no/such/model"), TASK)
    path = tmp_path / "answers.parquet"
    pq.write_table(pa.table({"id": [1], "reply": ["yes"]}), path)
    table = AnnotateConfig(engine="recorded", recorded={"path": str(path)})
    with pytest.raises(UserError, match="no column 'response'"):
        check(table, TASK)
    check(
        AnnotateConfig(engine="recorded", recorded={"path": str(path), "response": "reply"}), TASK
    )


class Count:
    records = tokens = 0

    def add(self, records: int, **tokens: int) -> None:
        self.records += records
        self.tokens += sum(tokens.values())


def look_up(table: pa.Table, path, wanted: pa.Table, **settings) -> list:
    pq.write_table(table, path)
    answers = recorded._read(RecordedConfig(path=str(path), **settings))
    block = recorded._look_up(with_hashes(wanted).combine_chunks(), answers, Count())
    assert block.schema.equals(schema.RESPONSE)
    return block["response"].to_pylist()


def test_recorded_answers_of_ids_that_stand_for_two_texts(tmp_path):
    path = tmp_path / "answers.parquet"
    table = pa.table({"id": ["7", "8", "7"], "response": ["a", "b", "c"], "said": ["x", "y", "z"]})
    wanted = records(("7", "x"), ("8", "y"), ("gold:7", "z"))
    with pytest.raises(UserError, match="'7' of the recorded answers") as caught:
        look_up(table, path, wanted)
    assert "annotate.recorded.text" in caught.value.remedy
    assert look_up(table, path, wanted, text="said") == ["a", "b", "c"]
    assert look_up(table, path, records(("7", "x"), ("gold:9", "q"))) == ["a", None]
    named = table.slice(0, 2).append_column("other", [["7", "gold:7"]])
    assert look_up(named, path, records(("gold:7", "z")), id="other") == ["b"]
    with pytest.raises(UserError, match="no column 'words'"):
        check(
            AnnotateConfig(engine="recorded", recorded={"path": str(path), "text": "words"}), TASK
        )


def test_what_an_engine_failed_of_and_where_it_says_more(folder):
    failed = _reason(RuntimeError("out of memory"), folder)
    assert "RuntimeError: out of memory" in failed.message
    assert "LLAMBERT_WORKER_LOGS=1" in failed.remedy and folder.uri in failed.remedy
    ours = UserError("the key is refused", "check it")
    outer = RuntimeError("task failed")
    outer.__cause__ = ours
    assert _reason(outer, folder) is ours


def test_required_resources():
    config = AnnotateConfig(
        model="m", tensor_parallel_size=4, pipeline_parallel_size=2, replicas=(2, 5)
    )
    assert required_resources(config, {"CPU": 8.0}) == Workers(16, {"CPU": 1})
    assert required_resources(config, {"CPU": 8.0, "GPU": 1.0}) == Workers(16, {"GPU": 1})
    on_cpu = config.model_copy(update={"device": "cpu"})
    assert required_resources(on_cpu, {"CPU": 8.0, "GPU": 1.0}) == Workers(16, {"CPU": 1})
    of_a_kind = config.model_copy(update={"accelerator_type": "A100"})
    held = required_resources(of_a_kind, {"GPU": 1.0}).each
    assert held == {"GPU": 1, "accelerator_type:A100": 0.001}


def test_device_seconds_are_those_of_the_most_replicas(monkeypatch):
    """Which are no more than the cluster has GPUs for."""
    monkeypatch.setattr("llambert.annotate.resources", lambda: {"GPU": 15.0})
    monkeypatch.setattr("llambert.cluster.resources", lambda: {"GPU": 15.0})
    config = AnnotateConfig(model="m", tensor_parallel_size=4, replicas=(1, 8))
    assert _devices(config, 10.0) == {
        "device": "gpu",
        "devices_per_replica": 4,
        "replicas": (1, 3),
        "device_seconds": 120.0,
    }


def test_a_vllm_block_of_answers_and_failures_becomes_responses():
    from llambert.engines.vllm import _responses

    rows = [
        {
            "id": "1",
            "text_hash": 5,
            "truncated": True,
            "generated_text": "yes",
            "num_input_tokens": 9,
            "num_generated_tokens": 1,
            "first_token": [{"token": "yes", "probability": 0.5}],
            "__inference_error__": "",
        },
        {"id": "2", "text_hash": 6, "truncated": False, "__inference_error__": "ValueError: x"},
    ]
    count = Count()
    first, second = _responses(pa.Table.from_pylist(rows), count).to_pylist()
    assert (first["response"], first["error"], first["prompt_tokens"]) == ("yes", None, 9)
    assert (second["response"], second["error"], second["truncated"]) == (
        None,
        "ValueError: x",
        False,
    )
    assert (count.records, count.tokens) == (2, 10)
    only_failed = _responses(pa.Table.from_pylist(rows[1:]), count)
    assert only_failed["error"].to_pylist() == ["ValueError: x"]
    assert only_failed.schema.equals(schema.RESPONSE)


def test_a_pipeline_on_cpus_is_refused_before_an_engine_starts():
    config = VLLM.model_copy(update={"pipeline_parallel_size": 2, "max_model_len": 64})
    with pytest.raises(UserError, match="pipeline_parallel_size is 2"):
        engine_settings(config, TASK, "cpu", 64)
    assert engine_settings(config, TASK, "gpu", 64)[0]["pipeline_parallel_size"] == 2


@pytest.mark.parametrize(
    ("devices", "replicas", "threads"), [(1, 1, "8"), (2, 1, "4"), (2, 2, "2")]
)
def test_engines_on_cpus_share_the_cores_as_threads(monkeypatch, devices, replicas, threads):
    """Ray would give each process one, for it is told that an engine takes less than a core."""
    monkeypatch.setattr(vllm, "node_cpus", lambda: [8])
    monkeypatch.setattr(vllm, "_kv_cache_bytes", lambda config, window, dtype: 2**20)
    shape = {"tensor_parallel_size": devices, "replicas": (1, replicas)}
    found = _processor_config(VLLM.model_copy(update=shape), "cpu", 512, alone=False)
    assert found.runtime_env["env_vars"]["OMP_NUM_THREADS"] == threads


def test_engines_are_told_to_end_with_their_actor(monkeypatch):
    monkeypatch.setattr(vllm, "_kv_cache_bytes", lambda config, window, dtype: 2**20)
    monkeypatch.setattr(vllm, "node_cpus", lambda: [8])
    for where in ("cpu", "gpu"):
        found = _processor_config(VLLM, where, 512, alone=False)
        assert found.runtime_env["env_vars"][FOLLOW]
