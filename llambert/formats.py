"""The four file formats, read as a stream: typed columns, row numbers, and what was refused.

Nothing here knows what a corpus is; `records` makes records of these batches.
"""

import contextlib
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llambert.columns import (
    INT64,
    LINE_BYTES,
    Refusals,
    Unreadable,
    as_strings,
    id_column,
    json_ids,
    strings,
    utf8,
)
from llambert.csv_lines import CsvLines, csv_header, csv_records
from llambert.errors import StageError
from llambert.storage import filesystem

EXTENSIONS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}  # of jsonl, csv and text
TEXT_COLUMN = "text"  # the one column of a text file: a line is a record

_BATCH_BYTES = 8 * 2**20  # of one batch, by the average row
_BATCH_ROWS = 65536
_BUFFER_BYTES = 4 * 2**20  # of one column's stream: one request to an object store
_PEEK_LINES = 100
_BOM = b"\xef\xbb\xbf"
_CORRUPT = (pa.ArrowException, OSError, ValueError, EOFError, csv.Error)


class SourceFile:
    """A file open for reading that remembers whether a read itself failed.

    So a store that does not answer is told from a file whose bytes are wrong.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.error: Exception | None = None
        fs, path = filesystem(uri)
        # No cache: every reader here asks for large pieces, and Parquet for several streams at once
        self._file = fs.open(path, "rb", cache_type="none")

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            self.error = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "SourceFile":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._file.closed

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Turn a decoder's errors into `Unreadable`, a failed read into a `StageError`.

        Stores' drivers raise errors of many kinds, so the failed read is looked at first. A lack of
        memory is a `StageError` too.
        """
        try:
            yield
        except MemoryError as error:  # pyarrow's too: it says nothing of the file
            raise StageError(
                f"the memory does not suffice to read {self.uri!r}: {error!r}",
                "give the machine more memory or less to do, then the same command goes on; a "
                "Parquet file of smaller row groups takes less",
            ) from error
        except Exception as error:
            if self.error is not None:
                raise StageError(
                    f"cannot read {self.uri!r}: {self.error}", "check the store, then run again"
                ) from self.error
            if not isinstance(error, _CORRUPT):
                raise
            message = str(error).strip().splitlines()
            raise Unreadable(message[0] if message else type(error).__name__) from error


@dataclass(frozen=True)
class Columns:
    """What to read: the columns' names, and the type that ids get."""

    id: str | None
    text: str
    extra: tuple[str, ...]
    id_type: pa.DataType

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([*([self.id] if self.id else []), self.text, *self.extra]))


@dataclass
class Batch:
    """Some rows of a file: aligned arrays, `extra` in the order asked for."""

    rows: pa.Array  # int64, positions in the file
    id: pa.Array | None  # None: no id column
    text: pa.Array
    extra: list[pa.Array]
    refusals: Refusals


def broken(detail: str, columns: Columns) -> Batch:
    """One row, numbered -1, that stands for what cannot be read."""
    refusals = Refusals(1)
    refusals.mark([True], "corrupt_file", detail)
    one = pa.nulls(1, pa.string())
    ids = pa.nulls(1, columns.id_type) if columns.id else None
    return Batch(pa.array([-1], pa.int64()), ids, one, [one] * len(columns.extra), refusals)


def peek(file: SourceFile, format: str) -> pa.Schema | None:
    """The columns of a file by its head alone; None: it holds no record.

    Raises:
        Unreadable: its head is not of this format.
    """
    if format == "parquet":
        with file.decoding():
            return pq.ParquetFile(pa.PythonFile(file, mode="r")).schema_arrow
    if format == "text":
        return pa.schema([pa.field(TEXT_COLUMN, pa.string())])
    lines = (line for _, chunk in _lines(file) for line in chunk)
    if format == "csv":
        header = csv_header(CsvLines(lines))
        return pa.schema([pa.field(name, pa.string()) for name in header]) if header else None
    return _peek_jsonl(lines)


