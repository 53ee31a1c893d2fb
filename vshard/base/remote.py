"""What stores are asked, and how their failures are met.

Three kinds of store sit in one table: S3 (and what speaks its protocol), Google Cloud Storage, and plain web servers,
which can only be read. fsspec's packages connect to them and find the credentials the usual way (environment,
``~/.aws``, Google's application default credentials); they load with the first use. Every request runs on fsspec's
event loop, is tried again after a passing failure (cut connections, timeouts, 5xx, throttling, short answers), and
what remains becomes a one-line :class:`~vshard.base.errors.StoreError`.

Any number of threads may ask at once. A forked process connects anew and leaves its parent's connections alone:
closing one would take it out of the parent's event loop as well.
"""

from __future__ import annotations

import asyncio
import html
import logging
import os
import re
import string
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urljoin

from .errors import StoreError
from .places import Entry, Remote
from .refusals import CutError, changed, compressed, may_pass, no_ranges, told, too_long, unlisted

Result = TypeVar("Result")

# Each request is tried this often, waiting 0.2, 0.4, 0.8 and 1.6 s in between.
TRIES = 5
FIRST_DELAY_SECONDS = 0.2
# How long a connection may take, and how long a store may stay silent; an answer as a whole may take any time.
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0
# Questions about the files of one web folder that are on their way at once.
ASKED_AT_ONCE = 16
# How much of an answer is taken from the connection at a time.
_PIECE_BYTES = 1 << 20
# A wait without an end cannot be interrupted from the keyboard on Windows.
_LOOK_SECONDS = 0.2
# A page that lists a web folder is not believed beyond these.
MOST_PAGE_BYTES = 16 << 20
MOST_LINKS = 100_000
# No "<" in a tag: without this, a page of nothing but "<a " takes time that grows with its square.
_HREF = re.compile(r"""<a\s[^<>]*?href\s*=\s*["']([^"']+)["']""", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """Bytes of a file, and what the answer told of the whole file."""

    data: bytes
    size_bytes: int
    stamp: str


class Store(ABC):
    """One kind of store, connected. The coroutines raise what fsspec and the packages below it raise."""

    fs: Any
    # What may pass when it is tried again, and how often that is done here (not where the package does so itself).
    passing: tuple[type[BaseException], ...] = ()
    tries = TRIES

    async def look(self, place: Remote, to_read: bool = False) -> Entry:
        """Give the facts of a place; with ``to_read`` a file that cannot be read by ranges is refused."""
        del to_read  # all objects can
        return _entry(place.name, await self.fs._info(_path(place)))

    async def entries(self, place: Remote) -> list[Entry]:
        """Give what is in a folder, in any order."""
        prefix = _path(place) + "/"
        found = await self.fs._ls(prefix, detail=True)
        if [info["name"] for info in found] == [_path(place)] and found[0]["type"] == "file":
            raise NotADirectoryError("this is a file, not a folder")
        names = [(info["name"].rstrip("/").removeprefix(prefix), info) for info in found]
        # The empty objects that some tools make to mark a folder are listed under the folder's own name.
        return [_entry(name, info) for name, info in names if _is_name(name)]

    @abstractmethod
    async def fetch(self, place: Remote, start: int, stop: int) -> Answer:
        """Give the bytes [start, stop)."""

    async def remove(self, place: Remote) -> None:
        await self.fs._rm_file(_path(place))


class _S3(Store):
    def __init__(self) -> None:
        import aiohttp
        import s3fs
        from botocore import exceptions as refusals
        from botocore.parsers import ResponseParserError

        # Tries are counted here alone: botocore and s3fs would multiply them, and neither repeats all that may pass.
        self.fs = s3fs.S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": SILENT_SECONDS,
                "retries": {"total_max_attempts": 1},
                "max_pool_connections": 32,
            },
        )
        self.fs.retries = 1
        self.passing = (
            refusals.HTTPClientError,
            refusals.ConnectionError,
            ResponseParserError,
            aiohttp.ClientError,
            TimeoutError,
            asyncio.TimeoutError,
        )

    async def fetch(self, place: Remote, start: int, stop: int) -> Answer:
        bucket, key, _ = self.fs.split_path(place.url)
        asked = f"bytes={start}-{stop - 1}"
        answer = await self.fs._call_s3("get_object", Bucket=bucket, Key=key, Range=asked)
        try:
            size_bytes = _whole_size(answer.get("ContentRange"), start)
            data = await _take(place, answer["Body"].read, stop - start)
        finally:
            answer["Body"].close()
        return Answer(data, size_bytes, _stamp(answer))


