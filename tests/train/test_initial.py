"""Fresh weights: the original's rules, and a fill laid into them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vshard.train.network import BORDER_PX, LightVideoInpaint, create

# What the fill that fresh weights begin with needs; all else is drawn by the original's rules.
FILL = (
    *("patch.weight", "patch.bias", "mask_bias", "enc1.gmlp.gmlp.", "enc1.norm2.weight", "up.weight"),
    *("dec1.gmlp.gmlp.proj_in.weight", "dec1.gmlp.gmlp.proj_out.weight", "to_image."),
)


def test_fresh_weights_follow_the_rules() -> None:
    torch.manual_seed(1)
    model = create("small")
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(FILL)}
    assert len(state) == 78
    assert (model.to_image.bias == 0.5).all() and (model.up.weight == 0).all()
    assert model.mask_bias.count_nonzero() == 1
    block = "enc2.1.gmlp.gmlp"
    for key, value in state.items():
        if key.endswith("proj_spatial.bias") or ".norm" in key:
            assert (value == 1).all(), key
        elif key.endswith("bias"):
            assert (value == 0).all(), key
    assert state["down.weight"].std().item() == pytest.approx((2 / (192 * 4)) ** 0.5, rel=0.05)
    assert state["enc1.glu_conv.w1.weight"].std().item() == pytest.approx((2 / 96) ** 0.5, rel=0.05)
    assert state["enc1.glu_conv.w2.weight"].std().item() == pytest.approx(
        0.03 * (2 / (96 * 9)) ** 0.5, rel=0.05
    )
    assert state[f"{block}.proj_in.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert state[f"{block}.proj_out.weight"].std().item() == pytest.approx(0.004, rel=0.05)
    assert 0 < state[f"{block}.proj_spatial.weight"].abs().max() <= 1e-3 / 192


def fresh(arch: str) -> LightVideoInpaint:
    torch.manual_seed(1)
    return create(arch).eval()


def inner(frames: Tensor) -> Tensor:
    return frames[..., BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]


@pytest.mark.parametrize("arch", ["narrow", "small", "medium"])
def test_the_last_layer_turns_the_first_ones_coefficients_back(arch: str) -> None:
    model = create(arch)
    with torch.no_grad():
        there, back = model.patch.weight.flatten(1), model.to_image.weight.flatten(1)
        kept = int((back.abs().sum(0) > 0).sum()) // 2
        both = back[:, : 2 * kept] @ there[: 2 * kept]
        both /= both.trace() / kept
    # A projection onto what is kept; of all 48 coefficients, pixels themselves.
    torch.testing.assert_close(both @ both, both, rtol=0, atol=1e-5)
    assert kept == {"narrow": 14, "small": 46, "medium": 48}[arch]
    if kept == 48:
        torch.testing.assert_close(both, torch.eye(48), rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ["narrow", "small", "medium", "large"])
def test_a_fresh_network_that_knows_nothing_puts_out_gray(arch: str) -> None:
    rng = torch.Generator().manual_seed(3)
    model = fresh(arch).train()
    with torch.no_grad():
        frames = model(*model.preprocess(torch.rand(12, 3, 64, 64, generator=rng), torch.ones(12, 1, 64, 64)))
    assert 0.3 < frames.mean().item() < 0.7 and frames.std().item() < 0.4


@pytest.mark.parametrize(("arch", "error"), [("small", 0.01), ("medium", 0.01), ("narrow", 0.02)])
def test_a_fresh_network_turns_tokens_back_into_their_pixels(arch: str, error: float) -> None:
    rng = torch.Generator().manual_seed(2)
    frames = F.interpolate(torch.rand(12, 3, 8, 8, generator=rng), (64, 64), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        out = fresh(arch)(frames, torch.full((12, 1, 64, 64), 0.5))  # half known, half out of the last layer
    assert (out - inner(frames)).abs().mean() < error


@pytest.mark.parametrize("arch", ["narrow", "small", "medium", "large"])
def test_a_fresh_network_continues_a_colour_into_holes(arch: str) -> None:
    model = fresh(arch)
    features: list[Tensor] = []
    model.dec1.register_forward_hook(lambda _module, _inputs, out: features.append(out))
    colour = torch.tensor([0.15, 0.5, 0.7]).view(1, 3, 1, 1)
    frames = colour.expand(12, 3, 96, 96).contiguous()
    mask = torch.zeros(12, 1, 96, 96)
    mask[:, :, 30:70, 40:52] = 1
    with torch.no_grad():
        out = model(*model.preprocess(frames, mask))
    assert (out - colour).abs().max() < 0.08
    assert (out - colour)[..., 24:44, 26:34].mean((0, 2, 3)).abs().max() < 0.04
    # One step of an optimizer moves the frames by its rate times the features: these must not be large.
    assert 0.05 < features[0].std().item() < 5


def test_a_fresh_network_takes_more_from_the_right() -> None:
    """Holes open to the right of what is near: the background is there."""
    frames = torch.full((12, 3, 96, 96), 0.2)
    frames[..., 48:] = 0.8
    mask = torch.zeros(12, 1, 96, 96)
    mask[..., 42:54] = 1
    model = fresh("narrow")
    with torch.no_grad():
        filled_in = model(*model.preprocess(frames, mask))
    middle = filled_in[..., 48 - BORDER_PX].mean().item()
    assert 0.55 < middle < 0.8
