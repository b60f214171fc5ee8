"""Which encoder labels the nights, and what it learned from."""

import os
from dataclasses import dataclass, replace

from llambert.config import RunConfig
from llambert.drift import Profile, together, training_profile
from llambert.errors import UserError
from llambert.gates import Gate, check_passed, evaluation_gates, training_gates
from llambert.models import WEIGHTS, encoder_files, fingerprint_encoder
from llambert.storage import Folder, Manifest, fingerprint, is_remote, join, list_files
from llambert.workdir import Workdir


@dataclass(frozen=True)
class NightlyModel:
    """A fine-tuned encoder."""

    folder: Folder
    id: str  # `fingerprint_encoder`; of the run's own, as its training found it
    version: str  # `encoder_version`, as found with the id
    training: Profile | None  # of the records it learned from, where its folder tells


def find_model(config: RunConfig, given: str | None) -> NightlyModel:
    """The encoder in the folder `given`; by default the run's best one, which passes the gates.

    Raises:
        UserError: no such model, or one of other labels, or one that was not evaluated though
            there is a gate for it.
        GateError: it does not pass a gate.
    """
    folder, manifest = _given(given) if given else _best(config)
    names = set(folder.read_json("config.json").get("id2label", {}).values())
    if names != set(config.task.labels):
        raise UserError(
            f"the model {folder.uri!r} labels {sorted(names)}, and the task's labels are "
            f"{sorted(config.task.labels)}",
            "train a model for these labels, or name another with `--model`",
        )
    version, workdir = encoder_version(folder), Workdir(config.workdir)
    # A manifest in a folder that is given may be of weights that were there before
    id = manifest.output if manifest and not given else _id(folder, version, workdir)
    return NightlyModel(folder, id, version, _training(folder, manifest))


def encoder_version(model: Folder) -> str:
    """What changes with one of the model's files; quicker to have than its fingerprint.

    The same whatever way the folder is reached.
    """
    files = list_files(join(model.uri, name) for name in encoder_files(model))
    return fingerprint([[os.path.basename(f["uri"]), f["size"], f["version"]] for f in files])


def _id(model: Folder, version: str, workdir: Workdir) -> str:
    """The model's fingerprint; files on an object store are read once for each ETag.

    A local file is quick to read, and a copy may have the size and time of another.
    """
    if not is_remote(model.uri):
        return fingerprint_encoder(model)
    # By its place too: not every store tells versions
    known, name = workdir / "nightly", f"model-{fingerprint([model.uri, version])}.json"
    if not known.exists(name):
        known.write_json(name, {"model": model.uri, "id": fingerprint_encoder(model)})
    return str(known.read_json(name)["id"])


def _given(model: str) -> tuple[Folder, Manifest | None]:
    folder = Folder(model if is_remote(model) else os.path.abspath(model))
    if not (folder.exists("config.json") and folder.exists(WEIGHTS)):
        raise UserError(
            f"--model: {model!r} holds no config.json and {WEIGHTS}",
            "name the folder of a fine-tuned encoder, such as models/combined/seed-1",
        )
    return folder, folder.manifest()


def _best(config: RunConfig) -> tuple[Folder, Manifest]:
    """The run's best model; finished is enough, for new files make every step stale.

    All seeds must be: the best of those that happen to be there would be another one tomorrow.
    """
    workdir, variant = Workdir(config.workdir), config.label_variant
    folders = [workdir.model(variant, seed) for seed in config.train.seeds]
    trained = [(each, manifest) for each in folders if (manifest := each.manifest())]
    if len(trained) < len(folders):
        raise UserError(
            f"{len(trained)} of {len(folders)} seeds of the variant {variant} are trained in "
            f"{workdir.uri!r}",
            "`llambert run CONFIG` trains them; `--model FOLDER` names one to label with",
        )
    best = max(trained, key=lambda found: found[1].details["validation_accuracy"] or 0)
    seed = config.train.seeds[trained.index(best)]
    check_passed(_gates(config, *best, seed), workdir.gates)
    return best


def _gates(config: RunConfig, folder: Folder, made: Manifest, seed: int) -> list[Gate]:
    """The run file's gates on an encoder, of which these are folder, manifest and seed."""
    gates, variant = training_gates(config.gates, folder, made), config.label_variant
    if not config.gates.on("evaluate"):
        return gates
    evaluation = Workdir(config.workdir).evaluation
    measured = evaluation.manifest()
    if not measured or measured.inputs.get(f"train {variant} seed {seed}") != made.output:
        raise UserError(
            f"there is a gate after evaluate, and {folder.uri!r} has not been evaluated",
            "`llambert run CONFIG --until evaluate` does it; `--model FOLDER` names a model that "
            "no gate holds back",
        )
    return [*gates, *evaluation_gates(config.gates, evaluation, measured, variant, seed)]


def _training(folder: Folder, manifest: Manifest | None) -> Profile | None:
    """What the model learned from; of a combined one also what the model before it did."""
    profile = training_profile(manifest.details) if manifest else None
    if profile is None:
        return None
    start = folder.read_json("metrics.json")["init_from"]
    before = Folder(start).manifest() if is_remote(start) or os.path.isabs(start) else None
    earlier = training_profile(before.details) if before else None
    if earlier is None:
        return profile
    return replace(together([profile, earlier]), confidence=profile.confidence)
