"""What Ray's nodes are asked."""

import platform
import sys

import pytest

from llambert import cluster


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="reads /proc/cpuinfo of x86-64",
)
def test_what_the_cpus_of_all_nodes_have(ray_session):
    assert cluster.cpus_have("sse2")  # which every such CPU has
    assert not cluster.cpus_have("sse4")  # a feature's whole name, and not a part of one
