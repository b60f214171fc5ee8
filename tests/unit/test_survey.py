"""How many records a corpus has, from a part of it: every format, against the truth."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llambert import sample
from llambert.plan import Range
from llambert.records import CorpusConfig, open_corpus, read_all
from llambert.survey import Survey, mean, ratio_total, survey

FILES, EACH = 12, 3000
SEED = 7


@pytest.fixture(scope="module", params=["parquet", "jsonl", "jsonl.gz", "csv", "one jsonl"])
def corpus(request, tmp_path_factory):
    """36,000 records in twelve files or one."""
    one = request.param == "one jsonl"
    folder = tmp_path_factory.mktemp("corpus")
    return write(folder, "jsonl" if one else request.param, 1 if one else FILES)


def write(folder, suffix: str, files: int = FILES):
    """Texts of 20 to 400 characters, one in 20 empty."""
    rng = random.Random(1)
    for file in range(files):
        ids = [f"{file}-{i}" for i in range(FILES * EACH // files)]
        texts = ["" if rng.random() < 0.05 else "x" * rng.randint(20, 400) for _ in ids]
        path = folder / f"part-{file:02d}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.table({"id": ids, "text": texts}), path, row_group_size=500)
            continue
        if suffix == "csv":
            lines = ["id,text", *(f"{i},{t}" for i, t in zip(ids, texts, strict=True))]
        else:
            rows = zip(ids, texts, strict=True)
            lines = [json.dumps({"id": i, "text": t}) for i, t in rows]
        data = ("\n".join(lines) + "\n").encode()
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    return open_corpus(CorpusConfig(path=str(folder), id="id"))


def good_rows(corpus) -> pa.Table:
    return read_all(corpus)[0]


def test_a_corpus_that_is_read_whole_is_counted_exactly(corpus):
    truth = good_rows(corpus)
    seen = survey(corpus, SEED, size=500)
    assert seen.whole and seen.read == FILES * EACH
    assert seen.records == Range.exactly(truth.num_rows)
    drawn = sorted(truth["id"].to_pylist(), key=lambda id: sample._hash(SEED, id))[:500]
    assert seen.sample["id"].to_pylist() == drawn  # what the run would draw


def test_a_corpus_within_the_limit_is_read_whole_however_its_files_differ(tmp_path):
    big = [json.dumps({"id": str(i), "text": "x" * 1000}) for i in range(20_000)]
    (tmp_path / "big.jsonl").write_text("\n".join(big))
    for i in range(8):
        (tmp_path / f"small-{i}.jsonl").write_text(json.dumps({"id": f"s{i}", "text": "y"}) + "\n")
    corpus = open_corpus(CorpusConfig(path=str(tmp_path), id="id"))
    seen = survey(corpus, SEED, size=50, limit=corpus.bytes)
    assert seen.whole and seen.records == Range.exactly(20_008)


def test_a_part_of_a_corpus_tells_its_size(corpus, monkeypatch):
    monkeypatch.setattr("llambert.formats._BATCH_BYTES", 2**16)  # so that there is a part to read
    monkeypatch.setattr("llambert.formats._BUFFER_BYTES", 2**12)
    truth = good_rows(corpus).num_rows
    seen = survey(corpus, SEED, size=200, limit=2 * 2**20)
    assert not seen.whole and seen.read < 0.6 * FILES * EACH
    assert seen.records.low <= truth <= seen.records.high
    assert 0.95 < seen.records.expected / truth < 1.05
    assert seen.records.high / seen.records.low < 1.2
    assert seen.sample.num_rows == 200
    hashes = seen.sample["hash"].to_pylist()
    assert hashes == sorted(set(hashes))


def test_an_id_that_comes_twice_is_sampled_once(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "one"}\n{"id": "a", "text": "two"}\n')
    seen = survey(open_corpus(CorpusConfig(path=str(tmp_path), id="id")), SEED, size=10)
    assert seen.sample["text"].to_pylist() == ["one"]


def test_a_torn_file_counts_as_a_file_of_no_records(tmp_path, monkeypatch):
    monkeypatch.setattr("llambert.formats._BATCH_BYTES", 2**16)
    sources = write(tmp_path, "parquet", files=3).sources
    (tmp_path / "torn.parquet").write_bytes(Path(sources[0].uri).read_bytes()[:2000])
    torn = open_corpus(CorpusConfig(path=str(tmp_path), id="id"))
    seen = survey(torn, SEED, size=10, limit=2**20)
    assert not seen.whole
    assert seen.records.expected == pytest.approx(FILES * EACH * 0.95, rel=0.05)


def test_a_file_that_is_no_file_has_no_records(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 50)
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.jsonl.gz").write_bytes(b"not gzip")
    seen = survey(open_corpus(CorpusConfig(path=str(tmp_path))), SEED, size=10)
    assert seen.records == Range.exactly(50)


def test_the_interval_of_a_ratio():
    """Sizes 10, 20, 30 with 5, 8, 17 good: ratio 0.5, residuals 0, -2, 2; t(2) = 4.3027."""
    low, expected, high = ratio_total([(10, 5), (20, 8), (30, 17)], 600)
    assert expected == pytest.approx(300)
    half = 4.302653 * (3 / 2 * 8) ** 0.5 / 60 * 600
    assert (low, high) == (pytest.approx(300 - half), pytest.approx(300 + half))
    assert ratio_total([(10, 5)], 100) == (25, 50, 100)  # nothing tells how others would differ
    assert ratio_total([], 100) == Range.exactly(0)
    few, more = [(10, 10), (10, 0), (10, 0)], [(10, 10), (10, 0), (10, 0), (10, 0)]
    assert ratio_total(few, 30) == (5, 10, 20)  # Student's own would be 0 to 53
    assert ratio_total(more, 40) == (0, 10, pytest.approx(10 + 3.182446 * 10))


def test_a_mean_has_its_interval_unless_all_was_seen():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    low, expected, high = mean(values, 1e12)
    half = 1.96 * (5 / 3) ** 0.5 / 2
    assert (low, expected, high) == pytest.approx((2.5 - half, 2.5, 2.5 + half))
    assert mean(values, 8)[2] == pytest.approx(2.5 + half * 0.5**0.5)
    assert mean(values, 4) == Range.exactly(2.5)


def in_part(pieces: list[int], batches: list[int], records: float, hashes=()) -> Survey:
    """A corpus of which so many records were read, each in its piece and batch."""
    columns = {"piece": pieces, "batch": batches}
    columns["hash"] = pa.array(hashes or range(len(pieces)), pa.uint64())
    return Survey(Range.exactly(records), False, len(pieces), pa.table(columns))


def test_the_files_of_a_corpus_read_in_part_decide_how_sure_a_mean_is():
    """Two files whose texts differ: the records of each are alike, and tell nothing of others."""
    tokens = np.array([10.0, 10.0, 10.0, 20.0, 20.0, 20.0])
    seen = in_part([0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5], 1e6)
    assert seen.mean(tokens) == ratio_total([(3, 30), (3, 60)], 1.0)
    assert seen.mean(tokens) == (7.5, 15, 30)  # two say no less than one alone would
    alone = in_part([0] * 6, [0, 0, 0, 1, 1, 1], 1e6)  # one file: then its batches
    assert alone.mean(tokens) == seen.mean(tokens)
    skipped = np.where(tokens > 15, np.nan, tokens)
    assert seen.mean(skipped)[1] == 10
    assert in_part([0] * 6, [0] * 6, 1e6).mean(tokens) == (7.5, 15, 30)


def test_which_records_a_run_will_draw():
    quarter = sample.HASHES // 4
    seen = in_part([0] * 4, [0] * 4, 1000, [5, quarter - 2**20, quarter + 2**20, 3 * quarter])
    assert seen.drawn(250).tolist() == [True, True, False, False]
    assert seen.drawn(5000).tolist() == [True] * 4
    whole = Survey(seen.records, True, seen.read, seen.sample)
    assert whole.drawn(3).tolist() == [True, True, True, False]
