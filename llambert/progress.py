"""How far a stage is: one live line on a terminal, a plain line now and then in a log."""

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.live import Live
from rich.text import Text

from llambert.metrics import Metrics

log = logging.getLogger(__name__)

_LIVE_S = 0.5  # seconds between two looks at the counter
_LOG_S = 5.0  # seconds between two plain lines in a log
_NOTE = 6  # characters of a note that is cut, at least: fewer say nothing

Answer = TypeVar("Answer")


class Counter(Protocol):
    """What a worker is handed to say what it has done; may be sent to another process."""

    def add(self, records: int, **figures: float) -> None: ...


class _Total:
    """The actor behind `RayCounter`: how many records, since when, and sums of other figures."""

    def __init__(self) -> None:
        self.records = 0
        self.figures: dict[str, float] = {}
        self.first: tuple[int, float] | None = None  # records of the first report, and its time
        self.last = 0.0

    def add(self, records: int, **figures: float) -> None:
        self.records += records
        for name, value in figures.items():
            self.figures[name] = self.figures.get(name, 0) + value
        self.last = time.monotonic()
        self.first = self.first or (records, self.last)

    def sums(self) -> dict[str, float]:
        return self.figures

    def since_first(self) -> float:
        return time.monotonic() - self.first[1] if self.first else 0.0

    def read(self) -> tuple[int, float | None]:
        """Records so far, and records per second since the first report, once there are two."""
        if self.first is None or self.last <= self.first[1]:
            return self.records, None
        return self.records, (self.records - self.first[0]) / (self.last - self.first[1])


class RayCounter:
    """Counts records over a cluster: one small actor, never waited for by the workers.

    It lives on the driver's node, so that no other node takes it along.
    """

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._total = ray.remote(num_cpus=0, scheduling_strategy=here)(_Total).remote()

    def add(self, records: int, **figures: float) -> None:
        self._total.add.remote(records, **figures)

    def read(self) -> tuple[int, float | None]:
        import ray

        return ray.get(self._total.read.remote())

    def since_first_report(self) -> float:
        """Seconds since the first report; 0 before. Machines have clocks of their own, so the
        actor takes the difference."""
        import ray

        return ray.get(self._total.since_first.remote())

    def figures(self) -> dict[str, float]:
        """The sums of what was reported beside the records."""
        import ray

        return ray.get(self._total.sums.remote())


