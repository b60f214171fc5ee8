"""`llambert demo`: lay out a corpus, two models and a run file; say what the run came to."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from llambert.errors import UserError
from llambert.lease import Lease
from llambert.models import fingerprint_model
from llambert.progress import duration
from llambert.storage import Folder, fingerprint, is_remote

MODELS = ("mini-llama", "mini-roberta")
_SEED = 1
_GOLD_RECORDS = 2500
_SAMPLE = 1000  # records for the LLM; half of a corpus that is smaller than twice that
_MANY = 10_000_000  # records of the corpus that the figures are carried over to
_MARKER = "made.json"  # what lies in input/: there from the first file on, whole with the last


def lay_out(place: str, records: int) -> Path:
    """Write the demo's input and run file to the folder `place`; where they are there, they stay.

    Returns:
        The run file.

    Raises:
        UserError: a folder that holds something else, that another run is using or that cannot be
            written; a run file that somebody changed and that would be overwritten.
    """
    if is_remote(place):
        raise UserError(f"{place} is not on this machine", "name a local folder with --dir")
    folder = Path(place)
    run_file, inputs = folder / "run.yaml", Folder(str(folder / "input"))
    here = files("llambert.demo")
    what = {
        "records": records,
        "seed": _SEED,
        "models": [fingerprint_model(str(here / model)) for model in MODELS],
    }
    try:
        if _made(inputs).items() >= what.items() and run_file.exists():
            return run_file
        if folder.exists() and any(folder.iterdir()) and not inputs.exists(_MARKER):
            raise UserError(f"{folder} is not empty, and not of a demo", "name another with --dir")
        with Lease(Folder(str(folder))):
            _write(folder, inputs, what)
    except OSError as error:
        raise UserError(
            f"cannot lay out the demo in {folder}: {error}",
            "name a folder that you may write to with --dir",
        ) from error
    return run_file


def _made(inputs: Folder) -> dict[str, Any]:
    """What the marker says; nothing where it is missing or broken."""
    try:
        return dict(inputs.read_json(_MARKER))
    except (FileNotFoundError, ValueError):
        return {}


def _write(folder: Path, inputs: Folder, what: dict[str, Any]) -> None:
    from llambert.demo.reviews import write_corpus, write_gold

    run_file, before = folder / "run.yaml", _made(inputs)
    here = files("llambert.demo")
    template = (here / "run.yaml").read_text("utf-8")
    text = template.replace("$sample", str(min(_SAMPLE, what["records"] // 2)))
    laid_out = before.get("run_file")
    if laid_out and run_file.exists() and fingerprint(run_file.read_text("utf-8")) != laid_out:
        raise UserError(
            f"{run_file} has been changed, and this demo would overwrite it",
            f"run it with `llambert run {run_file}`, or lay out another demo with --dir",
        )
    inputs.write_json(_MARKER, {"run_file": laid_out})
    (inputs / "reviews").remove()
    write_corpus((inputs / "reviews").uri, what["records"], _SEED)
    write_gold(folder / "input" / "gold.parquet", _GOLD_RECORDS, _SEED)
    for model in MODELS:
        shutil.copytree(str(here / model), folder / "input" / model, dirs_exist_ok=True)
    Folder(str(folder)).write_bytes("run.yaml", text.encode())
    inputs.write_json(_MARKER, {**what, "run_file": fingerprint(text)})


def summary(workdir: str) -> str:
    """What a run came to, from its report.json: what happened, how good, how fast, and where."""
    folder = Folder(workdir) / "report"
    report = folder.read_json("report.json")
    labels = report["label"]["folder"]
    parts: list[tuple[str, Iterable[str]]] = [
        ("What happened", _happened(report)),
        ("How good: share of gold labels met, with its 95 % interval", _good(report)),
        ("How fast, on this machine", _fast(report)),
        ("Where it lies", [f"labels    {labels}/", f"report    {folder.uri}/index.html"]),
    ]
    lines = [line for head, body in parts for line in ["", head, *(f"  {line}" for line in body)]]
    return "\n".join(lines)


def _happened(report: Mapping[str, Any]) -> Iterator[str]:
    """A line for each step, its counts in words."""
    read, asked = report["corpus"]["counts"], report["annotate"]["counts"]
    labelled, gold = report["label"]["counts"], report["evaluation"]["gold_records"]
    drawn, by = report["sample"]["counts"]["out"], report["labelled_by"]["variant"]
    yield f"corpus    {read['in']:,} records read, {_dropped(read)} into quarantine"
    yield f"sample    {drawn:,} of them drawn at random"
    yield (
        f"annotate  {asked['in']:,} answers of the LLM, {_dropped(asked)} of them rejected: "
        f"{drawn:,} on the sample, the others on gold, to measure it"
    )
    for title in (t for t in report if t.startswith("train ")):
        words = title.split()
        yield f"train     encoder `{words[1]}` on {report[title]['counts']['out']:,} records"
    yield f"evaluate  {gold:,} records with gold labels, held back, put to each encoder"
    yield f"label     {labelled['out']:,} labels by encoder `{by}`, one for each good record"


def _dropped(counts: Mapping[str, Any]) -> str:
    """How many were dropped, and why."""
    reasons = {reason: n for reason, n in counts["dropped"].items() if n}
    told = ", ".join(f"{reason} {n:,}" for reason, n in reasons.items())
    return f"{sum(reasons.values()):,}" + (f" ({told})" if told else "")


def _good(report: Mapping[str, Any]) -> Iterator[str]:
    """The accuracy of the LLM and of each variant of the encoder."""
    names = {
        "llm": "the LLM",
        "baseline": "encoder `baseline`, of gold labels alone",
        "llambert": "encoder `llambert`, of the LLM's labels",
        "combined": "encoder `combined`, of the LLM's, then gold",
    }
    for key, name in names.items():
        one = report["evaluation"].get(key)
        if one and "accuracy" in one:
            low, high = one["accuracy_interval"]
            records = one.get("records", report["evaluation"]["gold_records"])
            yield f"{name:<44} {one['accuracy']:6.1%}  {low:.1%} to {high:.1%}  of {records:,}"


def _fast(report: Mapping[str, Any]) -> Iterator[str]:
    """Records/s of LLM and encoder side by side, and what they would take for ten million."""
    yield f"{'':<12}{'records/s':>12}   {_MANY:,} records would take"
    for name, stage in (("the LLM", "annotate"), ("the encoder", "label")):
        rate = report[stage].get("records_per_s")
        if rate:
            yield f"{name:<12}{rate:>12,.1f}   {duration(_MANY / rate)}"
        else:
            yield f"{name:<12}{'?':>12}   too few records were put to it in this run to tell"
