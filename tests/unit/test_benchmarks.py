"""What the benchmarks work out by themselves: parts, flipped labels, claims, rates, ratios."""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from imdb_splits import split
from label_throughput import one_turn, summary, table
from labelling_peers import (
    PEERS,
    Recipe,
    Work,
    _flop,
    _padding,
    calibrate,
    first,
    past_the_best,
    prepare,
)
from noise import flipped
from noise_aware import contradicted, hits
from paper import COLUMNS, TABLE
from paper_runs import _written, both_run, extra_run, train_run
from paper_table import claim, column, correctness
from paper_table import table as paper_lines
from provenance import provenance
from scaling import growth, watch

from llambert.config import load
from llambert.gates import GatesConfig
from llambert.pipeline import Pipeline
from llambert.storage import Folder
from tests.tiny_roberta import easy_records


def source(folder: Path) -> str:
    records = easy_records(100)
    columns = {"id": records["id"], "text": records["text"], "gold": records["label"]}
    pq.write_table(pa.table(columns | {"llama2_70b": records["label"]}), folder / "all.parquet")
    return str(folder / "all.parquet")


def ids(table: pa.Table) -> list[str]:
    return table["id"].to_pylist()


def test_parts_are_apart_and_larger_ones_contain_smaller_ones(tmp_path):
    small = split(source(tmp_path), str(tmp_path), train=10, extra=20, test=30)
    large = split(source(tmp_path), str(tmp_path), train=20, extra=50, test=30)
    assert ids(small["test"]) == ids(large["test"])
    assert set(ids(small["train"])) < set(ids(large["train"]))
    assert set(ids(small["extra"])) < set(ids(large["extra"]))
    parts = [ids(large[name]) for name in ("test", "train", "extra")]
    assert sorted(id for part in parts for id in part) == sorted(ids(large["answers"]))
    assert pq.read_schema(tmp_path / "extra.parquet").names == ["id", "text"]  # no gold
    with pytest.raises(SystemExit, match="more than the 100"):
        split(source(tmp_path), str(tmp_path), train=60, extra=50, test=30)


def test_a_file_that_a_run_goes_by_is_written_once(tmp_path):
    table = easy_records(10)
    path = Path(_written(str(tmp_path), "answers.parquet", table))
    os.utime(path, (1, 1))
    _written(
        str(tmp_path), "answers.parquet", pa.concat_tables([table.slice(0, 4), table.slice(4)])
    )
    assert path.stat().st_mtime == 1
    _written(str(tmp_path), "answers.parquet", table.slice(4))
    assert path.stat().st_mtime > 1 and pq.read_table(path).num_rows == 6


def test_a_share_of_the_labels_is_flipped_and_a_larger_one_contains_it():
    records, labels = easy_records(200), ["negative", "positive", "mixed"]

    def changed(percent: float, seed: int) -> set[str]:
        noisy = flipped(records, labels, percent, seed)
        assert noisy["text"].equals(records["text"])
        before, after = records["label"].to_pylist(), noisy["label"].to_pylist()
        assert set(after) <= set(labels)
        return {i for i, a, b in zip(ids(records), before, after, strict=True) if a != b}

    assert changed(0, 1) == set()
    assert len(changed(10, 1)) == 20
    assert changed(10, 1) < changed(48.5, 1) and len(changed(48.5, 1)) == 97
    assert changed(10, 1) != changed(10, 2)


def test_what_is_suspected_is_held_against_what_gold_contradicts():
    gold = pa.table({"id": ["c", "b", "a", "more"], "label": ["good", "bad", "good", "bad"]})
    said = pa.table({"id": ["a", "b", "c"], "label": ["good", "good", "good"]})
    wrong = contradicted(said, gold)
    assert wrong.tolist() == [False, True, False]
    suspects = np.array([True, True, False])
    assert hits(suspects, wrong) == {"records": 3, "suspected": 2, "wrong": 1, "both": 1}


