"""Any number of ranks and workers sees one and the same epoch, unbroken or resumed; damaged states are refused."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from making import Listening, make_record
from test_training_stream import Seen, order, saved, seen

from vshard.base.errors import CheckpointError
from vshard.base.report import Silent
from vshard.records.record import SCHEMA, Record, metadata_bytes, write_record
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.stream.hardness import LossReport
from vshard.stream.loader import Rank
from vshard.stream.order import BLOCK_SHARDS
from vshard.stream.split import Split, open_split
from vshard.stream.training import Gather, StreamOptions, TrainingStream

RECORDS = 20


class Forms(dict[str, Split]):
    """Splits by their form; short where an example that fails is told."""

    def __repr__(self) -> str:
        return f"Forms({', '.join(self)})"


def record_like(base: Record, key: str) -> Record:
    facts = {"schema": SCHEMA, "key": key, "frames": len(base.frames), "height": 256, "width": 256}
    return replace(base, key=key, metadata=metadata_bytes(facts))


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    """The same 20 records in folders; in shards of 1, more than are mixed at a time; in shards of 3; in both forms."""
    root = tmp_path_factory.mktemp("forms")
    bases = [make_record(f"a_{number:06d}", size=256, frames=12 + number, seed=number) for number in range(3)]
    for number in range(RECORDS):
        write_record(root / "folders", record_like(bases[number % 3], f"a_{number:06d}"))
    for size, shuffle in ((1, None), (3, 7)):
        options = PackOptions((str(root / "folders"),), root / f"by_{size}", "train", shard_records=size)
        pack(replace(options, shuffle=shuffle), Silent())
    some = tuple(str(root / "folders" / f"a_{number:06d}") for number in range(0, RECORDS, 2))
    pack(PackOptions(some, root / "mixed", "train", shard_records=4, shuffle=3), Silent())
    for number in range(1, RECORDS, 2):
        key = f"a_{number:06d}"
        shutil.copytree(root / "folders" / key, root / "mixed" / key)
    found = Forms({path.name: open_split(path) for path in sorted(root.iterdir())})
    assert {len(split) for split in found.values()} == {RECORDS}
    assert len(found["by_1"].shards) == RECORDS > BLOCK_SHARDS
    return found


def ranks_of(
    split: Split, options: StreamOptions, count: int, report: Silent | None = None
) -> list[TrainingStream]:
    """The streams of all ranks of a run."""
    report = report or Silent()
    return [
        TrainingStream(split, replace(options, rank=Rank(number, count)), report) for number in range(count)
    ]


def together(ranks: list[TrainingStream]) -> Gather:
    """A gather that gives what all ranks noted, in the order of the ranks."""
    noted: list[LossReport] = []

    def keep(own: LossReport) -> list[LossReport]:
        noted.append(own)
        return [own]

    for rank in ranks:
        rank.state_dict(keep)
    return lambda own: noted


def in_turn(ranks: list[TrainingStream], turns: int | None = None) -> list[Seen]:
    """What the ranks' next turns give, the first turn of each rank first; all of the epoch without ``turns``."""
    lists = [[seen(sample) for sample in itertools.islice(rank, turns)] for rank in ranks]
    assert len({len(found) for found in lists}) == 1, "ranks out of step"
    assert len({rank.position for rank in ranks}) == 1
    return [found for turn in zip(*lists, strict=True) for found in turn]


def note(ranks: list[TrainingStream], samples: list[Seen]) -> None:
    """Note a loss of each sample that counts, on the rank that had it; what it is depends on the sample alone."""
    for number, sample in enumerate(samples):
        if sample.weight:
            ranks[number % len(ranks)].note_loss(sample.position, (sample.pictures % 1000) / 100)


def end_epoch(ranks: list[TrainingStream]) -> float:
    """End the epoch on all ranks; gives the mean loss, which they agree on."""
    gather = together(ranks)
    (mean,) = {rank.end_epoch(gather) for rank in ranks}
    return mean


def some_of(forms: Forms, form: str, left_out: list[int]) -> Split:
    return forms[form].without(np.array([f"a_{number:06d}" for number in left_out], str))


