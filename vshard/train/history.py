"""What a run leaves to read about itself: metrics.jsonl, loss_*.csv, a picture of the losses, TensorBoard's files.

All are written by the first rank alone, line by line as things happen: a run that is killed has lost nothing that it
told. A run that is resumed tells anew what it makes anew.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..base.errors import OptionError
from ..base.files import write_file, writing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
CURVE_FILE = "loss.png"
_TENSORBOARD_FOLDER = "tensorboard"


@dataclass(frozen=True)
class Moment:
    """Where a run is within an epoch.

    ``loss`` is the epoch's mean so far, ``data_wait`` the share of time spent on waiting for samples, from 0 to 1.
    ``discriminator_loss``: of the last samples, None where none is trained.
    """

    epoch: int
    sample: int
    loss: float
    learning_rate: float
    samples_per_s: float
    data_wait: float
    discriminator_loss: float | None = None


@dataclass(frozen=True)
class Epoch:
    """An epoch that is finished; ``eval_loss`` None where it was not evaluated, ``seconds`` with evaluation."""

    epoch: int
    train_loss: float
    eval_loss: float | None
    learning_rate: float
    seconds: float


class History:
    """Writes a run's metrics into its model folder; TensorBoard's file is begun at once, others with the first line."""

    def __init__(self, model_dir: Path, *, tensorboard: bool = False) -> None:
        """Prepare to write.

        Raises:
            OptionError: TensorBoard's package is not installed.
        """
        self.csv = model_dir / f"loss_{datetime.now():%Y%m%d%H%M%S}.csv"
        self._metrics = model_dir / METRICS_FILE
        self._curve = model_dir / CURVE_FILE
        self._boards = _tensorboard(model_dir / _TENSORBOARD_FOLDER) if tensorboard else None

    def note(self, moment: Moment, samples: int) -> None:
        """Write how training goes after ``samples`` of all epochs."""
        self._tell({"kind": "step", **asdict(moment)})
        if self._boards is not None:
            for name in ("loss", "learning_rate", "samples_per_s", "data_wait", "discriminator_loss"):
                if getattr(moment, name) is not None:
                    self._boards.add_scalar(f"train/{name}", getattr(moment, name), samples)

    def end_epoch(self, epoch: Epoch) -> None:
        """Write what an epoch came to, and draw the losses of all so far."""
        self._tell({"kind": "epoch", **asdict(epoch)})
        fresh = not self.csv.exists()
        with writing(self.csv), self.csv.open("a", newline="") as file:
            table = csv.writer(file)
            if fresh:
                table.writerow(["epoch", "train_loss", "eval_loss"])
            table.writerow(
                [epoch.epoch, epoch.train_loss, "" if epoch.eval_loss is None else epoch.eval_loss]
            )
        if self._boards is not None:
            self._boards.add_scalar("epoch/train_loss", epoch.train_loss, epoch.epoch)
            if epoch.eval_loss is not None:
                self._boards.add_scalar("epoch/eval_loss", epoch.eval_loss, epoch.epoch)
        write_file(self._curve, draw_losses(read_epochs(self._metrics)))

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self._boards is not None:
            self._boards.close()

    def _tell(self, metrics: dict[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), **metrics})
        with writing(self._metrics), self._metrics.open("ab+") as file:
            # A crash may have cut the last line off, which is no reason to lose this one.
            if file.tell() and not _ends_with_line(file):
                file.write(b"\n")
            file.write(f"{line}\n".encode())


def _ends_with_line(file: BinaryIO) -> bool:
    file.seek(-1, io.SEEK_END)
    return file.read(1) == b"\n"


def read_epochs(metrics: Path) -> list[Epoch]:
    """Read the finished epochs of a metrics file, each as it was told last; lines that are none are left out."""
    found: dict[int, Epoch] = {}
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            told = json.loads(line)
            if told.pop("kind") != "epoch":
                continue
            del told["time"]
            epoch = Epoch(**told)
            numbers = [epoch.epoch, epoch.train_loss, epoch.learning_rate, epoch.seconds]
            numbers += [] if epoch.eval_loss is None else [epoch.eval_loss]
            if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
                continue
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            # A line that a crash cut off: the epochs before and after it are none the worse.
            continue
        # What a newer run in this folder began anew replaces the older one's later epochs too.
        found = {number: old for number, old in found.items() if number < epoch.epoch}
        found[epoch.epoch] = epoch
    return [found[number] for number in sorted(found)]


def draw_losses(epochs: list[Epoch]) -> bytes:
    """Draw training and evaluation losses over the epochs: the bytes of a PNG of 1000×600 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([e.epoch for e in epochs], [e.train_loss for e in epochs], marker=".", label="training")
    judged = [(e.epoch, e.eval_loss) for e in epochs if e.eval_loss is not None]
    if judged:
        axes.plot(*zip(*judged, strict=True), marker="o", label="evaluation")
        best_epoch, best = min(judged, key=lambda one: one[1])
        # Beside its point, where the picture goes on.
        left, right = epochs[0].epoch, epochs[-1].epoch
        aligned = "right" if best_epoch > (left + right) / 2 else "left"
        axes.annotate(
            f"best {best:.5f}", (best_epoch, best), (0, -14), textcoords="offset points", ha=aligned
        )
    if all(value > 0 for e in epochs for value in (e.train_loss, e.eval_loss) if value is not None):
        axes.set_yscale("log")
    rates = axes.twinx()
    rate_lines = rates.plot(
        [e.epoch for e in epochs],
        [e.learning_rate for e in epochs],
        color="0.8",
        zorder=0,
        label="learning rate",
    )
    rates.set_ylabel("learning rate", color="0.5")
    rates.set_ylim(bottom=0)
    axes.set_zorder(rates.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(handles=[*axes.get_lines(), *rate_lines])
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def check_tensorboard() -> None:
    """Check that TensorBoard's files can be written.

    Raises:
        OptionError: its package is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise OptionError(
            "--tensorboard: its package is not installed; install it: pip install tensorboard"
        ) from error


def _tensorboard(folder: Path) -> SummaryWriter:
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    with writing(folder):
        return SummaryWriter(str(folder))
