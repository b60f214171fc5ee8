"""Pure: an LLM's response becomes a label or a reason for its rejection."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from llambert.task import TaskConfig, normalise

Mode = Literal["answer", "mention", "exact", "json"]

REJECTS = {
    "request_failed": "the request brought no response",
    "not_recorded": "the table of recorded answers has none for the record",
    "empty": "the response has no letter or digit",
    "several_labels": "the response names more than one label",
    "extra_text": "the response names one label among other words",
    "off_list": "the response is an answer that is none of the labels",
    "no_label": "the response names no label",
    "not_json": "the response is not a JSON object with a string or number under 'label'",
}
PARSER = 2  # one more wherever a response is read otherwise than before: it is parsed anew then
_LEAST_MASS = 0.5  # probability of a first token that begins a label, below which nothing is told
_AMBIGUOUS_SHARE = 0.05  # of the mass on labels: beyond it the shares would mislead
_OFF_LIST_WORDS = 3  # a longer response without a label is talk rather than an unlisted label


class Parsed(NamedTuple):
    """Exactly one of the two is None."""

    label: str | None
    reject_reason: str | None


def parse(response: str | None, task: TaskConfig, mode: Mode = "answer") -> Parsed:
    """The label that `response` gives, or why it gives none.

    Modes:
        answer: the response is one label and nothing else once case, punctuation and surrounding
            white space are gone; the rule of the LlamBERT paper (arXiv 2403.15938).
        mention: the response names exactly one label, among any other words.
        exact: the response is a label or alias to the letter.
        json: the response is a JSON object (alone or in a code fence) whose "label" is a label.
    """
    if response is None:
        return Parsed(None, "request_failed")
    if mode == "exact":
        return _parse_exact(response, task)
    if mode == "json":
        return _parse_json(response, task)
    answer = normalise(response)
    if not answer:
        return Parsed(None, "empty")
    spellings, pattern = _spellings(task)
    if answer in spellings:
        return Parsed(spellings[answer], None)
    named = {spellings[found] for found in pattern.findall(answer)}
    if len(named) > 1:
        return Parsed(None, "several_labels")
    if named:
        return Parsed(named.pop(), None) if mode == "mention" else Parsed(None, "extra_text")
    short = len(answer.split()) <= _OFF_LIST_WORDS
    return Parsed(None, "off_list" if short else "no_label")


def label_probabilities(first_token: Mapping[str, float], task: TaskConfig) -> list[float] | None:
    """The probability of each label, in the task's order, from the first answer token.

    A candidate token counts for a label when it is, or begins, one of that label's spellings and
    no other label's; the shares are normalised over the labels.

    None where it is likelier than not that the answer begins with something else, such as white
    space or "The": what is left on labels tells little. So there is none for answers in JSON, whose
    first token is a bracket. None too where more than 5 % of the mass on labels is on tokens that
    begin several of them: of the labels 1 to 10, the token "1" tells nothing of 1 against 10.

    Args:
        first_token: the likeliest first tokens, decoded, with their probabilities (0..1).
    """
    spellings, _ = _spellings(task)
    mass = dict.fromkeys(task.labels, 0.0)
    ambiguous = 0.0
    for token, probability in first_token.items():
        start = normalise(token)
        begun = {label for spelling, label in spellings.items() if spelling.startswith(start)}
        if start and len(begun) == 1:
            mass[begun.pop()] += probability
        elif start and begun:
            ambiguous += probability
    total = sum(mass.values())
    if total < _LEAST_MASS or ambiguous > _AMBIGUOUS_SHARE * (total + ambiguous):
        return None
    return [share / total for share in mass.values()]


class _Spellings(NamedTuple):
    label: Mapping[str, str]  # of every normalised spelling
    named: re.Pattern[str]  # finds spellings; a longer one hides the shorter ones inside it


def _spellings(task: TaskConfig) -> _Spellings:
    return _compiled(tuple((label, *more) for label, more in task.labels.items()))


@lru_cache(maxsize=16)  # one task has millions of responses
def _compiled(labels: tuple[tuple[str, ...], ...]) -> _Spellings:
    label_of = {normalise(spelling): same[0] for same in labels for spelling in same}
    longest_first = sorted(label_of, key=len, reverse=True)
    words = "|".join(re.escape(spelling) for spelling in longest_first)
    return _Spellings(label_of, re.compile(rf"(?<!\S)(?:{words})(?!\S)"))


def _parse_exact(response: str, task: TaskConfig) -> Parsed:
    for label, aliases in task.labels.items():
        if response in (label, *aliases):
            return Parsed(label, None)
    return Parsed(None, "off_list" if response.strip() else "empty")


def _parse_json(response: str, task: TaskConfig) -> Parsed:
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", response, re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else response)
    except (ValueError, RecursionError):  # the latter for thousands of open brackets
        return Parsed(None, "not_json")
    label = value.get("label") if isinstance(value, dict) else None
    if isinstance(label, int) and not isinstance(label, bool):  # a label "1", as a model writes it
        label = str(label)
    if not isinstance(label, str):
        return Parsed(None, "not_json")
    found = _spellings(task).label.get(normalise(label))
    return Parsed(found, None) if found else Parsed(None, "off_list")
