"""Records become labels: actors that tokenize, then actors that run the encoder."""

import ctypes
import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llambert import cluster
from llambert.batching import token_budget
from llambert.budget import find_budget, is_out_of_memory
from llambert.encoder import (
    load_classifier,
    load_tokenizer,
    local_folder,
    longest_input,
    longest_text,
    tokenize,
)
from llambert.errors import StageError
from llambert.forward import Forward, Tokens
from llambert.progress import Counter
from llambert.storage import Folder

log = logging.getLogger(__name__)

_BESIDE_CPUS = 1.5  # of all, for reading, writing and the filter
_FILTER_CPUS = 1.0  # what Ray's checkpoint filter asks for, on one node
_LEAST_CPU_SHARE = 0.25
# Of a core, for reading and writing. A task that asked for much more would never start beside the
# labellers; one that asked for as much as an actor would be joined to it, and run in turns with it.
LIGHT_CPUS = 0.2
# Of a core; beside a GPU as much as leaves the filter, a reader and a writer room on two cores.
_TOKENIZER_CPUS = {"gpu": 0.6, "cpu": 0.1}
# For how many cores one tokenizer suffices; to start one takes seconds of a core.
_CORES_A_TOKENIZER = {"gpu": 2, "cpu": 4}
# Further attempts at a block whose actor dies, as on a node that is lost. Without a limit, a block
# that takes its actor along each time would be tried until none has moved for hours.
RETRIES = 4
# Bytes of text that take about as long as an actor takes to start: a core with MiniLM, a GPU with
# RoBERTa-large.
_WORTH_AN_ACTOR = {"cpu": 2**19, "gpu": 2**24}
_MALLOC = {-4: 0, -1: 2**31 - 1}  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
_HALF = ("avx512_bf16", "amx_bf16")  # CPUs' features that multiply in bfloat16
_MEMORY_SHARE = 0.5  # of a machine's memory, for the actors' copies of the model
_COPIES = 2  # of the weights in an actor's memory: as loaded, and packed or in work


def label_rows(
    rows: Any,
    model: str,
    counter: Counter,
    workers: tuple[int, int],
    cpus_per_worker: int | None = None,
    accelerator_type: str | None = None,
    dtype: str = "float32",
    batch_tokens: int = 0,
    probabilities: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """`rows` (a Ray Dataset of id, text, …) as id, label, confidence[, probabilities].

    A block is labelled as a whole: records of similar length are put together within it.

    Args:
        workers: least and most actors, as from `pool_size`.
        cpus_per_worker: threads of an actor without GPU; by default an even share of the cores.
        accelerator_type: the kind of GPU, such as 'L40S'; any by default.
        dtype: the name of a torch dtype, as from `labelling_dtype`.
        batch_tokens: as for `Labeller`.
        trust_remote_code: as in training; a model that needs its own code does not load without.

    Raises, when it is executed:
        ray.exceptions.RayActorError: a block's actor died, and `RETRIES` times again.
    """
    import ray

    gpus, (least, most) = cluster.gpus(), workers
    threads, share, here = _each(gpus > 0, most, cpus_per_worker)
    if accelerator_type:
        share["accelerator_type"] = accelerator_type
    each: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    each["max_task_retries"] = RETRIES
    device = "gpu" if gpus else "cpu"
    # Ray's `map_batches` refuses whole blocks where GPUs are asked for; this, by which Ray's own
    # `map_groups` calls it, does not.
    tokenized = rows.map_batches_internal(
        Tokenizer,
        fn_constructor_kwargs={"model": model, "trust_remote_code": trust_remote_code},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_tokenizers(device)),
        num_cpus=_TOKENIZER_CPUS[device],
        **each,
    )
    return tokenized.map_batches_internal(
        Labeller,
        fn_constructor_kwargs={
            "model": model,
            "dtype": dtype,
            "batch_tokens": batch_tokens,
            "threads": threads,
            "probabilities": probabilities,
            "counter": counter,
            "trust_remote_code": trust_remote_code,
        },
        compute=ray.data.ActorPoolStrategy(
            min_size=least, max_size=most, initial_size=min(max(here, least), most)
        ),
        **each,
        **share,
    )


