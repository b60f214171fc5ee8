"""The phrases of `kinds.yaml` and `frames.yaml`, read once and laid out for drawing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

LABELS = ("negative", "positive")

_SUFFIXES = {"negative": "bad", "positive": "good"}
_SEPARATOR = " / "


@dataclass(frozen=True)
class Aspect:
    """One side of a thing, and by label what is said of it."""

    name: str
    plural: bool
    said: dict[str, list[str]]  # follows "is"
    short: dict[str, list[str]]  # of these, one or two words: they bear a negation
    words: dict[str, list[str]]  # of these, single words
    deeds: dict[str, list[str]]  # verb phrases


@dataclass(frozen=True)
class Kind:
    """What is reviewed: a film, a kettle, a hotel …"""

    name: str
    number: int  # column of Language.agree for the thing itself
    fixed: dict[str, str]  # slots that stay the same throughout a review
    pools: dict[str, list[str]]  # slots that are drawn for each sentence
    aspects: list[Aspect]
    openings: list[str]
    neutral: list[str]  # sentences that judge nothing
    tales: dict[str, list[str]]  # by label: what happened, which says it all
    irony: dict[str, list[str]]  # by label: what seems to say the opposite
    verdicts: dict[str, list[str]]


@dataclass(frozen=True)
class Language:
    """All that reviews are made of."""

    kinds: list[Kind]  # each as often as its weight
    agree: dict[str, list[str]]
    frames: dict[tuple[str, str], list[str]]  # by name and label
    general: dict[str, list[str]]  # words that judge anything
    emoji: dict[str, list[str]]
    invented: dict[str, list[list[str]]]  # syllables, one list per place in the name


def agreement(plural: bool, past: bool) -> int:
    """The column of Language.agree."""
    return plural + 2 * past


@lru_cache(maxsize=1)
def language() -> Language:
    """Read the two files."""
    raw = _read("frames.yaml")
    emoji = {name: _split(text) for name, text in raw["emoji"].items()}
    kinds: list[Kind] = []
    for name, entry in _read("kinds.yaml").items():
        kinds += [_kind(name, entry, raw)] * entry.get("weight", 1)
    return Language(
        kinds=kinds,
        agree=raw["agree"],
        frames={
            (name, label): frames.get("any", []) + frames.get(_SUFFIXES[label], [])
            for name, frames in raw["frames"].items()
            for label in LABELS
        },
        general={label: _split(raw["general"][_SUFFIXES[label]]) for label in LABELS},
        emoji={label: emoji["any"] + emoji[_SUFFIXES[label]] * 3 for label in LABELS},
        invented={
            name: [place.split() for place in places] for name, places in raw["invented"].items()
        },
    )


def _read(name: str) -> dict[str, Any]:
    # libyaml, where PyYAML was built with it, is ten times as fast
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(files(__package__).joinpath(name).read_text("utf-8"), loader)


def _split(phrases: str | Sequence[str]) -> list[str]:
    lines = [phrases] if isinstance(phrases, str) else phrases
    return [phrase for line in lines for phrase in line.split(_SEPARATOR)]


def _kind(name: str, raw: dict[str, Any], frames: dict[str, Any]) -> Kind:
    group = frames["groups"][raw["group"]]
    pools = {slot: _split(phrases) for slot, phrases in frames["words"].items()}
    pools["thing"] = _split(raw.get("called", name))
    for slot in ("name", "time", "before"):
        pools[slot] = _split(raw.get(slot, group[slot]))
    verdicts = frames["frames"]["verdict"]
    return Kind(
        name=name,
        number=agreement(raw.get("plural", False), raw.get("past", False)),
        fixed={"chose": raw["chose"], "again": raw["again"]},
        pools=pools,
        aspects=[
            _aspect(aspect, number == "many", lists)
            for number in ("one", "many")
            for aspect, lists in raw.get(number, {}).items()
        ],
        openings=group["open"],
        neutral=raw["facts"] * 4 + group["filler"] + frames["aside"],
        tales={"positive": raw["praise"], "negative": raw["moan"]},
        irony={"positive": raw["mock"], "negative": raw["sarcasm"]},
        verdicts={label: verdicts[key] + group[key] for label, key in _SUFFIXES.items()},
    )


def _aspect(name: str, plural: bool, lists: dict[str, str]) -> Aspect:
    said = {"positive": _split(lists["good"]), "negative": _split(lists["bad"])}
    return Aspect(
        name=name,
        plural=plural,
        said=said,
        short={label: _up_to(2, phrases) for label, phrases in said.items()},
        words={label: _up_to(1, phrases) for label, phrases in said.items()},
        deeds={"positive": _split(lists["does"]), "negative": _split(lists["fails"])},
    )


def _up_to(words: int, phrases: list[str]) -> list[str]:
    return [phrase for phrase in phrases if len(phrase.split()) <= words]
