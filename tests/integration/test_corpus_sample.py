"""The corpus and sample stages, and the corpus as a Ray Dataset, on a real Ray."""

import json
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llambert import corpus as corpus_stage
from llambert import datasource, sample
from llambert.corpus import QUARANTINED, inspect_corpus
from llambert.datasource import corpus_dataset
from llambert.errors import CountError, UserError
from llambert.progress import Progress
from llambert.records import DUPLICATES, CorpusConfig, load_duplicates, open_corpus
from llambert.sample import SampleConfig, draw_sample
from llambert.schema import QUARANTINE, SAMPLE
from llambert.storage import Folder

pytestmark = pytest.mark.usefixtures("ray_session")


def inspect(path, out, **fields):
    opened = open_corpus(CorpusConfig(path=str(path), **fields))
    folders = Folder(str(out / "corpus")), Folder(str(out / "quarantine"))
    with Progress("corpus", quiet=True) as progress:
        return opened, inspect_corpus(opened, *folders, progress)


def draw(opened, good: int, out, **fields) -> list[tuple[str, str]]:
    with Progress("sample", quiet=True) as progress:
        outcome = draw_sample(
            SampleConfig(**fields),
            opened,
            Folder(str(out / "corpus")),
            good,
            Folder(str(out / "sample")),
            progress,
        )
    table = Folder(str(out / "sample")).read_table()
    assert table.schema == SAMPLE
    assert outcome.counts["in"] == outcome.counts["out"] + sum(outcome.counts["dropped"].values())
    assert outcome.counts["out"] == table.num_rows
    return list(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def write_jsonl(path: Path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_counts_quarantine_and_duplicates(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_stage, "_SORTED_ROWS", 40)  # the sort has many blocks
    monkeypatch.setattr(datasource, "_SMALLEST_SHARE_BYTES", 1000)  # and the read many tasks
    data = tmp_path / "data"
    data.mkdir()
    first = pa.table({"id": list(range(300)), "text": [f"text {i}" for i in range(300)]})
    pq.write_table(first, data / "a.parquet", row_group_size=30)
    # 100 ids of file a again, one of them twice; a null text whose id comes again, and is good
    again = [*range(250, 350), 250, 400, 400, None]
    texts = ["x" * 7] * 101 + [None, "good", "y"]
    pq.write_table(pa.table({"id": again, "text": texts}), data / "b.parquet", row_group_size=10)
    (data / "c.parquet").write_bytes(b"PAR1 not at all")

    opened, outcome = inspect(data, tmp_path, id="id")
    assert outcome.counts == {
        "in": 405,
        "out": 351,
        "dropped": {"corrupt_file": 1, "duplicate_id": 51, "null_id": 1, "null_text": 1},
    }
    assert outcome.details["files"] == 3 and outcome.details["corrupt_files"] == 1
    chars = outcome.details["text_chars"]
    assert (chars["p50"], chars["p99"], chars["max"]) == (7, 8, 8)

    quarantine = Folder(str(tmp_path / "quarantine")).read_table(QUARANTINED)
    assert quarantine.schema == QUARANTINE
    assert quarantine.num_rows == sum(outcome.counts["dropped"].values())
    b = str(data / "b.parquet")
    refused = {(r["source"], r["row"]): (r["id"], r["refused"]) for r in quarantine.to_pylist()}
    assert refused[b, 101] == ("400", "null_text")
    assert refused[b, 103] == (None, "null_id")
    assert refused[str(data / "c.parquet"), -1] == (None, "corrupt_file")
    later = {row for (_, row), (_, reason) in refused.items() if reason == "duplicate_id"}
    assert later == {*range(50), 100}
    inventory = Folder(str(tmp_path / "corpus"))
    loaded = load_duplicates(inventory, [source.uri for source in opened.sources])
    assert {uri: set(rows.to_pylist()) for uri, rows in loaded.items()} == {b: later}

    good = corpus_dataset(opened, inventory, only_good=True).to_pandas()
    assert sorted(good["id"]) == [*range(350), 400]
    everything = draw(opened, outcome.counts["out"], tmp_path, size=1000)
    assert {int(id) for id, _ in everything} == set(good["id"])

    _, again = inspect(data, tmp_path, id="id")  # replaces what is there
    assert again == outcome
    assert Folder(str(tmp_path / "quarantine")).row_count() == quarantine.num_rows
    assert sorted(p.name for p in (tmp_path / "quarantine").iterdir()) == [QUARANTINED]


def test_string_ids_in_lines_and_made_ids(tmp_path):
    for name, start in (("a", 0), ("b", 10)):
        records = [{"key": f"k{i}", "body": f"text {i}"} for i in range(start, start + 20)]
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", [*records, {"key": "", "body": " "}])
    _, outcome = inspect(tmp_path / "data", tmp_path, id="key", text="body")
    assert outcome.counts == {
        "in": 42,
        "out": 30,
        "dropped": {"duplicate_id": 10, "empty_text": 2},
    }
    made, outcome = inspect(tmp_path / "data", tmp_path, text="body")
    assert outcome.counts["out"] == 40
    assert (tmp_path / "corpus" / DUPLICATES).exists()
    drawn = draw(made, 40, tmp_path, size=40)
    assert {id for id, _ in drawn} == {f"{n}.jsonl#{i}" for n in "ab" for i in range(20)}
    assert dict(drawn)["b.jsonl#3"] == "text 13"


def test_nothing_good_at_all(tmp_path):
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"id": 1, "text": ""}, {"id": 2, "text": None}])
    opened, outcome = inspect(tmp_path / "data", tmp_path, id="id")
    assert outcome.counts == {"in": 2, "out": 0, "dropped": {"empty_text": 1, "null_text": 1}}
    with pytest.raises(UserError, match="no record to label"):
        draw(opened, 0, tmp_path, size=5)


