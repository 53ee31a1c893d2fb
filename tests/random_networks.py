"""Networks with random weights, for tests of what is done with them."""

from __future__ import annotations

import torch

from vshard.train.perceptual import Perceptual


def random_perceptual() -> Perceptual:
    """The network of the perceptual loss: as it is made it has no weights at all."""
    torch.manual_seed(3)
    network = Perceptual()
    for depth in network.depths:
        for layer in depth:  # type: ignore[attr-defined]
            layer.reset_parameters()
    for head in network.heads:
        torch.nn.init.uniform_(head.weight, 0, 0.01)  # type: ignore[arg-type]
    return network
