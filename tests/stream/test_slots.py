"""Samples cross the process border in shared memory, and no sample is ever written over while somebody has it."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch
from making import make_record

from vshard.base.report import Silent
from vshard.records.record import write_record
from vshard.stream.samples import Pictures, Sample
from vshard.stream.slots import InSlot, Slots
from vshard.stream.split import Split, open_split
from vshard.stream.training import StreamOptions, TrainingStream


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    root = tmp_path_factory.mktemp("split")
    for number in range(3):
        write_record(root, make_record(f"a_{number:06d}", size=256, frames=12, seed=number))
    return open_split(root)


def filled(value: int, into: Pictures) -> Sample:
    into.rgb[:] = value
    into.hole[:] = value % 2
    ones = np.ones(3, np.float32)
    return Sample(into.rgb, into.hole, False, ones, ones, "a", value)


def draw(slots: Slots, value: int) -> Sample | InSlot:
    return slots.draw(lambda into: filled(value, into))


def sent(slots: Slots, value: int) -> InSlot:
    drawn = draw(slots, value)
    assert isinstance(drawn, InSlot) and drawn.rest.rgb.nbytes == drawn.rest.hole.nbytes == 0
    return drawn


def test_a_slot_is_free_again_when_the_last_array_of_its_sample_is_gone() -> None:
    slots = Slots(1, 2)
    first, second = slots.open(sent(slots, 3)), slots.open(sent(slots, 4))
    assert (first.rgb == 3).all() and first.hole.all() and (second.rgb == 4).all() and not second.hole.any()
    own = draw(slots, 5)
    assert isinstance(own, Sample) and (own.rgb == 5).all()
    frame, tensor = first.rgb[7], torch.from_numpy(second.hole)[2:4]
    del first, second
    assert isinstance(draw(slots, 6), Sample)
    assert (frame == 3).all() and not tensor.any()
    del frame
    number = sent(slots, 7).number
    assert isinstance(draw(slots, 8), Sample)
    del tensor
    assert sent(slots, 9).number == 1 - number


def test_a_sample_that_cannot_be_made_leaves_its_slot_free() -> None:
    slots = Slots(1, 1)

    def fail(into: Pictures) -> Sample:
        into.rgb[:] = 1
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            slots.draw(fail)
    sent(slots, 1)


def _send_two(slots: Slots, pipe: Connection) -> None:
    for value in (10, 11):
        pipe.send(draw(slots, value))
    assert pipe.recv() == "let go"
    pipe.send(draw(slots, 12))


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_every_way_to_start_a_process_shares_the_memory(method: str) -> None:
    slots = Slots(1, 1)
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=_send_two, args=(slots, there))
    process.start()
    first, second = here.recv(), here.recv()
    assert isinstance(first, InSlot) and isinstance(second, Sample)
    sample = slots.open(first)
    assert (sample.rgb == 10).all() and (second.rgb == 11).all() and second.hole.all()
    del sample
    here.send("let go")
    third = here.recv()
    assert isinstance(third, InSlot) and (slots.open(third).rgb == 12).all()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("kept", [0, 2, 40])
def test_samples_that_are_kept_stay_as_they_were(split: Split, kept: int) -> None:
    def taken(workers: int) -> list[Sample]:
        return list(TrainingStream(split, StreamOptions(seed=2, draws=40, workers=workers), Silent()))

    want = [sample.rgb.sum(dtype=np.int64) for sample in taken(0)]
    held: list[Sample] = []
    sums = []
    for sample in TrainingStream(split, StreamOptions(seed=2, draws=40, workers=2), Silent()):
        held = [*held, sample][-kept:] if kept else []
        assert not kept or held[-1] is sample
        sums.append(sample.rgb.sum(dtype=np.int64))
    assert sums == want
    assert [sample.rgb.sum(dtype=np.int64) for sample in held] == want[40 - kept :]


def test_no_sample_that_is_let_go_needs_memory_of_its_own(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    into_array = Slots.open
    monkeypatch.setattr(Slots, "open", lambda slots, one: opened.append(one) or into_array(slots, one))
    stream = TrainingStream(split, StreamOptions(seed=2, draws=30, workers=2), Silent())
    assert [sample.position for sample in stream] == [one.rest.position for one in opened] == list(range(30))
