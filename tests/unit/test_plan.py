"""The arithmetic of a plan, of rates, and of plan against actual; by hand-worked figures."""

import math

import pytest
from pydantic import ValidationError

from llambert.held import PricesConfig
from llambert.plan import Range, Rate, RateConfig, Work, compare, estimate, plain
from llambert.planner import _cell
from llambert.storage import Manifest

PRICES = PricesConfig(
    currency="EUR",
    llm_device_hour=3.0,
    encoder_device_hour=0.5,
    million_prompt_tokens=2.0,
    million_output_tokens=10.0,
)
LLM = Rate("tokens", 1000.0, "a benchmark", margin=0.0, start_s=360.0)
ENCODER = Rate("tokens", 5000.0, "a benchmark", margin=0.25, start_s=36.0, devices=2)


def exactly(value: float) -> dict[str, float]:
    return dict.fromkeys(("low", "expected", "high"), value)


def test_ranges_hold_what_their_parts_hold():
    a, b = Range(1, 2, 4), Range(2, 5, 10)
    assert a.times(b) == (2, 10, 40)
    assert a.over(b) == (0.1, 0.4, 2.0)
    assert a.plus(b) == (3, 7, 14)
    assert Range.within(10.0, 0.25) == (8.0, 10.0, 12.5)
    assert b.at_most(6) == (2, 5, 6)


def test_device_hours_and_cost_of_an_llm_hold_its_start_and_all_its_replicas():
    """9,000 records of 390 + 10 tokens at 1,000 a second are an hour of one GPU; there are 2 x 4
    GPUs at most, each of which waits six minutes for the start."""
    work = Work(
        *(Range.exactly(9000), "annotate", "llm", Range.exactly(390), Range.exactly(10)),
        devices=Range(4, 8, 8),
    )
    found = estimate({"annotate": work}, {"annotate": LLM}, PRICES)
    stage = found["stages"]["annotate"]
    assert stage["tokens"] == exactly(3_600_000)
    assert stage["device_hours"] == {"low": 1.4, "expected": 1.8, "high": 1.8}
    assert stage["hours"] == {"low": 0.225, "expected": 0.225, "high": 0.35}
    assert stage["cost"] == {"low": 4.2, "expected": 5.4, "high": 5.4}
    assert found["total"] == {name: stage[name] for name in ("device_hours", "hours", "cost")}


def test_labelling_takes_the_devices_that_it_was_measured_with():
    work = Work(Range.exactly(90_000), "label", "encoder", Range.exactly(200))
    stage = estimate({"label": work}, {"label": ENCODER}, PRICES)["stages"]["label"]
    assert stage["device_hours"] == {"low": 0.816, "expected": 1.02, "high": 1.275}
    assert stage["hours"] == {"low": 0.408, "expected": 0.51, "high": 0.6375}
    assert stage["cost"]["expected"] == 0.51


def test_every_epoch_and_every_start_of_a_training_counts():
    work = Work(
        *(Range.exactly(1000), "train", "encoder", Range.exactly(100)),
        passes=4.5,
        devices=Range.exactly(2),
        starts=3,
    )
    rate = Rate("records", 10.0, "a benchmark", margin=0.0, start_s=30.0)
    stage = estimate({"train": work}, {"train": rate}, PRICES)["stages"]["train"]
    assert stage["hours"] == exactly((225 + 90) / 3600)
    assert stage["device_hours"] == exactly(2 * (225 + 90) / 3600)


def test_an_endpoint_is_paid_by_its_tokens():
    work = Work(Range.exactly(10_000), "annotate", "endpoint", Range(250, 300, 400), Range(1, 2, 9))
    found = estimate({"annotate": work}, {}, PRICES)
    stage = found["stages"]["annotate"]
    assert stage["cost"] == {"low": 5.1, "expected": 6.2, "high": 8.9}
    assert stage["hours"] is None and stage["device_hours"] is None
    assert found["total"]["hours"] is None and found["total"]["cost"] == stage["cost"]


