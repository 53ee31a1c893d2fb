"""Fresh weights: a network that fills holes from what is known beside them before it has learned anything.

Drawn by the original's rules alone, features grow a hundredfold on their way (every block counts its input twice), one
optimizer step moves the frames by whole units, and carrying a colour into a hole has to be learned from nothing. Here
branches start small, and three layers start as a fill that needs no training, a *normalized convolution* (Knutsson and
Westin, "Normalized and differential convolution", 1993):

- ``patch`` gives a token the coefficients of its pixels and a channel that says "known". A token of a hole has nothing
  but a channel that says "hole".
- ``enc1`` gives a hole's token the sums of what is known in its window of 64×64 pixels, the nearer the more; "known"
  is summed up alike.
- ``dec1`` divides by it: LayerNorm beside a "known" that outweighs all else. ``to_image`` makes pixels of coefficients.

What is left to learn is where to take things from. What it brings: benchmarks/LOG.md, "Network".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .network import LightVideoInpaint

PATCH_PX = 4
_COLOURS = 3
# Branches that start smaller than the original's rules have them.
_SCALES = {"glu_conv.w2.weight": 0.03, "proj_out.weight": 0.2, "up.weight": 0.0}

# A token keeps the coefficient c of its pixels, which lie in [-1, 1], as LEVEL + TOKEN · c and LEVEL - TOKEN · c: the
# activation after `patch` has its kink at 0, which no pixels reach.
_TOKEN = 0.25
_LEVEL = 7 * _TOKEN
# "Known" has LEVEL + KNOWN, so much that a token's standard deviation is nearly that of this channel alone.
_KNOWN = 16 * _TOKEN
# A hole's token: this in the channel "hole", 0 elsewhere.
_HOLE = 1.0
# Share of a known token, and of a hole's sums, that enc1 hands on: less than what dec1 adds, which is normalized.
_KEPT = 0.25
# What the fill has no use for starts so small beside it that "known" outweighs it.
_UNUSED = 0.02
# What is left of a hole's mark then: where next to nothing is known, it is that which outweighs the rest, and the fill
# becomes gray.
_UNKNOWN = 0.03
# Sums are this many times a mean, so that the 1 beside them takes no digits from them in bfloat16.
_SUMS = 8.0
# What inner channels have of c, before the activation, and what dec1 makes of it.
_READ = 0.5
_MEAN_GAIN = 1.5
# A token at a distance of d tokens weighs (d² + 1)^-2, and more of them to the right: there the background is, of whose
# colour the hole is (:mod:`.baselines`).
_RIGHT = 4.0
# Before the activation: a gate that is open, one that is closed, and a mark that outweighs its token's other values.
_OPEN, _CLOSED, _MARK = 1.2, -3.5, 8.0


def initialise(model: LightVideoInpaint) -> None:
    """Draw fresh weights by the rules of the original (section 8 of its facts), then lay the fill into them."""
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.constant_(parameter, 1 if name.endswith(".proj_spatial.bias") else 0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv1d):
            reads = model.get_submodule(name.replace("proj_spatial", "proj_in"))
            assert isinstance(reads, nn.Linear)
            bound = 1e-3 / reads.in_features
            nn.init.uniform_(module.weight, -bound, bound)
    nn.init.trunc_normal_(model.mask_bias, std=0.01)
    assert model.to_image.bias is not None
    nn.init.constant_(model.to_image.bias, 0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for end, factor in _SCALES.items():
                if name.endswith(end):
                    parameter.mul_(factor)
        fill = _Fill(model)
        if fill.coefficients:
            fill.make_tokens()
            fill.sum_up()
            fill.divide()


class _Fill:
    """Lay the fill into a network's weights; the channels it does not need keep theirs."""

    def __init__(self, model: LightVideoInpaint) -> None:
        self.model = model
        dim = model.kwargs["base_dim"]
        # Each takes four of the first block's inner channels, which are twice as many as a token's; five are for marks.
        self.coefficients = n = min(_COLOURS * PATCH_PX**2, max(0, (2 * dim - 5) // 4))
        self.plus, self.minus = slice(0, n), slice(n, 2 * n)
        self.known, self.hole = 2 * n, 2 * n + 1
        self.used = slice(0, 2 * n + 2)
        # LayerNorm over `dim` channels, one of which is large: its own value, that of the others, and what it divides
        # a known token by.
        self.large, self.rest = math.sqrt(dim - 1), -1 / math.sqrt(dim - 1)
        self.deviation = _KNOWN * math.sqrt(dim - 1) / dim

    def make_tokens(self) -> None:
        """Give ``patch`` the coefficients of pixels, and holes their mark."""
        model = self.model
        rows = _TOKEN * patch_basis()[: self.coefficients]
        assert model.patch.bias is not None
        weight, bias = model.patch.weight.flatten(1), model.patch.bias
        weight *= _UNUSED
        weight[self.used] = 0
        weight[self.plus], weight[self.minus] = rows, -rows
        bias.fill_(_LEVEL)
        bias[self.known] += _KNOWN
        mark = model.mask_bias.flatten()
        mark.zero_()
        mark[self.hole] = _HOLE
        # To those that read tokens by draws "known" is as a coefficient.
        for conv in (model.down, model.enc1.glu_conv.w1, model.dec1.glu_conv.w1):
            conv.weight[:, self.known] *= _TOKEN / _KNOWN

    def sum_up(self) -> None:
        """Let ``enc1`` write the sums of known tokens into those of holes, and leave ±KEPT of known ones.

        A block's mixer gives ``out · (u · (W v + 1))``, where u and v come from each token and W mixes a window's.
        In some of its inner channels v has coefficients, which W sums up, and u opens in holes alone; in others v is
        nothing, and u, which has coefficients, is passed on by the 1.
        """
        block = self.model.enc1
        mixer, norm = block.gmlp.gmlp, block.norm2
        u, v = mixer.proj_in.weight.chunk(2)
        u_bias, v_bias = mixer.proj_in.bias.chunk(2)
        out, everywhere = mixer.proj_out.weight, mixer.proj_out.bias
        n = self.coefficients
        sum_plus, sum_minus, own_plus, own_minus = (slice(i * n, (i + 1) * n) for i in range(4))
        sum_known, own_known, nothing, constant, mark = range(4 * n, 4 * n + 5)
        taken, summed = slice(0, 4 * n + 5), [*range(2 * n), sum_known, nothing]
        for part in (u, v):
            part[:, self.known] = part[:, self.hole] = 0
            part[taken] = 0
        out[:, taken] = 0

        self._read_pairs(v, sum_plus, sum_minus)
        self._read_pairs(u, own_plus, own_minus)
        # Far above the kink, where GELU changes nothing.
        u[own_known, self.known], u[own_known, self.hole] = 1, -1
        for row in (*summed, constant):
            self._let_through(u, u_bias, row, self.hole, _OPEN)
        # So that norm2, which divides each token's v by its deviation, divides all by nearly the same.
        self._let_through(v, v_bias, sum_known, self.known, _MARK)
        self._let_through(v, v_bias, mark, self.hole, _MARK)
        inner = len(v)
        # What is passed on by the 1 has no sums.
        norm.weight[taken] = 0
        norm.weight[summed] = _SUMS * math.sqrt(inner - 1) / inner

        gate, lost = _gelu(_OPEN), 2 - _KEPT
        share = _KEPT / (_SUMS * gate)
        of_known = _KNOWN / self.deviation
        self._write_pairs(out, sum_plus, sum_minus, share * _TOKEN * _MARK / _READ)
        self._write_pairs(out, own_plus, own_minus, -lost * _TOKEN / _READ)
        out[self.known, sum_known] = share * _KNOWN
        out[self.known, nothing] = -share * _KNOWN
        out[self.known, own_known] = -lost * _KNOWN / of_known
        # Takes the levels back, in holes what this does to them, and their mark.
        everywhere.fill_(-2 * _LEVEL)
        out[:, constant] = 2 * _LEVEL / gate
        out[self.hole, constant] -= (2 * _HOLE - _UNKNOWN) / gate
        weights = mixer.proj_spatial.weight
        weights.copy_(_nearness(math.isqrt(len(weights)))[:, :, None])

    def divide(self) -> None:
        """Let ``dec1`` add the normalized coefficients, and ``to_image`` turn coefficients into pixels of [0, 1]."""
        mixer = self.model.dec1.gmlp.gmlp
        out, n = mixer.proj_out.weight, self.coefficients
        plus, minus = slice(0, n), slice(n, 2 * n)
        for part in mixer.proj_in.weight.chunk(2):
            part[:, self.known] = part[:, self.hole] = 0
        u = mixer.proj_in.weight.chunk(2)[0]
        u[: 2 * n] = 0
        self._read_pairs(u, plus, minus)
        out[:, : 2 * n] = 0
        self._write_pairs(out, plus, minus, _MEAN_GAIN)
        # A channel has this much of c, where half of the tokens that count are known.
        share = _MEAN_GAIN * _READ + 2 * _KEPT * _TOKEN / 2
        image = self.model.to_image.weight.flatten(1)
        image.zero_()
        pixels = patch_basis()[:n].T / (2 * 2 * share)
        image[:, self.plus], image[:, self.minus] = pixels, -pixels

    def _read_pairs(self, part: Tensor, plus: slice, minus: slice) -> None:
        """Make rows give ±READ · c of known tokens; GELU keeps the difference of two such rows as it is."""
        same = _READ * self.deviation / (2 * _TOKEN) * torch.eye(self.coefficients)
        part[plus, self.plus] = part[minus, self.minus] = same
        part[plus, self.minus] = part[minus, self.plus] = -same

    def _write_pairs(self, out: Tensor, plus: slice, minus: slice, gain: float) -> None:
        """Add ``gain`` times the difference of two inner channels to a token's plus, and take it from its minus."""
        same = gain * torch.eye(self.coefficients)
        out[self.plus, plus] = out[self.minus, minus] = same
        out[self.plus, minus] = out[self.minus, plus] = -same

    def _let_through(self, part: Tensor, bias: Tensor, row: int, channel: int, value: float) -> None:
        """Make a row give ``value`` in tokens whose large channel is ``channel``, CLOSED in others."""
        slope = (value - _CLOSED) / (self.large - self.rest)
        part[row, channel] = slope
        bias[row] = _CLOSED - slope * self.rest


def _gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def _nearness(window: int) -> Tensor:
    """Give the weights of a window's tokens for each of them, (N, N) float32, rows of sum 1; its own is 0."""
    places = torch.arange(window**2)
    row, column = places // window, places % window
    distance = (row - row[:, None]).square() + (column - column[:, None]).square()
    weights = (distance + 1.0).pow(-2)
    weights = torch.where(column > column[:, None], _RIGHT * weights, weights)
    return F.normalize(weights.fill_diagonal_(0), p=1, dim=1)


def patch_basis() -> Tensor:
    """Give an orthonormal basis of a token's pixels, smooth rows first: (48, 48) float32, pixels as (3, 4, 4).

    A two-dimensional DCT-II of luma and of two colour differences.
    """
    steps = torch.arange(PATCH_PX, dtype=torch.float64)
    waves = torch.cos(math.pi * (steps + 0.5) * steps[:, None] / PATCH_PX)
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    waves, colours = (F.normalize(rows, dim=1) for rows in (waves, colours))
    basis = torch.einsum("cr,uy,vx->cuvryx", colours, waves, waves).flatten(0, 2).flatten(1)
    # Colour differences of natural pictures are small and smooth: their waves come after luma's.
    roughness = steps[:, None].square() + steps.square()
    difference = torch.where(roughness > 0, 6.0, 0.5)
    order = torch.stack([roughness, roughness + difference, roughness + difference]).flatten()
    return basis[order.argsort(stable=True)].float()
