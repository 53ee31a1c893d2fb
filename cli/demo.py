"""`vshard demo`: every command of the line, one after the other, on clips it renders."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path

import click

from vshard.base.errors import OutputError
from vshard.base.files import make_folder, write_file

from .places import local_path

_MARKER = ".vshard-demo"
# Two scenes: one to train on, one to evaluate on (the guide's best practice: different videos).
_CLIPS = (("train", "pan", 112, 1), ("eval", "walk", 80, 2))


@click.command()
@click.option(
    "-o",
    "--output",
    type=local_path,
    default=Path("data/demo"),
    show_default=True,
    help="Folder for everything it makes; an older demo there is replaced.",
)
@click.option("--gpu", type=int, default=-1, show_default=True, help="CUDA device; -1 for the CPU.")
def command(output: Path, gpu: int) -> None:
    """Run the whole line on two rendered clips, from video to model.

    Prints every step as the command that you would type. Takes a few minutes on two CPU cores.

    \b
    Example:
      vshard demo -o data/demo
    """
    started = time.monotonic()
    _clear(output)
    for split, motion, frames, seed in _CLIPS:
        clip = output / f"{split}.mp4"
        _step("render", clip, "--motion", motion, "--frames", frames, "--seed", seed)
        _step(
            "generate", clip, "-o", output / split, "--prefix", "demo", "--model-type", "Parallax",
            "--divergence-level", 2, "--num-samples", 2, "--backward-mask", "gradient", "--gpu", gpu,
        )  # fmt: skip
        _step("pack", output / split, "-o", output / "shards" / split)
    _step("show", output / "train", "-o", output / "records.png", "--records", 4)
    _step(
        "train", "-i", output / "shards", "--model-dir", output / "model", "--video", "--arch", "narrow",
        "--max-epoch", 4, "--num-samples", 12 * 30, "--learning-rate", 3e-4, "--learning-rate-cycles", 1,
        "--backward-step", 1, "--save-eval-step", 1, "--loss", "psnr", "--gpu", gpu,
    )  # fmt: skip
    from vshard.train.pictures import demo_picture

    picture = output / "demo.png"
    demo_picture(output / "eval", output / "model" / "eval", picture)
    click.echo(f"\nDone in {time.monotonic() - started:.0f} s. Look at {picture}:")
    click.echo(
        "each row is a frame with its holes coloured, the mask, the network's input, output and target."
    )
    click.echo("The network is narrow and has trained for a minute or two: the real one fills much better.")


def _step(*words: object) -> None:
    """Print a command as it would be typed, and run it in this process."""
    from .main import vshard

    arguments = [str(word) for word in words]
    click.secho(f"\n$ vshard {shlex.join(arguments)}", bold=True)
    vshard.main(arguments, prog_name="vshard", standalone_mode=False)


def _clear(output: Path) -> None:
    """Remove an older demo from ``output``; a folder that holds anything else is not touched."""
    marker = output / _MARKER
    if output.exists() and not marker.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output}: is there and was not made by vshard demo; choose another -o")
    make_folder(output)
    write_file(
        marker, b"Made by vshard demo, which removes train, eval, shards and model here when it runs again.\n"
    )
    for name in ("train", "eval", "shards", "model"):
        shutil.rmtree(output / name, ignore_errors=True)
