"""One run at a time in a workdir: numbered lock files, of which the newest says who holds it.

    _lock/000007.json    token, host and process of the holder; whether it has been given back

Whoever finds the newest one free creates the next number, which a file system and an object store
let only one process do. The newest is never removed, so that a process that has looked and then
slept cannot take a number that others have used and left.
"""

import contextlib
import errno
import json
import logging
import math
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from rich.console import Console

from llambert.errors import StageError, UserError
from llambert.storage import Folder, is_remote

log = logging.getLogger(__name__)

_BEAT_S = 20.0  # between two renewals
_RETRY_S = 5.0  # after one that failed
_GIVE_UP_S = 45.0  # of failed renewals; with the beat before, well within the next
_STALE_S = 90.0  # without a renewal: the holder's machine is gone
_SETTLE_S = 1.0  # where a store takes two creations of a file, the last one wins
_STILL_STARTING = {"token": "", "pid": "?", "host": "a machine that is at it", "since": "just now"}


class Lease:
    """Holds a workdir for the length of a `with` block.

    A holder that was killed is followed at once on its own machine, and after 90 s elsewhere; one
    that is merely paused keeps what it holds on its own machine. Where the lease is lost, or not
    renewed for 65 s, the process ends at once with exit code 1, as if it had been killed: from then
    on another run may write.

    Raises:
        UserError: another run holds the workdir; the message says which.
    """

    def __init__(self, workdir: Folder) -> None:
        self._workdir = workdir
        self._folder = workdir / "_lock"
        self._number = 0
        self._mine = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "started": _started(os.getpid()),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        while not self._holds(newest := self._newest()):
            self._refuse(newest)
            self._number = newest + 1
            self._create()
            if is_remote(self._folder.uri):
                time.sleep(_SETTLE_S)
        for name in self._folder.files(".json"):
            if int(name.removesuffix(".json")) < self._number:
                self._remove(name)
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        self._thread.join(timeout=_BEAT_S)
        try:
            if self._holds(self._newest()):
                self._write({"released": True})
        except Exception as error:  # the run's work is done, whatever the store's driver raises
            log.warning(
                "%s is not given back, and free in %.0f s: %s", self._workdir.uri, _STALE_S, error
            )

    def _newest(self) -> int:
        """The newest number; 0 where there is none."""
        names = self._folder.files(".json")
        return int(names[-1].removesuffix(".json")) if names else 0

    def _holds(self, newest: int) -> bool:
        found = self._read(newest) if newest and newest == self._number else None
        return found is not None and found["token"] == self._mine["token"]

    def _taken(self) -> bool:
        """Whether another run holds what we held; that our file is gone means nothing yet."""
        found = self._read(self._number)
        foreign = found is not None and found["token"] != self._mine["token"]
        return foreign or self._newest() > self._number

    def _refuse(self, number: int) -> None:
        found = self._read(number)
        if found is None or found.get("released") or not self._alive(number, found):
            return
        raise UserError(
            f"another run holds {self._workdir.uri!r}: process {found['pid']} on {found['host']}, "
            f"since {found['since']}",
            f"wait for it; if its machine is gone, try again in {_STALE_S:.0f} s",
        )

    def _alive(self, number: int, found: dict[str, Any]) -> bool:
        """Whether the holder may still be at work."""
        if found.get("machine") and found["machine"] == self._mine["machine"]:
            try:
                os.kill(found["pid"], 0)
            except ProcessLookupError:
                return False
            except PermissionError:  # another user's process, of which no more can be known
                return self._age_s(number) <= _STALE_S
            return _started(found["pid"]) == found["started"]  # else its number was given again
        return self._age_s(number) <= _STALE_S

    def _age_s(self, number: int) -> float:
        """Seconds since the last renewal by the store's clock, for machines' clocks differ."""
        probe = f".{uuid.uuid4().hex}"
        self._folder.write_bytes(probe, b"")
        try:
            now, renewed = (
                self._folder.fs.modified(self._folder.path(name)) for name in (probe, _name(number))
            )
        except FileNotFoundError:  # a newer one has taken its place, as the next look will show
            return math.inf
        finally:
            self._remove(probe)
        return (now - renewed).total_seconds()

    def _keep(self) -> None:
        """Renew until told to stop; end the process where that cannot be."""
        giving_up: threading.Timer | None = None
        while not self._stop.wait(_RETRY_S if giving_up else _BEAT_S):
            if giving_up is None:  # a timer, as a store may also let a request hang
                giving_up = threading.Timer(_GIVE_UP_S, self._end, ["could not be renewed"])
                giving_up.daemon = True
                giving_up.start()
            try:
                if self._taken():
                    self._end("was taken by another run")
                self._write()
            except Exception as error:  # what the store's driver raises may pass
                log.warning("the lease of %s is not renewed: %s", self._workdir.uri, error)
                continue
            giving_up.cancel()
            giving_up = None
        if giving_up:
            giving_up.cancel()

    def _end(self, why: str) -> None:
        if self._stop.is_set():
            return
        wrong = StageError(
            f"the lease of {self._workdir.uri!r} {why}: this run ends, for another may write there",
            "was this machine paused, or the store out of reach? The same command goes on from "
            "here",
        )
        Console(stderr=True).show_cursor()  # which the progress line has hidden
        print(f"\nerror: {wrong}", file=sys.stderr, flush=True)
        os._exit(wrong.exit_code)

    def _create(self) -> None:
        """Make the lock file of our number, if nobody has."""
        data, path = json.dumps(self._mine).encode(), self._folder.path(_name(self._number))
        self._folder.create()
        with contextlib.suppress(FileExistsError):
            if not is_remote(self._folder.uri):
                with open(path, "xb") as file:
                    file.write(data)
                return
            try:
                self._folder.fs.pipe_file(path, data, mode="create")
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                self._folder.fs.pipe_file(path, data)  # a store that knows no condition

    def _write(self, more: dict[str, Any] | None = None) -> None:
        self._folder.write_json(_name(self._number), self._mine | (more or {}))

    def _read(self, number: int) -> dict[str, Any] | None:
        """What lock file `number` says; None where there is none."""
        try:
            return dict(self._folder.read_json(_name(number)))
        except FileNotFoundError:
            return None
        except ValueError:  # not written yet
            return _STILL_STARTING

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._folder.fs.rm_file(self._folder.path(name))


def _name(number: int) -> str:
    return f"{number:06}.json"


def _machine() -> str | None:
    """What has process numbers of its own: a boot of a machine and a container; None: unknown.

    Containers may share a host's name, and machines a container's.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return None


def _started(pid: int) -> int | None:
    """When a process began, in ticks since boot; None where it is over or cannot be told.

    By /proc/PID/stat, fields 3 and 22 (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
