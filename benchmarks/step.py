"""How long does a training step take?

    python benchmarks/step.py [--arch small] [--steps 5] [--gpu -1]

Forward, loss, backward and optimizer step on one sample of 12 frames of 256x256.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch

from vshard.base.devices import choose_device
from vshard.train.losses import loss_by_name
from vshard.train.network import create
from vshard.train.optimize import create_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="small")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--gpu", type=int, default=None)
    arguments = parser.parse_args()
    device = choose_device(arguments.gpu)
    torch.manual_seed(1)
    model = create(arguments.arch).to(device)
    optimizer = create_optimizer("adamw", model)
    loss = loss_by_name("temporal_l1")
    x = torch.rand(12, 3, 256, 256, device=device)
    mask = (torch.rand(12, 1, 256, 256, device=device) > 0.95).float()
    seconds = []
    for _ in range(arguments.steps + 1):  # the first one warms up
        started = time.perf_counter()
        loss(model(*model.preprocess(x, mask)), x[..., 16:-16, 16:-16]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    threads = torch.get_num_threads()
    print(f"{platform.machine()}, {device}, {threads} threads, torch {torch.__version__}, {arguments.arch}")
    print(
        f"step {statistics.median(seconds[1:]):.3f} s (from {min(seconds[1:]):.3f} to {max(seconds[1:]):.3f})"
    )


if __name__ == "__main__":
    main()
