"""Folders, atomic writes, manifests and fingerprints on the local file system."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from llambert.errors import UserError
from llambert.storage import (
    Folder,
    Manifest,
    arrow_filesystem,
    filesystem,
    fingerprint,
    is_remote,
    join,
    list_files,
    text_hash,
)
from llambert.workdir import ARTEFACTS, Workdir

ROWS = pa.table({"id": ["a", "b", "c"], "text": ["one", "two", None]})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "folder"))


def touch(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def names(uri: object, suffixes: tuple[str, ...] = ()) -> list[str]:
    return [Path(entry["uri"]).name for entry in list_files([str(uri)], suffixes)]


def test_uris() -> None:
    assert join("s3://bucket/a/", "/b/", "c") == "s3://bucket/a/b/c"
    assert is_remote("s3://bucket") and is_remote("gs://bucket")
    assert not is_remote("/data") and not is_remote("data") and not is_remote("file:///data")
    with pytest.raises(UserError, match="nosuch://x"):
        filesystem("nosuch://x")


def test_a_folder_is_not_there_until_it_is_written_to(folder: Folder) -> None:
    assert not folder.exists() and folder.files() == [] and folder.folders() == []
    assert folder.manifest() is None and folder.row_count() == 0
    folder.remove()  # nothing to remove is no error
    assert not Path(folder.uri).exists()
    (folder / "inner").write_json("a.json", {"größe": 1})
    assert folder.folders() == ["inner"] and folder.files() == []
    assert (folder / "inner").read_json("a.json") == {"größe": 1}
    folder.remove()
    assert not folder.exists()


def test_tables(folder: Folder) -> None:
    folder.write_table("b.parquet", ROWS.slice(2))
    folder.write_table("a.parquet", ROWS.slice(0, 2))
    assert folder.files(".parquet") == ["a.parquet", "b.parquet"]
    assert folder.row_count() == 3
    assert folder.row_count(skip="b.parquet") == 2
    assert folder.read_table().equals(ROWS)
    assert folder.read_table(columns=["id"]).column_names == ["id"]
    assert folder.read_table("b.parquet").to_pylist() == [{"id": "c", "text": None}]


def test_arrow_reads_what_a_folder_wrote(folder: Folder) -> None:
    folder.write_table("a.parquet", ROWS)
    fs, path = arrow_filesystem(folder.uri)
    assert ds.dataset(path, filesystem=fs).to_table().equals(ROWS)


def test_a_manifest_says_that_a_folder_is_finished(folder: Folder) -> None:
    manifest = Manifest(stage="sample", fingerprint="f" * 12, output="o", counts={"in": 3})
    folder.write_table("a.parquet", ROWS)
    assert folder.manifest() is None
    folder.finish(manifest)
    assert folder.manifest() == manifest
    folder.unfinish()
    folder.unfinish()
    assert folder.manifest() is None and folder.files() == ["a.parquet"]


def test_a_folder_travels_between_processes(folder: Folder) -> None:
    folder.write_json("a.json", 1)  # its file system is in use
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.uri == folder.uri and copy.read_json("a.json") == 1
    workdir = pickle.loads(pickle.dumps(Workdir("/runs/x")))
    assert workdir.model("combined", 3).uri == "/runs/x/models/combined/seed-3"


_WRITER = """
import sys
from llambert.storage import Folder
folder, content = Folder(sys.argv[1]), bytes(8 * 2**20)
print("ready", flush=True)
while True:
    for fill in b"ab":
        folder.write_bytes("data", content.replace(b"\\0", bytes([fill])))
