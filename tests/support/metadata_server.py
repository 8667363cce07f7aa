"""The instance metadata service of a cloud, for tests of what listens to it."""

from __future__ import annotations

import datetime
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MetadataServer:
    """An instance metadata service as clouds have it on spot machines.

    AWS (IMDSv2): a token first, 404 until the notice. Google Cloud: a header that says who is meant, FALSE until it.
    """

    def __init__(self) -> None:
        self.notice: bytes | None = None
        """What AWS says."""
        self.preempted = b"FALSE"
        """What Google Cloud says."""
        self.broken = False
        self.tokens_given = self.refused = 0
        self._tokens: set[str] = set()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
                if service.broken or self.path != "/latest/api/token" or not 1 <= int(ttl or 0) <= 21600:
                    self._answer(503 if service.broken else 400)
                    return
                token = secrets.token_urlsafe(40)
                service._tokens.add(token)
                service.tokens_given += 1
                self._answer(200, token.encode())

            def do_GET(self) -> None:
                if service.broken:
                    self._answer(503)
                elif self.path == "/computeMetadata/v1/instance/preempted":
                    wanted = self.headers.get("Metadata-Flavor") == "Google"
                    self._answer(200, service.preempted) if wanted else self._answer(403)
                elif self.headers.get("X-aws-ec2-metadata-token") not in service._tokens:
                    service.refused += 1
                    self._answer(401)
                elif self.path != "/latest/meta-data/spot/instance-action" or service.notice is None:
                    self._answer(404)
                else:
                    self._answer(200, service.notice)

            def _answer(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> MetadataServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def give_notice(self, seconds: float) -> float:
        """The machine goes away in so many seconds; when that is (AWS says whole seconds)."""
        at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
        self.notice = json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}).encode()
        return at.timestamp()

    def forget_tokens(self) -> None:
        self._tokens.clear()
