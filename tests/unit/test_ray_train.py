"""When a training that failed is begun again, without Ray."""

import json

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.util import UserExceptionWithTraceback
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from llambert import ray_train
from llambert.errors import StageError, UserError
from llambert.storage import Folder

WRONG = UserError("the head is of another size", "name another model")
LOST = ActorDiedError()


def failed(*causes: Exception) -> WorkerGroupError:
    """What Ray Train raises when its workers have ended so."""
    wrapped = [c if c is LOST else UserExceptionWithTraceback(c, "") for c in causes]
    return WorkerGroupError("", dict(enumerate(wrapped)))


@pytest.mark.parametrize(
    ("causes", "again"),
    [
        ([WRONG], False),
        ([RuntimeError("connection closed by peer"), TypeError("no such argument")], False),
        ([LOST], True),
        ([LOST, ValueError("what the loss did to the other")], True),
        ([RuntimeError("connection closed by peer")], True),
        ([OSError("the store does not answer")], True),
    ],
)
def test_a_training_is_begun_again_only_where_that_may_help(causes, again):
    policy = ray_train.failure_policy(FailureConfig(max_failures=1))
    policy = cloudpickle.loads(cloudpickle.dumps(policy))  # as it reaches the controller
    decision = policy.make_decision(failed(*causes))
    assert decision == (FailureDecision.RETRY if again else FailureDecision.RAISE)
    assert policy.make_decision(failed(*causes)) == FailureDecision.RAISE  # once is enough


def test_what_the_workers_said_comes_with_what_to_do():
    assert ray_train._failure(failed(RuntimeError("peer"), WRONG), 3) is WRONG
    lasting = ray_train._failure(failed(KeyError("lr")), 3)
    assert isinstance(lasting, StageError) and "KeyError: 'lr'" in lasting.message
    assert "again 3 times" not in lasting.message and "mend" in lasting.remedy
    passing = ray_train._failure(failed(LOST), 3)
    assert "again 3 times" in passing.message and "last checkpoint" in passing.remedy


@pytest.mark.parametrize("damage", ["torn", "other version", "checkpoint gone", None])
def test_a_list_of_checkpoints_that_cannot_be_used_is_discarded(tmp_path, damage):
    import ray

    for name in ("mine", "older"):
        (tmp_path / name / "checkpoint_1").mkdir(parents=True)
    snapshot = {
        "ray_version": "2.0" if damage == "other version" else ray.__version__,
        "checkpoint_results": [
            {"checkpoint_dir_name": "gone" if damage == "checkpoint gone" else "checkpoint_1"}
        ],
    }
    text = json.dumps(snapshot)
    file = tmp_path / "mine" / "checkpoint_manager_snapshot.json"
    file.write_text(text[:20] if damage == "torn" else text)
    ray_train._discard_unusable(Folder(str(tmp_path)), "mine")
    assert not (tmp_path / "older").exists()
    assert (tmp_path / "mine").exists() == (damage is None)
