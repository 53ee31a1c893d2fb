"""Which records are of the same video, told by their metadata and names.

A record whose metadata has a fingerprint of its source is of the file with that fingerprint, whatever it was called.
Others (the original writes no metadata) are told by FILE_HASH in their key; those without one by the key less its
trailing number. Where a FILE_HASH has records of both kinds, all of them count as one video: the hash is of the file's
name alone, so they may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..records import names

# Our keys end in _{FILE_HASH}_{SEQUENCE_NO}, the original's in _{FILE_HASH}_{sequence}_{sample}.
_HASHED = re.compile(r"(?:.*_)?([0-9a-f]{8})_\d+(?:_\d+)?")
_NUMBER = re.compile(r"_?\d+$")


class Origin(NamedTuple):
    """What is known of where a record comes from; "" where its metadata does not tell."""

    key: str
    fingerprint: str = ""
    source: str = ""


def file_hash_of(key: str) -> str:
    """Give the FILE_HASH in a record's key, the last eight hex digits before its numbers; "" where there is none."""
    match = _HASHED.fullmatch(key)
    return match[1] if match is not None else ""


def stem_of(key: str) -> str:
    """Give a key without its trailing number; a key that is only a number stays."""
    return _NUMBER.sub("", key) or key


def video_ids(origins: Iterable[Origin]) -> dict[str, str]:
    """Give the video of each record: key -> a name that exactly the records of one video share.

    It is a pure function of the set of ``origins``. A key may come twice (in train/ and eval/).
    """
    known = sorted(set(origins))
    unmarked = {file_hash_of(origin.key) for origin in known if not origin.fingerprint}
    joined: dict[str, str] = {}
    firsts: dict[str, str] = {}
    for origin in known:
        labels = _labels(origin, unmarked)
        for label in labels:
            _join(joined, labels[0], label)
        _join(joined, firsts.setdefault(origin.key, labels[0]), labels[0])
    return {key: _root(joined, label) for key, label in firsts.items()}


def video_names(origins: Iterable[Origin], videos: dict[str, str]) -> dict[str, str]:
    """Give each video what to call it before people: its file's name, its FILE_HASH, or what its keys share.

    A file's name is a stranger's text: see :func:`names.printable`.
    """
    called: dict[str, str] = {}
    for origin in sorted(set(origins)):
        hashed = file_hash_of(origin.key)
        other = f"video {hashed}" if hashed else stem_of(origin.key)
        video = videos[origin.key]
        if origin.source or video not in called:
            called[video] = names.printable(origin.source) or other
    return called


def _labels(origin: Origin, unmarked: set[str]) -> list[str]:
    """Give what a record's video is known by: records with a label in common are of one video."""
    hashed = file_hash_of(origin.key)
    by_name = [f"hash {hashed}"] if hashed else [f"stem {stem_of(origin.key)}"]
    if not origin.fingerprint:
        return by_name
    return [f"fingerprint {origin.fingerprint}"] + (by_name if hashed and hashed in unmarked else [])


def _root(joined: dict[str, str], label: str) -> str:
    while joined.get(label, label) != label:
        label = joined[label]
    return label


def _join(joined: dict[str, str], one: str, other: str) -> None:
    first, second = sorted((_root(joined, one), _root(joined, other)))
    joined[first] = joined[second] = first
