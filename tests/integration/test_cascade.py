"""The least certain records on real components: to the LLM, whose label wins, and to people."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from llambert.interval import wilson_interval
from tests.tiny_roberta import easy_records, make_tiny_roberta

RECORDS = 1000
GOLD = 300
GOLD_ASKED = 100  # of these, with the sample; a cascade may ask as many more
SHARE, LARGER = 0.1, 0.25
IDS = range(10_000, 10_000 + RECORDS)


def llambert(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "llambert", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=800)


def write_run(folder: Path) -> str:
    """A corpus of integer ids in two files, gold to measure with, and no label to train on.

    The LLM, here recorded answers, contradicts the truth in every seventh record and gives no
    label in every eleventh.
    """
    records, gold = easy_records(RECORDS), easy_records(GOLD, seed=1)
    gold = gold.set_column(0, "id", pa.array([f"g{i}" for i in range(GOLD)]))
    asked = pa.concat_tables([records.set_column(0, "id", pa.array(map(str, IDS))), gold])
    other = {"positive": "negative", "negative": "positive"}
    said = [other[x] if i % 7 == 0 else x for i, x in enumerate(asked["label"].to_pylist())]
    said[::11] = ["Hard to say."] * len(said[::11])
    corpus = folder / "corpus"
    corpus.mkdir()
    texts = pa.table({"id": pa.array(IDS, pa.int64()), "text": records["text"]})
    for part in range(2):
        pq.write_table(texts.slice(part * 500, 500), corpus / f"part-{part}.parquet")
    pq.write_table(gold, folder / "gold.parquet")
    answers = pa.table({"id": asked["id"], "response": said})
    pq.write_table(answers, folder / "answers.parquet")
    run = {
        "name": "films",
        "workdir": "out",
        "task": {"labels": {"negative": [], "positive": []}, "prompt": "Good? {text}"},
        "corpus": {"path": "corpus", "id": "id"},
        "gold": {"test": "gold.parquet", "id": "id"},
        "sample": {"size": 200},
        "annotate": {
            "engine": "recorded",
            "gold_records": GOLD_ASKED,
            "recorded": {"path": "answers.parquet", "id": "id", "response": "response"},
        },
        "train": {
            "model": make_tiny_roberta(folder / "encoder"),
            "epochs": 1,
            "learning_rate": 1e-2,
            "max_length": 32,
        },
        "cascade": {"share": SHARE},
        "review": {"records": 20},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return str(path)


def rows(*parts: object) -> list[dict]:
    """The rows of one Parquet file, or of those directly in a folder."""
    path = Path(*map(str, parts))
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def details(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())["details"]


@pytest.fixture(scope="module")
def done(tmp_path_factory, joined):
    """The workdir of a run with both sections, and the run file."""
    folder = tmp_path_factory.mktemp("cascade")
    config = write_run(folder)
    finished = llambert("run", config)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder / "out", config


def expected(out: Path, answers: dict[str, str], share: float) -> dict[int, tuple[str, str]]:
    """id -> label and who decided it, worked out from the encoder's labels alone."""
    (labels,) = (out / "labels").iterdir()
    order = sorted(rows(labels), key=lambda row: (row["confidence"], row["id"]))
    decided = {row["id"]: (row["label"], "encoder") for row in order}
    for row in order[: round(share * RECORDS)]:
        if answers[str(row["id"])] in ("positive", "negative"):
            decided[row["id"]] = (answers[str(row["id"])], "llm")
    return decided


def check(out: Path, share: float) -> dict:
    """The labels, and the accuracy that the manifest tells, against a reckoning by hand."""
    answers = {row["id"]: row["response"] for row in rows(out.parent, "answers.parquet")}
    written = rows(out, "cascade", "labels")
    found = {row["id"]: (row["label"], row["by"]) for row in written}
    assert len(written) == len(found) == RECORDS
    assert found == expected(out, answers, share)
    told = details(out / "cascade")
    assert told["answered"] == sum(by == "llm" for _, by in found.values()) < share * RECORDS
    predictions = rows(out, "evaluation", "predictions")
    right = {"encoder": 0, "cascade": 0}
    for row in predictions:
        answer = answers[row["id"]] if row["confidence"] <= told["threshold"] else None
        label = answer if answer in ("positive", "negative") else row["label"]
        right["encoder"] += row["label"] == row["gold"]
        right["cascade"] += label == row["gold"]
    for who, number in right.items():
        assert told["gold"][who] == {
            "accuracy": number / GOLD,
            "accuracy_interval": list(wilson_interval(number, GOLD)),
        }
    assert told["cost"]["answers"] <= share * RECORDS + GOLD_ASKED
    assert told["gold"]["mended"] - told["gold"]["spoilt"] == right["cascade"] - right["encoder"]
    return told


