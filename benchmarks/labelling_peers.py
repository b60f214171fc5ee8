"""What `label_throughput.py` measures: our label stage and its peers, each as its users run it."""

import gc
import itertools
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

from llambert.classify import labelling_dtype
from llambert.corpus import inspect_corpus
from llambert.encoder import load_classifier, load_tokenizer, tokenize
from llambert.label import LabelConfig, label
from llambert.progress import Progress
from llambert.records import CorpusConfig, open_corpus
from llambert.storage import Folder

_ROWS_A_FILE = 500  # about: the recipe reads a file in one task, and ends a batch with it
_LARGEST_BATCH = 256  # records
# Records for each setting and worker: a whole largest batch, on a GPU enough of them for a second.
_CALIBRATION = {"cpu": _LARGEST_BATCH, "cuda": 16 * _LARGEST_BATCH}
_VLLM_TIMEOUT_S = 900
_VLLM_GPU_SHARE = 0.5  # of a card's memory, of which the driver holds some
# Set by our connection to Ray, for processes that tokenize beside one another; not by users of
# the peers, whose tokenizers it would keep to one thread.
_ONE_THREAD = "TOKENIZERS_PARALLELISM"

Setting = int | str  # records in a batch, or how vLLM runs the model
Run = Callable[["Work"], tuple[float, float]]  # records per second, share of padding


