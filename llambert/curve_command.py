"""`llambert curve …`: its options and what it prints."""

from collections.abc import Mapping
from typing import Any

import click


@click.command()
@click.argument("config", type=click.Path())
@click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a field; may be repeated."
)
@click.option(
    "--gain",
    default=0.5,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Points of accuracy that twice the annotations must win to be worth it.",
)
def curve(config: str, overrides: tuple[str, ...], gain: float) -> None:
    """Measure how many annotations are enough.

    Encoders are trained on ever larger parts of the annotated sample. A power law fitted to their
    accuracies says what the next doubling would bring, and where to stop.
    """
    from llambert.config import load
    from llambert.curve import Curve
    from llambert.progress import duration

    found = Curve(load(config, overrides), gain / 100)

    def told(done: int, title: str, details: Mapping[str, Any]) -> None:
        seconds = duration(details["training_seconds"])
        click.echo(f"{title:<40} {100 * details['accuracy']:6.2f} %  {seconds}  ({done} to go)")

    figures = found.run(told)
    for line in lines(figures):
        click.echo(line)
    click.echo(f"{found.folder.uri}/curve.svg")


def lines(figures: Mapping[str, Any]) -> list[str]:
    """The content of curve.json as a person reads it."""
    told = [f"accuracy against {figures['against']}, and its 95 % interval over seeds"]
    for variant, each in figures["variants"].items():
        told += ["", f"{variant:<12}{'records':>9}   accuracy                   one training"]
        told += [_row(row) for row in each["sizes"]]
        told += _outlook(each, 100 * figures["wanted_gain"])
    return told + [f"note: {warning}" for warning in figures["warnings"]]


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
        f"{between}, to {100 * ahead['accuracy']:.2f} %",
        f"  and take {_cost(figures['doubling_costs'])}",
        f"  {ahead['advice']}",
    ]


def _cost(cost: Mapping[str, Any]) -> str:
    what = f"{cost['further_records']:,} further gold labels"
    if "answers" in cost:
        what = f"{cost['answers']:,} further answers of the LLM"
        if cost["prompt_tokens"]:
            what += (
                f", {cost['prompt_tokens']:,} prompt and {cost['output_tokens']:,} output tokens"
            )
        if cost["llm_seconds"]:
            what += f", {cost['llm_seconds']:,.0f} s of it"
        if cost["llm_device_seconds"]:
            what += f" ({cost['llm_device_seconds']:,.0f} {cost['llm_device']}-seconds)"
    return (
        f"{what}, and a training of {cost['training_seconds']:,.0f} s "
        f"({cost['training_device_seconds']:,.0f} {cost['training_device']}-seconds)"
    )


def _percent(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * low:.2f} to {100 * high:.2f}"
