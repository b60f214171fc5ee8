"""What a run takes and costs, by stage, beside an LLM that labels everything: pure estimates.

Every figure is a range. Ends multiply with ends, so that a range holds what its parts' ranges
hold. Device-hours are of what a stage holds, as `llambert.held` has it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from llambert.held import Held, PricesConfig, held
from llambert.section import Section
from llambert.storage import Manifest

FIGURES = ("records", "tokens", "device_hours", "hours", "cost")
_HOUR_S = 3600


class RateConfig(Section):
    """How fast one device works, and who says so."""

    tokens_per_s: float | None = Field(
        None, gt=0, description="Tokens a second; of the LLM those of prompt and answer together."
    )
    records_per_s: float | None = Field(
        None, gt=0, description="Records a second, instead of tokens; in training, of each epoch."
    )
    start_s: float = Field(0.0, ge=0, description="Seconds from a start to the first record.")
    margin: float = Field(
        0.25, ge=0, description="The rate holds within a factor of 1 + margin, either way."
    )
    device: Literal["gpu", "cpu"] | None = Field(
        None,
        description="cpu: the rate is that of a whole cluster without GPUs, which is one device; "
        "else it is a GPU's, or of an endpoint.",
    )
    source: str = Field(
        min_length=1, description="Where the rate is from: a benchmark, an earlier run, a paper."
    )

    @model_validator(mode="after")
    def _one_unit(self) -> "RateConfig":
        if (self.tokens_per_s is None) == (self.records_per_s is None):
            raise ValueError("a rate is either tokens_per_s or records_per_s: give one of them")
        return self


class RatesConfig(Section):
    """Rates that are taken as they stand, before any that was measured in the workdir."""

    annotate: RateConfig | None = Field(
        None, description="Of the LLM; with openai of the whole endpoint, in records."
    )
    train: RateConfig | None = Field(None, description="Of the encoder's fine-tuning.")
    label: RateConfig | None = Field(None, description="Of the fine-tuned encoder.")


class PlanConfig(Section):
    """What `llambert plan` reckons with."""

    prices: PricesConfig = Field(PricesConfig(), description="Prices; no cost is told without.")
    rates: RatesConfig = Field(RatesConfig(), description="Rates that are known already.")
    sample: int = Field(2000, ge=30, description="Records whose tokens are counted.")
    calibration_records: int = Field(
        256,
        ge=64,
        description="Records that `--calibrate` puts to the LLM, whose answers the run uses, and "
        "to the encoder.",
    )


class Range(NamedTuple):
    """An estimate with the ends it may have."""

    low: float
    expected: float
    high: float

    @staticmethod
    def exactly(value: float) -> "Range":
        return Range(value, value, value)

    @staticmethod
    def within(value: float, margin: float) -> "Range":
        """`value` within a factor of 1 + `margin`."""
        return Range(value / (1 + margin), value, value * (1 + margin))

    def times(self, other: "Range | float") -> "Range":
        by = other if isinstance(other, Range) else Range.exactly(other)
        return Range(self.low * by.low, self.expected * by.expected, self.high * by.high)

    def plus(self, other: "Range") -> "Range":
        return Range(*(a + b for a, b in zip(self, other, strict=True)))

    def over(self, other: "Range") -> "Range":
        """The quotient; without an end where `other` may be next to nothing."""
        high = self.high / other.low if other.low else math.inf
        return Range(self.low / other.high, self.expected / other.expected, high)

    def at_most(self, limit: float) -> "Range":
        return Range(*(min(value, limit) for value in self))


@dataclass(frozen=True)
class Rate:
    """How fast one device is while it is held: measured, or taken from the run file."""

    unit: str  # 'tokens' or 'records'
    per_s: float
    source: str
    margin: float
    start_s: float = 0.0  # from the stage's start to its first record; of each training
    device: str | None = None  # 'gpu' or 'cpu' where it is known, and no endpoint's
    devices: int = 1  # held where it was measured
    prompt_tokens: float | None = None  # of a request, where the engine counted them
    output_tokens: float | None = None  # of an answer, likewise
    records: int = 0  # that it was measured on

    @staticmethod
    def of(config: RateConfig) -> "Rate":
        """A rate of the run file."""
        unit = "tokens" if config.tokens_per_s else "records"
        per_s = config.tokens_per_s or config.records_per_s or 0.0
        source = f"{config.source} (the run file)"
        return Rate(unit, per_s, source, config.margin, config.start_s, config.device)


@dataclass(frozen=True)
class Work:
    """What one stage has to do.

    Attributes:
        rate: 'annotate', 'train' or 'label'; '' for a stage that keeps no model busy.
        device: whose device does it: 'llm', 'encoder', 'endpoint' or, at no cost, 'none'.
        passes: how often each record goes through the model (epochs, models).
        devices: how many are held; None: as where the rate was measured.
        starts: how often the model is started.
    """

    records: Range
    rate: str = ""
    device: str = "none"
    tokens: Range | None = None  # of a record, as the model reads it
    output_tokens: Range | None = None  # of an answer
    passes: float = 1.0
    devices: Range | None = None
    starts: int = 1


def estimate(
    work: Mapping[str, Work], rates: Mapping[str, Rate], prices: PricesConfig
) -> dict[str, Any]:
    """`stages` and `total` of one way to label the corpus; null where a rate or price is missing.

    A stage has records, tokens, device_hours, hours (of the clock) and cost, each with low,
    expected and high; `devices` held, and `start_share`, the part of the hours that does not grow
    with the records. Hours of GPUs and of a cluster without any are not added up.
    """
    stages = {name: _stage(each, rates.get(each.rate), prices) for name, each in work.items()}
    busy = [stage for stage in stages.values() if stage["device"] != "none"]
    on_devices = [stage for stage in busy if stage["device"] != "endpoint"]
    kinds = {
        rates[each.rate].device or "gpu"  # what a rate of the run file is of, unless it says
        for each in work.values()
        if each.device in ("llm", "encoder") and each.rate in rates
    }
    total = {
        "device_hours": _sum(stage["device_hours"] for stage in on_devices)
        if len(kinds) <= 1
        else None,
        "hours": _sum(stage["hours"] for stage in busy),
        "cost": _sum(stage["cost"] for stage in busy),
    }
    return {"stages": plain(stages), "total": plain(total)}


def _stage(work: Work, rate: Rate | None, prices: PricesConfig) -> dict[str, Any]:
    passed = work.records.times(work.passes)
    read = passed.times(work.tokens) if work.tokens else None
    written = passed.times(work.output_tokens) if work.output_tokens else None
    tokens = read.plus(written) if read and written else read
    stage: dict[str, Any] = dict.fromkeys(FIGURES)
    stage |= {"records": work.records, "tokens": tokens, "device": work.device}
    stage |= {"devices": None, "start_share": 0.0}
    stage["rate"] = rate.source if rate else None
    done = tokens if rate and rate.unit == "tokens" else passed
    if rate and done is not None:
        _time(stage, work, rate, done)
    if work.device == "endpoint" and read and written and prices.of_a_token:
        prompt, output = prices.of_a_token
        stage["cost"] = read.times(prompt).plus(written.times(output))
    price = {"llm": prices.llm_device_hour, "encoder": prices.encoder_device_hour}.get(work.device)
    if price is not None and stage["device_hours"]:
        stage["cost"] = stage["device_hours"].times(price)
    return stage


def _time(stage: dict[str, Any], work: Work, rate: Rate, done: Range) -> None:
    """Fill in the hours and device-hours of `done` tokens or records."""
    known = None if rate.device == "cpu" else work.devices  # a cluster without GPUs is one
    devices = known or Range.exactly(rate.devices)
    busy = done.times(Range.within(1 / (rate.per_s * _HOUR_S), rate.margin))  # device-hours
    start = Range.within(rate.start_s * work.starts / _HOUR_S, rate.margin)
    stage["hours"] = busy.over(devices).plus(start)
    if work.device != "endpoint":
        stage["device_hours"] = busy.plus(start.times(devices))
        stage["devices"] = devices.expected
    if stage["hours"].expected:
        stage["start_share"] = start.expected / stage["hours"].expected


def _sum(parts: Iterable[Range | None]) -> Range | None:
    """The sum; None where a part is not known."""
    total = Range.exactly(0.0)
    for part in parts:
        if part is None:
            return None
        total = total.plus(part)
    return total


def plain(value: Any) -> Any:
    """Ranges as JSON objects; what is known exactly stays so, of an estimate six digits do."""
    if isinstance(value, Range):
        places = 15 if value.low == value.high else 6
        return {name: float(f"{end:.{places}g}") for name, end in value._asdict().items()}
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return value


def as_json(rate: Rate) -> dict[str, Any]:
    """A rate as JSON, without what is not known."""
    return {name: value for name, value in asdict(rate).items() if value is not None}


def compare(plan: Mapping[str, Any], made: Sequence[Manifest]) -> dict[str, dict[str, Any]]:
    """Plan against actual: stage -> figure -> planned (low, expected, high), actual, ratio.

    Stage 'total' has the hours and cost of all that kept a model busy, where each is known.

    What a stage found done before (answers that were stored, records labelled before a crash) took
    no time in its last round; the plan's hours and cost are then those of the round's share, and
    none where that round was of more records, and so an earlier run's. What
    the plan or the stage does not tell is left out, and so are stages that were done when the plan
    was made.

    Args:
        plan: of plan.json.
        made: the manifests of the run.
    """
    found: dict[str, dict[str, Any]] = {}
    busy = []
    prices = PricesConfig(**plan["prices"])
    for name, planned in plan["llambert"]["stages"].items():
        work = [held(manifest) for manifest in made if manifest.stage == name]
        if not work or name in plan.get("done", ()):
            continue
        records = sum(each.records for each in work)
        share = sum(each.done for each in work) / records if records else 0.0
        if name == "annotate" and share > 1:
            share = 0.0
        share = min(share, 1.0)  # a cascade may ask some again that annotate's engine failed on
        actual = {"records": records, "tokens": sum(each.tokens for each in work) or None}
        actual |= _spent(work, planned["devices"], prices) if share else {}
        rows = {}
        for figure in FIGURES:
            expected, value = _of_share(figure, planned, share), actual.get(figure)
            if expected and value is not None:
                ratio = round(value / expected["expected"], 3) if expected["expected"] else None
                rows[figure] = {"planned": expected, "actual": value, "ratio": ratio}
        found[name] = rows
        if share and planned["device"] != "none":
            busy.append(rows)
    return found | ({"total": total} if (total := _total(busy)) else {})


def _total(busy: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Hours and cost of several stages' rows, each figure where none of them lacks it."""
    total = {}
    for figure in ("hours", "cost"):
        if len(busy) > 1 and all(figure in rows for rows in busy):
            planned = plain(_sum(Range(**rows[figure]["planned"]) for rows in busy))
            actual = sum(rows[figure]["actual"] for rows in busy)
            ratio = round(actual / planned["expected"], 3) if planned["expected"] else None
            total[figure] = {"planned": planned, "actual": actual, "ratio": ratio}
    return total


def _of_share(figure: str, planned: Mapping[str, Any], share: float) -> dict[str, float] | None:
    """The plan's figure where only `share` of the records was left to do."""
    value = planned[figure]
    if value is None or figure in ("records", "tokens"):
        return value
    start = planned["start_share"]
    return plain(Range(**value).times(start + (1 - start) * share)) if share else None


def _spent(work: Sequence[Held], devices: int | None, prices: PricesConfig) -> dict[str, Any]:
    """Time and money of a stage's last round.

    Args:
        devices: as planned, for a stage that does not note how many it held.
    """
    work = [replace(each, devices=each.devices or devices) for each in work]
    held_s = [each.device_seconds(each.done) for each in work]
    money = [each.money(prices, each.done, s) for each, s in zip(work, held_s, strict=True)]
    spent: dict[str, float] = {"hours": sum(each.seconds for each in work) / _HOUR_S}
    if None not in held_s:
        spent["device_hours"] = sum(filter(None, held_s)) / _HOUR_S
    if None not in money:
        spent["cost"] = sum(filter(None, money))
    return {name: float(f"{value:.6g}") for name, value in spent.items()}
