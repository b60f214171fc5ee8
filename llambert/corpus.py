"""The corpus stage: one pass that counts every record, quarantines the bad, finds duplicates."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llambert import progress as progress_module
from llambert.drift import LENGTH_EDGES, length_histogram
from llambert.errors import CountError
from llambert.records import DUPLICATE, DUPLICATES, Corpus
from llambert.schema import QUARANTINE
from llambert.storage import Folder, Outcome, replacing

if TYPE_CHECKING:
    from ray.data import Dataset

QUARANTINED = "corpus.parquet"  # this stage's file in the quarantine

# Upper edges, in characters, of the buckets that text lengths are counted in: each a few per cent
# above the one before, so that a percentile is off by no more than that. With the coarser edges
# among them the counts add up to a histogram for comparisons.
_EDGES = np.union1d(np.geomspace(1, 2**31, 700).astype(np.int64), LENGTH_EDGES)
_SORTED_ROWS = 2_000_000  # ids in one block of the sort
_RUN_ROWS = 4_000_000  # duplicates sorted together in the driver, 12 bytes each
_GROUP_ROWS = 32_768  # of a row group of duplicates: a reading task loads few of them
_PERCENTILES = (50, 90, 99)


def inspect_corpus(
    corpus: Corpus,
    folder: Folder,
    quarantine: Folder,
    progress: progress_module.Progress,
) -> Outcome:
    """Read the corpus once; write its duplicates and the quarantine.

    A refused row, and a file (or row group) that cannot be read, each count as one record in and
    one dropped. Of good records with one id, the first by file name and row stays. Duplicates are
    found by sorting the ids alone, by value, in Ray's object store, which spills to disk.

    Args:
        corpus: An opened corpus.
        folder: Gets `duplicates.parquet` (source, row), for `records.load_duplicates`: sorted by
            source and row in runs of a few million rows, in small row groups, so that their
            statistics tell which of them a file's rows are in.
        quarantine: Gets `corpus.parquet` (QUARANTINE), replaced as a whole.
        progress: Told the records read.

    Returns:
        Counts (`out`: good records) and details: files, corrupt_files, bytes, text_chars,
        text_lengths (`drift.length_histogram`).

    Raises:
        CountError: records were lost or doubled on the way.
    """
    from llambert.datasource import corpus_dataset

    progress.begin(None, "reading the corpus")
    counter = progress.ray_counter()
    ids = not corpus.makes_ids
    found = corpus_dataset(corpus, numbered=True, block_bytes=128 * 2**20).map_batches(
        _inspect,
        fn_kwargs={"counter": counter, "ids": ids},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
    )
    if ids:
        found = found.materialize()  # read once, used twice: ids and refused rows, no text
    totals = _Totals()
    with replacing(quarantine, QUARANTINED, QUARANTINE) as refused:
        for table in _streamed(found.map_batches(_not_ids, **_BLOCKS)):
            totals.add(table)
            refused.write_table(_quarantined(corpus, table))
        with replacing(folder, DUPLICATES, DUPLICATE) as duplicates:
            if ids and totals.good:
                progress.begin(None, "looking for duplicated ids")
                totals.duplicates = _write_duplicates(found, corpus, refused, duplicates)
    return totals.outcome(corpus)


_BLOCKS: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}


def _streamed(dataset: "Dataset") -> Iterator[pa.Table]:
    """The Dataset's blocks, a few in memory at a time."""
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        if table.num_rows:
            yield table


def _inspect(table: pa.Table, counter: progress_module.Counter, ids: bool) -> pa.Table:
    """Of a block of records: its refused rows, one row of figures, and ids where they matter."""
    counter.add(table.num_rows)
    good = pc.is_null(table["refused"])
    chars = pc.utf8_length(table["text"].filter(good)).to_numpy()
    buckets = np.bincount(np.searchsorted(_EDGES, chars), minlength=1)
    reasons = pc.value_counts(table["refused"].filter(pc.invert(good)))
    figures = {
        "records": table.num_rows,
        "good": len(chars),
        "refused": {entry["values"].as_py(): entry["counts"].as_py() for entry in reasons},
        "chars": int(chars.sum()),
        "longest": int(chars.max(initial=0)),
        "buckets": {str(i): int(n) for i, n in enumerate(buckets) if n},
    }
    names = ["id", "file", "row", "refused", "detail"]
    kept = table.select(names) if ids else table.select(names).filter(pc.invert(good))
    kept = kept.append_column("figures", pa.nulls(kept.num_rows, pa.string()))
    row = {"figures": [json.dumps(figures)], **{name: [None] for name in names}}
    return pa.concat_tables([kept, pa.table(row, schema=kept.schema)])


def _not_ids(table: pa.Table) -> pa.Table:
    return table.filter(pc.or_(pc.is_valid(table["refused"]), pc.is_valid(table["figures"])))


def _good_ids(table: pa.Table) -> pa.Table:
    good = pc.and_(pc.is_null(table["refused"]), pc.is_null(table["figures"]))
    return table.filter(good).select(["id", "file", "row"])


def _duplicated(found: "Dataset") -> "Dataset":
    """The later records of every id that is there more than once."""
    ids = found.map_batches(_good_ids, **_BLOCKS)
    # Few large blocks: a sort of n blocks makes n * n objects
    ids = ids.repartition(target_num_rows_per_block=_SORTED_ROWS, strict=True)
    # A sort puts equal ids into one block
    return ids.sort("id").map_batches(_later_of_equals, **_BLOCKS)


