"""The original's mask network ``sbs.mlbw``: depth in, a backward warp in two layers and its holes out.

Two layers of horizontal shifts, their mixing weights and a hole logit for every pixel of the depth, for one
eye; :mod:`vshard.masks.backward` makes masks of them. Keys and shapes of the ``state_dict`` are those of iw3
(facts of the original, section 6), so that its file loads as it is; that file is looked for in PyTorch's
cache, then downloaded.

Inside, maps are (N, H, W, C) in memory: a 1×1 convolution is a plain matrix product, a window a plain copy.

Cost: 1 MB of weights; 0.2 s for depth of 392×686 on one CPU core.
"""

from __future__ import annotations

import http.client
import io
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import MaskModelError
from ..base.files import make_folder, write_file
from ..base.tensors import TensorFileError, load_tensors

MASK_WEIGHTS_FILE = "iw3_mask_mlbw_l2_d1_20250903.pth"
MASK_WEIGHTS_URL = f"https://github.com/nagadomi/nunif/releases/download/0.0.0/{MASK_WEIGHTS_FILE}"
DOWNLOAD_TIMEOUT_SECONDS = 10
# The true file has 1 MB; nothing larger than this is taken into memory.
LARGEST_FILE_BYTES = 64_000_000

_NAME = "sbs.mlbw"
# What an original file says of its network; what it leaves out, its shapes still say.
_KWARGS = {"num_layers": 2, "base_dim": 32, "small": False, "cycle": False, "hole_mask": True}
_ENTRIES = {"name": str, "kwargs": dict, "state_dict": dict}

_LAYERS = 2
_PACK = 8  # columns that become one token
_PACKED_DIM = 8  # channels of a column; a token has 8 × 8
_WINDOW = 4
_HEADS = 2
_REACH = 4  # columns that the first and the last convolution see to either side


class MaskOutput(NamedTuple):
    """What the network says of every pixel of the depth, (N, C, h, w) float32 each."""

    delta: Tensor  # C = 2 layers: where to look, in half pixels of the depth to the right
    weights: Tensor  # C = 2 layers, in [0, 1], sum 1
    hole_logits: Tensor  # C = 1, above 0: rather a hole


class MaskNetwork(nn.Module):
    """See one eye's view in depth: where each pixel comes from, and what it cannot show.

    Fresh weights say nothing; :func:`load_mask_network` brings the original's.
    """

    def __init__(self) -> None:
        super().__init__()
        sides = (_REACH, _REACH, 0, 0)
        self.lv1_in = nn.Sequential(
            nn.ReplicationPad2d(sides), nn.Conv2d(3, _PACKED_DIM, (1, 2 * _REACH + 1)), nn.LeakyReLU(0.2)
        )
        self.lv2 = nn.Sequential(*(_Block(_PACKED_DIM * _PACK, shifted) for shifted in (True, False) * 2))
        self.lv1_out = nn.Sequential(
            nn.ReplicationPad2d(sides), nn.Conv2d(_PACKED_DIM, 2 * _LAYERS + 1, (1, 2 * _REACH + 1))
        )

    def forward(self, x: Tensor) -> MaskOutput:
        """Look at depth and the way the views part.

        Args:
            x: (N, 3, h, w) float32: depth in [0, 1], 1 = nearest, mapper applied; divergence and convergence
                features, each one value all over (`vshard.masks.backward.hole_logits` makes them).
        """
        height, width = x.shape[-2:]
        # At least one pixel is added, as in the original: 64 becomes 68.
        down, across = (step - size % step for step, size in ((_WINDOW, height), (_WINDOW * _PACK, width)))
        top, left = down // 2, across // 2
        full = self.lv1_in(F.pad(x, (left, across - left, top, down - top), mode="replicate"))
        tokens = full.unflatten(3, (-1, _PACK)).permute(0, 2, 3, 1, 4).flatten(3)
        unpacked = self.lv2(tokens).unflatten(3, (_PACKED_DIM, _PACK)).permute(0, 3, 1, 2, 4).flatten(3)
        out = self.lv1_out(full + unpacked)[:, :, top : top + height, left : left + width]
        delta, weights, hole_logits = out.split((_LAYERS, _LAYERS, 1), dim=1)
        return MaskOutput(delta, weights.float().softmax(dim=1), hole_logits)


