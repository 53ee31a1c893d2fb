"""Files and folders wherever they are: one set of functions for local paths and for stores.

What a user types becomes a :data:`Place` (:func:`parse_place`, or :func:`expand` for patterns), and everything else
here takes one. Local paths never go through fsspec, and fsspec loads only when a store is first asked (``remote.py``).
A write is whole or not at all on both sides: a local file is renamed into place, an object appears with the request
that ends its upload. What goes wrong is one line: StoreError for reading and for stores, OutputError for writing here.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import io
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from braceexpand import braceexpand

from . import files
from .errors import OptionError, StoreError, VshardError
from .places import Entry, Place, Remote, parse_place
from .refusals import AbsentError
from .remote import ask
from .remote_files import RemoteFile, check_writable, try_upload, uploading

__all__ = [
    "Entry",
    "Place",
    "Remote",
    "expand",
    "facts",
    "list_folder",
    "make_place",
    "open_reading",
    "parse_place",
    "read_file",
    "remove",
    "write_whole",
    "writing_whole",
]

MOST_NAMES = 100_000
_BRACE_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")


def list_folder(place: Place) -> list[Entry]:
    """Give what is in a folder, sorted by name; links are followed, those that lead nowhere are left out.

    A web folder costs a request for each file, as its page does not tell sizes.

    Raises:
        StoreError: it is not there, not a folder, or cannot be listed.
    """
    if isinstance(place, Remote):
        return sorted(ask(place, lambda store: store.entries(place)), key=lambda entry: entry.name)
    with _reading(place), os.scandir(place) as inside:
        found = [_local_facts(item) for item in sorted(inside, key=lambda item: item.name)]
    return [entry for entry in found if entry is not None]


def facts(place: Place) -> Entry | None:
    """Give the facts of a file or folder, None where nothing is.

    Raises:
        StoreError: it may not be asked, or the store is not reachable.
    """
    if isinstance(place, Path):
        with _reading(place):
            return _local_facts(place)
    try:
        return ask(place, lambda store: store.look(place))
    except AbsentError:
        return None


def open_reading(place: Place) -> BinaryIO:
    """Open a file for reading at any position; in a store it is read by ranges, with at most 16 MiB in memory.

    Raises:
        StoreError: it is not there, not a file, may not be read, or its server does not serve ranges. Reading raises
            it too: when the store fails five times over, or the file changed meanwhile.
    """
    if isinstance(place, Remote):
        return cast(BinaryIO, RemoteFile(place))
    with _reading(place):
        return io.BufferedReader(files.open_plain(place))


def read_file(place: Place, most_bytes: int) -> bytes:
    """Read a whole file.

    Raises:
        StoreError: as :func:`open_reading`, or it holds more than ``most_bytes``, which is found before reading.
    """
    found = facts(place)
    if found is not None and found.size_bytes > most_bytes:
        raise StoreError(f"{place}: holds {found.size_bytes} bytes, more than the {most_bytes} allowed here")
    with open_reading(place) as file, _reading(place):
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise StoreError(f"{place}: grew past the {most_bytes} bytes allowed here while it was read")
    return data


@contextmanager
def writing_whole(place: Place) -> Iterator[BinaryIO]:
    """Write a file that appears, replacing what was there, only when the block ends without an error.

    The file can be written and asked for its position, not read or sought. A local link is followed.

    Raises:
        OutputError: a local file cannot be written.
        StoreError: an object cannot be written, or its store can only be read.
    """
    if isinstance(place, Remote):
        with uploading(place) as upload:
            yield upload
        return
    path = place.resolve()
    part = files.part_of(path)
    with files.writing(path):
        if path.exists() and not path.is_file():
            raise IsADirectoryError(errno.EISDIR, "not a plain file")
        file = io.BufferedWriter(files.SteadyFile(part))
    try:
        with file:
            yield file
        files.finish_file(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # Writing fails without naming a file; what names one is a failure of the block's own.
        if isinstance(error, OSError) and not isinstance(error, VshardError) and error.filename is None:
            with files.writing(path):
                raise
        raise


def write_whole(place: Place, data: bytes) -> None:
    """Write a file whole or not at all; see :func:`writing_whole`."""
    with writing_whole(place) as file:
        file.write(data)


def remove(place: Place) -> None:
    """Remove a file; that there is none is fine.

    Raises:
        OutputError, StoreError: it cannot be removed.
    """
    if isinstance(place, Path):
        with files.writing(place):
            place.unlink(missing_ok=True)
        return
    check_writable(place)
    try:
        ask(place, lambda store: store.remove(place))
    except AbsentError:
        return


def make_place(place: Place) -> None:
    """Make a folder and check that files can be made in it; a store needs no folders, so there it only checks.

    Raises:
        OutputError, StoreError: nothing can be written there.
    """
    if isinstance(place, Remote):
        try_upload(place / ".vshard-write-test")
    else:
        files.make_folder(place)


def expand(text: str) -> list[Place]:
    """Give the places that a pattern names, sorted: ``{000000..000012}``, ``{a,b}``, ``*``, ``?`` and ``[a-c]``.

    Names from braces are taken as they are; the others are those that exist (a ``*`` does not match a leading dot or
    a ``/``). What is there under exactly this name, or holds no pattern, is that one place. Web servers take braces
    only, for they need not list their files.

    Raises:
        OptionError: the pattern is not valid, matches nothing, or names more than 100,000 places.
    """
    first = parse_place(text)
    if isinstance(first, Path) and first.exists():
        return [first]
    sizes = [abs(int(stop) - int(start)) + 1 for start, stop in _BRACE_RANGE.findall(text)]
    try:
        # braceexpand makes a list of each range before it gives the first name.
        names = (
            None
            if math.prod(sizes) > MOST_NAMES
            else list(islice(braceexpand(text, escape=False), MOST_NAMES + 1))
        )
    except ValueError as error:
        raise OptionError(f"{first}: a {{ or }} without its other half; write {{000000..000012}}") from error
    if names is None or len(names) > MOST_NAMES:
        raise OptionError(f"{first}: names more than {MOST_NAMES} files; split it into several patterns")
    found = {place for name in names for place in _matching(parse_place(name))}
    if not found:
        raise OptionError(f"{first}: matches no file; check the pattern and the folder")
    if len(found) > MOST_NAMES:
        raise OptionError(f"{first}: matches more than {MOST_NAMES} files; split it into several patterns")
    return sorted(found, key=lambda place: place.url if isinstance(place, Remote) else str(place))


def _matching(place: Place) -> list[Place]:
    if isinstance(place, Path):
        # Path.glob takes no absolute pattern.
        return [Path(name) for name in glob.glob(str(place))] if glob.has_magic(str(place)) else [place]  # noqa: PTH207
    if place.is_web:
        path = place.halves[0].partition("://")[2].partition("/")[2]
        if "*" in path or "[" in path:
            raise OptionError(
                f"{place}: a web server takes only {{000000..000012}} and {{a,b}}; write the names so"
            )
        return [place]
    if not glob.has_magic(place.url):
        return [place]
    bucket, *parts = place.url.partition("://")[2].split("/")
    if glob.has_magic(bucket):
        raise OptionError(f"{place}: a pattern in the name of the bucket; write the bucket's name in full")
    found = [Remote(f"{place.scheme}://{bucket}")]
    for depth, part in enumerate(parts, 1):
        if glob.has_magic(part):
            found = [inside for folder in found for inside in _named(folder, part, depth < len(parts))]
        else:
            found = [folder / part for folder in found]
    if not glob.has_magic(parts[-1]):
        found = [inside for inside in found if facts(inside) is not None]
    return list(found)


def _named(folder: Remote, pattern: str, only_folders: bool) -> list[Remote]:
    try:
        entries = list_folder(folder)
    except AbsentError:
        return []
    hidden = pattern.startswith(".")
    return [
        folder / entry.name
        for entry in entries
        if fnmatch.fnmatchcase(entry.name, pattern)
        and (entry.is_folder or not only_folders)
        and (hidden or not entry.name.startswith("."))
    ]


def _local_facts(path: Path | os.DirEntry[str]) -> Entry | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    is_folder = stat.S_ISDIR(found.st_mode)
    return Entry(path.name, is_folder, 0 if is_folder else found.st_size, str(found.st_mtime_ns))


@contextmanager
def _reading(place: Place) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a StoreError that names the place."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {place}: {error.strerror or error}") from error
