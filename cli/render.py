"""`vshard render`: a test clip with known depth."""

from __future__ import annotations

from pathlib import Path

import click

from vshard.clips.render import MOTIONS, RenderOptions, write_clip

from .console import console
from .places import local_path

_DEFAULT = RenderOptions()


@click.command()
@click.argument("output", type=local_path)
@click.option(
    "--motion", type=click.Choice(MOTIONS), default=_DEFAULT.motion, show_default=True, help="What moves."
)
@click.option("--frames", type=int, default=_DEFAULT.frames, show_default=True, help="How many frames.")
@click.option(
    "--seed", type=int, default=_DEFAULT.seed, show_default=True, help="Another number, another scene."
)
@click.option("--width", type=int, default=_DEFAULT.width, show_default=True, help="Pixels.")
@click.option("--height", type=int, default=_DEFAULT.height, show_default=True, help="Pixels.")
def command(output: Path, motion: str, frames: int, seed: int, width: int, height: int) -> None:
    """Render a test clip: textured layers before a moving camera.

    \b
    Example:
      vshard render clip.mp4 --motion walk --frames 96 --seed 1
    """
    options = RenderOptions(width=width, height=height, frames=frames, seed=seed, motion=motion)
    with console() as report:
        report.start(f"rendering {output}", frames, "frames")
        write_clip(output, options, lambda done, _total: report.advance(done))
    click.echo(f"{output}: {frames} frames, {width}x{height}, {motion}")
