"""A corpus as a stream of records: what its files are, and every row either good or refused."""

import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from llambert import formats
from llambert.columns import is_scalar, is_text
from llambert.errors import StageError, UserError
from llambert.formats import Batch, Columns, SourceFile
from llambert.schema import RECORD, with_id_type
from llambert.section import Location, Section
from llambert.storage import Folder, filesystem, is_remote, list_files

# In the corpus stage's folder, the rows to refuse; sorted by source in runs of small row groups
DUPLICATES = "duplicates.parquet"
DUPLICATE = pa.schema([pa.field("source", pa.string()), pa.field("row", pa.int64())])

_PEEK_FILES = 500  # the most files tried, from first to last, before a corpus counts as unreadable


class CorpusConfig(Section):
    """Where the records are and which columns they have."""

    path: Location | list[Location] = Field(
        description="Files, folders or globs: local paths, s3://… or gs://…"
    )
    format: Literal["parquet", "jsonl", "csv", "text"] | None = Field(
        None,
        description="Format of the files; by default told from their names. If given, every file "
        "is read as this format. In a text file a line is a record.",
    )
    id: str | None = Field(
        None,
        description="Column of unique ids (integers stay integers, all else is taken as strings; "
        "ids in CSV are strings); by default an id is made of the file's path below "
        "`path` and the row's number.",
    )
    text: str = Field("text", description="Column of the texts.")

    @field_validator("path", mode="before")
    @classmethod
    def _names_a_path(cls, path: Any) -> Any:
        if path in ("", []) or (isinstance(path, list) and "" in path):
            raise ValueError(f"the path {path!r} is empty")
        return path

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path


class Fields(NamedTuple):
    """What a run file calls the fields that say how a table is read; for messages."""

    path: str
    id: str
    text: str
    extra: str = ""


_CORPUS = Fields("corpus.path", "corpus.id", "corpus.text")


@dataclass(frozen=True)
class Source:
    """One file of a corpus."""

    uri: str
    size: int  # bytes
    version: str  # changes with the content
    name: str  # its path below the corpus path: the stem of made ids


@dataclass(frozen=True)
class Corpus:
    """A corpus found sound enough to read."""

    config: CorpusConfig
    format: str
    sources: tuple[Source, ...]  # sorted by uri
    id_type: pa.DataType  # int64 or string
    extra: tuple[str, ...] = ()  # further columns, read as strings

    @property
    def schema(self) -> pa.Schema:
        """RECORD with the ids' type, `detail` (the reader's message, or null), further columns."""
        added = [pa.field(name, pa.string()) for name in ("detail", *self.extra)]
        return pa.schema([*with_id_type(RECORD, self.id_type), *added])

    @property
    def makes_ids(self) -> bool:
        return self.config.id is None

    @property
    def bytes(self) -> int:
        return sum(source.size for source in self.sources)

    def without_sources(self) -> "Corpus":
        """What a worker needs to read any of the files; small to send."""
        return replace(self, sources=())


def named_files(paths: Iterable[str], field: str) -> list[dict[str, Any]]:
    """`storage.list_files` of what `field` of the run file names.

    Raises:
        NoFilesError: a path that does not exist or holds no file.
        UserError: one that may not be read.
    """
    try:
        return list_files(paths)
    except UserError as error:
        raise type(error)(f"{field}: {error.message}", error.remedy) from error


def list_sources(
    config: CorpusConfig, without: Collection[str] = (), fields: Fields = _CORPUS
) -> list[Source]:
    """The files of a corpus, sorted by uri; those of its paths `without` are left out.

    Raises:
        UserError: a path that does not exist or holds no file.
    """
    found = named_files((path for path in config.paths if path not in without), fields.path)
    base = common_folder(config.paths, {entry["uri"] for entry in found})
    return [Source(**entry, name=entry["uri"].removeprefix(base)) for entry in found]


def common_folder(paths: list[str], files: Collection[str] = ()) -> str:
    """The deepest folder that holds all of `paths`, with its slash: made ids are relative to it.

    It hangs on the configured paths alone, so that ids stay when files are added.
    """
    folders = []
    for path in paths:
        fs, plain = filesystem(path)
        parts = (fs.unstrip_protocol(plain) if is_remote(path) else plain).rstrip("/").split("/")
        wild = [i for i, part in enumerate(parts) if any(c in part for c in "*?[")]
        if wild:
            parts = parts[: wild[0]]
        elif "/".join(parts) in files:
            parts = parts[:-1]
        folders.append(parts)
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    common = [parts[0] for parts in same]
    return "/".join(common) + "/" if common else ""


