"""Stores on the loopback for tests, real ones and ones that fail on request.

- ``s3_bucket``: an empty bucket in moto's S3, with made-up credentials in the environment; ``faults`` between.
- ``web_folder``: our own web server over a folder, with range answers, listings and ``faults``.
- ``nginx_folder``: a real nginx over a folder; skips the test where the program is missing.

``quick_tries(monkeypatch)`` waits milliseconds between tries; parts of uploads may be as small as 256 KiB here.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
import http.client
import logging
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from vshard.base import remote
from vshard.base.stores import Remote

PIECE_BYTES = 1 << 16


def quick_tries(monkeypatch: pytest.MonkeyPatch, silent_seconds: float | None = None) -> None:
    """Wait hardly at all between tries; with ``silent_seconds`` connect anew, to wait so long for a silent store."""
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.002)
    if silent_seconds is not None:
        monkeypatch.setattr(remote, "SILENT_SECONDS", silent_seconds)
        monkeypatch.setattr(remote, "_connected", {})


@dataclass
class Fault:
    """What happens to the next ``times`` requests of this method whose path holds ``match``."""

    times: int = 1
    method: str = "GET"
    match: str = ""
    status: int = 0  # answer with this status (302: leads to itself), and do nothing
    cut_after: int | None = None  # announce everything, send so many bytes of the body, close the connection
    reset: bool = False  # close it with a TCP reset, not in good order
    lost: bool = False  # do the work, then close the connection without an answer
    dropped: bool = False  # close the connection without doing the work
    pause_seconds: float = 0.0  # sleep before each piece of the body
    piece_bytes: int = PIECE_BYTES
    ignore_range: bool = False  # answer 200 with everything
    etag: str = ""  # name another version of the file
    goes_on: bool = False  # announce no length, and send up to 64 MiB after the body
    encoding: str = ""  # announce this Content-Encoding
    page: bytes = b""  # list a folder with this page


@dataclass
class Faults:
    """The faults of a server to come, and what it was asked."""

    coming: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path with query, Range
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **fault: Any) -> None:
        """Switch a fault on; see :class:`Fault` for its fields."""
        self.coming.append(Fault(**fault))

    def take(self, method: str, path: str, asked_range: str) -> Fault:
        with self.lock:
            self.asked.append((method, path, asked_range))
            for fault in self.coming:
                if fault.times > 0 and fault.method == method and fault.match in path:
                    fault.times -= 1
                    return fault
        return Fault()

    def asked_bytes(self) -> list[int]:
        """The lengths of the ranges that were asked for, one byte ranges (facts) left out."""
        ranges = [text.removeprefix("bytes=").split("-") for _, _, text in self.asked if text]
        return [int(stop) - int(start) + 1 for start, stop in ranges if start != stop]


class Handler(BaseHTTPRequestHandler):
    """Answers with a fault's damage."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms
    faults: Faults

    def setup(self) -> None:
        super().setup()
        self.faults.connections += 1

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def take_fault(self) -> Fault:
        return self.faults.take(self.command, self.path, self.headers.get("Range", ""))

    def read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def hang_up(self, reset: bool = False) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def give(self, status: int, body: bytes, headers: dict[str, str], fault: Fault) -> None:
        self.send_response_only(status)
        lengths = {"Connection": "close"} if fault.goes_on else {"Content-Length": str(len(body))}
        encodings = {"Content-Encoding": fault.encoding} if fault.encoding else {}
        for name, value in {**lengths, **encodings, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = len(body) if fault.cut_after is None else fault.cut_after
        with suppress(OSError):  # a client may leave in the middle of an answer
            for start in range(0, stop, fault.piece_bytes):
                time.sleep(fault.pause_seconds)
                self.wfile.write(body[start : min(start + fault.piece_bytes, stop)])
            for _ in range(64 if fault.goes_on else 0):
                self.wfile.write(bytes(1 << 20))
        if fault.cut_after is not None:
            self.hang_up(fault.reset)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that leave in the middle are part of the tests.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextmanager
def serving(handler: type[Handler], **more: Any) -> Iterator[tuple[str, Faults]]:
    """Serve ``handler`` on a loopback port; gives the address and the faults."""
    faults = Faults()
    server = _Server(("127.0.0.1", 0), type("Served", (handler,), {"faults": faults, **more}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _WebHandler(Handler):
    root: Path

    def do_GET(self) -> None:
        fault = self.take_fault()
        if fault.dropped:
            return self.hang_up(fault.reset)
        if fault.status:
            return self.give(fault.status, b"refused", {"Location": self.path}, fault)
        address = unquote(urlsplit(self.path).path)
        path = self.root / address.strip("/")
        if path.is_dir():
            if not address.endswith("/"):
                return self.give(301, b"", {"Location": quote(address) + "/"}, fault)
            names = ["../", *sorted(item.name + "/" * item.is_dir() for item in path.iterdir())]
            links = [f'<a href="{html.escape(quote(name))}">{html.escape(name)}</a>' for name in names]
            page = "<html><body>" + "\n".join(['<a href="?C=N;O=D">Name</a>', *links]) + "</body></html>"
            return self.give(
                200, fault.page or page.encode(), {"Content-Type": "text/html; charset=utf-8"}, fault
            )
        if not path.is_file():
            return self.give(404, b"nothing here", {}, fault)
        data = path.read_bytes()
        etag = fault.etag or hashlib.md5(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        if "gzip" in self.headers.get("Accept-Encoding", ""):  # as some servers do with all they send
            return self.give(200, gzip.compress(data), {**headers, "Content-Encoding": "gzip"}, fault)
        asked = self.headers.get("Range", "")
        if not asked or fault.ignore_range:
            return self.give(200, data, headers, fault)
        start, stop = (int(text) for text in asked.removeprefix("bytes=").split("-"))
        if start >= len(data):
            return self.give(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"}, fault)
        piece = data[start : stop + 1]
        headers["Content-Range"] = f"bytes {start}-{start + len(piece) - 1}/{len(data)}"
        return self.give(206, piece, headers, fault)


@contextmanager
def web_folder(root: Path) -> Iterator[tuple[Remote, Faults]]:
    """Serve a folder by ranges, with HTML listings; gives its place and the server's faults."""
    with serving(_WebHandler, root=root) as (address, faults):
        yield Remote(address), faults


class _ProxyHandler(Handler):
    behind: str  # host:port of the true server

    def do_any(self) -> None:
        fault = self.take_fault()
        body = self.read_body()
        if fault.dropped:
            return self.hang_up(fault.reset)
        if fault.status:
            error = f"<Error><Code>{fault.status}</Code><Message>on request</Message></Error>"
            return self.give(fault.status, error.encode(), {"Content-Type": "application/xml"}, fault)
        onward = http.client.HTTPConnection(self.behind, timeout=10)
        skipped = ("transfer-encoding", "expect", "content-length", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
        try:
            onward.request(self.command, self.path, body=body, headers=headers)
            answer = onward.getresponse()
            data = answer.read()
        finally:
            onward.close()
        if fault.lost:
            return self.hang_up(fault.reset)
        kept = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("content-length", "connection", "transfer-encoding")
        }
        if self.command == "HEAD":
            kept["Content-Length"] = answer.getheader("Content-Length", "0")
        if fault.etag:
            kept["ETag"] = f'"{fault.etag}"'
        return self.give(answer.status, data, kept, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_any  # noqa: N815


@functools.cache
def _s3_servers() -> tuple[str, Faults, Any, Any]:
    """Start moto's S3 and a server with faults before it, which stay for this process: starting takes a second."""
    import boto3
    from moto.s3 import models
    from moto.server import ThreadedMotoServer

    models.S3_UPLOAD_PART_MIN_SIZE = 1 << 18  # not S3's 5 MiB, so that tests can make do with small files
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    behind = "{}:{}".format(*server.get_host_and_port())
    proxy = serving(_ProxyHandler, behind=behind)
    address, faults = proxy.__enter__()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{behind}",
        aws_access_key_id="made-up",
        aws_secret_access_key="made-up",
        region_name="us-east-1",
    )
    return address, faults, client, proxy  # the proxy ends when nothing holds it


@dataclass(frozen=True)
class S3Bucket:
    """An empty bucket: its place, a boto3 client that goes around the faults, and the faults."""

    place: Remote
    client: Any
    faults: Faults

    def keys(self) -> list[str]:
        """The keys of all its objects."""
        found = self.client.list_objects_v2(Bucket=self.place.name).get("Contents", [])
        return [item["Key"] for item in found]

    def open_uploads(self) -> int:
        """How many multipart uploads were begun and neither completed nor abandoned."""
        return len(self.client.list_multipart_uploads(Bucket=self.place.name).get("Uploads", []))


@contextmanager
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Bucket]:
    """Make an empty bucket in moto; the environment's settings lead vshard to it through a server with faults."""
    address, faults, client, _ = _s3_servers()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "made-up")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made-up")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    faults.coming.clear()
    faults.asked.clear()
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    yield S3Bucket(Remote(f"s3://{name}"), client, faults)


@contextmanager
def nginx_folder(root: Path, scratch: Path) -> Iterator[Remote]:
    """Serve a folder with nginx and its listings (``scratch``: its own files); skips the test without nginx."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    temporary = "".join(
        f"{kind}_temp_path {scratch}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    settings = scratch / "nginx.conf"
    settings.write_text(
        f"daemon off; master_process off; pid {scratch}/pid; error_log {scratch}/errors;"
        f"events {{}} http {{ access_log off; {temporary} default_type application/octet-stream;"
        f"server {{ listen 127.0.0.1:{port}; root {root}; autoindex on; }} }}"
    )
    process = subprocess.Popen([program, "-c", settings, "-e", scratch / "errors", "-p", scratch])
    try:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.02)
        yield Remote(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait()
