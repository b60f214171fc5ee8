"""A model named in a config: whether it can be had, and its identity; nothing heavy is loaded."""

import hashlib
import json
import os
from pathlib import Path

from llambert.errors import UserError
from llambert.storage import MANIFEST, Folder, fingerprint, is_remote

_HUB_TIMEOUT_S = 3.0
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
WEIGHTS = _SAFETENSORS[0]
# Names of a tokenizer's files begin so.
_VOCABULARIES = ("tokenizer", "vocab", "merges", "bpe", "spiece", "spm", "sentencepiece")
_OF_A_TOKENIZER = (*_VOCABULARIES, "added_tokens", "special_tokens_map")
_OF_NO_MODEL = (".md", ".png", ".jpg", ".svg", ".pdf")  # what lies in a model's folder beside it
# Of a model's file this much is hashed at most: of a larger one pieces, from its start to its end.
_HASHED_BYTES, _PIECE_BYTES = 64 * 2**20, 2**20


def encoder_files(model: Folder) -> list[str]:
    """Names of what a fine-tuned encoder's labels depend on: weights, config, tokenizer, code."""
    names = [n for n in model.files() if n.startswith(_OF_A_TOKENIZER) or n.endswith(".py")]
    return [WEIGHTS, "config.json", *names]


def fingerprint_encoder(model: Folder) -> str:
    """The identity of a fine-tuned encoder: 12 hex digits of the SHA-256 of `encoder_files`."""
    digest = hashlib.sha256()
    for name in encoder_files(model):
        with model.fs.open(model.path(name), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def fingerprint_model(model: str) -> str:
    """A model's identity: its name, or the content of its folder where it is a local one."""
    if not os.path.isdir(model):
        return model
    files = []
    for name in sorted(os.listdir(model)):
        full = os.path.join(model, name)
        told = name != MANIFEST and not name.startswith(".") and not name.endswith(_OF_NO_MODEL)
        if told and os.path.isfile(full):
            files.append([name, os.path.getsize(full), _hash_file(full)])
    return fingerprint(files)


def _hash_file(path: str) -> str:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if size <= _HASHED_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest, pieces = hashlib.sha256(), _HASHED_BYTES // _PIECE_BYTES
        for number in range(pieces):
            file.seek((size - _PIECE_BYTES) * number // (pieces - 1))
            digest.update(file.read(_PIECE_BYTES))
        return digest.hexdigest()


def check_model(model: str, purpose: str) -> None:
    """Check that `model` is a usable local folder, or a name in the hub's cache or on the hub.

    Takes a few milliseconds for a folder or a cached model; otherwise two requests to the hub
    with a timeout of 3 s each (none where HF_HUB_OFFLINE is set). Weights are looked for by file
    name only.

    Args:
        model: A folder with config.json and safetensors, or a hub name (`name`, `org/name`).
        purpose: The config field that names the model, for the message.

    Raises:
        UserError: no such model, no safetensors, no access, or the hub cannot be asked.
    """
    if is_remote(model):
        raise UserError(
            f"{purpose}: {model!r} is on an object store, which model loaders cannot read",
            "copy the model to a folder that every machine sees, or write its hub name",
        )
    if Path(model).is_dir():
        _check_folder(Path(model), purpose)
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(
            f"{purpose}: there is no folder {model!r}",
            "check the path; it must hold config.json, safetensors weights and the tokenizer",
        )
    else:
        _check_hub(model, purpose)


def _check_folder(folder: Path, purpose: str) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(
            f"{purpose}: the folder {str(folder)!r} has no config.json",
            "name a folder that holds a Hugging Face model",
        )
    try:
        json.loads(config.read_bytes())
    except ValueError as error:
        raise UserError(f"{purpose}: {config} is not JSON: {error}", "mend the file") from error
    if not any((folder / name).is_file() for name in _SAFETENSORS):
        raise _no_safetensors(str(folder), purpose)


def _check_hub(name: str, purpose: str) -> None:
    from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        cached = [try_to_load_from_cache(name, file) for file in ("config.json", *_SAFETENSORS)]
    except HFValidationError as error:
        raise UserError(
            f"{purpose}: {name!r} is neither a folder nor a possible name of a model",
            "write a folder that exists, or a hub name such as FacebookAI/roberta-large",
        ) from error
    if isinstance(cached[0], str) and any(isinstance(weights, str) for weights in cached[1:]):
        return
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{purpose}: {name!r} is no folder, not in the hub's cache, and HF_HUB_OFFLINE is set",
            "name a local folder, fill the cache, or unset HF_HUB_OFFLINE",
        )
    try:
        info = HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
        # Anyone may read about a gated model; only asking for a file of it shows who may load it.
        # (`auth_check` says the same, but waits without end.)
        url = hf_hub_url(name, "config.json")
        HfApi().get_hf_file_metadata(url=url, timeout=_HUB_TIMEOUT_S)
    except GatedRepoError as error:
        raise UserError(
            f"{purpose}: the hub gives {name!r} to authorised users only",
            "accept its licence on the hub and set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{purpose}: there is no model {name!r}, neither a folder here nor on the hub",
            "check the spelling; for a private model set HF_TOKEN",
        ) from error
    except EntryNotFoundError as error:
        raise UserError(
            f"{purpose}: the model {name!r} on the hub has no config.json",
            "name a repository that holds a Transformers model",
        ) from error
    except Exception as error:  # which ones depends on the hub client's HTTP library
        raise UserError(
            f"{purpose}: no folder {name!r} here, none in the hub's cache, and the hub does not "
            f"answer ({type(error).__name__}: {error})",
            "name a local folder, or restore the connection",
        ) from error
    files = {file.rfilename for file in info.siblings or []}
    if not files.intersection(_SAFETENSORS):
        raise _no_safetensors(name, purpose)


def _no_safetensors(model: str, purpose: str) -> UserError:
    return UserError(
        f"{purpose}: {model!r} has no safetensors weights (model.safetensors)",
        "weights load from safetensors only: convert it with "
        "`AutoModel.from_pretrained(…).save_pretrained(…)`",
    )