def test_what_is_not_known_is_not_told():
    encoder = Work(Range.exactly(10), "label", "encoder", Range.exactly(100))
    recorded = Work(Range.exactly(10))
    no_rate = estimate({"annotate": recorded, "label": encoder}, {}, PRICES)
    assert no_rate["total"] == dict.fromkeys(("device_hours", "hours", "cost"))
    assert no_rate["stages"]["label"]["tokens"] == exactly(1000)
    no_price = estimate({"label": encoder}, {"label": ENCODER}, PricesConfig())
    assert no_price["total"]["cost"] is None and no_price["total"]["device_hours"] is not None
    nothing = estimate({"annotate": recorded}, {}, PricesConfig())["total"]
    assert nothing == {name: exactly(0) for name in ("device_hours", "hours", "cost")}


@pytest.mark.parametrize("units", [{}, {"tokens_per_s": 1, "records_per_s": 1}])
def test_a_rate_has_one_unit(units):
    with pytest.raises(ValidationError, match="give one of them"):
        RateConfig(source="a benchmark", **units)
    with pytest.raises(ValidationError, match="source"):
        RateConfig(tokens_per_s=1)


def manifest(stage: str, records: int, took: float, **details) -> Manifest:
    counts = {"in": records, "out": records, "dropped": {}}
    return Manifest(stage, "f", "f", counts, took, details)


def planned() -> dict:
    asking = Work(
        *(Range.exactly(9000), "annotate", "llm", Range.exactly(390), Range.exactly(10)),
        devices=Range.exactly(8),
    )
    labelling = Work(Range.exactly(90_000), "label", "encoder", Range.exactly(200))
    work = {"sample": Work(Range.exactly(9000)), "annotate": asking, "label": labelling}
    rates = {"annotate": LLM, "label": ENCODER}
    return {"llambert": estimate(work, rates, PRICES), "prices": PRICES.model_dump()}


def test_plan_against_actual():
    asked = {"asked": 9000, "prompt_tokens": 3_500_000, "output_tokens": 100_000}
    labelled = {"tokens": 9_000_000, "device_seconds": 1800.0, "workers": 3, "device": "gpu"}
    asked |= {"seconds": 1215.0, "device": "gpu"}
    made = [
        manifest("corpus", 90_000, 5.0),
        manifest("sample", 9000, 5.0),
        manifest("annotate", 9000, 1215.0, **asked, device_seconds=9720.0),
        manifest("label", 90_000, 1836.0, labelled_now=90_000, **labelled),
    ]
    found = compare(planned(), made)
    assert found["sample"] == {
        "records": {"planned": exactly(9000), "actual": 9000, "ratio": 1.0},
    }
    assert {name: row["ratio"] for name, row in found["annotate"].items()} == {
        **{"records": 1.0, "tokens": 1.0, "device_hours": 1.5},
        **{"hours": 1.5, "cost": 1.5},
    }
    assert found["annotate"]["cost"]["actual"] == 8.1
    assert {name: row["ratio"] for name, row in found["label"].items()} == {
        **{"records": 1.0, "tokens": 0.5, "device_hours": 1.5},
        **{"hours": 1.0, "cost": 1.5},
    }


