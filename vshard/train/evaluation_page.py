"""An evaluation for the eye and for programs: ``index.html`` with a picture a record, and ``evaluation.json``.

A picture has three rows, the first, a middle and the last frame, and a column a method with the truth beside it, cut to
where the holes are. A thin line runs around each hole, two pixels outside, so that its seam can be seen.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from .. import __version__
from ..base.files import check_folder, check_output, make_folder, write_file
from ..records.names import printable
from ..records.png import encode_png
from ..stream.sheet import HOLE_COLOUR
from .evaluate import METHODS, MODEL, Clip, Evaluation, Filled, Scored
from .metrics import BOOTSTRAP_DRAWS, CONFIDENCE, METRICS, Estimate, psnr

SCHEMA = "vshard.evaluation/1"
JSON_FILE = "evaluation.json"
PAGE_FILE = "index.html"
PICTURES_FOLDER = "pictures"
TITLES = {
    MODEL: "model",
    "unfilled": "unfilled",
    "shifted": "shifted from the background",
    "telea": "OpenCV Telea",
}
_TARGET = "target"
_COLUMNS = (*(name for name in METHODS if name != MODEL), MODEL, _TARGET)
_TILE_PX = 256
_STEP_PX = 32
_CAPTION_PX = 18
_OUTLINE_PX = 2


def check_place(folder: Path) -> None:
    """Check that an evaluation can be written into ``folder``, before hours of scoring; leaves nothing.

    Raises:
        OutputError: it cannot.
    """
    check_folder(folder / PICTURES_FOLDER)
    for name in (JSON_FILE, PAGE_FILE):
        if (folder / name).exists():
            check_output(folder / name)


def write_evaluation(folder: Path, found: Evaluation, pictures: Mapping[str, bytes]) -> list[Path]:
    """Write an evaluation into ``folder``; give the page and the JSON file.

    ``pictures``: PNG files by record key, see :func:`record_picture`.

    Raises:
        OutputError: the files cannot be written.
    """
    make_folder(folder / PICTURES_FOLDER)
    for key, picture in pictures.items():
        write_file(folder / PICTURES_FOLDER / f"{key}.png", picture)
    facts, page = folder / JSON_FILE, folder / PAGE_FILE
    write_file(facts, (json.dumps(as_json(found), indent=1, allow_nan=False) + "\n").encode())
    write_file(page, page_html(found, list(pictures)).encode())
    return [page, facts]


def as_json(found: Evaluation) -> dict[str, Any]:
    """Give an evaluation as plain values; null where there is no number.

    ``metrics``: what each number is. ``means``: by method and metric, ``mean``, ``low``, ``high`` (null of a single
    video) and ``videos``. ``records``: each with its own ``scores``.
    """
    return {
        "schema": SCHEMA,
        "vshard": __version__,
        "model": found.model,
        "architecture": found.architecture,
        "data": found.data,
        "device": found.device,
        "seed": found.seed,
        "lpips": found.lpips,
        "confidence": CONFIDENCE,
        "bootstrap_draws": BOOTSTRAP_DRAWS,
        "videos": list(found.videos),
        "trained_videos": list(found.trained),
        "sources_known": found.sources_known,
        "notes": list(found.notes),
        "metrics": {name: metric._asdict() for name, metric in METRICS.items()},
        "means": {
            method: {name: None if mean is None else mean._asdict() for name, mean in means.items()}
            for method, means in found.means.items()
        },
        "speed_1080p": [speed._asdict() for speed in found.speeds],
        "records": [
            {
                "key": one.key,
                "video": one.video,
                "scores": {
                    method: {name: None if math.isnan(value) else value for name, value in scores.items()}
                    for method, scores in one.scores.items()
                },
            }
            for one in found.records
        ],
    }


def table(found: Evaluation) -> list[list[str]]:
    """Give the means as rows of text, headings first: a row a metric, a column a method."""
    rows = [["", *(TITLES[method] for method in METHODS)]]
    for name in found.means[MODEL]:
        metric = METRICS[name]
        unit = f", {metric.unit}" if metric.unit else ""
        better = "more" if metric.more_is_better else "less"
        cells = [_cell(found.means[method][name], metric.digits) for method in METHODS]
        rows.append([f"{metric.title}{unit} ({better} is better)", *cells])
    return rows


def speed_lines(found: Evaluation) -> list[str]:
    """Tell the speeds, a line each."""
    return [
        f"1080p on {found.device}, {speed.precision}: {speed.ms_a_frame:.1f} ms a frame"
        + (f", peak memory {speed.peak_bytes / 1e9:.2f} GB" if speed.peak_bytes is not None else "")
        for speed in found.speeds
    ]


def heading(found: Evaluation) -> str:
    """Tell in a line what was scored."""
    records, videos = len(found.records), len(found.videos)
    interval = f"; mean over videos ({CONFIDENCE:.0%} interval)" if videos > 1 else ""
    return (
        f"{found.model} on {found.data}: {records} {'record' if records == 1 else 'records'} of {videos} "
        f"{'video' if videos == 1 else 'videos'}{interval}"
    )


def record_picture(clip: Clip, filled: Filled, scored: Scored) -> bytes:
    """Draw a scored record: a PNG file."""
    columns = {**filled.fills, _TARGET: filled.target}
    top, left, side = _fullest(filled.hole)
    window = (..., slice(top, top + side), slice(left, left + side))
    frames = (0, len(clip.rgb) // 2, len(clip.rgb) - 1)
    row_px = side + _CAPTION_PX
    picture = Image.new("RGB", (side * len(_COLUMNS), _CAPTION_PX + row_px * len(frames)), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((4, 3), f"{clip.key}   {printable(scored.video)}", fill="black")
    for row, frame in enumerate(frames):
        part = slice(frame, frame + 1)
        outline = _outline(filled.hole[part])[window][0, 0].cpu().numpy()
        for column, name in enumerate(_COLUMNS):
            x, y = column * side, _CAPTION_PX + row * row_px
            tile = columns[name][frame][window].mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
            tile = np.where(outline[..., None], np.array(HOLE_COLOUR, np.uint8), tile)
            picture.paste(Image.fromarray(tile), (x, y))
            caption = f"frame {frame}: {TITLES.get(name, name)}"
            if name != _TARGET:
                near = psnr(columns[name][part], filled.target[part], filled.hole[part])
                caption += "" if math.isnan(near) else f" {near:.2f} dB"
            draw.text((x + 4, y + side + 3), caption, fill="black")
    return encode_png(np.asarray(picture))


def page_html(found: Evaluation, keys: Sequence[str]) -> str:
    """Write the page: the table, the notes, and the pictures of ``keys``."""
    rows = "\n".join(
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(["th", *["td"] * len(METRICS)], table(found), strict=False)
    )
    lines = [printable(line) for line in (*speed_lines(found), *found.notes)]
    notes = "\n".join(f"<p>{html.escape(line)}</p>" for line in lines)
    pictures = "\n".join(f'<p><img src="{PICTURES_FOLDER}/{key}.png" alt="{key}"></p>' for key in keys)
    title = html.escape(printable(heading(found)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>vshard evaluation</title>\n'
        "<style>body{font-family:sans-serif}td,th{padding:2px 10px;text-align:right}"
        "td:first-child{text-align:left}</style></head>\n"
        f"<body><h1>{title}</h1>\n<table>\n{rows}\n</table>\n{notes}\n"
        f"<p>Hole PSNR of each frame is below it; the line runs around the holes.</p>\n{pictures}\n</body></html>\n"
    )


def _cell(mean: Estimate | None, digits: int) -> str:
    if mean is None:
        return "-"
    if mean.low is None or mean.high is None:
        return f"{mean.mean:.{digits}f}"
    return f"{mean.mean:.{digits}f} ({mean.low:.{digits}f} to {mean.high:.{digits}f})"


def _fullest(hole: Tensor) -> tuple[int, int, int]:
    """Give the row, column and side of the square that holds the most of the holes, on a grid of 32 pixels."""
    counts = hole.sum(dim=(0, 1)).float()
    side = min(_TILE_PX, *counts.shape)
    sums = F.avg_pool2d(counts[None, None], side, stride=_STEP_PX)[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return row * _STEP_PX, column * _STEP_PX, side


def _outline(hole: Tensor) -> Tensor:
    """Give the pixels just beyond ``_OUTLINE_PX`` of (T, 1, H, W) holes."""

    def grown(reach: int) -> Tensor:
        return F.max_pool2d(hole.float(), 2 * reach + 1, stride=1, padding=reach) > 0

    return grown(_OUTLINE_PX + 1) & ~grown(_OUTLINE_PX)
