"""The Lion optimizer (Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, algorithm 2).

Each step moves every weight by the learning rate, up or down: the sign of a blend of gradient and momentum. One
tensor of state a parameter, half of Adam's. Its rate wants to be 3 to 10 times lower than AdamW's, its weight decay as
many times higher (the paper, section 5).
"""

from __future__ import annotations

from typing import Any

import torch

MOMENTUM = "exp_avg"


class Lion(torch.optim.Optimizer):
    """Steps by the sign of the momentum, with decoupled weight decay."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        """``betas``: what stays of the momentum in the blend that is stepped along, and from step to step."""
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the weights that have gradients."""
        assert closure is None
        for group in self.param_groups:
            rate, (blend, keep) = group["lr"], group["betas"]
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                state = self.state[weights]
                if not state:
                    state[MOMENTUM] = torch.zeros_like(weights)
                momentum = state[MOMENTUM]
                direction = momentum.lerp(weights.grad, 1 - blend).sign_()
                weights.mul_(1 - rate * group["weight_decay"]).sub_(direction, alpha=rate)
                momentum.lerp_(weights.grad, 1 - keep)