def test_the_whole_run_is_held_against_the_whole_plan():
    rate = Rate("records", 1.0, "a benchmark", margin=1.0, device="gpu")
    work = {name: Work(Range.exactly(3600), name, "encoder") for name in ("train", "label")}
    plan = {"llambert": estimate(work, dict.fromkeys(work, rate), PRICES)}
    plan["prices"] = PRICES.model_dump()
    gpu = {"device": "gpu", "workers": 1}
    trained = manifest("train", 3600, 1800.0, training_seconds=1800.0, **gpu)
    labelled = manifest("label", 3600, 7200.0, labelled_now=3600, seconds=7200.0, **gpu)
    total = compare(plan, [trained, labelled])["total"]
    assert total["hours"] == {
        "planned": {"low": 1.0, "expected": 2.0, "high": 4.0},
        **{"actual": 2.5, "ratio": 1.25},
    }
    assert total["cost"]["actual"] == pytest.approx(2.5 * PRICES.encoder_device_hour)
    untold = manifest("label", 3600, 7200.0, labelled_now=3600, seconds=7200.0)
    without = plan["llambert"]["stages"]["label"] | {"devices": None}
    plan["llambert"]["stages"]["label"] = without
    assert set(compare(plan, [trained, untold])["total"]) == {"hours"}  # what it held is not known


def test_without_an_llms_rate_its_cost_is_not_left_out_of_the_total():
    """An endpoint's tokens have a price, but how fast it answers is not known."""
    asking = Work(
        *(Range.exactly(100), "annotate", "endpoint", Range.exactly(300), Range.exactly(2)),
    )
    rate = Rate("records", 1.0, "a benchmark", margin=0.0, device="gpu")
    work = {"annotate": asking, "label": Work(Range.exactly(3600), "label", "encoder")}
    plan = {"llambert": estimate(work, {"label": rate}, PRICES), "prices": PRICES.model_dump()}
    details = {"asked": 100, "prompt_tokens": 30_000, "output_tokens": 200}
    gpu = {"labelled_now": 3600, "seconds": 3600.0, "device": "gpu", "workers": 1}
    made = [manifest("annotate", 100, 9.0, **details), manifest("label", 3600, 3600.0, **gpu)]
    total = compare(plan, made)["total"]
    assert total.keys() == {"cost"}
    assert total["cost"]["actual"] == pytest.approx(0.062 + PRICES.encoder_device_hour)


def test_a_count_that_is_known_is_kept_to_the_last_record():
    assert plain(Range.exactly(12_345_678)) == exactly(12_345_678)
    assert plain(Range(12_345_678, 12_345_678, 23_456_789))["high"] == 23_456_800
    assert Range(0, 1, 2).over(Range(0, 4, 8)) == (0, 0.25, math.inf)


def test_hours_of_gpus_and_of_a_cluster_without_are_not_added_up():
    work = {name: Work(Range.exactly(3600), name, "encoder") for name in ("train", "label")}
    rates = {
        name: Rate("records", 1.0, "a benchmark", margin=0.0, device=device)
        for name, device in {"train": "gpu", "label": "cpu"}.items()
    }
    total = estimate(work, rates, PRICES)["total"]
    assert total["device_hours"] is None and total["hours"] == exactly(2)
    unsaid = rates | {"train": Rate("records", 1.0, "the run file", margin=0.0)}  # of a GPU
    assert estimate(work, unsaid, PRICES)["total"]["device_hours"] is None
    alike = dict.fromkeys(rates, rates["train"])
    assert estimate(work, alike, PRICES)["total"]["device_hours"] == exactly(2)


def test_a_round_that_found_answers_is_held_against_its_share_of_the_plan():
    """Two thirds of the answers were there: 1/3 of a GPU's hour and the start of 8 are left."""
    details = {"asked": 3000, "prompt_tokens": 3_510_000, "output_tokens": 90_000}
    details |= {"seconds": 510.0, "device": "gpu"}
    made = [manifest("annotate", 9000, 510.0, **details, device_seconds=4080.0)]
    found = compare(planned(), made)["annotate"]
    assert found["device_hours"]["planned"]["expected"] == pytest.approx(1 / 3 + 0.8, rel=1e-5)
    assert {name: row["ratio"] for name, row in found.items()} == dict.fromkeys(found, 1.0)
    assert set(found) == {"records", "tokens", "device_hours", "hours", "cost"}
    none = [manifest("annotate", 9000, 1.0, **{**details, "asked": 0})]
    assert set(compare(planned(), none)["annotate"]) == {"records", "tokens"}
    parsed_anew = {"last_round": details | {"device_seconds": 4080.0}}
    again = [manifest("annotate", 9000, 1.0, **{**details, "asked": 0}, **parsed_anew)]
    assert compare(planned(), again)["annotate"] == found
    assert compare(planned() | {"done": ["annotate"]}, made) == {}
    larger = {"last_round": details | {"asked": 90_000}}  # an earlier run's, of another sample
    fewer = [manifest("annotate", 9000, 1.0, **{**details, "asked": 0}, **larger)]
    assert set(compare(planned(), fewer)["annotate"]) == {"records", "tokens"}