def find_mask_weights(given: Path | None) -> Path:
    """Find the file of the original's weights: the given one, else PyTorch's cache, else a download into it.

    Args:
        given: what the user named; comes back as it is.

    Raises:
        MaskModelError: the file had to be downloaded and could not be. Nothing of it is kept.
        OutputError: the cache cannot be written.
    """
    if given is not None:
        return given
    path = _cached()
    if not path.is_file():
        data = _download()
        make_folder(path.parent)
        write_file(path, data)
    return path


def load_mask_network(path: Path) -> MaskNetwork:
    """Build the network of a file of weights, on the CPU, in float32, ready for use and without gradients.

    Raises:
        MaskModelError: there is no such file, or it is not the mask network's.
    """
    try:
        if not path.is_file():
            raise MaskModelError(f"{path}: is not a file; give {MASK_WEIGHTS_FILE} of iw3 by --mask-weights")
        size = path.stat().st_size
        if size > LARGEST_FILE_BYTES:
            found = f"has {size} bytes, at most {LARGEST_FILE_BYTES} are read"
            raise MaskModelError(f"{path}: {found}; give {MASK_WEIGHTS_FILE} of iw3, which has about 1 MB")
        data = path.read_bytes()
    except OSError as error:
        raise MaskModelError(
            f"{path}: cannot be read ({error.strerror}); give a file you may read"
        ) from error
    try:
        return _build(data)
    except _BadFileError as error:
        cached = path == _cached()
        advice = "remove it, and it is downloaded anew" if cached else f"give {MASK_WEIGHTS_FILE} of iw3"
        raise MaskModelError(f"{path}: {error}; {advice}") from error


class _Block(nn.Module):
    """Mix the tokens of each window, then neighbours: (N, H, W, C) to the same shape."""

    def __init__(self, dim: int, shifted: bool) -> None:
        super().__init__()
        self.mha = _Windows(dim, shifted)
        self.conv_mlp = nn.Sequential(
            nn.Conv2d(dim, dim, 1), nn.GELU(), nn.ReplicationPad2d(1), nn.Conv2d(dim, dim, 3)
        )
        self.bias = _OffsetBias()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mha(x, self.bias())
        return x + self.conv_mlp(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class _Windows(nn.Module):
    """Attention among the 16 tokens of each 4×4 window; shifted windows reach half a window past the edges."""

    def __init__(self, dim: int, shifted: bool) -> None:
        super().__init__()
        self.margin = _WINDOW // 2 if shifted else 0
        self.mha = _Attention(dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        m = self.margin
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, m, m, m, m))
        cut = x.unflatten(2, (-1, _WINDOW)).unflatten(1, (-1, _WINDOW)).permute(0, 1, 3, 2, 4, 5)
        mixed = self.mha(cut.reshape(-1, _WINDOW**2, x.shape[3]), bias)
        mixed = mixed.view(cut.shape).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        return mixed[:, m : m + height, m : m + width]