def _each(on_gpu: bool, most: int, cpus_per_worker: int | None) -> tuple[int, dict[str, Any], int]:
    """Threads of one of `most` actors, what it takes of Ray, and how many fit as things stand."""
    import ray

    have = ray.cluster_resources()
    if on_gpu:
        # No core of it: Ray's default, a whole one, would leave none for what feeds it
        return 1, {"num_gpus": 1, "num_cpus": 0}, int(have.get("GPU", 0))
    threads = cpus_per_worker or cluster.even_share(cluster.node_cpus(), most)
    return threads, {"num_cpus": _cpu_share(threads)}, int(have.get("CPU", 1)) // threads


def pool_size(
    model: str, workers: tuple[int, int] | None, accelerator_type: str | None, text_bytes: int
) -> tuple[int, int]:
    """Least and most actors to label so much text: `workers`, where they are given.
    Else 1 to one for each GPU of that type, or for each core where the cluster has no GPU; fewer
    where so many copies of the model would not fit, or the text is not worth their start. The cores
    of those that do not start are others' threads.
    """
    if workers:
        return workers
    gpus = cluster.gpus(accelerator_type)
    useful = text_bytes // _WORTH_AN_ACTOR["gpu" if gpus else "cpu"]
    return 1, max(1, min(useful, gpus or _copies_that_fit(model)))


def labelling_dtype(dtype: str) -> str:
    """The name of the torch dtype of all labellers: `dtype`, or for 'auto' what is fastest here.

    That is bfloat16 on GPUs, and where the CPUs of all nodes that are up have AVX-512 BF16 or AMX,
    which multiply in it; else float32. One for all, so that no label depends on where its record
    was labelled.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if cluster.gpus() or cluster.cpus_have(*_HALF) else "float32"


def _copies_that_fit(model: str) -> int:
    """How many actors a cluster without GPU has room for: at most one for each core."""
    have, folder = cluster.resources(), Folder(model)
    size = sum(folder.fs.size(folder.path(n)) for n in folder.files(".safetensors")) or 1
    room = int(have.get("memory", 0) * _MEMORY_SHARE / (_COPIES * size))
    return max(1, min(int(have.get("CPU", 1)), room))


def _cpu_share(threads: int) -> float:
    """What Ray is told that an actor of so many threads takes of the CPUs.

    Less than it does: the actors are one for each core, and on every node there must be room for
    all that runs beside them.
    """
    cores = cluster.resources().get("CPU", 1)
    nodes = cluster.node_cpus() or [1]
    on_one = (_FILTER_CPUS + LIGHT_CPUS) / max(nodes)
    beside = max(_BESIDE_CPUS / cores, LIGHT_CPUS / min(nodes), on_one)
    return threads * max(1 - beside, _LEAST_CPU_SHARE)


def _tokenizers(device: str) -> int:
    """The most actors that tokenize."""
    return max(1, int(cluster.resources().get("CPU", 1)) // _CORES_A_TOKENIZER[device])


class Tokenizer:
    """id, text, … as id and tokens (list of int32): cut to the most that the model reads.

    Args:
        model: the fine-tuned model's folder; its weights are not fetched.
    """

    def __init__(self, model: str, trust_remote_code: bool = False) -> None:
        folder = local_folder(model, weights=False)
        self._tokenizer = load_tokenizer(folder, trust_remote_code)
        self._most = longest_text(folder, self._tokenizer, trust_remote_code)

    def __call__(self, block: pa.Table) -> pa.Table:
        found = tokenize(self._tokenizer, block["text"].to_pylist(), self._most)
        ends = np.cumsum([0, *(len(tokens) for tokens in found)], dtype=np.int32)
        values = pa.array(np.concatenate([np.empty(0, np.int32), *found]))
        tokens = pa.ListArray.from_arrays(pa.array(ends), values)
        return pa.table({"id": block["id"], "tokens": tokens})


def _longest_sequence(tokenizer: Any, tokens: int) -> Tokens:
    """A sequence of about so many tokens, with the special ones where the model expects them."""
    return tokenize(tokenizer, ["a film " * tokens], tokens)[0]


def _keep_freed_memory() -> None:
    """Have this process keep what a batch frees for the next one.

    glibc gives large pieces back to the kernel, which then makes every page of a batch anew. Padded
    batches are of so many sizes that what is kept goes to pieces: up to 1 GB more in DistilBERT.
    Other C libraries have no such setting.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for setting, value in _MALLOC.items():
            mallopt(setting, value)


