"""`llambert plan`: what a run takes and costs, reckoned before anything is paid."""

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from llambert import cluster
from llambert.annotate import check as check_annotator
from llambert.config import RunConfig
from llambert.errors import UserError
from llambert.gold import check_not_empty, first_by_hash
from llambert.lease import Lease
from llambert.pipeline import Pipeline
from llambert.plan import FIGURES, Range, Rate, Work, as_json, estimate, plain
from llambert.preflight import check_resources
from llambert.progress import digits, duration
from llambert.rates import calibrate, known_rates, to_ask
from llambert.step import check_writable
from llambert.survey import Survey, encoder_tokens, llm_tokens, survey
from llambert.train import check as check_trainer
from llambert.workdir import PLAN

_SCALES = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"), (1.0, ""))
_CLOCK = ((1.0, " h"), (1 / 60, " min"), (1 / 3600, " s"))  # of hours
_DEVICES = {"gpu": "a GPU", "cpu": "a cluster without GPUs"}
_FILE_WIDTH = 120  # columns, where no terminal tells how many it has
_UNTOLD = ("corpus", "sample")  # they hold no device, and their records are those of others
_MARGIN_TOKENS = 0.1  # of the tokens that an engine counted on some hundred records


@dataclass(frozen=True)
class _Tokens:
    """Tokens of a record, on average."""

    encoder: Range
    prompt: Range | None  # None: recorded answers, whose prompts are not known
    answer: Range | None


def make_plan(pipeline: Pipeline, measure: bool = False) -> dict[str, Any]:
    """Plan the whole run, as from nothing, and leave it in the workdir as plan/plan.json.

    The last plan of these settings that was made before any of its models worked is kept beside,
    whatever is planned later: the report holds the run against that one.

    Reads a part of the corpus and the models' tokenizers, in seconds, without Ray.

    Args:
        measure: calibrate the rates that are not known: with Ray, on the run's own devices, in
            minutes. The LLM is asked, and the run uses what it answers.

    Raises:
        UserError: a path, column or model that does not exist; a workdir that another run holds
            (where measured).
    """
    config, workdir = pipeline.config, pipeline.workdir
    check_writable(workdir)
    check_not_empty(config.gold, config.task, pipeline.gold)
    check_trainer(config.train)
    if measure or config.annotate.engine == "vllm":
        check_annotator(config.annotate, config.task)
    seen = survey(pipeline.corpus, config.sample.seed, config.plan.sample)
    (counted,) = pipeline.steps("corpus")
    if counted.manifest:
        seen = replace(seen, records=Range.exactly(counted.manifest.counts["out"]))
    if not seen.sample.num_rows:
        raise UserError("the corpus has no record to label", "check corpus.path and corpus.text")
    rates = known_rates(config, workdir)
    missing = [kind for kind in _needed(config) if kind not in rates]
    if measure and missing:
        if "annotate" in missing:
            _say_what_is_asked(*to_ask(config, workdir, seen))
        with Lease(workdir), cluster.connection():
            check_resources(pipeline, missing)
            rates |= calibrate(config, workdir, missing, seen)
    tokens = _tokens(config, seen, rates)
    made = _reckon(pipeline, seen, tokens, rates, measure)
    _keep(pipeline, made)
    return made


def _say_what_is_asked(records: pa.Table, unused: int) -> None:
    """What a calibration pays for, before it does."""
    text = f"the LLM is asked about {records.num_rows:,} records"
    if unused:
        text += (
            f", of which the run will not draw {unused:,}: too few that it will are among those "
            "that were read and have no answer"
        )
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def _keep(pipeline: Pipeline, plan: dict[str, Any]) -> None:
    workdir, made_for = pipeline.workdir, pipeline.config.planned_for(pipeline.corpus)
    workdir.plan.write_json(PLAN, plan)
    begun = set(plan["done"]) - {"corpus", "sample"}
    if not begun or ("label" not in begun and workdir.plan_before(made_for) is None):
        workdir.keep_plan(made_for, plan)