def test_an_endpoint_was_paid_by_its_tokens():
    work = Work(
        *(Range.exactly(100), "annotate", "endpoint", Range.exactly(300), Range.exactly(2)),
    )
    plan = {"llambert": estimate({"annotate": work}, {}, PRICES), "prices": PRICES.model_dump()}
    details = {"asked": 100, "prompt_tokens": 60_000, "output_tokens": 400}
    found = compare(plan, [manifest("annotate", 100, 9.0, **details)])["annotate"]
    assert found["cost"] == {"planned": exactly(0.062), "actual": 0.124, "ratio": 2.0}
    assert set(found) == {"records", "tokens", "cost"}
    silent = manifest("annotate", 100, 9.0, asked=100, prompt_tokens=0, output_tokens=0)
    assert set(compare(plan, [silent])["annotate"]) == {"records"}


def test_a_training_that_went_on_after_a_crash_is_told_whole():
    work = Work(Range.exactly(1000), "train", "encoder", Range.exactly(100))
    rate = Rate("tokens", 1000.0, "a benchmark", margin=0.0, start_s=0.0)
    plan = {"llambert": estimate({"train": work}, {"train": rate}, PRICES)}
    plan["prices"] = PRICES.model_dump()
    details = {"training_seconds": 200.0, "device": "gpu", "workers": 2, "tokens": 100_000}
    found = compare(plan, [manifest("train", 1000, 20.0, **details)])["train"]
    assert found["hours"]["ratio"] == 2.0 and found["device_hours"]["ratio"] == 4.0


def test_a_cluster_without_gpus_is_one_device():
    work = Work(*(Range.exactly(1000), "label", "encoder"), devices=Range(1, 2, 2))
    rate = Rate("records", 10.0, "a calibration", margin=0.0, device="cpu")
    stage = estimate({"label": work}, {"label": rate}, PRICES)["stages"]["label"]
    assert stage["hours"] == stage["device_hours"] and stage["devices"] == 1


@pytest.mark.parametrize(
    ("ends", "key", "shown"),
    [
        ((10_500, 10_500, 10_500), "records", "10,500"),
        ((0.97e9, 1e9, 1.034e9), "records", "1 G\n[dim]0.97-1.03 G[/dim]"),
        ((52_676, 83_821, 133_054), "cost", "83.8 k\n[dim]52.7-133 k[/dim]"),
        ((0.2, 0.45, 1.5), "cost", "0.45\n[dim]0.2-1.5[/dim]"),
        ((0.0125, 0.0125, 0.0125), "device_hours", "0.0125"),
        ((1.0, 1.5, 30.25), "hours", "1.5 h\n[dim]1-30.2 h[/dim]"),
        ((0.1, 0.5, 1.5), "hours", "30 min\n[dim]6-90 min[/dim]"),
        ((0.0, 0.0, 0.0), "hours", "0 s"),
    ],
)
def test_a_figure_is_shown_with_its_range_in_one_unit(ends, key, shown):
    assert _cell(Range(*ends)._asdict(), key, busy=True) == shown


def test_what_is_not_known_and_what_is_not_there():
    assert (_cell(None, "cost", busy=True), _cell(None, "cost", busy=False)) == ("?", "")
