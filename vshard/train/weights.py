"""The weights a run starts with, and those of the network that its loss compares by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..base.errors import CheckpointError
from ..base.seeds import derived_seed
from .checkpoint import LOSS, OURS, build_model, load_model
from .losses import Loss, NetworkOptions, loss_by_name
from .network import LightVideoInpaint, create
from .plan import DEFAULT_ARCH, TrainOptions


def wanted_name(options: TrainOptions) -> str | None:
    """Give the name of the network that ``--arch`` asks for, None for whichever is there."""
    return create(options.arch).name if options.arch is not None else None


def first_weights(options: TrainOptions, last: tuple[Path, dict[str, Any]] | None) -> LightVideoInpaint:
    """Give the network to start with: that of the ``last`` checkpoint, of --checkpoint-file, or a fresh one.

    Raises:
        CheckpointError: the file is none, is damaged, or holds another network than --arch asks for.
    """
    torch.manual_seed(derived_seed(options.seed, "weights") & 0x7FFFFFFF)
    fresh = create(DEFAULT_ARCH if options.arch is None else options.arch)
    if last is not None:
        source, content = last
        loaded = build_model(source, content)
    elif options.checkpoint_file is not None:
        source = options.checkpoint_file
        loaded = load_model(source)
    else:
        return fresh
    if not all(bool(parameter.isfinite().all()) for parameter in loaded.parameters()):
        raise CheckpointError(f"{source}: its weights are not all numbers; give another file")
    if options.arch is not None and loaded.kwargs != fresh.kwargs:
        raise CheckpointError(
            f"{source}: holds a network of {loaded.kwargs}, --arch {options.arch} is one of {fresh.kwargs}; leave "
            "out --arch to take the file's"
        )
    return loaded


def loss_of_run(
    options: TrainOptions, last: tuple[Path, dict[str, Any]] | None, say: Callable[[str], None]
) -> Loss:
    """Make the loss; what it compares by is that of the checkpoint ``last``, which the run goes on from.

    Raises:
        VshardError: as :func:`.losses.loss_by_name`.
    """
    stored = last[1][OURS] if last is not None else {}
    told = stored.get(LOSS) if isinstance(stored, dict) else None
    network = told.get("network") if isinstance(told, dict) and told.get("name") == options.loss else None
    stored_network = network if isinstance(network, str) else None
    return loss_by_name(options.loss, NetworkOptions(options.perceptual_weights, stored_network, say))
