"""The ledger against sums done by hand."""

import pytest

from llambert.cost import cost
from llambert.held import PricesConfig
from llambert.storage import Manifest

NO_PRICES = PricesConfig()
PRICES = PricesConfig(
    currency="EUR",
    llm_device_hour=3.6,
    encoder_device_hour=0.36,
    million_prompt_tokens=100.0,
    million_output_tokens=1000.0,
)


def manifest(stage: str, records: int, took: float, **details) -> Manifest:
    counts = {"in": records, "out": records, "dropped": {}}
    return Manifest(stage, "f00", "f00", counts, took, details)


def run(**changes) -> dict[str, Manifest]:
    """100 answers at 10/s after a start of 40 s; a million labels at 1,000/s."""
    asked = {"asked": 100, "seconds": 50.0, "records_per_s": 10.0, "device": "cpu"}
    made = {
        "corpus": manifest("corpus", 1_000_000, 60),
        "sample": manifest("sample", 100, 60),
        "annotate": manifest("annotate", 100, 50, **asked, prompt_tokens=2000, output_tokens=200),
        "train llambert seed 1": manifest("train", 100, 200, training_seconds=180, device="cpu"),
        "evaluate": manifest("evaluate", 10, 30, device="cpu", workers=2),
        "label": manifest(
            *("label", 1_000_000, 1020),
            **{"labelled_now": 1_000_000, "records_per_s": 1000.0, "device": "cpu"},
        ),
    }
    return made | changes


def test_without_gpus_the_clock_counts():
    told = cost(run(), NO_PRICES)
    assert told["unit"] == "seconds" and told["unknown"] is None
    assert {title: step["amount"] for title, step in told["steps"].items()} == {
        "annotate": 50,
        "train llambert seed 1": 200,
        "evaluate": 30,
        "label": 1020,
    }
    assert told["amount"] == 1300
    assert told["llm_answers"] == 100
    assert told["llm_only"] == {
        "records": 1_000_000,
        "amount": 40 + 100_000,
        "prompt_tokens": 20_000_000,
        "output_tokens": 2_000_000,
    }
    assert told["share"] == pytest.approx(1300 / 100_040)
    assert told["per_record"] == {"llm": 0.1, "encoder": 0.001}
    # 1,300 s less 1,000 s of labelling and the LLM's start, at 0.099 s saved with each record
    assert told["break_even_records"] == round(260 / 0.099)


def test_on_gpus_their_seconds_count():
    """LLM and encoder hold two GPUs each from their start to their end, computing or waiting."""
    asked = {"asked": 100, "seconds": 50.0, "records_per_s": 10.0, "device_seconds": 100.0}
    labelled = {"labelled_now": 1_000_000, "records_per_s": 1000.0, "device_seconds": 900.0}
    trained = {"training_seconds": 180, "device_seconds": 360, "device": "gpu", "workers": 2}
    made = run(
        annotate=manifest("annotate", 100, 70, **asked, device="gpu"),
        evaluate=manifest("evaluate", 10, 30, device="gpu", workers=2),
        label=manifest("label", 1_000_000, 1020, **labelled, device="gpu", workers=2),
        **{"train llambert seed 1": manifest("train", 100, 200, **trained)},
    )
    told = cost(made, NO_PRICES)
    assert told["unit"] == "GPU-seconds"
    assert told["amount"] == 100 + 400 + 60 + 2040
    assert told["per_record"] == {"llm": 0.2, "encoder": 0.002}
    assert told["llm_only"]["amount"] == 2 * 40 + 0.2 * 1_000_000
    in_money = cost(made, PRICES)  # 0.001 a second of the LLM's GPUs, 0.0001 of the encoder's
    assert in_money["unit"] == "EUR"
    assert in_money["amount"] == pytest.approx(0.1 + 0.25)
    assert in_money["llm_only"]["amount"] == pytest.approx(0.08 + 200)
    went_on = manifest("train", 100, 20, **trained)  # a crash before its last 20 s
    told = cost(made | {"train llambert seed 1": went_on}, NO_PRICES)
    assert told["steps"]["train llambert seed 1"]["amount"] == 360
    old = manifest("label", 1_000_000, 1020, **labelled, device="gpu")
    told = cost(made | {"label": old}, NO_PRICES)
    assert told["unknown"] == "how many devices label held was not noted"


def test_an_earlier_round_is_added_at_the_rate_of_the_last():
    asked = {"asked": 40, "seconds": 44.0, "records_per_s": 10.0, "device": "cpu"}
    labelled = {"labelled_now": 400_000, "records_per_s": 1000.0, "device": "cpu"}
    again = {"answers": 300, "asked": 100, "seconds": 50.0, "records_per_s": 10.0, "device": "cpu"}
    told = cost(
        run(
            annotate=manifest("annotate", 100, 44, **asked),
            label=manifest("label", 1_000_000, 420, **labelled),
            cascade=manifest("cascade", 1_000_000, 60, cost=again),
        ),
        NO_PRICES,
    )
    steps = told["steps"]
    assert (steps["annotate"]["records"], steps["annotate"]["measured"]) == (100, 40)
    assert steps["annotate"]["amount"] == 44 + 60 * 0.1
    assert steps["label"]["amount"] == 420 + 600
    assert (steps["cascade"]["records"], steps["cascade"]["amount"]) == (300, 50 + 20)
    assert told["llm_answers"] == 400
    # the cascade's 300 answers go up with the corpus, and what it took beside them does not
    fixed = 50 + 200 + 30 + 20 + (50 + 20 - 30) - 40
    assert told["break_even_records"] == round(fixed / (0.1 - 0.001 - 0.1 * 300 / 1_000_000))
    assert told["llm_only"]["amount"] == 40 + 100_000


