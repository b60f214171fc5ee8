"""Quality gates: bounds that stop a run before its next stage spends anything."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from llambert.errors import GateError
from llambert.interval import wilson_interval
from llambert.section import Section
from llambert.storage import Folder, Manifest


class GatesConfig(Section):
    """What the figures of a stage must be for the next one to begin; a gate left out is open.

    Compared is the share as it was measured, the one that the report shows, and not an end of its
    interval: of few records chance decides, so that the interval is told beside it.
    """

    rejects_share: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Most of the LLM's answers that may give no label, failed requests included, "
        "for sample and gold records together; checked after annotate.",
    )
    label_share: float | None = Field(
        None,
        gt=0,
        le=0.5,
        description="Least share of each label among the LLM's labels, for sample and gold "
        "records together; checked after annotate.",
    )
    llm_accuracy: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Least share of the LLM's labels that are right by gold, answers without a "
        "label aside; checked after annotate. Needs gold test records.",
    )
    encoder_validation: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Least share that the encoder that labels has right of the records held back "
        "from its training (train.validation_share): by the LLM's labels for the variant "
        "llambert, so that this needs no gold, else by gold; checked after train. It is on the "
        "high side: of the epochs and seeds the best by these very records labels.",
    )
    encoder_accuracy: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Least share that the encoder that labels has right of the gold test records; "
        "checked after evaluate, before the corpus is labelled.",
    )

    def on(self, stage: str) -> bool:
        """Whether there is a gate after `stage`."""
        return any(
            kind.stage == stage and getattr(self, name) is not None for name, kind in _KINDS.items()
        )


class _Kind(NamedTuple):
    """What there is to say of a gate."""

    stage: str  # that makes its figure
    share: str  # what its figure says, after the number
    remedy: str
    most: bool = False  # the bound is the most that passes, and not the least


_ENCODER = "train longer, on a larger sample, or another encoder"
_KINDS = {
    "rejects_share": _Kind(
        "annotate",
        "of the LLM's answers give no label",
        "mend the prompt, or take more answers for labels (task.labels, annotate.parse)",
        most=True,
    ),
    "label_share": _Kind(
        "annotate",
        "of the LLM's labels are its rarest, ",
        "mend the prompt if it favours a label, draw a larger sample if the label is rare",
    ),
    "llm_accuracy": _Kind(
        "annotate",
        "of the LLM's labels are right by gold",
        "mend the prompt, the labels or the gold, or ask another model",
    ),
    "encoder_validation": _Kind(
        "train",
        "of the records held back from its training the encoder has right in its best epoch",
        _ENCODER,
    ),
    "encoder_accuracy": _Kind(
        "evaluate", "of the gold test records the encoder has right", _ENCODER
    ),
}


@dataclass(frozen=True, eq=False)
class Gate:
    """A bound, and the share that is held to it."""

    name: str
    bound: float
    hits: int
    records: int  # of which `hits` make the share
    where: str  # to look, and what is there
    table: pa.Table | None = field(default=None, repr=False)  # of mistakes that are nowhere yet
    label: str = ""  # the rarest

    @property
    def share(self) -> float | None:
        """None where there was no record to measure by."""
        return self.hits / self.records if self.records else None

    @property
    def passed(self) -> bool:
        if self.share is None:
            return False
        return self.share <= self.bound if _KINDS[self.name].most else self.share >= self.bound

    @property
    def asks(self) -> str:
        return f"{'at most' if _KINDS[self.name].most else 'at least'} {self.bound:g}"

    def figures(self) -> dict[str, Any]:
        """What the report keeps."""
        interval = list(wilson_interval(self.hits, self.records)) if self.records else None
        return {
            "name": self.name,
            "stage": _KINDS[self.name].stage,
            "figure": self.share,
            "interval": interval,
            "records": self.records,
            "bound": self.bound,
            "asks": self.asks,
            "passed": self.passed,
        }

    def line(self) -> str:
        """Name, figure and bound, for a person."""
        if self.share is None:
            return f"{self.name}: no record to measure by; {self.asks} passes"
        low, high = wilson_interval(self.hits, self.records)
        return (
            f"{self.name}: {self.share:.4f} {_KINDS[self.name].share}{self.label} "
            f"({low:.4f} to {high:.4f}, {self.records:,} records); {self.asks} passes"
        )


def check_measurable(
    config: GatesConfig, labels: int, gold_test: bool, gold_asked: int, validation_share: float
) -> None:
    """Check that each gate has something to be measured by.

    Args:
        labels: number of them.
        gold_test: whether there are gold test records.
        gold_asked: how many of these the LLM answers.

    Raises:
        ValueError: a gate has not, or none of its figures could pass.
    """
    for name in ("llm_accuracy", "encoder_accuracy"):
        if getattr(config, name) is not None and not gold_test:
            raise ValueError(
                f"gates.{name} is measured by gold test records, and there are none: give "
                "gold.test or gold.test_share, or leave the gate out"
            )
    if config.llm_accuracy is not None and not gold_asked:
        raise ValueError(
            "gates.llm_accuracy is measured by the gold records that the LLM answers, and "
            "annotate.gold_records is 0"
        )
    if config.encoder_validation is not None and not validation_share:
        raise ValueError(
            "gates.encoder_validation is measured by the records held back from training, and "
            "train.validation_share is 0"
        )
    if config.label_share is not None and config.label_share * labels > 1:
        raise ValueError(
            f"gates.label_share is {config.label_share:g}, which {labels} labels cannot all have: "
            f"it is at most {1 / labels:.4g}"
        )


def annotation_gates(
    config: GatesConfig, labels: Iterable[str], folder: Folder, made: Manifest, gold: pa.Table
) -> list[Gate]:
    """The gates after annotate.

    Args:
        folder: the annotator's.
        gold: the gold records that the LLM answered, with at least gold and label (null: none).
    """
    gates = []
    where = f"{folder.uri}/annotations.parquet"
    if config.rejects_share is not None:
        dropped = made.counts["dropped"]
        why = f"{where}, the rows with a reject_reason ({_listed(dropped)})"
        counts = (sum(dropped.values()), made.counts["in"])
        gates.append(Gate("rejects_share", config.rejects_share, *counts, why))
    if config.label_share is not None:
        found = {label: made.details["labels"].get(label, 0) for label in labels}
        rarest = min(found, key=lambda label: found[label])
        counts = (found[rarest], sum(found.values()))
        why = f"{where} ({_listed(found)})"
        gates.append(Gate("label_share", config.label_share, *counts, why, label=repr(rarest)))
    if config.llm_accuracy is not None:
        right = pc.fill_null(pc.equal(gold["label"], gold["gold"]), False)
        counts = (pc.sum(right).as_py() or 0, gold.num_rows - gold["label"].null_count)
        wrong = gold.filter(pc.invert(right))
        gates.append(Gate("llm_accuracy", config.llm_accuracy, *counts, "", wrong))
    return gates


def training_gates(config: GatesConfig, folder: Folder, made: Manifest) -> list[Gate]:
    """The gate after train, on the model that labels, of which these are folder and manifest."""
    if config.encoder_validation is None:
        return []
    accuracy, records = made.details["validation_accuracy"], made.details["validation_records"]
    hits = round((accuracy or 0) * records)
    where = f"{folder.uri}/metrics.json, every epoch's figures"
    return [Gate("encoder_validation", config.encoder_validation, hits, records, where)]


def evaluation_gates(
    config: GatesConfig, folder: Folder, made: Manifest, variant: str, seed: int
) -> list[Gate]:
    """The gate after evaluate, on the model that labels.

    Args:
        folder: the evaluation's, and its manifest.
    """
    if config.encoder_accuracy is None:
        return []
    measured = made.details[variant]["seeds"][str(seed)]
    hits, records = round(measured["accuracy"] * measured["records"]), measured["records"]
    where = f"{folder.uri}/errors.parquet, variant {variant}, seed {seed}"
    return [Gate("encoder_accuracy", config.encoder_accuracy, hits, records, where)]


def check_passed(gates: Iterable[Gate], folder: Folder) -> None:
    """Stop the run unless all of `gates` are passed.

    Args:
        folder: gets the mistakes that lie nowhere else, as `<gate>.parquet`.

    Raises:
        GateError: a gate is not passed.
    """
    judged = list(gates)
    breached = [gate for gate in judged if not gate.passed]
    if not breached:
        if any(gate.table is not None for gate in judged):
            folder.remove()  # what an earlier breach left
        return
    said, remedies = [], []
    for gate in breached:
        where = gate.where
        if gate.table is not None:
            folder.write_table(f"{gate.name}.parquet", gate.table)
            where = f"{folder.uri}/{gate.name}.parquet ({gate.table.num_rows:,} records)"
        kind = _KINDS[gate.name]
        said.append(f"a gate after {kind.stage} is not passed: {gate.line()}\n  look at {where}")
        remedies.append(f"{kind.remedy}, or move the bound: --set gates.{gate.name}=…")
    raise GateError(
        "\n".join(said),
        "\n     ".join(remedies)
        + "\n     the same command then goes on from here, and no answer is paid for twice",
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {records:,}" for name, records in counts.items())
