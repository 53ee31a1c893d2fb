"""Records that move from train/ to eval/: chosen here, moved by ``move.py``.

Each record, or each video, has a rank that depends on its name and the seed alone; those of the lowest ranks move. So
the choice is a function of the keys in both splits, of the number asked and of the seed, whatever forms the records
have; and moving 100 and later 200 is moving 200 at once.

By video: videos are taken in the order of their ranks until eval/ holds as many records as asked. One that would bring
more than one and a half times what is still wanted is passed over; if they run out, the smallest of those passed over
is taken.

What was decided is written down before anything moves and removed at the end, so a stopped command is finished by
running it again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import DatasetError, OptionError, OutputError, VshardError
from ..base.locks import only_one
from ..base.report import Report
from ..base.seeds import derived_seed
from ..base.stores import Place, facts, list_folder, make_place, read_file, remove, write_whole
from ..records import names
from .holdings import SPLITS, Holdings, check_whole, look, read_each
from .listing import tell_origin
from .move import move, plan_move, read_plan
from .videos import Origin, video_ids, video_names

# Files of a store or folder that are read at a time.
JOBS = 8
# Of videos that would bring more than this times what is wanted, others are taken first.
OVERSHOOT = 1.5
STATE_BYTES_MOST = 64_000_000
PLAN_FILE, LOCK_FILE = "split.json", "split.lock"


@dataclass(frozen=True)
class SplitOptions:
    """What ``vshard split`` is asked: ``records`` in eval/ in the end; ``shard_bytes`` at most for new shards there."""

    data: Place
    records: int = 200
    by_video: bool = False
    seed: int = 71
    dry_run: bool = False
    shard_bytes: int = 10**9

    def choice(self) -> dict[str, Any]:
        """Give the options that decide what moves."""
        return {"eval": self.records, "by_video": self.by_video, "seed": self.seed}


@dataclass(frozen=True)
class Side:
    """What one split holds."""

    records: int
    videos: int
    size_bytes: int


@dataclass(frozen=True)
class Outcome:
    """What moved (or would), and what the splits hold then.

    ``keys``: sorted. ``videos``: what each of their videos is called and how many of its records moved.
    ``shared_videos`` are in both splits; ``shared_records`` too, and count for eval/ only.
    """

    keys: tuple[str, ...]
    videos: tuple[tuple[str, int], ...]
    train: Side
    evaluation: Side
    shared_videos: int
    shared_records: int


@dataclass(frozen=True, repr=False)
class Dataset:
    """Both splits as they are: the sizes of their records, and each record's video."""

    train: Holdings
    evaluation: Holdings
    train_sizes: Mapping[str, int]
    eval_sizes: Mapping[str, int]
    videos: Mapping[str, str]
    video_names: Mapping[str, str]

    @property
    def movable(self) -> set[str]:
        """The records of train/ that are not in eval/ too."""
        return self.train_sizes.keys() - self.eval_sizes.keys()

    def __repr__(self) -> str:
        return f"Dataset({self.train!r}, {self.evaluation!r})"


def split(options: SplitOptions, report: Report) -> Outcome:
    """Move records from ``data/train`` to ``data/eval`` until that holds as many as asked; or finish doing so.

    Raises:
        OptionError: an option is out of its range, or nothing would be left to train on.
        DatasetError: there is no train/, something in it is not finished, a record is in two of its shards, a
            link leads out of ``data``, or a video is in both splits already.
        RecordError: a record is damaged.
        ShardError: a shard is damaged.
        OutputError: another split is not finished, or something cannot be written.
        StoreError: a store cannot be reached, or not be written to.
    """
    _check(options)
    plan_place = options.data / names.STATE_FOLDER / PLAN_FILE
    with _alone(options):
        plan = read_plan(plan_place)
        if plan is not None and plan.choice != options.choice():
            raise OutputError(
                f"{plan_place}: another split is half done; finish it with: {_command_of(plan.choice, options.data)}"
            )
        if plan is None:
            _refuse_unfinished(options.data / "train")
        dataset = _look(options.data, report)
        if plan is not None and (lost := sorted({*plan.keys} - dataset.videos.keys())):
            raise DatasetError(
                f"{plan_place}: record {lost[0]} is in neither split; remove this file, no record is lost by it"
            )
        if plan is None:
            keys = _choose(dataset, options)
            plan = plan_move(keys, dataset.train, dataset.evaluation, options.shard_bytes, options.choice())
            if keys and not options.dry_run:
                check_whole(dataset.train, keys, JOBS, report)
                write_whole(plan_place, plan.to_bytes())
        if plan.keys and not options.dry_run:
            move(plan, options.data / "train", options.data / "eval", report)
            remove(plan_place)
    return _outcome(dataset, plan.keys)


