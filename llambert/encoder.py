"""An encoder's files: the folder, the tokenizer, the classifier; texts become token ids."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llambert.errors import UserError
from llambert.storage import Folder, fingerprint, is_remote, list_files

_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "longformer", "data2vec-text"}
# The class of AutoTokenizer's for these kinds of models, where the folder names no other
_TOKENIZERS = {"bert": "BertTokenizer", "roberta": "RobertaTokenizer", "llama": "LlamaTokenizer"}
_NO_CLASS = ("TokenizersBackend", "PreTrainedTokenizer")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".onnx")
_CHARACTERS_PER_TOKEN = 10  # a first cut
_MOST_CHARACTERS_PER_TOKEN = 640  # to tokenize one MB takes 170 MiB of memory


def local_folder(model: str, weights: bool = True) -> str:
    """`model` itself, or a local copy where it is a folder on an object store.

    A machine keeps one copy of each version in its folder for temporary files, for all processes
    of a user. The copy takes its name in one step, so that processes may ask at the same time.

    Args:
        weights: whether the copy has the weights; tokenizer and config do without.

    Raises:
        UserError: no such folder on the store, or another user has taken the cache's place.
    """
    if not is_remote(model):
        return model
    cache = machine_cache()
    key = fingerprint([model, list_files([model])])
    target = os.path.join(cache, key if weights else f"{key}-no-weights")
    if os.path.isdir(target):
        return target
    source, temporary = Folder(model), tempfile.mkdtemp(prefix=".", dir=cache)
    try:
        for name in source.files():
            if not weights and name.endswith(_WEIGHTS):
                continue
            source.fs.get_file(source.path(name), os.path.join(temporary, name))
        os.rename(temporary, target)
    except OSError:
        if not os.path.isdir(target):  # else another process was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def machine_cache() -> str:
    """This machine's folder for what may be made again, shared by all processes of a user.

    Raises:
        UserError: another user has taken its place.
    """
    # With the user's id: nobody else on the machine may put a model, or code, in its place.
    cache = os.path.join(tempfile.gettempdir(), f"llambert-models-{os.getuid()}")
    os.makedirs(cache, mode=0o700, exist_ok=True)
    if os.stat(cache).st_uid != os.getuid():
        raise UserError(f"{cache} belongs to another user", "remove it, or set TMPDIR")
    return cache


def load_tokenizer(model: str, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer of `model`, a hub name or a folder."""
    folder = local_folder(model)
    if name := _tokenizer_class(folder):
        import transformers

        return getattr(transformers, name).from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=trust_remote_code)


def _tokenizer_class(folder: str) -> str | None:
    """The class that AutoTokenizer would take for a folder, where that is plain to see.

    AutoTokenizer costs 4 s of imports: of every configuration it knows, torch and scikit-learn.
    """
    settings = _read_json(folder, "tokenizer_config.json")
    if "auto_map" in settings:
        return None
    name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    usual = _TOKENIZERS.get(str(_read_json(folder, "config.json").get("model_type")))
    if usual and name in _NO_CLASS:
        return "PreTrainedTokenizerFast"
    return name if name == usual else None


def _read_json(folder: str, name: str) -> dict[str, Any]:
    """A file of a folder; nothing where it is not there or holds something else."""
    try:
        found = Folder(folder).read_json(name)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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

    Raises:
        UserError: the model comes with a head for another number of labels.
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
    classifier, loaded = AutoModelForSequenceClassification.from_pretrained(
        local_folder(model),
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        dtype=dtype or torch.float32,
        ignore_mismatched_sizes=True,  # to say below what is wrong
        output_loading_info=True,
        **names,
    )
    if unlike := sorted(name for name, *_ in loaded["mismatched_keys"]):
        raise UserError(
            f"{model!r} does not fit {classifier.num_labels} labels: the weights {unlike} are of "
            "another shape",
            "name the encoder that it was made from, or one that was trained on as many labels",
        )
    return classifier


def freeze(model: Any) -> None:
    """Keep a classifier's encoder from being trained; what turns its output into logits still is.

    BERT's pooler lies within the encoder and is what other families have in the head: it is
    trained, all the more as many checkpoints come without one.
    """
    for name, parameter in model.base_model.named_parameters():
        parameter.requires_grad = name.startswith("pooler.")


def longest_input(config: Any, tokenizer: Any) -> int:
    """The most tokens that the model takes; RoBERTa's first positions are not for tokens."""
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if config.model_type in _OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    return min(positions, tokenizer.model_max_length)


def longest_text(folder: str, tokenizer: Any, trust_remote_code: bool = False) -> int:
    """`longest_input` of the model in a folder of this machine, without its config where it can be.

    The tokenizer of a model that this project has trained says it. Of another it may know no limit,
    or a larger one than the model's positions, which take seconds of imports to find out.
    """
    manifest = Folder(folder).manifest()
    if manifest and manifest.stage == "train":
        return int(tokenizer.model_max_length)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return longest_input(config, tokenizer)


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[NDArray[np.int32]]:
    """Token ids of each text with its special tokens, at most `max_length` of them.

    Tokenization costs time and memory by the length of the whole text, so a long text is cut by
    characters first, and less where the cut leaves fewer than `max_length` tokens. Of a text that
    has a token in `_MOST_CHARACTERS_PER_TOKEN` characters, as blanks or a picture in base 64 have,
    what lies beyond so many of them is not looked at.
    """
    ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * len(texts)
    per_token, todo = _CHARACTERS_PER_TOKEN, list(range(len(texts)))
    while todo:
        cut = max_length * per_token
        found = _token_ids(tokenizer, [texts[i][:cut] for i in todo], max_length)
        for i, tokens in zip(todo, found, strict=True):
            ids[i] = tokens
        if per_token == _MOST_CHARACTERS_PER_TOKEN:
            break
        todo = [i for i in todo if len(texts[i]) > cut and len(ids[i]) < max_length]
        per_token = min(8 * per_token, _MOST_CHARACTERS_PER_TOKEN)
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