class _Attention(nn.Module):
    """Multi-head attention: (M windows, 16, C) and a (16, 16) bias of the scores to the same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.head_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(2, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        mixed: Tensor = self.head_proj(heads.transpose(1, 2).flatten(2))
        return mixed


class _OffsetBias(nn.Module):
    """How far one token of a window lies from another, as a learned (16, 16) bias, the same for all heads."""

    index: Tensor
    delta: Tensor

    def __init__(self) -> None:
        super().__init__()
        steps = torch.arange(1 - _WINDOW, _WINDOW)
        places = torch.cartesian_prod(torch.arange(_WINDOW), torch.arange(_WINDOW))
        apart = places[:, None] - places[None] + _WINDOW - 1
        self.register_buffer("index", (apart[..., 0] * len(steps) + apart[..., 1]).flatten())
        self.register_buffer("delta", torch.cartesian_prod(steps, steps) / (_WINDOW - 1))
        self.to_bias = nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 1))

    def forward(self) -> Tensor:
        bias: Tensor = self.to_bias(self.delta)[self.index]
        return bias.view(_WINDOW**2, _WINDOW**2)


def _cached() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / MASK_WEIGHTS_FILE


class _BadFileError(Exception):
    """What is wrong with the bytes of a file of weights."""


def _download() -> bytes:
    """Fetch the original's file and check that it is whole.

    Raises:
        MaskModelError: it cannot be had, or something else came.
    """
    advice = "give the file by --mask-weights PATH, or choose --backward-mask gradient, which needs none"
    try:
        with urllib.request.urlopen(MASK_WEIGHTS_URL, timeout=DOWNLOAD_TIMEOUT_SECONDS) as answer:
            data: bytes = answer.read(LARGEST_FILE_BYTES + 1)
        if len(data) > LARGEST_FILE_BYTES:
            raise _BadFileError(f"has more than {LARGEST_FILE_BYTES} bytes")
        _build(data)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        reason = getattr(error, "reason", error)
        found = f"cannot be downloaded from {MASK_WEIGHTS_URL} ({reason})"
        raise MaskModelError(f"{MASK_WEIGHTS_FILE}: {found}; {advice}") from error
    except _BadFileError as error:
        found = f"what {MASK_WEIGHTS_URL} sent {error}"
        raise MaskModelError(f"{MASK_WEIGHTS_FILE}: {found}; {advice}") from error
    return data


def _build(data: bytes) -> MaskNetwork:
    """Make the network that the bytes of a file describe; tensors and plain values only are unpickled.

    Raises:
        _BadFileError: they are damaged, or describe something else.
    """
    try:
        content = load_tensors(io.BytesIO(data))
    except TensorFileError as error:
        raise _BadFileError(str(error)) from error
    found = content if isinstance(content, dict) else {}
    missing = [key for key, kind in _ENTRIES.items() if not isinstance(found.get(key), kind)]
    if missing:
        raise _BadFileError(f"holds no model of iw3 (no {', '.join(missing)})")
    if found["name"] != _NAME:
        raise _BadFileError(f"holds the network {found['name'][:60]!r}, not {_NAME!r}")
    other = {
        key: _plain(found["kwargs"][key])
        for key in _KWARGS
        if _plain(found["kwargs"].get(key, _KWARGS[key])) != _KWARGS[key]
    }
    if other:
        raise _BadFileError(f"holds {_NAME} with {other}, not with { {key: _KWARGS[key] for key in other} }")
    network = MaskNetwork()
    _check_weights(network.state_dict(), found["state_dict"])
    network.load_state_dict(found["state_dict"])
    return network.eval().requires_grad_(False)


def _plain(value: Any) -> Any:
    """Give a number or truth as it is, and of anything else its kind: its text may be endless."""
    return value if isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def _check_weights(own: dict[str, Tensor], given: dict[str, Any]) -> None:
    """Compare keys, shapes and tables with a fresh network's, and look for values that are no numbers."""
    problems = [f"{key} is missing" for key in own if key not in given]
    problems += [f"{key} is unknown" for key in given if key not in own]
    problems += [problem for key in own if key in given and (problem := _problem(key, own[key], given[key]))]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise _BadFileError(f"its weights do not fit {_NAME}: {problems[0]}{more}")


def _problem(key: str, own: Tensor, given: Any) -> str:
    """Say what keeps one entry from being used; '' when nothing does."""
    if not isinstance(given, Tensor):
        return f"{key} is a {type(given).__name__}"
    if given.layout != torch.strided or given.device.type != "cpu":
        return f"{key} is a tensor of another kind ({given.layout}, {given.device.type})"
    if given.shape != own.shape:
        return f"{key} is {_shape(given)} instead of {_shape(own)}"
    if given.dtype != own.dtype and not (given.is_floating_point() and own.is_floating_point()):
        return f"{key} is of {given.dtype} instead of {own.dtype}"
    if not own.is_floating_point() and not torch.equal(given, own):
        return f"{key} is not the table of a {_WINDOW}×{_WINDOW} window"
    if not given.to(own.dtype).isfinite().all():
        return f"{key} holds values that are not finite"
    return ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"
