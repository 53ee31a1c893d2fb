"""Records and videos in a list: what each is, where it lies, and how large its holes are.

What is told comes from the metadata; the areas of the masks of records that have none (the original's) are counted
from the masks themselves, which costs about a millisecond a frame in place of one small read a record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

import numpy as np

from ..base.errors import DatasetError, VshardError
from ..base.report import Report
from ..base.stores import Place
from ..records import names
from ..records.png import MAX_PIXELS, MAX_SIDE_PX, decode_png, png_size
from ..records.record import parse_metadata
from .holdings import Copy, find, read_each
from .videos import Origin, file_hash_of, video_ids, video_names


@dataclass(frozen=True)
class Facts:
    """What is known of a record; "" where its metadata does not tell a name.

    ``mask_area_px`` counts the pixels of all its masks together that are to be filled.
    """

    frames: int
    height: int
    width: int
    mask_area_px: int
    view: str = ""
    source: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Listed:
    """One record of a list: ``forms`` are "folder" and names of shards, ``facts`` what was found or why nothing was."""

    place: Place
    key: str
    forms: tuple[str, ...]
    size_bytes: int
    facts: Facts | VshardError


@dataclass(frozen=True)
class Totals:
    """Some records together; the mask's area is that of the mean frame, and its part of the picture."""

    records: int
    videos: int
    size_bytes: int
    mask_area_px: float | None
    mask_part: float | None


@dataclass(frozen=True)
class Video:
    """All records of one video: ``splits`` and ``views`` count them."""

    name: str
    file_hashes: tuple[str, ...]
    splits: dict[str, int]
    views: dict[str, int]
    totals: Totals


@dataclass(frozen=True)
class Listing:
    """Records by place and key; videos by name; shards and folders of which nothing can be told, a line each."""

    records: tuple[Listed, ...]
    videos: tuple[Video, ...]
    damage: tuple[str, ...]
    totals: Totals

    @property
    def damaged(self) -> int:
        """How many records, shards and folders cannot be read."""
        return len(self.damage) + sum(isinstance(record.facts, VshardError) for record in self.records)


def list_records(texts: Iterable[str], only: str | None, jobs: int, report: Report) -> Listing:
    """List the records of datasets, splits, record folders, shards or patterns of them.

    Args:
        texts: as a user writes them.
        only: a pattern of keys (``*``, ``?``, ``[…]``), None for all.
        jobs: how many files are read at a time.
        report: told how many records were read, and of records that are in train/ and in eval/ too.

    Raises:
        DatasetError: there is no record, or none that is named as ``only`` says.
        StoreError: a store cannot be reached.
    """
    records: list[Listed] = []
    damage: list[str] = []
    begun = False
    for held in find(texts, jobs, report):
        everything = held.forms()
        forms = {key: f for key, f in everything.items() if only is None or fnmatchcase(key, only)}
        begun = begun or (only is not None and any(fnmatchcase(key, f"{only}*") for key in everything))
        sizes = held.sizes()
        told = read_each(held, forms, describe, jobs, report)
        records += [Listed(held.place, key, forms[key], sizes[key], told[key]) for key in forms]
        damage += map(str, held.damage.values())
    if only is not None and not records:
        advice = f"for all names that begin so write '{only}*'" if begun else "leave it out to see all"
        raise DatasetError(f"--only {only}: no record is named so; {advice}")
    _warn_of_shared(records, report)
    origins = [_origin(record) for record in records]
    videos = video_ids(origins)
    return Listing(
        tuple(records),
        _videos(records, videos, video_names(origins, videos)),
        tuple(damage),
        _totals(records, videos),
    )


def describe(copy: Copy) -> Facts:
    """Tell what is known of a record.

    Raises:
        RecordError: its metadata is damaged, or a mask that must be counted is.
    """
    metadata = read_metadata(copy)
    frames = sum(name.endswith("_C.png") for name in copy.files)
    height, width = _size_px(copy, metadata)
    areas = _inner(metadata, "mask").get("area_px")
    if (
        not isinstance(areas, list)
        or len(areas) != frames
        or not all(_is_count(area, MAX_PIXELS) for area in areas)
    ):
        areas = [_area_px(copy, names.mask_file(frame)) for frame in range(frames)]
    view = metadata.get("view")
    origin = origin_of(copy.key, metadata)
    return Facts(
        frames,
        height,
        width,
        sum(areas),
        view if isinstance(view, str) else "",
        origin.source,
        origin.fingerprint,
    )


