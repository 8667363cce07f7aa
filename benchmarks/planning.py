"""Listing and planning a million pictures: seconds, and memory of the process that does it.

From an S3 server (one of this script's own, on loopback, that answers list requests for any number of keys, a thousand
a page as S3 does) and from a local directory tree. The peer lists with fsspec's `find`, as one does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from benchmarks.measure import Row, again, parser, report
from pipelines.files import storage
from pipelines.inputs import units

PAGE = 1000
IN_A_FOLDER = 10_000


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--keys", type=int, nargs="+", default=[100_000, 1_000_000])
    made.add_argument("--of", choices=["ours", "fsspec find"], help=argparse.SUPPRESS)
    made.add_argument("--uri", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.of:
        print(json.dumps(measure(arguments.of, arguments.uri)))
        return
    rows: list[Row] = []
    for keys in arguments.keys:
        server = ThreadingHTTPServer(("127.0.0.1", 0), lister(keys))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            **os.environ, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as root:
            for n, folder in itertools.groupby(range(keys), lambda i: i // IN_A_FOLDER):
                (Path(root) / f"{n:05d}").mkdir()
                for i in folder:
                    (Path(root) / name(i)).touch()
            for place, uri in (("S3", "s3://bucket/photos"), ("disk", root)):
                for what in ("ours", "fsspec find"):
                    command = again("--of", what, "--uri", uri)
                    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                    rows.append({"keys": keys, "place": place, "": what, **json.loads(done.stdout.splitlines()[-1])})
        server.shutdown()
    report("listing and planning, units of 64", rows, arguments.json)


def name(i: int) -> str:
    return f"{i // IN_A_FOLDER:05d}/picture-{i:09d}.jpg"


def measure(what: str, uri: str) -> Row:
    import psutil

    before = psutil.Process().memory_info().rss
    fs, path = storage.open_fs(uri)
    fs.exists(path)  # the driver and its threads are there
    loaded = psutil.Process().memory_info().rss
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        if what == "ours":
            found = units.write_plan(out, units.plan_units(uri, None, 64)).pictures
            written = sum(file.stat().st_size for file in Path(out).rglob("*.parquet"))
        else:
            found, written = len(fs.find(path)), 0
    seconds = time.perf_counter() - started
    peak = peak_rss()
    return {
        "found": found, "seconds": seconds, "MiB beyond the loaded driver": (peak - loaded) / 2**20,
        "driver MiB": (loaded - before) / 2**20, "plan MB": written / 1e6 if written else None,
    }  # fmt: skip


def peak_rss() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def lister(keys: int) -> type[BaseHTTPRequestHandler]:
    """Answers ListObjectsV2 for `keys` keys under photos/."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
            start = int(query.get("continuation-token", "0"))
            end = min(keys, start + min(PAGE, int(query.get("max-keys", PAGE))))
            if query.get("prefix", "") not in ("photos/", "photos"):
                start = end = 0
            more = end < keys and start < end
            contents = "".join(
                f"<Contents><Key>photos/{name(i)}</Key><Size>100000</Size><ETag>e</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for i in range(start, end)
            )
            token = f"<NextContinuationToken>{end}</NextContinuationToken>" if more else ""
            answer = (
                '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    main()
