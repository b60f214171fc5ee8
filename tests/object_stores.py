"""Local object stores for tests, each a process of its own: moto's for AWS, an emulator for Google.

`store_environment` only points this process, and every process started later, at their addresses:
whatever starts Ray asks for it first, so that Ray's workers know the addresses even where a store
itself starts later. `s3` and `gs` start the stores.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BUCKET = "llambert-tests"
_START_S = 60.0


def _reserve() -> socket.socket:
    """A socket that keeps a port of loopback reserved."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


@pytest.fixture(scope="session")
def store_environment() -> Iterator[dict[str, socket.socket]]:
    """The environment of a machine whose only object stores are on loopback; none runs yet.

    Yields, by scheme, the sockets that keep the stores' ports reserved.
    """
    reserved = {scheme: _reserve() for scheme in ("s3", "gs")}
    url = {scheme: f"http://127.0.0.1:{s.getsockname()[1]}" for scheme, s in reserved.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url["s3"])
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
            patch.delenv(name, raising=False)
        patch.setenv("STORAGE_EMULATOR_HOST", url["gs"])
        # gcsfs asks for a bucket's kind through an interface that the emulator lacks
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        yield reserved
    for each in reserved.values():
        each.close()


@pytest.fixture(scope="session")
def s3(store_environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a bucket on a running S3 server; tests write to folders of their own in it."""
    import boto3

    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p"]
    with _server(command, store_environment["s3"], tmp_path_factory.mktemp("s3") / "server.log"):
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def gs(store_environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same on a server that speaks Google Cloud Storage's JSON API."""
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1"]
    command += ["--in-memory", f"--default-bucket={BUCKET}", "--port"]
    with _server(command, store_environment["gs"], tmp_path_factory.mktemp("gs") / "server.log"):
        yield f"gs://{BUCKET}"


@contextmanager
def _server(command: list[str], reserved: socket.socket, log: Path) -> Iterator[None]:
    """Run `command` on the reserved port until the end of the `with` block."""
    port = reserved.getsockname()[1]
    reserved.close()
    with log.open("wb") as output:
        server = subprocess.Popen([*command, str(port)], stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(server, port, log)
        yield
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the object store did not start: {log.read_text(errors='replace')}")
