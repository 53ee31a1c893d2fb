"""One record: a sequence's frames with their masks and what is known of them.

A record is handled as the bytes of its files, so that what is packed and unpacked stays the same to the bit.
On disk it is a folder ``{key}/`` with ``0000_C.png, 0000_M.png, …, meta.json``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import files
from ..base.errors import RecordError, StoreError
from ..base.files import open_plain
from ..base.stores import Place, facts, list_folder, read_file, write_whole
from . import names
from .png import check_png, png_size

SCHEMA = "vshard.record/1"
# Far above any real record file, far below what would hurt: bounds memory before a byte is read.
MAX_FILE_BYTES = 1 << 28


@dataclass(frozen=True, repr=False)
class Record:
    """The files of one record, as bytes.

    ``metadata`` is the JSON of ``meta.json``; ``frames`` and ``masks`` are PNG files, as many of each.
    ``derived`` says that there was no ``meta.json`` (the original writes none) and the metadata was made from
    the pictures; such a record is written back without one.
    """

    key: str
    metadata: bytes
    frames: tuple[bytes, ...]
    masks: tuple[bytes, ...]

    def files(self) -> dict[str, bytes]:
        """Give file name -> bytes in the order of the shard: metadata, then frame and mask by turns."""
        result = {names.METADATA_FILE: self.metadata}
        for index, (frame, mask) in enumerate(zip(self.frames, self.masks, strict=True)):
            result[names.frame_file(index)] = frame
            result[names.mask_file(index)] = mask
        return result

    @property
    def derived(self) -> bool:
        """Whether the metadata was made from the pictures because there was none."""
        return bool(json.loads(self.metadata).get("derived", False))

    def __repr__(self) -> str:
        return f"Record({self.key}: {len(self.frames)} frames)"


def metadata_bytes(metadata: dict[str, Any]) -> bytes:
    """Write metadata as JSON, one way only: sorted keys, no NaN, one trailing newline."""
    return (json.dumps(metadata, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_metadata(data: bytes, name: str) -> dict[str, Any]:
    """Read metadata and check what every reader relies on.

    Raises:
        RecordError: not JSON of our schema; ``name`` says which record.
    """
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{name}: its metadata is not readable JSON; make or fetch the record again"
        ) from error
    schema = metadata.get("schema") if isinstance(metadata, dict) else None
    if schema != SCHEMA:
        raise RecordError(
            f"{name}: its metadata has schema {schema!r}, this vshard reads {SCHEMA!r}; "
            "use the version of vshard that made it"
        )
    assert isinstance(metadata, dict)
    return metadata


def metadata_digest(metadata: bytes) -> str:
    """Give 32 hex digits of BLAKE2 over a record's metadata."""
    return hashlib.blake2b(metadata, digest_size=16).hexdigest()


def from_files(key: str, contents: dict[str, bytes], where: str) -> Record:
    """Build a record out of its files, checking that names and counts fit together.

    Raises:
        RecordError: frames and masks do not pair up from 0000 on, or a file is not one of a record's.
    """
    count = _count_frames(contents, where)
    for name, data in contents.items():
        if name != names.METADATA_FILE:
            check_png(data, f"{where}/{name}")
    frames = tuple(contents[names.frame_file(i)] for i in range(count))
    masks = tuple(contents[names.mask_file(i)] for i in range(count))
    metadata = contents.get(names.METADATA_FILE)
    if metadata is None:
        metadata = _derive_metadata(key, count, frames[0], f"{where}/{names.frame_file(0)}")
    else:
        parse_metadata(metadata, where)
    return Record(key, metadata, frames, masks)


def _count_frames(found: Iterable[str], where: str) -> int:
    """Count the frames among a record's files, checking that each has its mask and none is missing."""
    pictures = set(found) - {names.METADATA_FILE}
    count = sum(name.endswith("_C.png") for name in pictures)
    expected = {name for i in range(count) for name in (names.frame_file(i), names.mask_file(i))}
    if count == 0 or pictures != expected:
        odd = sorted(pictures ^ expected)[:1] or ["no frames"]
        raise RecordError(
            f"{where}: {count} frames and {len(pictures) - count} other pictures do not pair up ({odd[0]}); "
            "a record holds 0000_C.png, 0000_M.png, 0001_C.png, …; remove it or make it again"
        )
    return count


def _derive_metadata(key: str, count: int, frame: bytes, name: str) -> bytes:
    height, width = png_size(frame, name)
    return metadata_bytes(
        {"schema": SCHEMA, "key": key, "derived": True, "frames": count, "height": height, "width": width}
    )


