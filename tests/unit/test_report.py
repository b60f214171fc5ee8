"""The report of hand-made manifests: its figures, and that nothing in it becomes markup."""

import json
from html.parser import HTMLParser

from llambert.gates import Gate
from llambert.interval import wilson_interval
from llambert.report import report
from llambert.storage import Folder, Manifest

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The tags of a page and its cells, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


def manifest(stage: str, out: int, details=None, dropped=None) -> Manifest:
    dropped = dropped or {}
    counts = {"in": out + sum(dropped.values()), "out": out, "dropped": dropped}
    return Manifest(stage, "f00", "f00", counts, 12.34, details or {}, {}, {"ray": "2.60.0"})


def write(tmp_path, name="films", gates=(), **changes) -> tuple[dict, Page]:
    made = {
        "corpus": manifest("corpus", 100_000, dropped={"empty_text": 3}),
        "sample": manifest("sample", 50, dropped={"not_drawn": 99_950}),
        "annotate": manifest("annotate", 45, dropped={"off_list": 5}),
        "train llambert seed 1": manifest("train", 45),
        "evaluate": manifest("evaluate", 0, {"gold_records": 0}),
        "label": manifest("label", 100_000),
    } | changes
    folder = Folder(str(tmp_path / "report"))
    pairs = {title: (Folder(f"/w/{title}"), each) for title, each in made.items()}
    outcome = report(name, pairs, gates, folder)
    assert outcome.counts == {"in": len(made), "out": len(made), "dropped": {}}
    value = json.loads(folder.read_bytes("report.json"))
    return value, Page(folder.read_bytes("index.html").decode())


def test_how_good_how_fast_and_what_it_cost(tmp_path):
    asked = {
        "asked": 50,
        "prompt_tokens": 12_345,
        "output_tokens": 100,
        "seconds": 9.5,
        "records_per_s": 7.25,
        "device": "gpu",
        "gold_refused": {"unknown_label": 2},
    }
    trained = {
        "records_per_s": 33.3,
        "tokens": 4500,
        "training_seconds": 4.1,
        "device_seconds": 8.2,
        "warnings": ["no record has the label 'x': it will not be predicted"],
    }
    right = {"accuracy": 0.9312, "accuracy_interval": [0.92, 0.94], "macro_f1": 0.93}
    value, page = write(
        tmp_path,
        annotate=manifest("annotate", 45, asked, {"off_list": 5}),
        **{"train llambert seed 1": manifest("train", 45, trained)},
        evaluate=manifest("evaluate", 25, {"gold_records": 25, "llambert": right}),
        label=manifest("label", 100_000, {"labelled_now": 100_000, "records_per_s": 512.04}),
    )
    assert value["evaluation"]["llambert"] == right
    assert value["work"] == {
        "annotate": {
            "records": 50,
            "records_per_s": 7.25,
            "prompt_tokens": 12_345,
            "output_tokens": 100,
            "seconds": 9.5,
            "device": "gpu",
        },
        "train llambert seed 1": {
            "records_per_s": 33.3,
            "tokens": 4500,
            "seconds": 4.1,
            "device_seconds": 8.2,
        },
        "label": {"records": 100_000, "records_per_s": 512.04},
    }
    assert [(note["step"], note["kind"], note.get("records")) for note in value["notes"]] == [
        ("corpus", "refused", 3),
        ("annotate", "rejected", 5),
        ("annotate", "gold record refused", 2),
        ("train llambert seed 1", "warning", None),
    ]
    assert ["llambert", "93.12 %", "92.00\u201394.00 %", "0.930"] in page.rows
    *_, heading = [row for row in page.rows if row[0] == "step" and "records/s" in row]
    for row in (
        ["annotate", "50", "7.2", "12,345", "100", "", "9.5", "", "gpu"],
        ["label", "100,000", "512.0", "", "", "", "", "", ""],
    ):
        assert row in page.rows
        assert len(row) == len(heading)
    reject = "off_list: the response is an answer that is none of the labels"
    assert ["annotate", "rejected", reject, "5"] in page.rows


def test_the_gates_that_were_passed(tmp_path):
    gates = [Gate("llm_accuracy", 0.8, 9, 10, ""), Gate("rejects_share", 0.5, 0, 45, "")]
    value, page = write(tmp_path, gates=gates)
    assert value["gates"][0] == {
        "name": "llm_accuracy",
        "stage": "annotate",
        "figure": 0.9,
        "interval": list(wilson_interval(9, 10)),
        "records": 10,
        "bound": 0.8,
        "asks": "at least 0.8",
        "passed": True,
    }
    row = ["llm_accuracy", "annotate", "90.00 %", "59.58\u201398.21 %", "10", "at least 0.8", "yes"]
    assert row in page.rows
    assert [row[5] for row in page.rows if row[0] == "rejects_share"] == ["at most 0.5"]
    assert not any(row[0] == "gate" for row in write(tmp_path)[1].rows)


def test_only_what_was_measured_is_shown(tmp_path):
    """Recorded answers have no tokens, and a step that had nothing to do has no speed."""
    recorded = {"asked": 50, "prompt_tokens": 0, "output_tokens": 0, "records_per_s": None}
    value, page = write(tmp_path, annotate=manifest("annotate", 45, recorded))
    assert value["work"] == {"annotate": {"records": 50}}
    assert ["step", "records"] in page.rows
    value, page = write(tmp_path, corpus=manifest("corpus", 9), annotate=manifest("annotate", 9))
    assert value["work"] == {} and value["notes"] == []
    assert not any("records/s" in row or "note" in row for row in page.rows)


def test_nothing_in_a_run_becomes_markup(tmp_path):
    details = {"errors": {HOSTILE: 1}, "gold_refused": {HOSTILE: 2}, "device": HOSTILE}
    hostile = {
        "annotate": manifest("annotate", 9, details, {HOSTILE: 3}),
        "label": manifest("label", 9, {"warnings": [HOSTILE]}),
    }
    value, page = write(tmp_path, name=HOSTILE, **hostile)
    assert "script" not in page.tags
    assert value["name"] == HOSTILE
    shown = [(row[1], row[3]) for row in page.rows if len(row) == 4 and row[2] == HOSTILE]
    expected = {("rejected", "3"), ("gold record refused", "2"), ("request failed", "1")}
    assert set(shown) == {*expected, ("warning", "")}
