"""How long does a training step take, and how much memory, against plain eager code for the same network and loss?

    python benchmarks/step.py [--arch small] [--size 256] [--rounds 3] [--device cpu] [--amp bf16] [--compile]
        [--keep-memory]

Forward, loss (temporal_l1), backward and AdamW on one sample of 12 frames. Plain is the network written out in a
straightforward way (channels first, LayerNorm over windows, a convolution over tokens), with the same weights; the two
take turns in one process, after outputs and gradients have been compared. On the CPU, times are those that passed and
those of the processors, on all threads and on one; memory is what two steps in a fresh process add to it.
--keep-memory lets both keep what they free for their next step. --compile adds a third, ours through torch.compile.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vshard.base.memory import keep_freed_memory
from vshard.train.losses import loss_by_name
from vshard.train.network import ARCHITECTURES, create
from vshard.train.optimize import create_optimizer
from vshard.train.steps import AMP_FLOATS, mixed

Step = Callable[[], None]
Sample = tuple[Tensor, Tensor, Tensor]
WAYS = ("ours", "plain")
MIB = 1 << 20
TOLERANCE = 1e-3


class PlainMixer(nn.Module):
    def __init__(self, dim: int, tokens: int, ratio: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, dim * ratio * 2)
        self.proj_spatial = nn.Conv1d(tokens, tokens, 1)
        self.proj_out = nn.Linear(dim * ratio, dim)

    def forward(self, x: Tensor, norm1: nn.LayerNorm, norm2: nn.LayerNorm) -> Tensor:
        u, v = F.gelu(self.proj_in(norm1(x))).chunk(2, dim=-1)
        return self.proj_out(u * self.proj_spatial(norm2(v))) + x


class PlainWindows(nn.Module):
    def __init__(self, dim: int, window: int, ratio: int, shifted: bool = False) -> None:
        super().__init__()
        self.window, self.margin = window, window // 2 if shifted else 0
        self.gmlp = PlainMixer(dim, window**2, ratio)

    def forward(self, x: Tensor, norm1: nn.LayerNorm, norm2: nn.LayerNorm) -> Tensor:
        m, n = self.margin, self.window
        x = F.pad(x, (m,) * 4)
        B, C, H, W = x.shape
        windows = x.reshape(B, C, H // n, n, W // n, n).permute(0, 2, 4, 3, 5, 1).reshape(-1, n * n, C)
        windows = self.gmlp(windows, norm1, norm2)
        x = windows.reshape(B, H // n, W // n, n, n, C).permute(0, 5, 1, 3, 2, 4).reshape(B, C, H, W)
        return F.pad(x, (-m,) * 4)


class PlainFrames(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gmlp = PlainMixer(dim, 12, 2)

    def forward(self, x: Tensor, norm1: nn.LayerNorm, norm2: nn.LayerNorm) -> Tensor:
        B, C, H, W = x.shape
        tokens = self.gmlp(x.permute(2, 3, 0, 1).reshape(H * W, B, C), norm1, norm2)
        return tokens.reshape(H, W, B, C).permute(2, 3, 0, 1)


class PlainGluConv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w1 = nn.Conv2d(dim, dim, 1)
        self.w2 = nn.Conv2d(dim // 2, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.w1(x), dim=1)
        padded = F.pad(x.detach(), (1,) * 4, mode="replicate")  # no gradient through the copies
        padded[:, :, 1:-1, 1:-1] = x
        return self.w2(padded)


class PlainBlock(nn.Module):
    def __init__(self, dim: int, mixer: PlainWindows | PlainFrames) -> None:
        super().__init__()
        self.gmlp = mixer
        self.norm1 = nn.LayerNorm(dim, bias=False)
        self.norm2 = nn.LayerNorm(mixer.gmlp.proj_out.in_features, bias=False)
        self.glu_conv = PlainGluConv(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gmlp(x, self.norm1, self.norm2)
        return x + self.glu_conv(x)


class PlainNetwork(nn.Module):
    def __init__(self, base_dim: int, lv2_mlp_ratio: int) -> None:
        super().__init__()
        C, ratio = base_dim, lv2_mlp_ratio
        self.mask_bias = nn.Parameter(torch.empty(1, C, 1, 1))
        self.patch = nn.Conv2d(3, C, 4, stride=4)
        self.enc1 = PlainBlock(C, PlainWindows(C, 16, 2))
        self.down = nn.Conv2d(C, C * 2, 2, stride=2)
        self.enc2 = nn.Sequential(
            PlainBlock(C * 2, PlainWindows(C * 2, 8, ratio, shifted=True)),
            PlainBlock(C * 2, PlainFrames(C * 2)),
            PlainBlock(C * 2, PlainWindows(C * 2, 8, ratio)),
            PlainBlock(C * 2, PlainFrames(C * 2)),
            PlainBlock(C * 2, PlainWindows(C * 2, 8, ratio, shifted=True)),
        )
        self.up = nn.Conv2d(C * 2, C * 4, 1)
        self.dec1 = PlainBlock(C, PlainWindows(C, 16, 2))
        self.to_image = nn.Conv2d(C, 48, 1)
        taps = torch.arange(15.0) - 7
        weights = torch.exp(-(taps**2) / (2 * 2.6**2))
        self.register_buffer("blur", weights / weights.sum(), persistent=False)

    def preprocess(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        blurred = F.conv2d(F.pad(mask, (7,) * 4, mode="replicate"), self.blur[None, None, None])
        blurred = F.conv2d(blurred, self.blur[None, None, :, None])
        return x * (1 - mask), (blurred + mask).clamp(0, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        H, W = x.shape[2:]
        pad = (0, 64 - W % 64, 0, 64 - H % 64)
        holes = F.max_pool2d(F.pad(mask, pad, mode="replicate"), 4) > 0.99
        tokens = F.leaky_relu(self.patch(F.pad(x * 2 - 1, pad, mode="replicate")), 0.1)
        tokens = torch.where(holes, self.mask_bias.to(tokens.dtype), tokens)
        full = self.enc1(tokens)
        half = self.enc2(self.down(full))
        full = self.dec1(full + F.pixel_shuffle(self.up(half), 2))
        out = F.pixel_shuffle(self.to_image(full), 4)[:, :, :H, :W]
        return (x * (1 - mask) + out * mask)[:, :, 16:-16, 16:-16]


def create_sample(size: int, device: str) -> Sample:
    torch.manual_seed(1)
    x = torch.rand(12, 3, size, size, device=device)
    mask = F.interpolate(torch.rand(12, 1, size // 16, size // 16, device=device), (size, size)) > 0.8
    return x, mask.float(), x[..., 16:-16, 16:-16].contiguous()


def create_step(
    model: nn.Module, network: Callable[..., Tensor], sample: Sample, amp: torch.dtype | None
) -> Step:
    x, mask, y = sample
    loss = loss_by_name("temporal_l1")
    optimizer = create_optimizer("adamw", model)
    if x.device.type == "cuda":
        for group in optimizer.param_groups:
            group["fused"] = True
    scaler = torch.amp.GradScaler(x.device.type, enabled=amp is torch.float16)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with mixed(x.device, amp):
            out = network(*model.preprocess(x, mask))
        torch.autograd.backward(scaler.scale(loss(out.float(), y)))
        scaler.step(optimizer)
        scaler.update()

    return step


def build(
    ways: tuple[str, ...], arch: str, sample: Sample, amp: torch.dtype | None
) -> dict[str, tuple[nn.Module, Step]]:
    torch.manual_seed(1)
    weights = create(arch).state_dict()
    built = {}
    for way in ways:
        model = PlainNetwork(**ARCHITECTURES[arch]) if way == "plain" else create(arch)
        model.load_state_dict(weights)
        model.to(sample[0].device)
        network = torch.compile(model) if way == "compiled" else model
        built[way] = (model, create_step(model, network, sample, amp))
    return built


def seconds_of(step: Step, device: str) -> tuple[float, float]:
    """Seconds that passed, and those of the processor."""
    if device == "cuda":
        torch.cuda.synchronize()
    started, worked = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - worked


def compare(built: dict[str, tuple[nn.Module, Step]], sample: Sample, amp: torch.dtype | None) -> None:
    """Print how far frames and gradients (of the mean square) lie from plain code's; end if float32 on the CPU strays.

    Not of the loss: the gradient of a difference's size turns where the difference is nothing.
    """
    x, mask, _ = sample
    outs, gradients = {}, {}
    for way, (model, _) in built.items():
        with mixed(x.device, amp):
            out = model(*model.preprocess(x, mask)).float()
        torch.autograd.backward(out.square().mean())
        outs[way] = out.detach()
        gradients[way] = {key: p.grad.double() for key, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
    exact = gradients["plain"]
    for way in built.keys() - {"plain"}:
        off = {key: float((gradients[way][key] - g).norm() / g.norm()) for key, g in exact.items()}
        worst = max(off, key=lambda key: off[key])
        apart = (outs[way] - outs["plain"]).abs().max().item() / outs["plain"].abs().max().item()
        print(
            f"  {way:9} frames {apart:.1e} of the largest value from plain; gradients up to {off[worst]:.1e} ({worst})"
        )
        if x.device.type == "cpu" and amp is None and max(apart, off[worst]) > TOLERANCE:
            raise SystemExit(f"{way} is another network than plain: more than {TOLERANCE} apart")


def take_turns(built: dict[str, tuple[nn.Module, Step]], rounds: int, device: str) -> None:
    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in built}
    for number in range(rounds + 1):
        for way, (_, step) in built.items():
            seconds = seconds_of(step, device)
            if number:  # the first round warms up
                spent[way].append(seconds)
    for way, seconds in spent.items():
        told = []
        for name, i in {"": 0, " of the processors": 1}.items():
            mine, plain = ([pair[i] for pair in pairs] for pairs in (seconds, spent["plain"]))
            ratios = [b / a for a, b in zip(mine, plain, strict=True)]
            faster = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times as fast as plain"
            told.append(
                f"{statistics.median(mine) * 1e3:.1f} ms{name}" + (f", {faster}" if way != "plain" else "")
            )
        print(f"  {way:9} {'; '.join(told)}")


def resident(field: str) -> int:
    """Bytes of this process in memory: ``VmRSS`` now, ``VmHWM`` at its most."""
    with open("/proc/self/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def peak_bytes(step: Step, device: str) -> int:
    """Bytes that two steps add to the memory in use."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else resident("VmRSS")
    for _ in range(2):
        step()
    return (torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")) - before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=list(ARCHITECTURES), default="small")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--amp", choices=list(AMP_FLOATS))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.keep_memory:
        keep_freed_memory()
    amp = AMP_FLOATS.get(arguments.amp)
    sample = create_sample(arguments.size, arguments.device)
    if arguments.memory_of:
        way = arguments.memory_of
        _, step = build((way,), arguments.arch, sample, amp)[way]
        print(peak_bytes(step, arguments.device) // MIB)
        return
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{os.cpu_count()} cores"
    print(
        f"{platform.machine()}, {where}, torch {torch.__version__}; {arguments.arch}, 12 frames of {arguments.size}x"
        f"{arguments.size}, {arguments.amp or 'float32'}; medians of {arguments.rounds} rounds"
    )
    built = build(WAYS, arguments.arch, sample, amp)
    compare(built, sample, amp)
    if arguments.compile:
        built |= build(("compiled",), arguments.arch, sample, amp)
        seconds, _ = seconds_of(built["compiled"][1], arguments.device)
        print(f"  compiling and a first step took {seconds:.0f} s")
    for threads in {torch.get_num_threads(): None, 1: None} if arguments.device == "cpu" else [None]:
        if threads is not None:
            torch.set_num_threads(threads)
            print(f"{threads} thread" + "s" * (threads > 1))
        take_turns(built, arguments.rounds, arguments.device)
    for way in WAYS:
        command = [sys.executable, *sys.argv, "--memory-of", way]
        mebibytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(f"  {way:9} takes {mebibytes} MiB more at its peak")


if __name__ == "__main__":
    main()
