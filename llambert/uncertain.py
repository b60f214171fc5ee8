"""The records that an encoder was least certain of, and their texts."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llambert.errors import CountError
from llambert.progress import Counter, Progress
from llambert.records import Corpus
from llambert.storage import Folder

_ROWS = 65_536  # read at once
_ORDER = [("confidence", "ascending"), ("id", "ascending")]


def least_certain(labels: Folder, size: int, by: str | None = None) -> pa.Table:
    """The `size` rows of least confidence, in this order: id, label, confidence.

    Of equal confidences the smallest ids count, so that a larger `size` contains a smaller one.
    The files are streamed: memory holds about twice `size` rows.

    Args:
        labels: A folder of labels; fewer rows come back where it has fewer.
        size: From 1 up.
        by: Only the rows with this in their column `by`.

    Raises:
        CountError: there is no label at all.
    """
    columns = ["id", "label", "confidence"]
    kept: list[pa.Table] = []
    last: pa.Scalar | None = None  # the confidence past which nothing counts any more
    for rows in read_rows(labels, [*columns, "by"] if by else columns):
        found = rows.filter(pc.equal(rows["by"], by)).select(columns) if by else rows
        if last is not None:
            found = found.filter(pc.less_equal(found["confidence"], last))
        if found.num_rows or not kept:
            kept.append(found)
        if sum(table.num_rows for table in kept) >= 2 * max(size, _ROWS):
            kept = [_least(kept, size)]
            last = kept[0]["confidence"][-1]
    if not kept:
        raise CountError(f"{labels.uri} holds no labels", "run the label stage again")
    return _least(kept, size)


def _least(tables: list[pa.Table], size: int) -> pa.Table:
    # `take` copies: a slice would keep all that it was cut from
    whole = pa.concat_tables(tables)
    return whole.take(pc.sort_indices(whole, sort_keys=_ORDER)[:size])


def read_rows(folder: Folder, columns: list[str]) -> Iterator[pa.Table]:
    """The rows of the Parquet files directly in `folder`, some ten thousand at a time."""
    for name in folder.files(".parquet"):
        with folder.fs.open(folder.path(name), "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=columns):
                yield pa.Table.from_batches([batch])


def find_texts(
    corpus: Corpus, inventory: Folder, total: int, ids: Iterable[str], progress: Progress
) -> dict[str, str]:
    """The texts of the good records with these ids, held in memory: id -> text.

    The corpus is read once. Ids are given and returned as strings, whatever the corpus has; one
    that it does not have is left out.

    Args:
        inventory: The corpus stage's folder, with the duplicates.
        total: Good records of the corpus.
        progress: Told the records read.
    """
    import ray

    from llambert.datasource import corpus_dataset

    progress.begin(total, "looking up the texts")
    found = corpus_dataset(corpus, inventory, only_good=True).map_batches(
        _pick,
        fn_kwargs={
            "wanted": ray.put(pa.array(sorted(set(ids)), pa.string())),
            "counter": progress.ray_counter(),
        },
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
    )
    texts: dict[str, str] = {}
    for table in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        texts.update(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    return texts


def _pick(table: pa.Table, wanted: Any, counter: Counter) -> pa.Table:
    import ray

    counter.add(table.num_rows)
    ids = table["id"].cast(pa.string())
    rows = pa.table({"id": ids, "text": table["text"]})
    return rows.filter(pc.is_in(ids, value_set=ray.get(wanted)))


def check_found(ids: Iterable[str], texts: dict[str, str]) -> None:
    """Check that every id has a text.

    Raises:
        CountError: one has none: the corpus is not what was labelled.
    """
    lost = sum(id not in texts for id in ids)
    if lost:
        raise CountError(
            f"{lost:,} labelled records are not in the corpus any more",
            "the corpus has changed: run again from the corpus stage",
        )
