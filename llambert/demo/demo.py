"""`llambert demo`: lay out a corpus, two models and a run file."""

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from llambert.errors import UserError
from llambert.lease import Lease
from llambert.models import fingerprint_model
from llambert.storage import Folder, fingerprint, is_remote

MODELS = ("mini-llama", "mini-roberta")
_SEED = 1
_GOLD_RECORDS = 2500
_SAMPLE = 1000  # records for the LLM; half of a corpus that is smaller than twice that
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
