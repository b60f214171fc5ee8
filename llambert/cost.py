"""Pure: what a run's work took, and what asking the LLM about every record would have taken."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llambert.held import WORKING, Held, PricesConfig, held
from llambert.storage import Manifest

_TIME = {"gpu": "GPU-seconds", "cpu": "seconds"}  # without GPUs the cluster is the device


@dataclass(frozen=True)
class _Unit:
    """What amounts are told in: devices' time, or with `prices` money."""

    name: str
    prices: PricesConfig | None = None

    def amount(self, step: Held, records: float) -> float | None:
        """Of so many records done in one round, the start included."""
        seconds = step.device_seconds(records)
        return step.money(self.prices, records, seconds) if self.prices else seconds

    def each(self, step: Held) -> float | None:
        """Of a further record."""
        seconds = step.device_seconds_each
        return step.money(self.prices, 1, seconds) if self.prices else seconds


def cost(made: Mapping[str, Manifest], prices: PricesConfig) -> dict[str, Any]:
    """The ledger of a run, against what the LLM alone would have cost.

    Both are counted alike, by what steps held (`llambert.held`): in money where every price is
    known, else in GPU-seconds, or without GPUs in seconds on the clock. What a step did in an
    earlier round is added at the rate of the last one, which is what its manifest has; so is what
    the LLM would do beyond the records that it was asked about.

    Args:
        made: the manifest of every step, by title.

    Returns:
        `unit`: the currency, 'GPU-seconds', 'seconds', or None where there is no common one;
        `unknown` says why there is no sum, and what would be in this unit is null.
        `steps`: for each step its `device`, `records` and how many of these were `measured`,
        `amount` in the unit, and tokens where the engine counted them.
        `amount`: of all steps; `llm_only`: the same for the LLM and every record; `share`: the
        one by the other. `per_record` of LLM and encoder, start-up aside. `break_even_records`:
        from which size of corpus on the run would cost less than the LLM alone.
        `llm_answers`: records that the LLM was asked about, gold included; `answers_beside`:
        answers of this LLM to the same prompt in the workdir that the run does not use.
    """
    work = {title: held(each) for title, each in made.items() if each.stage in WORKING}
    llm, encoder = work["annotate"], work["label"]
    for title, each in work.items():
        if each.llm and not each.done:  # a cascade whose answers were there already
            work[title] = replace(each, device=llm.device, devices=llm.devices, per_s=llm.per_s)
    unit = _unit(work, prices)
    steps = {title: _step(each, unit) for title, each in work.items()}
    unknown = _unknown(work, steps, unit)
    amount = None if unknown else sum(step["amount"] for step in steps.values())
    told = {
        "unit": unit and unit.name,
        "unknown": unknown,
        "steps": steps,
        "amount": amount,
        "llm_answers": sum(each.records for each in work.values() if each.llm),
        "answers_beside": _beside(made, work),
        "llm_only": _llm_only(llm, encoder.records, unit),
        "share": None,
    }
    again = sum(each.records for each in work.values() if each.llm) - llm.records
    return told | (_compared(llm, encoder, again, unit, told) if unit else {})


def _beside(made: Mapping[str, Manifest], work: Mapping[str, Held]) -> int:
    """Stored answers to none of the run's records, as the last to ask found them."""
    asking = [made[title].details for title, each in work.items() if each.llm]
    failed = sum(each.get("failed", 0) for each in asking)
    used = sum(each.records for each in work.values() if each.llm) - failed
    return max(max(each.get("paid_responses", 0) for each in asking) - used, 0)


def _unit(work: Mapping[str, Held], prices: PricesConfig) -> _Unit | None:
    """Money where it can be told of every step, else the time of their common kind of device."""
    money = _Unit(prices.currency, prices)
    if all(money.amount(each, each.records) is not None for each in work.values()):
        return money
    kinds = {each.device for each in work.values() if each.device}
    return _Unit(_TIME[kinds.pop()]) if len(kinds) == 1 else None


def _step(step: Held, unit: _Unit | None) -> dict[str, Any]:
    tokens = {"prompt_tokens": step.prompt_tokens, "output_tokens": step.output_tokens}
    return {
        "device": step.device,
        "records": step.records,
        "measured": min(step.done, step.records),
        "amount": unit.amount(step, step.records) if unit else None,
        **{name: value for name, value in tokens.items() if value},
    }


def _unknown(
    work: Mapping[str, Held], steps: Mapping[str, Mapping[str, Any]], unit: _Unit | None
) -> str | None:
    """Why the steps have no sum."""
    for title, each in work.items():
        if steps[title]["amount"] is not None:
            continue
        if not each.done:
            return f"{title} had nothing left to do and was not measured in its last round"
        if each.device is None:
            tokens = "have no price" if each.prompt_tokens else "were not counted"
            return f"{title} used no device of this cluster, and its tokens {tokens}"
        if unit and each.devices is None:
            return f"how many devices {title} held was not noted"
        if unit:
            return f"{title} was over too soon to be measured"
    return None if unit else "not all steps ran on the same kind of device"


def _llm_only(llm: Held, records: int, unit: _Unit | None) -> dict[str, Any]:
    """What the LLM would have taken for all that the encoder labelled."""
    told: dict[str, Any] = {"records": records}
    told["amount"] = unit.amount(llm, records) if unit else None
    for name in ("prompt_tokens", "output_tokens"):
        if counted := getattr(llm, name):
            told[name] = round(counted / llm.records * records)
    return told


def _compared(
    llm: Held, encoder: Held, again: int, unit: _Unit, told: Mapping[str, Any]
) -> dict[str, Any]:
    """How the run compares with the LLM alone, and from which size of corpus on it is cheaper.

    What goes up with the size is labelling and, at the same share of the records, the cascade.

    Args:
        again: records that the LLM was asked about beside those of annotate.
    """
    one, other = unit.each(llm), unit.each(encoder)
    amount, alone, records = told["amount"], told["llm_only"]["amount"], encoder.records
    if one is None or alone is None:
        return {}
    found: dict[str, Any] = {"per_record": {"llm": one, "encoder": other}}
    if amount is None or not alone:
        return found
    found["share"] = amount / alone
    start = alone - records * one
    growing = None if other is None else other + one * again / records
    if growing is not None and growing < one:
        even = (amount - start - records * growing) / (one - growing)
        found["break_even_records"] = max(round(even), 0)
    return found