def test_claims_are_as_sure_as_their_interval():
    rng = np.random.default_rng(0)
    right = {name: rng.random((3, 5000)) < p for name, p in {"a": 0.9, "b": 0.9, "c": 0.8}.items()}
    assert claim(right, "a", "c", 0.0, None)["verdict"] == "confirmed"
    assert claim(right, "c", "b", -1.0, None)["verdict"] == "refuted"
    assert claim(right, "a", "b", 0.0, None)["verdict"] == "undecided"
    assert claim(right, "a", "b", None, 3.0)["verdict"] == "confirmed"
    one_seed = {name: each[:1] for name, each in right.items()}
    found = claim(one_seed, "a", "c", 0.0, None)
    # two independent shares: 1.96 * sqrt(0.9 * 0.1 / 5000 + 0.8 * 0.2 / 5000)
    assert found["half_interval"] == pytest.approx(1.386, abs=0.06)
    assert found["verdict"] == "undecided with one seed"  # though 10 points apart
    assert column(one_seed["a"])["over_seeds"] is None
    assert column(right["a"])["over_seeds"][0] < 90 < column(right["a"])["over_seeds"][1]


def test_the_table_is_of_what_the_three_runs_predicted(tmp_path):
    """100 test records, 90 of them right by gold's labels, 88, 91 and 95 by the others."""
    right = {"baseline": 90, "llambert": 88, "llambert + extra": 91, "combined": 95}
    where = ("train/baseline", "train/llambert", "both/llambert", "extra/combined")
    for place, number in zip(where, right.values(), strict=True):
        run, variant = place.split("/")
        said = ["yes" if i < number else "no" for i in range(100)]
        for seed in (1, 2):
            Folder(f"{tmp_path}/{run}/evaluation/predictions").write_table(
                f"{variant}-seed-{seed}.parquet", pa.table({"gold": ["yes"] * 100, "label": said})
            )
    config = SimpleNamespace(train=SimpleNamespace(seeds=[1, 2]))
    found = correctness(config, str(tmp_path))
    assert {name: each.sum(axis=1).tolist() for name, each in found.items()} == {
        name: [number, number] for name, number in right.items()
    }
    columns = {name: column(found[name]) for name in COLUMNS}
    claims = {"combined above baseline": claim(found, "combined", "baseline", 0.0, None)}
    lines = paper_lines(columns, claims, {"a": TABLE["roberta-large"]})
    cells = [f"{number:.2f} ± 0.00" for number in right.values()]
    assert lines[2] == f"| here, 2 seeds | {' | '.join(cells)} |"
    assert lines[-1].startswith("- combined above baseline: confirmed (+5.00 ± 4.29 points")


def test_the_papers_own_run_file_makes_all_three_runs(tmp_path, monkeypatch):
    """An LLM on GPUs at a temperature, and a gate on it: recorded answers have neither."""
    monkeypatch.setenv("LLAMBERT_STORE", str(tmp_path))
    for folder, name in {"extra": "text", "train": "gold", "test": "gold"}.items():
        (tmp_path / "imdb" / folder).mkdir(parents=True)
        rows = {"id": ["1", "2"], "text": ["one", "two"], name: ["negative", "positive"]}
        pq.write_table(pa.table(rows), tmp_path / "imdb" / folder / "part.parquet")
    job = Path(__file__).parents[2] / "jobs" / "imdb-llama2-70b.yaml"
    config = load(str(job), ["gates.llm_accuracy=0.9"])
    assert (config.annotate.temperature, config.annotate.device) == (1.0, "gpu")
    place = str(tmp_path / "place")
    extra, train = extra_run(config, place), train_run(config, place)
    assert train.annotate == config.annotate.model_copy(update={"gold_records": 0})
    for run, id in ((extra, "1"), (train, "2")):
        pipeline = Pipeline(run)
        (annotate,) = pipeline.steps("annotate")
        answered = pa.table({"id": [id, "of gold"], "response": ["positive", "negative"]})
        annotate.folder.write_table("annotations.parquet", answered)
        sample = pa.table({"id": [id], "text": [f"text {id}"]})
        pipeline.workdir.sample.write_table("sample.parquet", sample)
    both = both_run(config, place)
    assert both.annotate.engine == "recorded" and both.gates == train.gates == GatesConfig()
    assert pq.read_table(both.annotate.recorded.path)["id"].to_pylist() == ["1", "2"]


