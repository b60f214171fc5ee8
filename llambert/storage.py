"""URIs, folders, atomic writes, manifests and fingerprints, on any file system fsspec knows."""

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from glob import has_magic
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from llambert.errors import NoFilesError, UserError

MANIFEST = "manifest.json"
_READERS = 16  # footers read at once: an object store answers each in tens of milliseconds
# What tells an object's content, the surest first. Google's ETag changes with the metadata too; an
# object that was composed there of parts has no MD5, only the number of its generation.
_VERSIONS = ("ETag", "md5Hash", "generation", "etag", "mtime")
# Where the errors of the object stores' drivers are defined, those that are no OSError.
_DRIVERS = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google"}


def is_remote(uri: str) -> bool:
    """Whether `uri` names an object store or another machine rather than a local path."""
    return "://" in uri and not uri.startswith("file://")


def public(text: str) -> str:
    """`text`, a URI or a message with some, without the users and passwords that they hold."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


def join(uri: str, *parts: str) -> str:
    """`uri` extended by `parts`, with single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of `uri` and the path on it.

    Raises:
        UserError: no such protocol, or its driver is not installed.
    """
    try:
        return fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"cannot open {uri!r}: {error}", "use a local path, s3://… or gs://…"
        ) from error


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same as a pyarrow file system, for Ray Data and its checkpoints."""
    fs, path = filesystem(uri)
    if not is_remote(uri):
        return pyarrow.fs.LocalFileSystem(), path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


@contextlib.contextmanager
def _reachable(uri: str) -> Iterator[None]:
    """Turn what the store of `uri` answers instead of data into a `UserError`.

    That something is not there stays `FileNotFoundError`: what it means is the caller's matter.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        driver = type(error).__module__.partition(".")[0] in _DRIVERS
        if not (driver or isinstance(error, OSError)):
            raise
        remedy = "check the path, and that you may read it"
        if is_remote(uri):
            remedy = (
                "check the bucket and the path, the credentials (from the environment or the "
                "instance role) and, where the store is not the provider's own, AWS_ENDPOINT_URL"
            )
        raise UserError(f"cannot read {uri!r}: {error}", remedy) from error


def fingerprint(value: Any) -> str:
    """12 hex digits of the SHA-256 of `value` as canonical JSON: equal values, equal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fingerprint_rows(table: pa.Table, *columns: str) -> str:
    """A fingerprint of rows, whatever their order."""
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return fingerprint(sorted([str(value) for value in row] for row in rows))


def _plain(value: Any) -> Any:
    """A set or a path as JSON; anything else may print itself differently in another process."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"no fingerprint of a {type(value).__name__}: give plain values")


def text_hash(text: str) -> int:
    """A signed 64-bit BLAKE2b hash of `text`, the same on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@dataclass
class Outcome:
    """What a stage's function returns.

    `counts` has `in`, `out` and `dropped` (reason -> records), with in = out + all dropped;
    `details` has the stage's own figures: tokens, rates, losses. `output` is a fingerprint of
    what was made, where equal inputs may make something else (an LLM's answers, weights) or
    different ones the same; else the fingerprint of the inputs stands for it.
    """

    counts: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    output: str | None = None


@dataclass
class Manifest:
    """What a finished folder holds and what made it; its file is written last."""

    stage: str
    fingerprint: str  # of the stage's settings and inputs: equal means nothing to do
    output: str  # of what the folder holds: stages downstream go by this
    counts: dict[str, Any] = field(default_factory=dict)  # in, out, dropped: {reason: n}, …
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)  # rates, tokens, figures of the stage
    inputs: dict[str, Any] = field(default_factory=dict)  # fingerprints of what was read
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # by name: to tell which one changed


