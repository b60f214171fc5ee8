"""One run at a time: a second one is told whose turn it is; a dead one is no obstacle."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from llambert.errors import UserError
from llambert.lease import Lease
from llambert.storage import Folder

HOLD = """
import sys, time
from llambert import lease
from llambert.errors import UserError
from llambert.storage import Folder
lease._BEAT_S, lease._RETRY_S, lease._GIVE_UP_S = 0.1, 0.1, 1.0
print("ready", flush=True)
sys.stdin.readline()
try:
    with lease.Lease(Folder(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
    print("given back", flush=True)
except UserError as error:
    print(error.message, flush=True)
"""


class Holder(subprocess.Popen):
    """Another process, which holds a folder from one line of its input to the next."""

    def __init__(self, folder) -> None:
        command = [sys.executable, "-c", HOLD, str(folder)]
        super().__init__(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> "Holder":
        assert self.says() == "ready"
        return self

    def go_on(self) -> None:
        self.stdin.write("\n")
        self.stdin.flush()

    def says(self) -> str:
        return self.stdout.readline().strip()


@pytest.fixture
def start():
    started = []

    def holder(folder) -> Holder:
        started.append(Holder(folder))
        return started[-1]

    yield holder
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def holder(start, tmp_path):
    """A process that holds the folder."""
    process = start(tmp_path).ready()
    process.go_on()
    assert process.says() == "held"
    return process


def newest(folder) -> dict:
    return json.loads(sorted((folder / "_lock").glob("*.json"))[-1].read_text())


def leave(folder, number: int = 3, age_s: float = 0.0, **other) -> None:
    """What another holder has left, renewed so long ago."""
    (folder / "_lock").mkdir(exist_ok=True)
    path = folder / "_lock" / f"{number:06}.json"
    path.write_text(json.dumps({"token": "x", "host": "other", "pid": 1, "since": "noon", **other}))
    os.utime(path, (time.time() - age_s,) * 2)


def test_a_second_run_is_refused_with_the_holders_name(holder, tmp_path):
    with pytest.raises(UserError, match=f"process {holder.pid} on"), Lease(Folder(str(tmp_path))):
        pass
    assert newest(tmp_path)["pid"] == holder.pid
    holder.go_on()
    assert holder.says() == "given back"
    with Lease(Folder(str(tmp_path))):
        assert newest(tmp_path)["pid"] == os.getpid()
    assert len(os.listdir(tmp_path / "_lock")) == 1


def test_a_killed_holder_on_this_machine_is_followed_at_once(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Lease(Folder(str(tmp_path))):
        assert newest(tmp_path)["pid"] == os.getpid()


def test_a_paused_holder_on_this_machine_keeps_what_it_holds(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    (path,) = (tmp_path / "_lock").glob("*.json")
    os.utime(path, (1, 1))  # no renewal for years
    with pytest.raises(UserError, match=f"process {holder.pid} on"), Lease(Folder(str(tmp_path))):
        pass
    holder.send_signal(signal.SIGCONT)
    holder.go_on()
    assert holder.says() == "given back"


@pytest.mark.parametrize(("age_s", "free"), [(10, False), (100, True)])
def test_a_holder_elsewhere_counts_as_long_as_it_renews(tmp_path, age_s, free):
    leave(tmp_path, age_s=age_s)
    if free:
        with Lease(Folder(str(tmp_path))):
            pass
    else:
        with pytest.raises(UserError, match="on other, since noon"), Lease(Folder(str(tmp_path))):
            pass


def test_a_container_of_the_same_name_is_another_machine(tmp_path):
    nobody = 2**22 + 1  # above the kernel's largest process number
    leave(tmp_path, host=socket.gethostname(), pid=nobody, machine="its own", started=1)
    with pytest.raises(UserError, match=f"process {nobody}"), Lease(Folder(str(tmp_path))):
        pass


def test_a_process_number_that_was_given_again_is_not_the_holder(tmp_path):
    with Lease(Folder(str(tmp_path))):
        mine = newest(tmp_path)
    leave(tmp_path, machine=mine["machine"], pid=os.getpid(), started=mine["started"] - 1)
    with Lease(Folder(str(tmp_path))):
        pass


def test_a_lock_that_was_never_written_counts_until_it_is_old(tmp_path):
    leave(tmp_path)
    path = tmp_path / "_lock" / "000003.json"
    path.write_text("")
    with pytest.raises(UserError, match="since just now"), Lease(Folder(str(tmp_path))):
        pass
    os.utime(path, (1, 1))
    with Lease(Folder(str(tmp_path))):
        pass


def contend(start, folder, processes: int) -> None:
    """Processes that start at once: one holds, and all others are told of it."""
    rivals = [rival.ready() for rival in [start(folder) for _ in range(processes)]]
    for rival in rivals:
        rival.go_on()
    said = {rival: rival.says() for rival in rivals}
    (first,) = [rival for rival, words in said.items() if words == "held"]
    del said[first]
    assert all(f"process {first.pid} on" in words or "just now" in words for words in said.values())
    first.go_on()
    assert first.says() == "given back"


def test_one_of_several_that_start_at_once_holds(start, tmp_path):
    contend(start, tmp_path, 3)


def test_one_of_several_that_start_at_once_holds_after_one_that_died(start, tmp_path):
    leave(tmp_path, age_s=100)
    contend(start, tmp_path, 3)


def test_one_of_two_that_start_at_once_holds_on_an_object_store(start, s3):
    contend(start, f"{s3}/lease-at-once", 2)


def test_an_object_store_makes_a_lock_but_once(s3):
    first, second = (Lease(Folder(f"{s3}/lease-once")) for _ in range(2))
    for lease in (first, second):
        lease._number = 7
        lease._create()
    assert first._holds(7) and not second._holds(7)


def test_a_lock_on_an_object_store_ages_by_the_stores_clock(s3, monkeypatch):
    folder = Folder(f"{s3}/lease-age")
    (folder / "_lock").write_json("000001.json", {"token": "x", "host": "a", "pid": 1, "since": 1})
    with pytest.raises(UserError, match="process 1 on a"), Lease(folder):
        pass
    monkeypatch.setattr("llambert.lease._STALE_S", -1.0)
    with Lease(folder):
        pass
    assert (folder / "_lock").files() == ["000002.json"]


def test_a_run_whose_lease_was_taken_ends(holder, tmp_path):
    leave(tmp_path, number=9)
    assert holder.wait(timeout=20) == 1
    assert "was taken by another run: this run ends" in holder.stderr.read()
    assert newest(tmp_path)["token"] == "x"  # which is left as it is


def test_a_run_that_cannot_renew_tries_again_and_then_ends(holder, tmp_path):
    lock, away = tmp_path / "_lock", tmp_path / "away"
    (name,) = os.listdir(lock)
    before = (lock / name).stat().st_mtime_ns
    while (lock / name).stat().st_mtime_ns == before:
        assert holder.poll() is None
        time.sleep(0.02)
    lock.rename(away)
    lock.write_text("the folder is gone")
    time.sleep(0.4)  # some renewals fail
    lock.unlink()
    away.rename(lock)
    time.sleep(1.0)
    assert holder.poll() is None, "renewals that fail for a while end no run"
    lock.rename(away)
    lock.write_text("the folder is gone for good")
    assert holder.wait(timeout=20) == 1
    said = holder.stderr.read()
    assert "is not renewed" in said and "could not be renewed: this run ends" in said
