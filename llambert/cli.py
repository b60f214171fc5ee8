"""`llambert …`: the commands, their exit codes and what they print."""

import contextlib
import os
import shlex
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from llambert import STAGES
from llambert.curve_command import curve
from llambert.errors import LlambertError, UserError

if TYPE_CHECKING:
    from llambert.nightly import Night
    from llambert.pipeline import Pipeline
    from llambert.step import Step

_SUPERVISED = "LLAMBERT_SUPERVISED"  # set for a stage that `run` started and must not outlive

_settings = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a field; may be repeated."
)
_config = click.argument("config", type=click.Path())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="llambert")
def cli() -> None:
    """Label a large corpus at encoder cost and close to LLM quality.

    An LLM annotates a small random sample, an encoder is fine-tuned on its answers, and the
    encoder labels every record. `llambert run CONFIG` does it all; the same command again does
    only what is missing or stale.
    """


@cli.command()
@_config
@_settings
@click.option("--from", "first", type=click.Choice(STAGES), help="First stage; done again.")
@click.option("--until", "last", type=click.Choice(STAGES), help="Last stage.")
def run(config: str, overrides: tuple[str, ...], first: str | None, last: str | None) -> None:
    """Run every stage that is missing or stale, in order."""
    _run(config, overrides, first, last)


def _run(config: str, overrides: tuple[str, ...], first: str | None, last: str | None) -> None:
    pipeline = _pipeline(config, overrides)
    for named in filter(None, (first, last)):
        _refuse_absent(pipeline, named)
    stages = pipeline.stages
    chosen = stages[: stages.index(last) + 1 if last else None]
    forced = chosen[chosen.index(first) :] if first in chosen else ()
    if first and not forced:
        raise click.UsageError(f"--from {first} comes after --until {last}")
    started = time.monotonic()
    pending = [
        s for s in chosen if s in forced or any(x.state != "done" for x in pipeline.steps(s))
    ]
    if pending:
        _run_stages(pipeline, config, overrides, chosen, forced)
    _summary(pipeline, chosen, time.monotonic() - started, anything_done=bool(pending))


def _stage_command(stage: str, summary: str) -> None:
    """Add the command that runs one stage in this process."""

    @cli.command(stage, help=summary)
    @_config
    @_settings
    @click.option("--force", is_flag=True, help="Run it although it is done.")
    def command(config: str, overrides: tuple[str, ...], force: bool) -> None:
        supervised = _follow_supervisor()
        pipeline = _pipeline(config, overrides)
        _refuse_absent(pipeline, stage)
        if supervised and stage != "corpus":
            pipeline.freeze()
        _run_stage(pipeline, stage, force, supervised)


for _name, _summary_line in {
    "corpus": "Read the corpus once: count, quarantine, find duplicates.",
    "sample": "Draw the random sample that the LLM annotates.",
    "annotate": "Ask the LLM for every label of the sample that is missing.",
    "train": "Fine-tune the encoder, each variant and seed.",
    "evaluate": "Measure the LLM and the encoders against gold.",
    "label": "Label every record of the corpus.",
    "cascade": "Ask the LLM for the least certain labels, where the run file has `cascade`.",
    "review": "Prepare the least certain records for people, where the run file has `review`.",
    "report": "Write the report.",
}.items():
    _stage_command(_name, _summary_line)


cli.add_command(curve)


@cli.command()
@_config
@_settings
@click.option("--model", metavar="FOLDER", help="Encoder that labels; by default the run's best.")
@click.option("--publish", type=int, metavar="N", help="Only publish night N, which is held back.")
def nightly(
    config: str, overrides: tuple[str, ...], model: str | None, publish: int | None
) -> None:
    """Label the files that are new or changed since the last night of the same model.

    A night whose labels look unlike those before is held back: exit code 3.
    """
    from llambert.config import load
    from llambert.errors import DriftError
    from llambert.nightly import Nights
    from llambert.progress import duration

    started = time.monotonic()
    nights = Nights(load(config, overrides), model)
    if publish is not None:
        click.echo(f"published night {publish}: {nights.publish(publish).uri}/")
        return
    done = nights.label()
    for night in done:
        _night_summary(night)
    if not done:
        click.secho(f"Nothing new since night {nights.last}.", bold=True)
    if waiting := [n for n in nights.waiting() if n not in [night.number for night in done]]:
        click.echo(f"held back and not published: night {', '.join(map(str, waiting))}")
    click.echo(f"in {duration(time.monotonic() - started)}")
    if held := [night for night in done if night.held]:
        words = ["llambert", "nightly", config, *(f"--set={each}" for each in overrides)]
        words += [f"--model={model}"] if model else []
        raise DriftError(
            "\n".join(f"night {n.number} looks wrong: {why}" for n in held for why in n.held),
            "look at the labels, which are kept; this publishes them: "
            + ", ".join(
                f"`{shlex.join(words)} --publish {n.number}` ({n.folder.uri}/)" for n in held
            ),
        )


