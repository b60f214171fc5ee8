"""Stage: what the run did, how good, how fast and at what cost, as one page and one JSON file."""

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llambert.cost import cost
from llambert.gates import Gate
from llambert.held import WORKING, PricesConfig
from llambert.held import figures as held_figures
from llambert.parse import REJECTS
from llambert.plan import compare
from llambert.report_page import WORK, page
from llambert.schema import REFUSALS
from llambert.storage import Folder, Manifest, Outcome

_MEANINGS = {  # of the reasons for which a stage drops a record
    "corpus": REFUSALS,
    "sample": {"not_drawn": "not drawn: the LLM is asked about a random sample"},
    "annotate": REJECTS,
    "train": {
        "no_label": "the LLM's answer gave no label",
        "in_gold_test": "the text is one that the models are measured by",
    },
    "review": {
        "more_certain": "the label is more certain than those that people are given",
        "decided_by_llm": "the LLM decided the label",
    },
}
_NO_COUNT = {"prompt_tokens", "output_tokens", "tokens"}  # 0: the engine did not count
_MISTAKES = 10  # with their texts; errors.parquet has more
FORMAT = 2  # of report.json: another one is made anew
_EXAMPLES = 5  # responses of each reason for a reject, the most frequent ones
_CHARACTERS = 600  # of a text or response that are shown


def report(
    name: str,
    made: Mapping[str, tuple[Folder, Manifest]],
    settings: Mapping[str, Any],
    folder: Folder,
    gates: Iterable[Gate] = (),
    plan: Mapping[str, Any] | None = None,
    curve: Mapping[str, Any] | None = None,
    prices: PricesConfig | None = None,
) -> Outcome:
    """Write report.json and index.html, which shows what is in report.json, to `folder`.

    Args:
        made: the folder and manifest of every step of the run, by the step's title, in order.
        settings: the resolved run file, as plain values, and `commit`, what it was run from.
        gates: those that the run file sets, held to what was made.
        plan: what `llambert plan` said of it before it began, if it was asked.
        curve: the learning curve, if one was measured.
        prices: in which the run and the LLM alone are compared, where every one is known.

    Returns:
        An outcome whose counts are steps rather than records.
    """
    manifests = {title: manifest for title, (_, manifest) in made.items()}
    value = {
        "name": name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **_figures(made, manifests),
        "gates": [gate.figures() for gate in gates],
        "curve": curve,
        "cost": cost(manifests, prices or PricesConfig()),
        "settings": settings,
    }
    if plan and (compared := compare(plan, list(manifests.values()))):
        value["plan"] = compared
        rates = {kind: rate["source"] for kind, rate in plan["rates"].items()}
        currency = PricesConfig(**plan["prices"]).currency
        value["planned"] = {"created": plan["created"], "rates": rates, "currency": currency}
    folder.write_json("report.json", value)
    folder.write_bytes("index.html", page(value).encode())
    return Outcome({"in": len(made), "out": len(made), "dropped": {}})


def _figures(
    made: Mapping[str, tuple[Folder, Manifest]], manifests: Mapping[str, Manifest]
) -> dict[str, Any]:
    """What the steps' manifests and artefacts tell."""
    labelled_by = _labelled_by(manifests)
    return {
        "answer": _answer(manifests, labelled_by),
        "evaluation": manifests["evaluate"].details,
        "labelled_by": labelled_by,
        "mistakes": _mistakes(made["evaluate"][0], labelled_by),
        "rejects": _rejects(made["annotate"][0], made["sample"][0]),
        "work": {
            title: figures
            for title, manifest in manifests.items()
            if manifest.stage in WORKING and (figures := _work(manifest))
        },
        "notes": _gold_asked(manifests)
        + [note for title, each in manifests.items() for note in _notes(title, each)],
        "steps": {title: _step(*pair) for title, pair in made.items()},
        "versions": manifests["label"].versions,
    }


def _labelled_by(manifests: Mapping[str, Manifest]) -> dict[str, Any] | None:
    """Variant and seed of the encoder that labelled the corpus."""
    model = manifests["label"].inputs.get("train")
    for title, manifest in manifests.items():
        if manifest.stage == "train" and model == manifest.output:
            _, variant, _, seed = title.split()
            return {"variant": variant, "seed": int(seed)}
    return None