def list_record_folders(split: Place) -> list[Place]:
    """Give the record folders of a split, sorted by name.

    Raises:
        RecordError: a folder that holds frames has a name that no shard member can carry.
        StoreError: the split cannot be listed.
    """
    folders = []
    for entry in list_folder(split):
        folder = split / entry.name
        if not entry.is_folder or entry.name == names.STATE_FOLDER or not holds_frames(folder):
            continue
        if not names.is_record_key(entry.name):
            raise RecordError(
                f"{folder}: this record's name may hold only A-Z a-z 0-9 _ - and {names.KEY_LENGTH_MAX} "
                "characters; rename the folder"
            )
        folders.append(folder)
    return folders


def holds_frames(folder: Place) -> bool:
    """Tell whether a folder is a record's: it holds colour frames or masks."""
    return any(names.is_frame_or_mask(entry.name) for entry in list_folder(folder))


def read_folder(folder: Place) -> Record:
    """Read one record's folder; files that are not a record's (thumbnails, notes) are left out.

    Raises:
        RecordError: as :func:`from_files`, or a file is larger than 256 MiB.
        StoreError: a file cannot be reached.
    """
    contents = dict(folder_files(folder))
    metadata = contents.pop(names.METADATA_FILE)
    pictures = tuple(contents.values())
    return Record(folder.name, metadata, pictures[0::2], pictures[1::2])


def folder_files(folder: Place) -> Iterator[tuple[str, bytes]]:
    """Give the files of a record's folder one by one, in the order of :meth:`Record.files`; see :func:`read_folder`."""
    try:
        found = [entry.name for entry in list_folder(folder) if is_record_file(entry.name)]
        count = _count_frames(found, str(folder))
        first = _read_picture(folder / names.frame_file(0))
        if names.METADATA_FILE in found:
            place = folder / names.METADATA_FILE
            metadata = _read(place)
            if parse_metadata(metadata, str(folder)).get("derived", False):
                raise RecordError(
                    f"{place}: says that it was derived, as only a shard's may; remove this file"
                )
        else:
            metadata = _derive_metadata(folder.name, count, first, str(folder / names.frame_file(0)))
        yield names.METADATA_FILE, metadata
        for i in range(count):
            yield names.frame_file(i), first if i == 0 else _read_picture(folder / names.frame_file(i))
            yield names.mask_file(i), _read_picture(folder / names.mask_file(i))
    except StoreError:
        raise
    except OSError as error:
        raise RecordError(f"{error.filename}: cannot be read ({error.strerror}); check the record") from error


def _read_picture(place: Place) -> bytes:
    data = _read(place)
    check_png(data, str(place))
    return data


def _read(place: Place) -> bytes:
    return read_plain_file(place) if isinstance(place, Path) else read_file(place, MAX_FILE_BYTES)


def is_record_file(name: str) -> bool:
    """Tell whether a file in a record's folder is part of the record."""
    return name == names.METADATA_FILE or names.is_frame_or_mask(name)


def read_plain_file(path: Path) -> bytes:
    """Read a file of a record that is a plain file of at most 256 MiB.

    Raises:
        RecordError: it is not.
        OSError: it cannot be read.
    """
    try:
        with open_plain(path) as file:
            if os.fstat(file.fileno()).st_size <= MAX_FILE_BYTES:
                return file.readall()
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EISDIR):
            raise
    raise RecordError(f"{path}: is no plain file of at most {MAX_FILE_BYTES} bytes; remove it or the record")


def write_record(split: Place, record: Record) -> None:
    """Write ``split/{key}/`` whole or not at all; a folder that is there already must be the same.

    A store has no folders: there each file appears whole, and a rerun writes the files that are missing.

    Raises:
        RecordError: the folder is there with other contents.
        OutputError: it cannot be written.
        StoreError: the store cannot be reached, or not be written to.
    """
    contents = record.files()
    if record.derived:
        del contents[names.METADATA_FILE]
    if not isinstance(split, Path):
        _write_to_store(split / record.key, contents)
        return
    target = split / record.key
    if target.exists():
        if read_folder(target).files() != record.files():
            raise _other_contents(target)
        return
    files.write_folder(target, contents, scratch=split / names.STATE_FOLDER)


def _write_to_store(target: Place, contents: dict[str, bytes]) -> None:
    there = {name for name in contents if facts(target / name) is not None}
    for name in sorted(there):
        if read_file(target / name, MAX_FILE_BYTES) != contents[name]:
            raise _other_contents(target)
    for name in contents:
        if name not in there:
            write_whole(target / name, contents[name])


def _other_contents(target: Place) -> RecordError:
    return RecordError(
        f"{target}: is there already with other contents; move it away or choose another folder"
    )


def remove_record(split: Path, key: str) -> None:
    """Remove ``split/{key}/`` so that a reader sees it whole or not at all."""
    scratch = split / names.STATE_FOLDER / (key + files.PART_SUFFIX)
    with files.writing(split / key):
        files.make_own_folder(scratch.parent)
        shutil.rmtree(scratch, ignore_errors=True)
        (split / key).rename(scratch)
        shutil.rmtree(scratch)
