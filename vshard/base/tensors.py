"""Reading what `torch.save` wrote, from anyone: tensors and plain values, never code, nothing compressed."""

from __future__ import annotations

import pickle
import zipfile
from typing import Any, BinaryIO

_ZIP_MAGIC = b"PK\x03\x04"


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
    magic = file.read(len(_ZIP_MAGIC))
    if magic != _ZIP_MAGIC:
        found = f"it begins with {magic!r}, not {_ZIP_MAGIC!r}" if magic else "it is empty"
        raise TensorFileError(f"is not a model file ({found})")
    try:
        # PyTorch writes checksums but does not compare them: a flipped bit would pass. It stores without compressing.
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise zipfile.BadZipFile("compressed")
            if archive.testzip():
                raise zipfile.BadZipFile("wrong checksum")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TensorFileError(
            "holds Python objects besides tensors and plain values, which are never loaded"
        ) from error
    except Exception as error:  # a damaged file makes PyTorch raise a dozen kinds
        raise TensorFileError("is damaged, cut short, or another kind of zip file") from error
