"""What the LLM is asked of sample and gold, and which of its answers belongs to which record."""

from typing import Any

import pyarrow as pa

from llambert.gold import Gold, without
from llambert.schema import SAMPLE

ANNOTATED_GOLD = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("id", "text", "gold", "label")),
        pa.field("confidence", pa.float32()),
        *(pa.field(name, pa.string()) for name in ("reject_reason", "response")),
    ]
)


def to_annotate(sample: pa.Table, chosen: pa.Table) -> pa.Table:
    """The sample and the gold records `chosen`; each text, each id once.

    A gold record with the id of a sampled record and another text gets an id of its own.
    """
    ids = set(sample["id"].to_pylist())
    texts = set(sample["text"].to_pylist())
    rows = [
        {"id": f"gold:{row['id']}" if row["id"] in ids else row["id"], "text": row["text"]}
        for row in chosen.to_pylist()
        if row["text"] not in texts
    ]
    return pa.concat_tables([sample, pa.Table.from_pylist(rows, schema=SAMPLE)])


def annotated_gold(asked: pa.Table, annotations: pa.Table, gold: Gold) -> pa.Table:
    """The annotated records that have a gold label, with what the LLM made of them.

    Columns: id, text, gold, label, confidence, reject_reason, response.

    They are found by their text: ids of different files may be the same by chance. A test
    record bears its own id, by which the encoders' labels are compared with it.
    """
    train = {row["text"]: row for row in gold.train.to_pylist()}
    test = {row["text"]: row for row in gold.test.to_pylist()}
    answers = {row["id"]: row for row in annotations.to_pylist()}
    rows: list[dict[str, Any]] = []
    for record in asked.to_pylist():
        known = test.get(record["text"]) or train.get(record["text"])
        if known:
            key = known["id"] if record["text"] in test else f"train:{known['id']}"
            truth = {"id": key, "text": record["text"], "gold": known["label"]}
            rows.append({**answers[record["id"]], **truth})
    return pa.Table.from_pylist(rows, schema=ANNOTATED_GOLD).sort_by("id")


def annotated_sample(
    sample: pa.Table, annotations: pa.Table, held_back: pa.Table
) -> tuple[pa.Table, dict[str, int]]:
    """id, text, label of the sampled records to train on; how many are left out, and why."""
    answers = labels_by_id(annotations)
    labels = pa.array([answers.get(key) for key in sample["id"].to_pylist()], pa.string())
    labelled = sample.append_column("label", labels).filter(labels.is_valid())
    kept = without(labelled, held_back)
    dropped = {
        "no_label": sample.num_rows - labelled.num_rows,
        "in_gold_test": labelled.num_rows - kept.num_rows,
    }
    return kept, {reason: records for reason, records in dropped.items() if records}


def labels_by_id(annotations: pa.Table) -> dict[str, str | None]:
    """The label of each annotated record; None where the answer was rejected."""
    return dict(zip(annotations["id"].to_pylist(), annotations["label"].to_pylist(), strict=True))
