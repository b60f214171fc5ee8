"""Gates on hand-made figures: which are passed, what a breach says, which cannot be measured."""

import pyarrow as pa
import pytest

from llambert.config import RunConfig
from llambert.errors import GateError, UserError
from llambert.gates import (
    Gate,
    GatesConfig,
    annotation_gates,
    check_passed,
    evaluation_gates,
    training_gates,
)
from llambert.nightly_model import find_model
from llambert.storage import Folder, Manifest
from llambert.workdir import Workdir

LABELS = ["bad", "good", "odd"]
FOLDER = Folder("/w/annotations/0123")


def annotated(**dropped: int) -> Manifest:
    """What annotate made of 100 records: 1 odd, the rest good but for those dropped."""
    labels = {"good": 99 - sum(dropped.values()), "odd": 1}
    counts = {"in": 100, "out": 100 - sum(dropped.values()), "dropped": dropped}
    return Manifest("annotate", "f", "o", counts, details={"labels": labels})


def gold(*pairs: tuple[str, str | None]) -> pa.Table:
    truth, said = zip(*pairs, strict=True) if pairs else ((), ())
    return pa.table({"gold": pa.array(truth, pa.string()), "label": pa.array(said, pa.string())})


def one(config: GatesConfig, made: Manifest, answers: pa.Table | None = None) -> Gate:
    (gate,) = annotation_gates(config, LABELS, FOLDER, made, gold() if answers is None else answers)
    return gate


@pytest.mark.parametrize(("bound", "passed"), [(0.05, True), (0.049, False), (0, False)])
def test_at_most_so_many_rejects(bound, passed):
    gate = one(GatesConfig(rejects_share=bound), annotated(off_list=3, request_failed=2))
    assert (gate.share, gate.records, gate.passed) == (0.05, 100, passed)
    assert "off_list 3, request_failed 2" in gate.where and "annotations.parquet" in gate.where
    assert one(GatesConfig(rejects_share=0), annotated()).passed


def test_every_label_counts_for_the_balance_those_without_a_record_too():
    gate = one(GatesConfig(label_share=0.01), annotated())
    assert (gate.share, gate.passed) == (0, False)
    assert "bad 0, good 99, odd 1" in gate.where
    assert "0.0000 of the LLM's labels are its rarest, 'bad' (" in gate.line()
    (gate,) = annotation_gates(
        GatesConfig(label_share=0.01), LABELS[1:], FOLDER, annotated(), gold()
    )
    assert (gate.share, gate.passed) == (0.01, True)


def test_the_llm_is_judged_by_the_answers_that_gave_a_label_and_rejects_are_mistakes():
    answers = gold(("good", "good"), ("bad", "bad"), ("bad", None), ("odd", "bad"))
    gate = one(GatesConfig(llm_accuracy=0.66), annotated(), answers)
    assert (gate.hits, gate.records, gate.passed) == (2, 3, True)
    assert gate.table and gate.table.to_pydict() == {"gold": ["bad", "odd"], "label": [None, "bad"]}
    assert not one(GatesConfig(llm_accuracy=0.67), annotated(), answers).passed


@pytest.mark.parametrize("answers", [gold(), gold(("bad", None))])
def test_what_cannot_be_measured_is_not_passed(answers, tmp_path):
    gate = one(GatesConfig(llm_accuracy=0.01), annotated(), answers)
    assert gate.share is None and not gate.passed
    with pytest.raises(GateError, match=r"no record to measure by; at least 0\.01 passes"):
        check_passed([gate], Folder(str(tmp_path)))
    trained = Manifest("train", "f", "o", {}, details=held_back(None, 0))
    (gate,) = training_gates(GatesConfig(encoder_validation=0.5), FOLDER, trained)
    assert gate.share is None and not gate.passed


def held_back(accuracy: float | None, records: int) -> dict:
    return {"validation_accuracy": accuracy, "validation_records": records}


def test_the_encoder_that_labels_is_judged_and_no_other():
    trained = Manifest("train", "f", "o", {}, details=held_back(0.95, 40))
    (gate,) = training_gates(GatesConfig(encoder_validation=0.95), FOLDER, trained)
    assert gate.passed and gate.hits == 38
    seeds = {str(n): {"accuracy": n / 10, "records": 20} for n in (8, 9)}
    measured = Manifest("evaluate", "f", "o", {}, details={"combined": {"seeds": seeds}})
    for seed, passed in ((8, False), (9, True)):
        config = GatesConfig(encoder_accuracy=0.9)
        (gate,) = evaluation_gates(config, FOLDER, measured, "combined", seed)
        assert gate.passed == passed and gate.share == seed / 10
    assert f"variant combined, seed {seed}" in gate.where
    assert training_gates(GatesConfig(), FOLDER, trained) == []
    assert evaluation_gates(GatesConfig(), FOLDER, measured, "combined", 8) == []


