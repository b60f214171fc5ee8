"""The configuration of a run: the stages' own sections, read from one YAML file."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from llambert.annotate import AnnotateConfig
from llambert.cascade import CascadeConfig
from llambert.drift import NightlyConfig
from llambert.errors import UserError
from llambert.evaluate import EvaluateConfig
from llambert.gates import GatesConfig, check_measurable
from llambert.gold import GoldConfig
from llambert.label import LabelConfig
from llambert.plan import PlanConfig
from llambert.power_law import CurveConfig
from llambert.records import Corpus, CorpusConfig
from llambert.review import ReviewConfig
from llambert.run_yaml import read, read_value
from llambert.sample import SampleConfig
from llambert.section import SECRET, Location, Section, Variant
from llambert.storage import fingerprint, is_remote
from llambert.task import TaskConfig
from llambert.tracking import TrackingConfig
from llambert.train import TrainConfig
from llambert.workdir import ARTEFACTS

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
_VARIABLE = re.compile(r"\$?\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TEXTS = {"task", "chat_template"}  # where any characters may stand
# Fields whose wrong value may be a secret put in the wrong place.
_UNSHOWN = {"api_key_env", "base_url", "tracking_uri"}


class RunConfig(Section):
    """One run: what is asked, of which records, and how."""

    name: str = Field(
        description="Name of the run; letters, digits, '-', '_' and '.'.",
        json_schema_extra={"pattern": _NAME},
    )
    workdir: Location = Field(description="Where all artefacts go: a path, s3://… or gs://….")
    task: TaskConfig = Field(description="Labels and prompt.")
    corpus: CorpusConfig = Field(description="The records to label.")
    gold: GoldConfig | None = Field(None, description="Records labelled by people.")
    sample: SampleConfig = Field(description="How many records the LLM annotates.")
    annotate: AnnotateConfig = Field(description="The LLM.")
    train: TrainConfig = Field(description="The encoder's fine-tuning.")
    evaluate: EvaluateConfig = Field(
        EvaluateConfig(), description="How models are measured against gold."
    )
    label: LabelConfig = Field(LabelConfig(), description="How the corpus is labelled.")
    cascade: CascadeConfig | None = Field(
        None, description="Ask the LLM for the least certain labels; not done by default."
    )
    review: ReviewConfig | None = Field(
        None, description="Prepare the least certain labels for people; not done by default."
    )
    gates: GatesConfig = Field(
        GatesConfig(), description="Bounds that stop a run before its next stage; none by default."
    )
    tracking: TrackingConfig | None = Field(
        None, description="Tell MLflow of a run that is done; not done by default."
    )
    nightly: NightlyConfig = Field(
        NightlyConfig(), description="When a night of `llambert nightly` counts as wrong."
    )
    plan: PlanConfig = Field(PlanConfig(), description="Prices, and rates that are known already.")
    curve: CurveConfig = Field(
        CurveConfig(), description="How `llambert curve` measures what more annotations bring."
    )

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(_NAME, name):
            raise ValueError(
                "a name has letters, digits, '-', '_' and '.', and begins with a letter or digit"
            )
        return name

    @field_validator("workdir")
    @classmethod
    def _no_trailing_slash(cls, workdir: str) -> str:
        return workdir.rstrip("/") or "/"

    @model_validator(mode="after")
    def _workdir_is_apart_from_the_corpus(self) -> "RunConfig":
        for path in self.corpus.paths:
            if _overlap(path, self.workdir):
                raise ValueError(
                    f"corpus.path {path!r} may take in what runs write to the workdir "
                    f"{self.workdir!r}: the next run would read this one's labels; put the "
                    "workdir elsewhere"
                )
        return self

    @model_validator(mode="after")
    def _variants_have_their_data(self) -> "RunConfig":
        needs_gold = [v for v in self.variants if v != "llambert"]
        if needs_gold and not (self.gold and self.gold.train):
            raise ValueError(
                f"train.variants has {needs_gold[0]!r}, which trains on gold labels, but "
                "gold.train is not given"
            )
        if self.label.variant and self.label.variant not in self.variants:
            raise ValueError(
                f"label.variant is {self.label.variant!r}, which is not trained; "
                f"train.variants is {self.variants}"
            )
        return self

    @model_validator(mode="after")
    def _gates_have_their_figures(self) -> "RunConfig":
        tested = bool(self.gold and (self.gold.test or self.gold.test_share))
        asked, validated = self.annotate.gold_records, self.train.validation_share
        check_measurable(self.gates, len(self.task.labels), tested, asked, validated)
        return self

    @property
    def variants(self) -> list[Variant]:
        """The variants to train: those asked for, else all that the data allow."""
        has_gold = bool(self.gold and self.gold.train)
        return self.train.variants or (
            ["baseline", "llambert", "combined"] if has_gold else ["llambert"]
        )

    @property
    def label_variant(self) -> Variant:
        """The variant that labels the corpus: the one asked for, else the one trained on most."""
        return self.label.variant or [v for v in get_args(Variant) if v in self.variants][-1]

    def planned_for(self, corpus: Corpus) -> str:
        """A fingerprint of all that a run's time and cost depend on: with another, another plan."""
        stages = {"task", "corpus", "gold", "sample", "annotate", "train", "label", "cascade"}
        settings = self.model_dump(mode="json", include=stages)
        return fingerprint([settings, len(corpus.sources), corpus.bytes])


