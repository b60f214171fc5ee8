"""Stage: what the run did, how good and how fast, as one page and one JSON file."""

import datetime
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from llambert.gates import Gate
from llambert.parse import REJECTS
from llambert.plan import compare
from llambert.schema import REFUSALS
from llambert.storage import Folder, Manifest, Outcome

# A figure of a step's work: its heading, and the names that stages give it in their details.
_WORK = {
    "records": ("records", ["asked", "labelled_now"]),
    "records_per_s": ("records/s", ["records_per_s"]),
    "prompt_tokens": ("prompt tokens", ["prompt_tokens"]),
    "output_tokens": ("output tokens", ["output_tokens"]),
    "tokens": ("tokens", ["tokens"]),
    "padding_share": ("padding", ["padding_share"]),
    "seconds": ("seconds", ["seconds", "training_seconds"]),
    "device_seconds": ("device-seconds", ["device_seconds"]),
    "device": ("device", ["device"]),
}
_WORKING = {"annotate", "train", "label", "cascade"}  # the stages that keep a model busy
_DROPPED = {"corpus": "refused", "annotate": "rejected"}  # a record that a sample leaves is neither
_NO_COUNT = {"prompt_tokens", "output_tokens", "tokens"}  # 0: the engine did not count


def report(
    name: str,
    made: Mapping[str, tuple[Folder, Manifest]],
    gates: Iterable[Gate],
    folder: Folder,
    plan: Mapping[str, Any] | None = None,
) -> Outcome:
    """Write report.json and index.html to `folder`.

    Args:
        made: the folder and manifest of every step of the run, by the step's title, in order.
        gates: those that the run file sets, held to what was made.
        plan: what `llambert plan` said of it, if it was asked.

    Returns:
        An outcome whose counts are steps rather than records.
    """
    value = {
        "name": name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{title: _stage(*pair) for title, pair in made.items() if title != "evaluate"},
        "evaluation": made["evaluate"][1].details,
        "gates": [gate.figures() for gate in gates],
        "seconds": {title: manifest.seconds for title, (_, manifest) in made.items()},
        "work": {
            title: figures
            for title, (_, manifest) in made.items()
            if manifest.stage in _WORKING and (figures := _work(manifest))
        },
        "notes": [
            note for title, (_, manifest) in made.items() for note in _notes(title, manifest)
        ],
        "versions": made["label"][1].versions,
    }
    if plan:
        value["plan"] = compare(plan, [manifest for _, manifest in made.values()])
    folder.write_json("report.json", value)
    folder.write_bytes("index.html", _page(value, made).encode())
    return Outcome({"in": len(made), "out": len(made), "dropped": {}})


def _stage(folder: Folder, manifest: Manifest) -> dict[str, Any]:
    """One step's figures: its details, its counts, where its artefact lies."""
    return {
        **manifest.details,
        "counts": manifest.counts,
        "seconds": manifest.seconds,
        "folder": folder.uri,
        "fingerprint": manifest.fingerprint,
    }


def _work(manifest: Manifest) -> dict[str, Any]:
    """How fast a step was and what it took: what its manifest tells, and nothing else."""
    figures = {}
    details = manifest.details.get("cost", manifest.details)  # a cascade's is apart
    for name, (_, keys) in _WORK.items():
        found = [v for v in (details.get(key) for key in keys) if v is not None]
        if found and not (name in _NO_COUNT and found[0] == 0):
            figures[name] = found[0]
    return figures


def _notes(title: str, manifest: Manifest) -> list[dict[str, Any]]:
    """What a reader should know of a step: step, kind, note and, where counted, records."""
    details = manifest.details
    counted = {
        _DROPPED.get(manifest.stage): manifest.counts["dropped"],
        "gold record refused": details.get("gold_refused", {}),
        "request failed": details.get("errors", {}),
    }
    meanings = REFUSALS | REJECTS
    notes: list[dict[str, Any]] = [
        {"step": title, "kind": "warning", "note": text} for text in details.get("warnings", [])
    ]
    for kind, reasons in counted.items():
        if kind is None:
            continue
        for reason, records in reasons.items():
            meaning = f"{reason}: {meanings[reason]}" if reason in meanings else reason
            notes.append({"step": title, "kind": kind, "note": meaning, "records": records})
    if details.get("truncated"):
        cut = {"note": "the text was cut to the LLM's window", "records": details["truncated"]}
        notes.append({"step": title, "kind": "cut", **cut})
    return notes


def _page(value: Mapping[str, Any], made: Mapping[str, tuple[Folder, Manifest]]) -> str:
    """The page; every value is escaped, so that a record with markup stays text."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("llambert").joinpath("report.html").read_text("utf-8"))
    accuracy = {
        k: v for k, v in value["evaluation"].items() if isinstance(v, dict) and "accuracy" in v
    }
    used = {name for figures in value["work"].values() for name in figures}
    headings = {name: text for name, (text, _) in _WORK.items() if name in used}
    return template.render(run=value, made=made, accuracy=accuracy, headings=headings)
