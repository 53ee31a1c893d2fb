"""`vshard probe`: what a video holds, and how many records it would make."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vshard.records.plan import GenerateOptions

from .console import console
from .places import local_path
from .sequences import sequence_options

if TYPE_CHECKING:
    from vshard.records.survey import Survey

_SHOTS_SHOWN = 12


@click.command()
@click.argument("video")
@sequence_options
@click.option(
    "-o",
    "--output",
    type=local_path,
    metavar="PICTURE",
    help="Also draw a picture of the shots, e.g. shots.png.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print everything as one JSON object, all shots listed."
)
def command(
    video: str,
    max_fps: float,
    seq: int,
    skip_first: int,
    skip_interval: int,
    num_samples: int,
    shots: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Tell what a video holds and how many records it would make.

    Looks at every frame once; writes no records.

    \b
    Example:
      vshard probe city.mp4 --skip-interval 0 -o shots.png
    """
    from vshard.base.stores import parse_place
    from vshard.records.survey import survey

    source = parse_place(video)
    options = GenerateOptions(
        video=str(source),
        output=Path(),
        max_fps=max_fps,
        seq=seq,
        # The depth model's batches do not matter here, and 1 divides every --seq.
        batch_size=1,
        skip_first=skip_first,
        skip_interval=skip_interval,
        num_samples=num_samples,
        shots=shots,
    )
    if output is not None:
        from vshard.clips.storyboard import check_place

        if isinstance(source, Path):
            check_place(source, output)
    from vshard.base.fetch import local_copy

    with console() as report, local_copy(source, report) as copy:
        found = survey(replace(options, video=str(copy)), report)
        if output is not None:
            from vshard.clips.storyboard import write_storyboard

            captions = [f"{start:.2f} to {stop:.2f} s" for start, stop in found.shot_seconds()]
            write_storyboard(found.info, list(found.shots), captions, output, report)
    if as_json:
        click.echo(json.dumps(_facts(found), indent=1))
        return
    click.echo("\n".join(_lines(found)))
    if output is not None:
        click.echo(f"{output}: a picture of its shots")


def _facts(found: Survey) -> dict[str, Any]:
    from vshard.clips.plan import gap_seconds

    info = found.info
    return {
        "video": str(info.path),
        "width": info.width,
        "height": info.height,
        "fps": str(info.fps),
        "frames": len(info.pts),
        "seconds": round(info.duration_seconds, 3),
        "codec": info.codec,
        "pixel_format": info.pixel_format,
        "matrix": info.matrix,
        "full_range": info.full_range,
        "transfer": info.transfer,
        "rotation_degrees": info.rotation_degrees,
        "pixel_aspect": str(info.pixel_aspect),
        "interlaced": info.interlaced,
        "damage": info.damage,
        "gaps_seconds": [round(gap, 3) for gap in gap_seconds(info)],
        "unreadable_frames": int((~found.scan.readable).sum()),
        "shots_seconds": [[round(edge, 3) for edge in shot] for shot in found.shot_seconds()],
        "sequences": len(found.sequences),
        "rejected": found.rejected,
        "records_most": found.records_most,
    }


def _lines(found: Survey) -> list[str]:
    from vshard.clips.plan import losses

    info, seq = found.info, found.options.seq
    traits = [
        f"{info.width}x{info.height}",
        f"{float(info.fps):.6g} fps",
        f"{len(info.pts)} frames",
        f"{info.duration_seconds:.1f} s",
        f"{info.codec} {info.pixel_format}",
        f"{info.matrix} {'full' if info.full_range else 'limited'} range",
    ]
    traits += [f"{info.transfer} (tone-mapped)"] if info.transfer != "SDR" else []
    traits += ["interlaced (deinterlaced)"] if info.interlaced else []
    traits += [f"turned by {info.rotation_degrees} degrees"] if info.rotation_degrees else []
    traits += [f"pixel aspect {info.pixel_aspect}"] if info.pixel_aspect != 1 else []
    unreadable = int((~found.scan.readable).sum())
    damage = losses(info, info.damage, unreadable)
    shots = found.shot_seconds()
    listed = ", ".join(f"{start:.1f}-{stop:.1f}" for start, stop in shots[:_SHOTS_SHOWN])
    more = f", … {len(shots) - _SHOTS_SHOWN} more" if len(shots) > _SHOTS_SHOWN else ""
    short = sum(stop - start < seq for start, stop in found.shots)
    rejected = ", ".join(f"{count} {reason}" for reason, count in found.rejected.items())
    return [
        str(info.path),
        f"  video      {', '.join(traits)}",
        f"  damage     {'; '.join(damage) or 'none found'}",
        f"  shots      {len(shots)}: {listed}{more} s"
        + (f"; {short} too short for {seq} frames" if short else ""),
        f"  sequences  {len(found.sequences)}, each of {seq} frames"
        + (f"; of them rejected: {rejected}" if rejected else ""),
        f"  records    {found.records_most} at most; those with too little hole fall away when they are made",
    ]
