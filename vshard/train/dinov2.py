"""How different two clips are to DINOv2 (Oquab et al., 2023), a vision transformer that learned without labels.

In: two clips. Out: 1 - the cosine of what the network says of them, token by token (the frame's own token and one for
each 14×14 pixels), mean over tokens and frames.

The facts of the original name the network, small with registers (Darcet et al., 2023), and the cosine. The rest is our
choice, which nothing golden checks: the features are those of the last layer after its norm, all tokens but the
registers take part, since they say where in a frame it differs, and colours are taken as the network was trained
(ImageNet's mean and deviation). Frames are mirrored up to multiples of 14.

Cost of value and gradients, 12 frames of 224×224 on a CPU core: 6 s and 0.9 GB.

Weights come from a folder or the Hugging Face cache, or are fetched (88 MB) from the hub; only ``config.json`` and
``model.safetensors`` are read.
"""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.errors import DepthModelError
from ..depth.hub import UNUSED, Warn, hub_weights, one_line, quiet
from .perceptual import PerceptualError, pad_to_multiple

REPOSITORY = "facebook/dinov2-with-registers-small"
_ARCHITECTURE = "dinov2_with_registers"
_ADVICE = "give the folder of its files by --perceptual-weights PATH, or choose another --loss"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Dinov2(nn.Module):
    """The distance between clips, frozen and in eval mode; ``source`` says what it is, and its weights' digest."""

    _mean: Tensor
    _std: Tensor

    def __init__(self, network: Any, source: str) -> None:
        super().__init__()
        self.network, self.source = network, source
        self._patch_px = int(network.config.patch_size)
        self._registers = int(network.config.num_register_tokens)
        self.register_buffer("_mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("_std", torch.tensor(_STD)[:, None, None])
        self.requires_grad_(False).eval()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compare two clips, (T, 3, H, W) float32 about [0, 1]; 0 for equal ones. No gradient goes to ``target``."""
        with torch.no_grad():
            wanted = self._features(target)
        return 1 - F.cosine_similarity(self._features(output), wanted, dim=2).mean()

    def _features(self, x: Tensor) -> Tensor:
        """Give (T, 1 + tokens, C)."""
        pixels = (pad_to_multiple(x, self._patch_px) - self._mean) / self._std
        tokens: Tensor = self.network(pixel_values=pixels).last_hidden_state
        return torch.cat([tokens[:, :1], tokens[:, 1 + self._registers :]], dim=1)


def find_dinov2(weights: Path | None = None, stored: str | None = None, say: Warn = lambda _: None) -> Dinov2:
    """Find the network's weights and load it, on the CPU.

    Args:
        weights: a folder with ``config.json`` and ``model.safetensors``; None: the Hugging Face cache, or the hub.
        stored: ``source`` of the run that goes on; nothing else will do.
        say: is told before a download.

    Raises:
        PerceptualError: they cannot be had, are another network's, or not those of ``stored``.
    """
    if weights is not None and not weights.is_dir():
        raise PerceptualError(f"{weights}: is no folder; {_ADVICE}")
    try:
        if weights is None:
            weights = hub_weights(REPOSITORY, _check, say, what="vision network", advice=_ADVICE).folder
        with quiet(), one_line(f"{weights}: cannot be loaded", _ADVICE):
            network, gaps = _load(weights)
    except DepthModelError as error:
        raise PerceptualError(str(error)) from error
    _check({"model_type": network.config.model_type}, weights)
    missing = sorted(key for key in gaps["missing_keys"] if not UNUSED.search(key))
    if missing or gaps["mismatched_keys"]:
        raise PerceptualError(
            f"{weights}: its weights do not fill the network of its config.json (some are missing or have another "
            f"shape); {_ADVICE}"
        )
    digest = hashlib.sha256()
    for _, parameter in sorted(network.named_parameters()):
        digest.update(parameter.detach().numpy().tobytes())
    source = f"DINOv2 sha256:{digest.hexdigest()[:16]}"
    if stored is not None and source != stored:
        raise PerceptualError(
            f"this run's perceptual loss is {stored}, and what is here is {source}; give the folder it began with by "
            "--perceptual-weights PATH, or start anew"
        )
    return Dinov2(network, source)


def _check(config: dict[str, Any], place: Path | str = REPOSITORY) -> None:
    if (found := config.get("model_type")) != _ARCHITECTURE:
        raise PerceptualError(f"{place}: holds a {found}, not a {_ARCHITECTURE}; {_ADVICE}")


def _load(folder: Path) -> tuple[Any, dict[str, Any]]:
    return import_module("transformers").AutoModel.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # told in our words
        output_loading_info=True,
    )