class _Gcs(Store):
    # gcsfs tries each request 6 times by itself, waiting about 1, 2, 4, 8 and 16 s in between.
    tries = 1

    def __init__(self) -> None:
        import aiohttp

        # The plain class: the package's default one asks each bucket's kind over gRPC, which does not survive a fork.
        from gcsfs.core import GCSFileSystem

        self.passing = (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError)
        # It logs the tracebacks of what it raises.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        self.fs = GCSFileSystem(
            project="",
            token="anon" if os.environ.get("STORAGE_EMULATOR_HOST") else None,
            requests_timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
            ),
            skip_instance_cache=True,
            use_listings_cache=False,
        )

    async def fetch(self, place: Remote, start: int, stop: int) -> Answer:
        asked = {"Range": f"bytes={start}-{stop - 1}"}
        headers, data = await self.fs._call("GET", self.fs.url(_path(place)), headers=asked)
        size_bytes = _whole_size(headers.get("Content-Range"), start)
        return Answer(data, size_bytes, headers.get("x-goog-generation", ""))


class _Web(Store):
    def __init__(self) -> None:
        import aiohttp
        from fsspec.implementations.http import HTTPFileSystem

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        # Nothing is unpacked: a small answer could become any number of bytes.
        self.fs = HTTPFileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            client_kwargs={"timeout": timeout, "auto_decompress": False},
        )
        self.passing = (
            aiohttp.ClientConnectionError,
            aiohttp.ClientPayloadError,
            TimeoutError,
            asyncio.TimeoutError,
        )

    @asynccontextmanager
    async def _ask(self, url: str, **headers: str) -> AsyncIterator[Any]:
        import yarl

        # What is encoded stays as it is, for a signature covers it; only what no URL may hold is encoded here.
        asked = yarl.URL(quote(url, safe=string.punctuation), encoded=True)
        session = await self.fs.set_session()
        async with session.get(asked, headers={"Accept-Encoding": "identity", **headers}) as answer:
            if asked.scheme == "https" and answer.url.scheme != "https":
                raise StoreError(
                    f"{Remote(url)}: leads to an unprotected http:// address; name that one to read it"
                )
            if answer.status in (401, 403) and answer.url.path.endswith("/"):
                raise unlisted(Remote(url.partition("?")[0].rstrip("/")), f"answers {answer.status}")
            if answer.status != 416:
                answer.raise_for_status()
            yield answer

    async def look(self, place: Remote, to_read: bool = False) -> Entry:
        # Not HEAD: signed addresses are signed for GET. A folder's address ends in a slash, added by a redirect.
        async with self._ask(place.url, Range="bytes=0-0") as answer:
            if answer.status == 206:
                await _take(place, answer.content.read, 1)  # left there, it would cost the connection
            is_folder = answer.url.path.endswith("/")
            ranged = answer.headers.get("Content-Range", "").rpartition("/")[2]
            length = answer.headers.get("Content-Length", "") if answer.status == 200 else ranged
            if not length.isdecimal() and not is_folder:
                raise StoreError(
                    f"{place}: the server does not tell the file's size; download the file first"
                )
            if to_read and answer.status == 200 and length != "0" and not is_folder:
                raise no_ranges(place)
            if to_read and not is_folder:
                _check_plain(place, answer.headers)
            return Entry(place.name, is_folder, 0 if is_folder else int(length), _stamp(answer.headers))

    async def entries(self, place: Remote) -> list[Entry]:
        base, query = place.halves
        async with self._ask(f"{base}/{query}") as answer:
            if answer.content_type != "text/html":
                raise unlisted(place, f"sends {answer.content_type}, not a page that lists files")
            _check_plain(place, answer.headers)
            page, folder = bytearray(), str(answer.url.with_query(None))
            await _fill(page, answer.content.read, MOST_PAGE_BYTES)
            if len(page) > MOST_PAGE_BYTES:
                raise StoreError(
                    f"{place}: the page that lists its files has over {MOST_PAGE_BYTES >> 20} MiB; name the files"
                )
        # Always UTF-8, as links are for servers: a page's own charset may be one that takes hours to read.
        found = list(islice(_HREF.finditer(page.decode(errors="replace")), MOST_LINKS + 1))
        if len(found) > MOST_LINKS:
            raise StoreError(f"{place}: its page has over {MOST_LINKS} links; name the files")
        links = {urljoin(folder, html.unescape(link[1])) for link in found}
        # Parents, other sites and the links that sort a listing drop out.
        ends = {link.removeprefix(folder) for link in links if link.startswith(folder)}
        names = {unquote(end) for end in ends if not re.search("[?#]", end)}
        folders = [
            Entry(name[:-1], True, 0, "") for name in names if name.endswith("/") and _is_name(name[:-1])
        ]
        several = asyncio.Semaphore(ASKED_AT_ONCE)

        async def look(name: str) -> Entry:
            async with several:
                return await self.look(place / name)

        return folders + await asyncio.gather(*(look(name) for name in names if _is_name(name)))

    async def fetch(self, place: Remote, start: int, stop: int) -> Answer:
        async with self._ask(place.url, Range=f"bytes={start}-{stop - 1}") as answer:
            if answer.status == 200:  # everything is on its way, and left there
                raise no_ranges(place)
            stamp = _stamp(answer.headers)
            if answer.status == 416:
                raise changed(place)
            _check_plain(place, answer.headers)
            size_bytes = _whole_size(answer.headers.get("Content-Range"), start)
            return Answer(await _take(place, answer.content.read, stop - start), size_bytes, stamp)


