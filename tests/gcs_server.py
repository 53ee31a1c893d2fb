"""Google Cloud Storage on the loopback: the few requests of its JSON API that gcsfs makes, held in memory."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from store_servers import Fault, Faults, Handler, serving

from vshard.base.stores import Remote


class _GcsHandler(Handler):
    objects: dict[str, bytes]
    uploads: dict[str, bytearray]

    def tell(self, status: int, facts: Any = None, fault: Fault | None = None, **headers: str) -> None:
        body = b"" if facts is None else json.dumps(facts).encode()
        self.give(status, body, {"Content-Type": "application/json", **headers}, fault or Fault())

    def facts_of(self, key: str) -> dict[str, str]:
        digest = hashlib.md5(self.objects[key]).digest()
        return {
            "kind": "storage#object",
            "name": key,
            "bucket": "bucket",
            "size": str(len(self.objects[key])),
            "generation": str(int.from_bytes(digest[:4], "big")),
            "md5Hash": base64.b64encode(digest).decode(),
        }

    def do_any(self) -> None:
        fault, body = self.take_fault(), self.read_body()
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        base, _, key = url.path.partition("/b/bucket")
        key = unquote(key.removeprefix("/o").removeprefix("/"))
        if fault.status:
            return self.tell(fault.status, {"error": {"message": "on request"}})
        if "/b/bucket" not in url.path:
            return self.tell(404, {"error": {"message": "The specified bucket does not exist."}})
        if "/upload/" in base:
            return self.upload(query, body)
        if url.path.endswith("/b/bucket"):
            return self.tell(200, {"name": "bucket"})
        if not key:
            prefix, ends = query.get("prefix", ""), {}
            for name in sorted(self.objects):
                if name.startswith(prefix):
                    inside, slash, _ = name.removeprefix(prefix).partition("/")
                    ends[prefix + inside + slash] = bool(slash and query.get("delimiter"))
            items = [self.facts_of(name) for name, folder in ends.items() if not folder]
            return self.tell(
                200, {"items": items, "prefixes": [name for name, folder in ends.items() if folder]}
            )
        if key not in self.objects:
            return self.tell(404, {"error": {"message": "No such object"}})
        if self.command == "DELETE":
            del self.objects[key]
            return self.tell(204)
        if query.get("alt") != "media":
            return self.tell(200, self.facts_of(key))
        data = self.objects[key]
        start, stop = (int(text) for text in self.headers["Range"].removeprefix("bytes=").split("-"))
        headers = {
            "Content-Range": f"bytes {start}-{min(stop, len(data) - 1)}/{len(data)}",
            "x-goog-generation": self.facts_of(key)["generation"],
        }
        return self.give(206, data[start : stop + 1], headers, fault)

    def upload(self, query: dict[str, str], body: bytes) -> None:
        if "upload_id" not in query:
            number = str(len(self.uploads))
            self.uploads[number] = bytearray()
            location = f"http://{self.headers['Host']}{self.path}&upload_id={number}"
            return self.tell(200, Location=location)
        if self.command == "DELETE":
            del self.uploads[query["upload_id"]]
            return self.tell(499)
        held = self.uploads[query["upload_id"]]
        span, _, whole = self.headers["Content-Range"].removeprefix("bytes ").partition("/")
        if span != "*":
            start = int(span.partition("-")[0])
            held[start:] = body
        if whole == "*":
            return self.tell(308, Range=f"bytes=0-{len(held) - 1}")
        self.objects[query["name"]] = bytes(held)
        del self.uploads[query["upload_id"]]
        return self.tell(200, self.facts_of(query["name"]))

    do_GET = do_POST = do_DELETE = do_any  # noqa: N815


@dataclass(frozen=True)
class GcsBucket:
    """An empty bucket: its place, its objects and unfinished uploads, and the faults."""

    place: Remote
    objects: dict[str, bytes]
    uploads: dict[str, bytearray]
    faults: Faults


@contextmanager
def gcs_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsBucket]:
    """Serve an empty bucket named ``bucket`` as Google Cloud Storage does; the environment leads vshard to it."""
    objects: dict[str, bytes] = {}
    uploads: dict[str, bytearray] = {}
    with serving(_GcsHandler, objects=objects, uploads=uploads) as (address, faults):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield GcsBucket(Remote("gs://bucket"), objects, uploads, faults)
