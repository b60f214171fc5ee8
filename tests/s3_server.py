"""A local S3 server for tests: moto's, as a process of its own, in place of AWS.

`s3_environment` only points this process, and every process started later, at the server's
address: whatever starts Ray asks for it first, so that Ray's workers know the address even where
the server itself starts later. `s3` starts the server.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BUCKET = "llambert-tests"
_START_S = 60.0


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[socket.socket]:
    """The environment of a machine whose only S3 is at a loopback address; no server yet.

    Yields a socket that keeps the address's port reserved.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{reserved.getsockname()[1]}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
            patch.delenv(name, raising=False)
        yield reserved
    reserved.close()


@pytest.fixture(scope="session")
def s3(s3_environment: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a bucket on a running S3 server; tests write to folders of their own in it."""
    port = s3_environment.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "server.log"
    s3_environment.close()
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(server, port, log)
        _make_bucket()
        yield f"s3://{BUCKET}"
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
    raise RuntimeError(f"the S3 server did not start: {log.read_text(errors='replace')}")


def _make_bucket() -> None:
    import boto3

    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
