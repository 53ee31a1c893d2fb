"""`vshard generate`: a video -> records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vshard.records.plan import BACKWARD_MASKS, FORMATS, GenerateOptions

from .console import console, counted
from .places import local_path, place
from .sequences import sequence_options
from .sizes import byte_size

if TYPE_CHECKING:
    from vshard.base.stores import Place

_DEFAULT = GenerateOptions("video", Path())


@click.command()
@click.argument("video", required=False)
@click.option("--dataset-dir", metavar="VIDEO", help="The video file (instead of the argument).")
@click.option(
    "-o",
    "--output",
    "output",
    required=True,
    type=place,
    metavar="PATH|URL",
    help="Split folder, e.g. data/NAME/train; in a store (s3://, gs://) it gets shards only.",
)
@click.option("--prefix", default=_DEFAULT.prefix, help="Begins the records' names; give every run its own.")
@click.option(
    "--model-type",
    default=_DEFAULT.model_type,
    show_default=True,
    help="Depth model, by its iw3 name: Any_V2_S, ZoeD_NK, DepthPro, … Built in, without weights: Parallax.",
)
@click.option(
    "--resolution", type=int, help="Short side of a learned depth model's input; Parallax has none."
)
@click.option(
    "--depth-weights",
    metavar="PATH|REPO",
    help="Folder or Hugging Face repository of the depth model's weights.  [default: the name's own]",
)
@click.option(
    "--depth-flip", is_flag=True, help="Average depth with that of the mirrored frames; twice the time."
)
@sequence_options
@click.option(
    "--batch-size",
    type=int,
    default=_DEFAULT.batch_size,
    show_default=True,
    help="Frames a depth model takes at once; divides --seq.",
)
@click.option(
    "--size",
    type=int,
    default=_DEFAULT.size,
    show_default=True,
    help="Side of a record's square crop in pixels.",
)
@click.option(
    "--divergence-level",
    type=int,
    default=_DEFAULT.divergence_level,
    show_default=True,
    help="How wide the holes are: 1, 2 or 3.",
)
@click.option(
    "--backward-mask",
    type=click.Choice(BACKWARD_MASKS),
    default=_DEFAULT.backward_mask,
    show_default=True,
    help="Masks of the frames as filmed: iw3's network, depth gradients, or the network where it can be had.",
)
@click.option(
    "--mask-weights",
    type=local_path,
    metavar="PATH",
    help="The network's file, iw3_mask_mlbw_l2_d1_20250903.pth.  [default: cached or downloaded]",
)
@click.option("--seed", type=int, default=_DEFAULT.seed, show_default=True, help="Decides every random draw.")
@click.option(
    "--gpu", type=int, help="CUDA device; -1 for the CPU. Without it: device 0, or the CPU if there is none."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default=_DEFAULT.format,
    show_default=True,
    help="Record folders, tar shards, or both.",
)
@click.option(
    "--shard-size",
    type=byte_size,
    metavar="SIZE",
    default="1GB",
    show_default=True,
    help="A shard's size at most.",
)
@click.option("--overwrite", is_flag=True, help="Remove the records of this prefix, model and video first.")
def command(
    video: str | None,
    dataset_dir: str | None,
    output: Place,
    prefix: str,
    model_type: str,
    resolution: int | None,
    depth_weights: str | None,
    depth_flip: bool,
    max_fps: float,
    seq: int,
    skip_first: int,
    skip_interval: int,
    batch_size: int,
    size: int,
    num_samples: int,
    divergence_level: int,
    backward_mask: str,
    mask_weights: Path | None,
    shots: bool,
    seed: int,
    gpu: int | None,
    format_: str,
    shard_size: int,
    overwrite: bool,
) -> None:
    """Make records of a video: sequences of frames with occlusion masks.

    Stopped at any moment, the same command goes on and ends with the same records.

    \b
    Example:
      vshard generate city.mp4 -o data/city/train --prefix city --model-type Parallax
    """
    if (video is None) == (dataset_dir is None):
        raise click.UsageError("give one video file, as the argument or with --dataset-dir")
    from vshard.base.stores import Remote, parse_place

    if isinstance(output, Remote) and format_ == "dirs":
        raise click.UsageError(
            "--format dirs: a store gets shards only; leave it out, or give a local folder to -o"
        )
    source = parse_place(video or dataset_dir or "")
    options = GenerateOptions(
        video=str(source),
        output=_folder_of(output),
        prefix=prefix,
        model_type=model_type,
        resolution=resolution,
        depth_weights=depth_weights,
        depth_flip=depth_flip,
        max_fps=max_fps,
        seq=seq,
        skip_first=skip_first,
        skip_interval=skip_interval,
        batch_size=batch_size,
        size=size,
        num_samples=num_samples,
        divergence_level=divergence_level,
        backward_mask=backward_mask,
        mask_weights=mask_weights,
        shots=shots,
        seed=seed,
        gpu=gpu,
        format=format_,
        shard_bytes=shard_size,
        overwrite=overwrite,
    )
    from vshard.base.fetch import local_copy
    from vshard.shards.deliver import generate_to_store
    from vshard.shards.run import run_generation

    with console() as report, local_copy(source, report) as copy:
        options = replace(options, video=str(copy))
        state = (
            generate_to_store(options, output, report)
            if isinstance(output, Remote)
            else run_generation(options, report)
        )
    if state.damage or state.unreadable:
        damage = [state.damage] if state.damage else []
        damage += [f"{state.unreadable} frames could not be read cleanly"] if state.unreadable else []
        click.echo(f"warning: {source}: {'; '.join(damage)}", err=True)
    rejected = ", ".join(f"{count} {reason}" for reason, count in state.rejected.items()) or "none"
    click.echo(f"{output}: {counted(state.records, 'record')} named {options.stem}_…; rejected: {rejected}")
    if state.records:
        click.echo(f"look at them: vshard show {output} -o records.png")
    else:
        click.echo(
            "no record was kept: holes need near and far things, or try --divergence-level 2", err=True
        )


def _folder_of(output: Place) -> Path:
    """Give the folder of this machine where records for ``output`` are made."""
    if isinstance(output, Path):
        return output
    from vshard.shards.deliver import work_folder

    return work_folder(output)
