"""What is asked of the LLM: labels, prompt and examples, turned into chat messages."""

import json
import re
import unicodedata
from collections.abc import Iterable

from pydantic import Field, field_validator, model_validator

from llambert.section import Section

PLACEHOLDER = "{text}"

# Spellings that open, close or switch a turn in the chat formats in use. Those of the model at
# hand are added from its tokenizer; this list serves endpoints whose tokenizer is not known, so it
# goes by form: a space within an ordinary text's [NOTE] does no harm, a turn let through does.
_CONTROL = [
    r"\[/?[A-Z_]{3,40}\]",  # [INST], [/INST], [TOOL_CALLS], [THINK]
    r"\[\|[^|\n]{1,40}\|\]",  # [|user|], [|endofturn|]
    r"<</?SYS>>",
    r"<\|[^|<>\n]{1,40}\|>",
    r"<\|[\w/]{1,40}>",  # <|turn>
    r"<[\w/]{1,40}\|>",  # <turn|>
    r"</?(?:think|tool_\w+)>",
    r"</?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn|start_of_image)>",
    "<\uff5c[^<>\n]{1,40}\uff5c>",  # DeepSeek's full-width bars
]


class Example(Section):
    """A few-shot example: an earlier turn of the chat, answered."""

    text: str = Field(description="The example's text; it takes the place of {text}.")
    label: str = Field(
        description="The label that the model is shown to have given; with parse: json as the "
        "value of 'label' in an object."
    )


class TaskConfig(Section):
    """The labels and the prompt."""

    labels: dict[str, list[str]] = Field(
        description="Each label with further spellings of it that an answer may use."
    )
    prompt: str = Field(description="The user message; {text} stands for the record's text.")
    system: str | None = Field(None, description="The system message.")
    examples: list[Example] = Field([], description="Few-shot examples, as earlier chat turns.")

    @field_validator("labels")
    @classmethod
    def _spellings_name_one_label(cls, labels: dict[str, list[str]]) -> dict[str, list[str]]:
        if len(labels) < 2:
            raise ValueError(f"{len(labels)} label given; a task needs at least two")
        seen: dict[str, str] = {}
        for label, aliases in labels.items():
            for spelling in [label, *aliases]:
                key = normalise(spelling)
                if not key:
                    raise ValueError(f"the label or alias {spelling!r} has no letter or digit")
                if seen.get(key, label) != label:
                    raise ValueError(
                        f"{spelling!r} names two labels, {seen[key]!r} and {label!r}; "
                        "case and punctuation do not tell labels apart"
                    )
                seen[key] = label
        return labels

    @field_validator("prompt")
    @classmethod
    def _has_placeholder(cls, prompt: str) -> str:
        if PLACEHOLDER not in prompt:
            raise ValueError(
                f"the prompt has no {PLACEHOLDER}: write that where the record's text belongs"
            )
        return prompt

    @model_validator(mode="after")
    def _examples_use_labels(self) -> "TaskConfig":
        spellings = {normalise(s) for k, v in self.labels.items() for s in [k, *v]}
        for example in self.examples:
            if normalise(example.label) not in spellings:
                raise ValueError(
                    f"the example label {example.label!r} is none of {list(self.labels)}"
                )
        return self


def normalise(answer: str) -> str:
    """Lower case, punctuation and symbols gone, words apart by one space, in Unicode's NFKC form.

    Letters, digits and marks stay: the vowel signs of many scripts are marks.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", answer).casefold())
    folded = folded.replace("i\u0307", "i")  # what casefold makes of the Turkish capital I with dot
    kept = (each if unicodedata.category(each)[0] in "LMN" else " " for each in folded)
    return " ".join("".join(kept).split())


def control_pattern(special_tokens: Iterable[str] = ()) -> re.Pattern[str]:
    """A pattern that finds chat-control tokens: those of the known formats and `special_tokens`."""
    bare = {token.strip() for token in special_tokens}  # white space in text is never structure
    own = [re.escape(t) for t in sorted(bare, key=len, reverse=True) if len(t) > 1]
    return re.compile("|".join([*own, *_CONTROL]))


def neutralise(text: str, controls: re.Pattern[str]) -> str:
    """`text` with a space after the first character of every control token: data, not structure.

    Repeated until none is left, so that a token cannot be hidden inside another.
    """
    while True:
        cleaned = controls.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        if cleaned == text:
            return text
        text = cleaned


def shown_examples(task: TaskConfig, as_json: bool) -> list[dict[str, str]]:
    """text and label of each example, the latter as the answer is wanted.

    In JSON it is the label itself and no further spelling, as structured output allows no other.
    """
    label_of = {normalise(s): k for k, v in task.labels.items() for s in [k, *v]}

    def answer(label: str) -> str:
        if not as_json:
            return label
        return json.dumps({"label": label_of[normalise(label)]}, ensure_ascii=False)

    return [{"text": each.text, "label": answer(each.label)} for each in task.examples]


def messages(
    task: TaskConfig,
    text: str,
    controls: re.Pattern[str] | None = None,
    as_json: bool = False,
) -> list[dict[str, str]]:
    """The chat that asks for the label of `text`: system, the examples as turns, the question.

    Args:
        controls: finds chat-control tokens; those of the known formats by default.
        as_json: the examples' answers are JSON objects, as `parse: json` takes them.

    Braces in the text are harmless: the prompt is split at its placeholder, never formatted.
    """
    controls = controls or control_pattern()

    def ask(record: str) -> dict[str, str]:
        clean = neutralise(record, controls)
        return {"role": "user", "content": clean.join(task.prompt.split(PLACEHOLDER))}

    chat = [{"role": "system", "content": task.system}] if task.system else []
    for example in shown_examples(task, as_json):
        chat += [ask(example["text"]), {"role": "assistant", "content": example["label"]}]
    return [*chat, ask(text)]