@dataclass(frozen=True)
class Work:
    """The records and the model that every candidate gets."""

    place: str  # for what is written
    corpus: str  # a folder of Parquet files with id and text
    model: str
    lengths: tuple[int, ...]  # tokens of each record, in the order of the files
    flop: tuple[float, ...]  # that each record needs
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

    @property
    def files(self) -> int:
        """As many for each worker, so that all have the same to do."""
        return self.workers * max(1, self.records // (_ROWS_A_FILE * self.workers))

    def describe(self) -> dict[str, Any]:
        names = ("max_length", "device", "dtype", "workers", "files")
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
    """Lay out the first `records` texts and `model` as a classifier of two labels.

    Needs a connected Ray, which is asked what its CPUs are.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = labelling_dtype("auto")
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
    _write(texts, work)
    return work


def _flop(config: Any, tokens: int) -> float:
    """Multiplications and additions that a BERT-like encoder needs to classify one sequence.

    Heads are left out, and so is what nobody reads: of the last layer's outputs all but the first
    token's, which takes keys and values of the others alone.
    """
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    keys, others = 4 * width * width, 4 * width * width + 4 * width * inner  # of one token
    attended = 4 * tokens * width
    each = tokens * (keys + others + attended)
    return (layers - 1) * each + tokens * keys + others + attended


def _write(texts: list[str], work: Work) -> None:
    """The corpus of `work`, in files of equal size."""
    Path(work.corpus).mkdir(parents=True)
    table = pa.table({"id": [f"r{i:08d}" for i in range(len(texts))], "text": texts})
    ends = [len(texts) * number // work.files for number in range(work.files + 1)]
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        part = table.slice(start, end - start)
        pq.write_table(part, f"{work.corpus}/{number:04d}.parquet", row_group_size=256)


def first(work: Work, records: int) -> Work:
    """The first `records` of `work`, laid out anew."""
    records = min(records, work.records)
    part = replace(
        work,
        corpus=f"{work.place}/first-{records}",
        lengths=work.lengths[:records],
        flop=work.flop[:records],
    )
    _write(work.texts()[:records], part)
    return part


def run_ours(turn: int, work: Work) -> tuple[float, float]:
    """The label stage as `llambert run` runs it, from all actors ready to the last file."""
    from clock import all_ready

    corpus = open_corpus(CorpusConfig(path=work.corpus, format="parquet", id="id"))
    inventory = Folder(f"{work.corpus}-inventory")
    with Progress("label", quiet=True) as progress:
        inspect_corpus(corpus, inventory, Folder(f"{work.corpus}-quarantine"), progress)
        with all_ready() as seconds:
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
    return work.records / seconds(), outcome.details["padding_share"]


class Recipe:
    """A class for `map_batches` as Ray's guides to batch inference write it."""

    def __init__(self, model: str, max_length: int, device: str, dtype: str):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        os.environ.pop(_ONE_THREAD, None)
        self._device, self._max_length = device, max_length
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModelForSequenceClassification.from_pretrained(
            model, dtype=getattr(torch, dtype)
        ).to(device)
        self._model.eval()
        self._shares(["a film " * max_length])  # ours too has run its model once when it is ready

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        shares = self._shares(list(batch["text"]))
        return {"id": batch["id"], "label": shares.argmax(1), "confidence": shares.max(1)}

    def _shares(self, texts: list[str]) -> Any:
        import torch

        inputs = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            return self._model(**inputs).logits.float().softmax(-1).cpu().numpy()


def ray_recipe(rows: int, work: Work) -> tuple[float, float]:
    """The same corpus through `Recipe`, an actor for each core or GPU, and timed as ours."""
    from clock import all_ready

    # an actor for each core, and one core's worth left for reading, without which nothing starts
    cpus = {"num_cpus": 1 - 1 / work.workers}
    settings = ("model", "max_length", "device", "dtype")
    with all_ready() as seconds:
        read_blocks(work.corpus, work.files).map_batches(
            Recipe,
            fn_constructor_kwargs={name: getattr(work, name) for name in settings},
            batch_size=rows,
            concurrency=work.workers,
            **({"num_gpus": 1} if work.device == "cuda" else cpus),
        ).write_parquet(f"{work.place}/recipe", mode="overwrite")
    return work.records / seconds(), _padding(work, rows)


def read_blocks(corpus: str, blocks: int) -> Any:
    """A Dataset of the Parquet files in so many blocks.

    Ray's newer reader makes one of small files, whatever is asked for, and that would leave all
    work to one actor.
    """
    import ray

    context = ray.data.DataContext.get_current()
    newer, context.use_datasource_v2 = context.use_datasource_v2, False
    try:
        return ray.data.read_parquet(corpus, override_num_blocks=blocks)
    finally:
        context.use_datasource_v2 = newer


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

settings, max_length, texts = json.load(sys.stdin)
llm = LLM(runner="pooling", max_model_len=max_length, disable_log_stats=True, **settings)
tokenizer = load_tokenizer(settings["model"])

def run(part):
    tokens = tokenize(tokenizer, part, max_length)
    return llm.classify([{"prompt_token_ids": each.tolist()} for each in tokens], use_tqdm=False)

run(texts[:32])
started = time.perf_counter()
found = run(texts)
assert len(found) == len(texts)
print("records/s", len(texts) / (time.perf_counter() - started))
"""


def vllm_classify(way: str, work: Work) -> tuple[float, float]:
    """vLLM's `LLM.classify` in a process of its own; it batches by itself and pads nothing.

    Args:
        way: 'eager' or 'compiled': how it runs the model.
    """
    settings = {"model": work.model, "dtype": work.dtype, "enforce_eager": way == "eager"}
    environment = {name: value for name, value in os.environ.items() if name != _ONE_THREAD}
    if work.device == "cuda":
        settings["gpu_memory_utilization"] = _VLLM_GPU_SHARE
    else:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    done = subprocess.run(
        [sys.executable, "-c", _VLLM],
        input=json.dumps([settings, work.max_length, work.texts()]),
        capture_output=True,
        text=True,
        timeout=_VLLM_TIMEOUT_S,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
    # among the lines that vLLM writes there too
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("records/s ")]
    return float(said.split()[1]), 0.0


# Each peer and the settings of which it gets its best; batch sizes in records, smallest first.
PEERS: dict[str, tuple[Callable[[Any, Work], tuple[float, float]], tuple[Setting, ...]]] = {
    "ray_recipe": (ray_recipe, (8, 16, 32, 64, 128, _LARGEST_BATCH)),
    "pipeline": (pipeline, (1, 8, 32, 64, _LARGEST_BATCH)),
    "vllm_classify": (vllm_classify, ("eager", "compiled")),
}


def calibrate(
    work: Work, peers: list[str], records: int | None
) -> tuple[dict[str, Run], dict[str, float | str]]:
    """Each peer at its best setting, with the documented recipe in any case; and what was tried.

    Args:
        records: for each setting; None: a whole largest batch for each worker, on a GPU several.
    """
    part = first(work, records or _CALIBRATION[work.device] * work.workers)
    tried: dict[str, float | str] = {}
    chosen: dict[str, Run] = {}
    for peer in peers:
        run, settings = PEERS[peer]
        rates: dict[Setting, float] = {}
        failed = set()
        for setting in settings:
            name = f"{peer}_{setting}"
            free_memory()
            try:
                rates[setting], _ = run(setting, part)
                tried[name] = rates[setting]
            except Exception as error:  # a peer that does not run here is no reason to stop
                failed.add(setting)
                tried[name] = f"{type(error).__name__}: {error}"
            print(f"tried {name:<24} {tried[name]}", flush=True)
            if past_the_best(list(rates.values())):
                break
        wanted = {max(rates, key=lambda setting: rates[setting])} if rates else set()
        wanted |= {64} - failed if peer == "ray_recipe" and rates else set()
        for setting in settings:
            if setting in wanted:
                chosen[f"{peer}_{setting}"] = partial(run, setting)
    return chosen, tried


def past_the_best(rates: list[float]) -> bool:
    """Whether the last two settings were both slower than one before: larger ones are not tried."""
    return max(rates[-2:], default=0.0) < max(rates, default=0.0)


def free_memory() -> None:
    """Give a GPU's memory back that a run in this process has left in torch's cache."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
