"""How stages are run: each in a process of its own, under one lease and on one Ray."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llambert.cluster import LOG_LEVEL, QUIET
from llambert.errors import StageError, UserError

if TYPE_CHECKING:
    from llambert.config import RunConfig
    from llambert.pipeline import Pipeline
    from llambert.step import Step

_SUPERVISED = "LLAMBERT_SUPERVISED"  # set for a stage that `run` started and must not outlive
_LIGHT = ("report", "tracking")  # stages that need no Ray

# For a stage's driver: Ray's core would write to the terminal what it thinks of Ray Data's actors.
# What ends a stage comes as an exception.
_QUIET = {} if os.environ.get("LLAMBERT_WORKER_LOGS") else {LOG_LEVEL: QUIET}
_STOP_S = 5.0  # seconds for a stage to end when told to


def run_stages(pipeline: "Pipeline", chosen: tuple[str, ...], forced: tuple[str, ...]) -> None:
    """Run each stage that is not done as its own process, on one Ray, as far as the gates allow.

    A stage's placement groups are released only when its driver ends (ray-project/ray#64035), so
    that stages which shared one would wait for each other's GPUs for ever. They read the run file
    as it was resolved at the start: one that is edited meanwhile is the next run's.
    """
    from llambert import cluster
    from llambert.lease import Lease
    from llambert.preflight import check_resources, preflight

    pending = [stage for stage in chosen if stage in forced or not pipeline.done(stage)]
    preflight(pipeline, pending)
    if unknown := pipeline.gold.refusals().get("unknown_label"):
        names = ", ".join(pipeline.config.task.labels)
        click.echo(f"gold: {unknown:,} records are left out, for their label is none of {names}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(Lease(pipeline.workdir))
        environment = {_SUPERVISED: "1"}
        if not set(pending) <= set(_LIGHT):
            there = os.environ.get("RAY_ADDRESS")
            click.echo(f"joining Ray at {there}" if there else "starting Ray on this machine")
            stack.enter_context(cluster.connection())
            environment["RAY_ADDRESS"] = cluster.address()
            check_resources(pipeline, pending)
        pipeline.write_config()
        resolved = stack.enter_context(_resolved(pipeline.config))
        commands = {stage: [sys.executable, "-m", "llambert", stage, resolved] for stage in chosen}
        for stage in forced:
            commands[stage] += ["--force"]
        processes = stack.enter_context(StageProcesses(commands, pending, environment))
        for stage in chosen:
            if stage in forced or not pipeline.done(stage):
                processes.run(stage)
                pipeline.freeze()
            check_gates(pipeline, [stage])


@contextlib.contextmanager
def _resolved(config: "RunConfig") -> Iterator[str]:
    """A file of this machine that holds `config`, for the `with` block."""
    from llambert.config import dump

    with tempfile.TemporaryDirectory(prefix="llambert-") as folder:
        path = Path(folder, "run.yaml")
        path.write_text(dump(config), encoding="utf-8")
        yield str(path)


class StageProcesses:
    """A process for each stage; while one is at work the next has begun, and waits for its turn.

    What a stage imports takes one core a second or two, in which a run would do nothing else. The
    process that waits holds 170 MiB.
    """

    def __init__(
        self, commands: dict[str, list[str]], expected: Iterable[str], environment: dict[str, str]
    ) -> None:
        """
        Args:
            commands: each stage's command line, in order.
            expected: the stages that will run, as far as is known.
            environment: what their processes have beside the environment of this one.
        """
        self._commands, self._expected = commands, set(expected)
        self._environment = _QUIET | os.environ | environment
        self._next: tuple[str, subprocess.Popen[bytes]] | None = None

    def __enter__(self) -> "StageProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self._take("")

    def run(self, stage: str) -> None:
        """Run a stage to its end, and end with it if it fails.

        Raises:
            StageError: it was killed; of any other failure it has told by itself.
        """
        child = self._take(stage) or self._begin(stage)
        try:
            later = list(self._commands)[list(self._commands).index(stage) + 1 :]
            if following := [name for name in later if name in self._expected]:
                self._next = following[0], self._begin(following[0])
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has just been killed
                child.stdin.write(b"\n")
            code = child.wait()
        except BaseException:
            _stop(child)
            raise
        if code < 0:
            raise StageError(
                f"stage {stage} was ended by signal {-code} ({signal.strsignal(-code)})",
                "where nobody did that, the machine's memory was probably full (its kernel log "
                "says so): give it more, or the stage less; the same command goes on from here",
            )
        if code:
            sys.exit(code)

    def _begin(self, stage: str) -> subprocess.Popen[bytes]:
        """What may reach every process of a group, as Ctrl-C does, is left to this one."""
        stops = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # a child inherits it
        try:
            return subprocess.Popen(
                self._commands[stage], bufsize=0, stdin=subprocess.PIPE, env=self._environment
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _take(self, stage: str) -> subprocess.Popen[bytes] | None:
        """The process that waits for its turn, if it is this stage's and lives; any other is ended.

        Where the one expected next turned out to be done, it is another's.
        """
        (name, child), self._next = self._next or ("", None), None
        if child is None or (name == stage and child.poll() is None):
            return child
        child.kill()
        child.wait()
        return None


def check_gates(pipeline: "Pipeline", stages: Iterable[str]) -> None:
    """Hold what `stages` made to the gates of the run file.

    Raises:
        GateError: a gate is not passed.
        UserError: a stage with a gate has not been done.
    """
    from llambert.gates import check_passed

    for stage in stages:
        if pipeline.config.gates.on(stage) and not pipeline.done(stage):
            raise UserError(
                f"there are gates after {stage}, and what it makes is missing or stale",
                "`llambert run` does all stages in order",
            )
        gates = pipeline.gates(stage)
        check_passed(gates, pipeline.workdir.gates)
        for gate in gates:
            click.echo(f"gate {gate.line()}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a stage at once, by its input: it leaves signals to this process."""
    assert child.stdin is not None
    child.stdin.close()
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def follow_supervisor(stage: str) -> bool:
    """Wait for the turn of a stage that `run` started, and end with it: two never write one folder.

    Returns:
        Whether `run` did start it.
    """
    if not os.environ.pop(_SUPERVISED, None):
        return False
    importlib.import_module("llambert.pipeline")
    if stage not in _LIGHT:
        importlib.import_module("ray.data")
    if not os.read(sys.stdin.fileno(), 1):  # the supervisor is gone
        sys.exit(1)
    from rich.console import Console

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # returns when the other end of the pipe is closed
        Console(file=sys.stderr).show_cursor()  # which the progress line has hidden
        os._exit(1)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()
    return True


