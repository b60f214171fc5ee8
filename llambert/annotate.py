"""Annotate: an LLM answers for every record of the sample, and its answers become labels.

    responses/  running/    the answers, round by round (llambert.responses)
    annotations.parquet     the answers of the current records, parsed (schema.ANNOTATION)

An answer is never paid for twice. Each invocation asks only for records that have no answer yet,
in a round of its own; a changed sample or parser needs no other bookkeeping.
"""

import os
import time
from collections import Counter as Tally
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llambert import schema
from llambert.cluster import resources, room
from llambert.engines import openai, recorded, vllm
from llambert.engines.config import (
    AnnotateConfig,
    annotator_id,
    check,
    device,
    required_resources,
)
from llambert.errors import CountError, LlambertError, StageError, UserError, ours
from llambert.parse import label_probabilities, parse
from llambert.progress import Counter, Progress
from llambert.responses import (
    collect,
    failures,
    last_answers,
    last_measured,
    next_round,
    note_round,
    read_part,
    read_responses,
    with_hashes,
)
from llambert.storage import Folder, Outcome, arrow_filesystem
from llambert.task import TaskConfig

__all__ = [
    "AnnotateConfig",
    "annotate",
    "annotator_id",
    "check",
    "check_answered",
    "required_resources",
]

_BLOCKS = 4000  # most blocks of a round of recorded answers, which a crash loses at no cost
_LIGHT_CPUS = 0.25  # of a core for writing, as for the other stages around an engine
_MESSAGE_CHARACTERS = 500  # of an engine's failure that are shown
_AGAIN = (  # after counts that only a second driver or an error of ours explains
    "was a second run under way? The answers that came are kept, and the same command asks for the "
    "rest; should it end so again, it is a fault of llambert's"
)
_WORDY_SHARE = 0.1  # of answers with a label among other words, from which on this is told
_ERRORS = 5  # kinds of failure that are told, the most frequent ones
_ANNOTATIONS = "annotations.parquet"
_OF_RAY_DATA = ("raise_original_map_exception", "max_errored_blocks")  # settings of its own


def annotate(
    config: AnnotateConfig,
    task: TaskConfig,
    records: pa.Table,
    folder: Folder,
    progress: Progress,
    may_ask: bool = True,
    parsed: Folder | None = None,
) -> Outcome:
    """Bring `folder`'s annotations.parquet up to date with `records`, each id once.

    Needs a connected Ray if anything has to be asked.

    Args:
        records: `id` and `text` (strings), ids unique; held in this process' memory.
        folder: the annotator's own: `workdir.annotations(annotator_id(config, task))`.
        may_ask: False parses the stored responses anew and never starts an engine.
        parsed: gets annotations.parquet instead of `folder`, for records other than the sample's
            that share its answers.

    Returns:
        Counts (in, out = labelled, dropped by reject reason). Details: `asked`, `reused`;
        `failed` (records without an answer), `errors` (the most frequent ones), `warnings`
        (list); `prompt_tokens` and `output_tokens` of the current annotations; `truncated`,
        `labels`; `paid_responses`, `paid_prompt_tokens` and `paid_output_tokens` of all that this
        annotator has ever answered; and where anything was asked, of this round alone,
        `seconds`, `records_per_s`, `tokens_per_s`, `setup` and, with vllm, `device`,
        `devices_per_replica`, `replicas`, `device_seconds`. Where too little was for a rate,
        `last_round` has these, and `asked`, of the last round that had one.

    Raises:
        UserError: an id comes twice, the engine refuses the settings, or answers are missing and
            may not be asked for.
        StageError: the engine failed, or more requests than `max_failed_share`. The answers that
            came are kept, and the next call asks for the rest.
        CountError: a record left the engine without an answer or a failure.
    """
    wanted = with_hashes(records)
    responses = read_responses(folder)
    known = last_answers(responses, wanted)
    if not may_ask:
        _refuse_missing(known)
    answered = responses["response"].is_valid().to_pylist()
    missing = [i for i, at in enumerate(known) if at is None or (may_ask and not answered[at])]
    model = os.path.basename(config.model.rstrip("/")) if config.model else "recorded answers"
    progress.begin(len(missing), f"asking {model}")
    details: dict[str, Any] = {"asked": 0}
    if missing:
        told = responses["error"].take(pa.array([known[i] for i in missing], pa.int64()))
        deadly = pc.fill_null(pc.equal(told, vllm.ENDED), False)
        details = _ask(config, task, wanted.take(missing), deadly, folder, progress)
        responses = read_responses(folder)
        known = last_answers(responses, wanted)
    if not details.get("records_per_s"):
        details |= last_measured(folder)
    lost = known.count(None)
    if lost:
        raise CountError(
            f"{lost:,} of {wanted.num_rows:,} records came back without an answer", _AGAIN
        )
    chosen = responses.take(pa.array(known, pa.int64()))
    details |= _failures(config, chosen, folder) | _tokens(chosen)
    details |= {f"paid_{name}": value for name, value in _tokens(responses).items()}
    details["paid_responses"] = len(responses) - responses["response"].null_count
    annotations = _parse(config, task, wanted["id"], chosen)
    (parsed or folder).write_table(_ANNOTATIONS, annotations)
    return _outcome(wanted, annotations, details)


