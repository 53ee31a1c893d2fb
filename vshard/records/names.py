"""Names of records and of the files in them: the one home of every member name and suffix.

A record's key is ``{prefix}_{model_type}_{FILE_HASH}_{SEQUENCE_NO}`` (facts of the original, section 1; the
number is ours: six digits, unique per view and crop, never dependent on which other records were kept).
"""

from __future__ import annotations

import hashlib
import os
import re

from ..base.errors import OptionError

METADATA_FILE = "meta.json"
STATE_FOLDER = ".vshard"
SHARD_SUFFIX = ".tar"
# For moving and archiving; training reads plain ones.
COMPRESSED_SUFFIX = ".tar.zst"
INDEX_SUFFIX = ".idx"
SHARD_DIGITS = 6

VIEWS = ("backward", "forward")

# A dot would end the key in WebDataset; 80 characters leave room for `.0000_C.png` in a tar header's 100.
KEY_LENGTH_MAX = 80
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_MEMBER = re.compile(r"(?P<key>[A-Za-z0-9_-]+)\.(?P<part>json|\d{4,}_[CM]\.png)")
_SHARD = re.compile(r"(?P<stem>.+)-\d{6,}\.tar(\.zst)?")
_FRAME = re.compile(r"(\d{4,})_([CM])\.png")
# What is told of a stranger's text is cut to this.
_MOST_TOLD = 500


def file_hash(dataset_path: str) -> str:
    """Give the eight hex digits that stand for a video in its records' names.

    They are the first of MD5(base name + "iw3"): only the base name counts, so two videos of one name collide.
    """
    name = os.path.basename(dataset_path)  # noqa: PTH119  (a path's trailing slash must give an empty name)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"{dataset_path!r}: the file's name is not UTF-8; rename it") from error
    return hashlib.md5(f"{name}iw3".encode(), usedforsecurity=False).hexdigest()[:8]


def record_stem(prefix: str, model_type: str, dataset_path: str) -> str:
    """Give what the keys of one run share: ``{prefix}_{model_type}_{FILE_HASH}`` (no prefix: without it).

    Raises:
        OptionError: the prefix holds another character than ``A-Z a-z 0-9 _ -``, or is too long.
    """
    if prefix and not _NAME.fullmatch(prefix):
        raise OptionError(
            f"--prefix {prefix!r}: only letters A-Z a-z, digits, '_' and '-' are allowed; choose another prefix"
        )
    stem = "_".join(part for part in (prefix, model_type, file_hash(dataset_path)) if part)
    longest = KEY_LENGTH_MAX - 7
    if len(stem) > longest:
        raise OptionError(
            f"--prefix {prefix!r}: {stem!r} has {len(stem)} characters, at most {longest} are allowed; "
            "choose a shorter prefix"
        )
    return stem


def record_key(stem: str, *, sequence: int, view: str, sample: int, num_samples: int) -> str:
    """Give the key of one record; ``sequence`` and ``sample`` count from 0."""
    number = (sequence * len(VIEWS) + VIEWS.index(view)) * num_samples + sample
    return f"{stem}_{number:06d}"


def is_record_key(name: str) -> bool:
    """Tell whether ``name`` may name a record."""
    return len(name) <= KEY_LENGTH_MAX and _NAME.fullmatch(name) is not None


def frame_file(index: int) -> str:
    """Give the name of colour frame ``index``."""
    return f"{index:04d}_C.png"


def mask_file(index: int) -> str:
    """Give the name of mask ``index``."""
    return f"{index:04d}_M.png"


def is_frame_or_mask(name: str) -> bool:
    """Tell whether a file name is that of a colour frame or a mask."""
    return _FRAME.fullmatch(name) is not None


def member_name(key: str, file: str) -> str:
    """Give the shard member that holds a record's ``file``: ``{key}.json`` or ``{key}.0000_C.png``."""
    return f"{key}.json" if file == METADATA_FILE else f"{key}.{file}"


def split_member(name: str) -> tuple[str, str] | None:
    """Give (key, file) of a shard member, or None where the name is not one of ours."""
    match = _MEMBER.fullmatch(name)
    if match is None or not is_record_key(match["key"]):
        return None
    return match["key"], METADATA_FILE if match["part"] == "json" else match["part"]


def shard_file(stem: str, number: int, suffix: str = SHARD_SUFFIX) -> str:
    """Give the file name of shard ``number`` (from 0)."""
    return f"{stem}-{number:0{SHARD_DIGITS}d}{suffix}"


def is_shard(name: str) -> bool:
    """Tell whether a file name is that of a shard, compressed or not."""
    return name.endswith((SHARD_SUFFIX, COMPRESSED_SUFFIX))


def shard_stem(name: str) -> str | None:
    """Give what the shards of one series share, or None where ``name`` is not one of a series."""
    match = _SHARD.fullmatch(name)
    return None if match is None else match["stem"]


def printable(text: str) -> str:
    """Give a text that was made of a stranger's names and metadata on one line, without codes for the terminal.

    What cannot be printed is escaped as in Python; more than 500 characters are cut.
    """
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:_MOST_TOLD])
    return shown if len(text) <= _MOST_TOLD else f"{shown} …"
