"""What `label_throughput.py` measures: our label stage and its peers, each as its users run it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from llambert.corpus import inspect_corpus
from llambert.encoder import load_classifier, load_tokenizer, tokenize
from llambert.label import LabelConfig, label
from llambert.progress import Counter, Progress, RayCounter
from llambert.records import CorpusConfig, open_corpus
from llambert.storage import Folder

_FILES = 8  # of the corpus: the recipe reads a file in one task
_PRODUCT = 4096  # rows and columns of the matrices multiplied
_VLLM_TIMEOUT_S = 900

Run = Callable[["Work"], tuple[float, float]]  # records per second, share of padding


@dataclass(frozen=True)
class Work:
    """The records and the model that every candidate gets."""

    place: str  # for what is written
    corpus: str  # a folder of Parquet files with id and text
    model: str
    lengths: tuple[int, ...]  # tokens of each record, in the order of the files
    flop: tuple[float, ...]  # of each record
    max_length: int
    device: str
    dtype: str
    workers: int

    @property
    def records(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def gflop(self) -> float:
        """Of all records, padding left out."""
        return sum(self.flop) / 1e9

    def describe(self) -> dict[str, Any]:
        names = ("max_length", "device", "dtype", "workers")
        sizes = {"records": self.records, "tokens": self.tokens, "gflop": round(self.gflop, 1)}
        return sizes | {name: getattr(self, name) for name in names}

    def texts(self) -> list[str]:
        return pyarrow.dataset.dataset(self.corpus).to_table(columns=["text"])["text"].to_pylist()


def prepare(
    corpus: str,
    text: str,
    model: str,
    records: int,
    max_length: int,
    device: str,
    dtype: str,
    place: str,
) -> Work:
    """Lay out the first `records` texts and `model` as a classifier of two labels."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    tokenizer = load_tokenizer(model)
    tokenizer.model_max_length = max_length
    folder = f"{place}/model"
    tokenizer.save_pretrained(folder)
    classifier = load_classifier(model, ["negative", "positive"])
    classifier.save_pretrained(folder)
    table = pyarrow.dataset.dataset(corpus).head(records, columns=[text])
    texts = table[text].to_pylist()
    lengths = tuple(len(tokens) for tokens in tokenize(tokenizer, texts, max_length))
    workers = torch.cuda.device_count() if device == "cuda" else os.cpu_count() or 1
    flop = tuple(_flop(classifier.config, length) for length in lengths)
    work = Work(place, f"{place}/all", folder, lengths, flop, max_length, device, dtype, workers)
    _write(texts, work.corpus)
    return work


