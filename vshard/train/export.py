"""A trained model for other programs: the plain model file that iw3 loads, and ONNX.

In: a best model or a checkpoint, vshard's or iw3's. The weights are those that training evaluates: of a schedule-free
optimizer its averaged ones, of ``--ema-model`` the moving average.

ONNX needs the packages of the extra ``onnx`` and takes half a minute to several on a CPU.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import CheckpointError, OptionError
from ..base.files import check_output, write_file
from . import products
from .checkpoint import AVERAGE, OURS, build_model, read_content, save_model
from .network import CLIP_FRAMES, LightVideoInpaint

ONNX_OPSET = 18
# A name in YAML that needs no quotes and cannot be taken for a number, nor for what these words mean there.
_ENTRY_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off")
# Height and width of the frames that the export is traced with; other ones run too.
_TRACED_PX = (64, 128)


@dataclass(frozen=True)
class TrainedModel:
    """What a model file holds: the network with the weights to use, out of training mode, and ``train_kwargs``."""

    model: LightVideoInpaint
    train_kwargs: Any


def open_model(path: Path) -> TrainedModel:
    """Read a model file or checkpoint, on the CPU, in float32.

    Raises:
        CheckpointError: it is missing, damaged, no model file, or holds another network.
    """
    content = read_content(path)
    model = build_model(path, content)
    stored = content.get(OURS)
    average = stored.get(AVERAGE) if isinstance(stored, dict) else None
    if average is not None:
        try:
            model.load_state_dict(average["weights"])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: the average of its weights (--ema-model) does not fit them; give the best model's .pth"
            ) from error
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise CheckpointError(f"{path}: its weights are not all numbers; give another file")
    return TrainedModel(model.eval(), content.get("train_kwargs"))


def export_model(source: Path, output: Path, name: str, onnx: Path | None = None) -> str:
    """Write the model of ``source`` as a plain model file, and as ONNX where ``onnx`` says so.

    Args:
        source: a model file or checkpoint.
        output: the ``.pth`` to write.
        name: what iw3 is to call the model.
        onnx: the ``.onnx`` to write.

    Returns:
        The entry of iw3's ``inpaint_models.yml``.

    Raises:
        CheckpointError: ``source`` cannot be read.
        OptionError: a name is not fit, or packages are missing.
        OutputError: a file cannot be written.
    """
    if not _ENTRY_NAME.fullmatch(name):
        raise OptionError(
            f"--name {name!r}: only letters, digits, '_', '-' and '.' are allowed, a letter first"
        )
    if name.lower() in _YAML_WORDS:
        raise OptionError(f"--name {name}: YAML takes it for another thing than a name; choose another")
    for option, path, suffix in (("-o", output, ".pth"), ("--onnx", onnx, ".onnx")):
        if path is not None and path.suffix != suffix:
            raise OptionError(f"{option} {path}: must end in {suffix}")
    if output.exists() and source.exists() and output.samefile(source):
        raise OptionError(f"-o {output}: is the model itself; choose another name")
    trained = open_model(source)
    for path in (output, onnx):
        if path is not None:  # told before minutes of work
            check_output(path)
    exported = onnx_bytes(trained.model) if onnx is not None else b""
    save_model(output, trained.model, _plain_entries(trained.train_kwargs))
    if onnx is not None:
        write_file(onnx, exported)
    # JSON's way of writing a text is YAML's too, whatever is in the path.
    return f"{name}: {{video: {json.dumps(str(output.resolve()), ensure_ascii=False)}}}"


def _plain_entries(train_kwargs: Any) -> dict[str, Any]:
    """Give what a file tells of its training, less what is no plain value: others' files may hold anything."""

    def is_plain(value: Any) -> bool:
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            return False
        return True

    entries = train_kwargs if isinstance(train_kwargs, dict) else {}
    return {key: value for key, value in entries.items() if isinstance(key, str) and is_plain(value)}


def onnx_bytes(model: LightVideoInpaint) -> bytes:
    """Give ``model`` as an ONNX file of opset 18.

    Inputs ``x``: (12, 3, H, W) float32 in [0, 1], RGB, and ``mask``: (12, 1, H, W) float32, 1 = hole; any H and W.
    Output ``filled``: (12, 3, H, W) float32 in [0, 1], border and all, as of :meth:`LightVideoInpaint.infer`.

    Raises:
        OptionError: packages are missing.
    """
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise OptionError(f"--onnx: needs the package {package}; pip install 'vshard[onnx]'") from error
    size: dict[int, Any] = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    inputs = (torch.rand(CLIP_FRAMES, 3, *_TRACED_PX), torch.zeros(CLIP_FRAMES, 1, *_TRACED_PX))
    with _plain_products(), _quiet("onnxscript"), torch.no_grad():
        program = torch.onnx.export(
            _Whole(model).eval(),
            inputs,
            input_names=["x", "mask"],
            output_names=["filled"],
            opset_version=ONNX_OPSET,
            dynamo=True,
            dynamic_shapes={"x": size, "mask": size},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    exported: bytes = program.model_proto.SerializeToString()
    return exported


class _Whole(nn.Module):
    """What :meth:`LightVideoInpaint.infer` does for twelve frames."""

    def __init__(self, model: LightVideoInpaint) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.model.fill(*self.model.preprocess(x, mask)).clamp(0, 1)


@contextmanager
def _plain_products() -> Iterator[None]:
    """Let the network multiply by operators that ONNX knows for the length of a block."""
    onednn = products._ONEDNN
    products._ONEDNN = False
    try:
        yield
    finally:
        products._ONEDNN = onednn


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a package's logger tell errors only for the length of a block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