class Labeller:
    """Labels blocks of tokenized records; made once per actor, called by `Dataset.map_batches`.

    Args:
        model: the fine-tuned model's folder.
        dtype: the name of a torch dtype.
        batch_tokens: the most tokens, padding included, of a forward pass; 0: what `find_budget`
            finds on this device. Halved for good when the memory does not suffice.
        threads: CPU threads of a forward pass.
        probabilities: whether to add the probability of every label.
        counter: is told of being ready (0 records), then for each block of its records, its
            tokens, the cells computed for them and the seconds it took.
        trust_remote_code: whether code that comes with the model may run.
    """

    def __init__(
        self,
        model: str,
        dtype: str = "float32",
        batch_tokens: int = 0,
        threads: int = 1,
        probabilities: bool = False,
        counter: Counter | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(threads)
        folder = local_folder(model)
        tokenizer = load_tokenizer(folder, trust_remote_code)
        classifier = load_classifier(
            folder, trust_remote_code=trust_remote_code, dtype=getattr(torch, dtype)
        ).to(device)
        self._names = [classifier.config.id2label[i] for i in range(classifier.num_labels)]
        longest = _longest_sequence(tokenizer, longest_input(classifier.config, tokenizer))
        config = classifier.config
        self._forward = Forward(classifier, tokenizer.pad_token_id)
        if device == "cpu" and not self._forward.padded:
            _keep_freed_memory()
        self._budget = batch_tokens or find_budget(self._forward, config, longest)
        self.predict([longest])  # a first pass is slow, and no part of the work
        self._probabilities = probabilities
        self._counter = counter
        if counter is not None:
            counter.add(0)

    def __call__(self, block: pa.Table) -> pa.Table:
        """`block` (id, tokens) as id, label, confidence[, probabilities]."""
        started = time.monotonic()
        tokens = block["tokens"].combine_chunks()
        values, ends = tokens.values.to_numpy(), tokens.offsets.to_numpy()
        sequences = [values[a:b] for a, b in itertools.pairwise(ends)]
        shares, cells = self.predict(sequences)
        best = shares.argmax(axis=1) if len(shares) else np.zeros(0, np.int64)
        columns = {
            "id": block["id"],
            "label": pa.array([self._names[i] for i in best], pa.string()),
            "confidence": pa.array(shares[np.arange(len(best)), best], pa.float32()),
        }
        if self._probabilities:
            columns["probabilities"] = pa.array(list(shares), pa.list_(pa.float32()))
        if self._counter is not None:
            seconds = time.monotonic() - started
            self._counter.add(
                len(best), tokens=int(ends[-1] - ends[0]), cells=cells, device_seconds=seconds
            )
        return pa.table(columns)

    def predict(self, sequences: Sequence[Tokens]) -> tuple[NDArray[np.float32], int]:
        """The probabilities, and how many cells (tokens and padding) were computed for them.

        The probabilities are of shape (sequences, labels), each row summing to 1.

        Raises:
            StageError: the memory does not suffice for a single sequence, or an output is not a
                number.
        """
        import torch

        lengths = np.array([len(tokens) for tokens in sequences], dtype=np.int64)
        order: list[NDArray[np.int64]] = []
        logits: list[Any] = []  # on the device, so that the next batch is made while this one runs
        cells = 0
        todo = token_budget(lengths, self._budget, self._forward.padded)[::-1]
        while todo:
            rows = todo.pop()
            try:
                logits.append(self._forward([sequences[i] for i in rows]))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(lengths[rows], error)
                rest = np.concatenate([rows, *todo[::-1]])
                again = token_budget(lengths[rest], self._budget, self._forward.padded)
                todo = [rest[part] for part in again[::-1]]
                continue
            order.append(rows)
            cells += self._forward.cells(lengths[rows])
        shares = np.zeros((len(sequences), len(self._names)), dtype=np.float32)
        if order:
            found = torch.cat(logits).float().softmax(dim=-1)
            shares[np.concatenate(order)] = found.cpu().numpy()
        if unknown := np.count_nonzero(~np.isfinite(shares).all(axis=1)):
            raise StageError(
                f"the encoder's output for {unknown} of {len(shares)} records is not a number",
                "float16 overflows in many encoders: set label.dtype to bfloat16 or float32",
            )
        return shares, cells

    def _halve(self, lengths: NDArray[np.int64], error: Exception) -> None:
        """From here on, half of what was too much: a batch of `lengths`."""
        if len(lengths) == 1:
            raise StageError(
                f"the memory does not suffice to label a single record: {error}",
                "use a machine or GPU with more memory, or fewer actors on it (label.workers)",
            ) from error
        self._budget = min(self._budget, int(lengths.sum())) // 2
        log.warning("out of memory: batches of %d tokens from here on", self._budget)
