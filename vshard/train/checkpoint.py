"""Model files in the format of iw3 (facts of the original, section 12): a ``torch.save`` of one plain dict.

Out of training come two kinds: the *model file* (``{name}.pth``: weights and how to build the network), which
iw3 loads as it is, and the *checkpoint* (``{name}.checkpoint.pth``), which adds all that training needs to go
on. Both hold tensors on the CPU and plain values only, appear whole or not at all, and are never unpickled
beyond that (``weights_only=True``): opening a stranger's file runs no code.

Cost: 9 MB and 28 MB for the small network, well under a second each.
"""

from __future__ import annotations

import copy
import io
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import CheckpointError, OptionError
from ..base.files import open_plain, write_file
from ..base.tensors import TensorFileError, holds_stretched, load_tensors
from .network import ARCHITECTURES, LightVideoInpaint

CHECKPOINT_SUFFIX = ".checkpoint.pth"
# What an older run's files end in, once another run in the same folder has saved its own.
KEPT_SUFFIX = ".pth.bk"

_MODEL_ENTRIES = {"nunif_model": int, "name": str, "kwargs": dict, "state_dict": dict}
_TRAINING_ENTRIES = {
    "optimizer_state_dict": list,
    "grad_scaler_state_dict": list,
    "best_loss": (int, float),
    "last_epoch": int,
}
# Our own entry of a checkpoint; the original knows nothing of it.
OURS = "vshard"
# Its parts: how far the run has come, its stream's position, the weights that a schedule-free optimizer takes gradients
# at, the moving average of weights, what the loss is and which network it compares by, the discriminator with all that
# it goes on from, and which records the best loss is of.
PROGRESS, STREAM, STEPPING, AVERAGE, LOSS = "progress", "stream", "stepping_weights", "average", "loss"
ADVERSARY, EVALUATED = "adversary", "evaluated"


def save_model(path: Path, model: LightVideoInpaint, train_kwargs: dict[str, Any] | None = None) -> None:
    """Write a model file.

    Args:
        path: where; a file there is replaced once the new one is whole.
        model: the network; its weights are written in the precision that they have.
        train_kwargs: the options of the training, plain values, for the record.

    Raises:
        OutputError: the file cannot be written.
    """
    _write(path, _model_content(model, train_kwargs))


def save_checkpoint(
    path: Path,
    model: LightVideoInpaint,
    optimizer: torch.optim.Optimizer,
    *,
    train_kwargs: dict[str, Any],
    best_loss: float,
    last_epoch: int,
    ours: dict[str, Any],
    grad_scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write all that training needs to go on; a schedule-free optimizer must be out of training mode.

    Args:
        path: where; a file there is replaced once the new one is whole.
        model: the network.
        optimizer: its optimizer.
        train_kwargs: the options of the training, plain values.
        best_loss: the lowest evaluation loss so far.
        last_epoch: the last finished epoch, counted from 1.
        ours: plain values and tensors of our own, such as the position in the stream.
        grad_scaler: the scaler of half-precision training, if one is in use.

    Raises:
        OutputError: the file cannot be written.
    """
    assert not optimizer.param_groups[0].get("train_mode"), "set_training(optimizer, False) comes first"
    content = {
        **_model_content(model, train_kwargs),
        "optimizer_state_dict": [optimizer.state_dict()],
        "scheduler_state_dict": [],  # rates are a function of the epoch
        "grad_scaler_state_dict": [grad_scaler.state_dict() if grad_scaler else {}],
        "best_loss": best_loss,
        "last_epoch": last_epoch,
        OURS: ours,
    }
    _write(path, content)


def load_model(path: Path) -> LightVideoInpaint:
    """Build the network of a model file or checkpoint, on the CPU, in float32 and training mode.

    Raises:
        CheckpointError: the file is missing, damaged, no model file, or holds another network.
    """
    return build_model(path, read_content(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, the original's too, and check that its weights fit.

    Returns:
        The dict that :func:`save_checkpoint` wrote: ``name``, ``kwargs``, ``train_kwargs``, ``state_dict``,
        ``optimizer_state_dict`` and ``grad_scaler_state_dict`` (lists of one), ``best_loss``, ``last_epoch``,
        and ``vshard``, what ``ours`` was: {} in a file of the original.

    Raises:
        CheckpointError: as :func:`load_model`, or the file lacks the state of a training.
    """
    content = read_content(path)
    build_model(path, content)
    missing = _missing(content, _TRAINING_ENTRIES)
    if missing:
        raise CheckpointError(
            f"{path}: holds weights but no state of a training (no {missing}), so it cannot be resumed; "
            "give a .checkpoint.pth file, or start anew from these weights"
        )
    return {OURS: {}, **content}


def _model_content(model: LightVideoInpaint, train_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "nunif_model": 1,
        "name": model.name,
        "updated_at": str(datetime.now(timezone.utc)),
        "kwargs": dict(model.kwargs),
        "train_kwargs": train_kwargs,
        "state_dict": model.state_dict(),
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(_plain(content, "checkpoint"), buffer)
    write_file(path, buffer.getvalue())


def _plain(value: Any, where: str) -> Any:
    """Copy nested dicts and lists with every tensor on the CPU; refuse what ``weights_only`` would refuse."""
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous()
    if isinstance(value, dict):
        plain = copy.copy(value)  # keeps an OrderedDict and the version notes that a state_dict carries
        plain.update((key, _plain(entry, f"{where}.{key}")) for key, entry in value.items())
        return plain
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(entry, f"{where}[{i}]") for i, entry in enumerate(value))
    # By exact type: a NumPy float64 is a float too, but would need NumPy's code to load.
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}; model files hold tensors and plain values only")


