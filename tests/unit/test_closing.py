"""What a run says at its end, from the report of artefacts made by hand."""

import pytest

from llambert.closing import _came_to
from llambert.held import PricesConfig
from llambert.storage import Folder
from tests.finished_run import RECORDS, manifest
from tests.unit.test_report import write


def told(tmp_path, explain=False, **changes):
    """The report's figures, and the lines that a run says of them."""
    value, _ = write(tmp_path, **changes)
    lines = _came_to(Folder(str(tmp_path / "report")), explain).splitlines()
    return value, [" ".join(line.split()) for line in lines]


def on_cpu(stage, records, seconds, per_s, **details):
    """A step on a cluster without GPUs."""
    asked = {"seconds": seconds, "records_per_s": per_s, "device": "cpu", **details}
    return manifest(stage, records, asked, **({"train": "combined1"} if stage == "label" else {}))


def small(**changes):
    """The steps of a small run on a machine without GPUs, of one training that counts."""
    none = {f"train {who} seed 2": None for who in ("baseline", "llambert", "combined")}
    none |= {f"train {who} seed 1": None for who in ("baseline", "llambert")}
    trained = {"training_seconds": 60.0, "device": "cpu", "workers": 1, "records_per_s": 30.0}
    return {
        **none,
        "train combined seed 1": manifest("train", 900, trained, made="combined1"),
        "annotate": on_cpu("annotate", 1000, 100.0, 20.0, asked=1000, device="cpu"),
        "evaluate": on_cpu("evaluate", 600, 3.0, 200.0, gold_records=600),
        "label": on_cpu("label", RECORDS, 50.0, 5000.0, labelled_now=RECORDS),
        **changes,
    }


def test_it_says_how_good_at_what_cost_and_where(tmp_path):
    value, said = told(tmp_path)
    for who, words in {
        "llm": "the LLM",
        "baseline": "encoder `baseline`, trained on gold alone",
        "llambert": "encoder `llambert`, on the LLM's labels",
        "combined": "encoder `combined`, on the LLM's, then gold",
    }.items():
        one = value["evaluation"][who]
        low, high = one["accuracy_interval"]
        records = one.get("records", 600)
        assert f"{words} {one['accuracy']:.1%} {low:.1%} to {high:.1%} of {records}" in said
    gpu_hours = f"{(191 + 6 * 120 + 30 + 50) / 3600:.2f} GPU-hours"
    assert f"LLM, training, measuring and labelling: {gpu_hours}" in said
    share = f"{100 * value['cost']['share']:.1f} %"
    assert any(line.endswith(f"GPU-hours, of which that is {share}") for line in said)
    assert said[-2:] == [f"labels {tmp_path}/labels/m/", f"report {tmp_path}/report/index.html"]
    assert not any(line.startswith(("What happened", "How fast", "corpus ")) for line in said)


def test_in_money_where_every_price_is_known(tmp_path):
    prices = PricesConfig(currency="EUR", llm_device_hour=36.0, encoder_device_hour=3.6)
    assert "LLM, training, measuring and labelling: 2.71 EUR" in told(tmp_path, prices=prices)[1]


def test_a_newcomer_is_told_what_happened_and_how_fast(tmp_path):
    value, said = told(tmp_path, explain=True, **small())
    first = value["cost"]["steps"]["annotate"]["amount"]
    first += value["cost"]["steps"]["train combined seed 1"]["amount"]
    minutes, seconds = divmod(int(first), 60)
    for line in (
        "corpus 100,004 records read, 4 (empty_text 3, duplicate_id 1) into quarantine",
        "sample 1,000 of them drawn at random",
        "train encoder `combined` on 900 records",
        "evaluate 600 records with gold labels, held back, put to each encoder",
        "label 100,000 labels by encoder `combined`, one for each good record",
        "the LLM 20.0 138 h 53 min",
        "the encoder 5,000.0 36 min 00 s, sample and all training "
        f"({minutes} min {seconds:02d} s) included",
    ):
        assert line in said


def test_what_was_too_short_to_be_measured_is_not_guessed(tmp_path):
    idle = on_cpu("annotate", 1000, 0.1, None, asked=10)
    _, said = told(tmp_path, explain=True, **small(annotate=idle))
    assert "the LLM ? too few records were put to it in this run to tell" in said
    assert "not known: annotate was over too soon to be measured" in said


def test_a_corpus_too_small_to_pay_is_said_to_be(tmp_path):
    slow = on_cpu("label", 1200, 30.0, 100.0, labelled_now=1200)
    value, said = told(tmp_path, **small(label=slow))
    assert value["cost"]["share"] > 1
    at = said.index("so small a corpus is cheaper by the LLM alone; this way pays from about")
    even = value["cost"]["break_even_records"]
    assert said[at + 1] == f"{int(float(f'{even:.2g}')):,} records on"
    assert not any("cheaper" in line for line in told(tmp_path, **small())[1])


def test_without_gold_it_does_not_say_how_good_the_labels_are(tmp_path):
    none = {"gold_records": 0}
    _, said = told(tmp_path, evaluate=manifest("evaluate", 0, none))
    assert "how good the labels are is not known, for there are no gold test records;" in said
    assert not any("%" in line and "to" in line and "of 6" in line for line in said)


@pytest.mark.parametrize(
    ("p", "own", "other", "words"),
    [
        (0.26, 5, 9, "may be chance (McNemar's test, p = 0.26)"),
        (0.001, 5, 30, "is more than chance (McNemar's test, p = 0.001)"),
        (0.001, 30, 5, None),
    ],
)
def test_whether_another_encoder_was_better_is_said_by_the_labelling_seed(
    tmp_path, p, own, other, words
):
    found = write(tmp_path)[0]["evaluation"]
    test = {"first": "llambert", "second": "combined", "seed": 1, "p_value": p}
    mine = test | {"only_first_right": other, "only_second_right": own, "records": 600}
    other_seed = mine | {"seed": 2, "only_first_right": 90}
    found["comparisons"] = [other_seed, mine, mine | {"second": "llm", "only_first_right": 99}]
    _, said = told(tmp_path, evaluate=manifest("evaluate", 600, found))
    better = [line for line in said if "right more often" in line]
    assert better == ([f"`llambert` was right more often, which {words}"] if words else [])
    assert "`combined` gave the labels; label.variant in the run file names another" in said


def test_of_a_cascade_it_tells_the_labels_that_are_final(tmp_path):
    gold = {
        "records": 600,
        "answered": 60,
        "mended": 20,
        "spoilt": 5,
        "encoder": {"accuracy": 0.9, "accuracy_interval": [0.87, 0.92]},
        "cascade": {"accuracy": 0.925, "accuracy_interval": [0.9, 0.94]},
    }
    details = {
        **{"least_certain": 10_000, "answered": 9000, "changed": 700, "threshold": 0.7},
        **{"gold": gold, "cost": {"answers": 9000, "asked": 9000, "device": "gpu"}},
    }
    _, said = told(tmp_path, cascade=manifest("cascade", RECORDS, details))
    assert "the labels, 9,000 of them by the LLM 92.5% 90.0% to 94.0% of 600" in said
    assert f"labels {tmp_path}/cascade/labels/" in said
