"""What is wrong with a table is told by the field of the run file that names it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llambert.engines.config import RecordedConfig
from llambert.errors import UserError
from llambert.gold import GoldConfig, load_gold
from llambert.task import TaskConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "nowhere"}, "gold.train: no such path"),
        ({"test": "nowhere"}, "gold.test: no such path"),
        ({"label": "stars"}, "id, text, label; name one in gold.label"),
        ({"text": "body"}, "name one in gold.text"),
        ({"id": "key"}, "name one in gold.id"),
    ],
)
def test_what_is_wrong_with_gold_names_its_field(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"id": ["a"], "text": ["x"], "label": ["yes"]}), "gold.parquet")
    task = TaskConfig(labels={"yes": [], "no": []}, prompt="{text}")
    gold = GoldConfig.model_validate({"train": "gold.parquet", "id": "id"} | changes)
    with pytest.raises(UserError) as error:
        load_gold(gold, task)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere"}, "annotate.recorded.path: no such path"),
        ({"id": "key"}, "name one in annotate.recorded.id"),
        ({"response": "said"}, "name one in annotate.recorded.response"),
        ({"text": "body"}, "name one in annotate.recorded.text"),
    ],
)
def test_what_is_wrong_with_recorded_answers_names_its_field(
    tmp_path, monkeypatch, changes, message
):
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"id": ["a"], "response": ["yes"]}), "answers.parquet")
    recorded = RecordedConfig.model_validate({"path": "answers.parquet"} | changes)
    with pytest.raises(UserError) as error:
        recorded.table()
    assert message in str(error.value)
