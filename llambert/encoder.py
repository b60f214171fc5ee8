"""The one place that touches an encoder: tokenize, load, forward."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llambert import cluster
from llambert.batching import token_budget
from llambert.errors import UserError
from llambert.progress import Counter
from llambert.storage import Folder, fingerprint, is_remote, list_files

_BATCH_ROWS = 512  # records sorted by length together; cut again by the token budget
_BESIDE_CPUS = 1.5  # for reading, writing and Ray's checkpoint filter, which asks for a whole one
_LEAST_CPU_SHARE = 0.25
_CHARACTERS_PER_TOKEN = 10  # a first cut; text that comes out short of tokens is done whole


def local_folder(model: str) -> str:
    """`model` itself, or a local copy where it is a folder on an object store.

    A machine keeps one copy of each version in its folder for temporary files, for all processes
    of a user. The copy takes its name in one step, so that processes may ask at the same time.

    Raises:
        UserError: no such folder on the store, or another user has taken the cache's place.
    """
    if not is_remote(model):
        return model
    # With the user's id: nobody else on the machine may put a model, or code, in its place.
    cache = os.path.join(tempfile.gettempdir(), f"llambert-models-{os.getuid()}")
    os.makedirs(cache, mode=0o700, exist_ok=True)
    if os.stat(cache).st_uid != os.getuid():
        raise UserError(f"{cache} belongs to another user", "remove it, or set TMPDIR")
    target = os.path.join(cache, fingerprint([model, list_files([model])]))
    if os.path.isdir(target):
        return target
    source, temporary = Folder(model), tempfile.mkdtemp(prefix=".", dir=cache)
    try:
        for name in source.files():
            source.fs.get_file(source.path(name), os.path.join(temporary, name))
        os.rename(temporary, target)
    except OSError:
        if not os.path.isdir(target):  # else another process was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def load_tokenizer(model: str, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer of `model`, a hub name or a folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        local_folder(model), use_fast=True, trust_remote_code=trust_remote_code
    )


def load_classifier(
    model: str,
    labels: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    dtype: Any = None,
) -> Any:
    """A sequence classifier from safetensors.

    Args:
        labels: the labels of a new classification head; None keeps the model's own.
        dtype: a torch dtype; float32 where None.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    names: dict[str, Any] = {}
    if labels is not None:
        names = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
        }
    return AutoModelForSequenceClassification.from_pretrained(
        local_folder(model),
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        dtype=dtype or torch.float32,
        **names,
    )


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[NDArray[np.int32]]:
    """Token ids of each text with its special tokens, at most `max_length` of them.

    Tokenization costs time by the length of the whole text, so a long text is cut by characters
    first; where the cut leaves fewer than `max_length` tokens the whole text is tokenized.
    """
    if not texts:
        return []
    most = max_length * _CHARACTERS_PER_TOKEN
    ids = _token_ids(tokenizer, [text[:most] for text in texts], max_length)
    short = [i for i, text in enumerate(texts) if len(text) > most and len(ids[i]) < max_length]
    whole = _token_ids(tokenizer, [texts[i] for i in short], max_length) if short else []
    for i, tokens in zip(short, whole, strict=True):
        ids[i] = tokens
    return ids


def _token_ids(tokenizer: Any, texts: list[str], max_length: int) -> list[NDArray[np.int32]]:
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return [np.asarray(tokens, dtype=np.int32) for tokens in encoded["input_ids"]]


