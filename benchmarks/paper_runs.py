"""The run files that the paper's experiments come down to, made of one that names data and models.

`extra` is the run file itself, without its gates. `train` has the gold training records for a
corpus, and `both` has them and the sample of `extra`; its labels are the answers of the other two,
so that the LLM is asked about no record twice.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llambert.annotate import AnnotateConfig
from llambert.config import RunConfig, dump
from llambert.gates import GatesConfig
from llambert.interval import student_interval
from llambert.pipeline import Pipeline
from llambert.storage import Folder, is_remote

_ALL = 10**9  # records, more than any benchmark has


def extra_run(config: RunConfig, place: str) -> RunConfig:
    """`combined`: the LLM's labels of the corpus' sample, then gold."""
    return _changed(config, place, "extra", train={"variants": ["combined"]})


def train_run(config: RunConfig, place: str) -> RunConfig:
    """`baseline` and `llambert` on the same records: gold train."""
    gold = Pipeline(config).gold
    return _changed(
        config,
        place,
        "train",
        corpus=_corpus(place, "train", gold.train),
        sample={"size": _ALL},
        annotate={"gold_records": 0},
        train={"variants": ["baseline", "llambert"]},
    )


def both_run(config: RunConfig, place: str) -> RunConfig:
    """`llambert` on gold train's records and the corpus' sample, both with the LLM's labels.

    `extra` and `train` must have annotated.
    """
    records, answers = [], []
    for other in (extra_run(config, place), train_run(config, place)):
        pipeline = Pipeline(other)
        (annotate,) = pipeline.steps("annotate")
        asked = annotate.folder.read_table("annotations.parquet", ["id", "response"])
        sample = pipeline.workdir.sample.read_table("sample.parquet", ["id", "text"])
        records.append(sample)
        answers.append(asked.filter(pc.is_in(asked["id"], sample["id"].combine_chunks())))
    table = pa.concat_tables(records)
    path = _written(place, "both-answers.parquet", pa.concat_tables(answers))
    return _changed(
        config,
        place,
        "both",
        corpus=_corpus(place, "both", table),
        sample={"size": _ALL},
        annotate=_recorded(config.annotate, path),
        train={"variants": ["llambert"]},
    )


def check_apart(config: RunConfig, place: str) -> None:
    """Refuse ids that the corpus' sample and gold.train share; both are drawn, no LLM is asked."""
    drawn = set()
    for run in (extra_run(config, place), train_run(config, place)):
        do(run, "run", "--until", "sample")
        sample = Pipeline(run).workdir.sample.read_table("sample.parquet", ["id"])
        ids = set(sample["id"].to_pylist())
        if both := drawn & ids:
            raise SystemExit(
                f"the corpus and gold.train have {len(both):,} ids in common, {min(both)!r} among "
                "them: make them unique (corpus.id, gold.id), and keep gold's records apart"
            )
        drawn = ids


def do(config: RunConfig, *command: str) -> None:
    """`llambert COMMAND` on `config`."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{config.name}.yaml"
        Path(path).write_text(dump(config), encoding="utf-8")
        words = [sys.executable, "-m", "llambert", command[0], path, *command[1:]]
        done = subprocess.run(words)
    if done.returncode:
        raise SystemExit(done.returncode)


def located(place: str) -> str:
    """`place`, absolute where it is a local folder."""
    return place if is_remote(place) else os.path.abspath(place)


def mean_told(values: Sequence[float]) -> str:
    """The mean of one value a seed, with Student's interval where there are several."""
    mean = sum(values) / len(values)
    half = f" ± {student_interval(values)[1] - mean:.2f}" if len(values) > 1 else ""
    return f"{mean:.2f}{half}"


def _corpus(place: str, name: str, records: pa.Table) -> dict[str, Any]:
    """`records` as a corpus."""
    path = _written(place, f"{name}-corpus.parquet", records.select(["id", "text"]))
    return {"path": path, "format": "parquet", "id": "id", "text": "text"}


def _recorded(config: AnnotateConfig, path: str) -> dict[str, Any]:
    """Answers of `config`'s LLM that are in a table: of its settings none but how they are read."""
    recorded = {"path": path, "id": "id", "response": "response"}
    kept = config.model_dump(include={"parse", "max_failed_share"})
    values = kept | {"engine": "recorded", "recorded": recorded, "gold_records": 0}
    return AnnotateConfig.model_validate(values).model_dump()


def _written(place: str, file: str, table: pa.Table) -> str:
    """The path of `file` with `table`; untouched where it has it, as runs go by a file's time."""
    folder = Folder(place)
    if not (folder.exists(file) and folder.read_table(file).equals(table)):
        folder.write_table(file, table)
    return f"{place}/{file}"


def _changed(config: RunConfig, place: str, name: str, **sections: dict[str, Any]) -> RunConfig:
    values = config.model_dump()
    for section, changes in sections.items():
        values[section] |= changes
    values["label"]["variant"] = None
    values["gates"] = GatesConfig().model_dump()  # their figures would be those of another run
    return RunConfig.model_validate(values | {"name": name, "workdir": f"{place}/{name}"})
