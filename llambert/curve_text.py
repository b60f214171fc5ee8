"""What `llambert curve` prints: each training as it is done, then the curve and what it says."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from llambert.progress import digits, duration


def tell(left: int, title: str, figures: Mapping[str, Any]) -> None:
    """Print what one training came to, and how many are left."""
    seconds = duration(figures["training_seconds"])
    click.echo(f"{title:<40} {100 * figures['accuracy']:6.2f} %  {seconds}  ({left} to go)")


def show(figures: Mapping[str, Any], where: str) -> None:
    """Print the content of curve.json as a person reads it, and where the picture lies."""
    for line in [*_lines(figures), where]:
        click.echo(line)


def _lines(figures: Mapping[str, Any]) -> list[str]:
    told = [f"accuracy against {figures['against']}, and its 95 % interval"]
    for variant, each in figures["variants"].items():
        told += ["", f"{variant:<12}{'records':>9}   accuracy                   one training"]
        told += [_row(row) for row in each["sizes"]]
        told += _outlook(each, 100 * figures["wanted_gain"])
    return told + notes(figures["warnings"])


def notes(warnings: Sequence[str]) -> list[str]:
    """A line for each warning."""
    return [f"note: {warning}" for warning in warnings]


def _row(row: Mapping[str, Any]) -> str:
    interval = _percent(row["accuracy_interval"])
    seconds = f"{row['training_seconds']:,.1f} s on {row['device']}"
    return f"{row['records']:>21,}   {100 * row['accuracy']:5.2f} %  {interval:<17} {seconds}"


def _outlook(figures: Mapping[str, Any], gain: float) -> list[str]:
    ahead, law = figures["outlook"], figures["outlook"]["law"]
    if law is None:
        return [f"  no law is fitted: {ahead['why']}", f"  {ahead['advice']}"]
    between = f" ({_percent(ahead['gain_interval'])})" if ahead["gain_interval"] else ""
    return [
        f"  error in % = {100 * law['a']:.3g} n^-{law['b']:.3g} + {100 * law['c']:.3g}",
        f"  the next doubling, to {ahead['size']:,}, would bring {100 * ahead['gain']:+.2f} points"
        f"{between}: by this law from {100 * (ahead['accuracy'] - ahead['gain']):.2f} to "
        f"{100 * ahead['accuracy']:.2f} %",
        f"  and take, without any start, {_price(figures['doubling_costs'])}",
        f"  {ahead['advice']}",
    ]


def _price(cost: Mapping[str, Any]) -> str:
    what = f"{_many(cost['further_records'])} further gold labels"
    if "answers" in cost:
        what = f"{_many(cost['answers'])} further answers of the LLM"
        if cost["prompt_tokens"]:
            what += (
                f", {cost['prompt_tokens']:,} prompt and {cost['output_tokens']:,} output tokens"
            )
        if cost["llm_seconds"]:
            what += f", {cost['llm_seconds']:,.0f} s of it"
        if cost["llm_device_seconds"]:
            what += f" ({cost['llm_device_seconds']:,.0f} {cost['llm_device']}-seconds)"
    whole = "" if cost["cost"] is None else f": {digits(cost['cost'])} {cost['currency']}"
    return (
        f"{what}, and a training of {cost['training_seconds']:,.0f} s "
        f"({cost['training_device_seconds']:,.0f} {cost['training_device']}-seconds){whole}"
    )


def _many(count: int) -> str:
    return f"{count:,}" if count else "no"


def _percent(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * low:.2f} to {100 * high:.2f}"