def test_sample_is_exact_nested_and_blind_to_layout(tmp_path, monkeypatch):
    n = 3000
    records = [{"id": f"r{i}", "text": f"text {i}"} for i in range(n)]
    write_jsonl(tmp_path / "lines" / "all.jsonl", records)
    (tmp_path / "groups").mkdir()
    table = pa.Table.from_pylist(records[::-1])
    for i in range(3):
        path = tmp_path / "groups" / f"{9 - i}.parquet"
        pq.write_table(table.slice(i * 1000, 1000), path, row_group_size=77)

    lines, outcome = inspect(tmp_path / "lines", tmp_path, id="id")
    assert outcome.counts["out"] == n
    expected = sorted(records, key=lambda r: sample._hash(7, r["id"]))
    drawn = draw(lines, n, tmp_path, size=500, seed=7)
    assert drawn == [(r["id"], r["text"]) for r in expected[:500]]
    assert draw(lines, n, tmp_path, size=40, seed=7) == drawn[:40]

    monkeypatch.setattr(datasource, "_SMALLEST_SHARE_BYTES", 5000)
    monkeypatch.setattr(sample, "_threshold", lambda size, records: 1)  # a bad guess is mended
    groups = open_corpus(CorpusConfig(path=str(tmp_path / "groups"), id="id"))
    assert draw(groups, n, tmp_path, size=500, seed=7) == drawn

    with pytest.raises(CountError, match="3000 are there now"):
        draw(lines, n + 5, tmp_path, size=n + 5)


@pytest.mark.parametrize("ids", [pa.int64(), pa.string()])
def test_checkpoint_skips_what_is_written(tmp_path, ids):
    """Ray Data's checkpoint on this source: a failed run's finished rows are not done again."""
    import ray
    from ray.data.checkpoint import CheckpointConfig

    n, large = 2000, 2**53  # odd and even ids next to each other: a float would not tell them
    (tmp_path / "data").mkdir()
    numbers = [None if i == 7 else large + i for i in range(n)]
    table = pa.table({"id": pa.array(numbers, pa.int64()).cast(ids), "text": ["word " * 40] * n})
    pq.write_table(table, tmp_path / "data" / "a.parquet", row_group_size=500)
    opened = open_corpus(CorpusConfig(path=str(tmp_path / "data"), id="id"))
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"

    @ray.remote(num_cpus=0)
    class Done:
        def __init__(self):
            self.ids = []

        def add(self, ids):
            self.ids += ids

        def take(self):
            ids, self.ids = self.ids, []
            return ids

    def work(batch, fail):
        done_ids = [int(id) for id in batch["id"].to_pylist()]
        if fail and max(done_ids) >= large + n - 400:
            raise RuntimeError("the last rows cannot be done")
        ray.get(done.add.remote(done_ids))
        return batch.select(["id"])

    def run(fail):
        dataset = corpus_dataset(opened, only_good=True, block_bytes=50_000)
        dataset.context.checkpoint_config = CheckpointConfig(
            id_column="id", checkpoint_path=str(checkpoint), delete_checkpoint_on_success=False
        )
        dataset = dataset.map_batches(
            work, fn_kwargs={"fail": fail}, batch_size=50, batch_format="pyarrow"
        )
        with warnings.catch_warnings():  # Ray warns, no more, where it disables checkpoints
            warnings.filterwarnings("error", message=".*doesn't support checkpointing")
            dataset.write_parquet(str(out))

    done = Done.remote()
    with pytest.raises(ray.exceptions.RayTaskError, match="cannot be done"):
        run(fail=True)
    ray.get(done.take.remote())
    written = {int(id) for id in Folder(str(checkpoint)).read_table()["id"].to_pylist()}
    assert 0 < len(written) < n
    run(fail=False)
    again = ray.get(done.take.remote())
    everything = {large + i for i in range(n) if i != 7}
    assert len(again) == n - 1 - len(written)
    assert set(again) == everything - written
    final = [int(id) for id in pq.read_table(out)["id"].to_pylist()]
    assert len(final) == n - 1 and set(final) == everything


def test_real_reviews(imdb, tmp_path):
    opened, outcome = inspect(imdb / "corpus.parquet", tmp_path, id="id")
    assert outcome.counts == {"in": 50_000, "out": 50_000, "dropped": {}}
    assert 1300 < outcome.details["text_chars"]["mean"] < 1360
    drawn = draw(opened, 50_000, tmp_path, size=1000)
    assert len({id for id, _ in drawn}) == 1000
