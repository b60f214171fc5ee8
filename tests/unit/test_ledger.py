"""Which files are new, changed or only touched, and that the ledger keeps them all."""

import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from llambert import ledger as ledger_module
from llambert.ledger import LEDGER, Entry, Ledger, entries
from llambert.records import CorpusConfig, Source, list_sources
from llambert.storage import Folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f"a text of {name}\n")
    return folder


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Folder(str(tmp_path / "nights")))


def sources(corpus: Path) -> list[Source]:
    return list_sources(CorpusConfig(path=str(corpus)))


def names(found: list[Source]) -> list[str]:
    return [source.name for source in found]


def test_everything_is_new_at_first_and_nothing_after(corpus, ledger):
    changes = ledger.changes(sources(corpus))
    assert names(changes.new) == ["a.txt", "b.txt", "c.txt"] and changes.unchanged == 0
    assert ledger.last_night() == 0
    ledger.write(entries(changes.new, 1), 1)
    changes = ledger.changes(sources(corpus))
    assert (changes.new, changes.changed, changes.touched) == ([], [], [])
    assert changes.unchanged == 3 and ledger.last_night() == 1


def test_added_changed_touched_and_vanished_files(corpus, ledger):
    ledger.write(entries(sources(corpus), 1), 1)
    (corpus / "d.txt").write_text("new\n")
    (corpus / "a.txt").write_text("another text, longer\n")
    same_size = (corpus / "b.txt").read_text().replace("text", "TEXT")
    (corpus / "b.txt").write_text(same_size)
    os.utime(corpus / "c.txt", (1, 1))
    changes = ledger.changes(sources(corpus))
    assert names(changes.new) == ["d.txt"]
    assert sorted(names(changes.changed)) == ["a.txt", "b.txt"]
    assert [(Path(each.uri).name, each.night) for each in changes.touched] == [("c.txt", 1)]
    assert changes.unchanged == 1
    ledger.write(changes.touched, 1)
    assert ledger.changes(sources(corpus)).touched == []  # the new time is known now

    ledger.write(entries([*changes.new, *changes.changed], 2), 2)
    kept = (corpus / "a.txt").stat().st_mtime_ns
    (corpus / "a.txt").rename(corpus.parent / "a.txt")
    assert ledger.changes(sources(corpus)).unchanged == 3
    (corpus.parent / "a.txt").rename(corpus / "a.txt")  # back as it was: labelled already
    assert (corpus / "a.txt").stat().st_mtime_ns == kept
    assert ledger.changes(sources(corpus)).unchanged == 4


def test_a_large_file_is_known_by_its_version_alone(corpus, ledger, monkeypatch):
    monkeypatch.setattr(ledger_module, "_HASHED_BYTES", 5)
    ledger.write(entries(sources(corpus), 1), 1)
    assert pq.read_table(corpus.parent / "nights" / LEDGER)["hash"].null_count == 3
    os.utime(corpus / "c.txt", (1, 1))
    assert names(ledger.changes(sources(corpus)).changed) == ["c.txt"]


def test_a_file_on_an_object_store_is_known_by_its_etag(ledger):
    before = [Source("s3://bucket/x.parquet", 10, "etag-1", "x.parquet")]
    ledger.write(entries(before, 1), 1)
    assert ledger.changes(before).unchanged == 1
    after = [Source("s3://bucket/x.parquet", 10, "etag-2", "x.parquet")]
    assert ledger.changes(after).changed == after


def test_a_night_replaces_its_files_and_keeps_the_others(ledger, tmp_path):
    many = [Entry(f"/c/{n:06}", n, "1", None, 1) for n in range(150_000)]
    ledger.write(many, 1)
    ledger.write([Entry("/c/000007", 9, "2", "h", 2), Entry("/c/new", 1, "1", None, 2)], 2)
    rows = {row["uri"]: row for row in pq.read_table(tmp_path / "nights" / LEDGER).to_pylist()}
    assert len(rows) == 150_001
    assert rows["/c/000007"] == {
        "uri": "/c/000007", "size": 9, "version": "2", "hash": "h", "night": 2
    }  # fmt: skip
    assert rows["/c/149999"]["night"] == 1
    assert ledger.last_night() == 2


def test_a_write_that_fails_leaves_the_ledger_as_it_was(ledger, tmp_path):
    ledger.write([Entry("/c/a", 1, "1", None, 1)], 1)
    wrong = [Entry("/c/b", "many", "1", None, 2)]  # type: ignore[arg-type]
    with pytest.raises(Exception, match="many"):
        ledger.write(wrong, 2)
    assert ledger.last_night() == 1
    assert [path.name for path in (tmp_path / "nights").iterdir()] == [LEDGER]


def peak_bytes(folder: Path, nights: int) -> int:
    """The most memory that a night of 100 new files takes after so many of 1,000 files."""
    ledger = Ledger(Folder(str(folder)))
    files = pa.array([f"/corpus/of/{n:04}.parquet" for n in range(1000)])
    schema = ledger_module._SCHEMA.with_metadata({ledger_module._NIGHT: str(nights)})
    folder.mkdir()
    with pq.ParquetWriter(folder / LEDGER, schema) as writer:
        for night in range(1, nights + 1):
            uris = pc.binary_join_element_wise(files, f"night-{night}", "-")
            digests = pc.binary_join_element_wise(uris, "of the content", " ")
            same = [pa.array([value] * 1000) for value in (12345, "1700000000.5")]
            number = pa.array([night] * 1000, pa.int32())
            columns = [uris, *same, digests, number]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    new = [Source(f"/corpus/new/{n}", n, "1", "x") for n in range(100)]
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        assert len(ledger.changes(new).new) == 100
        ledger.write([Entry(s.uri, s.size, s.version, None, nights + 1) for s in new], nights + 1)
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def test_memory_does_not_grow_with_the_nights_before(tmp_path):
    few, many = (peak_bytes(tmp_path / str(nights), nights) for nights in (200, 1500))
    assert many < 1.25 * few, (few, many)
    assert pq.read_metadata(tmp_path / "1500" / LEDGER).num_rows == 1_500_100


def test_what_a_night_labelled_is_new_again_once_forgotten(corpus, ledger):
    ledger.forget(1)  # there is no ledger yet
    assert ledger.last_night() == 0 and not ledger.knows(str(corpus))
    files = sources(corpus)
    ledger.write(entries(files[:1], 1), 1)
    ledger.write(entries(files[1:], 2), 2)
    ledger.forget(2)
    assert ledger.changes(files).new == files[1:] and ledger.last_night() == 2
    assert ledger.knows(f"{corpus}/") and not ledger.knows(f"{corpus}/b")