class Folder:
    """A folder on any file system; cheap to make, nothing is touched until asked."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    def __reduce__(self):
        return type(self), (self.uri,)

    def __truediv__(self, name: str) -> "Folder":
        return Folder(join(self.uri, name))

    @cached_property
    def _located(self) -> tuple[fsspec.AbstractFileSystem, str]:
        return filesystem(self.uri)

    def path(self, name: str = "") -> str:
        """The path on the folder's file system."""
        return join(self._located[1], name) if name else self._located[1]

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return self._located[0]

    def exists(self, name: str = "") -> bool:
        with _reachable(join(self.uri, name) if name else self.uri):
            self.fs.invalidate_cache()
            return self.fs.exists(self.path(name))

    def create(self) -> None:
        """Make the folder; an object store has none to make, and s3fs would make the bucket."""
        if not is_remote(self.uri):
            self.fs.makedirs(self.path(), exist_ok=True)

    def files(self, suffix: str = "") -> list[str]:
        """Names of the files directly in the folder that end in `suffix`, sorted.

        Names that start with '.' are left out: a killed writer's temporary files.
        """
        self.fs.invalidate_cache()
        if not self.fs.exists(self.path()):
            return []
        entries = self.fs.ls(self.path(), detail=True)
        names = [os.path.basename(e["name"]) for e in entries if e["type"] == "file"]
        return sorted(n for n in names if n.endswith(suffix) and not n.startswith(".") and n)

    def folders(self) -> list[str]:
        """Names of the folders directly in the folder, sorted."""
        self.fs.invalidate_cache()
        if not self.fs.exists(self.path()):
            return []
        entries = self.fs.ls(self.path(), detail=True)
        return sorted(
            os.path.basename(e["name"].rstrip("/")) for e in entries if e["type"] == "directory"
        )

    def remove(self) -> None:
        """Delete the folder and all in it; no error where there is none."""
        if self.exists():
            self.fs.rm(self.path(), recursive=True)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees either all of it or none."""
        self.create()
        if is_remote(self.uri):  # a put on an object store is atomic
            self.fs.pipe_file(self.path(name), data)
            return
        temporary = self.path(f".{name}.{uuid.uuid4().hex}")
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path(name))

    def read_bytes(self, name: str) -> bytes:
        self.fs.invalidate_cache()
        return self.fs.cat_file(self.path(name))

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        self.write_bytes(name, text.encode() + b"\n")

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_table(self, name: str, table: pa.Table, row_group_size: int = 65536) -> None:
        """Write a Parquet file atomically."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=row_group_size)
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def read_table(self, name: str = "", columns: list[str] | None = None) -> pa.Table:
        """The Parquet file `name`, or every Parquet file directly in the folder, as one table."""
        names = [name] if name else self.files(".parquet")
        tables = []
        for each in names:
            with self.fs.open(self.path(each), "rb") as file:
                tables.append(pq.read_table(file, columns=columns))
        return pa.concat_tables(tables, promote_options="default") if tables else pa.table({})

    def row_count(self, skip: str | None = None) -> int:
        """Rows of the Parquet files directly in the folder, from their footers alone.

        Args:
            skip: names that end so are not counted.
        """

        def rows(name: str) -> int:
            with self.fs.open(self.path(name), "rb") as file:
                return pq.ParquetFile(file).metadata.num_rows

        names = [name for name in self.files(".parquet") if not (skip and name.endswith(skip))]
        with ThreadPoolExecutor(_READERS) as readers:
            return sum(readers.map(rows, names))

    def manifest(self) -> Manifest | None:
        """The folder's manifest, or None where the folder is not finished.

        A manifest with other fields is another version's, and the folder not finished for this.

        Raises:
            UserError: the store refuses or does not answer, or the folder is a file.
        """
        try:
            with _reachable(self.uri):
                return Manifest(**self.read_json(MANIFEST))
        except (FileNotFoundError, TypeError):
            return None

    def finish(self, manifest: Manifest) -> None:
        """Declare the folder finished."""
        self.write_json(MANIFEST, asdict(manifest))

    def unfinish(self) -> None:
        """Declare the folder not finished, before its content changes."""
        if self.exists(MANIFEST):
            self.fs.rm_file(self.path(MANIFEST))


@contextlib.contextmanager
def replacing(folder: Folder, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a Parquet file piece by piece; it takes its name when whole, or not at all."""
    folder.create()
    temporary = folder.path(f".{name}.{uuid.uuid4().hex}")
    try:
        with folder.fs.open(temporary, "wb") as file:
            with pq.ParquetWriter(file, schema) as writer:
                yield writer
            if not is_remote(folder.uri):
                file.flush()
                os.fsync(file.fileno())
        folder.fs.mv(temporary, folder.path(name))
    except BaseException:
        if folder.fs.exists(temporary):
            folder.fs.rm_file(temporary)
        raise


def list_files(uris: Iterable[str], suffixes: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Every file under `uris` (files, folders, globs): uri, size in bytes, version; sorted by uri.

    `version` is the store's hash, ETag or the local modification time: it changes with the content.
    Names that start with '.' or '_' are skipped, as Parquet writers expect.

    Raises:
        NoFilesError: a path that does not exist, or holds nothing.
        UserError: one that may not be read, or holds no file with one of `suffixes`; a store that
            does not answer.
    """
    found: dict[str, dict[str, Any]] = {}
    for uri in uris:
        fs, path = filesystem(uri)
        with _reachable(uri):
            entries = _entries(fs, path)
        if not entries:
            raise NoFilesError(
                f"no such path, or no file in it: {uri!r}",
                "check the path, or the access to its store",
            )
        named = [e for e in entries if not suffixes or e["name"].lower().endswith(suffixes)]
        if not named:
            raise UserError(
                f"{uri!r} holds no file that ends in {' or '.join(suffixes)}",
                "name the folder that holds them, or set the format",
            )
        for entry in named:
            full = fs.unstrip_protocol(entry["name"]) if is_remote(uri) else entry["name"]
            version = next((entry[name] for name in _VERSIONS if entry.get(name)), "")
            found[full] = {"uri": full, "size": entry["size"] or 0, "version": str(version)}
    return [found[uri] for uri in sorted(found)]


def _entries(fs: fsspec.AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    fs.invalidate_cache()
    if fs.isfile(path):
        return [fs.info(path)]
    if fs.exists(path):  # before the glob: a name may hold brackets
        inside = _find(fs, path)
        depth = len(path.rstrip("/").split("/"))
    else:
        if not has_magic(path):
            return []
        inside = []
        for name, entry in fs.glob(path, detail=True).items():
            inside.extend(_find(fs, name) if entry["type"] == "directory" else [entry])
        # the parts of the names up to the first wildcard are as the caller wrote them
        depth = next(i for i, part in enumerate(path.split("/")) if has_magic(part))
    return [entry for entry in inside if _is_data(entry["name"].split("/")[depth:])]


def _find(fs: fsspec.AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    if isinstance(fs, LocalFileSystem):  # its `find` passes over folders that may not be read

        def refuse(error: OSError) -> None:
            raise error

        for _, folders, _ in os.walk(path, onerror=refuse):
            folders[:] = [name for name in folders if _is_data([name])]
    return list(fs.find(path, detail=True).values())


def _is_data(parts: list[str]) -> bool:
    """Whether no part of a name is hidden; the key of an object store's folder mark ends in ''."""
    return bool(parts[-1]) and not any(part.startswith((".", "_")) for part in parts)
