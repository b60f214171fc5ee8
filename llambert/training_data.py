"""Pure: labelled records become what an encoder trains on and what it is validated on."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llambert.errors import UserError


def prepared(records: pa.Table, labels: list[str]) -> pa.Table:
    """`records` sorted by id, as id, text, target (index in `labels`), length (characters)."""
    for column in ("id", "text", "label"):
        if records[column].null_count:
            raise UserError(
                f"{records[column].null_count} training records have no {column}",
                "leave them out",
            )
    targets = pc.index_in(records["label"], value_set=pa.array(labels, pa.string()))
    if targets.null_count:
        unknown = records.filter(pc.is_null(targets))["label"].unique().to_pylist()
        raise UserError(
            f"{targets.null_count} training records have a label off the list, such as "
            f"{unknown[:3]}",
            f"the task's labels are {labels}",
        )
    if not enough(records["label"], labels):
        counts = np.bincount(targets.to_numpy(), minlength=len(labels))
        found = ", ".join(f"{label}: {n}" for label, n in zip(labels, counts, strict=True))
        raise UserError(
            f"{counts.sum()} training records are too few to learn from ({found})",
            "give at least two for each label: a larger sample, or more gold records",
        )
    text = records["text"].cast(pa.large_string())
    table = pa.table(
        {
            "id": records["id"],
            "text": text,
            "target": targets.cast(pa.int64()),
            "length": pc.utf8_length(text).cast(pa.int64()),
        }
    )
    return table.sort_by("id").combine_chunks()


def enough(given: pa.ChunkedArray, labels: list[str]) -> bool:
    """Whether records labelled `given` can be learned from: two for each label, not all alike."""
    return len(given) >= 2 * len(labels) and len(given.unique()) > 1


def content_hash(table: pa.Table) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for column in table.columns:
        for chunk in column.chunks:
            for buffer in chunk.buffers():
                digest.update(buffer if buffer is not None else b"-")
    return digest.hexdigest()


def split(
    targets: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows to validate on, with the same share of every label.

    A label with two records or more has at least one on each side; a single record is trained on.
    """
    rng = np.random.default_rng([seed, 0x5917])
    held = np.zeros(len(targets), dtype=bool)
    for target in np.unique(targets):
        rows = rng.permutation(np.flatnonzero(targets == target))
        if share and len(rows) > 1:
            held[rows[: max(1, round(share * len(rows)))]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def label_weights(targets: NDArray[np.int64], labels: int, weighted: bool) -> list[float]:
    """The weight of a record by its label: 1, or inverse to the label's frequency (mean 1)."""
    counts = np.bincount(targets, minlength=labels)
    if not weighted:
        return [1.0] * labels
    present = np.count_nonzero(counts)
    return [float(len(targets) / (present * n)) if n else 0.0 for n in counts]
