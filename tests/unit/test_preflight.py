"""What is refused before anything is spent: a cluster on which a stage would wait for ever."""

import pytest

from llambert.cluster import Workers
from llambert.errors import UserError
from llambert.preflight import fits

L40S, H100 = (
    {"CPU": 8.0, "GPU": 1.0, f"accelerator_type:{kind}": 1.0} for kind in ("L40S", "H100")
)
HEAD = {"CPU": 64.0}


def check(workers: Workers, *nodes: dict[str, float]) -> None:
    have = {kind: sum(node.get(kind, 0) for node in nodes) for node in nodes for kind in node}
    fits("train", workers, have, nodes)


def test_what_fits_is_let_through():
    check(Workers(2, {"CPU": 2, "GPU": 1, "accelerator_type:L40S": 0.001}), HEAD, L40S, L40S)
    check(Workers(0, {}), HEAD)


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        (Workers(3, {"CPU": 2, "GPU": 1}), "train needs 3 GPU and the cluster has 2"),
        (
            Workers(1, {"GPU": 1, "accelerator_type:A100": 0.001}),
            "GPUs of kind 'A100', and the cluster has H100, L40S",
        ),
        # 64 CPUs are there, on a node without a GPU
        (Workers(1, {"CPU": 16, "GPU": 1}), "needs 16 CPU, 1 GPU on one node, and none has"),
        (Workers(1, {"CPU": 72}), "a worker of train needs 72 CPU on one node"),
    ],
)
def test_what_would_wait_for_ever_is_refused(workers, says):
    with pytest.raises(UserError) as caught:
        check(workers, HEAD, L40S, H100)
    assert says in str(caught.value) and "\n  -> " in str(caught.value)


def test_a_kind_of_gpu_where_there_is_none():
    with pytest.raises(UserError, match="none of a kind that Ray knows"):
        check(Workers(1, {"CPU": 1, "accelerator_type:L40S": 0.001}), HEAD)
