"""`llambert …`: the commands, their exit codes and what they print."""

import shlex
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from llambert import STAGES
from llambert.driver import check_gates, counts_line, follow_supervisor, run_stage, run_stages
from llambert.errors import UserError, ours

if TYPE_CHECKING:
    from llambert.nightly import Night
    from llambert.pipeline import Pipeline

_settings = click.option(
    *("--set", "overrides"),
    multiple=True,
    metavar="A.B=C",
    help="Set a field of the run file, such as train.epochs=2; may be repeated.",
)
_config = click.argument("config", type=click.Path())


class _Commands(click.Group):
    """Commands in the order in which they are needed, and the stages apart."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, of_stages in (("Commands", False), ("Stages, as `run` does them", True)):
            names = [name for name in self.commands if (name in STAGES) == of_stages]
            with formatter.section(title):
                formatter.write_dl([(n, self.commands[n].get_short_help_str(200)) for n in names])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="llambert")
def cli() -> None:
    """Label a large corpus at encoder cost and close to LLM quality.

    An LLM annotates a small random sample, an encoder is fine-tuned on its answers, and the
    encoder labels every record. `llambert run CONFIG` does it all as CONFIG, a YAML file, says; the
    same command again does only what is missing or stale.
    """


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
    """Run the whole method on a corpus and two small models that come with it.

    They are laid out in a folder together with an ordinary run file, which `llambert run` runs.
    """
    from llambert.demo.demo import lay_out

    config = str(lay_out(folder, records))
    click.echo(f"{records:,} reviews, two models and a run file are in {folder}/")
    click.echo(f"$ {shlex.join(['llambert', 'run', config])}")
    _run(config, (), explain=True)


@cli.command()
@_config
@_settings
@click.option(
    "--calibrate",
    is_flag=True,
    help="Measure the rates that are not known, in minutes, on the run's own devices; the LLM is "
    "asked about some records, and the run uses the answers.",
)
def plan(config: str, overrides: tuple[str, ...], calibrate: bool) -> None:
    """Say what a run takes and costs, beside an LLM that labels everything.

    Records and tokens are counted on a part of the corpus, in seconds; prices come from the run
    file, rates from there or from an earlier run. No model is asked, unless to --calibrate.
    plan/plan.json in the workdir has every figure.
    """
    from llambert.planner import make_plan, show

    pipeline = _pipeline(config, overrides)
    show(make_plan(pipeline, calibrate), f"{pipeline.workdir.plan.uri}/plan.json")


@cli.command()
@_config
@_settings
@click.option(
    *("--from", "first"),
    type=click.Choice(STAGES),
    metavar="STAGE",
    help="Do this stage and all after it again.",
)
@click.option(
    *("--until", "last"), type=click.Choice(STAGES), metavar="STAGE", help="End after this stage."
)
def run(config: str, overrides: tuple[str, ...], first: str | None, last: str | None) -> None:
    """Run every stage that is missing or stale, in order."""
    _run(config, overrides, first, last)


def _run(
    config: str,
    overrides: tuple[str, ...],
    first: str | None = None,
    last: str | None = None,
    explain: bool = False,
) -> None:
    from llambert.closing import closing

    pipeline = _pipeline(config, overrides)
    for named in filter(None, (first, last)):
        _refuse_absent(pipeline, named)
    stages = pipeline.stages
    chosen = stages[: stages.index(last) + 1 if last else None]
    forced = chosen[chosen.index(first) :] if first in chosen else ()
    if first and not forced:
        raise click.UsageError(f"--from {first} comes after --until {last}")
    started = time.monotonic()
    pending = [stage for stage in chosen if stage in forced or not pipeline.done(stage)]
    done = chosen[: chosen.index(pending[0])] if pending else chosen
    check_gates(pipeline, done)
    if pending:
        run_stages(pipeline, chosen[len(done) :], forced)
    closing(pipeline, chosen, time.monotonic() - started if pending else None, explain)


@cli.command()
@_config
@_settings
def status(config: str, overrides: tuple[str, ...]) -> None:
    """Say which steps are done, stale or missing, and which gates are passed; nothing is run."""
    pipeline = _pipeline(config, overrides)
    for stage in pipeline.stages:
        steps = pipeline.steps(stage)
        for step in steps:
            line = f"{step.state:<8} {step.title:<24} {step.why or step.folder.uri}"
            click.echo(line)
        for gate in pipeline.gates(stage) if all(step.manifest for step in steps) else []:
            click.echo(f"{'passed' if gate.passed else 'breached':<8} gate {gate.line()}")


@cli.command()
@_config
@_settings
@click.option(
    "--gain",
    default=0.5,
    show_default=True,
    metavar="POINTS",
    type=float,
    help="Points of accuracy that twice the annotations must win to be worth it.",
)
def curve(config: str, overrides: tuple[str, ...], gain: float) -> None:
    """Measure how many annotations are enough.

    Encoders are trained on ever larger parts of the sample that annotate has annotated. A power law
    fitted to their accuracies says what the next doubling would bring, and where to stop. What is
    trained already is not trained again.
    """
    from llambert.config import load
    from llambert.curve import Curve
    from llambert.curve_text import show, tell

    found = Curve(load(config, overrides), gain / 100)
    show(found.run(tell), f"{found.folder.uri}/curve.svg")


def _stage_command(stage: str, summary: str) -> None:
    """Add the command that runs one stage in this process."""

    @cli.command(stage, help=summary)
    @_config
    @_settings
    @click.option("--force", is_flag=True, help="Run it although it is done.")
    def command(config: str, overrides: tuple[str, ...], force: bool) -> None:
        supervised = follow_supervisor(stage)
        pipeline = _pipeline(config, overrides)
        _refuse_absent(pipeline, stage)
        if supervised and stage != "corpus":
            pipeline.freeze()
        run_stage(pipeline, stage, force, supervised)


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
    "tracking": "Tell MLflow of the run, where the run file has `tracking`.",
}.items():
    _stage_command(_name, _summary_line)


@cli.command()
@_config
@_settings
@click.option("--model", metavar="FOLDER", help="Encoder that labels; by default the run's best.")
@click.option("--publish", metavar="[MODEL/]N", help="Only publish night N, which is held back.")
@click.option(
    "--discard", metavar="[MODEL/]N", help="Only have the files of night N, held back, new again."
)
def nightly(
    config: str, overrides: tuple[str, ...], model: str | None, **verdict: str | None
) -> None:
    """Label the files that are new or changed since the last night of the same model.

    A night whose labels look unlike those before is held back: exit code 3.
    """
    from llambert.config import load
    from llambert.errors import DriftError
    from llambert.nightly import Nights
    from llambert.nightly_verdict import discard, publish
    from llambert.progress import duration

    started = time.monotonic()
    chosen = {how: number for how, number in verdict.items() if number is not None}
    if len(chosen) > 1:
        raise click.UsageError("a night is either published or discarded")
    for how, number in chosen.items():
        decide = publish if how == "publish" else discard
        click.echo(f"{how}ed night {number}: {decide(load(config, overrides), number, model).uri}/")
        return
    nights = Nights(load(config, overrides), model)
    done = []
    for night in nights.label(vanished=_warn_of_the_vanished):
        _night_summary(night)
        done.append(night)
    if not done:
        click.secho(f"Nothing new since night {nights.last}.", bold=True)
    if waiting := [n for n in nights.waiting() if n not in [night.number for night in done]]:
        click.echo(f"held back and not published: night {', '.join(map(str, waiting))}")
    click.echo(f"in {duration(time.monotonic() - started)}")
    if wrong := [night for night in done if night.held]:
        words = ["llambert", "nightly", config, *(f"--set={each}" for each in overrides)]
        words += [f"--model={model}"] if model else []
        raise DriftError(
            "\n".join(f"night {n.number} looks wrong: {why}" for n in wrong for why in n.held),
            "look at the labels, which are kept; this publishes them: "
            + ", ".join(
                f"`{shlex.join(words)} --publish {n.number}` ({n.folder.uri}/)" for n in wrong
            )
            + "; --discard in its place has their files labelled again",
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
    click.echo(counts_line("parse", manifest.counts, manifest.seconds))


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit 0 when done, 2 for the user's mistakes, 3 for a night that looks
    wrong, 4 for a gate that is not passed, 130 after Ctrl-C, 143 after SIGTERM, 1 for a failure.

    Args:
        arguments: the command's words; by default those of this process.
    """
    interrupted = 130

    def terminate(*_: object) -> None:  # as Ctrl-C; Ray would lose an exception of our own
        nonlocal interrupted
        interrupted = 143
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        code = cli.main(arguments, standalone_mode=False)  # --help and --version return one
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, Exception) as error:
        code = _told(error, interrupted)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code)


