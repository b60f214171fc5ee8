"""The answers of an annotator as they are stored: round by round, each answer once.

    responses/round-0001.parquet   answers as they came, append-only (schema.RESPONSE)
    responses/_round-0001.json     what that round took, where it came to its end
    running/round-0002/            answers of the round under way, written batch by batch

A Parquet file ends with its footer, so whatever a killed round has left is either whole and kept,
or unreadable and asked again: the answers are their own checkpoint.
"""

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llambert import schema
from llambert.errors import UserError
from llambert.storage import Folder, text_hash

log = logging.getLogger(__name__)

_READERS = 16  # files read at once


def with_hashes(records: pa.Table) -> pa.Table:
    ids = Counter(records["id"].to_pylist())
    twice = next((key for key, times in ids.items() if times > 1), None)
    if twice is not None:
        raise UserError(
            f"the id {twice!r} stands for more than one record to annotate",
            "make the ids unique; gold records need ids that the corpus does not use",
        )
    hashes = [text_hash(text) for text in records["text"].to_pylist()]
    return records.select(["id", "text"]).append_column("text_hash", pa.array(hashes, pa.int64()))


def read_responses(folder: Folder) -> pa.Table:
    """All stored responses, those of a round under way or killed included."""
    tables = [schema.RESPONSE.empty_table(), *_parts(folder).values()]
    finished = (folder / "responses").read_table()
    return pa.concat_tables([*tables, finished] if finished.num_rows else tables)


def last_answers(responses: pa.Table, wanted: pa.Table) -> list[int | None]:
    """For each wanted record the row of its answer, else of its last failure, else None.

    An answer to its text under another id is its answer too: a gold record is asked under its own
    id, under `gold:` where a sampled record has that id, and under the sampled record's that has
    its text, and which it is changes as the sample grows. Answers without tokens are not shared:
    they were recorded, under their ids, and cost nothing.
    """
    found: dict[tuple[str, int], tuple[bool, int]] = {}
    paid: dict[int, int] = {}
    valid = responses["response"].is_valid().to_pylist()
    cost = responses["output_tokens"].is_valid().to_pylist()
    for row, key in enumerate(_keys(responses)):
        if key not in found or not found[key][0]:
            found[key] = (valid[row], row)
        if valid[row] and cost[row]:
            paid.setdefault(key[1], row)
    rows: list[int | None] = []
    for key in _keys(wanted):
        own = found.get(key)
        rows.append(own[1] if own and own[0] else paid.get(key[1], own[1] if own else None))
    return rows


def unanswered(records: pa.Table, folder: Folder) -> pa.Table:
    """Those of `records` (id, text; ids unique) that have no answer in `folder` yet."""
    responses = read_responses(folder)
    answered = responses["response"].is_valid().to_pylist()
    known = last_answers(responses, with_hashes(records))
    return records.take([i for i, at in enumerate(known) if at is None or not answered[at]])


def failures(requests: pa.Table, error: str) -> pa.Table:
    """A failure for each of `requests` (id, text_hash), as `schema.RESPONSE`."""
    rows = requests.select(["id", "text_hash"]).to_pylist()
    failed = {"error": error, "truncated": False}
    return pa.Table.from_pylist([row | failed for row in rows], schema=schema.RESPONSE)


def next_round(folder: Folder) -> str:
    """The name of a round that none has borne."""
    names = (folder / "responses").files(".parquet") + (folder / "running").folders()
    rounds = [int(name.removesuffix(".parquet").split("-")[1]) for name in names]
    return f"round-{1 + max(rounds, default=0):04d}"


def collect(folder: Folder) -> dict[str, pa.Table]:
    """Make of every round that has ended, well or not, one file of responses.

    Repeatable at any point: the file bears the round's name and is written whole. A killed
    driver's workers may write a little more after that; it is added to what the file holds.
    """
    rounds = _parts(folder)
    stored = folder / "responses"
    for name, table in rounds.items():
        file = f"{name}.parquet"
        if stored.exists(file):
            held = stored.read_table(file)
            known = set(_keys(held))
            late = table.filter(pa.array([key not in known for key in _keys(table)], pa.bool_()))
            stored.write_table(file, pa.concat_tables([held, late]))
        elif table.num_rows:
            stored.write_table(file, table)
        (folder / "running" / name).remove()
    return rounds


def note_round(folder: Folder, name: str, figures: dict[str, Any]) -> None:
    """Keep what a round took beside its answers."""
    (folder / "responses").write_json(f"_{name}.json", figures)


def last_measured(folder: Folder) -> dict[str, Any]:
    """`last_round`: what the last round took that has a rate; {} where none has."""
    stored = folder / "responses"
    rounds = [name for name in stored.files(".json") if name.startswith("_round-")]
    taken = map(stored.read_json, reversed(rounds))
    last = next((figures for figures in taken if figures["records_per_s"]), None)
    return {"last_round": last} if last else {}


def _keys(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["id"].to_pylist(), table["text_hash"].to_pylist(), strict=True))


def _parts(folder: Folder) -> dict[str, pa.Table]:
    """The responses written so far by each round that has not been collected."""
    running = folder / "running"
    return {name: read_part(running / name) for name in running.folders()}


def read_part(part: Folder) -> pa.Table:
    """The responses that a round, whose own folder `part` is, has written so far."""
    names = part.files(".parquet")
    with ThreadPoolExecutor(_READERS) as pool:
        read = list(pool.map(_read_file, [part] * len(names), names))
    tables = [table for table in read if table is not None]
    return pa.concat_tables([schema.RESPONSE.empty_table(), *tables])


def _read_file(part: Folder, name: str) -> pa.Table | None:
    """One batch's answers, or None where its writer was killed before the end of the file."""
    with part.fs.open(part.path(name), "rb") as file:
        try:
            return pq.read_table(file).cast(schema.RESPONSE)
        except pa.ArrowInvalid:
            log.warning("%s is half written: its requests are asked again", part.path(name))
            return None
