"""A picture of a video's shots, for the eye: a row a shot, its first, middle and last frame."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..base.errors import OutputError
from ..base.files import check_folder, make_folder, write_file
from ..base.report import Report
from .colour import to_rgb
from .decode import decode_frames
from .probe import VideoInfo

TILE_WIDTH_PX = 256
SHOTS_SHOWN = 48
_CAPTION_PX = 18


def check_place(video: Path, output: Path) -> None:
    """Check, before a long look at the video, that the picture may be written.

    Raises:
        OutputError: the name is not that of a PNG, or it is the video's own.
    """
    if output.suffix.lower() != ".png":
        raise OutputError(f"cannot write {output}: the picture is a PNG; choose a name that ends in .png")
    if output.exists() and output.samefile(video):
        raise OutputError(f"cannot write {output}: it is the video itself; choose another name")
    check_folder(output.parent)


def write_storyboard(
    info: VideoInfo, shots: list[tuple[int, int]], captions: list[str], output: Path, report: Report
) -> None:
    """Write the PNG ``output`` with at most ``SHOTS_SHOWN`` of the shots, evenly spread.

    Args:
        info: the video.
        shots: [start, stop) ranges of its frames, ascending.
        captions: a line of text for each shot.
        output: where to write.
        report: told how far it is.

    Raises:
        VideoError: the video can no longer be opened.
        OutputError: the picture cannot be written.
    """
    count = min(len(shots), SHOTS_SHOWN)
    shown = np.unique(np.linspace(0, len(shots) - 1, count).round().astype(int)).tolist() if count else []
    height = max(round(TILE_WIDTH_PX * info.height / info.width), 1)
    row_px = height + _CAPTION_PX
    board = Image.new("RGB", (3 * TILE_WIDTH_PX, max(len(shown), 1) * row_px), "white")
    draw = ImageDraw.Draw(board)
    report.start(f"drawing the shots of {info.path.name}", len(shown), "shots")
    for row, shot in enumerate(shown):
        start, stop = shots[shot]
        draw.text((4, row * row_px + 3), captions[shot], fill="black")
        for column, index in enumerate((start, (start + stop) // 2, stop - 1)):
            decoded = next(decode_frames(info, int(info.pts[index])))
            tile = Image.fromarray(to_rgb(info, decoded.picture)).resize((TILE_WIDTH_PX, height))
            board.paste(tile, (column * TILE_WIDTH_PX, row * row_px + _CAPTION_PX))
        report.advance(row + 1)
    report.finish()
    data = io.BytesIO()
    board.save(data, "PNG")
    make_folder(output.parent)
    write_file(output, data.getvalue())
