"""Reading what `torch.save` wrote, from anyone: tensors and plain values, never code, nothing compressed."""

from __future__ import annotations

import math
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

ZIP_MAGIC = b"PK\x03\x04"


class TensorFileError(Exception):
    """What is wrong with a file of tensors, in words that can follow its name."""


def load_tensors(file: BinaryIO) -> Any:
    """Load what `torch.save` wrote, with every tensor on the CPU.

    Args:
        file: open for reading and seekable, at its beginning.

    Raises:
        TensorFileError: it is another kind of file, damaged, compressed (which could be a bomb), or holds objects.
    """
    import torch

    # Looked at first, because PyTorch would try the formats of its early years on any other bytes.
    magic = file.read(len(ZIP_MAGIC))
    if magic != ZIP_MAGIC:
        found = f"it begins with {magic!r}, not {ZIP_MAGIC!r}" if magic else "it is empty"
        raise TensorFileError(f"is not a model file ({found})")
    try:
        # PyTorch writes checksums but does not compare them: a flipped bit would pass. It stores without compressing.
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise zipfile.BadZipFile("compressed")
            if archive.testzip():
                raise zipfile.BadZipFile("wrong checksum")
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors, which are refused where they are used
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TensorFileError(
            "holds Python objects besides tensors and plain values, which are never loaded"
        ) from error
    except Exception as error:  # a damaged file makes PyTorch raise a dozen kinds
        raise TensorFileError("is damaged, cut short, or another kind of zip file") from error


def holds_stretched(content: Any) -> bool:
    """Tell whether a tensor in what was loaded is larger than its stored numbers: a copy could fill the memory."""
    return any(map(_is_stretched, _tensors(content)))


def copy_numbers(into: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Copy the values of the same names into tensors, all or none.

    Raises:
        KeyError: one is missing.
        TypeError: ``values`` is no dict.
        ValueError: one is of another shape or not of finite numbers.
    """
    import torch

    for name, tensor in into.items():
        if not is_numbers(values[name], tuple(tensor.shape)):
            raise ValueError(f"{name} is not {tuple(tensor.shape)} numbers")
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(values[name])


def is_numbers(value: Any, shape: tuple[int, ...]) -> bool:
    """Tell whether a value is a finite float tensor of a shape, or a plain number where that is ()."""
    import torch

    if not isinstance(value, torch.Tensor):
        return shape == () and type(value) in (int, float) and math.isfinite(value)
    plain = value.layout is torch.strided and not value.is_meta and value.is_floating_point()
    return plain and value.shape == shape and bool(value.isfinite().all())


def _tensors(content: Any) -> Iterator[Tensor]:
    """Give every tensor in nested dicts, lists and tuples, which may hold themselves."""
    import torch

    left, seen = [content], {id(content)}
    while left:
        one = left.pop()
        if isinstance(one, torch.Tensor):
            yield one
        inside = one.values() if isinstance(one, dict) else one if isinstance(one, (list, tuple)) else ()
        fresh = [value for value in inside if id(value) not in seen]
        seen.update(map(id, fresh))
        left += fresh


def _is_stretched(tensor: Tensor) -> bool:
    import torch

    if tensor.layout is not torch.strided or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