def _needed(config: RunConfig) -> list[str]:
    """The rates that a plan needs; answers that are recorded come at no cost."""
    return ["train", "label"] + (["annotate"] if config.annotate.engine != "recorded" else [])


def _tokens(config: RunConfig, seen: Survey, rates: Mapping[str, Rate]) -> _Tokens:
    texts, train = seen.sample["text"].to_pylist(), config.train
    lengths = encoder_tokens(train.model, train.max_length, train.trust_remote_code, texts)
    encoder = seen.mean(lengths)
    if config.annotate.engine == "recorded":
        return _Tokens(encoder, None, None)
    prompt, answer = llm_tokens(config.annotate, config.task, seen)
    known = rates.get("annotate")
    if known and known.prompt_tokens and config.annotate.engine == "openai":
        prompt = Range.within(known.prompt_tokens, _MARGIN_TOKENS)
    if known and known.output_tokens:
        answer = Range.within(known.output_tokens, _MARGIN_TOKENS)
    return _Tokens(encoder, prompt, answer)


def _reckon(
    pipeline: Pipeline, seen: Survey, tokens: _Tokens, rates: Mapping[str, Rate], measured: bool
) -> dict[str, Any]:
    config = pipeline.config
    prices, work = config.plan.prices, _llambert(pipeline, seen, tokens)
    return plain(
        {
            "name": config.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "corpus": {
                "files": len(pipeline.corpus.sources),
                "bytes": pipeline.corpus.bytes,
                "records": seen.records,
                "records_read": seen.read,
                "tokens_counted_of": seen.sample.num_rows,
                "encoder_tokens_per_record": tokens.encoder,
                "prompt_tokens_per_record": tokens.prompt,
                "answer_tokens_per_record": tokens.answer,
            },
            "prices": prices.model_dump(),
            "rates": {kind: as_json(rate) for kind, rate in rates.items()},
            "done": [stage for stage in work if pipeline.done(stage)],
            "llambert": estimate(work, rates, prices),
            "llm_on_everything": estimate(_everything(config, seen, tokens), rates, prices),
            "notes": [*_unknown(config, rates, measured), *_assumptions(pipeline, seen, rates)],
        }
    )


def _llambert(pipeline: Pipeline, seen: Survey, tokens: _Tokens) -> dict[str, Work]:
    """The run's stages that read records, in order."""
    config, gold = pipeline.config, pipeline.gold
    drawn = seen.records.at_most(config.sample.size)
    asked = first_by_hash(gold.test, config.annotate.gold_records).num_rows
    models = len(config.variants) * len(config.train.seeds)
    workers = config.label.workers
    devices = Range(workers[0], workers[1], workers[1]) if workers else None
    test = Range.exactly(gold.test.num_rows)

    measuring = models if gold.test.num_rows else 0  # by as many as where the rate was measured
    encoder = ("label", "encoder", tokens.encoder)
    work = {
        "corpus": Work(seen.records),
        "sample": Work(drawn),
        "annotate": asking(config, drawn.plus(Range.exactly(asked)), tokens.prompt, tokens.answer),
        "train": _training(pipeline, drawn, tokens),
        "evaluate": Work(test, *encoder, passes=measuring, starts=measuring),
        "label": Work(seen.records, *encoder, devices=devices),
    }
    if config.cascade:
        share = config.cascade.share
        doubted = seen.records.times(share).at_most(config.cascade.most)
        # of the gold records those that annotate did not ask, and at most as many as it did
        measured = Range.exactly((gold.test.num_rows - asked) * share)
        doubted = doubted.plus(measured.at_most(config.annotate.gold_records))
        work["cascade"] = asking(config, doubted, tokens.prompt, tokens.answer)
    return work


