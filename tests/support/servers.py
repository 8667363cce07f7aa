"""Real servers on loopback for tests and benchmarks: object storage, MLflow, and a proxy that injects faults."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import s3fs

S3_KEY, S3_SECRET = "corrdifftest", "notasecret12"
BUCKET = "bucket"
MLFLOW_PASSWORD = "plantedpassword77"

NODE = {"num_cpus": 1, "object_store_memory": 200 << 20}
"""A machine of a cluster of several raylets."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(what: str, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s"
        time.sleep(0.1)


def listening(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


class S3Server:
    """rclone serving a directory as S3, seen through a proxy that can break what passes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / BUCKET).mkdir(parents=True)
        self.uri = f"s3://{BUCKET}"
        self._port = free_port()
        rclone = Path(sys.executable).parent / "rclone"
        auth = f"{S3_KEY},{S3_SECRET}"
        self._process = subprocess.Popen(
            [rclone, "serve", "s3", "--addr", f"127.0.0.1:{self._port}", "--auth-key", auth, str(root)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for("the S3 server", lambda: listening(self._port))
        self.proxy = FaultProxy(self._port)
        self.endpoint = f"http://127.0.0.1:{self._port}"
        """The server itself, past the proxy."""
        self.environment = {
            "AWS_ACCESS_KEY_ID": S3_KEY,
            "AWS_SECRET_ACCESS_KEY": S3_SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def stop(self) -> None:
        self.proxy.stop()
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def s3_server(root: Path) -> Iterator[S3Server]:
    """A server with an empty bucket; where it is and its credentials are in the environment meanwhile."""
    server = S3Server(root)
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ |= server.environment
    try:
        yield server
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def signed(uri: str) -> str:
    """An http:// URL with which anyone may read an object for an hour."""
    fs = s3fs.S3FileSystem(config_kwargs={"signature_version": "s3v4"})
    return str(fs.sign(uri, expiration=3600))


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose path fits."""

    kind: Literal["503", "reset", "slow"]
    """`reset` breaks the connection in the middle of the body, of the answer or of an upload; `slow` lets the answer
    trickle."""
    path: str
    """A regular expression."""
    method: str = "GET"
    times: int = 1
    met: int = field(default=0, init=False)
    """Requests that it befell."""


class FaultProxy:
    """HTTP on loopback, passed on unchanged but for the faults that a test sets."""

    def __init__(self, target_port: int) -> None:
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                proxy._handle(self, target_port)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """Faults for the length of a block."""
        self.faults = list(faults)
        try:
            yield
        finally:
            self.faults = []

    def _next_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.met < fault.times and fault.method == method and re.search(fault.path, path):
                    fault.met += 1
                    return fault
        return None

    def _handle(self, request: BaseHTTPRequestHandler, target_port: int) -> None:
        fault = self._next_fault(request.command, request.path)
        length = int(request.headers.get("Content-Length", 0))
        if fault and fault.kind == "reset" and length:
            request.rfile.read(length // 2)
            _reset(request)
            return
        body = request.rfile.read(length) if length else None
        if fault and fault.kind == "503":
            answered = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            request.send_response(503)
            request.send_header("Content-Length", str(len(answered)))
            request.end_headers()
            request.wfile.write(answered)
            return
        connection = http.client.HTTPConnection("127.0.0.1", target_port, timeout=60)
        connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = b"" if request.command == "HEAD" else answer.read()
        connection.close()
        request.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                request.send_header(name, value)
        size = answer.getheader("Content-Length") if request.command == "HEAD" else str(len(data))
        if size is not None and answer.status != 204:
            request.send_header("Content-Length", size)
        request.end_headers()
        if fault and fault.kind == "reset":
            request.wfile.write(data[: len(data) // 2])
            _reset(request)
            return
        pieces = 5 if fault and fault.kind == "slow" else 1
        for i in range(pieces):
            request.wfile.write(data[i * len(data) // pieces : (i + 1) * len(data) // pieces])
            request.wfile.flush()
            if pieces > 1:
                time.sleep(0.2)


def _reset(request: BaseHTTPRequestHandler) -> None:
    """Break the connection as a failing network does."""
    request.wfile.flush()
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
    request.close_connection = True


class MlflowServer:
    """A real MLflow server process on loopback, which a test may stop and start."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                Path(sys.executable).parent / "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                "--backend-store-uri", f"sqlite:///{self.root / 'mlflow.db'}",
                "--artifacts-destination", str(self.root / "artifacts"), "--workers", "1",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for("the MLflow server", self._healthy, timeout_s=120)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False
