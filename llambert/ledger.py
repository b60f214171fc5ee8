"""Which files of the corpus are labelled, and in which state each was when it was."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llambert.records import Source
from llambert.storage import Folder, is_remote, replacing

LEDGER = "ledger.parquet"
_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("version", pa.string()),
        pa.field("hash", pa.string()),  # of the content; null where it costs too much
        pa.field("night", pa.int32()),
    ]
)
_NIGHT = b"night"  # key in the file's metadata: the last night that is in it
_GROUP_ROWS = 65536
_HASHED_BYTES = 64 * 2**20  # a larger file is known by its size and version alone
_READERS = 8  # files hashed at once


@dataclass(frozen=True)
class Entry:
    """One file, as it was when it was labelled."""

    uri: str
    size: int  # bytes
    version: str
    hash: str | None
    night: int


@dataclass(frozen=True)
class Changes:
    """How the files of a corpus compare with the ledger."""

    new: list[Source]
    changed: list[Source]
    touched: list[Entry]  # another version of the same content, with that version
    unchanged: int  # touched ones included


class Ledger:
    """The file `ledger.parquet` in a folder; read and written in pieces.

    It has a row for every file that ever was in the corpus, so it is never in memory as a whole:
    what a night needs is as large as the list of the corpus' files now.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def last_night(self) -> int:
        """The number of the last night whose files are in the ledger; 0 where there is none."""
        if not self._folder.exists(LEDGER):
            return 0
        with self._folder.fs.open(self._folder.path(LEDGER), "rb") as file:
            return int(pq.read_schema(file).metadata[_NIGHT])

    def changes(self, sources: Iterable[Source]) -> Changes:
        """Compare the corpus' files with the ledger.

        A local file of the same size and another modification time is hashed, if it is small.
        """
        now = {source.uri: source for source in sources}
        known = {entry.uri: entry for entry in self._known(list(now))}
        changed: list[Source] = []
        doubtful: list[Source] = []
        touched: list[Entry] = []
        for uri, entry in known.items():
            if entry.size != now[uri].size:
                changed.append(now[uri])
            elif entry.version != now[uri].version:
                (doubtful if entry.hash else changed).append(now[uri])
        for source, entry in zip(doubtful, entries(doubtful, 0), strict=True):
            before = known[source.uri]
            if entry.hash == before.hash:
                touched.append(replace(entry, night=before.night))
            else:
                changed.append(source)
        new = [source for uri, source in now.items() if uri not in known]
        return Changes(new, changed, touched, len(known) - len(changed))

    def write(self, added: list[Entry], night: int) -> None:
        """Add these files, in the place of what was known of them, in one step.

        Args:
            night: The last night that the ledger now has.
        """
        uris = pa.array([entry.uri for entry in added], pa.string())
        self._write(lambda table: pc.is_in(table["uri"], value_set=uris), added, night)

    def forget(self, night: int) -> None:
        """Take out the files that this night labelled last, so that they are new again."""
        if last := self.last_night():
            self._write(lambda table: pc.equal(table["night"], night), [], last)

    def knows(self, folder: str) -> bool:
        """Whether a file that was labelled lies in `folder` (its URI and a slash), or is that."""
        for table in self._tables():
            inside = pc.starts_with(table["uri"], folder)
            if pc.any(pc.or_(inside, pc.equal(table["uri"], folder.rstrip("/")))).as_py():
                return True
        return False

    def _write(self, out: Callable[[pa.Table], Any], added: list[Entry], last: int) -> None:
        """Write the ledger anew, without the rows for which `out` is true."""
        schema = _SCHEMA.with_metadata({_NIGHT: str(last)})
        with replacing(self._folder, LEDGER, schema) as writer:
            for table in self._tables():
                kept = table.filter(pc.invert(out(table)))
                writer.write_table(kept.replace_schema_metadata(schema.metadata))
            for start in range(0, len(added), _GROUP_ROWS):
                columns = zip(*map(astuple, added[start : start + _GROUP_ROWS]), strict=True)
                arrays = [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    def _known(self, uris: list[str]) -> Iterator[Entry]:
        wanted = pa.array(uris, pa.string())
        for table in self._tables():
            found = table.filter(pc.is_in(table["uri"], value_set=wanted))
            yield from (Entry(**row) for row in found.to_pylist())

    def _tables(self) -> Iterator[pa.Table]:
        if not self._folder.exists(LEDGER):
            return
        with self._folder.fs.open(self._folder.path(LEDGER), "rb") as file:
            # by default all of the file is read ahead
            for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(_GROUP_ROWS):
                yield pa.Table.from_batches([batch])


def entries(sources: Iterable[Source], night: int) -> list[Entry]:
    """The files as the ledger's rows, those that are local and small with a hash of their content.

    Call it before the files are read: what changes afterwards then differs from the ledger.
    """
    files = list(sources)
    with ThreadPoolExecutor(_READERS) as readers:
        hashes = list(readers.map(_hash, files))
    return [
        Entry(source.uri, source.size, source.version, digest, night)
        for source, digest in zip(files, hashes, strict=True)
    ]


def _hash(source: Source) -> str | None:
    if is_remote(source.uri) or source.size > _HASHED_BYTES:
        return None
    try:
        with open(source.uri, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # gone, or not to be read: for those who read its records to say
        return None
