"""Sizes in bytes as people write them: 1GB, 250MB, 1000000."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class ByteSize(click.ParamType):
    """A number of bytes with an optional unit."""

    name = "SIZE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read ``value``; a number is taken as it is."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", str(value))
        if match is None or match[2].upper() not in _UNITS:
            self.fail(f"{value!r} is not a size; write for example 1GB, 250MB or 1000000", param, ctx)
        return int(float(match[1]) * _UNITS[match[2].upper()])
