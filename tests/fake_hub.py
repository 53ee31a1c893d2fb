"""Stand-ins for the Hugging Face hub: its cache on disk, and a server that answers as it does for small files."""

from __future__ import annotations

import hashlib
import shutil
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

REPOSITORY = "depth-anything/Depth-Anything-V2-Small-hf"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_into_cache(cache: Path, folder: Path, repository: str) -> Path:
    """Lay a folder into the cache as a download leaves it."""
    entry = cache / f"models--{repository.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, entry / "snapshots" / COMMIT))


class HubRequests(BaseHTTPRequestHandler):
    """Answers as the hub does for small files; ``server.files`` maps a name to its content."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        owner, repository, _, revision, name = self.path.strip("/").split("/")
        served: Any = self.server
        served.asked.append((self.command, name, revision))
        content = served.files.get(name) if f"{owner}/{repository}" == REPOSITORY else None
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
