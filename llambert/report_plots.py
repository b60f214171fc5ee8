"""Figures as SVG, of the report and of `llambert curve`.

A figure is drawn in the page's colours by day. In the page they become its CSS variables, so that
the figure follows it into dark mode and onto paper; its text is text, in the page's font. Equal
values give equal bytes.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llambert.power_law import Law

# As in report.css, whose variables they become: each is told by its value, and no two are the same
_INK, _MUTED, _RULE = "#1c2024", "#5f6770", "#d9dde1"
# Who may have been measured, in the order of the page -> the colour of it.
WHO = {"llm": "#8a4b9c", "baseline": "#6b737b", "llambert": "#1f6fb2", "combined": "#c05a00"}
VARIABLES = {_INK: "ink", _MUTED: "muted", _RULE: "line"} | {
    colour: f"series-{who}" for who, colour in WHO.items()
}
_MARKERS = {"llm": "D", "baseline": "s", "llambert": "o", "combined": "^"}  # told apart in print
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 10,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}
_WIDTH = 4.7  # inches of 72 units: about a phone's width, so that text is legible there
_FILE_SIZE = (7.0, 4.2)  # inches, of a figure that is a file
_MOST_TICKS = 7  # along an axis of numbers, so that these do not touch
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def figures(value: Mapping[str, Any]) -> dict[str, str]:
    """The SVG of each figure that the report's `value` has figures for, by name."""
    seed = str((value.get("labelled_by") or {"seed": None})["seed"])
    runs = _runs(value["evaluation"], seed)
    drawn = {
        "accuracy": _accuracy(value["evaluation"]),
        "calibration": _calibration(runs),
        "risk_coverage": _risk_coverage(runs),
        "curve": _curve(value.get("curve")),
    }
    return {name: svg for name, svg in drawn.items() if svg}


def _runs(evaluation: Mapping[str, Any], seed: str) -> dict[str, Mapping[str, Any]]:
    """Who was measured -> the figures of one model: that of `seed`, else of the first one."""
    found = {}
    for who in WHO:
        measured = evaluation.get(who, {})
        seeds = measured.get("seeds")
        one = (seeds.get(seed) or next(iter(seeds.values()))) if seeds else measured
        if one:
            found[who] = one
    return found


