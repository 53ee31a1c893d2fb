"""Optimizer steps of added-up gradients, without waiting for the device.

In: one sample's tensors after another. Out: changed weights, and every sample's loss, which stays on the device until
:meth:`Steps.drain`. A step whose loss is not a number is left out: by the optimizer itself, which reads a flag on the
device (fused optimizers), so that nobody waits. Lion and the schedule-free ones read none: with them a step, though no
sample before it, waits. The whole step is left out, where the original leaves out the sample, as that cannot be taken
out of gradients that are added up, on this rank and the others. With an adversary, its discriminator steps beside
the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .adversarial import Adversary
from .compiling import Compiled
from .network import LightVideoInpaint
from .ranks import Ranks


@dataclass(frozen=True)
class StepOptions:
    """``backward_step``: samples a step adds up. ``amp``: type of mixed precision. ``clip_grad_norm``: largest norm.

    ``compile``: through PyTorch's compiler where that is possible.
    """

    backward_step: int
    amp: torch.dtype | None = None
    clip_grad_norm: float | None = None
    compile: bool = False


class Loss(NamedTuple):
    """A sample's loss: its place in the epoch, its weight (0 counts for nothing), and whether it let its step be taken.

    A step is left out on all ranks when one sample's loss on any of them is not a number; and, where losses are scaled,
    when gradients are too large for half precision, which ``stepped`` does not tell. ``discriminator``: its loss
    on the sample, None where there is none.
    """

    position: int
    weight: float
    value: float
    stepped: bool
    discriminator: float | None = None


class Steps:
    """Training steps of one network on one rank's device."""

    def __init__(
        self,
        model: LightVideoInpaint,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Tensor, Tensor, int], Tensor],
        ranks: Ranks,
        options: StepOptions,
        after_step: Callable[[], None] = lambda: None,
        adversary: Adversary | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``loss`` takes output, target and position; ``after_step`` is called when the weights may have changed.

        ``warn`` is told when the network cannot be compiled.
        """
        self.model, self.optimizer, self.loss, self.ranks, self.options = (
            model,
            optimizer,
            loss,
            ranks,
            options,
        )
        self.network = ranks.spread(model)
        self._forward = Compiled(self.network, warn) if options.compile else self.network
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.amp is torch.float16)
        self.adversary = adversary
        self._after_step = after_step
        self._adding: list[tuple[int, float, list[Tensor]]] = []
        self._stepped: list[tuple[list[tuple[int, float]], Tensor]] = []
        # Mean over the samples of the last drain.
        self.discriminator_loss: float | None = None

    @property
    def added(self) -> int:
        """Samples whose gradients wait for a step."""
        return len(self._adding)

    def add(self, x: Tensor, mask: Tensor, y: Tensor, *, position: int, weight: float) -> bool:
        """Add a sample's gradients up and step when there are enough; tell whether it did.

        Args:
            x: (12, 3, H, W) float32 in [0, 1].
            mask: (12, 1, H, W) float32, 1 = hole.
            y: (12, 3, H - 32, W - 32) float32.
            position: the sample's place in the epoch.
            weight: 0 for one that only keeps ranks in step.
        """
        options = self.options
        steps = len(self._adding) + 1 == options.backward_step
        with self._apart(steps):
            with mixed(self.ranks.device, options.amp):
                emptied, soft = self.model.preprocess(x, mask)
                out = self._forward(emptied, soft)
            loss = self.loss(out.float(), y, position)
            losses, share = [loss.detach()], weight / options.backward_step
            if self.adversary is None:
                torch.autograd.backward(self.scaler.scale(loss * share))
            else:
                (gradient,) = torch.autograd.grad(loss, out)
                gradient, judged = self.adversary.add(out, gradient, y, emptied, mask, weight=weight)
                torch.autograd.backward(out, self.scaler.scale(gradient * share))
                losses.append(judged)
        self._adding.append((position, weight, losses))
        if steps:
            self._step()
        return steps

    def finish(self) -> bool:
        """Step with what is added up, as at the end of an epoch, if anything is; tell whether it did."""
        if not self._adding:
            return False
        self.ranks.average([p.grad for p in self.model.parameters() if p.grad is not None])
        self._step()
        return True

    def drain(self) -> list[Loss]:
        """Give the losses of the steps since the last call; waits for the device."""
        stepped, self._stepped = self._stepped, []
        if not stepped:
            return []
        told = iter(torch.cat([values for _, values in stepped]).tolist())
        drained: list[Loss] = []
        losses = 1 if self.adversary is None else 2
        for samples in (samples for samples, _ in stepped):
            values = [[next(told) for _ in range(losses)] for _ in samples]
            spoilt = bool(next(told))
            drained += [
                Loss(position, weight, value, not spoilt, *judged)
                for (position, weight), (value, *judged) in zip(samples, values, strict=True)
            ]
        judged_losses = [
            loss.discriminator for loss in drained if loss.discriminator is not None and loss.weight
        ]
        if judged_losses:
            self.discriminator_loss = math.fsum(judged_losses) / len(judged_losses)
        return drained

    def are_numbers(self) -> bool:
        """Tell whether all weights are numbers; waits for the device."""
        weights = [*self.model.parameters()]
        if self.adversary is not None:
            weights += self.adversary.discriminator.parameters()
        return all(bool(weight.isfinite().all()) for weight in weights)

    def _step(self) -> None:
        values = torch.stack([loss for _, _, losses in self._adding for loss in losses]).float()
        spoilt = self.ranks.greatest((~values.isfinite().all()).float())
        samples = [(position, weight) for position, weight, _ in self._adding]
        self._stepped.append((samples, torch.cat([values, spoilt[None]])))
        self._adding = []
        if self.scaler.is_enabled():
            # Gradients of what is not a number are none either: the scaler leaves the step out.
            if self.options.clip_grad_norm is not None:
                self.scaler.unscale_(self.optimizer)
            self._clip()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif reads_flag(self.optimizer):
            self._clip()
            self.optimizer.found_inf = spoilt  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not spoilt.item():
            self._clip()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.adversary is not None:
            self.adversary.step(spoilt)
        self._after_step()

    def _clip(self) -> None:
        if self.options.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_grad_norm)

    def _apart(self, steps: bool) -> AbstractContextManager[None]:
        """Send gradients to the other ranks only with the last sample of a step."""
        network = self.network
        if isinstance(network, nn.parallel.DistributedDataParallel) and not steps:
            return network.no_sync()
        return nullcontext()


def mixed(device: torch.device, amp: torch.dtype | None) -> AbstractContextManager[None]:
    """Give mixed precision of type ``amp`` for the length of a block, None for float32."""
    if amp is None:
        return nullcontext()
    return torch.autocast(device.type, amp)


def reads_flag(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether the optimizer's steps are fused, and left out where ``found_inf`` on its device is 1."""
    return all(group.get("fused") for group in optimizer.param_groups)
