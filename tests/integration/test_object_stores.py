"""The same storage on real object stores, over HTTP: S3's and Google Cloud Storage's interfaces."""

import pickle
import subprocess
import sys
import uuid

import boto3
import google.cloud.storage
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from llambert.errors import UserError
from llambert.storage import Folder, Manifest, arrow_filesystem, list_files, replacing

ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "text": ["one", "two", None]})


@pytest.fixture(params=["s3", "gs"])
def store(request) -> str:
    """The URI of a bucket; each test runs with each of the stores."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def folder(store: str) -> Folder:
    return Folder(f"{store}/storage/{uuid.uuid4().hex}")


def put(folder: Folder, key: str, body: bytes = b"data") -> None:
    """Write as another program would, past this process' file system and its caches."""
    bucket, prefix = folder.path().split("/", 1)
    if folder.uri.startswith("s3://"):
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=body)
    else:
        blob = google_client().bucket(bucket).blob(f"{prefix}/{key}")
        blob.upload_from_string(body)


def delete_all(folder: Folder) -> None:
    """Delete as another program would."""
    bucket, prefix = folder.path().split("/", 1)
    if folder.uri.startswith("s3://"):
        boto3.resource("s3").Bucket(bucket).objects.filter(Prefix=prefix).delete()
    else:
        for blob in google_client().list_blobs(bucket, prefix=prefix):
            blob.delete()


def google_client() -> google.cloud.storage.Client:
    return google.cloud.storage.Client.create_anonymous_client()


def test_a_folder_is_there_when_something_is_in_it(folder: Folder) -> None:
    assert not folder.exists() and folder.files() == [] and folder.folders() == []
    assert folder.manifest() is None and folder.row_count() == 0
    folder.remove()
    folder.create()
    (folder / "inner").write_json("a.json", {"größe": 1})
    assert folder.exists() and (folder / "inner").exists() and (folder / "inner").exists("a.json")
    assert not folder.exists("inn"), "a prefix of a name is not a folder"
    assert folder.folders() == ["inner"] and folder.files() == []
    assert (folder / "inner").read_json("a.json") == {"größe": 1}
    folder.remove()
    assert not folder.exists() and not (folder / "inner").exists("a.json")


def test_what_another_program_does_is_seen_at_once(folder: Folder) -> None:
    assert folder.files() == [] and not folder.exists("a.json")
    put(folder, "a.json", b"1")
    assert folder.exists() and folder.exists("a.json") and folder.files() == ["a.json"]
    assert folder.read_json("a.json") == 1
    put(folder, "a.json", b"22")
    assert folder.read_json("a.json") == 22
    put(folder, "b/c.json")
    assert folder.folders() == ["b"]
    assert [f["size"] for f in list_files([folder.uri])] == [2, 4]
    delete_all(folder)
    assert not folder.exists() and folder.files() == [] and folder.folders() == []
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("a.json")


def test_tables(folder: Folder) -> None:
    folder.write_table("b.parquet", ROWS.slice(2))
    folder.write_table("a.parquet", ROWS.slice(0, 2))
    assert folder.files(".parquet") == ["a.parquet", "b.parquet"]
    assert folder.row_count() == 3 and folder.read_table().equals(ROWS)
    folder.write_table("a.parquet", ROWS.slice(0, 1))  # written anew
    assert folder.row_count() == 2
    assert folder.read_table("a.parquet", columns=["id"]).to_pylist() == [{"id": 1}]


def test_arrow_reads_and_writes_the_same_files(folder: Folder) -> None:
    fs, path = arrow_filesystem(folder.uri)
    pq.write_to_dataset(ROWS, path, filesystem=fs, basename_template="part-{i}.parquet")
    assert folder.files(".parquet") == ["part-0.parquet"]
    folder.write_table("more.parquet", ROWS)
    copy = pickle.loads(pickle.dumps(fs))  # as Ray Data sends it to its workers
    table = ds.dataset(path, filesystem=copy).to_table(filter=ds.field("id") > 1)
    assert sorted(table["id"].to_pylist()) == [2, 2, 3, 3]


def test_a_file_written_piece_by_piece_is_whole_or_not_there(s3: str) -> None:
    """On S3 alone: Google's emulator has no move, which gcsfs asks for half a minute long."""
    folder = Folder(f"{s3}/storage/{uuid.uuid4().hex}")
    with replacing(folder, "a.parquet", ROWS.schema) as writer:
        writer.write_table(ROWS)
    with pytest.raises(KeyError), replacing(folder, "a.parquet", ROWS.schema) as writer:
        writer.write_table(ROWS)
        raise KeyError("halfway")
    assert folder.fs.ls(folder.path(), detail=False) == [folder.path("a.parquet")]
    assert folder.read_table().equals(ROWS)


def test_manifest(folder: Folder) -> None:
    manifest = Manifest(stage="label", fingerprint="f" * 12, output="o", counts={"in": 3})
    folder.finish(manifest)
    assert folder.manifest() == manifest
    put(folder, "manifest.json", folder.read_bytes("manifest.json").replace(b"label", b"train"))
    assert folder.manifest().stage == "train"  # type: ignore[union-attr]
    folder.unfinish()
    folder.unfinish()
    assert folder.manifest() is None


def test_another_process_works_on_the_same_folder(folder: Folder) -> None:
    folder.write_json("a.json", [1])
    code = (
        "import sys; from llambert.storage import Folder; f = Folder(sys.argv[1])\n"
        "f.write_json('b.json', f.read_json('a.json') + [2])"
    )
    subprocess.run([sys.executable, "-c", code, folder.uri], check=True)
    assert folder.read_json("b.json") == [1, 2]


def test_list_files(folder: Folder) -> None:
    for key in ("a.parquet", "x/b.parquet", "_SUCCESS", ".c.parquet", "_tmp/d.parquet"):
        put(folder, key)
    put(folder, "", b"")  # the mark that consoles leave for an empty folder
    put(folder, "x/", b"")
    found = list_files([folder.uri])
    assert [f["uri"] for f in found] == [f"{folder.uri}/a.parquet", f"{folder.uri}/x/b.parquet"]
    assert [f["size"] for f in found] == [4, 4]
    assert folder.files() == ["_SUCCESS", "a.parquet"]
    assert list_files([f"{folder.uri}/"]) == found
    assert list_files([f"{folder.uri}/*.parquet"]) == found[:1]
    assert list_files([f"{folder.uri}/x*"]) == found[1:]
    assert list_files([f["uri"] for f in found]) == found, "one version, however it was found"


def test_the_version_of_an_object_changes_with_it(folder: Folder) -> None:
    put(folder, "a.csv", b"one")
    first = list_files([folder.uri])[0]["version"]
    put(folder, "a.csv", b"one")
    assert list_files([folder.uri])[0]["version"] == first
    put(folder, "a.csv", b"two")
    assert list_files([folder.uri])[0]["version"] != first


def test_list_files_of_nothing(folder: Folder) -> None:
    scheme = folder.uri.partition(":")[0]
    for uri in (
        folder.uri,
        f"{folder.uri}/*.csv",
        f"{scheme}://llambert-absent/x",
        f"{scheme}://llambert-absent",
    ):
        with pytest.raises(UserError, match="no such path"):
            list_files([uri])


def test_a_mistyped_bucket_is_not_made(store: str) -> None:
    absent = f"{store.partition(':')[0]}://llambert-absent"
    with pytest.raises(FileNotFoundError):
        Folder(f"{absent}/run").write_json("a.json", 1)
    with pytest.raises(UserError, match="no such path"):
        list_files([absent])