def _flop(config: Any, tokens: int) -> float:
    """Multiplications and additions of a BERT-like encoder for one sequence; heads left out."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    linear = 2 * tokens * (4 * width * width + 2 * width * inner)
    return layers * (linear + 4 * tokens * tokens * width)


def _write(texts: list[str], folder: str) -> None:
    Path(folder).mkdir(parents=True)
    table = pa.table({"id": [f"r{i:08d}" for i in range(len(texts))], "text": texts})
    size = -(-len(texts) // _FILES)
    for number in range(_FILES):
        part = table.slice(number * size, size)
        pq.write_table(part, f"{folder}/{number:02d}.parquet", row_group_size=256)


def _first(work: Work, records: int) -> Work:
    """The first `records` of `work`."""
    records = min(records, work.records)
    part = replace(
        work,
        corpus=f"{work.place}/first-{records}",
        lengths=work.lengths[:records],
        flop=work.flop[:records],
    )
    _write(work.texts()[:records], part.corpus)
    return part


def run_ours(work: Work, turn: int) -> tuple[float, float]:
    """The label stage as `llambert run` runs it, from the first actor ready to the last file."""
    corpus = open_corpus(CorpusConfig(path=work.corpus, format="parquet", id="id"))
    inventory = Folder(f"{work.corpus}-inventory")
    with Progress("label", quiet=True) as progress:
        inspect_corpus(corpus, inventory, Folder(f"{work.corpus}-quarantine"), progress)
        outcome = label(
            LabelConfig(dtype=work.dtype),
            corpus,
            inventory,
            work.records,
            work.model,
            f"turn {turn}",
            Folder(f"{work.place}/ours"),
            progress,
        )
    return outcome.details["records_per_s"], outcome.details["padding_share"]


class Recipe:
    """A class for `map_batches` as Ray's guides to batch inference write it."""

    def __init__(self, model: str, max_length: int, device: str, dtype: str, counter: Counter):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._device, self._max_length, self._counter = device, max_length, counter
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModelForSequenceClassification.from_pretrained(
            model, dtype=getattr(torch, dtype)
        ).to(device)
        self._model.eval()
        counter.add(0)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        inputs = self._tokenizer(
            list(batch["text"]),
            padding=True,
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            shares = self._model(**inputs).logits.float().softmax(-1).cpu().numpy()
        self._counter.add(len(shares))
        return {"id": batch["id"], "label": shares.argmax(1), "confidence": shares.max(1)}


def ray_recipe(rows: int, work: Work) -> tuple[float, float]:
    """The same corpus through `Recipe`, an actor for each core or GPU."""
    import ray

    counter = RayCounter()
    # an actor for each core, and one core's worth left for reading, without which nothing starts
    cpus = {"num_cpus": 1 - 1 / work.workers}
    files = ray.data.read_parquet(work.corpus, override_num_blocks=_FILES)
    files.map_batches(
        Recipe,
        fn_constructor_kwargs={
            "model": work.model,
            "max_length": work.max_length,
            "device": work.device,
            "dtype": work.dtype,
            "counter": counter,
        },
        batch_size=rows,
        concurrency=work.workers,
        **({"num_gpus": 1} if work.device == "cuda" else cpus),
    ).write_parquet(f"{work.place}/recipe", mode="overwrite")
    rate = work.records / counter.since_first_report()
    return rate, _padding(work, rows)


def _padding(work: Work, rows: int) -> float:
    """Of batches of `rows` records as they come, padded to their longest."""
    batches = [work.lengths[start : start + rows] for start in range(0, work.records, rows)]
    return 1 - work.tokens / sum(len(batch) * max(batch) for batch in batches)


def pipeline(rows: int, work: Work) -> tuple[float, float]:
    """`transformers.pipeline` over a list of texts, all cores or one GPU."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    classify = transformers.pipeline(
        "text-classification",
        model=work.model,
        device=work.device,
        dtype=getattr(torch, work.dtype),
        batch_size=rows,
    )
    texts = work.texts()
    settings = {"truncation": True, "max_length": work.max_length}
    classify(texts[: 2 * rows], **settings)
    started = time.perf_counter()
    classify(texts, **settings)
    return work.records / (time.perf_counter() - started), _padding(work, rows)


_VLLM = """
import json, sys, time
from vllm import LLM
from llambert.encoder import load_tokenizer, tokenize

model, dtype, max_length, cuda, texts = json.load(sys.stdin)
llm = LLM(model=model, runner="pooling", dtype=dtype, max_model_len=max_length,
          enforce_eager=not cuda, disable_log_stats=True)
tokenizer = load_tokenizer(model)

def run(part):
    tokens = tokenize(tokenizer, part, max_length)
    return llm.classify([{"prompt_token_ids": each.tolist()} for each in tokens], use_tqdm=False)

run(texts[:32])
started = time.perf_counter()
found = run(texts)
assert len(found) == len(texts)
print("records/s", len(texts) / (time.perf_counter() - started))
"""


def vllm_classify(_: int, work: Work) -> tuple[float, float]:
    """vLLM's `LLM.classify` in a process of its own; it batches by itself and pads nothing."""
    on_cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    what = [work.model, work.dtype, work.max_length, work.device == "cuda", work.texts()]
    done = subprocess.run(
        [sys.executable, "-c", _VLLM],
        input=json.dumps(what),
        capture_output=True,
        text=True,
        timeout=_VLLM_TIMEOUT_S,
        env=os.environ | (on_cpu if work.device == "cpu" else {}),
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    # among the lines that vLLM writes there too
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("records/s ")]
    return float(said.split()[1]), 0.0


# Each peer and the batch sizes, in records, of which it gets its best.
PEERS: dict[str, tuple[Callable[[int, Work], tuple[float, float]], tuple[int, ...]]] = {
    "ray_recipe": (ray_recipe, (8, 16, 32, 64, 128, 256)),
    "pipeline": (pipeline, (1, 8, 32, 64, 256)),
    "vllm_classify": (vllm_classify, (0,)),
}


def calibrate(
    work: Work, peers: list[str], records: int
) -> tuple[dict[str, Run], dict[str, float | str]]:
    """Each peer at its best setting, with the documented recipe in any case; and what was tried."""
    part = _first(work, records)
    tried: dict[str, float | str] = {}
    chosen: dict[str, Run] = {}
    for peer in peers:
        run, sizes = PEERS[peer]
        rates = {}
        for rows in sizes:
            name = f"{peer}_{rows}" if rows else peer
            try:
                rates[rows], _ = run(rows, part)
                tried[name] = rates[rows]
            except Exception as error:  # a peer that does not run here is no reason to stop
                tried[name] = f"{type(error).__name__}: {error}"
            print(f"tried {name:<24} {tried[name]}", flush=True)
        wanted = {max(rates, key=lambda rows: rates[rows])} if rates else set()
        wanted |= {64} if peer == "ray_recipe" and 64 in rates else set()
        for rows in sorted(wanted):
            chosen[f"{peer}_{rows}" if rows else peer] = partial(run, rows)
    return chosen, tried


def matmul_gflops(work: Work) -> float:
    """The rate of the product of two large matrices, by the faster of the libraries at hand."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    a, b = (
        torch.randn(_PRODUCT, _PRODUCT, dtype=getattr(torch, work.dtype), device=work.device)
        for _ in range(2)
    )
    ways = [lambda: a @ b]
    if work.device == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(b)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], ""))
    return max(2 * _PRODUCT**3 / _seconds(way, work.device) / 1e9 for way in ways)


def _seconds(way: Callable[[], Any], device: str, repeats: int = 5) -> float:
    import torch

    best = float("inf")
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        way()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
