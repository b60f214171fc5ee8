"""The run files of jobs/ load, and hold the settings of the paper's runs."""

from pathlib import Path

import pytest

from llambert.config import RunConfig, load

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBERT_STORE", "s3://bucket/llambert")
    monkeypatch.setenv("LLAMBERT_ENCODER", "sentence-transformers/all-MiniLM-L6-v2")


def run(name: str) -> RunConfig:
    return load(str(JOBS / f"{name}.yaml"))


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_run_file_loads_and_bears_its_name(path: Path) -> None:
    config = load(str(path))
    assert config.name == path.stem and config.workdir.endswith(f"/{path.stem}")
    assert config.variants == ["baseline", "llambert", "combined"]
    assert config.label_variant == "combined"


@pytest.mark.parametrize(
    ("name", "rate", "epochs", "sample"),
    [("imdb-llama2-70b", 1e-6, 5, 50_000), ("umls-llama2-70b", 5e-6, 10, 10_000)],
)
def test_the_settings_of_the_paper(name: str, rate: float, epochs: int, sample: int) -> None:
    config = run(name)
    train, annotate = config.train, config.annotate
    assert (train.learning_rate, train.epochs) == (rate, epochs)
    assert (train.batch_size, train.max_length) == (16, 512)
    assert (annotate.temperature, annotate.top_k, annotate.max_tokens) == (1.0, 50, 10)
    assert annotate.tensor_parallel_size == 4 and config.sample.size == sample
    assert config.corpus.path.startswith("s3://bucket/llambert/")


def test_umls_asks_with_words_and_one_example() -> None:
    task = run("umls-llama2-70b").task
    assert list(task.labels) == ["yes", "no"]
    assert [example.label for example in task.examples] == ["yes"]
    assert "; " in task.examples[0].text


def test_imdb_local_reads_beside_the_checkout() -> None:
    config = run("imdb-local")
    reviews = str(JOBS.parents[1] / "shared" / "imdb" / "train.parquet")
    assert config.annotate.engine == "recorded" and config.annotate.recorded
    assert config.annotate.recorded.path == reviews
    assert config.gold and config.gold.train == reviews
    assert config.corpus.path == reviews
    assert config.workdir == str(JOBS.parent / "runs" / "imdb-local")
