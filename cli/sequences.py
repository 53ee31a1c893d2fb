"""The options that decide which frames make which sequence: those of `vshard generate` that `vshard probe` has too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vshard.records.plan import GenerateOptions

_DEFAULT = GenerateOptions("video", Path())


def sequence_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options max_fps, seq, skip_first, skip_interval, num_samples and shots."""
    counts = {
        "--max-fps": (float, _DEFAULT.max_fps, "Frames a second sampled at most."),
        "--seq": (int, _DEFAULT.seq, "Frames in a record."),
        "--skip-first": (int, _DEFAULT.skip_first, "Frames left out at the start."),
        "--skip-interval": (int, _DEFAULT.skip_interval, "Frames left out between sequences."),
        "--num-samples": (int, _DEFAULT.num_samples, "Crops a sequence and view."),
    }
    options = [
        click.option(name, type=kind, default=default, show_default=True, help=text)
        for name, (kind, default, text) in counts.items()
    ]
    options.append(
        click.option(
            "--shots/--no-shots",
            default=_DEFAULT.shots,
            show_default=True,
            help="End sequences at shot cuts, or let them run on.",
        )
    )
    # The last one applied is listed first.
    for option in reversed(options):
        command = option(command)
    return command
