"""Gold labels: the records that people labelled, read and split into train and test."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from llambert.errors import UserError
from llambert.records import CorpusConfig, Fields, open_corpus, read_all
from llambert.schema import GOLD, QUARANTINE
from llambert.section import Location, Section
from llambert.storage import text_hash
from llambert.task import TaskConfig, normalise

_GOLD_ROW = pa.schema([*GOLD, *(QUARANTINE.field(name) for name in ("source", "row"))])
_COLUMN_FIELDS = ("gold.id", "gold.text", "gold.label")
_SPLIT_SEED = "gold test"  # hashed with the id: the split never moves with the run's other seeds


class GoldConfig(Section):
    """Where gold labels are; `test` or `test_share` says which are kept for evaluation."""

    train: Location | None = Field(None, description="Gold records to train on.")
    test: Location | None = Field(None, description="Gold records to evaluate on.")
    test_share: float | None = Field(
        None, gt=0, lt=1, description="Share of `train` held back for evaluation, by hash of id."
    )
    train_size: int | None = Field(
        None, ge=2, description="Most gold records to train on, by hash of id; all by default."
    )
    label: str = Field("label", description="Column of the label.")
    id: str | None = Field(None, description="Column of the id; ids are made where none is given.")
    text: str = Field("text", description="Column of the text.")
    format: Literal["parquet", "jsonl", "csv", "text"] | None = Field(
        None, description="Format of the files; by default from their extension."
    )

    @model_validator(mode="after")
    def _one_way_to_a_test_set(self) -> "GoldConfig":
        if not (self.train or self.test):
            raise ValueError("neither `train` nor `test` is given; name one or leave out `gold`")
        if self.test_share and self.test:
            raise ValueError("`test` and `test_share` are both given; keep one")
        if self.test_share and not self.train:
            raise ValueError("`test_share` is a share of `train`, which is not given")
        return self

    def source(self, which: Literal["train", "test"]) -> CorpusConfig:
        """How to read one of the sets."""
        path = self.train if which == "train" else self.test
        assert path
        return CorpusConfig(path=path, format=self.format, id=self.id, text=self.text)


@dataclass(frozen=True)
class Gold:
    """Gold records as tables of `schema.GOLD`."""

    train: pa.Table
    test: pa.Table
    refused: pa.Table  # `schema.QUARANTINE`: the records left out, with reasons

    def refusals(self) -> dict[str, int]:
        """How many records were left out, by reason."""
        return dict(Counter(self.refused["refused"].to_pylist()))


def check_not_empty(config: GoldConfig | None, task: TaskConfig, gold: Gold) -> None:
    """Check, before an LLM is paid, that each gold set that was named has records.

    Raises:
        UserError: one has none; the message has the reasons and the labels.
    """
    if config is None:
        return
    details = [detail for detail in gold.refused["detail"].to_pylist() if detail]
    first = f"; the first: {details[0]}" if details else ""
    for name, path, records in (
        ("train", config.train, gold.train),
        ("test", config.test or config.test_share, gold.test),
    ):
        if path and not records.num_rows:
            raise UserError(
                f"gold.{name} has no usable record; left out of all gold: {gold.refusals()}{first}",
                f"its column {config.label!r} must hold the task's labels, {list(task.labels)}, or "
                "their further spellings (task.labels)",
            )


def load_gold(config: GoldConfig | None, task: TaskConfig) -> Gold:
    """Read the gold sets. No text of the test set is in the training set.

    Raises:
        UserError: a path or a column that does not exist.
    """
    none = _GOLD_ROW.empty_table()
    refused = [QUARANTINE.empty_table()]
    train = _read(config, "train", task, refused) if config and config.train else none
    if config and config.test_share:
        shares = np.array([_place(record) for record in train["id"].to_pylist()])
        held = shares < config.test_share
        train, test = train.filter(pa.array(~held)), train.filter(pa.array(held))
    else:
        test = _read(config, "test", task, refused) if config and config.test else none
    kept = without(train, test)
    if kept.num_rows < train.num_rows:
        ids = set(kept["id"].to_pylist())
        twins = [row for row in train.to_pylist() if row["id"] not in ids]
        refused.append(_quarantined(twins, "in_test", "its text is in the test set"))
    if config and config.train_size and config.train_size < kept.num_rows:
        kept = first_by_hash(kept, config.train_size)
    return Gold(kept.select(GOLD.names), test.select(GOLD.names), pa.concat_tables(refused))


def first_by_hash(records: pa.Table, size: int) -> pa.Table:
    """The `size` records with the smallest hash of id: nested, whatever the records' order."""
    places = np.array([_place(record) for record in records["id"].to_pylist()])
    return records.take(pa.array(np.argsort(places, kind="stable")[:size]))


def without(records: pa.Table, held_back: pa.Table) -> pa.Table:
    """`records` (id, text) less those whose text is among `held_back`'s.

    Ids are not compared: those of different files may be the same by chance.
    """
    texts = {text_hash(text) for text in held_back["text"].to_pylist()}
    keep = [text_hash(text) not in texts for text in records["text"].to_pylist()]
    return records.filter(pa.array(keep, pa.bool_()))


def _place(record: str) -> float:
    """A number in [0, 1) by the record's id alone."""
    return (text_hash(f"{_SPLIT_SEED}:{record}") + 2**63) / 2**64


def _read(
    config: GoldConfig, which: Literal["train", "test"], task: TaskConfig, refused: list[pa.Table]
) -> pa.Table:
    """The records of a set (_GOLD_ROW) whose label is one of the task's, by label or alias."""
    names = {normalise(s): label for label, more in task.labels.items() for s in [label, *more]}
    source, fields = config.source(which), Fields(f"gold.{which}", *_COLUMN_FIELDS)
    good, bad = read_all(open_corpus(source, extra=[config.label], fields=fields))
    refused.append(bad.select(QUARANTINE.names).cast(QUARANTINE))
    said = good[config.label].to_pylist()
    labels = pa.array([names.get(normalise(value or "")) for value in said], pa.string())
    columns = [good["id"].cast(pa.string()), good["text"], labels, good["source"], good["row"]]
    table = pa.Table.from_arrays(columns, schema=_GOLD_ROW)
    unknown = [
        {**row, "detail": f"the label is {value!r}"}
        for row, value in zip(table.to_pylist(), said, strict=True)
        if row["label"] is None
    ]
    refused.append(_quarantined(unknown, "unknown_label"))
    return table.filter(labels.is_valid())


def _quarantined(rows: list[dict[str, Any]], reason: str, detail: str | None = None) -> pa.Table:
    """`rows` (id, source, row, perhaps a detail; the rest is left) as the quarantine has them."""
    full = [{"refused": reason, "detail": detail, **row} for row in rows]
    return pa.Table.from_pylist(full, schema=QUARANTINE)
