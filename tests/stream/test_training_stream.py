"""One process's stream: losses reach the right records, bad records are met as asked, odd states are refused."""

from __future__ import annotations

import io
import itertools
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from making import Listening, make_record
from store_folders import one_line

from vshard.base.errors import DatasetError, OptionError, RecordError
from vshard.base.report import Silent
from vshard.records.names import member_name
from vshard.records.record import write_record
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.stream.hardness import LossReport
from vshard.stream.loader import SKIPPED_IN_A_ROW_MAX, Rank
from vshard.stream.samples import Sample
from vshard.stream.split import IN_FOLDER, Split, open_split
from vshard.stream.training import StreamOptions, TrainingStream


class Seen(NamedTuple):
    """What is compared of a sample; ``pictures``: its pixels, holes and colour change."""

    position: int
    key: str
    weight: float
    pictures: int


def seen(sample: Sample) -> Seen:
    pictures = zlib.crc32(sample.rgb.tobytes() + sample.hole.tobytes())
    colour = repr((sample.gray, sample.scale.tolist(), sample.bias.tolist())).encode()
    return Seen(sample.position, sample.key, sample.weight, zlib.crc32(colour, pictures))


def stream(split: Split, report: Silent | None = None, **asked: Any) -> TrainingStream:
    return TrainingStream(split, StreamOptions(**{"seed": 1, **asked}), report or Silent())


def order(of: TrainingStream) -> list[str]:
    """The keys of the epoch, position by position."""
    return of.split.keys[of.split.by_shard[of.plan.records(0, len(of.plan))]].tolist()


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint gives back of a state."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders") / "train"
    for number in range(8):
        write_record(root, make_record(f"a_{number:06d}", size=256, frames=12 + number % 3, seed=number))
    return root