def without_fillers(samples: list[Seen], length: int) -> list[Seen]:
    return [sample for sample in samples if sample.position < length]


some_forms = st.sampled_from(["folders", "by_1", "by_3", "mixed"])
# All but 9 at most, which decode in a moment.
few_left = st.sets(st.integers(0, RECORDS - 1), min_size=RECORDS - 9, max_size=RECORDS - 1).map(sorted)
some_ranks = st.integers(1, 4)
laws = settings(max_examples=15, deadline=None)


@laws
@given(some_forms, few_left, some_ranks, st.integers(0, 5), st.integers(1, 3))
@example("by_1", [], 3, 1, 1)  # more than one block of shards
@example("folders", list(range(1, RECORDS)), 4, 1, 1)  # a single record: three fillers
def test_ranks_share_an_epoch_out(
    forms: Forms, form: str, left_out: list[int], count: int, seed: int, epoch: int
) -> None:
    split = some_of(forms, form, left_out)
    options = StreamOptions(seed=seed, hard_examples=False)
    alone, ranks = ranks_of(split, options, 1), ranks_of(split, options, count)
    for _ in range(epoch - 1):
        end_epoch(alone)
        end_epoch(ranks)
    length = len(split)
    found = in_turn(ranks)
    assert len(found) == count * len(ranks[0]) == count * -(-length // count)
    assert {rank.position for rank in ranks} == {length}
    assert [sample.position for sample in found] == list(range(len(found)))
    assert [sample.weight for sample in found] == [float(number < length) for number in range(len(found))]
    assert sorted(sample.key for sample in found if sample.weight) == split.keys.tolist()
    keys = [sample.key for sample in found]
    assert keys[:length] == order(alone[0])
    assert all(sample.key == keys[sample.position % length] for sample in found)
    assert without_fillers(found, length) == in_turn(alone)


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (1, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize("form", ["by_3", "mixed"])
def test_workers_change_nothing(forms: Forms, form: str, count: int, workers: int) -> None:
    options = StreamOptions(seed=4, draws=13)
    split = forms[form]
    whole = in_turn(ranks_of(split, options, 1))
    here = in_turn(ranks_of(split, options, count))
    assert in_turn(ranks_of(split, replace(options, workers=workers), count)) == here
    assert without_fillers(here, 13) == whole


def check_resumed(
    split: Split,
    options: StreamOptions,
    *,
    before: tuple[int, int],
    after: tuple[int, int],
    turns: int,
    first: int,
) -> None:
    """Stop after ``turns`` of epoch ``first``, go on with other (ranks, workers): all that follows is as unbroken."""
    unbroken = ranks_of(split, options, 1)
    ranks = ranks_of(split, replace(options, workers=before[1]), before[0])
    for _ in range(first - 1):
        samples = in_turn(unbroken)
        note(unbroken, samples)
        note(ranks, in_turn(ranks))
        assert end_epoch(unbroken) == end_epoch(ranks)
    whole = in_turn(unbroken)
    length = len(whole)
    note(unbroken, whole)
    turns = min(turns, len(ranks[0]))
    begun = in_turn(ranks, turns)
    note(ranks, begun)
    states = [rank.state_dict(together(ranks)) for rank in ranks]
    assert all(str(state) == str(states[0]) for state in states), "one saves for all"
    resumed = ranks_of(split, replace(options, workers=after[1]), after[0])
    for rank in resumed:
        rank.load_state_dict(saved(states[0]))
        assert (rank.epoch, rank.position) == (first, min(turns * before[0], length))
    rest = in_turn(resumed)
    note(resumed, rest)
    assert without_fillers(begun + rest, length) == whole
    assert all(sample.weight == float(sample.position < length) for sample in rest)
    assert end_epoch(unbroken) == end_epoch(resumed)
    assert [order(rank) for rank in resumed] == [order(unbroken[0])] * after[0]
    samples = in_turn(resumed)
    assert without_fillers(samples, length) == in_turn(unbroken)
    note(resumed, samples)
    note(unbroken, without_fillers(samples, length))
    assert end_epoch(unbroken) == end_epoch(resumed)
    assert [order(rank) for rank in resumed] == [order(unbroken[0])] * after[0]


@settings(laws, max_examples=7)
@given(
    some_forms,
    few_left,
    st.one_of(st.none(), st.integers(1, 12)),
    st.booleans(),
    some_ranks,
    some_ranks,
    st.integers(0, 12),
    st.integers(1, 2),
)
@example("by_1", [], 25, True, 2, 3, 4, 2)
@example("mixed", [1, 2], None, False, 1, 4, 17, 1)
@example("by_3", list(range(12)), None, True, 3, 1, 99, 1)  # stopped after the last sample
def test_stopped_anywhere_it_goes_on_with_other_ranks(
    forms: Forms,
    form: str,
    left_out: list[int],
    draws: int | None,
    hard: bool,
    before: int,
    after: int,
    turns: int,
    first: int,
) -> None:
    options = StreamOptions(seed=2, draws=draws, hard_examples=hard)
    check_resumed(
        some_of(forms, form, left_out),
        options,
        before=(before, 0),
        after=(after, 0),
        turns=turns,
        first=first,
    )


@pytest.mark.parametrize(("before", "after"), [((1, 2), (1, 1)), ((2, 1), (1, 0)), ((1, 0), (3, 1))])
def test_stopped_anywhere_it_goes_on_with_other_workers(
    forms: Forms, before: tuple[int, int], after: tuple[int, int]
) -> None:
    check_resumed(forms["mixed"], StreamOptions(seed=3), before=before, after=after, turns=3, first=1)


def test_ranks_keep_step_past_a_skipped_record(forms: Forms, tmp_path: Path) -> None:
    root = tmp_path / "train"
    keys = [f"a_{number:06d}" for number in range(7)]
    for key in keys:
        shutil.copytree(forms["folders"].root / key, root / key)
    member = root / keys[3] / "0004_M.png"
    member.write_bytes(member.read_bytes()[:-20])
    split = open_split(root)
    ranks = ranks_of(split, StreamOptions(seed=1, hard_examples=False, on_error="skip"), 2)
    found = in_turn(ranks)
    at = order(ranks[0]).index(keys[3])
    assert [sample.position for sample in found] == list(range(8))
    assert [sample.weight for sample in found] == [float(number not in (at, 7)) for number in range(8)]
    assert (found[at].key, sorted(found[n].key for n in range(7) if n != at)) == (
        keys[4],
        [*keys[:3], *keys[4:]],
    )
    (line,) = ranks[at % 2].skipped
    assert line.startswith(f"{member}: ") and ranks[1 - at % 2].skipped == []
    note(ranks, found)
    end_epoch(ranks)
    assert order(ranks[0]) == order(ranks[1])


def begun(split: Split, **asked: Any) -> tuple[dict[str, Any], StreamOptions]:
    """The state of a run after three samples of its second epoch, their losses noted."""
    options = StreamOptions(**{"seed": 1, **asked})
    ranks = ranks_of(split, options, 1)
    for turns in (None, 3):
        note(ranks, in_turn(ranks, turns))
        if turns is None:
            end_epoch(ranks)
    state = saved(ranks[0].state_dict())
    assert (state["epoch"], state["position"]) == (2, 3) and len(state["losses"]) == 3
    return state, options


NONE = torch.zeros(0, dtype=torch.int64)
OTHERS: dict[str, Callable[[Forms], tuple[Split, dict[str, Any]]]] = {
    "records lost": lambda forms: (some_of(forms, "by_1", [4]), {}),
    "seed": lambda forms: (forms["by_1"], {"seed": 2}),
    "draws": lambda forms: (forms["by_1"], {"draws": 17}),
    "sampling": lambda forms: (forms["by_1"], {"hard_examples": False}),
    "place of records": lambda forms: (forms["by_3"], {}),
    # The same records in the same order, but in 1 shard, not in 20, of which 16 are mixed at a time.
    "size of shards": lambda forms: (forms["folders"], {}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_of_other_data_the_epoch_starts_over(forms: Forms, other: str) -> None:
    state, _ = begun(forms["by_1"])
    split, asked = OTHERS[other](forms)
    options = StreamOptions(**{"seed": 1, **asked})
    report = Listening()
    found = TrainingStream(split, options, report)
    found.load_state_dict(state)
    assert (found.epoch, found.position) == (2, 0)
    (warning,) = report.warned
    assert "epoch 2 starts over" in warning and "\n" not in warning
    # The losses of the first epoch stay with their records; those of the one that starts over are noted again.
    plain = TrainingStream(split, options, Silent())
    plain.load_state_dict(state | {"position": 0, "positions": NONE, "losses": torch.zeros(0)})
    assert order(found) == order(plain)
    found.end_epoch()
    plain.end_epoch()
    assert order(found) == order(plain)


def test_of_other_data_a_whole_epoch_needs_no_warning(forms: Forms) -> None:
    split = forms["by_1"]
    ranks = ranks_of(split, StreamOptions(seed=1), 1)
    note(ranks, in_turn(ranks, 5))
    end_epoch(ranks)
    report = Listening()
    grown = TrainingStream(forms["by_3"], StreamOptions(seed=1), report)
    grown.load_state_dict(saved(ranks[0].state_dict()))
    assert (grown.epoch, grown.position, report.warned) == (2, 0, [])


@pytest.fixture(scope="module")
def state(forms: Forms) -> dict[str, Any]:
    return begun(forms["by_3"])[0]


some_odd = st.sampled_from(
    [
        *(None, "many", [], ["a"], [1, 2, 3], {}, -1, 1.5, float("nan"), float("inf")),
        *(torch.zeros(2, 3), torch.zeros(3, 1), torch.zeros(3), torch.full((3,), np.nan)),
        torch.zeros(3, requires_grad=True),
    ]
)


PLACES = [
    *((name,) for name in ("epoch", "position", "order", "skipped", "history", "positions", "losses")),
    *(("history", name) for name in ("hashes", "losses")),
]


def fits(place: tuple[str, ...], odd: Any) -> bool:
    """Whether a value that is odd elsewhere is right here, of a state with three losses."""
    right = {
        ("order",): isinstance(odd, str),
        ("skipped",): isinstance(odd, list) and all(isinstance(line, str) for line in odd),
        ("losses",): isinstance(odd, torch.Tensor) and odd.tolist() == [0, 0, 0] and not odd.requires_grad,
    }
    return right.get(place, False)


def changed(state: dict[str, Any], place: tuple[str, ...], *value: Any) -> dict[str, Any]:
    """A state with another value at a place, or without the place."""
    copy = state | {"history": dict(state["history"])}
    inside = copy["history"] if len(place) == 2 else copy
    del inside[place[-1]]
    inside.update({place[-1]: one for one in value})  # noqa: B035
    return copy


def check_refused(split: Split, damaged: Any) -> None:
    """A damaged state is a CheckpointError, and leaves the stream as it was."""
    found = TrainingStream(split, StreamOptions(seed=1), Silent())
    before = str(found.state_dict())
    with pytest.raises(CheckpointError) as caught:
        found.load_state_dict(damaged)
    assert "\n" not in str(caught.value)
    assert str(found.state_dict()) == before


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_a_state_that_lacks_something_is_refused(
    forms: Forms, state: dict[str, Any], place: tuple[str, ...]
) -> None:
    check_refused(forms["by_3"], changed(state, place))


@settings(laws, max_examples=80)
@given(st.sampled_from(PLACES), some_odd)
def test_a_state_of_odd_values_is_refused(
    forms: Forms, state: dict[str, Any], place: tuple[str, ...], odd: Any
) -> None:
    if not fits(place, odd):
        check_refused(forms["by_3"], changed(state, place, odd))


@pytest.mark.parametrize("damaged", [None, [], "state", 3, {}, torch.zeros(2)], ids=repr)
def test_what_is_no_state_is_refused(forms: Forms, damaged: Any) -> None:
    check_refused(forms["by_3"], damaged)