def test_a_command_that_says_much_is_watched_to_its_end():
    much = (
        "import sys, time; print('a' * 10**6); print('b' * 10**6, file=sys.stderr); time.sleep(1)"
    )
    said, series = watch([sys.executable, "-c", much])
    assert said == "a" * 10**6 + "\n"
    assert len(series["seconds"]) == len(series["driver"]) and max(series["driver"]) > 0
    with pytest.raises(SystemExit, match="what was wrong"):
        watch([sys.executable, "-c", "raise SystemExit('what was wrong')"])


def test_growth_is_that_of_the_two_largest_sizes_with_as_many_workers():
    def row(records: int, workers: int, mib: float, rate: float) -> dict[str, Any]:
        parts = ("driver", "largest_worker", "all_workers", "object_store")
        peaks = {part: mib * (1 + (part == "all_workers")) for part in parts}
        sizes = {"records": records, "workers": workers}
        return sizes | {"peak_mib": peaks, "records_per_s": rate}

    rows = [row(10, 1, 1, 1), row(100, 1, 200, 10), row(100, 2, 100, 20)]
    rows += [row(1000, 1, 210, 9), row(1000, 2, 150, 22)]
    one, two = growth(rows)
    assert (one["workers"], one["from"], one["to"]) == (1, 100, 1000)
    assert one["change"] == pytest.approx(
        {
            "driver": 0.05,
            "largest_worker": 0.05,
            "all_workers": 0.05,
            "object_store": 0.05,
            "records_per_s": -0.1,
        }
    )
    assert two["change"]["driver"] == 0.5
    assert two["change"]["records_per_s"] == pytest.approx(0.1)
    assert growth(rows[:1]) == []


def test_a_result_says_what_it_stands_on():
    found = provenance(argparse.Namespace(records=3, json="x.json"))
    assert found["arguments"] == {"records": 3, "json": "x.json"}
    assert {"command", "date", "commit"} < set(found)
    assert found["hardware"]["cores"] == os.cpu_count() and found["hardware"]["cpu"]
    assert found["versions"]["ray"] and found["versions"]["torch"] and found["versions"]["python"]
    json.dumps(found)


def test_a_dataset_held_until_ready_is_timed_to_its_last_task():
    from clock import Clock, all_ready
    from ray.data import DataContext

    context = DataContext.get_current()
    with all_ready() as seconds:
        assert context.wait_for_min_actors_s > 0
        assert Clock in context.custom_execution_callback_classes
        with pytest.raises(RuntimeError, match="no Dataset"):
            seconds()
        outer, inner = Clock(), Clock()  # an execution may start another
        outer.before_execution_starts(None)
        time.sleep(0.05)
        inner.before_execution_starts(None)
        inner.on_execution_step(None)
        inner.after_execution_succeeds(None)
        outer.on_execution_step(None)
        time.sleep(0.5)  # stopping the actors
        outer.after_execution_succeeds(None)
        assert 0.05 <= seconds() < 0.5
    assert context.wait_for_min_actors_s <= 0
    assert Clock not in context.custom_execution_callback_classes


WORK = Work(
    place="",
    corpus="",
    model="",
    lengths=(10, 20, 10, 40),
    flop=(1e9, 2e9, 1e9, 6e9),
    max_length=512,
    device="cpu",
    dtype="float32",
    workers=2,
)


