"""How far a training run has come, as its checkpoint keeps it, and what it left behind.

The position within the epoch is its stream's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Progress:
    """``epoch`` (from 1) is under way, ``not_finite`` of its losses were no numbers; ``best_loss`` of evaluations."""

    epoch: int = 1
    not_finite: int = 0
    best_loss: float = float("inf")

    def plain(self) -> dict[str, Any]:
        """Give it as plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Progress:
        """Take it out of a checkpoint.

        Raises:
            TypeError, ValueError: these are not its values.
        """
        if values.keys() != {field.name for field in fields(cls)}:
            raise ValueError(f"odd entries {', '.join(map(str, values))}")
        progress = cls(**values)
        counts = (progress.epoch, progress.not_finite)
        if not all(type(count) is int and count >= 0 for count in counts) or progress.epoch < 1:
            raise ValueError(f"odd counts {counts}")
        if type(progress.best_loss) not in (int, float) or not progress.best_loss > -math.inf:
            raise ValueError(f"an odd best loss {progress.best_loss!r}")
        return progress


@dataclass(frozen=True)
class Trained:
    """What a run left behind; ``train_loss`` is the last epoch's, None where none was left to train."""

    checkpoint: Path
    best_model: Path
    epoch: int
    train_loss: float | None
    best_loss: float