def _later_of_equals(table: pa.Table) -> pa.Table:
    """From a block sorted by id, all but the first (by file, row) of equal ids."""
    equal = _equals_previous(table["id"])
    repeated = equal | np.append(equal[1:], False)
    some = table.filter(pa.array(repeated)).sort_by(
        [("id", "ascending"), ("file", "ascending"), ("row", "ascending")]
    )
    later = some.filter(pa.array(_equals_previous(some["id"])))
    reason = pa.repeat(pa.scalar("duplicate_id"), later.num_rows)
    nothing = pa.nulls(later.num_rows, pa.string())
    return later.append_column("refused", reason).append_column("detail", nothing)


def _equals_previous(ids: pa.ChunkedArray) -> np.ndarray:
    if len(ids) == 0:
        return np.zeros(0, dtype=bool)
    equal = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    return np.append(False, equal.to_numpy())


def _quarantined(corpus: Corpus, table: pa.Table) -> pa.Table:
    """The refused rows of a table in the quarantine's columns."""
    refused = table.filter(pc.is_valid(table["refused"]))
    numbers = refused["file"].to_pylist()
    sources = pa.array([corpus.sources[n].uri for n in numbers], pa.string())
    columns = {"id": refused["id"].cast(pa.string()), "source": sources}
    columns |= {name: refused[name] for name in ("row", "refused", "detail")}
    return pa.table(columns, schema=QUARANTINE)


def _write_duplicates(
    found: "Dataset", corpus: Corpus, refused: pq.ParquetWriter, duplicates: pq.ParquetWriter
) -> int:
    """Write the duplicates to the quarantine and to their own file; how many there are."""
    total, pending = 0, 0
    run: list[pa.Table] = []
    for table in _streamed(_duplicated(found)):
        refused.write_table(_quarantined(corpus, table))
        run.append(table.select(["file", "row"]))
        total, pending = total + table.num_rows, pending + table.num_rows
        if pending >= _RUN_ROWS:
            _write_run(duplicates, corpus, run)
            run, pending = [], 0
    if run:
        _write_run(duplicates, corpus, run)
    return total


def _write_run(writer: pq.ParquetWriter, corpus: Corpus, run: list[pa.Table]) -> None:
    """Write (file, row) tables as DUPLICATE, sorted: `corpus.sources` are, so numbers do."""
    places = pa.concat_tables(run).sort_by([("file", "ascending"), ("row", "ascending")])
    for start in range(0, places.num_rows, _GROUP_ROWS):
        group = places.slice(start, _GROUP_ROWS)  # its uris alone are in memory as strings
        uris = pa.array([corpus.sources[n].uri for n in group["file"].to_pylist()], pa.string())
        writer.write_table(pa.table([uris, group["row"]], schema=DUPLICATE))


class _Totals:
    """The sums of all blocks' figures."""

    def __init__(self) -> None:
        self.records = self.good = self.chars = self.longest = self.duplicates = 0
        self.refused: Counter[str] = Counter()
        self.buckets: Counter[int] = Counter()
        self.quarantined = 0
        self.corrupt: set[int] = set()

    def add(self, table: pa.Table) -> None:
        for text in table["figures"].drop_null().to_pylist():
            figures = json.loads(text)
            self.records += figures["records"]
            self.good += figures["good"]
            self.chars += figures["chars"]
            self.longest = max(self.longest, figures["longest"])
            self.refused.update(figures["refused"])
            self.buckets.update({int(i): n for i, n in figures["buckets"].items()})
        self.quarantined += len(table) - table["refused"].null_count
        corrupt = table.filter(pc.equal(table["refused"], "corrupt_file"))
        self.corrupt.update(corrupt["file"].to_pylist())

    def outcome(self, corpus: Corpus) -> Outcome:
        if self.quarantined != self.refused.total() or self.records != (
            self.good + self.quarantined
        ):
            raise CountError(
                f"{self.records} records read, {self.good} good, {self.refused.total()} refused, "
                f"{self.quarantined} quarantined: these do not add up",
                "run the stage again",
            )
        dropped = dict(sorted(self.refused.items()))
        if self.duplicates:
            dropped["duplicate_id"] = self.duplicates
        out = self.good - self.duplicates
        return Outcome(
            counts={"in": self.records, "out": out, "dropped": dropped},
            details={
                "files": len(corpus.sources),
                "corrupt_files": len(self.corrupt),
                "bytes": corpus.bytes,
                "text_chars": self.lengths(),
                "text_lengths": length_histogram(
                    _EDGES[list(self.buckets)], list(self.buckets.values())
                ),
            },
        )

    def lengths(self) -> dict[str, float]:
        """The distribution of lengths, of good records and duplicates.

        A percentile is its bucket's upper edge, about 3 % too high at most.
        """
        if not self.good:
            return {}
        figures: dict[str, float] = {"mean": round(self.chars / self.good, 1)}
        order = sorted(self.buckets)
        sums = np.cumsum([self.buckets[i] for i in order])
        for percent in _PERCENTILES:
            bucket = order[int(np.searchsorted(sums, self.good * percent / 100))]
            figures[f"p{percent}"] = min(int(_EDGES[bucket]), self.longest)
        return figures | {"max": self.longest}