def open_corpus(
    config: CorpusConfig,
    extra: Iterable[str] = (),
    without: Collection[str] = (),
    ids: str | None = None,
    fields: Fields = _CORPUS,
) -> Corpus:
    """Find the files and look at the head of one that can be read.

    Args:
        config: Where and what.
        extra: Further columns to read, as strings: a label, say.
        without: Those of its paths that are left out.
        ids: The type of the ids, 'int64' or 'string', where the corpus was read before: then no
            file is looked at, and one that cannot be used is refused when it is read.
        fields: What the run file calls the fields of `config`.

    Raises:
        UserError: no such path, no file, formats mixed or unknown, no readable file, a column
            that does not exist or cannot be used.
    """
    sources = list_sources(config, without, fields)
    format = config.format or _format_of(sources, fields)
    if format == "text" and config.id:
        raise UserError(
            f"a text file has no column {config.id!r} for ids",
            f"leave {fields.id} out: ids are made",
        )
    if ids is not None:
        return Corpus(config, format, tuple(sources), pa.type_for_alias(ids), tuple(extra))
    source, schema = _first_readable(sources, format, config.id, fields)
    wanted = {config.text if format != "text" else formats.TEXT_COLUMN: fields.text}
    wanted |= dict.fromkeys(extra, fields.extra)
    wanted |= {config.id: fields.id} if config.id else {}
    missing = [name for name in wanted if name not in schema.names]
    if missing:
        raise UserError(
            f"{source.uri!r} has no column {missing[0]!r}",
            f"its columns are: {', '.join(schema.names)}; name one in {wanted[missing[0]]}",
        )
    if twice := [name for name in wanted if schema.names.count(name) > 1]:
        raise UserError(
            f"{source.uri!r} has several columns of the name {twice[0]!r}",
            "rename or leave out all but one: which is meant cannot be told",
        )
    if format == "parquet":
        _check_types(config, source, schema, fields)
    id_type = _id_type(schema.field(config.id).type) if config.id else pa.string()
    return Corpus(config, format, tuple(sources), id_type, tuple(extra))


def _format_of(sources: list[Source], fields: Fields) -> str:
    """The one format that the names of all files tell."""
    told: dict[str, str] = {}  # format -> first file
    for source in sources:
        stem, extension = os.path.splitext(source.uri.lower())
        if extension in formats.COMPRESSIONS:
            extension = os.path.splitext(stem)[1]
        if extension not in formats.EXTENSIONS:
            raise UserError(
                f"the name of {source.uri!r} does not tell its format",
                f"set `format`, or have {fields.path} name files that end in "
                f"{', '.join(formats.EXTENSIONS)}",
            )
        told.setdefault(formats.EXTENSIONS[extension], source.uri)
    if len(told) > 1:
        seen = ", ".join(f"{format} ({uri})" for format, uri in told.items())
        raise UserError(f"{fields.path} mixes formats: {seen}", "give a path or glob of one format")
    return next(iter(told))


