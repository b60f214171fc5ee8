"""What Ray is told of this machine."""

import multiprocessing

import pytest

from llambert import cluster


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