# Which package each scheme needs, what connects to it, and what begins the names of the settings it reads.
_KINDS: dict[str, tuple[str, Callable[[], Store], tuple[str, ...]]] = {
    "s3": ("s3fs", _S3, ("AWS_",)),
    "gs": ("gcsfs", _Gcs, ("GOOGLE_", "STORAGE_")),
    "http": ("aiohttp", _Web, ()),
}
_KINDS |= {"gcs": _KINDS["gs"], "https": _KINDS["http"]}
# Kept to the end: see the module's docstring on forks.
_connected: dict[tuple[Any, ...], Store] = {}


def connect(place: Remote) -> Store:
    """Give the store of a place, connected with the settings of the environment as they are now.

    Raises:
        StoreError: the package for it is not installed.
    """
    package, kind, settings = _KINDS[place.scheme]
    found = sorted(item for item in os.environ.items() if item[0].startswith(settings)) if settings else []
    key = (os.getpid(), kind, *found)
    if key not in _connected:
        try:
            store = kind()
        except ImportError as error:
            raise StoreError(
                f"{place}: needs the package {package} ({error}): pip install '{package}'"
            ) from error
        _connected.setdefault(key, store)
    return _connected[key]


def submit(place: Remote, step: Callable[[Store], Awaitable[Result]]) -> Future[Result]:
    """Begin a request, which goes on beside the caller; passing failures are met by trying again.

    The result raises :class:`~vshard.base.errors.StoreError`, :class:`AbsentError` where nothing is at the place.
    """
    store = connect(place)

    async def persist() -> Result:
        for done in range(1, store.tries + 1):
            try:
                return await step(store)
            except Exception as error:
                if done == store.tries or not may_pass(error, store.passing):
                    raise told(place, error, store.passing, done) from error
            await asyncio.sleep(FIRST_DELAY_SECONDS * 2 ** (done - 1))
        raise AssertionError("the last try returns or raises")

    return asyncio.run_coroutine_threadsafe(persist(), store.fs.loop)


def result_of(future: Future[Result]) -> Result:
    """Wait for a request; an interruption of the wait ends the request too."""
    try:
        while not wait([future], _LOOK_SECONDS).done:
            pass
        return future.result()
    except BaseException:
        future.cancel()
        raise


def ask(place: Remote, step: Callable[[Store], Awaitable[Result]]) -> Result:
    """Make a request and wait for its result; see :func:`submit`."""
    return result_of(submit(place, step))


@contextmanager
def telling(place: Remote) -> Iterator[None]:
    """Turn what a store's package raises in a block into a StoreError."""
    try:
        yield
    except Exception as error:
        raise told(place, error, connect(place).passing, 1) from error


def _path(place: Remote) -> str:
    return place.url.partition("://")[2]


def _is_name(name: str) -> bool:
    # A store may hold names that lead elsewhere on a disk.
    return name not in ("", ".", "..") and not set("/\\") & set(name)


def _stamp(facts: Mapping[str, Any]) -> str:
    found = (facts.get(name) for name in ("generation", "ETag", "etag", "Last-Modified"))
    return str(next(filter(None, found), "")).strip('"')


def _entry(name: str, info: Mapping[str, Any]) -> Entry:
    if info["type"] == "directory":
        return Entry(name, True, 0, "")
    return Entry(name, False, int(info["size"]), _stamp(info))


def _whole_size(content_range: str | None, start: int) -> int:
    """Read ``bytes 0-9/200``: the size of the whole file, here 200."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range or "")
    if found is None or int(found[1]) != start:
        raise ValueError(f"was asked for the bytes from {start} and announced {content_range or 'no range'}")
    return int(found[2])


def _check_plain(place: Remote, headers: Mapping[str, str]) -> None:
    encoding = headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise compressed(place, encoding)


async def _fill(data: bytearray, read: Callable[[int], Awaitable[bytes]], most: int) -> None:
    """Add an answer's body to ``data``, to its end or to one byte more than ``most``."""
    while len(data) <= most and (piece := await read(min(most + 1 - len(data), _PIECE_BYTES))):
        data += piece


async def _take(place: Remote, read: Callable[[int], Awaitable[bytes]], length: int) -> bytes:
    data = bytearray()
    try:
        await _fill(data, read, length)
        if len(data) < length:
            raise EOFError
    except Exception as error:
        raise CutError(f"sent {len(data)} of {length} bytes") from error
    if len(data) > length:
        raise too_long(place, length)
    return bytes(data)
