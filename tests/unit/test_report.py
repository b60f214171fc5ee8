"""The report of hand-made artefacts: its figures, and that nothing in it becomes markup."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

import llambert
from llambert.gates import Gate
from llambert.held import PricesConfig
from llambert.interval import wilson_interval
from llambert.measures import exact_mcnemar
from llambert.plan import Range, Rate, Work, as_json, estimate
from llambert.report import report
from llambert.report_plots import VARIABLES, WHO, curve_file, figures
from llambert.storage import Folder
from tests.finished_run import RECORDS, finished_run, manifest, settings, write_curve

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The tags of a page, its text, and its table cells row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.words = ""
        self.in_cell = False
        self.feed(text)
        self.words = " ".join(self.words.split())

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
        self.words += data + " "
        if self.in_cell:
            self.rows[-1][-1] += " ".join(data.split())


def write(
    tmp_path,
    name="films",
    mark="",
    labels=("negative", "positive"),
    gates=(),
    curve=None,
    prices=None,
    **changes,
):
    """report.json and the page of a finished run, with manifests changed or (None) left out."""
    made = finished_run(tmp_path, mark, labels)
    for title, each in changes.items():
        made[title] = (made.get(title, (Folder(str(tmp_path / title)), None))[0], each)
    made = {title: pair for title, pair in made.items() if pair[1]}
    folder = Folder(str(tmp_path / "report"))
    told = settings(mark, labels)
    outcome = report(name, made, told, folder, gates, curve=curve, prices=prices)
    assert outcome.counts == {"in": len(made), "out": len(made), "dropped": {}}
    value = json.loads(folder.read_bytes("report.json"))
    return value, Page(folder.read_bytes("index.html").decode())


def test_the_answer_comes_first(tmp_path):
    value, page = write(tmp_path)
    combined = value["evaluation"]["combined"]["seeds"]["1"]  # the model that labelled
    assert value["answer"] == {
        "records": RECORDS + 4,
        "labelled": RECORDS,
        "quarantined": 4,
        "decided_by_llm": 0,
        "accuracy": combined["accuracy"],
        "accuracy_interval": combined["accuracy_interval"],
        "gold_records": 600,
    }
    # annotate 191, six trainings of 120, evaluate 30 and label 50 GPU-seconds, from start to end
    assert value["cost"]["amount"] == 191 + 6 * 120 + 30 + 50
    answer, _ = page.words.split("Flow", 1)
    assert "100,000 records labelled" in answer
    assert f"{100 * combined['accuracy']:.1f} % right against gold" in answer
    assert f"at {100 * value['cost']['share']:.1f} % of what the LLM alone" in answer
    assert "annotate : 1 request failed" in answer  # a warning
    assert "Both are counted alike" in answer
    llm = value["evaluation"]["llm"]
    assert llm["rejected"] > 0
    assert (
        f"on {llm['records']} records that it gave a label for; for {llm['rejected']} it" in answer
    )
    each = value["cost"]["per_record"]
    assert f"{each['llm'] / each['encoder']:.0f} times as much by the LLM" in page.words


def test_in_money_where_every_price_is_known(tmp_path):
    prices = PricesConfig(currency="EUR", llm_device_hour=36.0, encoder_device_hour=3.6)
    value, page = write(tmp_path, prices=prices)
    assert value["cost"]["unit"] == "EUR"
    assert value["cost"]["amount"] == pytest.approx(191 * 0.01 + (6 * 120 + 30 + 50) * 0.001)
    assert "With training, measuring and labelling that cost 2.71 EUR." in page.words
    assert "A thousand further records cost 1.16 EUR by the LLM" in page.words


def test_a_plan_made_before_is_shown_with_its_rates(tmp_path):
    rate = Rate("tokens", 1000.0, "our benchmark of May", margin=0.0, device="gpu")
    work = Work(Range.exactly(1000), "annotate", "llm", Range.exactly(100), Range.exactly(2))
    plan = {
        "created": "2031-05-06T07:08:09+00:00",
        "rates": {"annotate": as_json(rate)},
        "prices": PricesConfig().model_dump(),
        "done": [],
        "llambert": estimate({"annotate": work}, {"annotate": rate}, PricesConfig()),
    }
    made, folder = finished_run(tmp_path), Folder(str(tmp_path / "report"))
    report("films", made, settings(), folder, plan=plan)
    page = Page(folder.read_bytes("index.html").decode())
    assert "Planned on 2031-05-06 07:08 UTC" in page.words
    assert "our benchmark of May (annotate)" in page.words
    value = folder.read_json("report.json")
    planned, actual = 102 / 3600, 191 / 3600  # device-hours
    assert value["plan"]["annotate"]["device_hours"]["ratio"] == pytest.approx(
        actual / planned, abs=0.001
    )


def test_with_a_cascade_the_answer_is_of_its_labels(tmp_path):
    gold = {
        "records": 600,
        "answered": 50,
        "mended": 20,
        "spoilt": 5,
        "p_value": exact_mcnemar(20, 5),
        "encoder": {"accuracy": 0.9, "accuracy_interval": [0.87, 0.92]},
        "cascade": {"accuracy": 0.925, "accuracy_interval": [0.9, 0.945]},
    }
    cost = {"answers": 5000, "asked": 5000, "seconds": 320.0, "records_per_s": 17.0}
    details = {
        **{"least_certain": 4990, "threshold": 0.6, "answered": 4900, "changed": 700},
        **{"gold": gold, "cost": cost | {"device": "gpu", "device_seconds": 640.0}},
    }
    value, page = write(tmp_path, cascade=manifest("cascade", RECORDS, details))
    assert value["answer"]["accuracy"] == 0.925
    assert value["answer"]["decided_by_llm"] == 4900
    assert value["cost"]["amount"] == 191 + 6 * 120 + 30 + 50 + 640
    assert value["cost"]["llm_answers"] == 6000
    assert ["encoder, then LLM", "92.50 %", "90.00\u201394.50 %"] in page.rows
    tested = "it put 20 right and 5 wrong{} (McNemar's exact test, p {})."
    assert tested.format(": more than chance", "= 0.004") in page.words
    gold["p_value"] = exact_mcnemar(4, 4)
    page = write(tmp_path, cascade=manifest("cascade", RECORDS, details))[1]
    assert tested.format(": that may be chance", "= 1.000") in page.words
    del gold["p_value"]  # as an earlier version left it
    page = write(tmp_path, cascade=manifest("cascade", RECORDS, details))[1]
    assert "it put 20 right and 5 wrong." in page.words


def test_what_was_dropped_is_counted_with_its_reason(tmp_path):
    value, page = write(tmp_path)
    (corpus,) = [row for row in page.rows if row[0] == "corpus" and len(row) == 5]
    assert corpus[:4] == ["corpus", "100,004", "100,000", "12.3 s"]
    assert corpus[4].startswith("3the text is empty or only white space1an earlier record")
    assert [(note["step"], note["kind"], note.get("records")) for note in value["notes"]] == [
        ("annotate", "warning", None),
        ("annotate", "gold record refused", 2),
        ("annotate", "no answer", 1),
        ("annotate", "cut", 4),
    ]
    assert ["annotate", "no answer", "TimeoutError", "1"] in page.rows


def test_every_stages_reasons_have_a_meaning(tmp_path):
    train = manifest("train", 9, dropped={"no_label": 1, "in_gold_test": 1}, made="combined1")
    review = manifest("review", 200, dropped={"more_certain": 99_000, "decided_by_llm": 800})
    value, _ = write(tmp_path, **{"train combined seed 1": train}, review=review)
    dropped = [drop for step in value["steps"].values() for drop in step["dropped"]]
    assert len(dropped) == 9 and all(drop["meaning"] for drop in dropped)


def test_who_was_measured_and_whether_they_differ(tmp_path):
    value, page = write(tmp_path)
    for who in ("llm", "baseline", "llambert", "combined"):
        one = value["evaluation"][who]
        low, high = (f"{100 * bound:.2f}" for bound in one["accuracy_interval"])
        (row,) = [row for row in page.rows if row[1:2] == [f"{100 * one['accuracy']:.2f} %"]]
        assert row[2] == f"{low}\u2013{high} %"
    tests = value["evaluation"]["comparisons"]
    assert len(tests) == 12  # of four who were measured, six pairs with each seed
    (row,) = [row for row in page.rows if row[:3] == ["baseline", "combined", "1"]]
    assert row[6:] == ["< 0.001", "combined"]
    assert page.tags.count("svg") == 3


def test_mistakes_are_those_of_the_model_that_labelled(tmp_path):
    value, page = write(tmp_path)
    mistakes = value["mistakes"]
    assert len(mistakes) == 10
    assert [m["confidence"] for m in mistakes] == sorted(
        (m["confidence"] for m in mistakes), reverse=True
    )
    errors = (Folder(str(tmp_path / "evaluation"))).read_table("errors.parquet").to_pylist()
    its = {e["id"]: e["confidence"] for e in errors if (e["variant"], e["seed"]) == ("combined", 1)}
    assert all(its[m["id"]] == m["confidence"] for m in mistakes)
    assert mistakes[0]["text"].strip() in page.words


def test_rejects_come_with_their_answers(tmp_path):
    value, page = write(tmp_path)
    assert [(each["reason"], each["records"]) for each in value["rejects"]] == [
        ("no_label", 2),
        ("off_list", 1),
    ]
    (example,) = value["rejects"][0]["examples"]
    assert example == {
        "response": "Hard to say.",
        "records": 2,
        "id": "r0000",
        "text": "Review 0. ",
    }
    assert "no_label: 2 The response names no label. Hard to say. 2 times" in page.words


def test_a_long_text_is_cut(tmp_path):
    value, _ = write(tmp_path, mark="x" * 10_000)
    assert {len(mistake["text"]) for mistake in value["mistakes"]} == {602}


def test_speed_and_work(tmp_path):
    value, page = write(tmp_path)
    assert value["work"]["annotate"] == {
        "records": 1000,
        "records_per_s": 17.25,
        "prompt_tokens": 123_456,
        "output_tokens": 2000,
        "seconds": 95.5,
        "device_seconds": 191.0,
        "device": "gpu",
    }
    (heading,) = [row for row in page.rows if row[0] == "step" and "records/s" in row]
    assert heading == [
        *("step", "records", "records/s", "prompt tokens", "output tokens", "tokens"),
        *("padding", "seconds", "device-seconds", "device"),
    ]
    for row in (
        ["annotate", "1,000", "17.2", "123,456", "2,000", "", "", "95.5", "191.0", "gpu"],
        ["label", "100,000", "5,120.4", "", "", "30,000,000", "3.4 %", "25.0", "39.0", "gpu"],
    ):
        assert row in page.rows


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
    """Recorded answers have no tokens, an idle step no speed, no gold no figures."""
    recorded = {"asked": 50, "prompt_tokens": 0, "output_tokens": 0, "records_per_s": None}
    value, page = write(
        tmp_path,
        annotate=manifest("annotate", 45, recorded),
        evaluate=manifest("evaluate", 0, {"gold_records": 0}),
        label=manifest("label", RECORDS),
    )
    assert value["work"]["annotate"] == {"records": 50} and "label" not in value["work"]
    assert value["answer"]["accuracy"] is value["cost"]["share"] is None
    assert "svg" not in page.tags
    assert "there was no gold to measure against" in page.words
    assert "annotate used no device of this cluster, and its tokens were not counted" in page.words


def test_a_learning_curve_is_shown_where_there_is_one(tmp_path):
    _, page = write(tmp_path)
    assert page.tags.count("svg") == 3
    told = write_curve(tmp_path)
    value, page = write(tmp_path, curve=told)
    assert value["curve"] == told and page.tags.count("svg") == 4
    assert (
        "llambert: the next doubling, to 400 records, would bring +3.00 points (by the seeds +1.00 "
        "to +5.00 in 95 %), with 200 further labels and a training of 1 min 01 s; 200 records are "
        "enough"
    ) in page.words
    outlook = told["variants"]["llambert"]["outlook"]
    outlook |= {"law": None, "why": "there are 2 sizes", "gain": None, "gain_interval": None}
    outlook |= {"accuracy": None, "accuracy_interval": None}
    page = write(tmp_path, curve=told)[1]
    assert "llambert: no law is fitted, for there are 2 sizes; 200 records are" in page.words


def test_records_that_are_equally_sure_are_not_parted(tmp_path):
    """97 % of the labels have a confidence of 1: there is no surest half of them."""
    evaluate = finished_run(tmp_path)["evaluate"][1]
    one = evaluate.details["combined"]["seeds"]["1"]
    one["risk_coverage"] = [
        {"coverage": 0.97, "accuracy": 0.95, "confidence": 1.0},
        {"coverage": 1.0, "accuracy": 0.93, "confidence": 0.6},
    ]
    (row,) = [row for row in write(tmp_path, evaluate=evaluate)[1].rows if "alike" in str(row)]
    assert row[2:] == ["95.0 %of the surest 97.0 %, alike to the end"] * 2
    one["records"] = 15  # of so few the half is eight
    one["risk_coverage"] = [
        {"coverage": n / 15, "accuracy": 1.0, "confidence": 1 - n / 100} for n in range(1, 16)
    ]
    page = write(tmp_path, evaluate=evaluate)[1]
    assert not any("alike" in str(row) for row in page.rows)


def test_answers_that_no_record_of_the_run_got_are_told(tmp_path):
    annotate = finished_run(tmp_path)["annotate"][1]
    annotate.details["paid_responses"] = annotate.counts["in"] + 10_500
    page = write(tmp_path, annotate=annotate)[1]
    assert "answered the same question for 10,500 records more in this workdir" in page.words


def test_a_curve_as_a_file_has_the_pages_colours_by_day_and_no_variables(tmp_path):
    css = (Path(llambert.__file__).parent / "report.css").read_text()
    by_day = css[: css.index("@media")]
    assert [f"--{name}: {colour};" in by_day for colour, name in VARIABLES.items()] == [True] * 7
    curve = write_curve(tmp_path)
    file = curve_file(curve)
    assert file.startswith(b"<?xml") and file == curve_file(curve)
    assert WHO["llambert"].encode() in file and b"var(" not in file
    assert b"against 600 records" in file
    in_page = figures({"evaluation": {}, "curve": curve})["curve"]
    assert "var(--series-llambert)" in in_page and "#" not in in_page.replace('"#', "").replace(
        "url(#", ""
    )


def test_the_line_is_the_laws_and_without_a_law_there_is_none(tmp_path):
    curve = write_curve(tmp_path)
    one = curve["variants"]["llambert"]
    drawn = curve_file(curve).decode()
    assert drawn.count("stroke-dasharray") == 1 and ">400<" in drawn  # to the next doubling
    one["outlook"] |= {"law": None, "accuracy": None, "accuracy_interval": None}
    drawn = curve_file(curve).decode()
    assert "stroke-dasharray" not in drawn and ">400<" not in drawn
    one["sizes"] = one["sizes"][:1]
    assert ">100<" in curve_file(curve).decode()


def test_equal_runs_have_equal_pages(tmp_path):
    pages = []
    for name in ("a", "b"):
        made = finished_run(tmp_path / "run")
        folder = Folder(str(tmp_path / name))
        report("films", made, settings(), folder)
        created = folder.read_json("report.json")["created"]
        page = folder.read_bytes("index.html").decode()
        pages.append(page.replace(created[:16].replace("T", " "), ""))
    assert pages[0] == pages[1]


def test_nothing_in_a_run_becomes_markup(tmp_path):
    plain = write(tmp_path / "plain")[1].tags
    value, page = write(
        tmp_path / "hostile", name=HOSTILE, mark=HOSTILE, labels=(f"no {HOSTILE}", HOSTILE)
    )
    assert value["name"] == HOSTILE
    assert page.tags == plain
    assert "script" not in page.tags
    for words in (f"One word! {HOSTILE}", f"Mixed {HOSTILE}", f"1 request failed {HOSTILE}"):
        assert words in page.words
    texts = pa.array([mistake["text"] for mistake in value["mistakes"]])
    assert all(text.as_py().endswith(HOSTILE) for text in texts)
