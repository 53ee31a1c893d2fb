"""Tiny networks of the published depth classes with random weights, and how tests open them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from golden_inputs import video
from torch import Tensor
from transformers import (
    BeitConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DepthProConfig,
    DepthProForDepthEstimation,
    Dinov2Config,
    PreTrainedModel,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)

from vshard.depth.models import DepthModel, DepthOptions, open_depth_model

# A name of --model-type for each tiny network.
NAMES = {
    "relative": "Any_V2_S",
    "metric": "Any_V2_N_S",
    "zoe": "ZoeD_N",
    "two domains": "ZoeD_NK",
    "pro": "DepthPro",
}


def make_networks() -> dict[str, PreTrainedModel]:
    """One network for each key of ``NAMES``."""
    made = {
        "relative": _depth_anything("relative"),
        "metric": _depth_anything("metric"),
        "zoe": _zoe("nyu"),
        "two domains": _zoe("nyu", "kitti"),
        "pro": _depth_pro(),
    }
    draw = torch.Generator().manual_seed(5)
    for model in made.values():
        draw_weights(model, draw)
    return made


def draw_weights(model: PreTrainedModel, draw: torch.Generator) -> None:
    """Give a network weights; as made, it answers every picture with nearly the same number."""
    for name, parameter in model.named_parameters():
        fan = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else 10
        parameter.data = torch.randn(parameter.shape, generator=draw) / fan**0.5
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "lambda1")):
            parameter.data += 1


def save_networks(root: Path) -> dict[str, Path]:
    """Save them as folders for ``--depth-weights``."""
    for name, model in make_networks().items():
        model.save_pretrained(root / name)
    return {name: root / name for name in NAMES}


def frames_of(count: int, height: int, width: int) -> Tensor:
    return torch.from_numpy((video(count, 3, height, width, 3) * 255).round().astype(np.uint8))


def options_of(
    name: str, weights: Path | str | None = None, *, resolution: int | None = None, flip: bool = False
) -> DepthOptions:
    return DepthOptions(name, resolution, None if weights is None else str(weights), flip, batch_size=2)


def open_quietly(options: DepthOptions, threads: int = 1) -> DepthModel:
    """Open a model that has nothing to warn of."""
    warned: list[str] = []
    model = open_depth_model(options, torch.device("cpu"), threads, warned.append)
    assert warned == []
    return model


def _depth_anything(kind: str) -> PreTrainedModel:
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=70, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[4, 4, 8, 8], fusion_hidden_size=8,
        head_hidden_size=4, depth_estimation_type=kind, max_depth=20 if kind == "metric" else 1,
    )  # fmt: skip
    return DepthAnythingForDepthEstimation(config)


def _zoe(*domains: str) -> PreTrainedModel:
    backbone = BeitConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=64,
        patch_size=16, use_relative_position_bias=True, reshape_hidden_states=False, out_indices=[1, 2, 3, 4],
    )  # fmt: skip
    config = ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[4, 4, 8, 8], fusion_hidden_size=8, num_relative_features=4,
        bottleneck_features=8, num_attractors=[2, 2, 2, 1], bin_embedding_dim=4,
        bin_configurations=[{"name": name, "n_bins": 4, "min_depth": 1e-3, "max_depth": 10.0} for name in domains],
        num_patch_transformer_layers=4, patch_transformer_hidden_size=128, patch_transformer_intermediate_size=16,
        patch_transformer_num_attention_heads=2,
    )  # fmt: skip
    return ZoeDepthForDepthEstimation(config)


def _depth_pro() -> PreTrainedModel:
    vision = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "mlp_ratio": 1}
    vision |= {"model_type": "dinov2", "image_size": 384, "patch_size": 32}
    config = DepthProConfig(
        fusion_hidden_size=4, intermediate_hook_ids=[1, 0], intermediate_feature_dims=[4, 4],
        scaled_images_feature_dims=[4, 4, 4], image_model_config=vision, patch_model_config=vision,
        fov_model_config=vision, use_fov_model=True, num_fov_head_layers=1,
    )  # fmt: skip
    return DepthProForDepthEstimation(config)
