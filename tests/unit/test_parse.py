"""From response to label or reason."""

import json

import pytest

from llambert.parse import REJECTS, label_probabilities, parse
from llambert.task import TaskConfig
from tests.conftest import SHARED

RESPONSES = SHARED / "responses" / "imdb_train_llama2_70b.json"


def task(labels) -> TaskConfig:
    if not isinstance(labels, dict):
        labels = {label: [] for label in labels}
    return TaskConfig(labels=labels, prompt="{text}")


REVIEW = task({"positive": ["pos"], "negative": ["neg", "not positive"]})
UNICODE = task({"größer": [], "İyi": [], "是": ["对"], "нет": [], "हाँ": [], "हूँ": []})


@pytest.mark.parametrize(
    ("response", "mode", "label", "reason"),
    [
        (None, "answer", None, "request_failed"),
        ("", "answer", None, "empty"),
        (" .\n!", "answer", None, "empty"),
        ("Positive.", "answer", "positive", None),
        (" 'POS' \n", "answer", "positive", None),
        ("not  positive", "answer", "negative", None),
        ("positive negative", "answer", None, "several_labels"),
        ("positive positive", "answer", None, "extra_text"),
        ("The review is positive", "answer", None, "extra_text"),
        ("The review is positive", "mention", "positive", None),
        ("It is not positive", "mention", "negative", None),
        ("positive or negative?", "mention", None, "several_labels"),
        ("mixed", "answer", None, "off_list"),
        ("I cannot tell from this review", "answer", None, "no_label"),
        ("positively", "answer", None, "off_list"),
        ("impositive", "mention", None, "off_list"),
        ("positive", "exact", "positive", None),
        ("not positive", "exact", "negative", None),
        ("Positive", "exact", None, "off_list"),
        ("positive ", "exact", None, "off_list"),
        ("", "exact", None, "empty"),
        ('{"label": "Pos!"}', "json", "positive", None),
        ('```json\n{"label": "negative", "why": "dull"}\n```', "json", "negative", None),
        ('{"label": "mixed"}', "json", None, "off_list"),
        ('{"label": ["positive"]}', "json", None, "not_json"),
        ('{"label": true}', "json", None, "not_json"),
        ('["positive"]', "json", None, "not_json"),
        ("positive", "json", None, "not_json"),
        ('{"label": "positive"', "json", None, "not_json"),
        ("[" * 100_000, "json", None, "not_json"),
    ],
)
def test_modes(response, mode, label, reason):
    assert parse(response, REVIEW, mode) == (label, reason)
    assert reason is None or reason in REJECTS


@pytest.mark.parametrize(
    ("response", "label", "reason"),
    [
        ("very positive", "very positive", None),
        ("Very  Positive!", "very positive", None),
        ("positive", "positive", None),
        ("I'd say very positive", "very positive", None),
        ("very positive, positive", None, "several_labels"),
        ("very negative", "negative", None),
        ("very", None, "off_list"),
        ("rave", "very positive", None),
    ],
)
def test_labels_that_contain_one_another(response, label, reason):
    nested = task({"positive": [], "very positive": ["rave"], "negative": []})
    assert parse(response, nested, "mention") == (label, reason)


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("GRÖSSER", "größer"),
        ("gro\u0308ßer", "größer"),
        ("İYİ", "İyi"),
        ("是。", "是"),
        ("「对」", "是"),
        ("\u041d\u0415\u0422!", "нет"),
        ("\uff32\uff45\uff4c", None),
        ("हूँ।", "हूँ"),
        ("हँ", None),
    ],
)
def test_labels_in_any_script(response, label):
    assert parse(response, UNICODE).label == label


@pytest.mark.skipif(not RESPONSES.exists(), reason=f"the recorded responses are not at {RESPONSES}")
def test_agrees_with_the_authors_on_every_distinct_response():
    binary = task(["positive", "negative"])
    rows = json.loads(RESPONSES.read_text())["rows"]
    assert sum(row["count"] for row in rows) == 25_000
    assert [parse(row["response"], binary).label for row in rows] == [row["label"] for row in rows]


@pytest.mark.parametrize(
    ("first_token", "shares"),
    [
        ({" Pos": 0.6, "Neg": 0.2, "\n": 0.2}, [0.75, 0.25]),
        ({"positive": 0.5, "POS": 0.3, "not": 0.2}, [0.8, 0.2]),
        ({"n": 0.4, "ne": 0.4, "po": 0.2}, [0.2, 0.8]),
        ({"mixed": 0.9, " ": 0.1}, None),
        ({" ": 0.9999, "Neg": 6e-5, "Pos": 4e-5}, None),  # "  Positive"
        ({}, None),
    ],
)
def test_label_probabilities(first_token, shares):
    found = label_probabilities(first_token, REVIEW)
    assert found == (shares if shares is None else pytest.approx(shares))


TEN = task([str(i) for i in range(1, 11)])


def test_a_number_may_be_a_label_in_json():
    assert parse('{"label": 7}', TEN, "json").label == "7"
    assert parse('{"label": 11}', TEN, "json").reject_reason == "off_list"


@pytest.mark.parametrize(
    ("labels", "first_token", "shares"),
    [
        (task(["true", "truthful", "false"]), {"tru": 0.6, "fal": 0.4}, None),
        (task(["true", "truthful", "false"]), {"tru": 1.0}, None),
        (task(["true", "truthful", "false"]), {"tru": 0.02, "fal": 0.98}, [0, 0, 1]),
        (task(["true", "truthful", "false"]), {"true": 0.6, "false": 0.4}, [0.6, 0, 0.4]),
        (TEN, {"1": 0.99, "2": 0.005}, None),  # 1 or 10
        (TEN, {"10": 0.5, "2": 0.5}, [0, 0.5, *[0] * 7, 0.5]),
        (TEN, {"1": 0.04, "2": 0.96}, [0, 1, *[0] * 8]),
        (task({"yes": ["yes sir"], "no": []}), {"yes": 0.7, "no": 0.3}, [0.7, 0.3]),
        (REVIEW, {"{": 0.9, '{"': 0.1}, None),  # JSON
    ],
)
def test_a_first_token_that_may_begin_two_labels_leaves_no_shares(labels, first_token, shares):
    found = label_probabilities(first_token, labels)
    assert found == (shares if shares is None else pytest.approx(shares))
