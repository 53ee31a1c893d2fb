from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN

from vshard.base.errors import OptionError
from vshard.masks.mappers import MAPPERS, map_depth

STORED = np.load(GOLDEN / "mapper.npz")


def test_the_table_holds_every_single_mapper_of_the_original() -> None:
    assert set(MAPPERS) == {key.removeprefix("map:") for key in STORED if key.startswith("map:")}


@pytest.mark.parametrize("name", MAPPERS)
@pytest.mark.parametrize(("x", "kind"), [("x", "map"), ("off_range_x", "off_range")])
def test_a_mapper_meets_the_original(name: str, x: str, kind: str) -> None:
    mapped = map_depth(torch.from_numpy(STORED[x]), name)
    assert mapped.dtype == torch.float32
    np.testing.assert_allclose(mapped.numpy(), STORED[f"{kind}:{name}"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", MAPPERS)
def test_a_mapper_keeps_the_ends_and_the_order(name: str) -> None:
    mapped = map_depth(torch.linspace(0, 1, 1001), name)
    assert mapped[0].item() == pytest.approx(0, abs=1e-6)
    assert mapped[-1].item() == pytest.approx(1, abs=1e-6)
    assert (mapped.diff() >= 0).all()


def test_an_unknown_mapper_is_named_with_the_allowed_ones() -> None:
    with pytest.raises(OptionError, match=r"^mapper 'div_7' is unknown; use one of none, .*shift_045$"):
        map_depth(torch.zeros(1), "div_7")