def asking(
    config: RunConfig,
    records: Range,
    prompt: Range | None,
    answer: Range | None,
    everything: bool = False,
) -> Work:
    """The LLM's part. Recorded answers cost nothing, but there are none for everything.

    Args:
        prompt, answer: their tokens, where they are known.
    """
    annotate = config.annotate
    if annotate.engine == "recorded" and not everything:
        return Work(records)
    device = "endpoint" if annotate.engine == "openai" else "llm"
    low, high = (count * annotate.devices for count in annotate.replicas)
    devices = None if device == "endpoint" else Range(low, high, high)
    return Work(records, "annotate", device, prompt, answer, devices=devices)


def _everything(config: RunConfig, seen: Survey, tokens: _Tokens) -> dict[str, Work]:
    prompt, answer = tokens.prompt, tokens.answer
    return {"annotate": asking(config, seen.records, prompt, answer, everything=True)}


def _training(pipeline: Pipeline, drawn: Range, tokens: _Tokens) -> Work:
    """All trainings together; every answer of the LLM is taken to be a label."""
    config, gold = pipeline.config.train, Range.exactly(pipeline.gold.train.num_rows)
    records, units = Range.exactly(0), [step.unit for step in pipeline.steps("train")]
    for unit in units:
        records = records.plus(drawn if unit and unit[0] == "llambert" else gold)
    passes = config.epochs * (1 - config.validation_share)
    devices = Range.exactly(config.workers)
    return Work(
        *(records, "train", "encoder", tokens.encoder),
        passes=passes,
        devices=devices,
        starts=len(units),
    )


def _unknown(config: RunConfig, rates: Mapping[str, Rate], measured: bool) -> list[str]:
    """What is missing for a complete plan, and how to come by it."""
    notes, prices = [], config.plan.prices
    missing = [kind for kind in _needed(config) if kind not in rates]
    if missing and measured:
        notes.append(
            f"The speed of {', '.join(missing)} could not be measured, for too little was left to "
            "do: set plan.rates, with their sources."
        )
    elif missing:
        notes.append(
            f"The speed of {', '.join(missing)} is not known, hence the question marks. "
            "--calibrate measures it in some minutes on the run's own devices, and the run uses "
            "the answers that the LLM gives meanwhile; or set plan.rates, with their sources."
        )
    wanted = {"encoder_device_hour": prices.encoder_device_hour}
    if config.annotate.engine == "openai":
        names = ("million_prompt_tokens", "million_output_tokens")
        wanted |= {name: getattr(prices, name) for name in names}
    else:
        wanted["llm_device_hour"] = prices.llm_device_hour
    if config.annotate.engine == "recorded":
        notes.append(
            "The answers are recorded; what the LLM took for them is in none of LlamBERT's figures."
        )
    if config.annotate.engine == "recorded" and "annotate" not in rates:
        del wanted["llm_device_hour"]
        notes.append(
            "What the LLM alone would take is not known: set plan.rates.annotate.records_per_s."
        )
    if absent := [name for name, price in wanted.items() if price is None]:
        notes.append(f"The cost is not whole: plan.prices has no {', '.join(absent)}.")
    return notes


def _assumptions(pipeline: Pipeline, seen: Survey, rates: Mapping[str, Rate]) -> list[str]:
    """What the figures stand on."""
    config = pipeline.config
    how = "all records were read" if seen.whole else f"{seen.read:,} records were read"
    notes = [
        f"For this {how}, and the tokens of {seen.sample.num_rows:,} of them counted. A range is "
        "the 95 % interval of such a sample, made wider by the margins of the rates.",
        "A device is a GPU; a cluster without GPUs is one device. A stage holds as many as the "
        "run file lets it, from its start to its end. corpus, sample and report hold none: they "
        "are not timed.",
        "It is assumed that every answer of the LLM gives a label and that no id comes twice.",
    ]
    known = rates.get("annotate")
    if config.annotate.engine == "openai" and not (known and known.prompt_tokens):
        notes.append("The endpoint's tokens are guessed: 3 to 5 characters of a text make one.")
    rate = rates.get("label")
    if rate and rate.device != "cpu" and config.label.workers is None:
        notes.append(
            f"The time of evaluate and label is that of {rate.devices:,} GPU, as their rate was "
            "measured; the run takes every GPU that its text is enough for, unless label.workers "
            "says how many."
        )
    if stored := _stored(pipeline):
        notes.append(
            f"{stored:,} answers of this LLM are stored already: the run does not ask again for "
            "those that it draws."
        )
    return notes


