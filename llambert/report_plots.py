"""The report's figures: matplotlib's SVG, made fit to stand in a page.

A figure has no colour of its own: it is drawn in placeholders that become CSS variables of the
page, so that it follows the page into dark mode and onto paper. Text stays text, in the page's
font. Equal values give equal bytes.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# What a figure is drawn in -> the page's variable.
_INK, _MUTED, _RULE = "#010101", "#020202", "#030303"
# Who may have been measured, in the order of the page -> the colour of it.
WHO = {"llm": "#040401", "baseline": "#040402", "llambert": "#040403", "combined": "#040404"}
_VARIABLES = {_INK: "ink", _MUTED: "muted", _RULE: "line"} | {
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
_TICKS_APART = 1.4  # times the number before, so that their words do not touch
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


def _curve(curve: Mapping[str, Any] | None) -> str | None:
    """Accuracy by training records, with the interval of each size, of what `curve` measured."""
    known = {who: one["sizes"] for who, one in (curve or {}).get("variants", {}).items()}
    if not known:
        return None

    def draw(axes: Any) -> None:
        for who, rows in known.items():
            sizes = [row["records"] for row in rows]
            bounds = [[100 * row["accuracy_interval"][end] for row in rows] for end in (0, 1)]
            axes.fill_between(sizes, *bounds, color=WHO[who], alpha=0.2, linewidth=0)
            _line(axes, who, sizes, [100 * row["accuracy"] for row in rows])
        ticks: list[int] = []
        for size in sorted({row["records"] for rows in known.values() for row in rows})[::-1]:
            if not ticks or size * _TICKS_APART <= ticks[-1]:
                ticks.append(size)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
        axes.minorticks_off()
        axes.set_xlabel("training records")
        axes.set_ylabel("right, %")
        _legend(axes)

    return _svg(draw, 3.2, "Learning curve: accuracy by training records")


def title(who: str) -> str:
    """What one of those who were measured is called."""
    return "LLM" if who == "llm" else who


def _line(axes: Any, who: str, x: Sequence[float], y: Sequence[float], **options: Any) -> None:
    axes.plot(x, y, color=WHO[who], marker=_MARKERS[who], label=title(who), **options)


def _legend(axes: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, 1.16), ncols=4, columnspacing=1.2)


def _svg(draw: Callable[[Any], None], height: float, label: str) -> str:
    """What `draw` draws, as the markup of one element; `height` in inches, `label` in words."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=_METADATA)
    return _fit_in(file.getvalue(), label)


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
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, f"var(--{variable})")
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{label}">{body.strip()}'
