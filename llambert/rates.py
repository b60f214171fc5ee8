"""How fast the models work: from the run file, an earlier run in the workdir, or a calibration."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llambert import cluster
from llambert.annotate import annotate, annotator_id
from llambert.config import RunConfig
from llambert.deepspeed_settings import user_file
from llambert.held import devices, figures
from llambert.label import label
from llambert.plan import Rate, as_json
from llambert.progress import Progress
from llambert.records import CorpusConfig, open_corpus
from llambert.responses import unanswered
from llambert.storage import Folder, Manifest, Outcome, fingerprint
from llambert.survey import Survey
from llambert.train import train
from llambert.workdir import Workdir

KINDS = ("train", "label", "annotate")  # in this order: an LLM may hold its GPUs to the end
_FILE = "calibration.json"
_MARGIN_RUN = 0.25  # of rates that a whole run showed
_MARGIN_CALIBRATION = 0.5  # of some hundred records, warm-up among them
_MARGIN_ROUGH = 1.0  # where the labellers could not be made to work for long
_EPOCHS = 2  # of the calibration's training: the first warms up, the second is measured
_WORK_S = 5.0  # that the labellers should have worked, for a rate
_MOST_BYTES = 64 * 2**20  # of text, at most, until they have: 16 M tokens, or so
_LEAST_ASKED = 64  # records, below which an LLM's rate would say too little
_SEED = 1
_TRAINING = (  # settings on which the speed of training depends
    *("model", "max_length", "dtype", "freeze_encoder", "batch_size", "micro_batch_size"),
    *("workers", "accelerator_type", "cpus_per_worker"),
)


def known_rates(config: RunConfig, workdir: Workdir) -> dict[str, Rate]:
    """The rates that need no measuring: those of the run file, else those of most records."""
    measured = [*_calibrated(config, workdir), *_of_runs(config, workdir)]
    rates: dict[str, Rate] = {}
    for kind, rate in sorted(measured, key=lambda each: each[1].records):
        rates[kind] = rate
    for kind in KINDS:
        if given := getattr(config.plan.rates, kind):
            counted = rates.get(kind)
            rates[kind] = replace(
                Rate.of(given),
                prompt_tokens=counted.prompt_tokens if counted else None,
                output_tokens=counted.output_tokens if counted else None,
            )
    return rates


def _key(config: RunConfig, kind: str) -> str:
    """What a calibration holds for: the same LLM and prompt, or encoder, put to work alike."""
    train = config.train
    if kind == "annotate":
        return fingerprint([annotator_id(config.annotate, config.task), config.annotate.setup])
    if kind == "train":
        return fingerprint(
            [train.model_dump(include={*_TRAINING, "deepspeed"}), user_file(train.deepspeed)]
        )
    return fingerprint([train.model, train.max_length, config.label.setup])


def _calibrated(config: RunConfig, workdir: Workdir) -> Iterable[tuple[str, Rate]]:
    for kind, stored in _read(workdir).items():
        if stored["key"] == _key(config, kind):
            yield kind, Rate(**stored["rate"])


def _read(workdir: Workdir) -> dict[str, Any]:
    return dict(workdir.plan.read_json(_FILE)) if workdir.plan.exists(_FILE) else {}


def _of_runs(config: RunConfig, workdir: Workdir) -> Iterable[tuple[str, Rate]]:
    """The rates of the finished steps in the workdir that used the same models, set up alike."""
    asked = workdir.annotations(annotator_id(config.annotate, config.task)).manifest()
    looked_up = config.annotate.engine == "recorded"  # how fast says nothing of an LLM
    if asked:
        last = asked.details.get("last_round", asked.details)
        if looked_up or last.get("setup") != config.annotate.setup:
            asked = None
    if asked and (rate := annotate_rate(figures(asked), asked.counts["in"])):
        yield "annotate", _from_run(rate)
    trained = [
        manifest
        for variant in (workdir / "models").folders()
        for seed in (workdir / "models" / variant).folders()
        if (manifest := (workdir / "models" / variant / seed).manifest())
        and _same_encoder(manifest, config, ("model", "max_length"))
    ]
    alike = [manifest for manifest in trained if _same_encoder(manifest, config, _TRAINING)]
    if alike and (rate := _mean_training(alike)):
        yield "train", _from_run(rate)
    for model in {manifest.output for manifest in trained}:
        labelled = workdir.labels(model).manifest()
        if not labelled or labelled.details.get("setup") != config.label.setup:
            continue
        if rate := label_rate(labelled.details, labelled.seconds):
            yield "label", _from_run(rate)


def _same_encoder(trained: Manifest, config: RunConfig, names: Iterable[str]) -> bool:
    """Whether a training had these settings; one that an earlier version did not know was off."""
    had = trained.details["settings"]
    return all((had.get(name) or None) == (getattr(config.train, name) or None) for name in names)


def _from_run(rate: Rate) -> Rate:
    source = f"an earlier run in the workdir, {rate.records:,} records"
    return replace(rate, source=source, margin=_MARGIN_RUN)


def annotate_rate(details: Mapping[str, Any], records: int) -> Rate | None:
    """The LLM's rate by the details of `annotate`; None where too little was asked to tell.

    Args:
        records: whose answers the details' tokens are of.
    """
    per_s = details.get("records_per_s")
    answered = records - details.get("failed", 0)
    if not per_s or answered <= 0:
        return None
    held = devices("annotate", details)
    tokens = {name: details[name] / answered or None for name in ("prompt_tokens", "output_tokens")}
    by_token = bool(details.get("tokens_per_s") and held)
    return Rate(
        unit="tokens" if by_token else "records",
        per_s=(details["tokens_per_s"] if by_token else per_s) / (held or 1),
        device=details.get("device"),
        devices=held or 1,
        source="",
        margin=0.0,
        start_s=max(0.0, round(details["seconds"] - details["asked"] / per_s, 3)),
        records=details["asked"],
        **tokens,
    )


def train_rate(details: Mapping[str, Any], seconds: float, steady: bool = False) -> Rate | None:
    """The rate of a training by its details, in tokens learned from; validating takes its part.

    Args:
        seconds: of the whole step, start and export among them.
        steady: leave the first epoch's time out.
    """
    epochs, held = details["epochs"], devices("train", details)
    # both are since the training's start; an earlier version did not note the latter
    spent = [each["seconds"] + each.get("validation_seconds", 0.0) for each in epochs]
    worked = spent[-1] - spent[0] if steady else spent[-1]
    tokens = details["tokens"] * ((len(epochs) - 1) / len(epochs) if steady else 1)
    if worked <= 0 or not tokens or not held:
        return None
    return Rate(
        unit="tokens",
        per_s=tokens / (worked * held),
        device=details["device"],
        devices=held,
        source="",
        margin=0.0,
        start_s=round(max(0.0, seconds - spent[-1]), 3),
        records=details["training_records"] * len(epochs),
    )


def _mean_training(trained: list[Manifest]) -> Rate | None:
    """The rate of several trainings on the same kind of device, and their mean start."""
    found = [(train_rate(each.details, each.seconds), each.details["tokens"]) for each in trained]
    known = [(rate, tokens) for rate, tokens in found if rate and rate.records]
    if not known:
        return None
    last = known[-1][0]
    known = [(rate, tokens) for rate, tokens in known if rate.device == last.device]
    return replace(
        last,
        per_s=sum(tokens for _, tokens in known)
        / sum(tokens / rate.per_s for rate, tokens in known),
        start_s=sum(rate.start_s for rate, _ in known) / len(known),
        records=sum(rate.records for rate, _ in known),
    )


def label_rate(details: Mapping[str, Any], seconds: float) -> Rate | None:
    """The labellers' rate by the details of `label`; None where too little was labelled to tell.

    Args:
        seconds: of the whole step, its start among them.
    """
    per_s, held = details.get("records_per_s"), devices("label", details)
    if not per_s or not held:
        return None
    return Rate(
        unit="tokens",
        per_s=details["tokens_per_s"] / held,
        source="",
        margin=0.0,
        start_s=round(max(0.0, seconds - details["labelled_now"] / per_s), 3),
        device=details["device"],
        devices=held,
        records=details["labelled_now"],
    )


def to_ask(config: RunConfig, workdir: Workdir, seen: Survey) -> tuple[pa.Table, int]:
    """The records (id, text) that a calibration puts to the LLM, none of them answered yet.

    Those that the run draws come first; where too few of these were read, or have no answer,
    others fill up.

    Returns:
        The records, and how many of them the run will not draw: their answers it will not use.
    """
    folder = workdir.annotations(annotator_id(config.annotate, config.task))
    drawn = seen.drawn(config.sample.size)
    first = unanswered(seen.sample.filter(pa.array(drawn)), folder)
    most = min(config.plan.calibration_records, config.sample.size)
    lacking = max(min(_LEAST_ASKED, most) - first.num_rows, 0)
    further = unanswered(seen.sample.filter(pa.array(~drawn)), folder).slice(0, lacking)
    asked = pa.concat_tables([first.slice(0, most), further])
    return asked.select(["id", "text"]), further.num_rows


def calibrate(
    config: RunConfig, workdir: Workdir, kinds: Iterable[str], seen: Survey
) -> dict[str, Rate]:
    """Measure the rates of `kinds` on records of the corpus, by the stages' own code.

    GPUs are measured one replica or labeller at a time: a few records would not keep more of them
    busy, and how many did any work could not be told. Needs a connected Ray and the workdir's
    lease. What the LLM answers is stored with all its answers, and not asked again. What is
    measured is kept, so that a later plan knows it.

    Raises:
        UserError, StageError: as the stages do.
    """
    folder = workdir.plan / "calibration"
    folder.remove()
    measure: dict[str, Callable[..., Rate | None]] = {
        "train": _calibrate_train,
        "label": _calibrate_label,
        "annotate": _calibrate_annotate,
    }
    rates = {}
    for kind in [kind for kind in KINDS if kind in kinds]:
        with Progress("calibrate") as progress:
            rate = measure[kind](config, workdir, seen, folder, progress)
        if rate:
            source = f"a calibration with {rate.records:,} records"
            if rate.margin > _MARGIN_CALIBRATION:
                source += ", which were done too soon for a good rate"
            margin = max(rate.margin, _MARGIN_CALIBRATION)
            rates[kind] = replace(rate, source=source, margin=margin)
            stored = {"key": _key(config, kind), "rate": as_json(rates[kind])}
            workdir.plan.write_json(_FILE, _read(workdir) | {kind: stored})
    folder.remove()
    return rates


def _calibrate_train(
    config: RunConfig, workdir: Workdir, seen: Survey, folder: Folder, progress: Progress
) -> Rate | None:
    outcome = _train_a_little(config, seen.sample, folder, progress)
    return train_rate(outcome.details, progress.seconds, steady=True)


def _train_a_little(
    config: RunConfig, sample: pa.Table, folder: Folder, progress: Progress
) -> Outcome:
    """Fine-tune on labels that mean nothing: what they are makes no training slower."""
    names = list(config.task.labels)
    size = max(config.plan.calibration_records // _EPOCHS, 4 * config.train.batch_size)
    rows = sample.select(["id", "text"]).slice(0, max(size, 4 * len(names)))
    labels = [names[i % len(names)] for i in range(rows.num_rows)]
    records = rows.append_column("label", pa.array(labels, pa.string()))
    settings = config.train.model_copy(update={"epochs": _EPOCHS})
    progress.begin(None, "a short training")
    return train(settings, names, records, settings.model, _SEED, folder / "model", progress)


def _calibrate_label(
    config: RunConfig, workdir: Workdir, seen: Survey, folder: Folder, progress: Progress
) -> Rate | None:
    """Label copies of the sample's records, more of them until the labellers have had to work."""
    sample = seen.sample
    if not (folder / "model").exists("config.json"):
        _train_a_little(config, sample, folder, progress)
    settings = config.label
    if cluster.gpus():
        settings = settings.model_copy(update={"workers": (1, 1)})
    size = min(config.plan.calibration_records, sample.num_rows)
    most = max(size, _MOST_BYTES * sample.num_rows // max(sample["text"].nbytes, 1))
    while True:
        texts = pc.take(sample["text"], pa.array([i % sample.num_rows for i in range(size)]))
        (folder / "corpus").write_table("texts.parquet", pa.table({"text": texts}))
        corpus = open_corpus(CorpusConfig(path=(folder / "corpus").uri, format="parquet"))
        outcome = label(
            settings,
            corpus,
            folder,
            size,
            (folder / "model").uri,
            fingerprint([size]),
            folder / "labels",
            progress,
            trust_remote_code=config.train.trust_remote_code,
        )
        rate = label_rate(outcome.details, outcome.details["seconds"])
        worked = outcome.details.get("device_seconds", 0.0)
        if worked >= _WORK_S:
            return rate
        if size >= most:
            return rate and replace(rate, margin=_MARGIN_ROUGH)
        more = math.ceil(2 * _WORK_S / max(worked, 0.1))
        size = min(most, size * more)


def _calibrate_annotate(
    config: RunConfig, workdir: Workdir, seen: Survey, folder: Folder, progress: Progress
) -> Rate | None:
    answers = workdir.annotations(annotator_id(config.annotate, config.task))
    records, _ = to_ask(config, workdir, seen)
    if not records.num_rows:
        return None
    settings = config.annotate.model_copy(update={"replicas": (1, 1)})
    outcome = annotate(
        settings, config.task, records, answers, progress, parsed=folder / "annotations"
    )
    return annotate_rate(outcome.details, outcome.counts["in"])
