"""Wait for the cloud's notice that the machine will be taken away, and drain it in Ray before that.

On machines that are not spot there never is one. Ray is told the reason and the deadline; it starts nothing new here,
and running jobs hear of it: training makes a checkpoint and goes on with the machines that are left, compression does
its units elsewhere.

AWS puts the notice into the instance metadata two minutes ahead (IMDSv2: a token first, then 404 until there is one),
Google Cloud half a minute ahead (FALSE until then):

    http://169.254.169.254/latest/meta-data/spot/instance-action
    {"action": "terminate", "time": "2026-01-31T08:22:00Z"}

    http://169.254.169.254/computeMetadata/v1/instance/preempted
    TRUE

(https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html,
https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption)

Kubernetes and Slurm send a SIGTERM, and need no watcher: 'ray start --block' itself drains its machine then, for
RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Literal, NamedTuple

from corrdiff.command_line import EXIT_OK, run_command
from corrdiff.errors import JobError

METADATA = "http://169.254.169.254"
TOKEN_PATH, NOTICE_PATH = "/latest/api/token", "/latest/meta-data/spot/instance-action"
GOOGLE_PATH, GOOGLE_GRACE_S = "/computeMetadata/v1/instance/preempted", 30.0
"""Google Cloud's notice says no more than that there is one."""
TOKEN_TTL_S = 21600
"""Six hours, the most that AWS gives; the token is renewed before."""
TIMEOUT_S = 2.0
GRACE_S = 120.0
"""From notice to end, where the notice does not say."""


LONGEST_S, LONGEST_ACTION = 3600.0, 64
"""What is believed of a notice: no later end than that from now, and a word of no more letters."""
ASKING_S = 5.0
"""A service that has not answered in full by then is asked again."""


class Notice(NamedTuple):
    """The machine is going away."""

    action: str
    at: float
    """When, in seconds since the epoch."""


class _Bounded(http.client.HTTPConnection):
    """A connection that ends after a while, however slowly its other end sends byte after byte."""

    def connect(self) -> None:
        super().connect()
        timer = threading.Timer(ASKING_S, _shut, [self.sock])
        timer.daemon = True
        timer.start()


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class _BoundedHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Bounded, request)


_OPENER = urllib.request.build_opener(_BoundedHandler)


class Metadata:
    """AWS's instance metadata service, as a session of IMDSv2."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._token, self._renew_at = "", 0.0

    def notice(self) -> Notice | None:
        """Ask for the notice; None while there is none.

        Raises `OSError` where the service cannot be reached or refuses.
        """
        try:
            answer = self._get(NOTICE_PATH)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            if error.code == 401:  # the token has run out, or the service was restarted
                self._renew_at = 0.0
            raise
        return read_notice(answer, time.time())

    def _get(self, path: str) -> bytes:
        if time.monotonic() >= self._renew_at:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
            self._token = read_token(self._ask("PUT", TOKEN_PATH, headers))
            self._renew_at = time.monotonic() + TOKEN_TTL_S / 2
        return self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read(1 << 16)
            if answer.length:
                raise OSError(f"its answer is cut short, or too long: {answer.length:,} bytes are missing")
        return data


class GoogleMetadata(Metadata):
    """Google Cloud's instance metadata service, which wants a header and no token."""

    def notice(self) -> Notice | None:
        """Ask whether the machine is being taken away; None while it is not.

        Raises `OSError` where the service cannot be reached, refuses, or says neither TRUE nor FALSE.
        """
        said = self._ask("GET", GOOGLE_PATH, {"Metadata-Flavor": "Google"}).strip()
        if said not in (b"TRUE", b"FALSE"):
            raise OSError(f"it said {said[:40]!r}")
        return Notice("preempted", time.time() + GOOGLE_GRACE_S) if said == b"TRUE" else None


CLOUDS = {"aws": Metadata, "gcp": GoogleMetadata}


