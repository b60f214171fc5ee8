"""Answers that exist already, taken from a table of id and response."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llambert import schema
from llambert.asked import GOLD_PREFIX
from llambert.engines.config import AnnotateConfig, RecordedConfig
from llambert.errors import UserError
from llambert.progress import Counter
from llambert.records import read_all
from llambert.storage import text_hash
from llambert.task import TaskConfig

MISSING = "no recorded response"


def ask(rows: Any, config: AnnotateConfig, task: TaskConfig, counter: Counter) -> Any:
    """Look every row's answer up in the table.

    Raises:
        UserError (when the rows are consumed): an id of the table stands for two texts.
    """
    import ray

    assert config.recorded is not None
    table = ray.put(_read(config.recorded))
    return rows.map_batches(
        lambda block: _look_up(block, ray.get(table), counter),  # from the store: no copy
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=0.25,
    )


def _read(config: RecordedConfig) -> pa.Table:
    """key (id, or hash of the text) and response; the first row of a key counts.

    An empty response counts after all others.
    """
    good, refused = read_all(config.table())
    empty = refused.filter(pc.equal(refused["refused"], "empty_text"))  # an answer, if a poor one
    both = pa.concat_tables([good, empty])
    keys = both["id"].cast(pa.string())
    if config.text:
        texts = both[config.text].to_pylist()
        keys = pa.array([None if t is None else text_hash(t) for t in texts], pa.int64())
    # One chunk, since every block looks all its keys up at once
    keys = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    return pa.table({"key": keys, "response": both["text"]})


def _look_up(block: pa.Table, answers: pa.Table, counter: Counter) -> pa.Table:
    by_id = pa.types.is_string(answers["key"].type)
    keys = block["id" if by_id else "text_hash"]
    places = pc.index_in(keys, value_set=answers["key"])  # the first, where there are several
    if by_id:
        _refuse_two_texts(keys.filter(pc.is_null(places)), answers["key"])
    found = answers["response"].take(places)
    counter.add(block.num_rows)
    nulls = [None] * block.num_rows
    return pa.table(
        {
            "id": block["id"],
            "text_hash": block["text_hash"],
            "response": found,
            "error": pc.if_else(pc.is_null(found), MISSING, pa.scalar(None, pa.string())),
            "prompt_tokens": nulls,
            "output_tokens": nulls,
            "truncated": [False] * block.num_rows,
            "first_token": nulls,
        },
        schema=schema.RESPONSE,
    )


def _refuse_two_texts(missing: pa.ChunkedArray, ids: pa.ChunkedArray) -> None:
    """Refuse a gold id that the sample uses for another text: whose the answer is, is not told.

    Where one is, others are not seen: those of the corpus that the sample happens to leave out.
    """
    renamed = missing.filter(pc.starts_with(missing, GOLD_PREFIX))
    bare = pc.utf8_slice_codeunits(renamed, len(GOLD_PREFIX))
    twice = bare.filter(pc.is_in(bare, value_set=ids))
    if len(twice):
        raise UserError(
            f"the id {twice[0].as_py()!r} of the recorded answers stands for a gold record and, "
            "with another text, for one of the corpus",
            "name the table's column of texts in annotate.recorded.text, give gold records ids "
            "that the corpus does not use, or set annotate.gold_records: 0",
        )