def test_a_breach_names_figure_bound_and_mistakes_and_what_to_do(tmp_path):
    folder = Folder(str(tmp_path / "gates"))
    answers = gold(*[("good", "good")] * 7, *[("bad", "good")] * 3)
    config = GatesConfig(llm_accuracy=0.9, rejects_share=0.01, label_share=0.3)
    gates = annotation_gates(config, ["good"], FOLDER, annotated(off_list=2), answers)
    with pytest.raises(GateError) as raised:
        check_passed(gates, folder)
    said = str(raised.value)
    for words in (
        "llm_accuracy: 0.7000 of the LLM's labels are right by gold (0.3968 to 0.8922, 10 records)",
        "at least 0.9 passes",
        f"{folder.uri}/llm_accuracy.parquet (3 records)",
        "rejects_share: 0.0200",
        "at most 0.01",
        "--set gates.llm_accuracy=",
        "no answer is paid for twice",
    ):
        assert words in said
    assert "label_share" not in said and raised.value.exit_code == 4
    assert folder.read_table("llm_accuracy.parquet").num_rows == 3
    passed = annotation_gates(GatesConfig(llm_accuracy=0.7), ["good"], FOLDER, annotated(), answers)
    check_passed(passed, folder)
    assert not folder.exists()  # the mistakes were of an earlier answer


def config(tmp_path, gates, **changes) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "films",
            "workdir": str(tmp_path / "out"),
            "task": {"labels": {label: [] for label in LABELS}, "prompt": "Good? {text}"},
            "corpus": {"path": str(tmp_path / "corpus")},
            "gold": {"train": "gold.parquet", "test_share": 0.5},
            "sample": {"size": 10},
            "annotate": {"engine": "recorded", "recorded": {"path": "answers.parquet"}},
            "train": {"seeds": [1, 2]},
            "gates": gates,
        }
        | changes
    )


@pytest.mark.parametrize(
    ("gates", "changes", "says"),
    [
        ({"llm_accuracy": 0.9}, {"gold": None}, "gates.llm_accuracy is measured by gold test"),
        ({"encoder_accuracy": 0.9}, {"gold": {"train": "g.parquet"}}, "gates.encoder_accuracy is"),
        (
            {"llm_accuracy": 0.9},
            {
                "annotate": {
                    "engine": "recorded",
                    "recorded": {"path": "a.parquet"},
                    "gold_records": 0,
                }
            },
            "annotate.gold_records is 0",
        ),
        ({"encoder_validation": 0.9}, {"train": {"validation_share": 0}}, "validation_share is 0"),
        ({"label_share": 0.4}, {}, "3 labels cannot all have: it is at most 0.3333"),
        ({"rejects_share": 1.0}, {}, "rejects_share"),
        ({"llm_acuracy": 0.9}, {}, "llm_acuracy"),
    ],
)
def test_a_gate_that_nothing_can_pass_or_measure_is_refused(tmp_path, gates, changes, says):
    with pytest.raises(ValueError, match=says):
        config(tmp_path, gates, **changes)
    assert config(tmp_path, {}, **changes)


def test_a_night_does_not_begin_past_a_gate(tmp_path):
    workdir = Workdir(str(tmp_path / "out"))
    for seed, accuracy in ((1, 0.8), (2, 0.9)):
        folder = workdir.model("combined", seed)
        folder.write_json("config.json", {"id2label": dict(enumerate(LABELS))})
        folder.write_json("metrics.json", {"init_from": "org/encoder"})
        folder.write_bytes("model.safetensors", b"weights")
        folder.finish(Manifest("train", "f", f"model-{seed}", details=held_back(accuracy, 10)))
    for bound, passed in ((0.9, True), (0.91, False)):
        run = config(tmp_path, {"encoder_validation": bound})
        if passed:
            assert find_model(run, None).id == "model-2"
        else:
            with pytest.raises(GateError, match=r"encoder_validation: 0.9000"):
                find_model(run, None)
    run = config(tmp_path, {"encoder_accuracy": 0.9})
    with pytest.raises(UserError, match="seed-2' has not been evaluated"):
        find_model(run, None)
    seeds = {"1": {"accuracy": 1.0, "records": 5}, "2": {"accuracy": 0.8, "records": 5}}
    inputs = {"train combined seed 2": "model-2"}
    details = {"combined": {"seeds": seeds}}
    workdir.evaluation.finish(Manifest("evaluate", "f", "o", details=details, inputs=inputs))
    with pytest.raises(GateError, match=r"encoder_accuracy: 0.8000"):
        find_model(run, None)
    assert find_model(run, workdir.model("combined", 1).uri)  # a person chose it
