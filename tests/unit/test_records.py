"""Reading corpora: every format, every way a row or a file can be bad, and made ids."""

import bz2
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from llambert import corpus as corpus_stage
from llambert import csv_lines, formats, records
from llambert.datasource import _plan, _read_shares
from llambert.errors import StageError, UserError
from llambert.records import (
    DUPLICATE,
    DUPLICATES,
    CorpusConfig,
    list_sources,
    load_duplicates,
    open_corpus,
    read_all,
    read_source,
)
from llambert.storage import Folder


def corpus(path, extra=(), **fields):
    return open_corpus(CorpusConfig(path=str(path), **fields), extra)


def rows(opened) -> list[tuple]:
    """(row, id, text, refused) of every record, in order."""
    tables = [t for source in opened.sources for t in read_source(opened, source)]
    table = pa.concat_tables(tables)
    assert table.schema == opened.schema
    return [(r["row"], r["id"], r["text"], r["refused"]) for r in table.to_pylist()]


def unchecked(values: list[bytes | None]) -> pa.Array:
    """A string array whose bytes nobody checked, as a Parquet file may hold them."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())


def write_groups(path: Path, groups: int = 4, rows_each: int = 10) -> pa.Table:
    n = groups * rows_each
    table = pa.table({"id": list(range(n)), "text": [f"record {i} " * 20 for i in range(n)]})
    pq.write_table(table, path, row_group_size=rows_each, compression="snappy")
    return table


def damage(path: Path, group: int, column: int = 1) -> None:
    """Overwrite the data of one column chunk."""
    meta = pq.ParquetFile(path).metadata.row_group(group).column(column)
    data = bytearray(path.read_bytes())
    start = meta.dictionary_page_offset or meta.data_page_offset
    data[start : start + meta.total_compressed_size] = b"\xff" * meta.total_compressed_size
    path.write_bytes(bytes(data))


def test_parquet_refuses_row_by_row(tmp_path):
    table = pa.table(
        {
            "id": pa.array([1, 2, 3, None, 5, 6], pa.int32()),
            "text": unchecked(
                [b"good", None, b" \t\n", b"no id", b"bad \xff byte", b"caf\xc3\xa9"]
            ),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    opened = corpus(tmp_path, id="id")
    assert opened.format == "parquet" and opened.id_type == pa.int64()
    assert rows(opened) == [
        (0, 1, "good", None),
        (1, 2, None, "null_text"),
        (2, 3, " \t\n", "empty_text"),
        (3, None, "no id", "null_id"),
        (4, 5, None, "undecodable"),
        (5, 6, "café", None),
    ]


def test_jsonl_refuses_line_by_line(tmp_path):
    lines = [
        b'{"id": "a", "text": "good"}',
        b'{"id": "b", "text": null}',
        b'{"id": "c", "text": ""}',
        b'{"id": "d", "text": 5}',
        b'{"id": null, "text": "no id"}',
        b'{"id": ["e"], "text": "list"}',
        b"",
        b'{"id": "f", "text": "cut',
        b'{"id": "g", "text": "\xff"}',
        b'{"id": "h", "text": "half a pair \\ud800"}',
        b'{"id": "i"}',
        b"[1, 2]",
        b'{"id": 7, "text": "a number among strings"}',
        b'{"id": "k", "text": "last, without newline"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    opened = corpus(tmp_path, id="id")
    assert opened.id_type == pa.string()
    got = rows(opened)
    assert [(row, refused) for row, _, _, refused in got] == [
        (0, None),
        (1, "null_text"),
        (2, "empty_text"),
        (3, "not_a_string"),
        (4, "null_id"),
        (5, "bad_id"),  # line 6 is blank: no record
        (7, "undecodable"),
        (8, "undecodable"),
        (9, "undecodable"),
        (10, "undecodable"),
        (11, "undecodable"),
        (12, None),
        (13, None),
    ]
    assert got[-2][1] == "7"


def test_jsonl_integer_ids_keep_their_type(tmp_path):
    values = [*range(100), 2**53 + 1, "three", True, 2**70]
    lines = [json.dumps({"n": value, "text": "t"}) for value in values]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    opened = corpus(tmp_path, id="n")
    assert opened.id_type == pa.int64()
    assert [(r[1], r[3]) for r in rows(opened)[100:]] == [
        (2**53 + 1, None),
        (None, "bad_id"),
        (None, "bad_id"),
        (None, "bad_id"),
    ]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, None, 3], pa.int64()),
        ([3, 2**63 - 1], pa.int64()),
        ([None] * 100 + [3], pa.string()),
        ([2**70, 2**70 + 1], pa.string()),
        ([3, 2**70], pa.string()),
        ([2**70, 3], pa.string()),
        ([3, None, "three", 4], pa.string()),
    ],
)
def test_jsonl_ids_are_integers_only_where_some_were_seen(tmp_path, values, kind):
    lines = [json.dumps({"n": value, "text": "t"}) for value in values]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    opened = corpus(tmp_path, id="n")
    assert opened.id_type == kind
    expected = [v if v is None or kind == pa.int64() else str(v) for v in values]
    assert [r[1] for r in rows(opened)] == expected


def test_csv_refuses_row_by_row(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b"\xef\xbb\xbfid,text,label\r\n"
        b"007,good,x\r\n"
        b'1,"two\nlines, and ""quotes""",x\r\n'
        b"2,,x\r\n"
        b",no id,x\r\n"
        b"\r\n"
        b"3,too,many,fields\r\n"
        b"4\r\n"
        b"5,bad \xff byte,x\r\n"
        b"6,fine,\r\n"
    )
    opened = corpus(tmp_path, id="id", extra=["label"])
    tables = pa.concat_tables(read_source(opened, opened.sources[0]))
    assert tables["label"].to_pylist() == ["x"] * 4 + [None, None, "x", None]
    assert rows(opened) == [
        (0, "007", "good", None),
        (1, "1", 'two\nlines, and "quotes"', None),
        (2, "2", "", "empty_text"),
        (3, None, "no id", "null_id"),
        (4, None, None, "undecodable"),
        (5, None, None, "undecodable"),
        (6, "5", None, "undecodable"),
        (7, "6", "fine", None),
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (  # a later quote shows it
            '1,"He said\n2,lost\n3,"quoted"\n',
            [(None, "undecodable"), ("lost", None), ("quoted", None)],
        ),
        (  # nothing shows it up to the end of the file
            '1,good\n2,"never closed\n3,more\n\n4,last',
            [("good", None), (None, "undecodable"), ("more", None), ("last", None)],
        ),
        (  # the last line
            '1,good\n2,"cut',
            [("good", None), (None, "undecodable")],
        ),
        (  # one after the other, and a sound record of two lines between them
            '1,"a\n2,"b\n3,"two\nlines"\n4,"c\n',
            [
                (None, "undecodable"),
                (None, "undecodable"),
                ("two\nlines", None),
                (None, "undecodable"),
            ],
        ),
        (  # quotes that were not doubled
            '1,"He said "no" to it"\n2,good\n',
            [(None, "undecodable"), ("good", None)],
        ),
    ],
)
def test_csv_open_quote_costs_its_line(tmp_path, body, expected):
    (tmp_path / "a.csv").write_text("id,text\n" + body)
    got = rows(corpus(tmp_path, id="id"))
    assert [(text, refused) for _, _, text, refused in got] == expected
    assert [row for row, *_ in got] == list(range(len(expected)))


