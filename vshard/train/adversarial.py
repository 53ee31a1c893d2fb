"""The adversarial part of training: a discriminator learns beside the network, whose filled holes are to deceive it.

In: a sample's filled frames and the gradient of its loss. Out: that gradient with the discriminator's part added, of a
size that is measured, not guessed. Losses, weights and curve are the original's (facts of the original, section 11;
the hinge: Lim & Ye, *Geometric GAN*, 2017; the measured weight: Esser et al., *Taming Transformers*, 2021).

Nothing here waits for the device: the weight stays on it as a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.errors import CheckpointError
from ..base.seeds import derived_seed
from .discriminators import create_discriminator
from .network import LightVideoInpaint
from .optimize import take_state
from .ranks import Ranks

# Weights of the first, second and third of several logits; those that are there are divided by their sum.
LIST_WEIGHTS = (1.0, 0.5, 0.25)
# What of a gradient still passes where frames are clamped.
_OVERSHOOT = 0.1
_WARMUP_STEEPNESS = 4
# The ratio of gradients: bounds, and how much of its average stays at each step.
_RATIO_MIN, _RATIO_MAX, _RATIO_STAYS = 1e-3, 10.0, 0.99
_LEARNING_RATE = 1e-4
_BETAS = (0.5, 0.9)
_TINY = 1e-30


def generator_loss(logits: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """Say how little the filled frames deceive: the negative mean of their logits.

    Args:
        logits: of one or several discriminators, each (T, 1, h, w) float32, of filled frames.
        mask: (T, 1, H, W) float or bool, 1 = hole; only patches with a hole count. None: all do.

    Returns:
        A scalar, 0 where no patch counts.
    """
    return _weighted([-_mean(one, _patches(mask, one)) for one in logits])


def discriminator_loss(real: list[Tensor], fake: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """Say how far the logits are from telling filmed frames (at least 1) from filled ones (at most -1): the hinge.

    Args:
        real: logits of filmed frames, as for :func:`generator_loss`.
        fake: logits of filled frames, of the same shapes.
        mask: as for :func:`generator_loss`.

    Returns:
        A scalar: 1 for logits of 0, 0 where all is told with certainty or no patch counts.
    """
    return real_loss(real, mask) + fake_loss(fake, mask)


def real_loss(logits: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """Give the half of :func:`discriminator_loss` that filmed frames make."""
    return _weighted([_mean(F.relu(1 - one), _patches(mask, one)) / 2 for one in logits])


def fake_loss(logits: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """Give the half of :func:`discriminator_loss` that filled frames make."""
    return _weighted([_mean(F.relu(1 + one), _patches(mask, one)) / 2 for one in logits])


def straight_clamp(x: Tensor) -> Tensor:
    """Clamp to [0, 1], where the bounds and what is beyond them still let a tenth of the gradient pass."""
    clamped: Tensor = _StraightClamp.apply(x)
    return clamped


def warmup(step: int, steps: int) -> float:
    """Give the weight of the adversarial part at ``step``, from 0: exponentially from 0 to 1 at ``steps``."""
    if step >= steps:
        return 1.0
    return math.expm1(_WARMUP_STEEPNESS * step / steps) / math.expm1(_WARMUP_STEEPNESS)


@dataclass(frozen=True)
class AdversaryOptions:
    """``name``: a key of :data:`.discriminators.DISCRIMINATORS`. ``weight``: of the adversarial part.

    ``warmup_steps``: until it has that weight. ``backward_step``: samples a step adds up. ``amp``: type of mixed
    precision. ``seed`` decides the first weights.
    """

    name: str
    weight: float
    warmup_steps: int
    backward_step: int
    amp: torch.dtype | None
    seed: int


class Adversary:
    """A discriminator, its optimizer, and the weight of what it asks of the network."""

    def __init__(self, to_image: Tensor, ranks: Ranks, options: AdversaryOptions) -> None:
        """``to_image``: the network's last weights, at which the two losses' gradients are compared.

        Raises:
            OptionError: there is no such discriminator.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(options.seed, "discriminator") & 0x7FFFFFFF)
            self.discriminator = create_discriminator(options.name).to(ranks.device)
        # Fused: a step whose found_inf is 1 is left out on the device.
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=_LEARNING_RATE, betas=_BETAS, fused=True
        )
        self.options, self._ranks, self._to_image = options, ranks, to_image
        self._step = 0
        # Mean ratio of the two gradients' norms; 0 before any is known, so the first step has no adversarial part.
        self._ratio = torch.zeros((), device=ranks.device)
        # Norms of the loss's gradient and of the adversarial part's, of the samples since the last step.
        self._norms = torch.zeros(2, device=ranks.device)

    @property
    def weight(self) -> Tensor:
        """The adversarial part's weight in the step under way: a scalar on the device."""
        return self._ratio * (self.options.weight * warmup(self._step, self.options.warmup_steps))

    def set_rate(self, share: float) -> None:
        """Give the discriminator's learning rate as a share of its highest, as the network's schedule has it."""
        for group in self.optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * share

    def add(
        self, out: Tensor, gradient: Tensor, target: Tensor, given: Tensor, mask: Tensor, *, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Let the discriminator learn from a sample, and add what it asks for to a gradient.

        Args:
            out: (T, 3, h, w) float, the network's frames with the graph that made them, which is kept.
            gradient: the same shape, of the sample's loss by ``out``.
            target: (T, 3, h, w) float32 in [0, 1], the true frames.
            given: (T, 3, H, W) float32 in [0, 1], the emptied frames; H, W as ``target`` or with a border.
            mask: (T, 1, H, W) float32, 1 = hole.
            weight: the sample's, 0 for one that counts for nothing.

        Returns:
            The gradient by ``out`` of both losses, and the discriminator's loss, a scalar on the device.
        """
        border = (given.shape[-1] - target.shape[-1]) // 2
        if border:
            given, mask = (x[..., border:-border, border:-border] for x in (given, mask))
        share = weight / self.options.backward_step
        learnt = list(self.discriminator.parameters())
        filled = out.detach().float().requires_grad_()
        # float16 would need a scale of its own, and an overflow here would hold up the network's steps: float32 then.
        half = self.options.amp is torch.bfloat16
        with torch.autocast(out.device.type, torch.bfloat16, enabled=half):
            real = self.discriminator(target, given, mask)
        loss_real = real_loss(real, mask)
        torch.autograd.backward(loss_real * share, inputs=learnt)
        with torch.autocast(out.device.type, torch.bfloat16, enabled=half):
            fake = self.discriminator(straight_clamp(filled), given, mask)
        loss_fake = fake_loss(fake, mask)
        (asked,) = torch.autograd.grad(generator_loss(fake, mask), filled, retain_graph=True)
        torch.autograd.backward(loss_fake * share, inputs=learnt)
        if weight:
            self._norms += torch.stack([self._norm(out, gradient), self._norm(out, asked.to(out.dtype))])
        return gradient + self.weight * asked, (loss_real + loss_fake).detach()

    def step(self, spoilt: Tensor) -> None:
        """Change the discriminator, on all ranks alike; ``spoilt`` 1 instead of 0: leave it out."""
        gradients = [p.grad for p in self.discriminator.parameters() if p.grad is not None]
        self._ranks.average([self._norms, *gradients])
        self.optimizer.found_inf = spoilt  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        ratio = (self._norms[0] / self._norms[1].clamp_min(_TINY)).clamp(_RATIO_MIN, _RATIO_MAX)
        known = (self._norms > 0).all() & self._norms.isfinite().all() & (spoilt == 0)
        averaged = torch.where(self._ratio > 0, self._ratio.lerp(ratio, 1 - _RATIO_STAYS), ratio)
        self._ratio = torch.where(known, averaged, self._ratio)
        self._norms = torch.zeros_like(self._norms)
        self._step += 1

    def state(self) -> dict[str, Any]:
        """Give it as plain values and tensors, for a checkpoint; between two steps only."""
        return {
            "name": self.options.name,
            "step": self._step,
            "ratio": self._ratio,
            "weights": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take it out of a checkpoint.

        Raises:
            AttributeError, KeyError, TypeError, ValueError, RuntimeError: it is not that of such a discriminator.
        """
        ratio, step = float(state["ratio"]), state["step"]
        if type(step) is not int or step < 0 or not 0 <= ratio <= _RATIO_MAX:
            raise ValueError(f"odd step {step} or weight {ratio} of a discriminator")
        self.discriminator.load_state_dict(state["weights"])
        take_state(self.optimizer, state["optimizer"])
        self._ratio = torch.full_like(self._ratio, ratio)
        self._step = step

    def _norm(self, out: Tensor, gradient: Tensor) -> Tensor:
        """Give the norm at the last weights of a gradient by ``out``; scaled on its way, for float16's sake."""
        size = gradient.norm().clamp_min(_TINY)
        (at_weights,) = torch.autograd.grad(out, self._to_image, gradient / size, retain_graph=True)
        return at_weights.float().norm() * size


def adversary_for(
    model: LightVideoInpaint, ranks: Ranks, options: AdversaryOptions | None
) -> Adversary | None:
    """Make what ``model`` is trained against, None without options.

    Raises:
        OptionError: there is no such discriminator.
    """
    return None if options is None else Adversary(model.to_image.weight, ranks, options)


def take_adversary(
    adversary: Adversary | None, state: dict[str, Any] | None, checkpoint: Path, advice: str
) -> None:
    """Let ``adversary`` go on from the ``state`` of a checkpoint, which must be of the same discriminator or of none.

    Raises:
        CheckpointError: it is of another; ``advice`` says what else to do.
        AttributeError, KeyError, TypeError, ValueError, RuntimeError: as :meth:`Adversary.load_state`.
    """
    before = state["name"] if state is not None else None
    if before != (adversary.options.name if adversary is not None else None):
        kind = f"with --discriminator {before}" if before else "without --discriminator"
        raise CheckpointError(f"{checkpoint}: was trained {kind}; go on so, or {advice}")
    if adversary is not None and state is not None:
        adversary.load_state(state)


class _StraightClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < 1))
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grad, grad * _OVERSHOOT)


def _patches(mask: Tensor | None, logits: Tensor) -> Tensor | None:
    """Tell of each logit whether its patch has a hole: bool, of its shape."""
    return None if mask is None else F.adaptive_max_pool2d(mask.float(), logits.shape[-2:]) > 0


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Give the mean of ``x`` where ``mask`` is set, 0 where it nowhere is."""
    if mask is None:
        return x.mean()
    return torch.where(mask, x, 0).sum() / mask.sum().clamp_min(1)


def _weighted(losses: list[Tensor]) -> Tensor:
    """Give the mean of one to three losses, weighted by :data:`LIST_WEIGHTS`."""
    weights = LIST_WEIGHTS[: len(losses)]
    assert len(losses) == len(weights)
    return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)
