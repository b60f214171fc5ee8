"""One run at a time: a second one is told whose turn it is; a dead one is no obstacle."""

import datetime
import json
import signal
import subprocess
import sys

import pytest

from llambert.errors import UserError
from llambert.lease import Lease
from llambert.storage import Folder

HOLD = """
import sys, time
from llambert.lease import Lease
from llambert.storage import Folder
with Lease(Folder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_with_the_holders_name(holder, tmp_path):
    with pytest.raises(UserError, match=f"process {holder.pid} on"), Lease(Folder(str(tmp_path))):
        pass
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == holder.pid


def test_a_killed_holder_on_this_machine_is_followed_at_once(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Lease(Folder(str(tmp_path))):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] != holder.pid
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.parametrize(("age_s", "free"), [(10, False), (100, True)])
def test_a_holder_elsewhere_counts_as_long_as_it_renews(tmp_path, age_s, free):
    renewed = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_s)
    other = {"token": "x", "host": "elsewhere", "pid": 1, "since": "noon"}
    (tmp_path / "run.lock").write_text(json.dumps({**other, "renewed": renewed.isoformat()}))
    if free:
        with Lease(Folder(str(tmp_path))):
            pass
    else:
        with pytest.raises(UserError, match="elsewhere"), Lease(Folder(str(tmp_path))):
            pass
