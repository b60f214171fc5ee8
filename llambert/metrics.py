"""What the stages have done, as counters that Ray exports to Prometheus with its own.

    ray_llambert_progress_total{run, stage, work}           done so far of what is under way
    ray_llambert_tokens_total{run, stage, kind}             of prompts, outputs, texts labelled
    ray_llambert_records_in_total{run, stage}               of a step that has ended
    ray_llambert_records_out_total{run, stage}
    ray_llambert_records_dropped_total{run, stage, reason}

A process counts from 0, and `sum without (WorkerId)` adds those of one run. What a killed process
had counted in its last seconds is lost: for accounts there are the manifests.
"""

import sys
from collections.abc import Mapping
from typing import Any

_TAGS = {
    "progress": ("work", "Units (records, files) done so far of the work under way."),
    "tokens": ("kind", "Tokens that models have read or written."),
    "records_in": (None, "Records that a finished step was given."),
    "records_out": (None, "Records that a finished step passed on."),
    "records_dropped": ("reason", "Records that a finished step dropped."),
}
_KINDS = {"tokens": "text", "prompt_tokens": "prompt", "output_tokens": "output"}


class Metrics:
    """The counters of one stage of one run; nothing is counted where no Ray is connected."""

    def __init__(self, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}
        self._counters: dict[str, Any] = {}
        self._told: dict[tuple[str, str], float] = {}  # of the work under way

    def progress(self, work: str, done: float, figures: Mapping[str, float]) -> None:
        """Count what has been added to `done` and `figures` since the last call.

        Totals that fall, as of a training that goes back to a checkpoint, add nothing until they
        have risen again.
        """
        self._rise("progress", work, done)
        for name, kind in _KINDS.items():
            self._rise("tokens", kind, figures.get(name, 0))

    def begin(self) -> None:
        """Totals start at 0 again: other work has begun."""
        self._told = {}

    def finished(self, counts: Mapping[str, Any]) -> None:
        """Count the records of a step that has ended."""
        self._add("records_in", "", counts["in"])
        self._add("records_out", "", counts["out"])
        for reason, records in counts["dropped"].items():
            self._add("records_dropped", reason, records)

    def _rise(self, name: str, tag: str, total: float) -> None:
        before = self._told.get((name, tag), 0)
        if total > before:
            self._told[name, tag] = total
            self._add(name, tag, total - before)

    def _add(self, name: str, tag: str, amount: float) -> None:
        ray = sys.modules.get("ray")  # not worth its import where nobody has connected
        if amount <= 0 or ray is None or not ray.is_initialized():
            return
        key, description = _TAGS[name]
        if name not in self._counters:
            from ray.util.metrics import Counter

            names = (*self._tags, *([key] if key else []))
            self._counters[name] = Counter(f"llambert_{name}", description, names)
        self._counters[name].inc(amount, self._tags | ({key: tag} if key else {}))
