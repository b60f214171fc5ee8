"""Stage: how good the LLM and each encoder are, measured against gold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pyarrow as pa
from pydantic import Field

from llambert import cluster
from llambert.classify import label_rows, labelling_dtype, pool_size
from llambert.errors import CountError
from llambert.interval import wilson_interval
from llambert.measures import mcnemar, measure, over_seeds
from llambert.progress import Counter, Progress
from llambert.section import Section
from llambert.storage import Folder, Outcome

_BLOCKS = 16  # of the gold test set, so that several actors share it
_BLOCK_RECORDS = 128  # at least: a block of a few gives an actor no work to share
MEASURES = 2  # one more wherever the figures of an evaluation become others
_PREDICTIONS = "predictions"
ERRORS = "errors.parquet"
_ERROR = pa.schema(
    [
        pa.field("variant", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("gold", pa.string()),
        pa.field("label", pa.string()),
        pa.field("confidence", pa.float32()),  # probability of `label`
        pa.field("text", pa.string()),
    ]
)


class EvaluateConfig(Section):
    """Measuring against gold."""

    errors: int = Field(200, ge=0, description="Most confident mistakes kept of each encoder.")


@dataclass(frozen=True)
class Trained:
    """A fine-tuned encoder."""

    variant: str
    seed: int
    folder: str


def evaluate(
    config: EvaluateConfig,
    labels: Sequence[str],
    gold: pa.Table,
    annotated: pa.Table,
    models: Sequence[Trained],
    folder: Folder,
    progress: Progress,
    actors: Mapping[str, Any],
    trust_remote_code: bool = False,
) -> Outcome:
    """Write metrics.json, errors.parquet and predictions/ to `folder`.

    What an earlier evaluation left there, of other models perhaps, is removed first.

    Args:
        gold: the test records, `schema.GOLD`; every model labels all of them.
        annotated: id, text, gold, label of the gold records that the LLM was asked about, test
            and train alike; label is null where its answer was rejected.
        actors: how the encoders are run: as on the corpus, by `LabelConfig.actors`.
        trust_remote_code: whether code that comes with a model may run.

    Raises:
        CountError: a model's predictions are not of the gold records.
    """
    (folder / _PREDICTIONS).remove()
    if folder.exists(ERRORS):
        folder.fs.rm_file(folder.path(ERRORS))
    metrics: dict[str, Any] = {"gold_records": gold.num_rows}
    held: dict[str, Any] = {}  # as the encoders hold it
    if annotated.num_rows:
        metrics["llm"] = _llm_metrics(annotated, labels)
    errors = [_ERROR.empty_table()]
    by_variant: dict[str, dict[int, dict[str, Any]]] = {}
    right: dict[int, dict[str, dict[str, bool]]] = {}  # of each seed and variant, by id
    if gold.num_rows and models:
        workers = _workers(gold, models[0].folder, actors)
        dtype = labelling_dtype(actors.get("dtype", "auto"))
        actors = {**actors, "dtype": dtype, "workers": (1, workers)}
        held = {"device": cluster.device(), "workers": workers}
        for model in models:
            progress.begin(gold.num_rows, f"{model.variant}, seed {model.seed}")
            counter = progress.ray_counter()
            predicted = _predict(gold, model.folder, counter, actors, trust_remote_code)
            name = _predictions_of(model.variant, model.seed)
            (folder / _PREDICTIONS).write_table(name, predicted)
            one = measure(predicted, labels)
            one["against_llm"] = _agreement(predicted, annotated)
            by_variant.setdefault(model.variant, {})[model.seed] = one
            right.setdefault(model.seed, {})[model.variant] = _right(predicted)
            errors.append(_mistakes(predicted, gold, model, config.errors))
    for variant, seeds in by_variant.items():
        metrics[variant] = over_seeds(seeds, gold.num_rows)
    if compared := _compare(right, _right(annotated.filter(annotated["label"].is_valid()))):
        metrics["comparisons"] = compared
    folder.write_table(ERRORS, pa.concat_tables(errors))
    folder.write_json("metrics.json", metrics)
    details = metrics | held | {"warnings": _missed(by_variant)}
    return Outcome({"in": gold.num_rows, "out": gold.num_rows, "dropped": {}}, details)


def read_predictions(folder: Folder, variant: str, seed: int) -> pa.Table:
    """id, gold, label, confidence, probabilities of every gold test record, sorted by id.

    Args:
        folder: of an evaluation with gold.
    """
    return (folder / _PREDICTIONS).read_table(_predictions_of(variant, seed))


def _predictions_of(variant: str, seed: int) -> str:
    return f"{variant}-seed-{seed}.parquet"


def _llm_metrics(annotated: pa.Table, labels: Sequence[str]) -> dict[str, Any]:
    """The LLM against gold, over the answers that gave a label; rejects are counted beside."""
    answered = annotated.filter(annotated["label"].is_valid())
    rejected = annotated.num_rows - answered.num_rows
    if not answered.num_rows:
        return {"records": 0, "rejected": rejected}
    return {**measure(answered, labels), "rejected": rejected}


def _right(predicted: pa.Table) -> dict[str, bool]:
    """Whether the label is the gold one, by id."""
    rows = predicted.select(["id", "gold", "label"]).to_pylist()
    return {row["id"]: row["gold"] == row["label"] for row in rows}


def _compare(
    right: Mapping[int, Mapping[str, Mapping[str, bool]]], llm: Mapping[str, bool]
) -> list[dict[str, Any]]:
    """McNemar's test of every two variants of a seed, and of each with the LLM."""
    found = []
    for seed, variants in right.items():
        for first, second in combinations([*variants, "llm"], 2):
            tested = mcnemar(variants[first], llm if second == "llm" else variants[second])
            if tested:
                found.append({"first": first, "second": second, "seed": seed, **tested})
    return found


