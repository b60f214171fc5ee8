"""The connection to Ray, and what its nodes are asked."""

import platform
import signal
import subprocess
import sys

import pytest

from llambert import cluster

WAITING = """
from llambert import cli, cluster

@cli.cli.command()
def wait():
    import ray, time
    with cluster.connection():
        ray.init(ignore_reinit_error=True, logging_level="ERROR")  # as ray.data.llm does
        print("waits", flush=True)
        ray.get(ray.remote(num_cpus=0)(time.sleep).remote(60))

cli.main(["wait"])
"""


def test_sigterm_ends_a_command_that_waits_for_ray_with_one_sentence(joined):
    running = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout and running.stdout.readline() == "waits\n"
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGTERM
    assert said.strip() == "stopped; the same command goes on from here"


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="reads /proc/cpuinfo of x86-64",
)
def test_what_the_cpus_of_all_nodes_have(ray_session):
    assert cluster.cpus_have("sse2")  # which every such CPU has
    assert cluster.cpus_have("none", "sse2")
    assert not cluster.cpus_have("sse4")  # a feature's whole name, and not a part of one