"""


def test_a_killed_writer_leaves_a_whole_file(folder: Folder) -> None:
    """SIGKILL at odd moments of a write: the file is the old or the new one, never torn."""
    for attempt in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, folder.uri], stdout=subprocess.PIPE
        )
        assert writer.stdout and writer.stdout.readline() == b"ready\n"
        seen = set()
        deadline = time.monotonic() + 0.2 + 0.037 * attempt
        while time.monotonic() < deadline or not seen:
            if folder.exists("data"):
                data = folder.read_bytes("data")
                assert len(data) == 8 * 2**20 and len(set(data)) == 1
                seen.add(data[:1])
        os.kill(writer.pid, signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        data = folder.read_bytes("data")
        assert len(data) == 8 * 2**20 and len(set(data)) == 1
    assert folder.files() == ["data"]  # whatever a killed writer left is not listed


def test_a_failed_write_leaves_the_old_file(folder: Folder) -> None:
    folder.write_json("a.json", {"old": True})
    with pytest.raises(ValueError, match="Circular"):
        value: dict[str, object] = {}
        value["self"] = value
        folder.write_json("a.json", value)
    assert folder.read_json("a.json") == {"old": True}


def test_fingerprints_are_the_same_in_every_process() -> None:
    value = {"b": [1, 2.5, None, "ü"], "a": {"labels": {"yes", "no", "maybe"}, "path": Path("/x")}}
    code = (
        "from pathlib import PosixPath; from llambert.storage import fingerprint, text_hash\n"
        f"print(fingerprint({value!r}), text_hash('größe'))"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert answers == {f"{fingerprint(value)} {text_hash('größe')}\n"}
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    assert fingerprint("1") != fingerprint(1)
    with pytest.raises(TypeError, match="object"):  # its text holds an address
        fingerprint({"a": object()})


def test_text_hash_is_64_bits_of_any_string() -> None:
    hashes = {text_hash(text) for text in ("", "a", "b", "\ud800", "a" * 100_000)}
    assert len(hashes) == 5 and all(-(2**63) <= h < 2**63 for h in hashes)
    assert text_hash("a") == int.from_bytes(bytes.fromhex("40f89e395b66422f"), "big")


def test_list_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.parquet", "a/c.parquet", "a.PARQUET", "_SUCCESS", ".b.crc", "_tmp/d.parquet"):
        touch(tmp_path / "corpus" / name, "four")
    found = list_files([str(tmp_path / "corpus")], (".parquet",))
    assert [Path(f["uri"]).name for f in found] == ["a.PARQUET", "c.parquet", "b.parquet"]
    assert {f["size"] for f in found} == {4}
    assert found == list_files([f"file://{tmp_path}/corpus"], (".parquet",))


def test_list_files_under_a_hidden_folder(tmp_path: Path) -> None:
    """Named in full, a hidden folder is read; a pattern does not find it."""
    touch(tmp_path / "_data" / "a.csv")
    assert names(tmp_path / "_data") == ["a.csv"]
    with pytest.raises(UserError, match="no such path"):
        names(tmp_path / "*dat*")


def test_list_files_of_one_file_or_a_glob(tmp_path: Path) -> None:
    odd = touch(tmp_path / "day[1].csv")
    touch(tmp_path / "2024-01" / "a.csv")
    touch(tmp_path / "2024-02" / "b.csv")
    touch(tmp_path / "2024-02" / "_b.csv")
    assert names(odd) == ["day[1].csv"]  # a name, although it reads as a pattern
    assert names(tmp_path / "2024-*" / "*.csv") == ["a.csv", "b.csv"]
    assert names(tmp_path / "2024-*") == ["a.csv", "b.csv"]
    both = list_files([str(tmp_path / "2024-01"), str(tmp_path / "2024-*")])
    assert [Path(f["uri"]).name for f in both] == ["a.csv", "b.csv"]  # each file once


def test_the_version_of_a_file_changes_with_it(tmp_path: Path) -> None:
    file = touch(tmp_path / "a.csv", "one")
    first = list_files([str(file)])
    assert list_files([str(tmp_path)]) == first
    os.utime(file, ns=(0, 1_700_000_000_000_000_000))
    assert list_files([str(file)])[0]["version"] != first[0]["version"]


@pytest.mark.parametrize("name", ["absent", "absent/*.csv", "absent.csv"])
def test_list_files_of_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"no such path.*absent"):
        list_files([str(tmp_path / name)])


def test_list_files_without_the_wanted_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"\.parquet or \.pq"):
        list_files([str(tmp_path)], (".parquet", ".pq"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        list_files([str(tmp_path / "empty")], (".parquet",))


@pytest.fixture
def powerless() -> Iterator[Path]:
    """A folder that every user can enter, while this process is not the superuser."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        root = os.geteuid() == 0
        yield path
        if root:
            os.seteuid(0)
        for each in path.rglob("*"):
            each.chmod(0o755)


def test_a_folder_that_may_not_be_read_is_not_passed_over(powerless: Path) -> None:
    touch(powerless / "corpus" / "a.csv")
    closed = touch(powerless / "corpus" / "closed" / "b.csv").parent
    hidden = touch(powerless / "corpus" / ".closed" / "c.csv").parent
    hidden.chmod(0)
    assert names(powerless / "corpus") == ["a.csv", "b.csv"]
    closed.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    for uri in (powerless / "corpus", powerless / "corp*", closed):
        with pytest.raises(UserError, match="Permission denied") as caught:
            names(uri)
        assert str(uri) in str(caught.value)


def test_a_workdir_that_is_a_file(tmp_path: Path) -> None:
    file = touch(tmp_path / "out")
    with pytest.raises(UserError, match=r"cannot read .*out.*Not a directory"):
        Folder(str(file)).manifest()


_ASK = """
from llambert.errors import UserError
from llambert.storage import Folder, list_files
for uri, ask in {
    "s3://bucket/manifest": lambda uri: Folder(uri).manifest(),
    "s3://bucket/exists": lambda uri: Folder(uri).exists(),
    "s3://bucket/list": lambda uri: list_files([uri]),
    "s3://bucket/glob/*.csv": lambda uri: list_files([uri]),
}.items():
    try:
        ask(uri)
    except UserError as error:
        assert uri in error.message and "AWS_ENDPOINT_URL" in error.remedy, error
        print(type(error.__cause__).__name__)
"""


@pytest.mark.parametrize(
    ("credentials", "error"),
    [
        ({}, "NoCredentialsError"),
        (
            {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"},
            "EndpointConnectionError",
        ),
    ],
)
def test_a_store_that_does_not_answer(credentials: dict[str, str], error: str) -> None:
    with socket.socket() as reserved:  # bound and not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        environment = {name: v for name, v in os.environ.items() if not name.startswith("AWS_")} | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{reserved.getsockname()[1]}",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", _ASK],
            env=environment | credentials,
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.split() == [error] * 4


def test_json_is_readable_by_people(folder: Folder) -> None:
    folder.write_json("a.json", {"text": "Grüße"})
    assert "Grüße" in folder.read_bytes("a.json").decode()
    assert json.loads(folder.read_bytes("a.json")) == {"text": "Grüße"}


def test_every_folder_of_a_workdir_is_an_artefact():
    """A corpus may lie beside them, never in one: `config._overlap` goes by these names."""
    workdir = Workdir("/w")
    folders = [workdir.annotations("a"), workdir.model("v", 1), workdir.labels("m")]
    folders += [workdir.nightly("m")]
    folders += [getattr(workdir, k) for k, v in vars(Workdir).items() if isinstance(v, property)]
    assert {folder.uri.split("/")[2] for folder in folders} == ARTEFACTS
