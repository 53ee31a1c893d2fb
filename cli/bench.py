"""`vshard bench`: how fast training can be fed from a split, beside other loaders."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from .columns import aligned
from .console import console, counted, plain
from .places import place

if TYPE_CHECKING:
    from vshard.base.stores import Place
    from vshard.stream.measure import Benched, Measured

_NONE = "-"
_BAR_CHARACTERS = 30
# Nobody told us of a GPU: a round figure of this order, said to be assumed wherever it is used.
_ASSUMED_STEP_MS = 50.0
# As for training.
_WORKERS_MAX = 8


@click.command()
@click.option(
    "-i",
    "--data",
    required=True,
    type=place,
    metavar="PATH|URL",
    help="Dataset (its train/ is read) or split.",
)
@click.option(
    "--samples",
    type=int,
    default=100,
    show_default=True,
    help="Samples each loader is measured over, a round.",
)
@click.option("--records", type=int, default=32, show_default=True, help="Records it runs over, at most.")
@click.option(
    "--num-workers",
    type=int,
    default=lambda: min(max((os.cpu_count() or 1) - 1, 1), _WORKERS_MAX),
    show_default="one less than the processors, at most 8",
    help="Loader processes.",
)
@click.option(
    "--rounds",
    type=int,
    default=3,
    show_default=True,
    help="Times each loader runs, in turn with the others.",
)
@click.option(
    "--only",
    metavar="NAME",
    multiple=True,
    help="Only this loader: vshard, vshard_finished, directory, webdataset or floor. Can be given several times.",
)
@click.option(
    "--gpu-step-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help=f"How long your GPU takes for a sample, forward and backward.  [default: {_ASSUMED_STEP_MS:g}, assumed]",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def command(
    data: Place,
    samples: int,
    records: int,
    num_workers: int,
    rounds: int,
    only: tuple[str, ...],
    gpu_step_ms: float | None,
    as_json: bool,
) -> None:
    """Measure how fast a split is loaded, beside other loaders.

    Every loader gives the same kind of sample, 12 frames of 256x256, from the same few records of DATA: ours as it is
    (vshard) and with floats made on the CPU too (vshard_finished), folders of PNGs with Pillow (directory), plain
    shards with webdataset and Pillow (webdataset). floor only inflates the bytes a sample needs. CPU time is that of
    all processes. Nothing is written but copies in the temporary folder. Takes about two minutes.

    \b
    Examples:
      vshard bench -i data/city
      vshard bench -i data/city --only vshard --num-workers 4 --gpu-step-ms 35
    """
    from vshard.stream.measure import MeasureOptions, bench
    from vshard.stream.measure_data import open_training

    options = MeasureOptions(samples, records, num_workers, rounds, only)
    with console() as report:
        benched = bench(open_training(data), options, report)
    if as_json:
        click.echo(json.dumps(_facts(benched, gpu_step_ms), indent=1))
        return
    lines = [*_table(benched), "", f"Over {counted(benched.records, 'record')}, {_processes(num_workers)}."]
    if "vshard" in benched.loaders:
        lines += [*_stages(benched), "", _fed(benched.loaders["vshard"], gpu_step_ms)]
    click.echo("\n".join(map(plain, lines)))


def _table(benched: Benched) -> list[str]:
    """Give a line a loader."""
    from vshard.stream.measure import LOADERS

    ours = benched.loaders.get("vshard")
    rows = [("LOADER", "CPU MS", "SAMPLES/S", "MB/S", "CPU, TIMES OURS", "")]
    for name, measured in benched.loaders.items():
        rows.append(
            (
                name,
                f"{measured.cpu_ms_per_sample:.1f}",
                f"{measured.samples_per_s:.1f}",
                _NONE if measured.mb_per_s is None else f"{measured.mb_per_s:.0f}",
                _NONE if ours is None else f"{measured.cpu_ms_per_sample / ours.cpu_ms_per_sample:.2f}",
                LOADERS[name],
            )
        )
    return aligned(rows, left=(0, -1))


def _stages(benched: Benched) -> list[str]:
    """Give a bar a stage of our loader."""
    whole = sum(benched.stages.values())
    rows = [
        (
            f"  {stage}",
            f"{ms:.2f} ms",
            f"{100 * ms / whole:.0f} %",
            "#" * round(_BAR_CHARACTERS * ms / whole),
        )
        for stage, ms in benched.stages.items()
    ]
    return ["", "Where the CPU time of vshard goes, a sample:", *aligned(rows, left=(0, -1))]


def _fed(ours: Measured, gpu_step_ms: float | None) -> str:
    """Say how many GPUs our loader can feed."""
    step_ms = _ASSUMED_STEP_MS if gpu_step_ms is None else gpu_step_ms
    told = " (assumed; give yours: --gpu-step-ms)" if gpu_step_ms is None else ""
    return (
        f"A GPU that takes {step_ms:g} ms a sample{told} does {1000 / step_ms:.1f} a second: "
        f"{ours.samples_per_s:.1f} feed {_gpus(ours, step_ms):.1f} such GPUs."
    )


def _gpus(ours: Measured, step_ms: float) -> float:
    return ours.samples_per_s * step_ms / 1000


def _processes(count: int) -> str:
    return "with 1 loader process" if count == 1 else f"with {count} loader processes"


def _facts(benched: Benched, gpu_step_ms: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: {
            "cpu_ms_per_sample": measured.cpu_ms_per_sample,
            "samples_per_s": measured.samples_per_s,
            "mb_per_s": measured.mb_per_s,
            "runs": [run._asdict() for run in measured.runs],
        }
        for name, measured in benched.loaders.items()
    }
    if "vshard" in found:
        step_ms = _ASSUMED_STEP_MS if gpu_step_ms is None else gpu_step_ms
        found["vshard"] |= {
            "stages_cpu_ms": benched.stages,
            "gpu_step_ms": step_ms,
            "gpu_step_assumed": gpu_step_ms is None,
            "gpus_fed": _gpus(benched.loaders["vshard"], step_ms),
        }
    return found