def tell_origin(copy: Copy) -> Origin:
    """Tell which video a record is of.

    Raises:
        RecordError: its metadata is damaged.
    """
    return origin_of(copy.key, read_metadata(copy))


def read_metadata(copy: Copy) -> dict[str, Any]:
    """Read a record's metadata; empty where there is none.

    Raises:
        RecordError: it is damaged.
    """
    if names.METADATA_FILE not in copy.files:
        return {}
    return parse_metadata(copy.read(names.METADATA_FILE), copy.where)


def origin_of(key: str, metadata: dict[str, Any]) -> Origin:
    """Give which video a record is of, by its metadata as far as it tells."""
    source = _inner(metadata, "source")
    fingerprint, name = source.get("fingerprint"), source.get("name")
    return Origin(
        key,
        fingerprint if isinstance(fingerprint, str) else "",
        name if isinstance(name, str) else "",
    )


def _warn_of_shared(records: Sequence[Listed], report: Report) -> None:
    """Warn of records that are in train/ and in eval/ of one dataset."""
    keys: dict[Place, set[str]] = {}
    for record in records:
        keys.setdefault(record.place, set()).add(record.key)
    for split, inside in keys.items():
        shared = inside & keys.get(split.parent / "eval", set()) if split.name == "train" else None
        if shared:
            report.warn(
                f"{split.parent}: {len(shared)} of the records of train/ are in eval/ too, the first is {min(shared)}; "
                "training counts them for eval only"
            )


def _origin(record: Listed) -> Origin:
    known = record.facts
    return (
        Origin(record.key, known.fingerprint, known.source)
        if isinstance(known, Facts)
        else Origin(record.key)
    )


def _videos(records: Sequence[Listed], videos: dict[str, str], called: dict[str, str]) -> tuple[Video, ...]:
    grouped: dict[str, list[Listed]] = {}
    for record in records:
        grouped.setdefault(videos[record.key], []).append(record)
    found = [
        Video(
            name=called[video],
            file_hashes=tuple(sorted({file_hash_of(record.key) for record in some} - {""})),
            splits=dict(Counter(record.place.name for record in some)),
            views=dict(
                sorted(
                    Counter(r.facts.view for r in some if isinstance(r.facts, Facts) and r.facts.view).items()
                )
            ),
            totals=_totals(some, videos),
        )
        for video, some in grouped.items()
    ]
    return tuple(sorted(found, key=lambda video: (video.name, video.file_hashes)))


def _totals(records: Sequence[Listed], videos: dict[str, str]) -> Totals:
    known = [record.facts for record in records if isinstance(record.facts, Facts)]
    area = sum(facts.mask_area_px for facts in known)
    frames = sum(facts.frames for facts in known)
    pixels = sum(facts.frames * facts.height * facts.width for facts in known)
    return Totals(
        len(records),
        len({videos[record.key] for record in records}),
        sum(record.size_bytes for record in records),
        area / frames if frames else None,
        area / pixels if pixels else None,
    )


def _size_px(copy: Copy, metadata: dict[str, Any]) -> tuple[int, int]:
    height, width = metadata.get("height"), metadata.get("width")
    if _is_count(height, MAX_SIDE_PX) and _is_count(width, MAX_SIDE_PX) and height * width > 0:
        return height, width
    first = names.frame_file(0)
    return png_size(copy.read(first), f"{copy.where}/{first}")


def _area_px(copy: Copy, name: str) -> int:
    mask = decode_png(copy.read(name), f"{copy.where}/{name}")
    # Training takes the first channel of a mask in colour.
    return int(np.count_nonzero(mask if mask.ndim == 2 else mask[..., 0]))


def _is_count(value: Any, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _inner(metadata: dict[str, Any], name: str) -> dict[str, Any]:
    inner = metadata.get(name)
    return inner if isinstance(inner, dict) else {}
