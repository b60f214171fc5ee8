"""Pure: what a run's work took, and what asking the LLM about every record would have taken."""

from collections.abc import Mapping
from typing import Any

from llambert.storage import Manifest

WORKING = {"annotate", "train", "label", "cascade"}  # the stages that keep a model busy
_UNITS = {"gpu": "GPU-seconds", "cpu": "seconds"}


def cost(made: Mapping[str, Manifest]) -> dict[str, Any]:
    """The ledger of a run, against what the LLM alone would have cost.

    On GPUs it counts GPU-seconds, as each step measures them. Without GPUs it counts seconds on
    the clock: an LLM and an encoder share a machine's cores in different ways, but take turns.
    What a step did in an earlier round is added at the rate of the last one, which is what its
    manifest has; so is what the LLM would do beyond the records that it was asked about.

    Args:
        made: the manifest of every step, by title.

    Returns:
        `unit`: 'GPU-seconds', 'seconds' or None where there is no common one, or something was
        not measured; then `unknown` says why, and what would be in this unit is null.
        `steps`: for each step its `device`, `records` and how many of these were `measured`,
        `amount` in the unit, and tokens where the engine counted them.
        `amount`: of all steps; `llm_only`: the same for the LLM and every record; `share`: the
        one by the other. `per_record` of LLM and encoder, start-up aside. `break_even_records`:
        from which size of corpus on the run would cost less than the LLM alone.
        `llm_answers`: records that the LLM was asked about, gold included.
    """
    work = {title: each for title, each in made.items() if each.stage in WORKING}
    kinds = {kind for each in work.values() if (kind := _figures(each).get("device"))}
    kind = kinds.pop() if len(kinds) == 1 else None
    steps = {title: _step(each, kind) for title, each in work.items()}
    amounts = [step["amount"] for step in steps.values()]
    unknown = _unknown(steps, kind)
    told = {
        "unit": _UNITS.get(str(kind)),
        "unknown": unknown,
        "steps": steps,
        "amount": sum(amounts) if not unknown else None,
        "llm_answers": sum(
            step["records"]
            for title, step in steps.items()
            if work[title].stage in ("annotate", "cascade")
        ),
    }
    return told | _against_llm(work, kind, told["amount"])


def _figures(manifest: Manifest) -> dict[str, Any]:
    """A step's figures of its work; a cascade's are apart."""
    return {**manifest.details, **manifest.details.get("cost", {})}


def _unknown(steps: Mapping[str, Mapping[str, Any]], kind: str | None) -> str | None:
    """Why the steps have no sum."""
    for title, step in steps.items():
        if step["amount"] is not None:
            continue
        if not step["measured"]:
            return f"{title} had nothing left to do and was not measured in its last round"
        if step["device"] is None:
            return f"{title} did not run on this cluster's devices"
        if kind:
            return f"{title} was over too soon to be measured"
    return None if kind else "not all steps ran on the same kind of device"


def _step(manifest: Manifest, kind: str | None) -> dict[str, Any]:
    figures, counts = _figures(manifest), manifest.counts
    records = figures.get("answers", counts["in"])
    measured = figures.get("asked", figures.get("labelled_now", records))
    amount = _measured(manifest, kind) if records else 0.0
    if amount is not None and measured < records:
        each = _per_record(manifest, kind)
        amount = None if each is None else amount + (records - measured) * each
    tokens = {name: figures.get(name) for name in ("prompt_tokens", "output_tokens")}
    return {
        "device": figures.get("device"),
        "records": records,
        "measured": measured,
        "amount": amount,
        **{name: value for name, value in tokens.items() if value},
    }


def _measured(manifest: Manifest, kind: str | None) -> float | None:
    """What the step's last round took, its start included."""
    figures = _figures(manifest)
    if kind == "gpu":
        taken = figures.get("device_seconds")
        return None if taken is None else float(taken)
    if kind is None or figures.get("device") is None:
        return None
    # a training that went on after a crash tells its seconds from the beginning
    return max(manifest.seconds, figures.get("training_seconds") or 0.0)


def _per_record(manifest: Manifest, kind: str | None) -> float | None:
    """What one record took, start-up aside."""
    figures = _figures(manifest)
    rate = figures.get("records_per_s")
    if not (kind and rate and figures.get("device")):
        return None
    if kind == "cpu":
        return 1.0 / float(rate)
    if manifest.stage == "label":
        return float(figures["device_seconds"] / figures["labelled_now"])
    return float(figures["device_seconds"] / figures["seconds"] / rate)


def _against_llm(
    work: Mapping[str, Manifest], kind: str | None, amount: float | None
) -> dict[str, Any]:
    """What the LLM would have taken for all that the encoder labelled, and how that compares."""
    asked, labelled = work["annotate"], work["label"]
    records, counts = labelled.counts["out"], asked.counts
    told: dict[str, Any] = {"llm_only": {"records": records, "amount": None}, "share": None}
    for name in ("prompt_tokens", "output_tokens"):
        if asked.details.get(name) and counts["in"]:
            told["llm_only"][name] = round(asked.details[name] / counts["in"] * records)
    llm, encoder = _per_record(asked, kind), _per_record(labelled, kind)
    taken = _measured(asked, kind)
    if llm is None or taken is None:
        return told
    start = max(taken - asked.details["asked"] * llm, 0.0)
    told["llm_only"]["amount"] = start + records * llm
    told["per_record"] = {"llm": llm, "encoder": encoder}
    if amount is not None:
        told["share"] = amount / told["llm_only"]["amount"]
        told |= _break_even(work, amount - start, llm, encoder)
    return told


def _break_even(
    work: Mapping[str, Manifest], amount: float, llm: float, encoder: float | None
) -> dict[str, int]:
    """From which size on the LLM alone would cost more than `amount`, which goes up with the size.

    What goes up is labelling and, at the same share of the records, the cascade.
    """
    records = work["label"].counts["out"]
    again = sum(_figures(each).get("answers", 0) for each in work.values())  # of a cascade
    if encoder is None or not records:
        return {}
    each = encoder + llm * again / records
    if each >= llm:
        return {}
    return {"break_even_records": max(round((amount - records * each) / (llm - each)), 0)}