def test_the_llm_decides_what_the_encoder_is_unsure_of(done):
    out, _ = done
    told = check(out, SHARE)
    (annotator,) = (out / "annotations").iterdir()
    assert told["cost"]["asked"] == told["cost"]["answers"]
    assert len(rows(annotator, "responses")) == 200 + GOLD_ASKED + told["cost"]["asked"]


def test_people_are_given_what_is_least_certain_now(done):
    out, _ = done
    tasks = json.loads((out / "review" / "tasks.json").read_text())
    undecided = [row for row in rows(out, "cascade", "labels") if row["by"] == "encoder"]
    least = sorted(undecided, key=lambda row: (row["confidence"], row["id"]))[:20]
    texts = {str(row["id"]): row["text"] for row in rows(out.parent, "corpus")}
    (labels,) = (out / "labels").iterdir()
    assert [task["data"]["id"] for task in tasks] == [str(row["id"]) for row in least]
    for task, row in zip(tasks, least, strict=True):
        (prediction,) = task["predictions"]
        assert task["data"]["text"] == texts[task["data"]["id"]]
        assert prediction["score"] == row["confidence"]
        assert prediction["result"][0]["value"] == {"choices": [row["label"]]}
        assert prediction["model_version"] == labels.name
    interface = ElementTree.parse(out / "review" / "label_config.xml")
    assert [choice.get("value") for choice in interface.iter("Choice")] == ["negative", "positive"]


def test_the_report_tells_both_accuracies(done):
    out, _ = done
    told = json.loads((out / "report" / "report.json").read_text())["steps"]["cascade"]["details"]
    page = (out / "report" / "index.html").read_text()
    assert told["gold"] == details(out / "cascade")["gold"]
    for who in ("encoder", "cascade"):
        assert f"{100 * told['gold'][who]['accuracy']:.2f} %" in page


def test_a_run_without_the_sections_has_no_such_stages(done, tmp_path):
    _, config = done
    run = yaml.safe_load(Path(config).read_text())
    for section in ("cascade", "review"):
        del run[section]
    plain = Path(config).with_name("plain.yaml")
    plain.write_text(yaml.safe_dump(run))
    status = llambert("status", str(plain)).stdout.splitlines()
    assert [line.split()[1] for line in status] == [
        *("corpus", "sample", "annotate", "train", "evaluate", "label", "report")
    ]
    assert {line.split()[0] for line in status[:-1]} == {"done"}
    for words in (["cascade"], ["run", "--from=review"]):
        refused = llambert(words[0], str(plain), *words[1:])
        assert refused.returncode == 2
        assert "has no section" in refused.stderr and "Traceback" not in refused.stderr


def test_a_larger_share_asks_only_for_the_difference(done):
    out, config = done
    before = details(out / "cascade")["cost"]["answers"]
    grown = llambert("run", config, "--set", f"cascade.share={LARGER}")
    assert grown.returncode == 0, grown.stdout + grown.stderr
    cost = check(out, LARGER)["cost"]
    assert cost["asked"] == cost["answers"] - before > 0
    (annotator,) = (out / "annotations").iterdir()
    paid = rows(annotator, "responses")
    assert len({(row["id"], row["text_hash"]) for row in paid}) == len(paid)
    assert len(paid) == 200 + GOLD_ASKED + cost["answers"]


def test_a_larger_sample_does_not_ask_what_the_cascade_has_asked(done):
    out, config = done
    (annotator,) = (out / "annotations").iterdir()
    known = {row["id"] for row in rows(annotator, "responses")}
    wider = llambert("run", config, "--set=sample.size=400", "--until=annotate")
    assert wider.returncode == 0, wider.stdout + wider.stderr
    sample = {row["id"] for row in rows(out, "sample")}
    assert details(annotator)["asked"] == len(sample - known) < 200