def choose_records(keys: Collection[str], wanted: int, seed: int) -> list[str]:
    """Give the ``wanted`` keys of the lowest ranks, sorted."""
    return sorted(_ranked(keys, seed)[:wanted])


def choose_videos(counts: Mapping[str, int], wanted: int, seed: int) -> list[str]:
    """Give the videos to take for at least ``wanted`` records, in the order they are taken; all if that is too few.

    ``counts``: each video's records.
    """
    taken: list[str] = []
    passed: list[str] = []
    left = wanted
    for video in _ranked(counts, seed):
        if left <= 0:
            return taken
        if counts[video] > OVERSHOOT * left:
            passed.append(video)
        else:
            taken.append(video)
            left -= counts[video]
    if left > 0 and passed:
        taken.append(min(passed, key=counts.__getitem__))
    return taken


def _ranked(keys: Collection[str], seed: int) -> list[str]:
    return sorted(keys, key=lambda key: (derived_seed(seed, "split", key), key))


def _check(options: SplitOptions) -> None:
    if options.records < 1:
        raise OptionError(f"--eval {options.records}: allowed is 1 or more")
    train = options.data / "train"
    there = facts(train)
    if there is None or not there.is_folder:
        if options.data.name in SPLITS and facts(options.data) is not None:
            raise DatasetError(
                f"{options.data}: is a split of a dataset; give the folder that holds train/: {options.data.parent}"
            )
        raise DatasetError(f"{train}: no such folder; give the folder that holds train/ (and eval/)")
    for name in ("train", "eval", names.STATE_FOLDER):
        root = options.data
        if isinstance(root, Path) and not (root / name).resolve().is_relative_to(root.resolve()):
            raise DatasetError(
                f"{root / name}: is a link that leads out of {root}; put the folder itself there"
            )


@contextmanager
def _alone(options: SplitOptions) -> Iterator[None]:
    """Keep a second split out of a local folder; a trial run changes nothing, not even by locking."""
    state = options.data / names.STATE_FOLDER
    if options.dry_run:
        yield
        return
    make_place(state if isinstance(state, Path) else options.data)
    with only_one(state / LOCK_FILE, "splitting") if isinstance(state, Path) else nullcontext():
        yield


def _refuse_unfinished(train: Place) -> None:
    """Refuse while a run that makes records of train/ is not finished: it goes on from what it has made."""
    state = train / names.STATE_FOLDER
    if facts(state) is None:
        return
    for entry in list_folder(state):
        if entry.is_folder or not entry.name.endswith(".json"):
            continue
        try:
            content = json.loads(read_file(state / entry.name, STATE_BYTES_MOST))
        except (ValueError, RecursionError):
            content = {"complete": False}
        if isinstance(content, dict) and content.get("complete") is False:
            raise DatasetError(
                f"{state / entry.name}: the records of {entry.name.removesuffix('.json')} are not all made; finish "
                "that first: run the same vshard generate again"
            )