def _peek_jsonl(lines: Iterator[bytes]) -> pa.Schema | None:
    seen: dict[str, bool | None] = {}  # column -> all fit int64; None: only nulls so far
    some = False
    error: str | None = None
    for _, line in zip(range(_PEEK_LINES), lines, strict=False):
        some = some or bool(line.strip())
        record, error = _decode(line) if line.strip() else (None, error)
        for name, value in (record or {}).items():
            if value is not None:
                seen[name] = seen.get(name) is not False and type(value) is int and value in INT64
            seen.setdefault(name, None)
    if some and not seen:
        raise Unreadable(f"none of the first lines is a JSON object: {error}")
    types = [(name, pa.int64() if fit else pa.string()) for name, fit in seen.items()]
    return pa.schema(types) if seen else None


def read(
    file: SourceFile, format: str, columns: Columns, part: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """The rows of a file in bounded batches; a broken part is a batch of `broken`.

    Args:
        file: Open at its start.
        format: parquet, jsonl, csv or text.
        columns: What to read.
        part: (i, n) reads the i-th of n shares of a Parquet file's row groups.

    Raises:
        StageError: the store failed; the file may be sound.
    """
    readers = {"jsonl": _read_jsonl, "csv": _read_csv, "text": _read_text}
    try:
        if format == "parquet":
            yield from _read_parquet(file, columns, part)
        else:
            yield from readers[format](file, columns)
    except Unreadable as error:
        yield broken(str(error), columns)


def _read_parquet(file: SourceFile, columns: Columns, part: tuple[int, int]) -> Iterator[Batch]:
    index, shares = part
    try:
        with file.decoding():
            parquet = pq.ParquetFile(
                pa.PythonFile(file, mode="r"),
                buffer_size=_BUFFER_BYTES,
                pre_buffer=False,
                page_checksum_verification=True,
            )
        _check_columns(columns, parquet.schema_arrow.names)
    except Unreadable:
        if index == 0:  # said once a file, not once a share
            raise
        return
    groups = parquet.metadata.num_row_groups
    sizes = [parquet.metadata.row_group(g).num_rows for g in range(groups)]
    for group in range(groups * index // shares, groups * (index + 1) // shares):
        try:
            yield from _row_group(file, parquet, group, sum(sizes[:group]), columns)
        except Unreadable as error:  # the other row groups may be sound
            yield broken(f"row group {group}: {error}", columns)


def _check_columns(columns: Columns, have: list[str]) -> None:
    """That a file has each column, and once."""
    if missing := [name for name in columns.names if name not in have]:
        raise Unreadable(f"no column {', '.join(missing)}; it has {', '.join(have)}")
    if twice := [name for name in columns.names if have.count(name) > 1]:
        raise Unreadable(f"several columns of the name {', '.join(twice)}")


def _row_group(
    file: SourceFile, parquet: pq.ParquetFile, group: int, row: int, columns: Columns
) -> Iterator[Batch]:
    meta = parquet.metadata.row_group(group)
    width = max(1, meta.total_byte_size // max(1, meta.num_rows))
    batches = parquet.iter_batches(
        batch_size=max(1, min(_BATCH_ROWS, _BATCH_BYTES // width)),
        row_groups=[group],
        columns=columns.names,
        use_threads=False,
    )
    while True:
        with file.decoding():
            batch = next(batches, None)
        if batch is None:
            return
        refusals = Refusals(batch.num_rows)
        text = utf8(batch.column(columns.text), refusals, "not_a_string")
        ids = id_column(batch.column(columns.id), columns.id_type, refusals) if columns.id else None
        extra = [as_strings(batch.column(name), refusals) for name in columns.extra]
        rows = pa.array(range(row, row + batch.num_rows), pa.int64())
        row += batch.num_rows
        yield Batch(rows, ids, text, extra, refusals)


def _read_jsonl(file: SourceFile, columns: Columns) -> Iterator[Batch]:
    needed = [columns.id, columns.text] if columns.id else [columns.text]
    for first, lines in _lines(file):
        kept = [(first + i, line) for i, line in enumerate(lines) if line.strip()]
        records, errors = [], []
        for _, line in kept:
            record, error = _decode(line)
            lacking = [name for name in needed if record is not None and name not in record]
            records.append(record or {})
            errors.append(f"the line has no field {lacking[0]!r}" if lacking else error)
        refusals = Refusals(len(kept))
        refusals.mark([e is not None for e in errors], "undecodable", pa.array(errors, pa.string()))
        values = [record.get(columns.text) for record in records]
        odd = [v is not None and not isinstance(v, str) for v in values]
        refusals.mark(odd, "not_a_string", "the text is a JSON value of another type")
        text = strings([v if isinstance(v, str) else None for v in values], refusals)
        ids = None
        if columns.id:
            ids = json_ids([r.get(columns.id) for r in records], columns.id_type, refusals)
        extra = [strings([_said(r.get(n)) for r in records], refusals) for n in columns.extra]
        rows = pa.array([row for row, _ in kept], pa.int64())
        yield Batch(rows, ids, text, extra, refusals)


def _decode(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """The JSON object of a line, or what is wrong with it."""
    try:
        # decoded here because json.loads(bytes) lets broken UTF-8 and UTF-16 pass
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return None, str(error)
    if not isinstance(record, dict):
        return None, f"the line is a JSON {type(record).__name__}, not an object"
    return record, None


def _said(value: Any) -> str | None:
    """A JSON value as a string: strings as they are, others as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _read_csv(file: SourceFile, columns: Columns) -> Iterator[Batch]:
    lines = CsvLines(line for _, chunk in _lines(file) for line in chunk)
    header = csv_header(lines)
    if header is None:
        return
    _check_columns(columns, header)
    row, size = 0, 0
    batch: list[list[str] | str] = []
    for record in csv_records(lines):
        batch.append(record)
        size += sum(map(len, record))
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_ROWS:
            yield _csv_batch(batch, row, header, columns)
            row, batch, size = row + len(batch), [], 0
    if batch:
        yield _csv_batch(batch, row, header, columns)
    if lines.problem is not None:
        raise lines.problem


def _csv_batch(
    records: list[list[str] | str], first: int, header: list[str], columns: Columns
) -> Batch:
    refusals = Refusals(len(records))
    sound = [r if not isinstance(r, str) and len(r) == len(header) else None for r in records]
    errors = [
        r if isinstance(r, str) else f"{len(r)} fields under {len(header)} headings"
        for r in records
    ]
    refusals.mark([r is None for r in sound], "undecodable", pa.array(errors, pa.string()))

    def cells(name: str) -> list[str | None]:
        at = header.index(name)
        return [None if fields is None else fields[at] for fields in sound]

    text = strings(cells(columns.text), refusals)
    # CSV has no null: an empty cell is one, but for the text
    ids = strings([c or None for c in cells(columns.id)], refusals) if columns.id else None
    extra = [strings([c or None for c in cells(n)], refusals) for n in columns.extra]
    rows = pa.array(range(first, first + len(records)), pa.int64())
    return Batch(rows, ids, text, extra, refusals)


def _read_text(file: SourceFile, columns: Columns) -> Iterator[Batch]:
    for first, lines in _lines(file):
        refusals = Refusals(len(lines))
        stripped = pa.array([line.removesuffix(b"\r") for line in lines], pa.binary())
        text = utf8(stripped, refusals, "undecodable")
        rows = pa.array(range(first, first + len(lines)), pa.int64())
        yield Batch(rows, None, text, [], refusals)


def _lines(file: SourceFile) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first line, lines without their newline), a few MiB at a time."""
    suffix = next((s for s in COMPRESSIONS if file.uri.lower().endswith(s)), None)
    stream: Any = file
    if suffix:
        pieces = pa.BufferedInputStream(pa.PythonFile(file, mode="r"), _BUFFER_BYTES)
        stream = pa.CompressedInputStream(pieces, COMPRESSIONS[suffix])
    number, rest, start = 0, b"", True
    while True:
        with file.decoding():
            chunk = stream.read(_BATCH_BYTES)
        if start:
            chunk, start = chunk.removeprefix(_BOM), False
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop() if chunk else b""
        if not chunk and not lines[-1]:
            lines.pop()  # the file ends in a newline
        if lines:
            yield number, lines
        number += len(lines)
        if not chunk:
            return
        if len(rest) > LINE_BYTES:
            raise Unreadable(f"line {number} is longer than {LINE_BYTES} bytes")
