"""Matrix products of a network's layers, by oneDNN where PyTorch would take a slower library.

In float32 on an x86 CPU PyTorch multiplies with MKL, which leaves half of an AMD processor's arithmetic unused: 95
GFLOP/s on a core of an EPYC with AVX-512 against 220 by oneDNN, which PyTorch ships for its convolutions. oneDNN's
product is reached through an operator of PyTorch's own compiler. Where that is missing, on other devices and in mixed
precision the usual functions run. Results agree to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Divides the number of tokens of every layer: 12 frames of windows of 64 or 256.
_ROW = 192


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Multiply (..., K) by the transpose of (N, K) and add (N): (..., N)."""
    if not _takes_onednn(x):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)
    return out.unflatten(0, x.shape[:-1])


def mix(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Multiply (N, N) with (N, ...) and add (N) to what lies along the other axes: (N, ...)."""
    if not _takes_onednn(x):
        return torch.addmm(bias[:, None], weight, x.flatten(1)).view(x.shape)
    out: Tensor = _Mix.apply(x.flatten(1), weight, bias)
    return out.view(x.shape)


def _takes_onednn(x: Tensor) -> bool:
    return (
        _ONEDNN
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _times_transposed(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = _times_transposed(grad, weight.t())
        if len(x) % _ROW:
            grad_weight = grad.t() @ x
        else:
            # As a 1×1 convolution over many short rows: 130 to 195 GFLOP/s, 85 to 170 as a product.
            rows, grad_rows = (t.view(-1, 1, _ROW, t.shape[1]).permute(0, 3, 1, 2) for t in (x, grad))
            grad_weight = conv2d_weight(rows, (*weight.shape, 1, 1), grad_rows)[:, :, 0, 0]
        return grad_x, grad_weight, grad.sum(0)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _times_transposed(weight, x.t()).add_(bias[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        return _times_transposed(weight.t(), grad.t()), _times_transposed(grad, x), grad.sum(1)


# An operator of our own, since PyTorch's compiler takes its own one for constant weights only.
@library.custom_op("vshard::times_transposed", mutates_args=())
def _times_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply (M, K) by the transpose of (N, K): (M, N); in memory they may lie either way."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return out


@_times_transposed.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: ARG001
    return a.new_empty(a.shape[0], b.shape[0])
