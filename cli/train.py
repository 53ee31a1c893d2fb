"""`vshard train`: a dataset -> a model."""

from __future__ import annotations

from pathlib import Path

import click

from vshard.train.plan import TrainOptions

from .console import console
from .places import local_path, place
from .sizes import byte_size

_DEFAULT = TrainOptions(Path(), Path(), video=True)


def _epochs(text: str) -> tuple[int, ...]:
    """Read numbers with commas between them: the type of an option."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number, nor several as 30,60,90") from None


@click.command()
@click.option(
    "-i",
    "--data-dir",
    required=True,
    type=place,
    metavar="PATH|URL",
    help="Dataset folder with train/ and eval/.",
)
@click.option(
    "--model-dir",
    required=True,
    type=local_path,
    help="Folder for checkpoints and eval/ pictures.",
)
@click.option("--video", is_flag=True, help="Train the video model (needed: still images are not supported).")
@click.option(
    "--arch",
    help="small, medium or large; narrow for trying things, on a CPU say. Without it: the weight file's, or small.",
)
@click.option(
    "--loss",
    default=_DEFAULT.loss,
    show_default=True,
    help="temporal_l1lpips, l1lpips, l1dctlpips, temporal_l1dctlpips, dct, l1dinov2; cheaper: temporal_l1, l1, psnr.",
)
@click.option(
    "--perceptual-weights",
    type=local_path,
    metavar="PATH",
    help="VGG16 or LPIPS weights for the losses with lpips (a folder for l1dinov2). Without it: torchvision's, from "
    "its cache or downloaded, or what stlpips-pytorch brings.",
)
@click.option(
    "--discriminator",
    help="Train against one too, so that fills look filmed: l3c, l3ce, ffc, ffce or l3cffce.",
)
@click.option(
    "--discriminator-weight",
    type=float,
    default=_DEFAULT.discriminator_weight,
    show_default=True,
    help="How much it counts beside the loss.",
)
@click.option(
    "--generator-warmup-iteration",
    type=int,
    default=_DEFAULT.generator_warmup_iteration,
    show_default=True,
    help="Steps until it counts that much.",
)
@click.option(
    "--optimizer",
    default=_DEFAULT.optimizer,
    show_default=True,
    help="adam, adamw, sgd, lion; sgd_schedulefree, adamw_schedulefree or radam_schedulefree, which take no "
    "--scheduler.",
)
@click.option(
    "--learning-rate",
    type=float,
    default=_DEFAULT.learning_rate,
    show_default=True,
    help="Highest learning rate.",
)
@click.option(
    "--weight-decay",
    type=float,
    default=_DEFAULT.weight_decay,
    show_default=True,
    help="Of convolution and linear weights.",
)
@click.option(
    "--weight-decay-end",
    type=float,
    help="Where cosine_wd raises it to.  [default: 0.01, or --weight-decay if that is more]",
)
@click.option(
    "--adam-beta1",
    type=float,
    default=_DEFAULT.adam_beta1,
    show_default=True,
    help="Share of the mean gradient that stays from step to step: Adam's kinds and lion.",
)
@click.option(
    "--momentum",
    type=float,
    default=_DEFAULT.momentum,
    show_default=True,
    help="The same of sgd and sgd_schedulefree.",
)
@click.option(
    "--scheduler",
    default=_DEFAULT.scheduler,
    show_default=True,
    help="cosine_wd: the rate falls and restarts, the weight decay rises against it; cosine: the rate alone; step: see "
    "--learning-rate-decay-step.",
)
@click.option(
    "--learning-rate-cycles",
    type=int,
    default=_DEFAULT.learning_rate_cycles,
    show_default=True,
    help="How often cosine_wd and cosine fall over all epochs.",
)
@click.option(
    "--learning-rate-cosine-min",
    type=float,
    default=_DEFAULT.learning_rate_cosine_min,
    show_default=True,
    help="What they fall to.",
)
@click.option(
    "--learning-rate-decay",
    type=float,
    default=_DEFAULT.learning_rate_decay,
    show_default=True,
    help="With step: what the rate is multiplied by; 1 leaves it alone.",
)
@click.option(
    "--learning-rate-decay-step",
    type=_epochs,
    default=",".join(map(str, _DEFAULT.learning_rate_decay_step)),
    show_default=True,
    metavar="N[,N...]",
    help="With step: every how many epochs; or, as 30,60,90, after which ones.",
)
@click.option(
    "--warmup-epoch",
    type=int,
    default=_DEFAULT.warmup_epoch,
    show_default=True,
    help="Epochs over which the rate first climbs, with every step; half as many more if schedule-free.",
)
@click.option(
    "--warmup-learning-rate",
    type=float,
    default=_DEFAULT.warmup_learning_rate,
    show_default=True,
    help="Where it climbs from; schedule-free optimizers climb from 0.",
)
@click.option("--max-epoch", type=int, default=_DEFAULT.max_epoch, show_default=True, help="Epochs in all.")
@click.option(
    "--backward-step",
    type=int,
    default=_DEFAULT.backward_step,
    show_default=True,
    help="Samples whose gradients are added up before a step.",
)
@click.option(
    "--eval-step", type=int, default=_DEFAULT.eval_step, show_default=True, help="Epochs between evaluations."
)
@click.option(
    "--save-eval-step",
    type=int,
    default=_DEFAULT.save_eval_step,
    show_default=True,
    help="Every how many eval records a picture is saved.",
)
@click.option(
    "--num-samples",
    type=int,
    default=_DEFAULT.num_samples,
    show_default=True,
    help="Frames an epoch; 12 make a sample.",
)
@click.option(
    "--disable-hard-example",
    is_flag=True,
    help="Every record equally often; else those of high loss are drawn more often.",
)
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default=_DEFAULT.on_error,
    show_default=True,
    help="What to do with records that cannot be read; skip tells and counts them.",
)
@click.option(
    "--cache-limit",
    type=byte_size,
    metavar="SIZE",
    help="Copies of a store's shards on this machine.  [default: 50GB, or 80 % of the free disk]",
)
@click.option(
    "--num-workers", type=int, help="Loader processes. Without it: one less than the processors, at most 8."
)
@click.option(
    "--gpu", type=int, help="CUDA device; -1 for the CPU. Without it: device 0, or the CPU if there is none."
)
@click.option(
    "--seed",
    type=int,
    default=_DEFAULT.seed,
    show_default=True,
    help="Decides weights, order and every draw.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --model-dir.")
@click.option("--reset-state", is_flag=True, help="With --resume: take the weights only, start at epoch 1.")
@click.option("--checkpoint-file", type=local_path, help="Model file (.pth) with the first weights.")
@click.option(
    "--checkpoint-minutes",
    type=float,
    default=_DEFAULT.checkpoint_minutes,
    show_default=True,
    help="Longest time between checkpoints.",
)
@click.option("--disable-amp", is_flag=True, help="No mixed precision.")
@click.option(
    "--amp-float",
    default=_DEFAULT.amp_float,
    show_default=True,
    help="Type of mixed precision on a GPU: fp16, or bf16, which needs no scaling of the loss; bf16 is for a CPU too, "
    "one with instructions for it (AMX) then takes less than half the time. Without it a CPU trains in float32.",
)
@click.option(
    "--compile",
    is_flag=True,
    help="Train through PyTorch's compiler: faster steps on a GPU after a minute or two. Where it cannot, it says so.",
)
@click.option(
    "--clip-grad-norm",
    type=float,
    default=_DEFAULT.clip_grad_norm,
    show_default=True,
    help="Largest norm of a step's gradients; 0 or less for any.",
)
@click.option(
    "--ema-model", is_flag=True, help="Evaluate and keep a moving average of the weights, not the weights."
)
@click.option(
    "--ema-decay",
    type=float,
    default=_DEFAULT.ema_decay,
    show_default=True,
    help="Of the average, what stays.",
)
@click.option(
    "--ema-step",
    type=int,
    default=_DEFAULT.ema_step,
    show_default=True,
    help="Steps between two additions to it.",
)
@click.option("--skip-eval", is_flag=True, help="Evaluate nothing; the model file is that of the last epoch.")
@click.option(
    "--disable-backup",
    is_flag=True,
    help="Remove an older run's files in --model-dir; else they are kept as *.pth.bk.",
)
@click.option("--save-epoch", is_flag=True, help="Keep the model of every epoch too.")
@click.option("--tensorboard", is_flag=True, help="Write curves for TensorBoard into --model-dir.")
@click.option("--batch-size", type=int, expose_value=False, help="Taken and ignored: always 1 with --video.")
@click.option(
    "--prefetch-factor",
    type=int,
    expose_value=False,
    help="Taken and ignored: each loader process is always 4 samples ahead.",
)
def command(**options: object) -> None:
    """Train a video-inpainting model on a dataset.

    Stopped at any moment, the same command with --resume goes on.

    \b
    Example:
      vshard train -i data/city --model-dir models/city --video --backward-step 8 --save-eval-step 1
    """
    checked = TrainOptions(**options)  # type: ignore[arg-type]
    from vshard.train.run import train

    with console() as report:
        result = train(checked, report)
    if result is None:  # another process speaks for all
        return
    loss = f", training loss {result.train_loss:.5f}" if result.train_loss is not None else ""
    click.echo(f"{result.checkpoint}: epoch {result.epoch}{loss}")
    if result.best_model.exists():
        best = f"best evaluation loss {result.best_loss:.5f}"
        click.echo(f"{result.best_model}: {f'that of epoch {result.epoch}' if checked.skip_eval else best}")
