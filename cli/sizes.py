"""Sizes in bytes as people write them: 1GB, 250MB, 1000000."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def byte_size(text: str) -> int:
    """Read a number of bytes with an optional unit: the type of an option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text)
    if match is None or match[2].upper() not in _UNITS:
        raise click.BadParameter(f"{text!r} is not a size; write for example 1GB, 250MB or 1000000")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if size > 2**62:
        raise click.BadParameter(f"{text!r} is too large a size")
    return int(size)
