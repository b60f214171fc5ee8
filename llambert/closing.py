"""What a run came to, at its end: a line a step; of a report, how good, at what cost, and where."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from llambert.driver import counts_line
from llambert.progress import amount, duration, roughly, share
from llambert.storage import Folder

if TYPE_CHECKING:
    from llambert.pipeline import Pipeline

_MANY = 10_000_000  # records of the corpus that the figures are carried over to
_WHO = {
    "llm": "the LLM",
    "baseline": "encoder `baseline`, trained on gold alone",
    "llambert": "encoder `llambert`, on the LLM's labels",
    "combined": "encoder `combined`, on the LLM's, then gold",
}


def closing(
    pipeline: "Pipeline", chosen: Sequence[str], seconds: float | None, explain: bool = False
) -> None:
    """Print what every step took in and gave out and, after the report, what it all came to.

    Args:
        chosen: the stages that were asked for.
        seconds: what the run took; None where all was done already.
        explain: say in words what happened, and how fast, as for somebody who is new to it.
    """
    from llambert.step import made

    click.echo()
    click.secho("Nothing to do: all is done." if seconds is None else "All done.", bold=True)
    for stage in chosen:
        for step in pipeline.steps(stage):
            manifest = made(step)
            rate = manifest.details.get("records_per_s")
            speed = f"  {rate:,.1f}/s" if rate else ""
            click.echo(counts_line(step.title, manifest.counts, manifest.seconds) + speed)
            click.echo(f"{'':<24} {step.folder.uri}/")
            if stage == "corpus" and any(manifest.counts["dropped"].values()):
                click.echo(f"{'':<24} {pipeline.workdir.quarantine.uri}/")
    if seconds is not None:
        click.echo(f"in {duration(seconds)}")
    if "report" in chosen:
        click.echo(_came_to(pipeline.workdir.report, explain))


def _came_to(folder: Folder, explain: bool) -> str:
    """What the report in `folder` says, as lines of text."""
    report = folder.read_json("report.json")
    steps = report["steps"]
    labels = steps["label"]["folder"]
    if "cascade" in steps:
        labels = f"{steps['cascade']['folder']}/labels"
    measured = any("accuracy" in report["evaluation"].get(who, {}) for who in _WHO)
    how = ": share of gold labels met, with its 95 % interval" if measured else ""
    parts: list[tuple[str, Iterable[str]]] = [
        (f"How good{how}", _good(report)),
        ("What it cost, against the LLM alone", _cost(report["cost"])),
        ("Where it lies", [f"labels    {labels}/", f"report    {folder.uri}/index.html"]),
    ]
    if explain:
        parts.insert(0, ("What happened", _happened(report)))
        parts.insert(2, ("How fast, on this machine", _fast(report)))
    lines = [line for head, body in parts for line in ["", head, *(f"  {line}" for line in body)]]
    return "\n".join(lines)


def _happened(report: Mapping[str, Any]) -> Iterator[str]:
    """A line for each step, its counts in words."""
    counts = {title: step["counts"] for title, step in report["steps"].items()}
    read, asked, labelled = (counts[title] for title in ("corpus", "annotate", "label"))
    drawn, by = counts["sample"]["out"], report["labelled_by"]["variant"]
    gold = report["evaluation"]["gold_records"]
    yield f"corpus    {read['in']:,} records read, {_dropped(read)} into quarantine"
    yield f"sample    {drawn:,} of them drawn at random"
    yield (
        f"annotate  {asked['in']:,} answers of the LLM, {_dropped(asked)} of them rejected: "
        f"{drawn:,} on the sample, the others on gold, to measure it"
    )
    for title in (t for t in counts if t.startswith("train ")):
        words = title.split()
        yield f"train     encoder `{words[1]}` on {counts[title]['out']:,} records"
    yield f"evaluate  {gold:,} records with gold labels, held back, put to each encoder"
    yield f"label     {labelled['out']:,} labels by encoder `{by}`, one for each good record"


def _dropped(counts: Mapping[str, Any]) -> str:
    """How many were dropped, and why."""
    reasons = {reason: n for reason, n in counts["dropped"].items() if n}
    told = ", ".join(f"{reason} {n:,}" for reason, n in reasons.items())
    return f"{sum(reasons.values()):,}" + (f" ({told})" if told else "")


def _good(report: Mapping[str, Any]) -> Iterator[str]:
    """The accuracy of the LLM, of each variant of the encoder and, of a cascade, of both."""
    evaluation, answer = report["evaluation"], report["answer"]
    measured = {who: one for who in _WHO if "accuracy" in (one := evaluation.get(who, {}))}
    for who, one in measured.items():
        yield _accuracy(_WHO[who], one, one.get("records", evaluation["gold_records"]))
    if "cascade" in report["steps"] and answer["accuracy"] is not None:
        who = f"the labels, {answer['decided_by_llm']:,} of them by the LLM"
        yield _accuracy(who, answer, answer["gold_records"])
    if not measured.keys() - {"llm"}:
        yield "how good the labels are is not known, for there are no gold test records;"
        yield "a few hundred records labelled by people, as gold.test, would tell"
    elif len(measured.keys() - {"llm"}) > 1 and (by := report["labelled_by"]):
        yield f"`{by['variant']}` gave the labels; label.variant in the run file names another"
        yield from _better(evaluation.get("comparisons", []), by)


def _accuracy(who: str, measured: Mapping[str, Any], records: int) -> str:
    low, high = measured["accuracy_interval"]
    return f"{who:<44} {measured['accuracy']:6.1%}  {low:.1%} to {high:.1%}  of {records:,}"


def _better(comparisons: Iterable[Mapping[str, Any]], by: Mapping[str, Any]) -> Iterator[str]:
    """Which encoders of the same seed were right more often, and whether that may be luck."""
    from llambert.report_page import SIGNIFICANT

    for test in comparisons:
        right = {
            test["first"]: test["only_first_right"],
            test["second"]: test["only_second_right"],
        }
        if test["seed"] != by["seed"] or "llm" in right or by["variant"] not in right:
            continue
        own = right.pop(by["variant"])
        ((other, its),) = right.items()
        if its > own:
            luck = "is more than" if test["p_value"] < SIGNIFICANT else "may be"
            p = f"McNemar's test, p = {test['p_value']:.2g}"
            yield f"`{other}` was right more often, which {luck} chance ({p})"


def _cost(cost: Mapping[str, Any]) -> Iterator[str]:
    """What the run took against the LLM alone, and from which size of corpus on it pays."""
    if cost["unknown"]:
        yield f"not known: {cost['unknown']}"
        return
    yield f"LLM, training, measuring and labelling: {amount(cost['amount'], cost['unit'])}"
    if cost["share"] is None:
        return
    alone = amount(cost["llm_only"]["amount"], cost["unit"])
    yield f"the LLM alone, on every record: about {alone}, of which that is {share(cost['share'])}"
    if (even := cost.get("break_even_records")) and cost["share"] >= 1:
        yield "so small a corpus is cheaper by the LLM alone; this way pays from about"
        yield f"{roughly(even)} records on"


def _fast(report: Mapping[str, Any]) -> Iterator[str]:
    """Records/s of LLM and encoder side by side, and what they would take for ten million."""
    steps, before = report["cost"]["steps"], 0.0
    if report["cost"]["unit"] == "seconds":  # on the clock
        trained = [step for title, step in steps.items() if title.startswith("train ")]
        before = sum(step["amount"] or 0.0 for step in [steps["annotate"], *trained])
    yield f"{'':<12}{'records/s':>12}   {_MANY:,} records would take"
    for name, stage in (("the LLM", "annotate"), ("the encoder", "label")):
        rate = report["steps"][stage]["details"].get("records_per_s")
        if not rate:
            yield f"{name:<12}{'?':>12}   too few records were put to it in this run to tell"
            continue
        first = before if stage == "label" else 0.0
        words = f", sample and all training ({duration(first)}) included" if first else ""
        yield f"{name:<12}{rate:>12,.1f}   {duration(first + _MANY / rate)}{words}"