def read_content(path: Path) -> dict[str, Any]:
    """Load the dict in a model file; :func:`build_model` makes its network.

    Raises:
        CheckpointError: there is no such file, or it is none of ours.
    """
    advice = "give a .pth file written by vshard or iw3, or copy it again"
    try:
        with io.BufferedReader(open_plain(path)) as file:
            content = load_tensors(file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    except TensorFileError as error:
        raise CheckpointError(f"{path}: {error}; {advice}") from error
    if holds_stretched(content):
        raise CheckpointError(f"{path}: holds a tensor that is larger than its stored numbers; {advice}")
    missing = _missing(content, _MODEL_ENTRIES)
    if missing:
        raise CheckpointError(f"{path}: holds tensors but is not a model file (no {missing}); {advice}")
    return dict(content)


def _missing(content: Any, entries: dict[str, Any]) -> str:
    """Name the entries that ``content`` lacks, or has of another type; '' when all is well."""
    found = content if isinstance(content, dict) else {}
    return ", ".join(key for key, kind in entries.items() if not isinstance(found.get(key), kind))


def build_model(path: Path, content: dict[str, Any]) -> LightVideoInpaint:
    """Make the network that a file's ``content`` describes and give it the weights, as :func:`load_model` does.

    Raises:
        CheckpointError: it is another network, or the weights do not fit it.
    """
    name, kwargs, weights = content["name"], content["kwargs"], content["state_dict"]
    if name not in ARCHITECTURES:
        known = ", ".join(known for known in ARCHITECTURES if known.startswith("inpaint."))
        raise CheckpointError(f"{path}: holds the network {name!r}; vshard trains {known}")
    try:
        # Files of the original may leave out what the name already says. Sizes first, which cost nothing.
        options = {**ARCHITECTURES[name], **kwargs}
        with torch.device("meta"):
            own = {key: _size(value) for key, value in LightVideoInpaint(**options).state_dict().items()}
    except (TypeError, RuntimeError, OptionError) as error:
        found = f"no {name} can be built from {kwargs} ({error})"
        raise CheckpointError(f"{path}: {found}; give an unchanged file") from error

    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is unknown" for key in weights if key not in own]
    problems += [
        f"{key} is {_shape(weights[key])} instead of {own[key]}"
        for key in own
        if key in weights and _shape(weights[key]) != own[key]
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        found = f"its weights do not fit {name} with {kwargs}: {problems[0]}{more}"
        raise CheckpointError(f"{path}: {found}; give an unchanged file")
    model = LightVideoInpaint(**options)
    model.load_state_dict(weights)
    return model


def _shape(value: Any) -> str:
    """Write the shape of a float tensor as 96×3×4×4, and what anything else is."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.layout is not torch.strided or value.is_meta:
        return "sparse" if not value.is_meta else "without values"
    if not value.is_floating_point():
        return f"of {value.dtype}"
    return _size(value)


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"