def test_csv_open_quote_ends_at_the_limit_of_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_lines, "LINE_BYTES", 200)
    monkeypatch.setattr(formats, "_BATCH_BYTES", 100)
    body = 'id,text\n1,good\n2,"never closed\n' + "3,found\n" * 100
    (tmp_path / "a.csv").write_text(body)
    got = rows(corpus(tmp_path, id="id"))
    assert got[0] == (0, "1", "good", None)
    assert (got[1][0], got[1][3]) == (1, "undecodable")
    assert got[2:] == [(row, "3", "found", None) for row in range(2, 102)]


def test_csv_of_nothing_but_open_quotes_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_lines, "_AGAIN_CHARACTERS", 5000)
    # cut at '","': each line opens a quote, and the lines after it close and open others
    (tmp_path / "a.csv").write_text("id,text\n1,good\n" + 'a","b","c\n' * 300)
    got = rows(corpus(tmp_path, id="id"))
    assert got[0] == (0, "1", "good", None)
    assert {r[3] for r in got[1:-1]} == {"undecodable"} and len(got) < 10
    assert (got[-1][0], got[-1][3]) == (-1, "corrupt_file")


def test_csv_compressed_and_cut_keeps_what_an_open_quote_swallowed(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_BATCH_BYTES", 1000)
    lines = b"".join(b"%d,line %d\n" % (i, i**7) for i in range(20000))
    packed = gzip.compress(b'id,text\nx,"open\n' + lines)[:-20000]
    (tmp_path / "a.csv.gz").write_bytes(packed)
    got = rows(corpus(tmp_path, id="id"))
    assert got[0][3] == "undecodable" and got[1] == (1, "0", "line 0", None)
    assert len(got) > 100 and {r[3] for r in got[1:-1]} == {None}
    assert (got[-1][0], got[-1][3]) == (-1, "corrupt_file")


def test_text_line_is_a_record(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\n\nbad \xff\nlast")
    opened = corpus(tmp_path)
    assert rows(opened) == [
        (0, "a.txt#0", "first", None),
        (1, "a.txt#1", "", "empty_text"),
        (2, "a.txt#2", None, "undecodable"),
        (3, "a.txt#3", "last", None),
    ]


def test_line_formats_stream_over_chunk_borders(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_BATCH_BYTES", 7)
    texts = [f"number {i} é" for i in range(50)]
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/a.csv").write_text("text\n" + "\n".join(f'"{t}"' for t in texts) + "\n")
    (tmp_path / "j").mkdir()
    (tmp_path / "j/a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    for folder in "tcj":
        got = rows(corpus(tmp_path / folder))
        assert [text for _, _, text, _ in got] == texts
        assert [row for row, *_ in got] == list(range(50))


def test_line_too_long_ends_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_BATCH_BYTES", 100)
    monkeypatch.setattr(formats, "LINE_BYTES", 1000)
    (tmp_path / "a.txt").write_bytes(b"good\n" + b"x" * 5000)
    assert [r[3] for r in rows(corpus(tmp_path))] == [None, "corrupt_file"]


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    ("suffix", "packed"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstd)]
)
def test_compressed_by_extension(tmp_path, suffix, packed):
    data = packed(b"".join(b'{"text": "line %d"}\n' % i for i in range(1000)))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(data)
    assert len(rows(corpus(tmp_path))) == 1000


def test_compressed_and_cut_keeps_what_came_before(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_BATCH_BYTES", 1000)
    lines = b"".join(b"line %d %d\n" % (i, i**7) for i in range(20000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(lines)[:-20000])
    got = rows(corpus(tmp_path))
    assert len(got) > 100
    assert {r[3] for r in got[:-1]} == {None}
    assert (got[-1][0], got[-1][3]) == (-1, "corrupt_file")


def test_truncated_parquet_is_one_refusal_and_the_next_file_is_read(tmp_path):
    write_groups(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    write_groups(tmp_path / "b.parquet", groups=1)
    opened = corpus(tmp_path, id="id")  # the first file is no obstacle
    got = rows(opened)
    assert got[0] == (-1, None, None, "corrupt_file")
    assert [r[3] for r in got[1:]] == [None] * 10


@pytest.mark.parametrize("most", [500, 5])
def test_many_files_that_cannot_be_read_are_no_obstacle(tmp_path, monkeypatch, most):
    monkeypatch.setattr(records, "_PEEK_FILES", most)
    for i in range(30):
        (tmp_path / f"a-{i:02}.parquet").touch()
    with pytest.raises(UserError, match=f"none of {min(most, 30)} files.*a-00"):
        corpus(tmp_path)
    for i in range(10):
        write_groups(tmp_path / f"b-{i}.parquet", groups=1)
    opened = corpus(tmp_path, id="id")
    assert len(opened.sources) == 40 and opened.id_type == pa.int64()


def test_damaged_row_group_costs_only_itself(tmp_path):
    write_groups(tmp_path / "a.parquet")
    damage(tmp_path / "a.parquet", group=1)
    opened = corpus(tmp_path, id="id")
    got = rows(opened)
    assert [r[0] for r in got if r[3] is None] == [*range(10), *range(20, 40)]
    assert [(r[0], r[3]) for r in got if r[3]] == [(-1, "corrupt_file")]
    shares = []
    for part in [(0, 3), (1, 3), (2, 3)]:
        for table in read_source(opened, opened.sources[0], part):
            shares += [(r["row"], r["id"], r["text"], r["refused"]) for r in table.to_pylist()]
    assert shares == got  # however it is shared out


def test_store_failure_is_not_a_corrupt_file(tmp_path, monkeypatch):
    write_groups(tmp_path / "a.parquet")
    opened = corpus(tmp_path, id="id")
    read = formats.SourceFile.read

    def failing(self, size=-1):
        if self.tell() < 200:
            self._file.close()
        return read(self, size)

    monkeypatch.setattr(formats.SourceFile, "read", failing)
    with pytest.raises(StageError, match="cannot read"):
        rows(opened)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(StageError, match="cannot open"):
        rows(opened)


def test_a_shortage_of_memory_is_neither_a_corrupt_file_nor_the_users_slip(tmp_path, monkeypatch):
    def short(self, size=-1):
        raise pa.ArrowMemoryError("malloc of size 1 failed")

    write_groups(tmp_path / "a.parquet")
    opened = corpus(tmp_path, id="id")
    monkeypatch.setattr(formats.SourceFile, "read", short)
    for step in (lambda: rows(opened), lambda: corpus(tmp_path, id="id")):
        with pytest.raises(StageError, match=r"memory does not suffice to read.*of size 1"):
            step()


class DriverError(Exception):
    """As botocore's and aiohttp's: no OSError."""


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv", "a.txt"])
def test_a_drivers_own_error_is_not_a_corrupt_file(tmp_path, monkeypatch, name):
    if name == "a.parquet":
        write_groups(tmp_path / name)
    else:
        (tmp_path / name).write_text('{"text": "x"}\n' if name == "a.jsonl" else "text\nx\n")
    opened = corpus(tmp_path)

    class Failing:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, attribute):
            return getattr(self._file, attribute)

        def read(self, size=-1):
            raise DriverError("slow down")

    fs, _ = formats.filesystem(str(tmp_path))
    sound = type(fs).open
    monkeypatch.setattr(type(fs), "open", lambda *args, **more: Failing(sound(*args, **more)))
    with pytest.raises(StageError, match=r"cannot read.*slow down"):
        rows(opened)
    if name != "a.txt":  # of whose head there is nothing to learn
        with pytest.raises(UserError, match=r"cannot read.*slow down"):
            corpus(tmp_path)

    def refuse(*args, **more):
        raise DriverError("no credentials")

    monkeypatch.setattr(type(fs), "open", refuse)
    with pytest.raises(StageError, match=r"cannot open.*no credentials"):
        rows(opened)


def test_batches_are_bounded(tmp_path):
    text = "x" * 100_000
    pq.write_table(pa.table({"text": [text] * 400}), tmp_path / "a.parquet", use_dictionary=False)
    opened = corpus(tmp_path)
    sizes = [t.nbytes for t in read_source(opened, opened.sources[0])]
    assert len(sizes) > 3 and max(sizes) < 16 * 2**20


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_text_types(tmp_path, kind):
    table = pa.table({"text": pa.array(["a", None, "a"], pa.string()).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [r[2:] for r in rows(corpus(tmp_path))] == [
        ("a", None),
        (None, "null_text"),
        ("a", None),
    ]


@pytest.mark.parametrize(
    ("ids", "kind", "expected"),
    [
        (pa.array([1, 2], pa.uint8()), pa.int64(), [1, 2]),
        (pa.array([1, 2**63], pa.uint64()), pa.string(), ["1", str(2**63)]),
        (pa.array([1.5, 2], pa.float64()), pa.string(), ["1.5", "2"]),
        (pa.array(["b", "a"]).dictionary_encode(), pa.string(), ["b", "a"]),
    ],
)
def test_parquet_id_types(tmp_path, ids, kind, expected):
    pq.write_table(pa.table({"i": ids, "text": ["x", "y"]}), tmp_path / "a.parquet")
    opened = corpus(tmp_path, id="i")
    assert opened.id_type == kind
    assert [r[1] for r in rows(opened)] == expected


def test_later_file_of_another_type_or_without_the_column(tmp_path):
    pq.write_table(pa.table({"id": [1], "text": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["one"], "text": ["x"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"id": [3], "text": [3.5]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"id": [4], "words": ["x"]}), tmp_path / "d.parquet")
    large = pa.array([5, 2**63], pa.uint64())
    pq.write_table(pa.table({"id": large, "text": ["x", "y"]}), tmp_path / "e.parquet")
    assert [(r[1], r[3]) for r in rows(corpus(tmp_path, id="id"))] == [
        (1, None),
        (None, "bad_id"),
        (3, "not_a_string"),
        (None, "corrupt_file"),
        (5, None),
        (None, "bad_id"),
    ]


def test_files_whose_ids_are_all_null_tell_no_type_wherever_they_stand(tmp_path):
    null = pa.table({"id": pa.nulls(1), "text": ["x"]})
    pq.write_table(null, tmp_path / "a.parquet")
    assert [(r[1], r[3]) for r in rows(corpus(tmp_path, id="id"))] == [(None, "null_id")]
    pq.write_table(pa.table({"id": [7], "text": ["y"]}), tmp_path / "b.parquet")
    assert [(r[1], r[3]) for r in rows(corpus(tmp_path, id="id"))] == [(None, "null_id"), (7, None)]


def test_a_later_file_with_a_column_twice_is_one_refusal(tmp_path):
    twice = pa.table([["x"], ["y"]], names=["text", "text"])
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(twice, tmp_path / "b.parquet")
    assert [(r[2], r[3]) for r in rows(corpus(tmp_path))] == [("a", None), (None, "corrupt_file")]
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match="several columns of the name 'text'"):
        corpus(tmp_path)
    (tmp_path / "b.parquet").unlink()
    (tmp_path / "c.csv").write_text("id,text,id\n1,x,2\n")
    with pytest.raises(UserError, match="several columns of the name 'id'"):
        corpus(tmp_path, id="id")


def test_made_ids_are_unique_and_stable(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("one\ntwo\n")
    both = CorpusConfig(path=[str(tmp_path / "y"), str(tmp_path / "x")])
    names = [source.name for source in list_sources(both)]
    assert names == ["x/a.txt", "y/a.txt"]
    assert [s.name for s in list_sources(CorpusConfig(path=str(tmp_path)))] == names
    assert [s.name for s in list_sources(CorpusConfig(path=f"{tmp_path}/*/a.txt"))] == names
    assert [s.name for s in list_sources(CorpusConfig(path=f"{tmp_path}/x/a.txt"))] == ["a.txt"]
    (tmp_path / "a").mkdir()  # a new file changes nothing
    (tmp_path / "a" / "0.txt").write_text("new\n")
    assert {s.name for s in list_sources(CorpusConfig(path=str(tmp_path)))} == {*names, "a/0.txt"}


@pytest.mark.parametrize("name", ["parquet", "jsonl", "csv", "txt"])
def test_an_empty_first_file_is_planned_and_read(tmp_path, name):
    (tmp_path / f"a.{name}").touch()
    if name == "parquet":
        write_groups(tmp_path / "b.parquet", groups=1)
    else:
        (tmp_path / f"b.{name}").write_text('{"text": "x"}\n' if name == "jsonl" else "text\nx\n")
    opened = corpus(tmp_path)
    for share_bytes in (10, 10**6):
        tasks = _plan(opened, share_bytes)
        assert {source.name for task in tasks for _, source, _ in task} == {
            f"a.{name}",
            f"b.{name}",
        }
        read = [
            table
            for task in tasks
            for table in _read_shares(opened.without_sources(), task, None, False, False)
        ]
        reasons = pa.concat_tables(read)["refused"].to_pylist()
        good = {"parquet": 10, "jsonl": 1, "csv": 1, "txt": 2}[name]
        assert reasons.count(None) == good
        assert len(reasons) - good == (name == "parquet")  # one refusal for a file of no bytes


def test_duplicates_of_a_file_are_in_few_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_stage, "_GROUP_ROWS", 10)
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text("x\n")
    opened = corpus(tmp_path)
    places = [(n, row) for row in range(10) for n in range(20)]
    run = [
        pa.table({"file": pa.array([n for n, _ in part], pa.int32()), "row": [r for _, r in part]})
        for part in (places[:77], places[77:])
    ]
    file = tmp_path / DUPLICATES
    with pq.ParquetWriter(file, DUPLICATE) as writer:
        corpus_stage._write_run(writer, opened, run)
    (fragment,) = pyarrow.dataset.dataset(file).get_fragments()
    uris = [opened.sources[n].uri for n in (3, 4)]
    assert len(fragment.row_groups) == 20
    assert len(fragment.split_by_row_group(pc.field("source").isin(uris))) == 2
    loaded = load_duplicates(Folder(str(tmp_path)), uris)
    assert {uri: sorted(found.to_pylist()) for uri, found in loaded.items()} == {
        uri: list(range(10)) for uri in uris
    }


def test_duplicates_given_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    opened = corpus(tmp_path)
    tables = read_source(opened, opened.sources[0], duplicates=pa.array([1], pa.int64()))
    assert pa.concat_tables(tables)["refused"].to_pylist() == [None, "duplicate_id", None]


def test_read_all_keeps_the_first_of_equal_ids(tmp_path):
    (tmp_path / "a.csv").write_text("id,words,gold\n1,one,yes\n2,,no\n1,again,no\n3,three,no\n")
    (tmp_path / "b.csv").write_text("id,words,gold\n3,later file,yes\n2,two,yes\n")
    good, refused = read_all(corpus(tmp_path, id="id", text="words", extra=["gold"]))
    assert list(zip(good["id"].to_pylist(), good["text"].to_pylist(), strict=True)) == [
        ("1", "one"),
        ("3", "three"),
        ("2", "two"),
    ]
    assert good["gold"].to_pylist() == ["yes", "no", "yes"]
    assert sorted(refused["refused"].to_pylist()) == [
        "duplicate_id",
        "duplicate_id",
        "empty_text",
    ]


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({}, {"path": "nowhere"}, "corpus.path: no such path"),
        ({"a.parquet": {"id": [1], "body": ["x"]}}, {}, "id, body; name one in corpus.text"),
        ({"a.parquet": {"text": ["x"]}}, {"id": "key"}, "text; name one in corpus.id"),
        (
            {"a.parquet": {"text": [[1]], "words": ["x"]}},
            {},
            "of strings in corpus.text: words",
        ),
        (
            {"a.parquet": {"text": ["x"], "id": [[1]]}},
            {"id": "id"},
            "strings in corpus.id",
        ),
        ({"a.jsonl": '{"body": "x"}\n'}, {}, "its columns are: body"),
        ({"a.jsonl": "not json\n"}, {}, "corpus.path: none of 1 files can be read as jsonl"),
        ({"a.jsonl": ""}, {}, "holds no record"),
        ({"a.csv": "id,body\n1,x\n"}, {}, "id, body"),
        ({"a.txt": "x\n"}, {"id": "id"}, "a text file has no column"),
        ({"a.txt": "x\n", "b.csv": "text\nx\n"}, {}, "corpus.path mixes formats"),
        ({"a.dat": "x\n"}, {}, "does not tell its format"),
        ({"a.dat": "x\n"}, {"format": "parquet"}, "can be read as parquet"),
    ],
)
def test_wrong_input_stops_at_once(tmp_path, files, fields, message):
    for name, content in files.items():
        if isinstance(content, dict):
            pq.write_table(pa.table(content), tmp_path / name)
        else:
            (tmp_path / name).write_text(content)
    path = str(tmp_path / fields.pop("path", ""))
    with pytest.raises(UserError) as error:
        open_corpus(CorpusConfig(path=path, **fields))
    assert message in str(error.value)
