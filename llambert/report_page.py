"""The report's page: one HTML file that needs nothing beside it and runs nothing.

Every value is escaped, and the page forbids itself scripts and requests: a record that holds markup
stays text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from llambert.progress import amount, digits, duration, roughly, share
from llambert.report_plots import WHO, figures, title

# A figure of a step's work: its heading, and the names that stages give it in their details.
WORK = {
    "records": ("records", ["asked", "labelled_now"]),
    "records_per_s": ("records/s", ["records_per_s"]),
    "prompt_tokens": ("prompt tokens", ["prompt_tokens"]),
    "output_tokens": ("output tokens", ["output_tokens"]),
    "tokens": ("tokens", ["tokens"]),
    "padding_share": ("padding", ["padding_share"]),
    "seconds": ("seconds", ["seconds", "training_seconds"]),
    "device_seconds": ("device-seconds", ["device_seconds"]),
    "device": ("device", ["device"]),
}
SIGNIFICANT = 0.05  # the p below which two are told apart


def page(value: Mapping[str, Any]) -> str:
    """The page that shows `value`, which is what report.json has."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("llambert", "."), autoescape=True)
    environment.filters |= {
        "count": lambda number: f"{number:,}",
        "percent": _percent,
        "interval": _interval,
        "digits": digits,
        "duration": duration,
        "took": lambda seconds: f"{seconds:.1f} s" if seconds < 60 else duration(seconds),
        "amount": amount,
        "share": share,
        "roughly": roughly,
        "p_value": lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}",
        "figure": _figure,
        "title": title,
    }
    evaluation = value["evaluation"]
    measured = {who: evaluation[who] for who in WHO if "accuracy" in evaluation.get(who, {})}
    used = {name for work in value["work"].values() for name in work}
    drawn = {name: Markup(svg) for name, svg in figures(value).items()}
    return environment.get_template("report.html").render(
        run=value,
        measured=measured,
        single=_single(measured, value["labelled_by"]),
        figures=drawn,
        headings={name: heading for name, (heading, _) in WORK.items() if name in used},
        run_file=yaml.safe_dump(
            value["settings"]["config"], sort_keys=False, allow_unicode=True, width=100
        ),
        significant=SIGNIFICANT,
    )


def _single(
    measured: Mapping[str, Any], labelled_by: Mapping[str, Any] | None
) -> dict[str, Mapping[str, Any]]:
    """The encoder that labelled, by its name, and the LLM: the figures of one model each."""
    found = {}
    if labelled_by and labelled_by["variant"] in measured:
        variant, seed = labelled_by["variant"], labelled_by["seed"]
        found[f"{variant}, seed {seed}"] = measured[variant]["seeds"][str(seed)]
    if "llm" in measured:
        found["LLM"] = measured["llm"]
    return found


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:,.{digits}f} %"


def _interval(bounds: Sequence[float], digits: int = 1) -> str:
    low, high = (f"{100 * bound:.{digits}f}" for bound in bounds)
    return f"{low}\u2013{high} %"


def _figure(figure: Any) -> str:
    """A cell of the work table."""
    if isinstance(figure, str):
        return figure
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:,.1f}"
