"""Memory that loader workers write samples into and the trainer reads them from, without a copy between.

A worker takes a free slot of its own, decodes a sample right into it and sends its number; the trainer's arrays lie in
the slot, which is free again once the last of them is gone. One process marks a slot as taken, the other as free, so
no lock is needed. A worker without a free slot, since the trainer holds on to many, sends the sample itself.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from .samples import CROP_PX, FRAMES, Pictures, Sample, new_pictures

_RGB = (FRAMES, CROP_PX, CROP_PX, 3)
_HOLE = (FRAMES, CROP_PX, CROP_PX)
_RGB_BYTES = math.prod(_RGB)
_SLOT_BYTES = _RGB_BYTES + math.prod(_HOLE)
_NOTHING = np.empty(0, np.uint8)


class InSlot(NamedTuple):
    """A sample on its way: its pictures lie in slot ``number``, ``rest`` is all else."""

    number: int
    rest: Sample


class Slots:
    """``each`` slots of 3.1 MB for each of ``workers``; goes to them when they are started."""

    def __init__(self, workers: int, each: int) -> None:
        """Share the memory.

        Raises:
            OSError, RuntimeError: the system has none to share.
        """
        self._each, self._count = each, workers * each
        size = self._count * (1 + _SLOT_BYTES)
        self._shared = _Mapped(size) if sys.platform == "linux" else _Tensor(size)

    def draw(self, make: Callable[[Pictures], Sample]) -> Sample | InSlot:
        """Make a sample in a free slot of this worker, or in memory of its own where none is free."""
        info = get_worker_info()
        first = 0 if info is None else info.id * self._each
        taken = self._taken
        number = next((n for n in range(first, first + self._each) if not taken[n]), None)
        if number is None:
            return make(new_pictures())
        taken[number] = 1
        try:
            return InSlot(number, replace(make(_pictures(self._slot(number))), rgb=_NOTHING, hole=_NOTHING))
        except BaseException:
            taken[number] = 0
            raise

    def open(self, sent: InSlot) -> Sample:
        """Give the sample that was sent; its slot is free once nothing refers to the sample's arrays any more."""
        # Arrays cut out of this one refer to it, not to the memory under it.
        whole = np.frombuffer(self._slot(sent.number).data, np.uint8)
        weakref.finalize(whole, self._taken.__setitem__, sent.number, 0).atexit = False
        return replace(sent.rest, **_pictures(whole)._asdict())

    @property
    def _taken(self) -> np.ndarray:
        """One byte a slot, 1 for taken."""
        return self._shared.memory[: self._count]

    def _slot(self, number: int) -> np.ndarray:
        start = self._count + number * _SLOT_BYTES
        return self._shared.memory[start : start + _SLOT_BYTES]


class _Mapped:
    """Zeroed memory that other processes get as an open file; in none of /dev/shm, of which containers have 64 MB."""

    def __init__(self, size: int) -> None:
        file = os.memfd_create("vshard-samples")
        os.ftruncate(file, size)
        self._map(file)

    def __getstate__(self) -> Any:
        from multiprocessing.reduction import DupFd  # not there on every system

        return DupFd(self._file)

    def __setstate__(self, file: Any) -> None:
        self._map(file.detach())

    def _map(self, file: int) -> None:
        self._file = file
        self.memory = np.frombuffer(mmap.mmap(file, 0), np.uint8)
        weakref.finalize(self, os.close, file)


class _Tensor:
    """Zeroed memory shared the way of torch, on other systems."""

    def __init__(self, size: int) -> None:
        self._tensor = torch.zeros(size, dtype=torch.uint8).share_memory_()

    @property
    def memory(self) -> np.ndarray:
        return self._tensor.numpy()


def _pictures(memory: np.ndarray) -> Pictures:
    """Lay pictures into a slot's bytes."""
    return Pictures(memory[:_RGB_BYTES].reshape(_RGB), memory[_RGB_BYTES:].view(bool).reshape(_HOLE))
