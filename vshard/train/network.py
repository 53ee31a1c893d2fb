"""The network ``inpaint.light_video_inpaint_v1``: 12 frames and their hole masks in, 12 filled frames out.

A gated-MLP U-net on 4×4-pixel tokens: windows of 16×16 tokens at full width, windows of 8×8 and runs of
12 frames at half size (facts of the original, section 8; gMLP: Liu et al., *Pay Attention to MLPs*, 2021). Keys and
shapes of the ``state_dict`` are those of iw3, so that weights pass both ways.

Inside, maps are (T, H, W, C) in memory: a 1×1 convolution is then a plain matrix product, a 3×3 one runs
channels-last, and cutting windows is one copy that already puts the window's tokens in front, so that mixing
them is one matrix product over all windows at once.

Tokens that only the cut border depends on are never worked out. Cost of a training step (12 frames of 256×256,
float32): 2.6 to 3.2 s of two CPU cores and 3 GiB where the process keeps what it frees (`memory`);
`benchmarks/step.py`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import OptionError
from .initial import PATCH_PX, initialise
from .products import linear, mix

CLIP_FRAMES = 12
# Pixels that the result of `forward` loses at each side: there the windows saw replicated pixels.
BORDER_PX = 16

# A file says how wide its network is: bounded before memory is taken.
WIDEST = 1024
WIDEST_RATIO = 16

_NAME = "inpaint.light_video_inpaint_v1"
SIZES = {
    "narrow": {"base_dim": 32, "lv2_mlp_ratio": 1},
    "small": {"base_dim": 96, "lv2_mlp_ratio": 1},
    "medium": {"base_dim": 128, "lv2_mlp_ratio": 2},
    "large": {"base_dim": 192, "lv2_mlp_ratio": 2},
}
# Constructor arguments by the names of iw3 and by our short ones; the bare name is the small network. The narrow
# one is ours, for demos and tests; iw3 builds it from the file's own arguments, as it does the small one.
ARCHITECTURES: dict[str, dict[str, int]] = {
    **SIZES,
    _NAME: SIZES["small"],
    **{f"{_NAME}_{size}": SIZES[size] for size in ("small", "medium", "large")},
}
# For whoever has no GPU.
CPU_ARCH = "narrow"

_WINDOW = 16
_WINDOW_HALF_SIZE = 8
# A token is a hole when a pixel of its blurred mask is above this.
_HOLE_THRESHOLD = 0.99
_BLUR_TAPS = 15
_LEAK = 0.1


class LightVideoInpaint(nn.Module):
    """Fill the holes of 12 frames from their surroundings in space and time.

    Args:
        base_dim: channels of a full-size token, even; 96 in the small network. 16 is enough for a demo.
        lv2_mlp_ratio: how much wider the half-size spatial blocks are inside; 1 in the small network.

    Weights are drawn from PyTorch's global generator (``torch.manual_seed``).

    Raises:
        OptionError: ``base_dim`` is not an even number from 2 to 1024 or ``lv2_mlp_ratio`` not from 1 to 16.
    """

    _blur: Tensor

    def __init__(self, base_dim: int = 96, lv2_mlp_ratio: int = 1) -> None:
        super().__init__()
        if base_dim < 2 or base_dim % 2:
            raise OptionError(f"base_dim is {base_dim}; it must be a positive even number, such as 16 or 96")
        if base_dim > WIDEST or lv2_mlp_ratio > WIDEST_RATIO:
            raise OptionError(
                f"base_dim is {base_dim}, lv2_mlp_ratio {lv2_mlp_ratio}; at most {WIDEST} and {WIDEST_RATIO} are built"
            )
        if lv2_mlp_ratio < 1:
            raise OptionError(f"lv2_mlp_ratio is {lv2_mlp_ratio}; it must be 1 or more")
        self.kwargs = {"base_dim": base_dim, "lv2_mlp_ratio": lv2_mlp_ratio}

        half_windows = partial(_Windows, base_dim * 2, window=_WINDOW_HALF_SIZE, ratio=lv2_mlp_ratio)
        self.mask_bias = nn.Parameter(torch.empty(1, base_dim, 1, 1))
        self.patch = nn.Conv2d(3, base_dim, PATCH_PX, stride=PATCH_PX)
        self.enc1 = _Block(base_dim, _Windows(base_dim, window=_WINDOW, ratio=2))
        self.down = nn.Conv2d(base_dim, base_dim * 2, 2, stride=2)
        self.enc2 = nn.Sequential(
            _Block(base_dim * 2, half_windows(shifted=True)),
            _Block(base_dim * 2, _Frames(base_dim * 2)),
            _Block(base_dim * 2, half_windows()),
            _Block(base_dim * 2, _Frames(base_dim * 2)),
            _Block(base_dim * 2, half_windows(shifted=True)),
        )
        self.up = nn.Conv2d(base_dim * 2, base_dim * 4, 1)
        self.dec1 = _Block(base_dim, _Windows(base_dim, window=_WINDOW, ratio=2))
        self.to_image = nn.Conv2d(base_dim, 3 * PATCH_PX**2, 1)
        self.register_buffer("_blur", _gaussian(_BLUR_TAPS), persistent=False)
        initialise(self)

    @property
    def name(self) -> str:
        """The architecture's name in iw3; any width of our own goes by the bare name."""
        sizes = [size for size in ("medium", "large") if self.kwargs == SIZES[size]]
        return f"{_NAME}_{sizes[0]}" if sizes else _NAME

    def preprocess(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Empty the holes and soften the mask outwards (Gaussian of 15 taps, sigma 2.6).

        Args:
            x: (T, 3, H, W) float in [0, 1], RGB.
            mask: (T, 1, H, W) float or bool, 1 = hole to fill.

        Returns:
            x: the same, 0 in the holes.
            mask: (T, 1, H, W) float in [0, 1], 1 in the holes, falling to 0 within 7 pixels around them.
        """
        mask = mask.to(x.dtype)
        radius = _BLUR_TAPS // 2
        kernel = self._blur.to(x.dtype)
        blurred = F.conv2d(F.pad(mask, (radius,) * 4, mode="replicate"), kernel[None, None, None, :])
        blurred = F.conv2d(blurred, kernel[None, None, :, None])
        return x * (1 - mask), (blurred + mask).clamp(0, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Fill 12 preprocessed frames and cut off the border.

        Args:
            x: (12, 3, H, W) float, frames from :meth:`preprocess`; H and W above 32.
            mask: (12, 1, H, W) float in [0, 1], mask from :meth:`preprocess`.

        Returns:
            (12, 3, H - 32, W - 32) float; clamped to [0, 1] in eval mode only.

        Raises:
            OptionError: there are not 12 frames.
        """
        out = self._fill(x, mask, BORDER_PX)
        return out if self.training else out.clamp(0, 1)

    def infer(self, x: Tensor, mask: Tensor) -> Tensor:
        """Fill the holes of any number of frames, border and all, without gradients.

        Frames are taken twelve at a time, after repeating the first and the last one up to a multiple of 12.

        Args:
            x: (T, 3, H, W) float in [0, 1], RGB; T at least 1.
            mask: (T, 1, H, W) float or bool, 1 = hole to fill.

        Returns:
            (T, 3, H, W) float in [0, 1].

        Raises:
            OptionError: there is no frame.
        """
        frames = x.shape[0]
        if frames == 0:
            raise OptionError("there is no frame to fill; give at least one")
        missing = -frames % CLIP_FRAMES
        front = missing // 2
        index = torch.arange(-front, frames + missing - front, device=x.device).clamp(0, frames - 1)
        with torch.no_grad():
            clips = [self.fill(*self.preprocess(x[i], mask[i])) for i in index.split(CLIP_FRAMES)]
            return torch.cat(clips)[front : front + frames].clamp(0, 1)

    def fill(self, x: Tensor, mask: Tensor) -> Tensor:
        """Fill 12 preprocessed frames: as :meth:`forward`, but (12, 3, H, W), never clamped."""
        return self._fill(x, mask, 0)

    def _fill(self, x: Tensor, mask: Tensor, border: int) -> Tensor:
        """Fill 12 frames and cut off ``border`` pixels, which spares the tokens that nothing else depends on."""
        frames, _, height, width = x.shape
        if frames != CLIP_FRAMES:
            raise OptionError(f"the network fills {CLIP_FRAMES} frames at once and was given {frames}")
        # At least one pixel is added, as in the original: 256 becomes 320.
        step = PATCH_PX * _WINDOW
        padding = (0, step - width % step, 0, step - height % step)
        image = F.pad(x * 2 - 1, padding, mode="replicate").contiguous(memory_format=torch.channels_last)
        hole = F.max_pool2d(F.pad(mask, padding, mode="replicate"), PATCH_PX) > _HOLE_THRESHOLD

        tokens = F.leaky_relu(_channels_last(self.patch, image), _LEAK)
        tokens = torch.where(hole.permute(0, 2, 3, 1), self.mask_bias.flatten().to(tokens.dtype), tokens)
        full = self.enc1(tokens)
        half = _channels_last(self.down, full.permute(0, 3, 1, 2))
        wanted: list[tuple[int, int] | None] = [None] * (len(self.enc2) + 1)
        if border:  # whole frames depend on nearly all of it
            rows, columns = (
                self._tokens_wanted(size - border, given)
                for size, given in zip((height, width), full.shape[1:3], strict=True)
            )
            wanted = [*zip(rows, columns, strict=True)]
        for block, of_block in zip(self.enc2, wanted[:-1], strict=True):
            half = block(half, of_block)
        # Pixel shuffle by 2, staying channels-last.
        up = (
            _pointwise(self.up, half)
            .unflatten(3, (-1, 2, 2))
            .permute(0, 1, 4, 2, 5, 3)
            .flatten(3, 4)
            .flatten(1, 2)
        )
        out = _pointwise(self.to_image, self.dec1(full[:, : up.shape[1], : up.shape[2]] + up, wanted[-1]))
        # Pixel shuffle by 4, into the usual (T, 3, H, W).
        out = out.unflatten(3, (3, PATCH_PX, PATCH_PX)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        shown = (..., slice(border, height - border), slice(border, width - border))
        x, mask, out = x[shown], mask[shown], out[shown]
        return x * (1 - mask) + out * mask

    def _tokens_wanted(self, pixels: int, given: int) -> list[int]:
        """Tell how many tokens of what each half-size block gives, and then ``dec1``, the first ``pixels`` depend on.

        Along one axis; ``given``: how many full-size ones there are.
        """
        wanted = [-(-pixels // PATCH_PX)]
        wanted.append(self.dec1.needed(wanted[0], given) // 2)
        for block in list(self.enc2)[:0:-1]:
            assert isinstance(block, _Block)
            wanted.append(block.needed(wanted[-1], given // 2))
        return wanted[::-1]


def create(arch: str) -> LightVideoInpaint:
    """Make the network named ``arch`` (a key of :data:`ARCHITECTURES`) with fresh weights.

    Raises:
        OptionError: there is no such architecture.
    """
    if arch not in ARCHITECTURES:
        raise OptionError(f"there is no architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
    return LightVideoInpaint(**ARCHITECTURES[arch])


class _Block(nn.Module):
    """Mix tokens, then neighbours: (T, H, W, C) to the same shape, each part added to its input.

    Of its result the first ``wanted`` rows and columns can be asked for alone.
    """

    def __init__(self, dim: int, mixer: _Windows | _Frames) -> None:
        super().__init__()
        self.gmlp = mixer
        self.norm1 = nn.LayerNorm(dim, bias=False)
        self.norm2 = nn.LayerNorm(mixer.gmlp.proj_out.in_features, bias=False)
        self.glu_conv = _GluConv(dim)

    def forward(self, x: Tensor, wanted: tuple[int, int] | None = None) -> Tensor:
        # The mixer adds its own input too, so x counts twice: so does the original.
        if wanted is None:  # and no arithmetic on sizes: in an export they are symbols
            x = x + self.gmlp(x, self.norm1, self.norm2)
            return x + self.glu_conv(x, (False, False))
        given = x.shape[1], x.shape[2]
        rows, columns = (self.needed(*axis) for axis in zip(wanted, given, strict=True))
        x = x[:, :rows, :columns]
        mixed = self.gmlp(x, self.norm1, self.norm2)
        beside = tuple(w < n for w, n in zip(wanted, given, strict=True))
        rows, columns = (w + more for w, more in zip(wanted, beside, strict=True))
        x = x[:, :rows, :columns] + mixed[:, :rows, :columns]
        return x[:, : wanted[0], : wanted[1]] + self.glu_conv(x, beside)

    def needed(self, wanted: int, given: int) -> int:
        """Tell how many of ``given`` tokens along an axis the first ``wanted`` of the result depend on."""
        return min(self.gmlp.needed(min(wanted + 1, given)), given)


class _Windows(nn.Module):
    """Mix the tokens of each square window of one frame."""

    def __init__(self, dim: int, *, window: int, ratio: int, shifted: bool = False) -> None:
        super().__init__()
        self.window = window
        self.margin = window // 2 if shifted else 0
        self.gmlp = _TokenMixer(dim, tokens=window**2, ratio=ratio)

    def needed(self, wanted: int) -> int:
        """Tell how many tokens along an axis the first ``wanted`` of the result depend on."""
        return -(-(wanted + self.margin) // self.window) * self.window - self.margin

    def forward(self, x: Tensor, norm1: nn.LayerNorm, norm2: nn.LayerNorm) -> Tensor:
        m = self.margin
        _, height, width, _ = x.shape
        if m:
            right, bottom = (-(size + m) % self.window for size in (width, height))
            x = F.pad(x, (0, 0, m, right, m, bottom))
        cut = x.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window)).permute(2, 4, 0, 1, 3, 5)
        mixed = self.gmlp(cut.reshape(self.window**2, -1, x.shape[3]), norm1, norm2)
        x = mixed.view(cut.shape).permute(2, 3, 0, 4, 1, 5).reshape(x.shape)
        return x[:, m : m + height, m : m + width] if m else x


class _Frames(nn.Module):
    """Mix the 12 tokens that lie at one place in the 12 frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gmlp = _TokenMixer(dim, tokens=CLIP_FRAMES, ratio=2)

    def needed(self, wanted: int) -> int:
        """Tell how many tokens along an axis the first ``wanted`` of the result depend on."""
        return wanted

    def forward(self, x: Tensor, norm1: nn.LayerNorm, norm2: nn.LayerNorm) -> Tensor:
        mixed: Tensor = self.gmlp(x.flatten(1, 2), norm1, norm2)
        return mixed.view(x.shape)


class _TokenMixer(nn.Module):
    """The gated MLP: (N tokens, M windows, C) to the same shape, its input added."""

    def __init__(self, dim: int, *, tokens: int, ratio: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, dim * ratio * 2)
        # A convolution only by the shape of its weight, (N, N, 1), which iw3 expects.
        self.proj_spatial = nn.Conv1d(tokens, tokens, 1)
        self.proj_out = nn.Linear(dim * ratio, dim)

    def forward(self, x: Tensor, norm1: nn.LayerNorm, norm2: nn.LayerNorm) -> Tensor:
        normed = norm1(x)
        # Two products make the halves apart: splitting one result would copy each half once more (2 % of a
        # training step on a CPU).
        u, v = (
            F.gelu(linear(normed, weight, bias))
            for weight, bias in zip(self.proj_in.weight.chunk(2), self.proj_in.bias.chunk(2), strict=True)
        )
        v = norm2(v)
        spatial = self.proj_spatial
        assert spatial.bias is not None
        gate = mix(v, spatial.weight[:, :, 0], spatial.bias)
        return linear(u * gate, self.proj_out.weight, self.proj_out.bias) + x


class _GluConv(nn.Module):
    """A gated 3×3 convolution: (T, H, W, C) to the same shape.

    Where the last rows and columns are there as neighbours only (``beside``), they are not in the result.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w1 = nn.Conv2d(dim, dim, 1)
        self.w2 = nn.Conv2d(dim // 2, dim, 3)

    def forward(self, x: Tensor, beside: tuple[bool, bool]) -> Tensor:
        gated = F.glu(_pointwise(self.w1, x), dim=3)
        return _channels_last(self.w2, _ReplicateEdge.apply(gated, *beside).permute(0, 3, 1, 2))


class _ReplicateEdge(torch.autograd.Function):
    """Add one pixel on all sides, (T, H, W, C) to (T, H + 2, W + 2, C); the copies pass no gradient.

    None is added behind rows or columns whose last is a neighbour itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, beside_rows: bool, beside_columns: bool) -> Tensor:
        frames, height, width, channels = ctx.shape = x.shape
        out = x.new_empty(frames, height + 2 - beside_rows, width + 2 - beside_columns, channels)
        out[:, 1 : height + 1, 1 : width + 1] = x
        out[:, 0, 1 : width + 1] = x[:, 0]
        if not beside_rows:
            out[:, -1, 1 : width + 1] = x[:, -1]
        out[:, :, 0] = out[:, :, 1]
        if not beside_columns:
            out[:, :, -1] = out[:, :, -2]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        _, height, width, _ = ctx.shape
        return grad[:, 1 : height + 1, 1 : width + 1], None, None


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1×1 convolution to (T, H, W, C)."""
    assert conv.bias is not None
    return linear(x, conv.weight.flatten(1), conv.bias)


def _channels_last(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to (T, C, H, W) in channels-last memory; give (T, H, W, C)."""
    out: Tensor = conv(x)
    return out.permute(0, 2, 3, 1).contiguous()


def _gaussian(taps: int) -> Tensor:
    """Give the 1-D kernel of a Gaussian blur, sum 1, with OpenCV's rule for sigma from the size."""
    sigma = taps * 0.15 + 0.35
    weights = [math.exp(-((i - taps // 2) ** 2) / (2 * sigma**2)) for i in range(taps)]
    return torch.tensor(weights, dtype=torch.float64).div(sum(weights)).float()
