"""`vshard export`: a trained model for iw3, and as ONNX."""

from __future__ import annotations

from pathlib import Path

import click

from .console import console, plain
from .places import local_path


@click.command()
@click.argument("model", type=local_path)
@click.option(
    "-o", "--output", required=True, type=local_path, metavar="FILE.pth", help="Model file to write."
)
@click.option("--name", help="What iw3 calls the model. Without it: the name of FILE.pth.")
@click.option(
    "--onnx", type=local_path, metavar="FILE.onnx", help="Write it as ONNX too (needs vshard[onnx])."
)
def command(model: Path, output: Path, name: str | None, onnx: Path | None) -> None:
    """Write a trained model for iw3, and as ONNX.

    MODEL is a checkpoint or a model file. Prints the entry for iw3's inpaint_models.yml, to be picked there with
    --inpaint-model NAME.

    \b
    Example:
      vshard export models/city/inpaint.light_video_inpaint_v1.pth -o city.pth --name city
    """
    from vshard.train.export import export_model

    with console() as report:
        if onnx is not None:
            report.say(f"making {onnx} takes a minute")
        entry = export_model(model, output, output.stem if name is None else name, onnx)
        written = output if onnx is None else f"{output} and {onnx}"
        report.say(f"{written}: written; the entry for inpaint_models.yml:")
    click.echo(plain(entry))