def _look(data: Place, report: Report) -> Dataset:
    """Look into both splits.

    What is damaged is an error, as it may be what should move; but of a record on its way between two folders of a
    store one copy may be in pieces.
    """
    train, evaluation = (look(data / name, JOBS, report) for name in ("train", "eval"))
    origins: list[Origin] = []
    failed: dict[str, VshardError] = {}
    for held in (train, evaluation):
        for damage in held.damage.values():
            raise damage
        for key, told in read_each(held, held.forms(), tell_origin, JOBS, report).items():
            if isinstance(told, Origin):
                origins.append(told)
            else:
                failed[key] = told
    for key in failed.keys() - {origin.key for origin in origins}:
        raise failed[key]
    videos = video_ids(origins)
    dataset = Dataset(
        train, evaluation, train.sizes(), evaluation.sizes(), videos, video_names(origins, videos)
    )
    if not dataset.train_sizes:
        raise DatasetError(f"{train.place}: holds no records; make some with: vshard generate")
    return dataset


def _choose(dataset: Dataset, options: SplitOptions) -> list[str]:
    """Give the keys that move, sorted."""
    movable, held = dataset.movable, len(dataset.eval_sizes)
    wanted = options.records - held
    counts = Counter(dataset.videos[key] for key in movable)
    if options.by_video:
        _refuse_shared(dataset, counts)
    if wanted <= 0:
        return []
    if not options.by_video:
        if wanted >= len(movable):
            raise _too_many(dataset, options, held + len(movable) - 1)
        return choose_records(movable, wanted, options.seed)
    videos = choose_videos(counts, wanted, options.seed)
    if len(videos) == len(counts):
        last = counts[videos[-1]] if videos else 0
        raise _too_many(dataset, options, held + len(movable) - last)
    chosen = set(videos)
    return sorted(key for key in movable if dataset.videos[key] in chosen)


def _too_many(dataset: Dataset, options: SplitOptions, allowed: int) -> OptionError:
    movable, held = dataset.movable, len(dataset.eval_sizes)
    has = f"train/ holds {len(movable)} records"
    if options.by_video:
        has += f" of {len({dataset.videos[key] for key in movable})} videos"
    way = f"allowed is --eval {allowed}" if options.by_video else f"allowed is at most {allowed}"
    advice = f"{way}, or make more records" if allowed > held else "make more records first"
    return OptionError(
        f"--eval {options.records}: {has} and eval/ {held}, so none would be left to train on; {advice}"
    )


def _refuse_shared(dataset: Dataset, counts: Mapping[str, int]) -> None:
    there = Counter(dataset.videos[key] for key in dataset.eval_sizes)
    shared = sorted(counts.keys() & there.keys(), key=lambda video: (dataset.video_names[video], video))
    if shared:
        first = shared[0]
        others = f"; so have {len(shared) - 1} more" if shared[1:] else ""
        raise DatasetError(
            f"{dataset.video_names[first]}: this video has {counts[first]} records in train/ and {there[first]} in "
            f"eval/{others}; --by-video parts no video: bring its records to one side first, or leave --by-video out"
        )


def _outcome(dataset: Dataset, keys: Collection[str]) -> Outcome:
    """Tell what the splits hold once ``keys`` have moved, whether or not some had moved before."""
    here, there = dataset.train_sizes, dataset.eval_sizes
    sizes = {key: max(here.get(key, 0), there.get(key, 0)) for key in here.keys() | there.keys()}
    evaluation = dataset.eval_sizes.keys() | set(keys)
    train = dataset.train_sizes.keys() - evaluation
    videos = dataset.videos
    shared = {videos[key] for key in train} & {videos[key] for key in evaluation}

    moved = Counter(videos[key] for key in keys)

    def side(some: Collection[str]) -> Side:
        return Side(len(some), len({videos[key] for key in some}), sum(sizes[key] for key in some))

    return Outcome(
        tuple(keys),
        tuple(sorted((dataset.video_names[video], count) for video, count in moved.items())),
        side(train),
        side(evaluation),
        len(shared),
        len(dataset.train_sizes.keys() & dataset.eval_sizes.keys() - set(keys)),
    )


def _command_of(choice: Mapping[str, Any], data: Place) -> str:
    by_video = " --by-video" if choice["by_video"] else ""
    return f"vshard split -i {data} --eval {choice['eval']}{by_video} --seed {choice['seed']}"