def _missed(by_variant: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """A sentence for each label that an encoder finds less often than by guessing."""
    told = []
    for variant, seeds in by_variant.items():
        for seed, measured in seeds.items():
            for label, one in measured["labels"].items():
                records, by_guessing = one["records"], 1 / len(measured["labels"])
                found = round(one["recall"] * records)
                if records and wilson_interval(found, records)[1] < by_guessing:
                    told.append(
                        f"{variant}, seed {seed}, finds {found:,} of {records:,} gold records "
                        f"with label {label!r}, fewer than by guessing: it has hardly learned this "
                        "label (more train.epochs or records, train.class_weights)"
                    )
    return told


def _blocks(gold: pa.Table) -> int:
    return max(1, min(_BLOCKS, gold.num_rows // _BLOCK_RECORDS))


def _workers(gold: pa.Table, model: str, actors: Mapping[str, Any]) -> int:
    """How many actors measure an encoder at most: each loads it for a block at least."""
    _, most = pool_size(model, None, actors.get("accelerator_type"), gold["text"].nbytes)
    allowed = (actors.get("workers") or (1, most))[1]
    return min(most, allowed, _blocks(gold))


def _predict(
    gold: pa.Table,
    model: str,
    counter: Counter,
    actors: Mapping[str, Any],
    trust_remote_code: bool,
) -> pa.Table:
    """id, gold, label, confidence, probabilities of every gold record, sorted by id."""
    import ray

    rows = ray.data.from_arrow(gold).repartition(_blocks(gold))
    labelled = label_rows(
        rows,
        model,
        counter,
        probabilities=True,
        trust_remote_code=trust_remote_code,
        **actors,
    )
    tables = list(labelled.iter_batches(batch_size=None, batch_format="pyarrow"))
    table = pa.concat_tables(tables).combine_chunks().sort_by("id")
    truth = gold.sort_by("id")
    if table["id"].to_pylist() != truth["id"].to_pylist():
        raise CountError(
            f"{gold.num_rows:,} gold records came in and others came out ({table.num_rows:,})",
            "run the same command again; if it ends so again, it is a fault of this program: "
            "please report it with this message",
        )
    return table.add_column(1, "gold", truth["label"])


def _agreement(predicted: pa.Table, annotated: pa.Table) -> dict[str, Any] | None:
    """How often the encoder says what the LLM said, on the records that both labelled.

    With Wilson's 95 % interval.
    """
    if not annotated.num_rows:
        return None
    said = annotated.select(["id", "label"]).rename_columns(["id", "llm"])
    both = predicted.select(["id", "label"]).join(said, "id", join_type="inner")
    both = both.filter(both["llm"].is_valid())
    if not both.num_rows:
        return None
    same = sum(
        a == b for a, b in zip(*(both[c].to_pylist() for c in ("label", "llm")), strict=True)
    )
    return {
        "records": both.num_rows,
        "agreement": same / both.num_rows,
        "agreement_interval": wilson_interval(same, both.num_rows),
    }


def _mistakes(predicted: pa.Table, gold: pa.Table, model: Trained, most: int) -> pa.Table:
    """The mistakes that the model was surest of, with their texts."""
    wrong = predicted.filter(
        pa.array(
            [
                a != b
                for a, b in zip(
                    predicted["gold"].to_pylist(), predicted["label"].to_pylist(), strict=True
                )
            ]
        )
    ).select(["id", "gold", "label", "confidence"])
    worst = wrong.sort_by([("confidence", "descending"), ("id", "ascending")]).slice(0, most)
    with_text = worst.join(gold.select(["id", "text"]), "id")
    columns = {name: with_text[name] for name in with_text.column_names}
    columns["variant"] = pa.array([model.variant] * with_text.num_rows, pa.string())
    columns["seed"] = pa.array([model.seed] * with_text.num_rows, pa.int64())
    mistakes = pa.table(columns).select(_ERROR.names).cast(_ERROR)
    return mistakes.sort_by([("confidence", "descending"), ("id", "ascending")])
