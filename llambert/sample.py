"""The sample stage: the k records with the smallest hash of seed and id."""

import hashlib
import math

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from llambert.errors import CountError, UserError
from llambert.progress import Counter, Progress
from llambert.records import Corpus
from llambert.schema import SAMPLE
from llambert.section import Section
from llambert.storage import Folder, Outcome

SAMPLED = "sample.parquet"

HASHES = 2**64  # from 0 up: what a record's hash may be
_SIGMAS = 6  # a threshold that gives too few has a chance of about one in a billion


class SampleConfig(Section):
    """Which records the LLM annotates."""

    size: int = Field(
        10_000, gt=0, description="Records to draw; the whole corpus where it has fewer."
    )
    seed: int = Field(
        42,
        description="Another seed draws other records; with one seed, a larger sample contains "
        "the smaller ones.",
    )


def draw_sample(
    config: SampleConfig,
    corpus: Corpus,
    inventory: Folder,
    good_records: int,
    folder: Folder,
    progress: Progress,
) -> Outcome:
    """Draw exactly min(size, good records) records and write `sample.parquet` (SAMPLE).

    A record is drawn by its id alone, so the sample does not depend on the order of files, on
    blocks or on the cluster. The rows are sorted by hash: the first k are the sample of size k.

    Args:
        config: Size and seed.
        corpus: An opened corpus.
        inventory: The corpus stage's folder, with the duplicates.
        good_records: Records that the corpus stage let through.
        folder: Gets `sample.parquet`.
        progress: Told the records read.

    Raises:
        UserError: the corpus has no good record.
        CountError: the corpus has not as many good records as its inventory says.
    """
    if not good_records:
        raise UserError(
            "the corpus has no record to label",
            "quarantine/ in the workdir has those that were refused, each with its reason",
        )
    size = min(config.size, good_records)
    progress.begin(good_records, "drawing the sample")
    drawn = _below(_threshold(size, good_records), config.seed, corpus, inventory, progress)
    if drawn.num_rows < size:  # once in a billion runs, or the corpus has changed
        progress.begin(good_records, "drawing the sample again")
        drawn = _below(HASHES, config.seed, corpus, inventory, progress)
    if drawn.num_rows < size:
        raise CountError(
            f"{good_records} good records were counted, but only {drawn.num_rows} are there now",
            "the corpus has changed: run again from the corpus stage",
        )
    drawn = drawn.sort_by([("hash", "ascending"), ("id", "ascending")]).slice(0, size)
    folder.write_table(SAMPLED, drawn.select(SAMPLE.names).cast(SAMPLE))
    details = {"requested": config.size, "whole_corpus": config.size >= good_records}
    dropped = {"not_drawn": good_records - size}
    return Outcome({"in": good_records, "out": size, "dropped": dropped}, details)


def _threshold(size: int, records: int) -> int:
    """A hash below which there are `size` of `records` records, but for bad luck, and few more.

    The number below a share p of all hashes is binomial, with a deviation under sqrt(p * records).
    """
    wanted = size + _SIGMAS * math.sqrt(size) + _SIGMAS**2
    return HASHES if wanted >= records else int(HASHES * (wanted / records))


def _below(
    threshold: int, seed: int, corpus: Corpus, inventory: Folder, progress: Progress
) -> pa.Table:
    """Every good record whose hash is below `threshold`: hash (uint64), id, text."""
    from llambert.datasource import corpus_dataset

    records = corpus_dataset(corpus, inventory, only_good=True).map_batches(
        _pick,
        fn_kwargs={"seed": seed, "threshold": threshold, "counter": progress.ray_counter()},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
    )
    tables = list(records.iter_batches(batch_size=None, batch_format="pyarrow"))
    return pa.concat_tables([_DRAWN.empty_table(), *tables])


_DRAWN = pa.schema([pa.field("hash", pa.uint64()), *SAMPLE])


def _pick(table: pa.Table, seed: int, threshold: int, counter: Counter) -> pa.Table:
    counter.add(table.num_rows)
    rows = hashed(table, seed)
    if threshold >= HASHES:
        return rows
    return rows.filter(pc.less(rows["hash"], pa.scalar(threshold, pa.uint64())))


def hashed(table: pa.Table, seed: int) -> pa.Table:
    """hash (uint64), id (string) and text of records: those of the smallest hashes are drawn."""
    ids = table["id"].cast(pa.string())
    hashes = pa.array([_hash(seed, id) for id in ids.to_pylist()], pa.uint64())
    return pa.table([hashes, ids, table["text"]], schema=_DRAWN)


def as_drawn(records: pa.Table, seed: int) -> pa.Table:
    """`records` (id, text, …) in the order in which samples of growing size would draw them."""
    keys = [("hash", "ascending"), ("id", "ascending")]
    return records.take(pc.sort_indices(hashed(records, seed), sort_keys=keys))


def _hash(seed: int, id: str) -> int:
    """BLAKE2b, 64 bits, of seed and id: the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