def check_answered(records: pa.Table, folder: Folder) -> None:
    """Check that every one of `records` has been asked, so that parsing alone can annotate them.

    Reads the stored responses of `folder` and changes nothing.

    Raises:
        UserError: a record has no stored response, or an id comes twice.
    """
    _refuse_missing(last_answers(read_responses(folder), with_hashes(records)))


def _refuse_missing(known: list[int | None]) -> None:
    if None in known:
        raise UserError(
            f"{known.count(None):,} of {len(known):,} records have no stored response",
            "`llambert annotate` asks for them; parsing alone does not",
        )


def _ask(
    config: AnnotateConfig,
    task: TaskConfig,
    requests: pa.Table,
    deadly: pa.Array,
    folder: Folder,
    progress: Progress,
) -> dict[str, Any]:
    """Ask for every row of `requests` in a round of its own; the figures of the round.

    Args:
        deadly: of each row, whether the engine ended on it alone in the last round that asked it.
    """
    collect(folder)
    name = next_round(folder)
    part = folder / "running" / name
    part.create()
    counter = progress.ray_counter()
    started = time.monotonic()
    try:
        if config.engine == "vllm":
            ask = partial(_write_answers, config, task, part, counter)
            counter.add(ask_apart(requests, deadly, part, ask))
        else:
            _write_answers(config, task, part, counter, requests)
    except Exception as error:
        raise _reason(error, folder) from error
    seconds = time.monotonic() - started
    table = collect(folder).get(name, schema.RESPONSE.empty_table())
    came = set(table["id"].to_pylist())
    if came != set(requests["id"].to_pylist()):
        raise CountError(
            f"{requests.num_rows:,} records went to the engine and {len(came):,} came back", _AGAIN
        )
    figures = _figures(table, seconds, progress.rate()) | _devices(config, seconds)
    figures["setup"] = config.setup
    note_round(folder, name, figures)
    return figures


def ask_apart(
    requests: pa.Table, deadly: pa.Array, part: Folder, ask: Callable[[pa.Table, bool], None]
) -> int:
    """Ask for every row of `requests`, those again alone that an engine's end left unanswered.

    With the record that ended the engine all are lost that the engine had in hand. What ends it
    alone too gets a failure for an answer, so that the run goes on.

    Args:
        deadly: of each row, whether it is asked alone from the start.
        part: where the answers go.
        ask: writes the answers to some rows to `part`, asked together or each alone, but for
            those whose engine ended.

    Returns:
        The number of failures.
    """
    together = requests.filter(pc.invert(deadly))
    if together.num_rows:
        ask(together, False)
    if (lost := _lost(requests, part)).num_rows:
        ask(lost, True)
        lost = _lost(lost, part)
    if lost.num_rows:
        part.write_table("ended.parquet", failures(lost, vllm.ENDED))
    return lost.num_rows


