"""Stand-ins for the Hugging Face hub: its cache on disk, and a server that answers as it does for small files."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

REPOSITORY = "depth-anything/Depth-Anything-V2-Small-hf"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_into_cache(cache: Path, folder: Path, repository: str) -> Path:
    """Lay a folder into the cache as a download leaves it."""
    entry = cache / f"models--{repository.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, entry / "snapshots" / COMMIT))


class HubRequests(BaseHTTPRequestHandler):
    """Answers as the hub does for small files of ``server.repository``; ``server.files``: name to content."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        owner, repository, _, revision, name = self.path.strip("/").split("/")
        served: Any = self.server
        served.asked.append((self.command, name, revision))
        content = served.files.get(name) if f"{owner}/{repository}" == served.repository else None
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch, repository: str = REPOSITORY) -> Iterator[Any]:
    """A hub on this machine; ``files`` to serve, ``asked`` what was asked for."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), HubRequests)
    server.repository, server.files, server.asked = repository, {}, []
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