def _told(error: BaseException, interrupted: int) -> int:
    """Say what ended a command; returns its exit code, `interrupted` where it was told to stop."""
    if isinstance(error, click.Abort) and error.__cause__:  # what click makes of two exceptions
        error = error.__cause__
    if isinstance(error, KeyboardInterrupt):
        click.echo("stopped; the same command goes on from here", err=True)
        return interrupted
    known = ours(error)
    if known is None:
        traceback.print_exception(error)
        return 1
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(str(known), err=True)
    return known.exit_code


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


def _warn_of_the_vanished(uris: list[str]) -> None:
    click.secho(
        "warning: a night was not finished, and these of its files are there no more, which it has "
        f"not labelled: {', '.join(uris)}",
        fg="yellow",
        err=True,
    )


def _night_summary(night: "Night") -> None:
    """Which files the night labelled, what became of their records, and where it lies."""
    manifest, title = night.manifest, f"night {night.number}"
    files = ", ".join(f"{n:,} {how}" for how, n in manifest.details["files"].items())
    click.secho(f"{title}: {'held back' if night.held else 'published'}; files: {files}", bold=True)
    for why in night.held:  # now, and not with the others at the end: a further night may fail
        click.echo(f"{'':<24} {why}")
    rate = manifest.details["records_per_s"]
    line = counts_line(title, manifest.counts, manifest.seconds)
    click.echo(line + (f"  {rate:,.1f}/s" if rate else ""))
    click.echo(f"{'':<24} {night.folder.uri}/labels/")
    figures = ", ".join(f"{name} {value:.3f}" for name, value in manifest.details["shifts"].items())
    against = manifest.details["compared_with"]
    click.echo(f"{'':<24} compared with {against}" + (f": {figures}" if figures else ""))
