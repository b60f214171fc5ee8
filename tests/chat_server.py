"""An OpenAI-compatible endpoint on loopback, in a process of its own, that misbehaves on request.

What it does is decided by words in the user message; every request is written to a log file, so
that a test can count what was asked.
"""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

KEY = "sk-test-0123456789"
MODEL = "judge-1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    seen: ClassVar[Counter[str]] = Counter()
    in_flight = 0
    log: Path
    delay_s = 0.0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with self.lock:
            _Handler.in_flight += 1
            self.seen[text] += 1
            attempt = self.seen[text]
            note = {"text": text, "in_flight": self.in_flight, "body": body}
            with self.log.open("a") as file:
                file.write(json.dumps(note) + "\n")
        try:
            time.sleep(self.delay_s)
            self._respond(body, text, attempt)
        finally:
            with self.lock:
                _Handler.in_flight -= 1

    def _respond(self, body: dict, text: str, attempt: int) -> None:
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self._send(
                401, {"error": {"message": f"bad key {self.headers['Authorization']}"}}
            )
        if body["model"] != MODEL:
            return self._send(404, {"error": {"message": f"no model {body['model']}"}})
        if "BUSY" in text and attempt == 1:
            return self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.1"})
        if "BROKEN" in text:
            return self._send(500, {"error": {"message": f"inner failure, key {KEY}"}})
        if "INVALID" in text:
            return self._send(400, {"error": {"message": "this text is refused"}})
        if "PLAIN" in text and body.get("logprobs"):
            return self._send(400, {"error": {"message": "logprobs are not supported"}})
        if "MODERATED" in text:
            return self._send(403, {"error": {"message": "this text is not allowed"}})
        if "SLOW" in text:
            time.sleep(3)
        answer = "positive" if "good" in text else "negative"
        start = {"token": answer[:3], "logprob": -0.105}
        other = {"token": "neg" if answer == "positive" else "pos", "logprob": -2.303}
        self._send(
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": f" {answer.title()}."},
                        "logprobs": {"content": [{**start, "top_logprobs": [start, other]}]}
                        if body.get("logprobs")
                        else None,
                    }
                ],
                "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
            },
        )

    def _send(self, status: int, value: dict, headers: dict | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, header in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, header)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._send(200, {"ready": True})

    def log_message(self, *args: object) -> None:
        pass


class ChatServer:
    """The running endpoint: its address, and what it was asked."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    def requests(self) -> list[dict]:
        """One entry a request: text, in_flight (with this one), body."""
        whole, _, _ = self._log.read_text().rpartition("\n")  # the last may be half written
        return [json.loads(line) for line in whole.splitlines()]

    def asked(self) -> Counter[str]:
        """How often each text was asked."""
        return Counter(each["text"] for each in self.requests())


@contextmanager
def chat_server(folder: Path, delay_s: float = 0.0) -> Iterator[ChatServer]:
    """Run the endpoint in a process of its own for the length of the `with` block."""
    log = folder / "requests.jsonl"
    log.touch()
    process = subprocess.Popen(
        [sys.executable, __file__, str(log), str(delay_s)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        urllib.request.urlopen(f"http://127.0.0.1:{port}/").read()
        yield ChatServer(f"http://127.0.0.1:{port}/v1", log)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    _Handler.log, _Handler.delay_s = Path(sys.argv[1]), float(sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
