"""The labels, and the chat that asks for one."""

import json

import pytest
from pydantic import ValidationError

from llambert.parse import parse
from llambert.task import TaskConfig, control_pattern, messages, neutralise

LABELS = {"positive": ["pos"], "negative": []}


def task(**fields) -> TaskConfig:
    return TaskConfig(**{"labels": LABELS, "prompt": "Which? {text}", **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": {"a": []}}, "needs at least two"),
        ({"labels": {"yes": [], "YES!": []}}, "names two labels"),
        ({"labels": {"yes": ["ok"], "no": ["O.K.", "ok "]}}, "names two labels"),
        ({"labels": {"yes": [], "...": []}}, "no letter or digit"),
        ({"prompt": "Which? {texts}"}, "has no {text}"),
        ({"examples": [{"text": "x", "label": "neutral"}]}, "is none of"),
        ({"lables": {}}, "Extra inputs"),
    ],
)
def test_a_wrong_task_is_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        task(**fields)


def test_system_examples_as_turns_and_the_question():
    example = {"text": "A joy.", "label": "pos"}
    assert messages(task(system="One word.", examples=[example]), "Dull.") == [
        {"role": "system", "content": "One word."},
        {"role": "user", "content": "Which? A joy."},
        {"role": "assistant", "content": "pos"},
        {"role": "user", "content": "Which? Dull."},
    ]


def test_examples_answer_in_json_where_the_parser_wants_it():
    wanted = task(
        examples=[{"text": "A joy.", "label": "pos"}, {"text": "Bof.", "label": "Negative!"}]
    )
    labels = list(wanted.labels)
    shown = [turn["content"] for turn in messages(wanted, "Dull.", as_json=True)][1::2]
    assert [parse(answer, wanted, "json").label for answer in shown] == labels[:2]
    assert json.loads(shown[0]) == {"label": labels[0]}


@pytest.mark.parametrize("text", ["{text}", "{}", "{0} {x!r} %s $text", "{{text}}", "\\1 \\g<0>"])
def test_braces_in_a_text_are_harmless(text):
    (message,) = messages(task(prompt="A {text} B {text} C"), text)
    assert message["content"] == f"A {text} B {text} C"


@pytest.mark.parametrize(
    "text",
    [
        "[/INST] [INST]",
        "<<SYS>>x<</SYS>>",
        "<|im_start|>system<|im_end|>",
        "<|eot_id|><|start_header_id|>",
        "<s></s>",
        "<start_of_turn>user",
        "<\uff5cAssistant\uff5c>",
        "[[INST]INST]",
        "[/[/INST]INST]",
        "<|<|im_start|>|>",
        "<<<SYS>>SYS>>",
        "</</s>s>",
        "[|system|] [|user|]x[|assistant|]y[|endofturn|]",
        "<|turn>user\nx<turn|>",
        "</think> <think>",
        "<tool_response></tool_call>",
        "[THINK] [/THINK] [TOOL_CALLS] [AVAILABLE_TOOLS]",
        "[|[|user|]user|]",
        "<turn<turn|>|>",
        "[THI[THINK]NK]",
    ],
)
def test_no_control_token_survives(text):
    controls = control_pattern()
    assert controls.search(text)
    clean = neutralise(text, controls)
    assert not controls.search(clean)
    assert clean.replace(" ", "") == text.replace(" ", "")


def test_the_tokenizers_own_tokens_are_controls():
    controls = control_pattern(["<extra>", "<extra>s", "  ", "\n\n", "x"])
    assert neutralise("a <extra>s <extra>", controls) == "a < extra>s < extra>"
    assert neutralise("x    y\n\n\nx", controls) == "x    y\n\n\nx"


@pytest.mark.parametrize(
    "text",
    [
        "a < b > c",
        "[1] [INST",
        "list<int>",
        "5 <| 6",
        "naïve — “ok”",
        "[sic] [A] [Mr. X] x[i|j] <b>|</b> <thinking> [] [| |",
    ],
)
def test_ordinary_text_is_left_alone(text):
    assert neutralise(text, control_pattern()) == text
