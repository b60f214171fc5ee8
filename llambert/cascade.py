"""Stage: the LLM decides the records that the encoder was least certain of.

    labels/*.parquet       id, label, confidence, by ('encoder' or 'llm'), every record once
    annotations.parquet    the LLM's answers for the records asked, parsed (schema.ANNOTATION)

The answers themselves lie with all others of the annotator, so that none is paid for twice,
whatever grows: the share, or the sample.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from llambert.asked import GoldTest
from llambert.classify import LIGHT_CPUS
from llambert.errors import CountError
from llambert.interval import wilson_interval
from llambert.measures import exact_mcnemar
from llambert.progress import Counter, Progress
from llambert.records import Corpus
from llambert.schema import SAMPLE
from llambert.section import Section
from llambert.storage import Folder, Outcome, arrow_filesystem, fingerprint
from llambert.uncertain import check_found, find_texts, least_certain, read_rows

LABELS = "labels"  # inside the stage's folder
_ANNOTATIONS = "annotations.parquet"
_COST = ("asked", "seconds", "records_per_s", "device", "device_seconds")  # of the last round
_TOLD = ("failed", "errors", "truncated", "paid_responses")


class CascadeConfig(Section):
    """Which records the LLM decides instead of the encoder."""

    share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Share of the records, those that the encoder is least sure of.",
    )
    most: int = Field(
        100_000,
        gt=0,
        description="Most records that the LLM is asked, whatever the share. They are held in the "
        "driver's memory with their texts, as the sample is.",
    )


def cascade(
    config: CascadeConfig,
    corpus: Corpus,
    inventory: Folder,
    labels: Folder,
    total: int,
    gold: GoldTest,
    asked_before: pa.Table,
    ask: Callable[[pa.Table], Outcome],
    folder: Folder,
    progress: Progress,
) -> Outcome:
    """Write the labels anew, with the LLM's where it was asked and gave one.

    Of the gold test records those are asked too that the encoder is as unsure of, at most
    `gold.most`, so that what this does to accuracy is measured.

    Args:
        inventory: the corpus stage's folder.
        labels: the encoder's labels, `total` of them.
        asked_before: id and text of what annotate asked, which costs nothing more.
        ask: brings `folder`'s annotations.parquet up to date with records (id, text); the
            outcome of `annotate`.

    Raises:
        CountError: records were lost or doubled.
        StageError: the engine failed, or too many requests did.
    """
    size = min(config.most, max(1, round(config.share * total)))
    warnings = []
    if size < round(config.share * total):
        warnings = [f"{size:,} records are asked about and not {config.share:g} of all: most"]
    progress.begin(None, "finding the least certain records")
    least = least_certain(labels, size)
    threshold = least["confidence"][-1]
    measured = _measured(gold, threshold)
    doubted = measured.filter(pc.less_equal(measured["confidence"], threshold))
    ids = least["id"].cast(pa.string()).to_pylist()
    unknown = [row for row in doubted.to_pylist() if row["id"] not in gold.known]
    looked_up = [*ids, *(row["id"] for row in unknown)]
    texts = find_texts(corpus, inventory, total, looked_up, progress)
    check_found(ids, texts)
    records, names = _request(ids, unknown, texts)
    asking = ask(records)
    answers = folder.read_table(_ANNOTATIONS)
    decided = _decided(least, answers)
    progress.begin(total, "writing the labels")
    _write(labels, decided, folder / LABELS, total, progress.ray_counter())
    answer = dict(zip(answers["id"].to_pylist(), answers["label"].to_pylist(), strict=True))
    said = gold.known | {key: answer[name] for key, name in names.items()}
    return Outcome(
        {"in": total, "out": total, "dropped": {}},
        {
            "share": round(least.num_rows / total, 6),
            "threshold": threshold.as_py(),
            "least_certain": least.num_rows,
            "answered": decided.num_rows,
            "changed": pc.sum(decided["changed"]).as_py() or 0,
            "gold": _accuracies(measured, doubted, said),
            "cost": _cost(asking.details, records, answers, asked_before),
            **{name: asking.details[name] for name in _TOLD},
            "warnings": [*warnings, *asking.details["warnings"]],
        },
        output=fingerprint(decided.select(["id", "label"]).to_pydict()),
    )


def _measured(gold: GoldTest, threshold: pa.Scalar) -> pa.Table:
    """The first of `gold.predictions`, as many as can be measured by asking `gold.most` records.

    None of them where nothing may be asked and something would have to be: those before the first
    doubted one would flatter the encoder.
    """
    doubted = pc.less_equal(gold.predictions["confidence"], threshold).to_pylist()
    ids = gold.predictions["id"].to_pylist()
    unknown = [doubt and id not in gold.known for id, doubt in zip(ids, doubted, strict=True)]
    if any(unknown) and not gold.most:
        return gold.predictions.slice(0, 0)
    within = sum(asked <= gold.most for asked in itertools.accumulate(unknown))
    return gold.predictions.slice(0, within)


def _request(
    ids: list[str], unknown: list[dict[str, Any]], texts: dict[str, str]
) -> tuple[pa.Table, dict[str, str]]:
    """What the LLM is asked, each id once; and the id under which each gold record is asked.

    A gold id that the corpus gives to another text is replaced. All of the corpus counts for this
    and not only what is asked: with another share a gold record keeps its id, and its answer.

    Args:
        ids: of the least certain records, whose texts are among `texts`.
        unknown: gold records (id, text) without an answer.
        texts: id -> text, for whichever of all these ids the corpus has.
    """
    by_text = {texts[id]: id for id in reversed(ids)}
    rows = [{"id": id, "text": texts[id]} for id in ids]
    names: dict[str, str] = {}
    for row in unknown:
        if row["text"] not in by_text:
            free = texts.get(row["id"], row["text"]) == row["text"]
            by_text[row["text"]] = row["id"] if free else f"gold:{row['id']}"
            rows.append({"id": by_text[row["text"]], "text": row["text"]})
        names[row["id"]] = by_text[row["text"]]
    return pa.Table.from_pylist(rows, schema=SAMPLE), names


def _decided(least: pa.Table, answers: pa.Table) -> pa.Table:
    """id, label, confidence of the records that the LLM has a label for, and whether it `changed`.

    Ids are of the corpus' own type.
    """
    at = pc.index_in(least["id"].cast(pa.string()), value_set=answers["id"].combine_chunks())
    found = answers.select(["label", "confidence"]).take(at)
    table = pa.table(
        {
            "id": least["id"],
            "label": found["label"],
            "confidence": found["confidence"],
            "changed": pc.not_equal(found["label"], least["label"].cast(pa.string())),
        }
    )
    return table.filter(pc.is_valid(table["label"])).combine_chunks()


def _write(labels: Folder, decided: pa.Table, folder: Folder, total: int, counter: Counter) -> None:
    """Write every row of `labels` to `folder`, those of `decided` in its place.

    Raises:
        CountError: not every record came out, or not every decision was found a record.
    """
    import ray

    folder.remove()
    filesystem, path = arrow_filesystem(folder.uri)
    # Little of a core each: the engine that has just been asked may still hold its own
    rows = ray.data.read_parquet(
        [labels.path(name) for name in labels.files(".parquet")],
        filesystem=arrow_filesystem(labels.uri)[0],
        columns=["id", "label", "confidence"],
        num_cpus=LIGHT_CPUS,
    )
    merged = rows.map_batches(
        _merge,
        fn_kwargs={"decided": ray.put(decided), "counter": counter},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=LIGHT_CPUS,
    )
    merged.write_parquet(path, filesystem=filesystem, ray_remote_args={"num_cpus": LIGHT_CPUS})
    written = folder.row_count()
    by_llm = sum(pc.sum(pc.equal(r["by"], "llm")).as_py() or 0 for r in read_rows(folder, ["by"]))
    if (written, by_llm) != (total, decided.num_rows):
        raise CountError(
            f"{total:,} labels came in and {written:,} came out; the LLM decided "
            f"{decided.num_rows:,}, which were found for {by_llm:,}",
            "was a second run under way? The same command writes them anew",
        )


def _merge(block: pa.Table, decided: Any, counter: Counter) -> pa.Table:
    import ray

    table = ray.get(decided)
    at = pc.index_in(block["id"], value_set=table["id"].combine_chunks())
    here = pc.is_valid(at)
    counter.add(block.num_rows)
    return pa.table(
        {
            "id": block["id"],
            "label": pc.if_else(here, table["label"].take(at), block["label"]),
            "confidence": pc.if_else(here, table["confidence"].take(at), block["confidence"]),
            "by": pc.if_else(here, "llm", "encoder"),
        }
    )


def _accuracies(
    predictions: pa.Table, doubted: pa.Table, said: dict[str, str | None]
) -> dict[str, Any] | None:
    """The encoder alone and the cascade against gold, on `predictions`; None without any.

    `mended` and `spoilt` are the records that the LLM put right and wrong, `p_value` is that of
    McNemar's exact test of the two.
    """
    if not predictions.num_rows:
        return None
    asked = set(doubted["id"].to_pylist())
    llm = [said[key] if key in asked else None for key in predictions["id"].to_pylist()]
    truth, alone = predictions["gold"].to_pylist(), predictions["label"].to_pylist()
    both = [answer or label for answer, label in zip(llm, alone, strict=True)]
    before = [a == b for a, b in zip(alone, truth, strict=True)]
    after = [a == b for a, b in zip(both, truth, strict=True)]
    mended = sum(not a and b for a, b in zip(before, after, strict=True))
    spoilt = sum(a and not b for a, b in zip(before, after, strict=True))
    return {
        "records": len(truth),
        "asked": len(asked),
        "answered": sum(answer is not None for answer in llm),
        "changed": sum(a != b for a, b in zip(alone, both, strict=True)),
        "mended": mended,
        "spoilt": spoilt,
        "p_value": exact_mcnemar(mended, spoilt),
        "encoder": _accuracy(before),
        "cascade": _accuracy(after),
    }


def _accuracy(right: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson_interval(sum(right), len(right))
    return {"accuracy": sum(right) / len(right), "accuracy_interval": [low, high]}


def _cost(
    asking: dict[str, Any], records: pa.Table, answers: pa.Table, before: pa.Table
) -> dict[str, Any]:
    """Answers that only the cascade wants, the gold records' too, and their tokens.

    What an earlier cascade has asked counts here; `asked`, the seconds and the device are of this
    round alone.
    """
    had = set(zip(before["id"].to_pylist(), before["text"].to_pylist(), strict=True))
    keys = zip(records["id"].to_pylist(), records["text"].to_pylist(), strict=True)
    further = answers.filter(pa.array([key not in had for key in keys], pa.bool_()))
    tokens = {
        name: pc.sum(further[name]).as_py() or 0 for name in ("prompt_tokens", "output_tokens")
    }
    figures = {name: asking[name] for name in _COST if name in asking}
    return {"answers": further.num_rows, **tokens, **figures}
