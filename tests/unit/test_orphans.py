"""A process that was spawned ends with the one that spawned it, where it is told to."""

import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points

from llambert.engines.orphans import FOLLOW, follow_parent

SPAWNS = """
import multiprocessing, time
from tests.unit.test_orphans import live

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=live).start()
    time.sleep(60)
"""


def live() -> None:
    import time

    follow_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)


def test_a_spawned_process_ends_when_its_parent_is_killed(tmp_path):
    (tmp_path / "spawns.py").write_text(SPAWNS)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "spawns.py")],
        env=os.environ | {FOLLOW: "1", "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout and int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate(timeout=20)  # returns when the child too has closed its output


def test_vllm_finds_the_plugin():
    (plugin,) = entry_points(group="vllm.general_plugins", name="llambert")
    assert plugin.load() is follow_parent
