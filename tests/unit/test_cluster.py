"""What Ray is told of this machine."""

import multiprocessing

import pytest

from llambert import classify, cluster


@pytest.mark.parametrize(("quota", "expected"), [(3.0, 3), (2.5, 2), (0.5, 2), (None, 64)])
def test_a_container_has_the_cpus_that_it_may_use(monkeypatch, quota, expected):
    """Of a machine with 64; `quota` is what Ray reads from the control group's files."""
    monkeypatch.delenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", raising=False)
    monkeypatch.setattr(multiprocessing, "cpu_count", lambda: 64)
    monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: quota)
    assert cluster._cpus_here() == expected


def test_cpus_are_shared_so_that_all_workers_fit():
    assert cluster.even_share([2], 1) == 2
    assert cluster.even_share([2], 2) == 1
    assert cluster.even_share([5, 1], 2) == 2  # not 3: the second would wait for ever
    assert cluster.even_share([8, 8], 3) == 4
    assert cluster.even_share([], 4) == 1


def _nodes_of(kind: str, gpus: float, count: int) -> tuple[dict[str, float], int]:
    return {f"accelerator_type:{kind}": 1.0, **({"GPU": gpus} if gpus else {})}, count


def test_gpus_of_one_kind_are_those_that_are_there_or_could_be(monkeypatch):
    here = [_nodes_of("L40S", 8, 1), _nodes_of("H100", 8, 1), _nodes_of("TPU", 0, 1)]
    could = [_nodes_of("L40S", 4, 3)]
    monkeypatch.setattr(cluster, "_nodes", lambda: (here, could))
    assert [cluster.gpus(kind) for kind in ("L40S", "H100", "TPU", "A100")] == [12, 8, 0, 0]


@pytest.mark.parametrize(
    ("nodes", "share"), [([2], 0.25), ([2, 2], 0.4), ([2, 96, 96], 0.9), ([1, 96], 0.8)]
)
def test_beside_the_labellers_there_is_room_for_what_else_runs(monkeypatch, nodes, share):
    """For light tasks on every node, and for Ray's checkpoint filter, of a whole CPU, on one."""
    monkeypatch.setattr(cluster, "node_cpus", lambda: nodes)
    monkeypatch.setattr(cluster, "resources", lambda: {"CPU": sum(nodes)})
    assert classify._cpu_share(1) == pytest.approx(share)
    assert max(nodes) * (1 - share) >= 1


@pytest.mark.parametrize(
    ("gpus", "text", "actors"),
    [(0, 1000, 1), (0, 2**21, 4), (0, 10**12, 10**12 // 2**19), (8, 2**21, 1), (8, 2**26, 4)],
)
def test_a_labeller_starts_for_text_that_is_worth_it(monkeypatch, gpus, text, actors):
    monkeypatch.setattr(cluster, "resources", lambda: {"GPU": gpus} if gpus else {})
    monkeypatch.setattr(classify, "_copies_that_fit", lambda model: 10**9)
    assert classify.pool_size("model", None, None, text) == (1, actors)
    assert classify.pool_size("model", (3, 5), None, text) == (3, 5)
    assert classify.pool_size("model", (3, 50), None, text) == (3, 50)  # it may grow to them
    assert cluster.room(50, 1, None) == (gpus or 50)
    assert cluster.room(50, 3, None) == (gpus // 3 or 50)


def test_of_no_node_nothing_is_known(monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {}}])  # a head alone
    monkeypatch.setattr("ray.get", list)
    assert not cluster.cpus_have("sse2")