def run_stage(pipeline: "Pipeline", stage: str, force: bool, supervised: bool) -> None:
    """Run the steps of one stage in this process, between the gates before and after it.

    Args:
        force: do the steps again that are done.
        supervised: `run_stages` holds the lease and checks what is to be checked.
    """
    todo = [step for step in pipeline.steps(stage) if force or step.state != "done"]
    if todo:
        todo[0].check_inputs()
    if not supervised:
        check_gates(pipeline, pipeline.stages[: pipeline.stages.index(stage)])
    if todo:
        _run_steps(pipeline, stage, todo, supervised)
    else:
        click.echo(f"{stage}: done already")
    if not supervised:
        check_gates(pipeline, [stage])


def _run_steps(pipeline: "Pipeline", stage: str, todo: Sequence["Step"], supervised: bool) -> None:
    from llambert import cluster
    from llambert.lease import Lease
    from llambert.preflight import check_resources, preflight
    from llambert.progress import Progress
    from llambert.step import run_step

    if not supervised:
        preflight(pipeline, [stage])
    needs_ray = stage not in _LIGHT
    with contextlib.ExitStack() as stack:
        if not supervised:
            stack.enter_context(Lease(pipeline.workdir))
        if needs_ray:
            stack.enter_context(cluster.connection())
        if not supervised:
            if needs_ray:
                check_resources(pipeline, [stage])
            pipeline.write_config()
        for title in [step.title for step in todo]:
            (step,) = [s for s in pipeline.steps(stage) if s.title == title]  # as things stand now
            with Progress(stage, run=pipeline.config.name) as progress:
                manifest = run_step(step, progress)
            click.echo(counts_line(title, manifest.counts, manifest.seconds))
            for warning in manifest.details.get("warnings", []):
                click.secho(f"warning: {warning}", fg="yellow", err=True)


def counts_line(title: str, counts: dict[str, Any], seconds: float) -> str:
    """What a step took in and gave out, as one line."""
    if title == "evaluate" and not counts["in"]:
        return f"{title:<24} no encoder is measured: there are no gold test records"
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in counts["dropped"].items() if n)
    end = f"; dropped: {dropped}" if dropped else ""
    return f"{title:<24} {counts['in']:>11,} in {counts['out']:>11,} out  {seconds:8.1f} s{end}"