def _first_readable(
    sources: list[Source], format: str, id: str | None, fields: Fields
) -> tuple[Source, pa.Schema]:
    """The first file that tells the columns and, where another does, the type of the ids."""
    problems: list[str] = []
    untyped: list[tuple[Source, pa.Schema]] = []  # each id is null: pandas writes no type then
    for source in sources[:: -(-len(sources) // _PEEK_FILES)]:
        try:
            with _opened(source) as file:
                schema = formats.peek(file, format)
        except formats.Unreadable as error:
            problems.append(f"{source.uri!r}: {error}")
            continue
        except StageError as error:  # before any work is done, access is the user's to mend
            if isinstance(error.__cause__, MemoryError):
                raise
            raise UserError(error.message, error.remedy) from error
        if schema is None:
            problems.append(f"{source.uri!r}: holds no record")
        elif schema.names.count(id) == 1 and pa.types.is_null(schema.field(id).type):
            untyped.append((source, schema))
        else:
            return source, schema
    if untyped:
        return untyped[0]
    raise UserError(
        f"{fields.path}: none of {len(problems)} files can be read as {format}; {problems[0]}",
        "check the path and the format",
    )


def _check_types(config: CorpusConfig, source: Source, schema: pa.Schema, fields: Fields) -> None:
    """Parquet knows its types: a column that can give no text or id at all is the user's slip."""
    text = schema.field(config.text).type
    if not is_text(text):
        strings = [field.name for field in schema if is_text(field.type)]
        raise UserError(
            f"the column {config.text!r} of {source.uri!r} is of type {text}, not string",
            f"name one of strings in {fields.text}: {', '.join(strings) or 'there is none'}",
        )
    id_type = schema.field(config.id).type if config.id else pa.string()
    if not (is_scalar(id_type) or pa.types.is_null(id_type)):
        raise UserError(
            f"the id column {config.id!r} of {source.uri!r} is of type {id_type}, which is no id",
            f"name a column of integers or strings in {fields.id}",
        )


def _id_type(kind: pa.DataType) -> pa.DataType:
    # uint64 does not fit int64, so its values become strings
    fits = pa.types.is_integer(kind) and kind != pa.uint64()
    return pa.int64() if fits else pa.string()


def _opened(source: Source) -> SourceFile:
    try:
        return SourceFile(source.uri)
    except UserError:
        raise
    except Exception as error:  # stores' drivers raise errors of many kinds
        raise StageError(
            f"cannot open {source.uri!r}: {error}", "check the file and the access to its store"
        ) from error


def read_source(
    corpus: Corpus,
    source: Source,
    part: tuple[int, int] = (0, 1),
    duplicates: pa.Array | None = None,
) -> Iterator[pa.Table]:
    """The records of one file, good and refused, as tables of a few MiB of `corpus.schema`.

    Args:
        corpus: What to read; its own `sources` are not looked at.
        source: The file.
        part: (i, n) reads the i-th of n shares of a Parquet file.
        duplicates: Rows (int64) of this file to refuse as `duplicate_id`.

    Raises:
        StageError: the store failed; what is wrong within the file is in the stream instead.
    """
    for table, _ in read_positions(corpus, source, part, duplicates):
        yield table


def read_positions(
    corpus: Corpus,
    source: Source,
    part: tuple[int, int] = (0, 1),
    duplicates: pa.Array | None = None,
) -> Iterator[tuple[pa.Table, int]]:
    """The same, each with how many bytes of the file (not Parquet) have been read up to its end.

    Readers are a buffer ahead, of a few MiB.
    """
    config = corpus.config
    text = config.text if corpus.format != "text" else formats.TEXT_COLUMN
    columns = Columns(config.id, text, corpus.extra, corpus.id_type)
    with _opened(source) as file:
        for batch in formats.read(file, corpus.format, columns, part):
            yield _records(corpus, source, batch, duplicates), file.tell()


def _records(corpus: Corpus, source: Source, batch: Batch, duplicates: pa.Array | None) -> pa.Table:
    rows, text, refusals = batch.rows, batch.text, batch.refusals
    refusals.mark(pc.is_null(text), "null_text")
    refusals.mark(pc.or_(pc.equal(text, ""), pc.utf8_is_space(text)), "empty_text")
    ids = batch.id
    if ids is None:
        made = pc.binary_join_element_wise(source.name, rows.cast(pa.string()), "#")
        ids = pc.if_else(pc.less(rows, 0), pa.scalar(None, pa.string()), made)
    else:
        refusals.mark(pc.is_null(ids), "null_id")
    if duplicates is not None:
        refusals.mark(pc.is_in(rows, value_set=duplicates), "duplicate_id")
    uris = pa.repeat(pa.scalar(source.uri, pa.string()), len(rows))
    arrays = [ids, text, uris, rows, refusals.reason, refusals.detail, *batch.extra]
    return pa.Table.from_arrays(arrays, schema=corpus.schema)


def load_duplicates(inventory: Folder, uris: list[str]) -> dict[str, pa.Array]:
    """The rows of these files that the corpus stage found to be duplicates: uri -> rows.

    Args:
        inventory: The folder that the corpus stage wrote.
        uris: The files asked for; the others' rows are not loaded, nor row groups without them.
    """
    with inventory.fs.open(inventory.path(DUPLICATES), "rb") as file:
        table = pq.read_table(file, filters=pc.field("source").isin(uris))
    grouped = table.group_by("source").aggregate([("row", "list")])
    return {
        uri.as_py(): rows.values
        for uri, rows in zip(grouped["source"], grouped["row_list"], strict=True)
    }


def read_all(corpus: Corpus) -> tuple[pa.Table, pa.Table]:
    """A small set as two tables of `corpus.schema`: good records and refused ones.

    For gold files and recorded answers; a corpus is read by `datasource.corpus_dataset`. Of
    records with one id the first, by file and row, is good.
    """
    tables = [table for source in corpus.sources for table in read_source(corpus, source)]
    whole = pa.concat_tables([corpus.schema.empty_table(), *tables])
    good = whole.filter(pc.is_null(whole["refused"]))
    refused = whole.filter(pc.is_valid(whole["refused"]))
    place = pa.array(np.arange(good.num_rows))
    firsts = good.append_column("_place", place).group_by("id").aggregate([("_place", "min")])
    first = pc.is_in(place, value_set=firsts["_place_min"])
    later = good.filter(pc.invert(first))
    later = later.set_column(
        later.schema.get_field_index("refused"),
        later.schema.field("refused"),
        pa.repeat(pa.scalar("duplicate_id"), later.num_rows),
    )
    return good.filter(first), pa.concat_tables([refused, later])
