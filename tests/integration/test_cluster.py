"""The connection to Ray, and what its nodes are asked."""

import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llambert import cluster

GROWN = """
import sys
from llambert import cluster
from llambert.config import load
from llambert.errors import UserError
from llambert.pipeline import Pipeline
from llambert.preflight import check_resources

with cluster.connection():
    print(cluster.gpus(), cluster.gpus("A100"), cluster.gpus("L40S"))
    try:
        check_resources(Pipeline(load(sys.argv[1], sys.argv[2:])), ["annotate", "train", "label"])
        print("enough")
    except UserError as error:
        print(str(error).removeprefix("annotate ").partition("\\n")[0])
"""

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


def test_what_a_launched_cluster_could_grow_to_is_there(joined, tmp_path):
    """The paper's own run is not refused where the GPU nodes of cluster.yaml are all down."""
    root = Path(__file__).resolve().parents[2]
    shutil.copy(root / "cluster.yaml", tmp_path / "ray_bootstrap_config.yaml")
    (tmp_path / "review.jsonl").write_text('{"id": "1", "text": "good"}\n')
    settings = ["corpus={path: review.jsonl}", "gold=null", "train.variants=[llambert]"]
    settings += ["label.variant=llambert", f"workdir={tmp_path}/out"]
    env = {**os.environ, "LLAMBERT_STORE": str(tmp_path)}
    env.pop(cluster._OWN)  # of another's Ray than the program's own
    found = []
    for home in (tmp_path, tmp_path / "elsewhere"):
        shutil.copytree(Path.home() / ".ray", home / ".ray")  # the token of the session's Ray
        command = [sys.executable, "-c", GROWN, str(root / "jobs" / "imdb-llama2-70b.yaml")]
        done = subprocess.run(
            [*command, *settings], capture_output=True, text=True, env={**env, "HOME": str(home)}
        )
        found.append(done.stdout.splitlines() or done.stderr)
    assert found == [["96 32 64", "enough"], ["0 0 0", "needs 4 GPU and the cluster has 0"]]


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="reads /proc/cpuinfo of x86-64",
)
def test_what_the_cpus_of_all_nodes_have(ray_session):
    assert cluster.cpus_have("sse2")  # which every such CPU has
    assert cluster.cpus_have("none", "sse2")
    assert not cluster.cpus_have("sse4")  # a feature's whole name, and not a part of one