def _lost(requests: pa.Table, part: Folder) -> pa.Table:
    """Those of `requests` that have nothing in `part`."""
    return requests.filter(pc.invert(pc.is_in(requests["id"], value_set=read_part(part)["id"])))


def _write_answers(
    config: AnnotateConfig,
    task: TaskConfig,
    part: Folder,
    counter: Counter,
    requests: pa.Table,
    alone: bool = False,
) -> None:
    """Write the engine's answers to `part`; only vLLM may leave some out, and asks `alone`."""
    import ray
    from ray.data import DataContext

    # A block is written when all of it is answered: what costs something comes in batches.
    config = config.model_copy(update={"batch_size": 1}) if alone else config
    rows = openai.block_rows(config) if config.engine == "openai" else config.batch_size
    if config.engine == "recorded":
        rows = max(rows, -(-requests.num_rows // _BLOCKS))
    starts = range(0, requests.num_rows, rows)
    blocks = [requests.slice(start, rows).combine_chunks() for start in starts]
    context = DataContext.get_current()
    unchanged = {name: getattr(context, name) for name in _OF_RAY_DATA}
    context.raise_original_map_exception = True
    if config.engine == "vllm":
        context.max_errored_blocks = vllm.may_be_lost(config, alone)
    try:
        dataset = ray.data.from_arrow(blocks)
        if config.engine == "openai":
            openai.ask(dataset, config, task, counter, part).materialize()
        else:
            ask = partial(vllm.ask, alone=alone) if config.engine == "vllm" else recorded.ask
            filesystem, path = arrow_filesystem(part.uri)
            ask(dataset, config, task, counter).write_parquet(
                path, filesystem=filesystem, ray_remote_args={"num_cpus": _LIGHT_CPUS}
            )
    finally:
        for name, value in unchanged.items():
            setattr(context, name, value)


def _reason(error: Exception, folder: Folder) -> LlambertError:
    """Our own error where one lies among the causes of what Ray raised, else a StageError."""
    if known := ours(error):
        return known
    first = getattr(error, "cause", None) or error
    return StageError(
        f"the engine failed: {type(first).__name__}: {str(first)[:_MESSAGE_CHARACTERS]}",
        f"/tmp/ray/session_latest/logs, on the machine that the engine ran on, has what it said, "
        "and LLAMBERT_WORKER_LOGS=1 shows it here; the answers that came are kept in "
        f"{folder.uri}, and the same command asks for the rest",
    )


def _parse(
    config: AnnotateConfig, task: TaskConfig, ids: pa.ChunkedArray, chosen: pa.Table
) -> pa.Table:
    """The answers `chosen` for the records `ids`, whatever the ids they were asked under."""
    parsed = [parse(response, task, config.parse) for response in chosen["response"].to_pylist()]
    reasons = pa.array([each.reject_reason for each in parsed], pa.string())
    if config.engine == "recorded":  # nobody was asked
        reasons = pc.replace_substring(reasons, "request_failed", "not_recorded")
    shares = [_shares(candidates, task) for candidates in chosen["first_token"].to_pylist()]
    position = {label: index for index, label in enumerate(task.labels)}
    confidence = [
        share[position[each.label]] if share and each.label is not None else None
        for share, each in zip(shares, parsed, strict=True)
    ]
    return pa.table(
        {
            "id": ids,
            "response": chosen["response"],
            "label": pa.array([each.label for each in parsed], pa.string()),
            "reject_reason": reasons,
            "confidence": pa.array(confidence, pa.float32()),
            "probabilities": pa.array(shares, pa.list_(pa.float32())),
            "prompt_tokens": chosen["prompt_tokens"],
            "output_tokens": chosen["output_tokens"],
            "truncated": chosen["truncated"],
        },
        schema=schema.ANNOTATION,
    )


def _shares(candidates: list[dict[str, Any]] | None, task: TaskConfig) -> list[float] | None:
    if not candidates:
        return None
    mass: Tally[str] = Tally()
    for each in candidates:  # two tokens may read alike
        mass[each["token"]] += each["probability"]
    return label_probabilities(mass, task)


def _failures(config: AnnotateConfig, chosen: pa.Table, folder: Folder) -> dict[str, Any]:
    """How many of the wanted records have a failure for an answer, and why.

    Raises:
        StageError: too many; then it was the endpoint or the settings rather than the records.
        UserError: too many of recorded answers are missing.
    """
    failed, total = chosen["response"].null_count, len(chosen)
    errors = Tally(error for error in chosen["error"].to_pylist() if error).most_common(_ERRORS)
    if failed and (failed == total or failed > config.max_failed_share * total):
        told = "".join(f"\n  {times:,} times: {error}" for error, times in errors)
        remedy = (
            f"the other answers are kept in {folder.uri}: mend what the errors name, and the same "
            f"command asks the failed ones again; annotate.max_failed_share "
            f"({config.max_failed_share:g}) is how many may stay without an answer"
        )
        if config.engine == "recorded":
            first = chosen.filter(chosen["response"].is_null())["id"][0]
            raise UserError(
                f"{failed:,} of {total:,} records have no answer in annotate.recorded: {first}, …",
                "its ids must be those of the corpus and of gold (gold_records: 0 where it has no "
                "gold). `llambert run CONFIG --until sample` leaves in sample/ what to answer; or "
                f"let annotate.max_failed_share, {config.max_failed_share:g} now, be without",
            )
        raise StageError(f"{failed:,} of {total:,} requests failed:{told}", remedy)
    warnings = []
    if failed and config.engine == "recorded":  # a table that has changed is another annotator
        warnings = [f"{failed:,} records have no answer in annotate.recorded (not_recorded)"]
    elif failed:
        warnings = [f"{failed:,} requests failed; `llambert run CONFIG --from annotate` asks again"]
    return {"failed": failed, "errors": dict(errors), "warnings": warnings}


def _tokens(responses: pa.Table) -> dict[str, int]:
    names = ("prompt_tokens", "output_tokens")
    return {name: sum(value or 0 for value in responses[name].to_pylist()) for name in names}


def _figures(table: pa.Table, seconds: float, rate: float | None) -> dict[str, Any]:
    """What the round took: `records_per_s` leaves the engine's start out, `seconds` does not."""
    per_record = sum(_tokens(table).values()) / table.num_rows
    return {
        "asked": table.num_rows,
        "seconds": round(seconds, 3),
        "records_per_s": rate and round(rate, 3),
        "tokens_per_s": rate and round(rate * per_record, 1),
    }


def _devices(config: AnnotateConfig, seconds: float) -> dict[str, Any]:
    """What vLLM held; `device_seconds` is an upper bound, as if all replicas ran from the start."""
    if config.engine != "vllm":
        return {}
    kind, (least, most) = device(config, resources()), config.replicas
    if kind == "gpu":
        most = room(most, config.devices, config.accelerator_type)
    return {
        "device": kind,
        "devices_per_replica": config.devices,
        "replicas": (least, most),
        "device_seconds": round(seconds * most * config.devices, 2),
    }


def _outcome(wanted: pa.Table, annotations: pa.Table, details: dict[str, Any]) -> Outcome:
    dropped = Tally(r for r in annotations["reject_reason"].to_pylist() if r is not None)
    labels = Tally(label for label in annotations["label"].to_pylist() if label is not None)
    counts = {"in": wanted.num_rows, "out": labels.total(), "dropped": dict(dropped)}
    if counts["in"] != counts["out"] + dropped.total():
        raise CountError(f"the annotations do not add up: {counts}", _AGAIN)
    reused = wanted.num_rows - details["asked"]
    truncated = sum(annotations["truncated"].to_pylist())
    warnings = list(details["warnings"])
    if (wordy := dropped["extra_text"]) > _WORDY_SHARE * wanted.num_rows:
        warnings.append(
            f"{wordy:,} answers are dropped for naming one label among other words (extra_text): "
            "annotate.parse: mention takes them, a 'not' before the label or not"
        )
    told = {"warnings": warnings, "reused": reused, "truncated": truncated, "labels": dict(labels)}
    return Outcome(counts=counts, details={**details, **told})