def test_a_summary_has_every_figure_and_ratios_of_the_turns_that_both_have_run():
    runs = {
        "ours": [8.0, 12.0, 10.0],
        "ray_recipe_64": [2.0, 2.0, 2.0],
        "pipeline_1": [4.0, None, 8.0],
        "vllm_classify_eager": [None, None, None],
    }
    paddings = {"ours": 0.0, "ray_recipe_64": 0.5, "pipeline_1": 0.1}
    found = json.loads(json.dumps(summary(WORK, runs, paddings, [50.0, 40.0, 50.0])))
    assert found["ours"] == {
        "records_per_s": 10.0,
        "tokens_per_s": 200.0,  # 80 tokens in 4 records
        "useful_gflops": 25.0,  # 10 GFLOP in 4 records
        "padding_share": 0.0,
        "runs": [8.0, 12.0, 10.0],
    }
    assert set(found["peers"]) == {"ray_recipe_64", "pipeline_1"}  # the third never ran
    assert all(set(each) == set(found["ours"]) for each in found["peers"].values())
    assert found["peers"]["ray_recipe_64"]["padding_share"] == 0.5
    assert found["matmul_gflops"] == 50.0 and found["matmul_runs"] == [50.0, 40.0, 50.0]
    assert found["ratio_to_ray_recipe_64"] == 5.0  # of 4, 6, 5
    assert found["best_peer"] == "pipeline_1"
    assert found["ratio_to_best_peer"] == pytest.approx((8 / 4 + 10 / 8) / 2)
    assert found["fraction_of_matmul"] == 0.5  # of 20 / 50, 30 / 40, 25 / 50
    assert found["work"]["records"] == 4 and found["work"]["tokens"] == 80
    lines = table(found).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["ours", "ray_recipe_64", "pipeline_1"]
    alone = summary(WORK, {"ours": [8.0]}, {"ours": 0.0}, [40.0])
    assert alone["ratio_to_best_peer"] is alone["ratio_to_ray_recipe_64"] is None
    assert alone["peers"] == {} and "-" in table(alone)


def test_a_peer_that_fails_in_a_turn_costs_no_other_figure():
    def fails(work: Work) -> tuple[float, float]:
        raise TimeoutError("900 seconds")

    runs: dict[str, list[float | None]] = {"ours": [], "vllm": [], "pipeline": []}
    paddings: dict[str, float] = {}
    failed: list[str] = []
    runnable = {"ours": lambda work: (3.0, 0.0), "vllm": fails, "pipeline": lambda work: (2.0, 0.1)}
    one_turn(0, runnable, WORK, runs, paddings, failed)
    assert runs == {"ours": [3.0], "vllm": [None], "pipeline": [2.0]}
    assert paddings == {"ours": 0.0, "pipeline": 0.1}
    assert failed == ["turn 1: vllm: TimeoutError: 900 seconds"]
    assert list(paddings) == ["ours", "pipeline"]
    backwards: dict[str, float] = {}
    one_turn(1, runnable, WORK, {name: [] for name in runs}, backwards, [])
    assert list(backwards) == ["pipeline", "ours"]  # what one leaves behind is on both sides
    with pytest.raises(TimeoutError):  # without ours there is nothing to compare
        one_turn(1, {"ours": fails}, WORK, runs, paddings, failed)


def test_settings_are_tried_until_two_in_a_row_are_slower():
    assert [past_the_best(rates) for rates in ([], [3], [3, 2], [3, 2, 1], [1, 3, 2])] == [
        False,
        False,
        False,
        True,
        False,
    ]
    assert past_the_best([1, 3, 2, 2]) and not past_the_best([3, 2, 4])


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    from tests.tiny_roberta import make_tiny_roberta

    place = tmp_path_factory.mktemp("labelling")
    encoder = make_tiny_roberta(place / "roberta")
    pq.write_table(easy_records(2600), place / "all.parquet")
    work = prepare(
        str(place / "all.parquet"), "text", encoder, 2500, 64, "cpu", "float32", str(place)
    )
    return replace(work, workers=2)


