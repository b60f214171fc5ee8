"""`llambert demo`: lay out a corpus, two models and a run file; say what the run came to."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from llambert import __version__
from llambert.errors import UserError
from llambert.progress import duration

MODELS = ("mini-llama", "mini-roberta")
LEAST_RECORDS = 200
_SEED = 1
_GOLD_RECORDS = 2500
_SAMPLE = 1000  # records for the LLM; half of a corpus that is smaller than twice that
_MANY = 10_000_000  # records of the corpus that the figures are carried over to


def lay_out(folder: Path, records: int) -> Path:
    """Write the demo's input and run file to `folder`; what is there already stays as it is.

    Returns:
        The run file.

    Raises:
        UserError: too few records, or a folder that holds something else.
    """
    from llambert.demo.reviews import write_corpus, write_gold

    if records < LEAST_RECORDS:
        raise UserError(f"{records} records are too few", f"ask for {LEAST_RECORDS} or more")
    made, run_file, reviews = folder / "input" / "made.json", folder / "run.yaml", folder / "input"
    what = {"records": records, "seed": _SEED, "llambert": __version__}
    if made.exists() and json.loads(made.read_text()) == what and run_file.exists():
        return run_file
    if folder.exists() and any(folder.iterdir()) and not made.exists():
        raise UserError(f"{folder} is not empty, and not of a demo", "name another with --dir")
    made.unlink(missing_ok=True)
    shutil.rmtree(reviews / "reviews", ignore_errors=True)
    write_corpus(reviews / "reviews", records, _SEED)
    write_gold(reviews / "gold.parquet", _GOLD_RECORDS, _SEED)
    here = files("llambert.demo")
    for model in MODELS:
        shutil.copytree(str(here / model), reviews / model, dirs_exist_ok=True)
    template = (here / "run.yaml").read_text("utf-8")
    run_file.write_text(template.replace("$sample", str(min(_SAMPLE, records // 2))))
    made.write_text(json.dumps(what))  # written last: what is half laid out is laid out again
    return run_file


def summary(workdir: Path) -> str:
    """What a run came to, from its report.json: what happened, how good, how fast, and where."""
    report = json.loads((workdir / "report" / "report.json").read_text())
    page = workdir / "report" / "index.html"
    parts: list[tuple[str, Iterable[str]]] = [
        ("What happened", _happened(report)),
        ("How good: accuracy against gold, with its 95 % interval", _good(report)),
        ("How fast, on this machine", _fast(report)),
        ("Where it lies", [f"labels  {report['label']['folder']}/", f"report  {page}"]),
    ]
    return "\n".join(
        f"\n{head}\n" + "\n".join(f"  {line}" for line in body) for head, body in parts
    )


def _happened(report: Mapping[str, Any]) -> Iterator[str]:
    """A line for each step, its counts in words."""
    annotate, trained = report["annotate"], [t for t in report if t.startswith("train ")]
    read, labelled = report["corpus"]["counts"], report["label"]["counts"]
    yield f"corpus    {read['in']:,} records read, {_dropped(read)} into quarantine"
    yield f"sample    {report['sample']['counts']['out']:,} drawn at random"
    asked, rejected = annotate["counts"]["in"], _dropped(annotate["counts"])
    yield f"annotate  {asked:,} put to the LLM, sample and gold; {rejected} of its answers rejected"
    for title in trained:
        variant = title.split()[1]
        yield f"train     {report[title]['counts']['out']:,} records: the encoder `{variant}`"
    yield f"label     {labelled['out']:,} labels, one for each good record"


def _dropped(counts: Mapping[str, Any]) -> str:
    """How many were dropped, and why."""
    reasons = {reason: n for reason, n in counts["dropped"].items() if n}
    told = ", ".join(f"{reason} {n:,}" for reason, n in reasons.items())
    return f"{sum(reasons.values()):,}" + (f" ({told})" if told else "")


def _good(report: Mapping[str, Any]) -> Iterator[str]:
    """The accuracy of the LLM and of each variant of the encoder."""
    names = {
        "llm": "the LLM",
        "baseline": "encoder `baseline`: trained on gold labels",
        "llambert": "encoder `llambert`: trained on the LLM's labels",
        "combined": "encoder `combined`: on the LLM's, then on gold",
    }
    for key, name in names.items():
        one = report["evaluation"].get(key)
        if one:
            low, high = one["accuracy_interval"]
            yield f"{name:<48} {one['accuracy']:6.1%}  ({low:.1%} to {high:.1%})"


def _fast(report: Mapping[str, Any]) -> Iterator[str]:
    """Records/s of LLM and encoder side by side, and what they would take for ten million."""
    yield f"{'':<12}{'records/s':>12}  {_MANY:,} records would take"
    for name, stage in (("the LLM", "annotate"), ("the encoder", "label")):
        rate = report[stage]["records_per_s"]
        took = duration(_MANY / rate) if rate else "unknown"
        yield f"{name:<12}{rate or 0:>12,.1f}  {took}"