def test_answers_that_the_run_does_not_use_are_told():
    stored = {"asked": 100, "seconds": 50.0, "records_per_s": 10.0, "device": "cpu", "failed": 1}
    asked = manifest("annotate", 100, 50, **stored, paid_responses=399)
    assert cost(run(annotate=asked), NO_PRICES)["answers_beside"] == 300
    again = {"answers": 250, "asked": 250, "seconds": 25.0, "device": "cpu"}
    cascade = manifest("cascade", 1_000_000, 60, cost=again, paid_responses=649)  # asked after
    assert cost(run(annotate=asked, cascade=cascade), NO_PRICES)["answers_beside"] == 300
    earlier = manifest("cascade", 1_000_000, 60, cost=again)  # of a version that did not note it
    assert cost(run(annotate=asked, cascade=earlier), NO_PRICES)["answers_beside"] == 50
    assert cost(run(), NO_PRICES)["answers_beside"] == 0


def test_a_cascade_that_needed_no_further_answer_costs_none():
    nothing = {"answers": 0, "asked": 0}
    told = cost(run(cascade=manifest("cascade", 1_000_000, 60, cost=nothing)), NO_PRICES)
    assert told["unknown"] is None and told["amount"] == 1300


def test_a_round_that_asked_nothing_goes_by_the_last_that_did():
    """Parsed anew, with another 60 answers of rounds before; a cascade whose answers were there."""
    last = {"asked": 40, "seconds": 44.0, "records_per_s": 10.0, "device": "cpu"}
    made = run(
        annotate=manifest("annotate", 100, 1, asked=0, last_round=last),
        cascade=manifest("cascade", 1_000_000, 60, cost={"answers": 300, "asked": 0}),
    )
    told = cost(made, NO_PRICES)
    steps = told["steps"]
    assert (steps["annotate"]["amount"], steps["annotate"]["measured"]) == (44 + 60 * 0.1, 40)
    assert (steps["cascade"]["amount"], steps["cascade"]["measured"]) == (30, 0)
    assert told["llm_only"]["amount"] == 40 + 100_000 and told["share"] is not None
    fewer = run(annotate=manifest("annotate", 10, 1, asked=0, last_round=last))
    assert cost(fewer, NO_PRICES)["steps"]["annotate"]["amount"] == 40 + 10 * 0.1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"annotate": manifest("annotate", 9, 1, asked=9)},
            "its tokens were not counted",
        ),
        ({"annotate": manifest("annotate", 9, 1, asked=9, device="gpu")}, "the same kind"),
        ({"annotate": manifest("annotate", 9, 1, asked=0)}, "not measured in its last round"),
    ],
)
def test_what_is_not_known_is_not_guessed(changes, why):
    told = cost(run(**changes), NO_PRICES)
    assert why in told["unknown"]
    assert told["amount"] is told["share"] is told["llm_only"]["amount"] is None
    assert told["steps"]["annotate"]["amount"] is None
    assert "break_even_records" not in told


def test_an_endpoint_elsewhere_has_no_devices_here():
    asked = {"asked": 100, "seconds": 50.0, "records_per_s": 10.0, "prompt_tokens": 2000}
    gpu = {"device": "gpu", "workers": 2}
    made = run(
        annotate=manifest("annotate", 100, 50, **asked),
        evaluate=manifest("evaluate", 10, 5, **gpu),
        label=manifest("label", 1000, 1, labelled_now=1000, records_per_s=2000.0, **gpu),
        **{"train llambert seed 1": manifest("train", 100, 200, training_seconds=180, **gpu)},
    )
    told = cost(made, NO_PRICES)
    assert "annotate used no device of this cluster, and its tokens have no" in told["unknown"]
    assert [step["amount"] for step in told["steps"].values()] == [None, 400, 10, 2]
    llm_only = {"records": 1000, "amount": None, "prompt_tokens": 20_000}
    assert told["amount"] is None and told["llm_only"] == llm_only

    paid = cost(made, PRICES)
    assert (paid["unit"], paid["unknown"]) == ("EUR", None)
    assert paid["steps"]["annotate"]["amount"] == pytest.approx(2000 * 100 / 1e6)
    assert paid["amount"] == pytest.approx(0.2 + 412 * 0.0001)
    assert paid["llm_only"]["amount"] == pytest.approx(2)
    assert paid["per_record"]["llm"] == pytest.approx(0.002)
    # of 1,000 records 0.1 is labelling, which costs 0.0001 each; the rest stays as it is
    growing = 0.0001 * 2 / 2000
    assert paid["break_even_records"] == round((0.2412 - 1000 * growing) / (0.002 - growing))
    silent = made["annotate"].details | {"prompt_tokens": 0}
    untold = cost(made | {"annotate": manifest("annotate", 100, 50, **silent)}, PRICES)
    assert untold["unit"] == "GPU-seconds" and untold["amount"] is None


def test_an_llm_on_gpus_and_an_encoder_without_compare_in_money_alone():
    asked = {"asked": 100, "seconds": 50.0, "records_per_s": 10.0, "device_seconds": 50.0}
    made = run(annotate=manifest("annotate", 100, 50, **asked, device="gpu"))
    assert cost(made, NO_PRICES)["unknown"] == "not all steps ran on the same kind of device"
    told = cost(made, PRICES)
    assert told["amount"] == pytest.approx(50 * 0.001 + 1250 * 0.0001)
    assert told["share"] == pytest.approx(told["amount"] / (100_040 * 0.001))
