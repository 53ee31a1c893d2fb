"""Evaluation while training: the loss over ``eval/``, and pictures of what the network makes of it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..base.errors import DatasetError
from ..base.files import write_file
from ..base.report import Report
from ..records.png import encode_png
from ..stream.loader import Skipped
from ..stream.samples import Sample, finish
from .network import LightVideoInpaint
from .pictures import side_by_side
from .ranks import Ranks
from .steps import mixed

PREVIEW_FILE = "preview.webp"
_PREVIEW_MS_A_FRAME = 100
_PREVIEW_QUALITY = 80


@torch.no_grad()
def judge(
    model: LightVideoInpaint,
    loss: Callable[[Tensor, Tensor], Tensor],
    samples: Iterable[Sample | Skipped],
    count: int,
    ranks: Ranks,
    *,
    amp: torch.dtype | None,
    pictures: Path,
    every: int,
    report: Report,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Give the mean loss over an evaluation split, None where some rank was asked to stop.

    Args:
        model: the network, out of training mode.
        loss: of output and target, a scalar.
        samples: this rank's, see :func:`vshard.stream.loader.evaluation_loader`.
        count: records of all ranks.
        ranks: who evaluates.
        amp: type of mixed precision, or None.
        pictures: folder for ``{record}.png`` and a moving preview of the first record.
        every: every how many records a picture is written.
        report: for progress.
        asked_to_stop: asked after each record.

    Raises:
        DatasetError: not one record could be read.
    """
    found: list[tuple[int, float]] = []
    stopped, holes, seen = False, False, 0
    for sample in samples:
        seen += 1
        if isinstance(sample, Skipped):
            report.warn(f"{sample.reason} (skipped, it counts for nothing in this evaluation)")
            continue
        holes = holes or bool(sample.hole.any())
        x, mask, y = finish(sample, ranks.device)
        emptied, soft = model.preprocess(x, mask)
        with mixed(ranks.device, amp):
            out = model(emptied, soft)
        out = out.float()
        found.append((sample.position, float(loss(out, y))))
        if sample.position % every == 0:
            border = (x.shape[-1] - y.shape[-1]) // 2
            shown = [emptied[..., border:-border, border:-border], out, y]
            write_file(pictures / f"{sample.position}.png", encode_png(side_by_side(shown)))
            if sample.position == 0:
                write_file(pictures / PREVIEW_FILE, _moving(shown))
        report.advance(
            min(seen * ranks.count, count), f"loss {math.fsum(loss for _, loss in found) / len(found):.5f}"
        )
        if asked_to_stop():
            stopped = True
            break
    stopped, holes = ranks.any([stopped, holes])
    if stopped:
        return None
    everything = sorted(one for own in ranks.gather(found) for one in own)
    if not everything:
        raise DatasetError(
            f"none of the {count} records to evaluate on could be read; see what is wrong with: vshard verify, or "
            "leave evaluation out: --skip-eval"
        )
    if not holes:
        report.warn(
            "the records to evaluate on have no hole to fill, so their loss tells nothing; check their masks"
        )
    return math.fsum(loss for _, loss in everything) / len(everything)


def _moving(columns: list[Tensor]) -> bytes:
    """Set clips side by side as a moving picture: the bytes of an animated WebP."""
    frames = side_by_side(columns).reshape(len(columns[0]), -1, columns[0].shape[-1] * len(columns), 3)
    first, *others = (Image.fromarray(frame) for frame in frames)
    out = io.BytesIO()
    first.save(
        out,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=_PREVIEW_MS_A_FRAME,
        loop=0,
        quality=_PREVIEW_QUALITY,
    )
    return out.getvalue()
