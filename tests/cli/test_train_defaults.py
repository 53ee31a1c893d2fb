"""The options of the original's `train.py inpaint` are there, with its defaults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from golden_inputs import GOLDEN

from cli.train import command
from vshard.train.discriminators import DISCRIMINATORS
from vshard.train.losses import LOSSES
from vshard.train.network import SIZES
from vshard.train.optimize import OPTIMIZERS
from vshard.train.plan import AMP_FLOATS, TrainOptions
from vshard.train.schedule import SCHEDULERS, Schedule, weight_decay_at

ORIGINAL: dict[str, Any] = json.loads((GOLDEN / "optimize.json").read_text())["train_cli_defaults"]
# What differs, and why.
DIFFERENT = {
    "seed": 71,  # so that runs can be repeated; the original draws one
    "gpu": None,  # the first, or the CPU where there is none
    "video": False,  # to be given here too; the numbers are of the command with it
    "loss": "temporal_l1lpips",  # what the original's None stands for
    "weight_decay_end": None,  # as the original's, but never less than --weight-decay
    "learning_rate_decay_step": (1,),
    "batch_size": None,  # ignored
    "prefetch_factor": None,  # ignored
}
MISSING = {
    "ignore_nan",  # not to be turned off: such steps are always left out
}


def defaults() -> dict[str, Any]:
    given = command.make_context("train", ["-i", "data", "--model-dir", "models"]).params
    return {parameter.name: given.get(parameter.name) for parameter in command.params if parameter.name}


def test_every_option_of_the_original_is_there_with_its_default() -> None:
    ours = defaults()
    assert ORIGINAL.keys() - ours.keys() <= MISSING
    for name, value in {**ORIGINAL, **DIFFERENT}.items():
        if name in ours:
            assert (ours[name] or False) == (value or False), name
    highest = max(weight_decay_at(Schedule(), epoch) for epoch in range(1, 200))
    assert 0.99 * ORIGINAL["weight_decay_end"] < highest <= ORIGINAL["weight_decay_end"]


def test_defaults_of_the_command_are_those_of_the_library() -> None:
    library = TrainOptions(Path(), Path(), video=True)
    for name, value in defaults().items():
        if hasattr(library, name) and name not in ("data_dir", "model_dir", "video"):
            assert (value or False) == (getattr(library, name) or False), name


def test_help_names_every_choice() -> None:
    helps = {parameter.name: getattr(parameter, "help", None) for parameter in command.params}
    tables = {
        "arch": SIZES,
        "loss": LOSSES,
        "optimizer": OPTIMIZERS,
        "scheduler": SCHEDULERS,
        "discriminator": DISCRIMINATORS,
        "amp_float": AMP_FLOATS,
    }
    for option, table in tables.items():
        assert table.keys() <= set(re.findall(r"\w+", helps[option])), option