def _answer(
    manifests: Mapping[str, Manifest], labelled_by: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a reader wants to know first: how many are labelled, and how many of them rightly.

    The accuracy is that of the labels as they are: of the very encoder that gave them, and with
    the LLM's decisions where there is a cascade; it is null where there is no gold.
    """
    corpus, evaluation = manifests["corpus"].counts, manifests["evaluate"].details
    measured: Mapping[str, Any] = {}
    if labelled_by:
        seeds = evaluation.get(labelled_by["variant"], {}).get("seeds", {})
        measured = seeds.get(str(labelled_by["seed"]), {})
    cascade = manifests["cascade"].details if "cascade" in manifests else {}
    if cascade.get("gold"):
        measured = {"records": cascade["gold"]["records"], **cascade["gold"]["cascade"]}
    return {
        "records": corpus["in"],
        "labelled": manifests["label"].counts["out"],
        "quarantined": sum(corpus["dropped"].values()),
        "decided_by_llm": cascade.get("answered", 0),
        "accuracy": measured.get("accuracy"),
        "accuracy_interval": measured.get("accuracy_interval"),
        "gold_records": measured.get("records", 0),
    }


def _step(folder: Folder, manifest: Manifest) -> dict[str, Any]:
    """What there is to tell of a step; evaluate's details are the report's `evaluation`."""
    told = ("stage", "counts", "seconds", "fingerprint", "output", "inputs")
    meanings = _MEANINGS.get(manifest.stage, {})
    dropped = [
        {"reason": reason, "meaning": meanings.get(reason), "records": records}
        for reason, records in manifest.counts["dropped"].items()
    ]
    step = {name: getattr(manifest, name) for name in told}
    if manifest.stage != "evaluate":
        step["details"] = manifest.details
    return step | {"dropped": dropped, "folder": folder.uri}


def _work(manifest: Manifest) -> dict[str, Any]:
    """How fast a step was and what it took, where its manifest tells."""
    figures = {}
    details = held_figures(manifest)
    for name, (_, keys) in WORK.items():
        found = [v for v in (details.get(key) for key in keys) if v is not None]
        if found and not (name in _NO_COUNT and found[0] == 0):
            figures[name] = found[0]
    return figures if figures.keys() - {"device"} else {}


def _gold_asked(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """Why the LLM was asked about more records than were drawn."""
    gold = manifests["annotate"].counts["in"] - manifests["sample"].counts["out"]
    note = "gold records that were not drawn, to measure the LLM by"
    return (
        [{"step": "annotate", "kind": "asked too", "note": note, "records": gold}] if gold else []
    )


def _notes(title: str, manifest: Manifest) -> list[dict[str, Any]]:
    """What there is to know of a step beside what it dropped: step, kind, note, counted records."""
    details = manifest.details
    counted = {
        "gold record refused": details.get("gold_refused", {}),
        "no answer": details.get("errors", {}),
    }
    notes: list[dict[str, Any]] = [
        {"step": title, "kind": "warning", "note": text} for text in details.get("warnings", [])
    ]
    for kind, reasons in counted.items():
        for reason, records in reasons.items():
            notes.append({"step": title, "kind": kind, "note": _told(reason), "records": records})
    if details.get("truncated"):
        cut = {"note": "the text was cut to the LLM's window", "records": details["truncated"]}
        notes.append({"step": title, "kind": "cut", **cut})
    return notes


def _told(reason: str) -> str:
    return f"{reason}: {REFUSALS[reason]}" if reason in REFUSALS else reason


def _mistakes(evaluation: Folder, of: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The mistakes on gold that the labelling encoder was surest of, with their texts."""
    errors = evaluation.read_table()
    if not (errors.num_rows and of):
        return []
    its = pc.and_(pc.equal(errors["variant"], of["variant"]), pc.equal(errors["seed"], of["seed"]))
    surest = [("confidence", "descending"), ("id", "ascending")]
    rows = errors.filter(its).sort_by(surest).slice(0, _MISTAKES).to_pylist()
    names = ("id", "gold", "label", "confidence")
    return [{name: row[name] for name in names} | {"text": _cut(row["text"])} for row in rows]


def _rejects(annotations: Folder, sample: Folder) -> list[dict[str, Any]]:
    """Why answers of the LLM were rejected: each reason, its records, its most frequent answers.

    An example has the text of one record that was answered so; a gold record's is not in the
    sample and left out.
    """
    table = annotations.read_table(columns=["id", "response", "reject_reason"])
    if not table.num_rows:
        return []
    rejected = table.filter(pc.is_valid(table["reject_reason"]))
    examples: dict[str, dict[str, str]] = {}  # reason -> response -> the id of one record
    counts: dict[str, Counter[str]] = {}
    for row in rejected.to_pylist():
        response = row["response"] or ""
        counts.setdefault(row["reject_reason"], Counter())[response] += 1
        examples.setdefault(row["reject_reason"], {}).setdefault(response, row["id"])
    shown = {
        reason: [(response, n, examples[reason][response]) for response, n in most]
        for reason, found in counts.items()
        if (most := found.most_common(_EXAMPLES))
    }
    texts = _texts(sample, {id for rows in shown.values() for _, _, id in rows})
    return [
        {
            "reason": reason,
            "meaning": REJECTS.get(reason),
            "records": counts[reason].total(),
            "examples": [
                {"response": _cut(response), "records": n, "id": id, "text": _cut(texts.get(id))}
                for response, n, id in shown[reason]
            ],
        }
        for reason in sorted(shown, key=lambda each: -counts[each].total())
    ]


def _texts(sample: Folder, ids: set[str]) -> dict[str, str]:
    table = sample.read_table()
    if not (table.num_rows and ids):
        return {}
    found = table.filter(pc.is_in(table["id"], value_set=pa.array(sorted(ids), pa.string())))
    return dict(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True))


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= _CHARACTERS:
        return text
    return f"{text[:_CHARACTERS]} …"