def _accuracy(evaluation: Mapping[str, Any]) -> str | None:
    """A point with its interval for each who was measured, and a tick for each seed."""
    who = [name for name in WHO if "accuracy" in evaluation.get(name, {})]
    if not who:
        return None

    def draw(axes: Any) -> None:
        for row, name in enumerate(who):
            figures = evaluation[name]
            middle, (low, high) = 100 * figures["accuracy"], figures["accuracy_interval"]
            axes.plot([100 * low, 100 * high], [row, row], color=WHO[name])
            seeds = [100 * one["accuracy"] for one in figures.get("seeds", {}).values()]
            if len(seeds) > 1:
                axes.plot(seeds, [row] * len(seeds), "|", color=WHO[name], markersize=9)
            axes.plot([middle], [row], _MARKERS[name], color=WHO[name], markersize=7)
        axes.set_yticks(range(len(who)), [title(name) for name in who])
        axes.set_ylim(len(who) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("right against gold, %")

    return _svg(draw, 0.75 + 0.3 * len(who), "Accuracy with 95 % intervals")


def _calibration(runs: Mapping[str, Mapping[str, Any]]) -> str | None:
    known = {who: one["calibration"] for who, one in runs.items() if one.get("calibration")}
    if not known:
        return None

    def draw(axes: Any) -> None:
        low = min(bin["low"] for bins in known.values() for bin in bins)
        axes.plot([100 * low, 100], [100 * low, 100], color=_MUTED, linewidth=1, linestyle=":")
        for who, bins in known.items():
            _line(
                axes,
                who,
                [100 * bin["confidence"] for bin in bins],
                [100 * bin["accuracy"] for bin in bins],
            )
        axes.set_xlabel("mean confidence, %")
        axes.set_ylabel("right, %")
        _legend(axes)

    return _svg(draw, 3.2, "Calibration: how often labels of a confidence are right")


def _risk_coverage(runs: Mapping[str, Mapping[str, Any]]) -> str | None:
    known = {who: one["risk_coverage"] for who, one in runs.items() if one.get("risk_coverage")}
    if not known:
        return None

    def draw(axes: Any) -> None:
        for who, points in known.items():
            covered = [100 * point["coverage"] for point in points]
            wrong = [100 * (1 - point["accuracy"]) for point in points]
            _line(axes, who, covered, wrong, markevery=[len(points) - 1])
        axes.set_xlim(0, 102)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("share of the records, the surest first, %")
        axes.set_ylabel("wrong among them, %")
        _legend(axes)

    return _svg(draw, 3.2, "Risk and coverage: how often the surest labels are wrong")


def curve_file(curve: Mapping[str, Any]) -> bytes:
    """The figure of a curve.json as an SVG of its own, in fixed colours on white."""

    def draw(axes: Any) -> None:
        _draw_curve(axes, curve)
        axes.figure.suptitle(f"Learning curve, against {curve['against']}", fontsize=10)

    return _drawn(draw, _FILE_SIZE, "curve").encode()


def _curve(curve: Mapping[str, Any] | None) -> str | None:
    if not curve:
        return None
    label = "Learning curve: accuracy by training records"
    return _svg(lambda axes: _draw_curve(axes, curve), 3.2, label)


def _draw_curve(axes: Any, curve: Mapping[str, Any]) -> None:
    """Accuracy by training records with 95 % intervals; where there is a law, its line.

    The line is broken on its way to the next doubling, which it foretells.
    """
    told = set()
    for who, one in curve["variants"].items():
        rows, outlook = one["sizes"], one["outlook"]
        sizes = [row["records"] for row in rows]
        told |= set(sizes)
        _whiskers(axes, who, sizes, [row["accuracy_interval"] for row in rows])
        axes.plot(
            *(sizes, [100 * row["accuracy"] for row in rows], _MARKERS[who]),
            color=WHO[who],
            label=title(who),
        )
        if outlook["law"]:
            told.add(outlook["size"])
            _draw_law(axes, who, sizes, outlook)
    apart = (max(told) / min(told)) ** (1 / _MOST_TICKS)
    ticks: list[int] = []
    for size in sorted(told, reverse=True):
        if not ticks or size * apart <= ticks[-1]:
            ticks.append(size)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training records")
    axes.set_ylabel("right, %")
    _legend(axes)


def _draw_law(axes: Any, who: str, sizes: Sequence[int], outlook: Mapping[str, Any]) -> None:
    """The law's line over what was measured, and on to the next doubling with its interval."""
    import numpy as np

    law, ahead = Law(**outlook["law"]), outlook["size"]
    for first, last, line in ((sizes[0], sizes[-1], "-"), (sizes[-1], ahead, "--")):
        where = np.geomspace(first, last, 40)
        axes.plot(where, [100 * (1 - law.error(n)) for n in where], line, color=WHO[who])
    if outlook["accuracy_interval"]:
        _whiskers(axes, who, [ahead], [outlook["accuracy_interval"]])
    foretold = 100 * outlook["accuracy"]
    axes.plot([ahead], [foretold], _MARKERS[who], color=WHO[who], markerfacecolor="none")


def _whiskers(
    axes: Any, who: str, sizes: Sequence[int], intervals: Sequence[Sequence[float]]
) -> None:
    ends = ([100 * interval[end] for interval in intervals] for end in (0, 1))
    axes.vlines(sizes, *ends, color=WHO[who], alpha=0.4, linewidth=3)


def title(who: str) -> str:
    """What one of those who were measured is called."""
    return "LLM" if who == "llm" else who


def _line(axes: Any, who: str, x: Sequence[float], y: Sequence[float], **options: Any) -> None:
    axes.plot(x, y, color=WHO[who], marker=_MARKERS[who], label=title(who), **options)


def _legend(axes: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, 1.16), ncols=4, columnspacing=1.2)


def _svg(draw: Callable[[Any], None], height: float, label: str) -> str:
    """What `draw` draws, as the markup of one element; `height` in inches, `label` in words."""
    return _fit_in(_drawn(draw, (_WIDTH, height), label, transparent=True), label)


def _drawn(
    draw: Callable[[Any], None], size: tuple[float, float], salt: str, transparent: bool = False
) -> str:
    """What `draw` draws, as an SVG file. Ids are of `salt`: those of one page must differ."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=transparent, metadata=_METADATA)
    return file.getvalue()


def _fit_in(svg: str, label: str) -> str:
    """`svg` without header and size, its colours the page's; ids that nothing uses go."""
    body = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', body)
    assert box
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, count=1, flags=re.DOTALL)  # is of all the page
    body = re.sub(r"font-family: [^;\"]*; ?", "", body)
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    for placeholder, variable in VARIABLES.items():
        body = body.replace(placeholder, f"var(--{variable})")
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{label}">{body.strip()}'