def read_token(answer: bytes) -> str:
    """Read a session's token. Raises `OSError` for what is none, say a page that somebody put in between."""
    if not re.fullmatch(rb"[!-~]{1,4096}", answer):
        raise OSError("its token is none")
    return answer.decode("ascii")


def read_notice(answer: bytes, now: float) -> Notice:
    """Read the service's answer. One that cannot be read is a notice all the same: the machine will go."""
    try:
        value = json.loads(answer)
        at = datetime.datetime.fromisoformat(value["time"]).timestamp()
        action = re.sub(r"[^\w .-]", "?", str(value["action"]), flags=re.ASCII)[:LONGEST_ACTION]
        return Notice(action, min(at, now + LONGEST_S))
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
        return Notice("unknown", now + GRACE_S)


def drain(address: str, node_id: str, notice: Notice) -> None:
    """Tell Ray that a node goes away. Raises `JobError` where it cannot be told or does not accept."""
    left = max(0, int(notice.at - time.time()))
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node_id,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", f"spot notice: {notice.action}",
        "--deadline-remaining-seconds", str(left),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise JobError(f"Ray at {address} did not accept the drain: {reason[-1] if reason else 'no reason given'}")


def own_node(address: str) -> str:
    """Find the id of this machine's Ray node. Raises `ConnectionError` while it is not up."""
    import ray

    ray.init(address=address, namespace="corrdiff-preemption", log_to_driver=False, logging_level="ERROR")
    try:
        return str(ray.get_runtime_context().get_node_id())
    finally:
        ray.shutdown()


@dataclasses.dataclass(frozen=True)
class Watch:
    """Wait for a spot notice on this machine, and then drain it in Ray; ends when Ray has accepted.

    The cluster files start this on every worker.

    Example: python -m cluster.preemption --address 10.0.0.5:6379
    """

    address: str = "auto"
    """HOST:PORT of the head's GCS; auto is the cluster that this machine belongs to."""
    node_id: str | None = None
    """The Ray node to drain; this machine's where it is not given."""
    cloud: Literal["aws", "gcp"] = "aws"
    """Whose machine it is: AWS's, or Google Cloud's."""
    metadata: str = METADATA
    """The instance metadata service; both clouds have it there."""
    every: float = 2.0
    """Seconds between looks."""


def watch(options: Watch) -> int:
    """Wait for the notice and drain the node; returns when it drains.

    Raises `JobError` where Ray had not accepted when the time was up.
    """
    node_id = options.node_id or _own_node(options)
    _say(f"watching {options.metadata} for Ray node {node_id}")
    notice = _wait(options)
    _say(f"notice: {notice.action} in {notice.at - time.time():.0f} s; draining")
    while True:
        try:
            drain(options.address, node_id, notice)
            break
        except (JobError, subprocess.TimeoutExpired) as error:
            if time.time() >= notice.at:
                raise JobError(str(error)) from None
            _say(f"{error}; trying again")
            time.sleep(options.every)
    end = datetime.datetime.fromtimestamp(notice.at, datetime.UTC)
    _say(f"Ray node {node_id} drains until {end:%H:%M:%S} UTC")
    return EXIT_OK


def _own_node(options: Watch) -> str:
    while True:
        try:
            return own_node(options.address)
        except ConnectionError:
            time.sleep(options.every)


def _wait(options: Watch) -> Notice:
    metadata, reachable = CLOUDS[options.cloud](options.metadata), True
    while True:
        try:
            notice = metadata.notice()
            if not reachable:
                _say(f"{options.metadata} answers again")
            reachable = True
            if notice is not None:
                return notice
        except (OSError, http.client.HTTPException, ValueError) as error:
            if reachable:
                _say(f"{options.metadata} does not answer ({error}); trying on")
            reachable = False
        time.sleep(options.every)


def _say(sentence: str) -> None:
    stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    print(f"{stamp} corrdiff preemption: {sentence}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(Watch, "python -m cluster.preemption", sys.argv[1:] if argv is None else argv, watch)


if __name__ == "__main__":
    sys.exit(main())
