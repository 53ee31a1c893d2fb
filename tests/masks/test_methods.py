from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from making import save_mask_network

from vshard.base.errors import MaskModelError
from vshard.masks.methods import open_backward_mask
from vshard.masks.mlbw import MASK_WEIGHTS_FILE
from vshard.masks.recipe import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(None, 720, "bicubic", 4.0, 0.5, "none", 0, False, "right")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_mask_network(tmp_path / "weights.pth")


def into_cache(weights: Path) -> None:
    cache = Path(torch.hub.get_dir()) / "checkpoints" / MASK_WEIGHTS_FILE
    cache.parent.mkdir(parents=True)
    cache.write_bytes(weights.read_bytes())


def test_auto_without_weights_says_that_it_takes_gradients() -> None:
    warned: list[str] = []
    assert open_backward_mask("auto", None, CPU, None, warned.append).name == "gradient"
    (line,) = warned
    assert "depth gradients" in line and "--mask-weights" in line and "\n" not in line


@pytest.mark.parametrize("place", ["given", "cache"])
def test_auto_takes_the_network_where_its_weights_are(weights: Path, place: str) -> None:
    if place == "cache":
        into_cache(weights)
    taken = open_backward_mask("auto", weights if place == "given" else None, CPU, None, pytest.fail)
    assert taken.name == f"mlbw sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}"
    mask = taken.make(torch.rand(1, 1, 40, 64), (80, 128), RECIPE)
    assert mask.shape == (1, 1, 80, 128)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}


def test_a_run_begun_with_gradients_keeps_them_unless_told_otherwise(weights: Path) -> None:
    into_cache(weights)
    assert open_backward_mask("auto", None, CPU, "gradient", pytest.fail).name == "gradient"
    assert open_backward_mask("mlbw", None, CPU, "gradient", pytest.fail).name.startswith("mlbw sha256:")


@pytest.mark.parametrize(
    ("wanted", "file", "begun_with"),
    [
        ("mlbw", None, None),
        ("auto", None, "mlbw sha256:0123456789abcdef"),
        ("auto", "no.pth", None),
        ("auto", "text.pth", None),
    ],
)
def test_what_is_asked_for_never_becomes_something_else(
    tmp_path: Path, wanted: str, file: str | None, begun_with: str | None
) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(MaskModelError, match=file or MASK_WEIGHTS_FILE):
        open_backward_mask(wanted, tmp_path / file if file else None, CPU, begun_with, pytest.fail)


def test_damaged_weights_in_the_cache_are_named_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    into_cache(tmp_path / "text.pth")
    with pytest.raises(MaskModelError, match=MASK_WEIGHTS_FILE):
        open_backward_mask("auto", None, CPU, None, pytest.fail)
