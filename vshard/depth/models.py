"""Depth models by their iw3 names: the table behind ``--model-type``.

Two are built in: ``Parallax`` (:mod:`vshard.depth.parallax`) and ``NULL``, which passes the gray picture off as
depth, for benchmarks. The others are networks of Hugging Face `transformers` (:mod:`vshard.depth.hub`) and differ by
the repository of their weights. Nothing heavy is imported before a model is opened.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..base.errors import DepthModelError
from .builtin import NULL, PARALLAX

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Below, a network has too few patches to see anything; above, the short side of 4K is passed.
RESOLUTION_MIN, RESOLUTION_MAX = 112, 2160

APACHE, MIT = "Apache-2.0", "MIT"
NON_COMMERCIAL = "CC-BY-NC-4.0, no commercial use"
APPLE = "Apple's AMLR licence, research only"


@dataclass(frozen=True)
class HubModel:
    """One learned model: where its weights lie, which family reads them, whether it gives metres.

    ``repository`` None: only through ``--depth-weights``. ``licence`` None: not known here.
    """

    repository: str | None
    family: str
    metric: bool
    licence: str | None


def _any(size: str) -> HubModel:
    return HubModel(f"LiheYoung/depth-anything-{size}-hf", "depth_anything", metric=False, licence=APACHE)


def _any_v2(kind: str, size: str) -> HubModel:
    repository = f"depth-anything/Depth-Anything-V2-{kind}{size}-hf"
    licence = APACHE if size == "Small" else NON_COMMERCIAL
    return HubModel(repository, "depth_anything", metric=kind != "", licence=licence)


def _distill(size: str | None) -> HubModel:
    repository = f"xingyang1/Distill-Any-Depth-{size}-hf" if size else None
    return HubModel(repository, "depth_anything", metric=False, licence=None)


def _zoe(data: str) -> HubModel:
    return HubModel(f"Intel/zoedepth-{data}", "zoedepth", metric=True, licence=MIT)


HUB_MODELS = {
    "Any_S": _any("small"),
    "Any_B": _any("base"),
    "Any_L": _any("large"),
    "Any_V2_S": _any_v2("", "Small"),
    "Any_V2_B": _any_v2("", "Base"),
    "Any_V2_L": _any_v2("", "Large"),
    "Any_V2_N": _any_v2("Metric-Indoor-", "Large"),
    "Any_V2_N_S": _any_v2("Metric-Indoor-", "Small"),
    "Any_V2_N_B": _any_v2("Metric-Indoor-", "Base"),
    "Any_V2_N_L": _any_v2("Metric-Indoor-", "Large"),
    "Any_V2_K": _any_v2("Metric-Outdoor-", "Large"),
    "Any_V2_K_S": _any_v2("Metric-Outdoor-", "Small"),
    "Any_V2_K_B": _any_v2("Metric-Outdoor-", "Base"),
    "Any_V2_K_L": _any_v2("Metric-Outdoor-", "Large"),
    "Distill_Any_S": _distill("Small"),
    "Distill_Any_B": _distill(None),
    "Distill_Any_L": _distill("Large"),
    "ZoeD_N": _zoe("nyu"),
    "ZoeD_K": _zoe("kitti"),
    "ZoeD_NK": _zoe("nyu-kitti"),
    "DepthPro": HubModel("apple/DepthPro-hf", "depth_pro", metric=False, licence=APPLE),
}
MODELS = (PARALLAX, NULL, *HUB_MODELS)
GROUPS = (
    "Any_{S,B,L}, Any_V2_{S,B,L}, Any_V2_N_{S,B,L} and Any_V2_K_{S,B,L} (metres indoors, outdoors), "
    f"Distill_Any_{{S,B,L}}, ZoeD_{{N,K,NK}}, DepthPro, and built in {PARALLAX} and {NULL}"
)
# Names of iw3 (by how they begin) that no class of `transformers` serves, and the nearest that one does.
UNSERVED = {
    "ZoeD_Any_N": "ZoeD_N or Any_V2_N_L",
    "ZoeD_Any_K": "ZoeD_K or Any_V2_K_L",
    "ZoeD_Any_L": "ZoeD_NK or Any_V2_L",
    "Any_V3_": "Any_V2_L or Distill_Any_L",
    "VDA_": "Any_V2_S, Any_V2_L or Distill_Any_L",
}


@dataclass(frozen=True)
class DepthOptions:
    """Which depth model, and how it looks at frames.

    ``model_type``: a name of ``MODELS``. ``resolution``: short side of the network's input in pixels, rounded up to
    whole patches; None is the model's own. ``weights``: a folder or repository in place of the model's own.
    ``flip``: average with the depth of the mirrored frames. ``batch_size``: frames at once on a GPU.
    """

    model_type: str
    resolution: int | None
    weights: str | None
    flip: bool
    batch_size: int


@dataclass(frozen=True)
class DepthModel:
    """A depth estimator ready to use.

    ``metric``: whether it estimates metres (negated), which decides the mappers of the recipe.
    ``about``: one sentence on what it is, kept in every record's metadata.
    ``weights``: what identifies its weights, "" for built-in models: the repository or folder name and the first 16
    hex digits of the SHA-256 of the weight file. ``licence``: one line for the user on the weights' licence.
    ``estimate``: (T, 3, H, W) uint8 on the CPU -> (T, 1, h, w) float32, larger = nearer, finite, any range, on the
    CPU or the model's device.
    """

    name: str
    metric: bool
    about: str
    weights: str
    licence: str | None
    estimate: Callable[[Tensor], Tensor]


def check_depth_options(options: DepthOptions) -> None:
    """Check what can be told without loading anything.

    Raises:
        DepthModelError: the name is unknown or not served, or an option does not go with it.
    """
    name, resolution = options.model_type, options.resolution
    for beginning, nearest in UNSERVED.items():
        if name.startswith(beginning):
            raise DepthModelError(
                f"--model-type {name}: no form of it loads through transformers; use {nearest}"
            )
    if name not in MODELS:
        by_lower = {known.lower(): known for known in MODELS}
        near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, cutoff=0.7)]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise DepthModelError(f"--model-type {name!r}: no such depth model; {hint}there are {GROUPS}")
    if resolution is not None:
        if name == PARALLAX:
            raise DepthModelError(f"--resolution {resolution}: {name} has one size of its own; leave it out")
        if not RESOLUTION_MIN <= resolution <= RESOLUTION_MAX:
            raise DepthModelError(
                f"--resolution {resolution}: the short side of the depth network's input in pixels; "
                f"allowed is {RESOLUTION_MIN} to {RESOLUTION_MAX}"
            )
    if name not in HUB_MODELS and options.weights is not None:
        raise DepthModelError(
            f"--depth-weights {options.weights}: {name} is built in and has no weights; leave it out"
        )
    if name in HUB_MODELS and HUB_MODELS[name].repository is None and options.weights is None:
        raise DepthModelError(
            f"--model-type {name}: no repository with it is known in the form that transformers reads; "
            "give one, or a folder, with --depth-weights, or use Distill_Any_S or Distill_Any_L"
        )


def open_depth_model(
    options: DepthOptions, device: torch.device, threads: int, warn: Callable[[str], None]
) -> DepthModel:
    """Open a depth model on ``device``.

    Args:
        options: as :func:`check_depth_options` passes them, which is called again.
        device: where a network runs; ``Parallax`` stays on the CPU.
        threads: frames at once on the CPU, each in one thread of torch, for which the caller sees.
        warn: is told what the user may wonder about: a download, a batch that was made smaller.

    Raises:
        DepthModelError: an option is wrong, or the weights cannot be had or do not fit.
    """
    check_depth_options(options)
    if options.model_type == "DepthPro" and options.resolution is not None:
        warn(f"--resolution {options.resolution}: DepthPro has one size of its own and does not use it")
    if options.model_type == PARALLAX:
        from .parallax import estimate_depth

        about = "inverse depth from optical flow with a ground prior; built in, no learned weights"
        model = DepthModel(PARALLAX, False, about, "", None, estimate_depth)
    else:
        model = _open_network(options, device, threads, warn)
    return replace(model, estimate=_mirror_averaged(model.estimate)) if options.flip else model


def _open_network(
    options: DepthOptions, device: torch.device, threads: int, warn: Callable[[str], None]
) -> DepthModel:
    from . import hub

    estimator = partial(
        hub.make_estimator,
        device=device,
        resolution=options.resolution,
        batch_size=options.batch_size,
        threads=threads,
        warn=warn,
    )
    name = options.model_type
    if name == NULL:
        about = "the gray picture itself in place of depth, for benchmarks; built in"
        return DepthModel(NULL, False, about, "", None, estimator(hub.gray_network, hub.GRAY, metric=False))
    known = HUB_MODELS[name]
    source = known.repository if options.weights is None else options.weights
    assert source is not None, "checked with the options"
    find = hub.hub_weights if options.weights is None else hub.given_weights
    weights = find(source, partial(_check_config, name=name, source=source), warn)
    family = hub.FAMILIES[known.family]
    about = f"{_kind(known)}, computed by transformers {hub.transformers_version()}"
    estimate = estimator(hub.load_network(weights, family, device), family, metric=known.metric)
    return DepthModel(name, known.metric, about, weights.label, _licence(name, options.weights), estimate)


def _check_config(config: dict[str, Any], name: str, source: str) -> None:
    """Check that the configuration that comes with weights is of the network that ``name`` stands for.

    Raises:
        DepthModelError: another family, or metres in place of relative depth; names those that fit.
    """
    family = str(config.get("model_type"))
    metric = config.get("depth_estimation_type", "relative") == "metric"
    fitting = [
        other
        for other, model in HUB_MODELS.items()
        if model.family == family and (model.metric == metric or family != "depth_anything")
    ]
    if name in fitting:
        return
    found = _kind(HUB_MODELS[fitting[0]]) if fitting else f"the model {family!r}"
    advice = f"use --model-type {', '.join(fitting)}" if fitting else f"there are {GROUPS}"
    raise DepthModelError(
        f"--model-type {name}: is {_kind(HUB_MODELS[name])}, but {source} holds {found}; {advice}"
    )


def _kind(model: HubModel) -> str:
    from .hub import FAMILIES

    return f"{FAMILIES[model.family].title} ({'metres' if model.metric else 'inverse depth without a unit'})"


def _licence(name: str, weights: str | None) -> str:
    known = HUB_MODELS[name]
    published = f"weights of {name}: {known.licence or 'see the licence on their page'} ({known.repository})"
    return published if weights is None else f"weights {weights}: under their own licence"


def _mirror_averaged(estimate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Average with the depth of the mirrored frames, mirrored back."""

    def both(frames: Tensor) -> Tensor:
        return (estimate(frames) + estimate(frames.flip(-1)).flip(-1)) / 2

    return both
