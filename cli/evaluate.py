"""`vshard evaluate`: a model and records it has not seen -> how good it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .columns import aligned
from .console import console, plain
from .places import local_path, place

if TYPE_CHECKING:
    import torch

    from vshard.base.stores import Place
    from vshard.train.evaluate import Clip, Filled, Scored
    from vshard.train.metrics import PerceptualMap


@click.command()
@click.argument("model", type=local_path)
@click.option(
    "-i",
    "--data",
    required=True,
    type=place,
    metavar="PATH|URL",
    help="Split to score on, or a dataset, of which eval/ is taken.",
)
@click.option(
    "-o",
    "--output",
    type=local_path,
    metavar="FOLDER",
    help="For index.html, its pictures and evaluation.json. Without it: evaluation/ beside the model.",
)
@click.option("--records", type=int, help="How many records, drawn by --seed. Without it: all.")
@click.option(
    "--gpu", type=int, help="CUDA device; -1 for the CPU. Without it: device 0, or the CPU if there is none."
)
@click.option(
    "--seed", type=int, default=71, show_default=True, help="Decides which records, and the intervals."
)
@click.option("--speed", is_flag=True, help="Time the model at 1080p on a CPU too: a minute, some gigabytes.")
@click.option("--pictures", type=int, default=8, show_default=True, help="Of how many records.")
@click.option("--allow-trained", is_flag=True, help="Score videos too that the model was trained on.")
@click.option("--no-lpips", is_flag=True, help="Leave LPIPS out: on a CPU it takes minutes a record.")
@click.option(
    "--perceptual-weights",
    type=local_path,
    metavar="FILE",
    help="VGG16 or LPIPS weights. Without it: torchvision's, or what stlpips-pytorch brings.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def command(
    model: Path,
    data: Place,
    output: Path | None,
    records: int | None,
    gpu: int | None,
    seed: int,
    speed: bool,
    pictures: int,
    allow_trained: bool,
    no_lpips: bool,
    perceptual_weights: Path | None,
    as_json: bool,
) -> None:
    """Score a model on records it has not seen, beside simple fills.

    MODEL is a .pth file of vshard or iw3, or a checkpoint. PSNR, SSIM and LPIPS in the holes, around them and on the
    whole frame, and the error from frame to frame; means over videos. Videos that it was trained on are refused.

    \b
    Example:
      vshard evaluate models/city/inpaint.light_video_inpaint_v1.pth -i data/city
    """
    from vshard.base.errors import OptionError
    from vshard.train import evaluation_page as page
    from vshard.train.evaluate import EvaluateOptions, evaluate
    from vshard.train.metrics import LpipsMap
    from vshard.train.perceptual import find_perceptual

    if no_lpips and perceptual_weights is not None:
        raise OptionError(
            f"--perceptual-weights {perceptual_weights}: does not go with --no-lpips; leave one out"
        )
    options = EvaluateOptions(
        model, data, records, gpu, seed, speed=speed, pictures=pictures, allow_trained=allow_trained
    )
    folder = output or model.parent / "evaluation"
    page.check_place(folder)
    drawn: dict[str, bytes] = {}

    def show(clip: Clip, filled: Filled, scored: Scored) -> None:
        drawn[clip.key] = page.record_picture(clip, filled, scored)

    with console() as report:

        def lpips(device: torch.device) -> PerceptualMap:
            network = find_perceptual(perceptual_weights, say=report.say).to(device)
            report.say(f"LPIPS: {network.source}")
            return LpipsMap(network)

        found = evaluate(options, report, None if no_lpips else lpips, show)
        html, stored = page.write_evaluation(folder, found, drawn)
    if as_json:
        click.echo(json.dumps(page.as_json(found), indent=1))
        return
    click.echo(plain(page.heading(found)))
    click.echo("\n".join(aligned(page.table(found), left=(0,))))
    click.echo("\n".join(map(plain, [*page.speed_lines(found), *(f"note: {note}" for note in found.notes)])))
    click.echo(plain(f"{html}: pictures; {stored}: all numbers"))