def pad(sequences: Sequence[NDArray[np.int32]], pad_id: int) -> dict[str, Any]:
    """`input_ids` and `attention_mask` as int64 tensors of shape (batch, longest)."""
    import torch

    longest = max(len(tokens) for tokens in sequences)
    ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def label_rows(
    rows: Any,
    model: str,
    counter: Counter,
    workers: tuple[int, int] | None = None,
    accelerator_type: str | None = None,
    dtype: str = "auto",
    batch_tokens: int = 0,
    probabilities: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """`rows` (a Ray Dataset of id, text, …) as id, label, confidence[, probabilities].

    Args:
        workers: least and most actors; by default 1 to one for each GPU, or for each core where
            the cluster has no GPU.
        accelerator_type: the kind of GPU, such as 'L40S'; any by default.
        trust_remote_code: as in training; a model that needs its own code does not load without.
    """
    import ray

    have = cluster.resources()
    gpus, cores = int(have.get("GPU", 0)), int(have.get("CPU", 1))
    least, most = workers or (1, max(gpus or cores, 1))
    # An actor for each core, and room for all that runs beside them: what Ray is told is less than
    # an actor takes.
    part = max(1 - _BESIDE_CPUS / cores, _LEAST_CPU_SHARE)
    share: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": part}
    here = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0))  # without autoscaling
    if accelerator_type:
        share["accelerator_type"] = accelerator_type
    return rows.map_batches(
        Labeller,
        fn_constructor_kwargs={
            "model": model,
            "dtype": dtype,
            "batch_tokens": batch_tokens,
            "probabilities": probabilities,
            "counter": counter,
            "trust_remote_code": trust_remote_code,
        },
        batch_size=_BATCH_ROWS,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=least, max_size=most, initial_size=min(max(here, least), most)
        ),
        **share,
    )


class Labeller:
    """Labels batches of records; made once per actor, called by `Dataset.map_batches`.

    The text is cut to the tokenizer's `model_max_length`, which training sets to the length that
    the model was trained at.

    Args:
        model: the fine-tuned model's folder.
        dtype: 'auto' (bfloat16 on a GPU, float32 on a CPU) or the name of a torch dtype.
        batch_tokens: the most tokens, padding included, of a forward pass; 0: 4,096 on a CPU
            (the best of several measured there), 131,072 on a GPU.
        threads: CPU threads of a forward pass.
        probabilities: whether to add the probability of every label.
        trust_remote_code: whether code that comes with the model may run.
    """

    def __init__(
        self,
        model: str,
        dtype: str = "auto",
        batch_tokens: int = 0,
        threads: int = 1,
        probabilities: bool = False,
        counter: Counter | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        import torch

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if self._device == "cpu":
            torch.set_num_threads(threads)
        if dtype == "auto":
            dtype = "bfloat16" if self._device == "cuda" else "float32"
        folder = local_folder(model)
        self._tokenizer = load_tokenizer(folder, trust_remote_code)
        self._model = load_classifier(
            folder, trust_remote_code=trust_remote_code, dtype=getattr(torch, dtype)
        )
        self._model.to(self._device).eval()
        self._names = [self._model.config.id2label[i] for i in range(self._model.num_labels)]
        self._budget = batch_tokens or (131072 if self._device == "cuda" else 4096)
        self._probabilities = probabilities
        self._counter = counter

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`batch` (id, text, …) as id, label, confidence[, probabilities]."""
        shares = self.predict(batch["text"].to_pylist())
        best = shares.argmax(axis=1)
        columns = {
            "id": batch["id"],
            "label": pa.array([self._names[i] for i in best], pa.string()),
            "confidence": pa.array(shares[np.arange(len(best)), best], pa.float32()),
        }
        if self._probabilities:
            columns["probabilities"] = pa.array(list(shares), pa.list_(pa.float32()))
        if self._counter:
            self._counter.add(len(best))
        return pa.table(columns)

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities of shape (texts, labels), each row summing to 1."""
        import torch

        tokens = tokenize(self._tokenizer, texts, self._tokenizer.model_max_length)
        lengths = np.array([len(each) for each in tokens], dtype=np.int64)
        shares = np.zeros((len(texts), len(self._names)), dtype=np.float32)
        with torch.inference_mode():
            for rows in token_budget(lengths, self._budget):
                inputs = pad([tokens[i] for i in rows], self._tokenizer.pad_token_id)
                logits = self._model(**{k: v.to(self._device) for k, v in inputs.items()}).logits
                shares[rows] = logits.float().softmax(dim=-1).cpu().numpy()
        return shares
