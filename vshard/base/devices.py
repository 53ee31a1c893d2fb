"""Where tensors live: ``--gpu`` into a torch device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import OptionError

if TYPE_CHECKING:
    import torch

CPU = -1


def choose_device(gpu: int | None) -> torch.device:
    """Give the device for ``--gpu``: a CUDA index, -1 for the CPU, None for CUDA 0 where there is one.

    Raises:
        OptionError: that GPU is not there.
    """
    import torch

    count = torch.cuda.device_count()
    if gpu is None:
        return torch.device("cuda", 0) if count else torch.device("cpu")
    if gpu == CPU:
        return torch.device("cpu")
    if not 0 <= gpu < count:
        there = f"0 to {count - 1}" if count else "none"
        raise OptionError(f"--gpu {gpu}: CUDA devices here: {there}; give one of them, or {CPU} for the CPU")
    return torch.device("cuda", gpu)
