"""The processes of one training: what they agree on, and what they tell one another.

``torchrun`` starts them and says by environment variables who is who; alone, a training is rank 0 of 1 and nothing
is sent. Python values and flags go over gloo on the CPU, gradients over what suits the device.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..base.devices import CPU, choose_device
from ..base.errors import OptionError, VshardError, WorkerError

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Ranks:
    """Which process of ``count`` this is, from 0; ``device`` is its own."""

    number: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.number == 0

    def gather(self, value: _Value) -> list[_Value]:
        """Give every rank's value, in their order, to every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def any(self, flags: list[bool]) -> list[bool]:
        """Tell of each flag whether some rank has it set."""
        if self.count == 1:
            return flags
        told = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return [bool(flag) for flag in told.tolist()]

    def greatest(self, value: Tensor) -> Tensor:
        """Give the largest of every rank's values, on the device, without waiting for it."""
        if self.count > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def average(self, tensors: list[Tensor]) -> None:
        """Make each tensor the mean of every rank's."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.count)

    def wait(self) -> None:
        """Wait for all ranks to come here."""
        if self.count > 1:
            dist.all_reduce(torch.zeros(1))

    def spread(self, network: nn.Module) -> nn.Module:
        """Give the network that averages its gradients over the ranks; all start with the weights of the first."""
        if self.count == 1:
            return network
        return nn.parallel.DistributedDataParallel(
            network,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )


@contextmanager
def join_ranks(gpu: int | None) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, for the length of a block.

    ``gpu``: as for one process; on several, None gives each the GPU of its local rank, or the CPU where there is none.

    Raises:
        WorkerError: another of the processes died.
        OptionError: that GPU is not there, or one is named for several processes, or there are too few.
    """
    count = _environment("WORLD_SIZE", 1)
    if count == 1:
        yield Ranks(0, 1, choose_device(gpu))
        return
    if gpu is not None and gpu != CPU:
        raise OptionError(
            f"--gpu {gpu}: each of {count} processes takes its own GPU; leave it out, or give {CPU}"
        )
    device = torch.device("cpu")
    if gpu is None and torch.cuda.device_count():
        device = choose_device(_environment("LOCAL_RANK", 0))
        torch.cuda.set_device(device)
    # First imported by the network that is spread, its functions' defaults would keep the group to Python's end.
    import_module("torch.distributed.nn")
    dist.init_process_group(_backends(device))
    try:
        yield Ranks(dist.get_rank(), count, device)
    except BaseException as error:
        # Of what was under way nothing but the lines is needed, and it holds the group.
        traceback.clear_frames(error.__traceback__)
        if not _is_of_lost_rank(error):
            raise
        raise WorkerError(
            f"another of the {count} processes that train as one ended; see what it told; the same command with "
            "--resume goes on"
        ) from error
    finally:
        dist.destroy_process_group()
        # The group's threads end with the last that holds it. Left to Python's own end, one that still has a tensor in
        # hand aborts the process.
        gc.collect()


def _backends(device: torch.device) -> str:
    """Say what values go over: those on a GPU over NCCL, which there is none of on Windows."""
    if device.type != "cuda":
        return "gloo"
    return f"cpu:gloo,cuda:{'nccl' if dist.is_nccl_available() else 'gloo'}"


def _is_of_lost_rank(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError) or isinstance(error, VshardError):
        return False
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def _environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    try:
        return int(value)
    except ValueError as error:
        raise OptionError(
            f"{name}={value}: is not a number; start several processes with torchrun"
        ) from error