@cli.command()
@_config
@_settings
def parse(config: str, overrides: tuple[str, ...]) -> None:
    """Parse the stored LLM responses anew; no model is asked."""
    from llambert.lease import Lease
    from llambert.progress import Progress
    from llambert.step import run_step

    pipeline = _pipeline(config, overrides, may_ask=False)
    pipeline.check_answered()
    (step,) = pipeline.steps("annotate")
    with Lease(pipeline.workdir), Progress("parse") as progress:
        manifest = run_step(step, progress)
    click.echo(_counts_line("parse", manifest.counts, manifest.seconds))


@cli.command("config")
@_config
@_settings
def show_config(config: str, overrides: tuple[str, ...]) -> None:
    """Print the resolved run file."""
    from llambert.config import dump, load

    click.echo(dump(load(config, overrides)), nl=False)


@cli.command()
def schema() -> None:
    """Print the JSON schema of a run file, for editors."""
    import json

    from llambert.config import RunConfig

    click.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


@cli.command()
@click.option(
    "--records",
    default=10_000,
    show_default=True,
    type=click.IntRange(min=200),
    help="Size of the corpus.",
)
@click.option(
    "--dir",
    "folder",
    default="llambert-demo",
    show_default=True,
    type=click.Path(file_okay=False),
    help="Where it is laid out and run.",
)
def demo(records: int, folder: str) -> None:
    """Watch the whole method at work, on a corpus and two small models that come with it.

    They are laid out in a folder together with an ordinary run file, which `llambert run` runs.
    """
    from llambert.config import load
    from llambert.demo.demo import lay_out, summary

    click.echo(f"{records:,} reviews, two models and a run file go to {folder}/")
    config = str(lay_out(folder, records))
    click.echo(f"$ {shlex.join(['llambert', 'run', config])}")
    _run(config, (), None, None)
    click.echo(summary(load(config).workdir))


