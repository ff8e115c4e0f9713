"""A server on loopback that speaks the hub's protocol for dataset repositories, and has the faults it is given."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories {name: {path: bytes}} at REVISION. faults: path -> kinds, each met once, in order."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.faults: dict[str, list[str]] = {}
        self.sent: Counter[str] = Counter()  # bytes of each path
        self.ranges: dict[str, list[str]] = {}  # Range headers of each path; "" where there is none
        self.tokens: dict[str, list[str | None]] = {}  # Authorization by host part of the request
        self.plain: dict[str, bytes] = {}  # files that are in no repository, by path
        self.url = ""
        self.pace = 0.0  # seconds between two chunks of 16 kB

    def next_fault(self, name: str) -> str | None:
        """The fault that a request for a path meets, once; None where there is none left."""
        left = self.faults.get(name)
        return left.pop(0) if left else None

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
        if not path.endswith((".md", ".jsonl")):
            entry["lfs"] = {
                "oid": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "pointerSize": 130,
            }
        return entry


@contextmanager
def serve(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """The server while the block runs; its address is in `url`."""
    hub = Hub(repositories)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if match := re.fullmatch(r"/api/datasets/([\w.-]+/[\w.-]+)/tree/(\w+)(?:/(.*))?", path):
                self.tree(*match.groups())
            elif match := re.fullmatch(r"/datasets/([\w.-]+/[\w.-]+)/resolve/(\w+)/(.+)", path):
                name, revision = match.groups()[:2]
                file = unquote(match[3])
                data = hub.repositories.get(name, {}).get(file) if revision == REVISION else None
                self.file(file, data)
            else:
                self.file(path.lstrip("/").removeprefix("storage/"), self.stored(path))

        def stored(self, path: str) -> bytes | None:
            name = path.removeprefix("/storage/").lstrip("/")
            files = (files[name] for files in hub.repositories.values() if name in files)
            return hub.plain.get(name) or next(files, None)

        def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def tree(self, name: str, revision: str, inside: str | None) -> None:
            fault = hub.next_fault("tree")
            if fault:
                self.answer(int(fault), Retry_After="0")
                return
            if name not in hub.repositories or revision != REVISION:
                self.answer(404, b'{"error": "not found"}', X_Error_Code="RepoNotFound")
                return
            entries = [
                hub.entry(path, data)
                for path, data in hub.repositories[name].items()
                if path.startswith(f"{inside}/" if inside else "")
            ]
            start = int((re.search(r"cursor=(\d+)", self.path) or [0, 0])[1])  # pages of three
            link = f'<{hub.url}{self.path.partition("?")[0]}?cursor={start + 3}>; rel="next"'
            more = {"Link": link} if entries[start + 3 :] else {}
            self.answer(
                200,
                json.dumps(entries[start : start + 3]).encode(),
                Content_Type="application/json",
                **more,
            )

        def file(self, name: str, data: bytes | None) -> None:
            if data is None:
                self.answer(404)
                return
            span = self.headers.get("Range", "")
            hub.ranges.setdefault(name, []).append(span)
            hub.tokens.setdefault(self.headers["Host"], []).append(
                self.headers.get("Authorization")
            )
            fault = hub.next_fault(name)
            if fault == "redirect":  # to another host, as storage is
                port = hub.url.rpartition(":")[2]
                self.answer(302, Location=f"http://localhost:{port}/storage/{name}")
                return
            if fault in ("429", "500", "503", "403"):
                later = {"Retry_After": "0"} if fault == "429" else {}
                self.answer(int(fault), b"", **later)
                return
            if fault == "no ranges":
                span = ""
            start, stop = 0, len(data)
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", span):
                start, stop = int(match[1]), min(int(match[2] or len(data) - 1) + 1, len(data))
                if start >= len(data):
                    self.answer(416)
                    return
            if fault == "wrong bytes":
                data = bytes(byte ^ 1 for byte in data)
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(stop - start))
            if span:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.end_headers()
            end = start + (stop - start) // 2 if fault in ("reset", "short", "silent") else stop
            self.send(name, data[start:end])
            if fault == "silent":  # until the client has gone
                self.connection.recv(1)
            if fault == "reset":
                self.connection.setsockopt(
                    1, 13, b"\1\0\0\0\0\0\0\0"
                )  # SO_LINGER 0: close sends RST
                self.connection.close()
            self.close_connection = fault in ("reset", "short", "silent")

        def send(self, name: str, data: bytes) -> None:
            for first in range(0, len(data), 16384):
                self.wfile.write(data[first : first + 16384])
                hub.sent[name] += len(data[first : first + 16384])
                time.sleep(hub.pace)

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (
                ConnectionError,
                ValueError,
            ):  # a client that was killed, a socket closed by a fault
                self.close_connection = True

        def finish(self) -> None:
            with suppress(ConnectionError, ValueError):
                super().finish()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
