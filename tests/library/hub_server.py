"""A model hub on this machine that speaks the real one's protocol, and misbehaves on request.

Two servers, as there: one answers for repositories and redirects, the other (another origin, like
a content delivery network) sends the bytes.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
_CHUNK_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that the hub gives instead of the usual one. n_times: then it is usual again."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    n_times: int = 1_000_000


@dataclass(slots=True)
class Hub:
    """What the hub has and how it behaves. Changed by tests while it runs.

    files: by 'OWNER/NAME', by file name. answers: by a part of the path. in_git: kept without LFS.
    cut_after: each answer of bytes ends after so many, n_cuts times, by closing the connection, or
    by resetting it once `n_arrived` says that all has come, for a reset throws away what is under
    way. chunk_wait_s: between pieces of 8 KiB, once `wait_after` bytes have been sent in all.
    listed_size, linked_size: what it says instead of the size. extra, missing: bytes too many, too
    few, in an answer that looks whole.
    """

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    in_git: bool = False
    cut_after: int | None = None
    n_cuts: int = 0
    n_arrived: Callable[[], int] | None = None
    chunk_wait_s: float = 0.0
    wait_after: int = 0
    listed_size: int | None = None
    linked_size: int | None = None
    linked_etag: str | None = None
    extra: int = 0
    missing: int = 0
    is_corrupt: bool = False
    ignores_ranges: bool = False
    endpoint: str = ""
    cdn: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens_at_cdn: list[str] = field(default_factory=list)
    n_bytes_sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, repository: str, name: str, content: bytes) -> str:
        """Add a file; its SHA-256."""
        self.files.setdefault(repository, {})[name] = content
        return hashlib.sha256(content).hexdigest()

    def count(self, method: str, part: str) -> int:
        """How many requests of this method have had this part in their path."""
        return sum(m == method and part in path for m, path, _ in self.requests)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that runs until the block ends."""
    hub = Hub()
    servers: list[_Server] = []
    for handler in (_HubHandler, _CdnHandler):
        server = _Server(("127.0.0.1", 0), handler)
        server.hub = hub
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        servers.append(server)
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{each.server_port}" for each in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing where the other side has gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def note(self) -> str:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path, self.headers.get("Range")))
        return path

    def answered_otherwise(self, path: str) -> bool:
        for part, answer in list(self.hub.answers.items()):
            if part not in path:
                continue
            left = answer.n_times - 1
            if left <= 0:
                del self.hub.answers[part]
            else:
                self.hub.answers[part] = Answer(answer.status, answer.headers, left)
            self.reply(answer.status, answer.headers)
            return True
        return False

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def not_found(self, code: str) -> None:
        self.reply(404, {"X-Error-Code": code, "X-Error-Message": "not found"})


class _HubHandler(_Handler):
    """`/api/models/…` and `/OWNER/NAME/resolve/REVISION/FILE`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.note()
        if self.answered_otherwise(path):
            return
        if path.startswith("/api/models/"):
            self.send_listing(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            repository, _, rest = path.strip("/").partition("/resolve/")
            self.send_file(repository, rest.partition("/")[2])
        else:
            self.not_found("RepoNotFound")

    def send_listing(self, rest: str) -> None:
        repository, _, revision = rest.partition("/revision/")
        if repository not in self.hub.files:
            self.not_found("RepoNotFound")
            return
        if revision not in ("", "main", COMMIT):
            self.not_found("RevisionNotFound")
            return
        siblings = [self.sibling(*item) for item in self.hub.files[repository].items()]
        body = json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode()
        self.reply(200, {"Content-Type": "application/json"}, body)

    def sibling(self, name: str, content: bytes) -> dict[str, object]:
        size = self.hub.listed_size or len(content)
        value: dict[str, object] = {"rfilename": name, "size": size, "blobId": _git_oid(content)}
        if not self.hub.in_git:
            digest = hashlib.sha256(content).hexdigest()
            value["lfs"] = {"sha256": digest, "size": size, "pointerSize": 134}
        return value

    def send_file(self, repository: str, name: str) -> None:
        content = self.hub.files.get(repository, {}).get(name)
        if content is None:
            self.not_found("EntryNotFound")
            return
        digest = hashlib.sha256(content).hexdigest()
        etag = _git_oid(content) if self.hub.in_git else digest
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{self.hub.linked_etag or etag}"',
            "X-Linked-Size": str(self.hub.linked_size or len(content)),
            "ETag": f'"{etag}"',
            "Location": f"{self.hub.cdn}/{digest}",
        }
        self.reply(302, headers)


class _CdnHandler(_Handler):
    """`/SHA256`: bytes, whole or from a place on."""

    def do_GET(self) -> None:
        path = self.note()
        token = self.headers.get("Authorization")
        if token:
            self.hub.tokens_at_cdn.append(token)
        if self.answered_otherwise(path):
            return
        found = [
            content
            for files in self.hub.files.values()
            for content in files.values()
            if hashlib.sha256(content).hexdigest() == path.strip("/")
        ]
        if not found:
            self.not_found("EntryNotFound")
            return
        self.send_bytes(self.misbehaving(found[0]))

    def misbehaving(self, content: bytes) -> bytes:
        if self.hub.is_corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        content += bytes(self.hub.extra)
        return content[: len(content) - self.hub.missing]

    def send_bytes(self, content: bytes) -> None:
        start, wanted = 0, self.headers.get("Range")
        if wanted and not self.hub.ignores_ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self.reply(416, {"Content-Range": f"bytes */{len(content)}"})
                return
            self.send_response(206)
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        else:
            self.send_response(200)
        body = memoryview(content)[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        limit = self.limit(len(body))
        for offset in range(0, limit, _CHUNK_BYTES):
            piece = body[offset : min(offset + _CHUNK_BYTES, limit)]
            self.wfile.write(piece)
            with self.hub.lock:
                self.hub.n_bytes_sent += len(piece)
            if self.hub.chunk_wait_s and self.hub.n_bytes_sent >= self.hub.wait_after:
                time.sleep(self.hub.chunk_wait_s)
        if limit < len(body):
            self.end_early()

    def limit(self, n_bytes: int) -> int:
        with self.hub.lock:
            if self.hub.cut_after is None or self.hub.n_cuts <= 0 or n_bytes <= self.hub.cut_after:
                return n_bytes
            self.hub.n_cuts -= 1
            return self.hub.cut_after

    def end_early(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        if self.hub.n_arrived is None:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        while self.hub.n_arrived() < self.hub.n_bytes_sent:
            time.sleep(0.001)
        now = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        self.connection.close()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
