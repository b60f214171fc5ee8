"""One run at a time in a workdir: a lease file that its holder renews."""

import datetime
import os
import socket
import threading
import time
import uuid
from typing import Any

from llambert.errors import UserError
from llambert.storage import Folder

_FILE = "run.lock"
_BEAT_S = 20.0  # between two renewals
_STALE_S = 90.0  # without a renewal: the holder's machine is gone
_SETTLE_S = 1.0  # an object store has no exclusive create: the last of two writers wins


class Lease:
    """Holds a workdir for the length of a `with` block.

    A holder that was killed is followed at once on its own machine, and after 90 s elsewhere.

    Raises:
        UserError: another run holds the workdir; the message says which.
    """

    def __init__(self, workdir: Folder) -> None:
        self._workdir = workdir
        self._mine = {"token": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self._since = _now().isoformat(timespec="seconds")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        self._refuse(self._read())
        self._write()
        time.sleep(_SETTLE_S)
        self._refuse(self._read())
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        self._thread.join(timeout=_BEAT_S)
        found = self._read()
        if found and found["token"] == self._mine["token"]:
            self._workdir.fs.rm_file(self._workdir.path(_FILE))

    def _refuse(self, found: dict[str, Any] | None) -> None:
        if found is None or found["token"] == self._mine["token"] or not _alive(found):
            return
        raise UserError(
            f"another run holds {self._workdir.uri!r}: process {found['pid']} on {found['host']}, "
            f"since {found['since']}",
            f"wait for it, or give this run another workdir; if its machine is gone, try again in "
            f"{_STALE_S:.0f} s",
        )

    def _renew(self) -> None:
        while not self._stop.wait(_BEAT_S):
            self._write()

    def _write(self) -> None:
        value = {**self._mine, "since": self._since, "renewed": _now().isoformat()}
        self._workdir.write_json(_FILE, value)

    def _read(self) -> dict[str, Any] | None:
        try:
            return self._workdir.read_json(_FILE)
        except FileNotFoundError:
            return None


def _alive(found: dict[str, Any]) -> bool:
    """Whether the holder may still be at work."""
    age = (_now() - datetime.datetime.fromisoformat(found["renewed"])).total_seconds()
    if age > _STALE_S:
        return False
    if found["host"] != socket.gethostname():
        return True
    try:
        os.kill(found["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's process
    return True


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
