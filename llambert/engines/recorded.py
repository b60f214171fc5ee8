"""Answers that exist already, taken from a table of id and response."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llambert import schema
from llambert.engines.config import AnnotateConfig, RecordedConfig
from llambert.progress import Counter
from llambert.records import open_corpus, read_all
from llambert.task import TaskConfig

MISSING = "no recorded response"


def ask(rows: Any, config: AnnotateConfig, task: TaskConfig, counter: Counter) -> Any:
    """Look every row's answer up in the table."""
    import ray

    assert config.recorded is not None
    table = ray.put(_read(config.recorded))
    return rows.map_batches(
        lambda block: _look_up(block, table, counter),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=0.25,
    )


def _read(config: RecordedConfig) -> pa.Table:
    """id (string) and response; an id's first row counts, and an empty one after all others."""
    good, refused = read_all(open_corpus(config.source()))
    empty = refused.filter(pc.equal(refused["refused"], "empty_text"))  # an answer, if a poor one
    both = pa.concat_tables([good, empty])
    # One chunk, since every block looks all its ids up at once
    ids = pa.chunked_array([both["id"].cast(pa.string()).combine_chunks()])
    return pa.table({"id": ids, "response": both["text"]})


def _look_up(block: pa.Table, table: Any, counter: Counter) -> pa.Table:
    import ray

    answers = ray.get(table)  # its columns stay in the object store: nothing is copied
    places = pc.index_in(block["id"], value_set=answers["id"])  # the first, where there are several
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
