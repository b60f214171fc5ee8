"""Stage: the records that people should look at, most uncertain first, for Label Studio.

    tasks.json          what to import: text, label and confidence of each record
    label_config.xml    the labelling interface that the tasks are made for

The format is that of Label Studio's guide, https://labelstud.io/guide/predictions: `data` has what
the interface shows, and each of `predictions` has a `model_version`, a `score` and a `result`
whose `from_name` and `to_name` are the names of the interface's tags.
"""

from collections.abc import Iterable
from typing import Any
from xml.sax.saxutils import quoteattr

from pydantic import Field

from llambert.progress import Progress
from llambert.records import Corpus
from llambert.section import Section
from llambert.storage import Folder, Outcome
from llambert.uncertain import check_found, find_texts, least_certain

TASKS = "tasks.json"
INTERFACE = "label_config.xml"


class ReviewConfig(Section):
    """Which records go to people."""

    records: int = Field(
        200, gt=0, le=100_000, description="Records to look at, those with the least certain label."
    )


def review(
    config: ReviewConfig,
    corpus: Corpus,
    inventory: Folder,
    labels: Folder,
    total: int,
    decided: int | None,
    names: Iterable[str],
    model: str,
    folder: Folder,
    progress: Progress,
) -> Outcome:
    """Write tasks.json and label_config.xml to `folder`.

    Args:
        inventory: the corpus stage's folder.
        labels: `total` labels, the encoder's or those of a cascade.
        decided: how many of them the LLM decided, which are not for review; None: no cascade.
        names: the task's labels.
        model: what the predictions are said to be of.

    Raises:
        CountError: the corpus is not what was labelled.
    """
    progress.begin(None, "finding the least certain records")
    by = None if decided is None else "encoder"
    least = least_certain(labels, config.records, by)
    ids = [str(id) for id in least["id"].to_pylist()]
    texts = find_texts(corpus, inventory, total, ids, progress)
    check_found(ids, texts)
    said = zip(ids, least["label"].to_pylist(), least["confidence"].to_pylist(), strict=True)
    folder.write_json(TASKS, [task(id, texts[id], label, p, model) for id, label, p in said])
    folder.write_bytes(INTERFACE, interface(names).encode())
    dropped = {"more_certain": total - (decided or 0) - least.num_rows}
    if decided is not None:
        dropped["decided_by_llm"] = decided
    return Outcome({"in": total, "out": least.num_rows, "dropped": dropped})


def task(id: str, text: str, label: str, confidence: float, model: str) -> dict[str, Any]:
    """One record as a task. Ids are strings: a JSON reader may round a large integer."""
    choice = {
        "from_name": "label",
        "to_name": "text",
        "type": "choices",
        "value": {"choices": [label]},
    }
    prediction = {"model_version": model, "score": confidence, "result": [choice]}
    return {"data": {"id": id, "text": text}, "predictions": [prediction]}


def interface(names: Iterable[str]) -> str:
    """The labelling interface: a text and one choice among `names`."""
    choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in names)
    return (
        "<View>\n"
        '  <Text name="text" value="$text"/>\n'
        '  <Choices name="label" toName="text" choice="single" required="true">\n'
        f"{choices}"
        "  </Choices>\n"
        "</View>\n"
    )