def _stored(pipeline: Pipeline) -> int:
    """Answers in the workdir, of this annotator, that were not recorded elsewhere."""
    (step,) = pipeline.steps("annotate")
    if pipeline.config.annotate.engine == "recorded":
        return 0
    responses = (step.folder / "responses").read_table(columns=["response"])
    return int(pc.count(responses["response"]).as_py()) if responses.num_rows else 0


def show(plan: Mapping[str, Any], where: str) -> None:
    """Print the plan as a table, what it compares to, and what it stands on."""
    console, currency = Console(highlight=False), plan["prices"]["currency"]
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    heads = ("records", "tokens", "device-hours", "time", f"cost, {currency}")
    table = Table("", *heads, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for title, way in (("LlamBERT", "llambert"), ("LLM alone", "llm_on_everything")):
        table.add_row(f"[bold]{title}[/bold]")
        for name, stage in plan[way]["stages"].items():
            if name in _UNTOLD:
                continue
            busy = stage["device"] != "none"
            table.add_row(f"  {name}", *(_cell(stage[key], key, busy) for key in FIGURES))
        total = plan[way]["total"]
        table.add_row("  total", "", "", *(_cell(total[key], key, True) for key in FIGURES[2:]))
        table.add_section()
    console.print(table)
    console.print(_side_by_side(plan), style="bold")
    lines = []
    for kind, rate in plan["rates"].items():
        of = _DEVICES.get(rate.get("device"), "a device")
        per_s = f"{rate['per_s']:,.1f} {rate['unit']}/s of {of}, within {rate['margin']:.0%}"
        start = f", after a start of {duration(rate['start_s'])}" if rate["start_s"] else ""
        lines.append(f"{kind}: {per_s}{start}; {rate['source']}")
    for line in [*lines, *plan["notes"]]:
        console.print(f"- {line}", markup=False, soft_wrap=not console.is_terminal)
    console.print(where, markup=False, soft_wrap=True)


def _cell(value: Mapping[str, float] | None, key: str, busy: bool) -> str:
    """The expected figure, and under it the range it may have."""
    if value is None:
        return "?" if busy else ""
    low, expected, high = (value[end] for end in ("low", "expected", "high"))
    if low == high and key != "hours":
        return f"{expected:,.0f}" if expected == int(expected) else digits(expected)
    scales = _CLOCK if key == "hours" else _SCALES
    size, name = next((scale for scale in scales if expected >= scale[0]), scales[-1])
    below, figure, above = (digits(each / size) for each in (low, expected, high))
    return f"{figure}{name}" + (f"\n[dim]{below}-{above}{name}[/dim]" if low != high else "")


def _side_by_side(plan: Mapping[str, Any]) -> str:
    """How often LlamBERT's cost, or else its device-hours or time, goes into the LLM's."""
    ours, theirs = plan["llambert"]["total"], plan["llm_on_everything"]["total"]
    kinds = {rate.get("device") or "gpu" for rate in plan["rates"].values()}
    for key, name in (("cost", "cost"), ("device_hours", "device-hours"), ("hours", "time")):
        if key == "device_hours" and len(kinds) > 1:  # a GPU's are not those of a whole cluster
            continue
        if all(total[key] and total[key]["expected"] for total in (ours, theirs)):
            times = Range(**theirs[key]).over(Range(**ours[key]))
            ends = f"{digits(times.low)}-{digits(times.high)}"
            if times.high == math.inf:
                ends = f"at least {digits(times.low)}"
            expected = digits(times.expected)
            return f"The LLM alone takes {expected} times the {name} of LlamBERT ({ends})."
    return ""
