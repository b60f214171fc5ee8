"""The progress line, by a clock of the test's own, and as plain lines in a log."""

import threading

import pytest

from llambert import progress as module
from llambert.progress import Progress, digits, duration, share


@pytest.fixture
def clock(monkeypatch):
    """Sets the time; seconds."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, 1000.0 + seconds)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.9, "1 min 00 s"),
        (3599.9, "1 h 00 min"),
        (60, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_duration(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((0, "0"), (0.0283333, "0.0283"), (0.1, "0.1"), (1.155, "1.16"), (12.0, "12")),
        *((99.97, "100"), (297.4, "297"), (30_000_000, "30,000,000"), (0.00001234, "0.0000123")),
    ],
)
def test_figures_never_take_powers_of_ten(value, said):
    assert digits(value) == said


@pytest.mark.parametrize(
    ("part", "said"),
    [(0.94, "94 %"), (0.0567, "5.7 %"), (0.0003, "0.03 %"), (0.0, "0.0 %")],
)
def test_a_share_is_never_rounded_to_nothing(part, said):
    assert share(part) == said


def test_a_line_says_how_far_how_fast_and_how_long(clock):
    progress = Progress("label", quiet=True)
    assert progress.line().split("  ")[-2:] == ["starting", "[0 s]"]
    progress.begin(2000, "labelling")
    assert "0/2,000 records (0%)  [0 s]" in progress.line()
    clock(30)  # start-up, and then a first report
    progress.advance(400)
    assert progress.line().endswith("400/2,000 records (20%)  [30 s]")
    clock(40)
    progress.advance(600)
    line = progress.line()
    assert line.startswith("label ")
    assert line.endswith("1,000/2,000 records (50%)  60.0/s  17 s left  [40 s]")
    clock(50)
    progress.advance(1000)
    assert progress.line().endswith("2,000/2,000 records (100%)  80.0/s  [50 s]")


def test_where_a_line_is_too_long_its_note_is_cut(clock):
    progress = Progress("label", quiet=True)
    progress.begin(25_000, "labelling with all that there is")
    progress.advance(1)
    progress.line()
    clock(100)
    progress.advance(2500)
    rest = "2,501/25,000 records (10%)  25.0/s  15 min 00 s left  [1 min 40 s]"
    assert progress.line(200) == progress.line()
    assert progress.line() == f"label      labelling with all that there is  {rest}"
    assert progress.line(100) == f"label      labelling with all t…  {rest}"
    assert len(progress.line(100)) == 100
    assert progress.line(80) == f"label      {rest}"


def test_what_an_earlier_run_did_is_done_and_no_speed(clock):
    progress = Progress("label", quiet=True)
    progress.begin(1000, "labelling", done=900)
    for seconds in (0, 60):
        clock(seconds)
        assert f"900/1,000 records (90%)  [{duration(seconds)}]" in progress.line()
    progress.advance(10)
    progress.line()
    clock(70)
    progress.advance(10)
    assert "920/1,000 records (92%)  1.0/s  1 min 20 s left" in progress.line()
    progress.begin(10, "again")
    assert "0/10 records (0%)  [" in progress.line()


def test_without_a_total_the_count_stands_alone(clock):
    progress = Progress("corpus", quiet=True)
    progress.begin(None, "reading", unit="files")
    progress.advance(1200)
    assert progress.line().endswith("reading  1,200 files  [0 s]")


class Broken:
    def read(self):
        raise ConnectionError("the cluster went away")


def test_a_counter_that_went_away_ends_no_run(clock):
    progress = Progress("label", quiet=True)
    progress.begin(10, "labelling")
    progress._remote = Broken()
    assert progress._safe_line() == "label  labelling  (no count: ConnectionError)"


class Dead:
    """A counter whose actor went away with its node."""

    def gone(self):
        from ray.exceptions import ActorDiedError

        raise ActorDiedError()

    read = since_first_report = figures = gone


def test_a_stage_that_is_done_does_not_fail_for_its_figures(monkeypatch):
    from llambert.label import _speed

    said = []  # caplog has seen nothing of it after the integration tests, for a reason not found
    monkeypatch.setattr(module.log, "warning", lambda text, *values: said.append(text % values))
    progress = Progress("label", quiet=True)
    assert (progress.rate(), progress.since_first_report(), progress.figures()) == (None, None, {})
    progress.begin(10, "labelling")
    progress._remote = Dead()
    assert progress.rate() is progress.since_first_report() is progress.figures() is None
    assert _speed(10, 1.0, progress) == {}
    assert "how fast label was is not known" in said[0]


def test_a_log_gets_whole_plain_lines(capfd, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(module, "_LOG_S", 0.01)
    written = threading.Event()
    line = Progress.line
    lines = iter(range(100_000))

    def noted(self, width):
        if next(lines) >= 2:  # the lines before have been written
            written.set()
        return line(self, width)

    monkeypatch.setattr(Progress, "line", noted)
    with Progress("corpus") as progress:
        progress.begin(3, "reading")
        progress.advance(2)
        assert written.wait(10)
    lines = [each.strip() for each in capfd.readouterr().err.splitlines()]
    assert lines[-1].startswith("corpus     reading  2/3 records (67%)")
    assert not any("\x1b" in each or "\r" in each for each in lines)


def test_quiet_says_nothing(capfd, monkeypatch):
    monkeypatch.setattr(module, "_LOG_S", 0.01)
    with Progress("corpus", quiet=True) as progress:
        progress.begin(3, "reading")
        assert not progress._thread.is_alive()
    assert capfd.readouterr().err == ""
