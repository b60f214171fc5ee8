"""A learning curve as a picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llambert.interval import student_interval
from llambert.power_law import Outlook, Point

_NAMES = {"llambert": "LLM labels", "baseline": "gold labels"}


def draw(curves: Mapping[str, tuple[Sequence[Point], Outlook]], against: str) -> bytes:
    """An SVG: accuracy over the number of records, each variant with its law and next doubling."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    # The same figures make the same file: no date, and ids that are not drawn at random
    with pyplot.rc_context({"svg.hashsalt": "llambert", "font.size": 10}):
        figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
        for variant, (points, outlook) in curves.items():
            _one(axes, _NAMES[variant], points, outlook)
        ticks = sorted({point.size for points, _ in curves.values() for point in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{size:,}" for size in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set(xlabel="training records", ylabel="accuracy, %", title=f"against {against}")
        axes.grid(alpha=0.3)
        axes.legend()
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return file.getvalue()


def _one(axes: Any, name: str, points: Sequence[Point], outlook: Outlook) -> None:
    sizes = [point.size for point in points]
    halves = [
        100 * (student_interval(point.accuracies)[1] - point.accuracy)
        if len(point.accuracies) > 1
        else 0.0
        for point in points
    ]
    means = [100 * point.accuracy for point in points]
    drawn = axes.errorbar(sizes, means, halves, fmt="o", capsize=3, label=name)
    if outlook.law is None:
        return
    colour = drawn.lines[0].get_color()
    known = np.geomspace(sizes[0], sizes[-1], 50)
    ahead = np.geomspace(sizes[-1], outlook.size, 10)
    for where, line in ((known, "-"), (ahead, "--")):
        share = [100 * (1 - outlook.law.error(size)) for size in where]
        axes.plot(where, share, line, color=colour)
    if outlook.accuracy_interval:
        low, high = (100 * each for each in outlook.accuracy_interval)
        axes.plot([outlook.size] * 2, [low, high], color=colour, alpha=0.5, linewidth=4)
