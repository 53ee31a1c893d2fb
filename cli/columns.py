"""Rows of text set as columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Give a line a row, cells as wide as their column's widest: to the left in the columns ``left``, else right.

    A column's number may count from the end (-1).
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    to_left = {number % len(widths) for number in left}
    return [
        "  ".join(
            cell.ljust(width) if number in to_left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