def test_a_corpus_is_laid_out_in_as_many_files_for_each_worker(laid_out):
    assert laid_out.records == len(laid_out.flop) == 2500
    part = first(laid_out, 1300)
    files = sorted(Path(part.corpus).iterdir())
    assert len(files) == part.files == 2
    assert [pq.read_metadata(file).num_rows for file in files] == [650, 650]
    assert part.texts() == laid_out.texts()[:1300] == easy_records(2600)["text"].to_pylist()[:1300]
    assert part.lengths == laid_out.lengths[:1300] and part.gflop < laid_out.gflop
    assert first(laid_out, 2100).files == 4


def test_padding_is_that_of_batches_as_they_come():
    assert _padding(WORK, 1) == 0
    assert _padding(WORK, 2) == pytest.approx(1 - 80 / (2 * 20 + 2 * 40))
    assert _padding(WORK, 4) == pytest.approx(0.5)


def test_the_work_of_an_encoder_is_what_torch_counts():
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    from llambert.first_tokens import Ends, FirstTokensLayer

    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=64,
    )
    config._attn_implementation = "eager"
    model = BertModel(config, add_pooling_layer=False).eval()
    model.encoder.layer[-1] = FirstTokensLayer(model.encoder.layer[-1])
    ends = Ends(torch.tensor([0]), [(0, 1, 17)], None, 17)
    counted = sdpa_kernel(SDPBackend.MATH)  # torch does not count in its CPU's fused kernel
    with FlopCounterMode(display=False) as counter, torch.no_grad(), counted:
        model(torch.zeros((1, 17), dtype=torch.int64), ends=ends)
    assert _flop(config, 17) == counter.get_total_flops() > 0


def test_the_recipe_labels_and_is_warm_when_it_is_made(laid_out, monkeypatch):
    from torch.nn.modules.module import register_module_forward_hook

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    passes: list[str] = []
    hook = register_module_forward_hook(lambda module, *_: passes.append(type(module).__name__))
    try:
        recipe = Recipe(laid_out.model, 64, "cpu", "float32")
    finally:
        hook.remove()
    assert passes.count("RobertaForSequenceClassification") == 1
    assert "TOKENIZERS_PARALLELISM" not in os.environ  # its users have all cores for it
    found = recipe({"id": np.array(["a", "b"]), "text": np.array(["a film", "a good film"])})
    assert found["id"].tolist() == ["a", "b"] and set(found["label"]) <= {0, 1}
    assert (found["confidence"] >= 0.5).all()


def test_the_fastest_setting_is_chosen_and_what_fails_is_told(laid_out, monkeypatch):
    def run(setting: int, work: Work) -> tuple[float, float]:
        assert work.records == 512  # a largest batch for each worker
        if setting == 8:
            raise MemoryError("no room")
        return {16: 5.0, 32: 6.0, 64: 4.0, 128: 3.0}[setting], 0.0

    monkeypatch.setitem(PEERS, "ray_recipe", (run, (8, 16, 32, 64, 128, 256)))
    monkeypatch.setitem(PEERS, "pipeline", (run, (8,)))
    chosen, tried = calibrate(laid_out, ["ray_recipe", "pipeline"], None)
    assert list(chosen) == ["ray_recipe_32", "ray_recipe_64"]
    assert chosen["ray_recipe_32"](replace(WORK, lengths=(1,) * 512)) == (6.0, 0.0)
    assert tried["ray_recipe_8"] == tried["pipeline_8"] == "MemoryError: no room"
    assert "ray_recipe_128" in tried and "ray_recipe_256" not in tried


def test_a_pipeline_runs_over_all_texts(laid_out):
    run, _ = PEERS["pipeline"]
    rate, padding = run(32, first(laid_out, 100))
    assert rate > 0 and 0 < padding < 1