@pytest.fixture(scope="module")
def mixed(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Six records in three shards, in another order than that of their keys, and two in folders."""
    root = tmp_path_factory.mktemp("mixed")
    sources = tuple(str(folders / f"a_{number:06d}") for number in (0, 2, 3, 4, 6, 7))
    pack(PackOptions(sources, root, "train", shard_records=2, shuffle=5), Silent())
    for number in (1, 5):
        shutil.copytree(folders / f"a_{number:06d}", root / f"a_{number:06d}")
    split = open_split(root)
    assert len(split) == 8 and len(split.shards) == 3 and (split.shard == IN_FOLDER).sum() == 2
    assert split.by_shard.tolist() != sorted(split.by_shard.tolist())
    return split


def expected_weights(keys: list[str], losses: dict[str, list[float]]) -> np.ndarray:
    """The weights of the reference (section 7), a record at a time."""
    means = {key: float(np.mean(found[-4:])) for key, found in losses.items()}
    centre = float(np.mean(list(means.values())))
    spread = float(np.std(list(means.values()), ddof=1)) + min(abs(centre) * 1e-6, 1e-6)
    weights = []
    for key in keys:
        off = min(max((means[key] - centre) / spread, -2), 2) if key in means else 2
        weights.append(min(max((off + 2) / 4 * 4 + 1, 1), 4) / 4)
    return np.array(weights)


@pytest.mark.parametrize("workers", [0, 1])
def test_losses_weigh_the_records_they_were_noted_of(mixed: Split, workers: int) -> None:
    hardness = {key: 0.1 * (1 + number) for number, key in enumerate(mixed.keys.tolist())}
    draws = 20_000
    found = stream(mixed, draws=draws, workers=workers)
    losses: dict[str, list[float]] = defaultdict(list)
    samples = iter(found)
    for sample in itertools.islice(samples, 50):
        # Losses that fall: one that was kept too long would show.
        loss = hardness[sample.key] * (1 + 5 / (1 + sample.position))
        losses[sample.key].append(loss)
        found.note_loss(sample.position, loss)
    samples.close()  # type: ignore[attr-defined]
    assert len(losses) == 8 and min(map(len, losses.values())) < 4 < max(map(len, losses.values()))
    found.end_epoch()
    keys = mixed.keys.tolist()
    weights = expected_weights(keys, losses)
    assert weights.max() == 1 and weights.min() < 0.5
    expected = weights / weights.sum() * draws
    drawn = order(found)
    times = np.array([drawn.count(key) for key in keys])
    # Chi-square of 7 degrees of freedom: above 29.9 once in 10,000 seeds. Any two records swapped give hundreds.
    assert float(((times - expected) ** 2 / expected).sum()) < 29.9
    wrong = np.roll(expected, 1)
    assert float(((times - wrong) ** 2 / wrong).sum()) > 500


def test_an_unseen_record_is_as_likely_as_the_hardest(mixed: Split) -> None:
    found = stream(mixed, draws=20_000)
    keys = order(found)
    losses: dict[str, list[float]] = defaultdict(list)
    for position, key in enumerate(keys[:200]):
        if key not in ("a_000003", "a_000005"):
            losses[key].append(0.1 + (key == "a_000001"))
            found.note_loss(position, losses[key][-1])
    found.end_epoch()
    drawn = order(found)
    times = {key: drawn.count(key) for key in mixed.keys.tolist()}
    assert expected_weights(["a_000001", "a_000003"], losses).tolist() == [1, 1]
    hardest = [times[key] for key in ("a_000001", "a_000003", "a_000005")]
    easiest = max(times[key] for key in losses if key != "a_000001")
    assert max(hardest) - min(hardest) < 5 * np.sqrt(2 * max(hardest))
    assert min(hardest) > 1.4 * easiest


def test_losses_that_are_no_numbers_say_nothing(mixed: Split) -> None:
    one, other = stream(mixed, draws=40), stream(mixed, draws=40)
    for position in range(40):
        one.note_loss(position, position / 7)
        other.note_loss(position, position / 7)
        other.note_loss(position, [np.nan, np.inf, -np.inf, 1e39][position % 4])  # the last in float32
    one.end_epoch()
    other.end_epoch()
    assert order(one) == order(other)
    untouched = stream(mixed, draws=40)
    untouched.end_epoch()
    assert order(one) != order(untouched)


def test_of_all_ranks_the_last_positions_count_and_no_fillers(mixed: Split) -> None:
    alone, ranks = stream(mixed, draws=61), [stream(mixed, draws=61, rank=Rank(n, 3)) for n in range(3)]
    reports: list[LossReport] = []
    for position in range(61):
        for found in (alone, ranks[position % 3]):
            found.note_loss(position, 1 + position % 7)
    ranks[62 % 3].note_loss(62, 1000.0)

    def keep(own: LossReport) -> list[LossReport]:
        reports.append(own)
        return [own]

    for rank in ranks:
        rank.state_dict(keep)
    alone.end_epoch()
    for rank in ranks:
        rank.end_epoch(lambda own: reports)
    assert [order(rank) for rank in ranks] == [order(alone)] * 3


def test_without_hard_examples_epochs_are_plain_whatever_the_losses(mixed: Split) -> None:
    noted, quiet = stream(mixed, hard_examples=False), stream(mixed, hard_examples=False)
    orders = []
    for _ in range(4):
        assert sorted(sample.key for sample in noted) == mixed.keys.tolist()
        orders.append(order(noted))
        assert orders[-1] == order(quiet)
        for position, key in enumerate(orders[-1]):
            noted.note_loss(position, 9.0 if key == "a_000003" else 0.1)
        noted.end_epoch()
        quiet.end_epoch()
    assert len({tuple(keys) for keys in orders}) == 4


@pytest.mark.parametrize("draws", [1, 5, 8, 19])
def test_an_epoch_has_as_many_samples_as_asked_for(mixed: Split, draws: int) -> None:
    plain = stream(mixed, draws=draws, hard_examples=False)
    found = [seen(sample) for sample in plain]
    assert len(plain) == len(found) == draws
    assert [sample.position for sample in found] == list(range(draws))
    assert {sample.weight for sample in found} == {1}
    times = [sum(sample.key == key for sample in found) for key in mixed.keys.tolist()]
    assert max(times) - min(times) <= 1
    # A record that comes again is drawn anew (of 12 frames of 256 pixels, a quarter are drawn alike).
    assert len({sample.pictures for sample in found}) > draws * 0.7
    assert len(stream(mixed, draws=draws)) == draws


def test_an_epoch_of_no_draws_is_refused(mixed: Split) -> None:
    with pytest.raises(OptionError, match="an epoch needs"):
        stream(mixed, draws=0)


def test_what_was_given_counts_as_consumed(mixed: Split) -> None:
    whole = [seen(sample) for sample in stream(mixed)]
    found = stream(mixed)
    assert found.position == 0
    pieces = []
    for count in (3, 1, 4):
        pieces += [seen(sample) for sample in itertools.islice(found, count)]
        assert found.position == len(pieces)
    assert pieces == whole
    assert list(found) == [] and found.position == 8
    found.end_epoch()
    assert (found.epoch, found.position) == (2, 0)


def test_folders_packed_into_a_few_shards_go_on(folders: Path, tmp_path: Path) -> None:
    unbroken = stream(open_split(folders), draws=12)
    for sample in itertools.islice(unbroken, 5):
        unbroken.note_loss(sample.position, 1 + sample.position)
    pack(PackOptions((str(folders),), tmp_path, "train", shard_records=1), Silent())
    report = Listening()
    packed = stream(open_split(tmp_path), report, draws=12)
    packed.load_state_dict(saved(unbroken.state_dict()))
    assert (len(packed.split.shards), packed.position, report.warned) == (8, 5, [])
    assert [seen(sample) for sample in packed] == [seen(sample) for sample in unbroken]
    assert packed.end_epoch() == unbroken.end_epoch()
    assert order(packed) == order(unbroken)


def cut_mask(root: Path, key: str) -> None:
    path = root / key / "0005_M.png"
    path.write_bytes(path.read_bytes()[:-20])


def spoil_member(split: Split, key: str, frame: int) -> str:
    """Change a byte in the middle of a colour frame in a shard; gives what the file is called."""
    record = split.keys.tolist().index(key)
    shard = split.shards[split.shard[record]]
    assert isinstance(shard, Path)
    offset, length = split.ranges[split.first[record] + frame].tolist()
    data = bytearray(shard.read_bytes())
    data[offset + length // 2] ^= 0xFF
    shard.write_bytes(data)
    return f"{shard}:{member_name(key, f'{frame:04d}_C.png')}"


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_record_is_named_to_its_member(mixed: Split, tmp_path: Path, workers: int) -> None:
    root = tmp_path / "train"
    shutil.copytree(mixed.root, root)
    split = open_split(root)
    frame = 11 if split.frame_count(4) == 12 else 2  # in every window of 12
    member = spoil_member(split, "a_000004", frame)
    damaged = stream(split, hard_examples=False, workers=workers)
    given = []
    with pytest.raises(RecordError) as caught:
        for sample in damaged:
            given.append(sample.key)
    assert one_line(caught).startswith(f"{member}: ")
    assert given == order(damaged)[: order(damaged).index("a_000004")]
    assert damaged.skipped == []


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_records_are_skipped_counted_and_replaced(
    folders: Path, tmp_path: Path, workers: int
) -> None:
    root = tmp_path / "train"
    shutil.copytree(folders, root)
    whole = [seen(sample) for sample in stream(open_split(folders), hard_examples=False)]
    # The last one's substitutes are the first records.
    bad = ("a_000002", "a_000003", "a_000007")
    for key in bad:
        cut_mask(root, key)
    report = Listening()
    found = stream(open_split(root), report, hard_examples=False, on_error="skip", workers=workers)
    given = [seen(sample) for sample in found]
    assert [sample.position for sample in given] == list(range(8))
    stands_in = {"a_000002": "a_000004", "a_000003": "a_000004", "a_000007": "a_000000"}
    for sample, untouched in zip(given, whole, strict=True):
        if untouched.key in bad:
            assert (sample.key, sample.weight) == (stands_in[untouched.key], 0)
        else:
            assert sample == untouched
    named = [str(root / key / "0005_M.png") for key in order(found) if key in bad]
    assert len(found.skipped) == len(named) == 3
    assert all(line.startswith(f"{name}: ") for line, name in zip(found.skipped, named, strict=True))
    assert report.warned == [
        f"{line} (skipped, {number} so far)" for number, line in enumerate(found.skipped, 1)
    ]
    again = stream(open_split(root), on_error="skip", hard_examples=False)
    again.load_state_dict(saved(found.state_dict()))
    assert again.skipped == found.skipped


@pytest.fixture(scope="module")
def mostly_short(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Three records that are too short, and one to stand in for them."""
    root = tmp_path_factory.mktemp("short") / "train"
    for number in range(3):
        write_record(root, make_record(f"a_{number:06d}", size=16, frames=11, seed=number))
    shutil.copytree(folders / "a_000003", root / "a_000003")
    return open_split(root)


def longest_run(keys: list[str]) -> int:
    """The most samples in a row that cannot be read of ``mostly_short``."""
    return max(len(list(run)) for bad, run in itertools.groupby(keys, lambda key: key != "a_000003") if bad)


def with_runs(split: Split, draws: int, wanted: Callable[[int], bool]) -> StreamOptions:
    """Options whose first epoch draws so many short records in a row."""
    asked = (StreamOptions(seed=seed, draws=draws, on_error="skip") for seed in itertools.count())
    return next(
        options for options in asked if wanted(longest_run(order(TrainingStream(split, options, Silent()))))
    )


def test_too_many_skipped_in_a_row_end_the_run(mostly_short: Split) -> None:
    options = with_runs(mostly_short, 40, lambda run: run > SKIPPED_IN_A_ROW_MAX)
    report = Listening()
    found = TrainingStream(mostly_short, options, report)
    given = []
    with pytest.raises(DatasetError) as caught:
        for sample in found:
            given.append(sample)
    keys = order(found)
    last = next(
        end
        for end in range(SKIPPED_IN_A_ROW_MAX, 40)
        if "a_000003" not in keys[end - SKIPPED_IN_A_ROW_MAX : end + 1]
    )
    assert len(given) == last
    assert {sample.key for sample in given} == {"a_000003"}
    assert [bool(sample.weight) for sample in given] == [key == "a_000003" for key in keys[:last]]
    text = one_line(caught)
    assert text.startswith(f"{mostly_short.root}: {SKIPPED_IN_A_ROW_MAX + 1} samples in a row cannot be read")
    assert f"{mostly_short.root}/{keys[last]}: has 11 frames" in text and "vshard verify" in text
    assert len(report.warned) == len(found.skipped) == sum(key != "a_000003" for key in keys[: last + 1])


def test_as_many_skipped_in_a_row_as_allowed_are_borne(mostly_short: Split) -> None:
    options = with_runs(mostly_short, 24, lambda run: run == SKIPPED_IN_A_ROW_MAX)
    found = TrainingStream(mostly_short, options, Silent())
    assert len(list(found)) == 24
    assert len(found.skipped) == sum(key != "a_000003" for key in order(found))


def test_where_nothing_can_stand_in_the_run_ends(mostly_short: Split) -> None:
    none_whole = mostly_short.without(np.array(["a_000003"]))
    with pytest.raises(DatasetError, match="vshard verify") as caught:
        list(stream(none_whole, on_error="skip"))
    one_line(caught)


def test_on_error_knows_two_ways() -> None:
    with pytest.raises(OptionError, match="--on-error ignore: allowed are raise, skip"):
        StreamOptions(seed=1, on_error="ignore")