def load(path: str, overrides: Iterable[str] = ()) -> RunConfig:
    """Read the run file at `path`, with `a.b=c` overrides applied.

    Raises:
        UserError: the file, an override, a field or a variable is wrong; the message has each
            field, its value and the remedy.
    """
    values = read(path)
    for override in overrides:
        _apply(values, override)
    _complete_labels(values)
    expanded = _expand(values, where=())
    base = os.path.dirname(os.path.abspath(path))
    try:
        return RunConfig.model_validate(expanded, context={"base": base})
    except ValidationError as error:
        raise UserError(
            f"{path} is not a valid run file:\n" + "\n".join(_explain(error, expanded)),
            "`llambert schema` says what every field may hold",
        ) from None


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML; `load` reads it back."""
    values = config.model_dump(mode="json", exclude_none=True)
    if config.annotate.openai.api_key_env is None:  # the one null that is no default
        values["annotate"]["openai"]["api_key_env"] = None
    return yaml.safe_dump(_escape(values), sort_keys=False, allow_unicode=True, width=100)


def _complete_labels(values: dict[str, Any]) -> None:
    """A label without further spellings may be left bare: `yes:`."""
    task = values.get("task")
    if isinstance(task, dict) and isinstance(task.get("labels"), dict):
        labels = {key: [] if more is None else more for key, more in task["labels"].items()}
        values["task"] = task | {"labels": labels}


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(
            f"--set {override!r} is not of the form a.b=c", "for example train.epochs=2"
        )
    *parents, last = key.strip().split(".")
    place = values
    for parent in parents:
        inner = {} if place.get(parent) is None else place[parent]
        if not isinstance(inner, dict):
            raise UserError(f"--set {override!r}: {parent!r} is not a section", "check the name")
        place[parent] = dict(inner)  # a copy: an alias may stand for the same section elsewhere
        place = place[parent]
    try:
        place[last] = read_value(text, (*parents, last))
    except (yaml.YAMLError, RecursionError):
        raise UserError(
            f"the value of --set {override!r} is not YAML",
            f"quote it once for YAML and once for the shell: --set '{key}=\"{text}\"'",
        ) from None


def _expand(value: Any, where: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _expand(inner, (*where, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, where) for inner in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, field = match[1], ".".join(where)
        if match[0].startswith("$$"):
            return match[0][1:]
        if SECRET.search(name):
            raise UserError(
                f"{field} uses ${{{name}}}, which looks like a secret and would be stored",
                "secrets come from the environment or the instance role: give the variable's "
                "name where a field asks for it (annotate.openai.api_key_env)",
            )
        if name not in os.environ:
            raise UserError(
                f"{field} uses ${{{name}}}, which is not set",
                f"set {name} in the environment, or write $${{{name}}} for these very characters",
            )
        return os.environ[name]

    if not _TEXTS & set(where) and "${" in _VARIABLE.sub("", value):
        raise UserError(
            f"{'.'.join(where)} is {value!r}, and of variables only ${{NAME}} is known",
            "a default such as ${NAME:-value} is the shell's: set the variable there",
        )
    return _VARIABLE.sub(replace, value)


def _escape(value: Any) -> Any:
    """The inverse of `_expand`: a text that reads as a variable stands for itself."""
    if isinstance(value, dict):
        return {key: _escape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escape(inner) for inner in value]
    return (
        re.sub(r"\$(?=\{[A-Za-z_][A-Za-z0-9_]*\})", "$$", value)
        if isinstance(value, str)
        else value
    )


def _overlap(path: str, workdir: str) -> bool:
    """Whether what `path` (a file, folder or glob) stands for may hold a run's artefacts.

    Compared part by part as far as both go; a `**` may stand for anything that follows. Below the
    workdir a corpus may lie in a folder that no stage writes.
    """
    parts, own_parts = _parts(path), _parts(workdir)
    for part, own in zip(parts, own_parts, strict=False):
        if "**" in part:
            return True
        if part != own and not fnmatchcase(own, part):
            return False
    below = parts[len(own_parts) :]
    return not below or any(fnmatchcase(name, below[0]) for name in ARTEFACTS)


def _parts(uri: str) -> list[str]:
    """The parts of a URI, or of a local path with its links resolved."""
    if not is_remote(uri):
        uri = os.path.realpath(uri.removeprefix("file://"))
    return uri.rstrip("/").split("/")


def _explain(error: ValidationError, values: Any) -> list[str]:
    """One line for each wrong field: name, value, what is wrong, the nearest known name."""
    said: dict[str, list[str]] = {}
    for each in error.errors():
        field = ".".join(_written(each["loc"], values))
        message = each["msg"].removeprefix("Value error, ")
        if each["type"] in ("dict_type", "model_type"):
            example = "{good: [], bad: []}" if field == "task.labels" else "{name: value}"
            message = f"is a section: write {example}, or its names indented below it"
        if each["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(each["loc"][-1]), _fields(each["loc"][:-1]), n=1)
            message = "no such field" + (f"; did you mean {near[0]!r}?" if near else "")
        elif each["type"] == "missing":
            message = "is required"
        elif not (_UNSHOWN & set(each["loc"]) or isinstance(each["input"], Mapping | BaseModel)):
            message += f" (the value is {each['input']!r})"
        said.setdefault(field, []).append(message)
    return [
        f"  {field}: {'; or: '.join(messages)}" if field else f"  {'; '.join(messages)}"
        for field, messages in said.items()
    ]


def _written(place: tuple[int | str, ...], values: Any) -> list[str]:
    """The parts of `place` that a run file has; pydantic adds which kind of value it has tried."""
    kept = []
    for part in place:
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part]
        else:
            continue
        kept.append(str(part))
    return kept


def _fields(place: tuple[int | str, ...]) -> list[str]:
    """The field names of the section at `place`, or none where it is not a section."""
    section: type[BaseModel] = RunConfig
    for part in place:
        field = section.model_fields.get(str(part))
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not inner:
            return []
        section = inner[0]
    return list(section.model_fields)
