"""What Label Studio is given: the shape of a task, and an interface that is XML whatever it names.

How both are chosen from a corpus is tested on Ray, with the cascade.
"""

from xml.etree import ElementTree

import pytest
from pydantic import ValidationError

from llambert.review import ReviewConfig, interface, task

NAMES = ["good & cheap", 'so-called "best"', "<b>", "it's", "žlutý"]


def test_a_task_is_text_and_prediction():
    made = task("r1", "a <b>film</b>", "positive", 0.51, "f00")
    assert made == {
        "data": {"id": "r1", "text": "a <b>film</b>"},
        "predictions": [
            {
                "model_version": "f00",
                "score": 0.51,
                "result": [
                    {
                        "from_name": "label",
                        "to_name": "text",
                        "type": "choices",
                        "value": {"choices": ["positive"]},
                    }
                ],
            }
        ],
    }


def test_the_interface_has_the_names_that_tasks_refer_to():
    root = ElementTree.fromstring(interface(NAMES))
    text, choices = root
    result = task("r1", "text", NAMES[0], 0.5, "f00")["predictions"][0]["result"][0]
    assert (text.tag, text.get("name"), text.get("value")) == ("Text", result["to_name"], "$text")
    assert (choices.tag, choices.get("name")) == ("Choices", result["from_name"])
    assert choices.get("toName") == result["to_name"]
    assert [choice.get("value") for choice in choices] == NAMES


@pytest.mark.parametrize("records", [0, -1, 10**9])
def test_as_many_records_as_people_can_look_at(records):
    with pytest.raises(ValidationError, match="records"):
        ReviewConfig(records=records)