class Progress:
    """A stage's progress line, with rate and estimated time left.

    Use as a context manager. `advance` counts in this process; `ray_counter` gives a handle that
    counts from workers.
    """

    def __init__(
        self, stage: str, unit: str = "records", quiet: bool = False, run: str | None = None
    ) -> None:
        """
        Args:
            quiet: No line is shown.
            run: The name under which what is done is counted for Prometheus; None: it is not.
        """
        self.stage = stage
        self.unit = unit
        self.total: int | None = None
        self.note = "starting"
        self._quiet = quiet
        self._before = 0  # done by an earlier run
        self._done = 0
        self._remote: RayCounter | None = None
        self._started = time.monotonic()
        self._first: tuple[int, float] | None = None  # records when some were first seen, and when
        self._metrics = Metrics(run, stage) if run else None
        self._counting = threading.Lock()  # for the line's thread and the stage's both count
        self._stop = threading.Event()
        self._console = Console(file=sys.stderr, highlight=False)
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def begin(self, total: int | None, note: str = "", unit: str = "", done: int = 0) -> None:
        """Start counting anew towards `total`; `note` says what is being done.

        Args:
            done: what an earlier run did of `total`; the rate leaves it out.
        """
        self._count()
        with self._counting:
            self.total, self.note, self.unit = total, note, unit or self.unit
            self._before, self._done, self._remote, self._first = done, 0, None, None
            if self._metrics:
                self._metrics.begin()

    def finished(self, counts: Mapping[str, Any]) -> None:
        """A step has ended with these counts: in, out, dropped by reason."""
        self._count(counts)

    def advance(self, records: int = 1) -> None:
        self._done += records

    def ray_counter(self) -> Counter:
        """A counter for workers; needs a connected Ray."""
        self._remote = RayCounter()
        return self._remote

    def rate(self) -> float | None:
        """Records per second of the workers, from their first report to their last.

        Start-up is left out, and so are the records of the first report. None where fewer than
        two reports came, or the count was lost.
        """
        found = self._asked(lambda counter: counter.read())
        return found[1] if found else None

    def since_first_report(self) -> float | None:
        """Seconds since the first of the workers reported; None where none has, or it is lost."""
        return self._asked(lambda counter: counter.since_first_report()) or None

    def figures(self) -> dict[str, float] | None:
        """Sums of what the workers reported beside their records; None where they are lost."""
        return self._asked(lambda counter: counter.figures()) if self._remote else {}

    def _asked(self, ask: Callable[[RayCounter], Answer]) -> Answer | None:
        """What the workers' counter says; None where there is none.

        The counter dies with its node, and work that is done must not fail for its figures.
        """
        if self._remote is None:
            return None
        from ray.exceptions import RayError

        try:
            return ask(self._remote)
        except RayError as error:
            log.warning("how fast %s was is not known: its counter is lost (%s)", self.stage, error)
            return None

    def line(self, width: int | None = None) -> str:
        """The progress as one line of text.

        The rate is that since records were first seen, without those: a start, and what a
        resumed worker reports at once, are not speed.

        Args:
            width: the most characters, for which the note is cut.
        """
        remote = self._remote  # another thread may begin anew
        counted = self._done + (remote.read()[0] if remote else 0)
        done = self._before + counted
        now = time.monotonic()
        if counted and self._first is None:
            self._first = (counted, now)
        note = self.note
        parts = [f"{self.stage:<9}", note]
        if self.total:
            parts.append(f"{done:,}/{self.total:,} {self.unit} ({done / self.total:.0%})")
        elif done:
            parts.append(f"{done:,} {self.unit}")
        if remote and not counted:
            parts.append("nothing back yet: workers load first")
        seen, since = self._first or (counted, now)
        if counted > seen and now - since > 1:
            rate = (counted - seen) / (now - since)
            parts.append(f"{rate:,.1f}/s")
            if self.total and done < self.total:
                parts.append(f"{duration((self.total - done) / rate)} left")
        parts.append(f"[{duration(self.seconds)}]")
        over = len("  ".join(filter(None, parts))) - (width or math.inf)
        if over > 0:
            parts[1] = f"{note[: -int(over) - 1]}…" if over + _NOTE < len(note) else ""
        return "  ".join(filter(None, parts))

    def _count(self, finished: Mapping[str, Any] | None = None) -> None:
        """Bring the metrics up to date; `finished` are the counts of a step that has ended."""
        with self._counting:
            if not self._metrics:
                return
            remote = self._remote
            try:
                done = self._done + (remote.read()[0] if remote else 0)
                self._metrics.progress(self.note, done, remote.figures() if remote else {})
                if finished:
                    self._metrics.finished(finished)
            except Exception as error:  # as for the line: a count must never end a run
                log.warning("%s is not counted for Prometheus: %s", self.stage, error)
                self._metrics = None

    def _show(self) -> None:
        if self._console.is_terminal:
            counted = 0.0
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                while not self._stop.wait(_LIVE_S):
                    line = self._safe_line(self._console.width)
                    live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
                    if self.seconds - counted > _LOG_S:
                        self._count()
                        counted = self.seconds
            return
        shown = ""
        while not self._stop.wait(_LOG_S):
            self._count()
            line = self._safe_line()
            if line != shown:
                print(line, file=sys.stderr, flush=True)
            shown = line

    def _safe_line(self, width: int | None = None) -> str:
        """A line must never end a run: the counter's actor goes away with the cluster."""
        try:
            return self.line(width)
        except Exception as error:
            return f"{self.stage}  {self.note}  (no count: {type(error).__name__})"


def digits(value: float) -> str:
    """Three digits of a figure, or all before the point; never a power of ten."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    places = 2 - math.floor(math.log10(abs(value)))
    whole = f"{value:,.{places}f}"
    return whole.rstrip("0").rstrip(".") if "." in whole else whole


def amount(figure: float, unit: str) -> str:
    """Seconds on the clock, GPU-seconds or money, as a person reads them."""
    if unit == "seconds":
        return duration(figure)
    if unit != "GPU-seconds":
        return f"{figure:,.2f} {unit}" if figure >= 0.1 else f"{digits(figure)} {unit}"
    return f"{figure / 3600:,.2f} GPU-hours" if figure >= 360 else f"{figure:,.0f} GPU-seconds"


def share(part: float) -> str:
    """A share in per cent, of a small one more digits."""
    if 0 < part < 0.01:
        return f"{digits(100 * part)} %"
    return f"{100 * part:,.{0 if part >= 0.1 else 1}f} %"


def roughly(count: float) -> str:
    """A count to two digits: more an extrapolation does not have."""
    return f"{int(float(f'{count:.2g}')):,}"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