@cli.command()
@_config
@_settings
def status(config: str, overrides: tuple[str, ...]) -> None:
    """Say which steps are done, stale or missing; nothing is run."""
    pipeline = _pipeline(config, overrides)
    for stage in pipeline.stages:
        for step in pipeline.steps(stage):
            line = f"{step.state:<8} {step.title:<24} {step.why or step.folder.uri}"
            click.echo(line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit 0 when done, 2 for the user's mistakes, 3 for a night that looks
    wrong, 1 for a failure.

    Args:
        arguments: the command's words; by default those of this process.
    """
    try:
        cli(arguments)
    except Exception as error:
        known = _known(error)
        if known is None:
            traceback.print_exc()
        else:
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(str(known), err=True)
        sys.exit(known.exit_code if known else 1)


def _known(error: BaseException | None) -> LlambertError | None:
    """The product's own error behind `error`, which Ray may have wrapped on its way here."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, LlambertError):
            return error
        error, seen = getattr(error, "cause", None) or error.__cause__, seen + 1
    return None


def _pipeline(config: str, overrides: tuple[str, ...], may_ask: bool = True) -> "Pipeline":
    from llambert.config import load
    from llambert.pipeline import Pipeline

    return Pipeline(load(config, overrides), may_ask=may_ask)


def _refuse_absent(pipeline: "Pipeline", stage: str) -> None:
    if stage not in pipeline.stages:
        raise UserError(
            f"the run file has no section {stage!r}, so that there is no such stage",
            f"add it, or --set {stage}={{}} for its defaults",
        )


def _run_stages(
    pipeline: "Pipeline",
    config: str,
    overrides: tuple[str, ...],
    chosen: tuple[str, ...],
    forced: tuple[str, ...],
) -> None:
    """Run each stage that is not done as its own process, on one Ray.

    A stage's placement groups are released only when its driver ends (ray-project/ray#64035), so
    that stages which shared one would wait for each other's GPUs for ever.
    """
    from llambert import cluster
    from llambert.lease import Lease
    from llambert.preflight import check_resources, preflight

    preflight(pipeline, chosen)
    if unknown := pipeline.gold.refusals().get("unknown_label"):
        names = ", ".join(pipeline.config.task.labels)
        click.echo(f"gold: {unknown:,} records are left out, for their label is none of {names}")
    with Lease(pipeline.workdir), cluster.connection():
        check_resources(pipeline, chosen)
        pipeline.write_config()
        for stage in chosen:
            steps = pipeline.steps(stage)
            if stage not in forced and all(step.state == "done" for step in steps):
                continue
            command = [sys.executable, "-m", "llambert", stage, config]
            command += [part for each in overrides for part in ("--set", each)]
            command += ["--force"] if stage in forced else []
            environment = {**os.environ, _SUPERVISED: "1", "RAY_ADDRESS": cluster.address()}
            child = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
            try:
                code = child.wait()
            except BaseException:
                child.terminate()
                raise
            if code:
                sys.exit(code if code > 0 else 1)
            pipeline.freeze()


def _follow_supervisor() -> bool:
    """End with the `run` that started this stage, if one did: two never write the same folder."""
    if not os.environ.pop(_SUPERVISED, None):
        return False

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # returns when the other end of the pipe is closed
        os._exit(1)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()
    return True


def _run_stage(pipeline: "Pipeline", stage: str, force: bool, supervised: bool) -> None:
    from llambert import cluster
    from llambert.lease import Lease
    from llambert.preflight import check_resources, preflight
    from llambert.progress import Progress
    from llambert.step import run_step

    todo = [step for step in pipeline.steps(stage) if force or step.state != "done"]
    if not todo:
        click.echo(f"{stage}: done already")
        return
    todo[0].check_inputs()
    if not supervised:
        preflight(pipeline, [stage])
    needs_ray = stage != "report"
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
            with Progress(stage) as progress:
                manifest = run_step(step, progress)
            click.echo(_counts_line(title, manifest.counts, manifest.seconds))


def _night_summary(night: "Night") -> None:
    """Which files the night labelled, what became of their records, and where it lies."""
    manifest, title = night.manifest, f"night {night.number}"
    files = ", ".join(f"{n:,} {how}" for how, n in manifest.details["files"].items())
    click.secho(f"{title}: {'held back' if night.held else 'published'}; files: {files}", bold=True)
    rate = manifest.details["records_per_s"]
    line = _counts_line(title, manifest.counts, manifest.seconds)
    click.echo(line + (f"  {rate:,.1f}/s" if rate else ""))
    click.echo(f"{'':<24} {night.folder.uri}/labels/")
    figures = ", ".join(f"{name} {value:.3f}" for name, value in manifest.details["shifts"].items())
    against = manifest.details["compared_with"]
    click.echo(f"{'':<24} compared with {against}" + (f": {figures}" if figures else ""))


def _counts_line(title: str, counts: dict[str, Any], seconds: float) -> str:
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in counts["dropped"].items() if n)
    end = f"; dropped: {dropped}" if dropped else ""
    return f"{title:<24} {counts['in']:>11,} in {counts['out']:>11,} out  {seconds:8.1f} s{end}"


def _summary(
    pipeline: "Pipeline", chosen: tuple[str, ...], seconds: float, anything_done: bool
) -> None:
    """What every step took in and gave out, and where it lies."""
    from llambert.progress import duration
    from llambert.step import made

    click.echo()
    click.secho("All done." if anything_done else "Nothing to do: all is done.", bold=True)
    for stage in chosen:
        for step in pipeline.steps(stage):
            manifest = made(step)
            rate = manifest.details.get("records_per_s")
            speed = f"  {rate:,.1f}/s" if rate else ""
            click.echo(_counts_line(step.title, manifest.counts, manifest.seconds) + speed)
            click.echo(f"{'':<24} {_where(step)}")
    click.echo(f"in {duration(seconds)}")


def _where(step: "Step") -> str:
    return f"{step.folder.uri}/"
