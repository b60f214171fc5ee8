"""A corpus as a Ray Dataset.

Ray's own readers give no row numbers, refuse no single row and skip or fail on a corrupt file;
this source reads through `records`. It plans as a Ray Data `Read`, which is what Ray's
checkpoints need.
"""

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from llambert.records import Corpus, Source, load_duplicates, read_source
from llambert.storage import Folder

if TYPE_CHECKING:
    from ray.data import Dataset

Share = tuple[int, Source, tuple[int, int]]  # the file's number, the file, (i, n): i-th of n shares

_SHARE_BYTES = 128 * 2**20  # as stored: read by one task
_SMALLEST_SHARE_BYTES = 2**20
_SHARE_FILES = 1000  # a task's description stays small
_UNPACKED = 3  # bytes in memory for one stored, about, where files are compressed


def corpus_dataset(
    corpus: Corpus,
    inventory: Folder | None = None,
    only_good: bool = False,
    numbered: bool = False,
    block_bytes: int = 32 * 2**20,
    cpus: float = 1,
) -> "Dataset":
    """The records of a corpus as a Ray Dataset of `corpus.schema`; nothing is read yet.

    Args:
        corpus: An opened corpus.
        inventory: The corpus stage's folder, whose duplicates are refused; None: none is.
        only_good: Drop refused rows in the reading task and keep id, text and further columns.
            Needed under a checkpoint: its filter sees the rows as they are read, and cannot
            compare null ids.
        numbered: Add `file` (int32), the number of the file in `corpus.sources`.
        block_bytes: Largest block that leaves any task of this Dataset.
        cpus: CPUs that a reading task asks for.

    Returns:
        A Dataset in no particular order, the same set of rows on any cluster.
    """
    import ray

    if corpus.makes_ids:  # path and row: never twice
        inventory = None
    read = functools.partial(
        _read_shares,
        corpus.without_sources(),
        inventory=inventory,
        only_good=only_good,
        numbered=numbered,
    )
    # a head may have no core, and no worker be there yet
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    tasks = _plan(corpus, _share_bytes(corpus.bytes, cores))
    # As many blocks as tasks: otherwise Ray cuts the blocks again, and once more after a
    # checkpoint's filter, into crumbs
    dataset = ray.data.read_datasource(
        _datasource(corpus, tasks, read), override_num_blocks=max(1, len(tasks)), num_cpus=cpus
    )
    dataset.context.target_max_block_size = block_bytes  # this Dataset's own context
    return dataset


def _share_bytes(total: int, cpus: int) -> int:
    """Bytes for one task: a few tasks for each CPU, none too large or too small."""
    return min(_SHARE_BYTES, max(_SMALLEST_SHARE_BYTES, total // (4 * cpus)))


def _plan(corpus: Corpus, share_bytes: int) -> list[list[Share]]:
    """The tasks: large Parquet files in shares of row groups, small files together."""
    tasks: list[list[Share]] = []
    room = 0
    for number, source in enumerate(corpus.sources):
        shares = math.ceil(source.size / share_bytes) if corpus.format == "parquet" else 1
        if shares > 1:
            tasks += [[(number, source, (i, shares))] for i in range(shares)]
            room = 0
            continue
        if not tasks or room < source.size or len(tasks[-1]) >= _SHARE_FILES:
            tasks.append([])
            room = share_bytes
        tasks[-1].append((number, source, (0, 1)))
        room = max(0, room - source.size)
    return tasks


def _read_shares(
    corpus: Corpus,
    shares: list[Share],
    inventory: Folder | None,
    only_good: bool,
    numbered: bool,
) -> Iterator[pa.Table]:
    """What one task reads."""
    uris = sorted({source.uri for _, source, _ in shares})
    duplicates = load_duplicates(inventory, uris) if inventory else {}
    keep = ["id", "text", *corpus.extra] if only_good else corpus.schema.names
    for number, source, part in shares:
        for table in read_source(corpus, source, part, duplicates.get(source.uri)):
            rows = table.filter(pc.is_null(table["refused"])) if only_good else table
            yield _selected(rows, keep, number if numbered else None)
    # a task that reads nothing still says what columns there are
    yield _selected(corpus.schema.empty_table(), keep, 0 if numbered else None)


def _selected(table: pa.Table, keep: list[str], number: int | None) -> pa.Table:
    table = table.select(keep)
    if number is None:
        return table
    return table.append_column("file", pa.repeat(pa.scalar(number, pa.int32()), table.num_rows))


def _datasource(corpus: Corpus, tasks: list[list[Share]], read: Any) -> Any:
    """A Ray Datasource of these tasks; Ray asks for them several times, so they are planned."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    factor = _UNPACKED if corpus.format == "parquet" else 1

    def task(shares: list[Share], row_limit: int | None) -> ReadTask:
        size = sum(source.size // of for _, source, (_, of) in shares)
        uris = sorted({source.uri for _, source, _ in shares})
        metadata = BlockMetadata(
            num_rows=None, size_bytes=factor * size, input_files=uris, exec_stats=None
        )

        def read_shares() -> Iterator[pa.Table]:
            return read(shares)

        return ReadTask(read_shares, metadata, per_task_row_limit=row_limit)

    class CorpusDatasource(Datasource):
        def estimate_inmemory_data_size(self) -> int:
            return factor * corpus.bytes

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[ReadTask]:
            return [task(shares, per_task_row_limit) for shares in tasks]

    return CorpusDatasource()
