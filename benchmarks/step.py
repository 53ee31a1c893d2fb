"""How long does a training step take, and how much memory, against plain eager code for the same network and loss?

    python benchmarks/step.py [--arch small] [--size 256] [--rounds 3] [--device cpu] [--amp bf16] [--compile]
        [--memory own|kept|freed]

Forward, loss (temporal_l1), backward and AdamW on one sample of 12 frames. Plain is the network written out in a
straightforward way (channels first, LayerNorm over windows, a convolution over tokens), with the same weights; outputs
and gradients are compared first. Each has a process of its own, and they take turns. On the CPU, times are those that
passed and those of the processors, on all threads and on one; memory is what the first two steps add to the process.
With --memory own each step finds memory as it would in use: ours keeps what it frees for the next step, as `vshard
train` does, plain gives it back, as PyTorch does; kept and freed: both keep it, or neither. --compile adds a third,
ours through torch.compile.
"""

from __future__ import annotations

import argparse
import json
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
from vshard.train.plan import AMP_FLOATS
from vshard.train.steps import mixed

Step = Callable[[], None]
Sample = tuple[Tensor, Tensor, Tensor]
WAYS = ("ours", "plain")
MEMORY = ("own", "kept", "freed")
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


def amp_type(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, AMP_FLOATS[name])


def build(way: str, arch: str, device: str) -> nn.Module:
    torch.manual_seed(1)
    weights = create(arch).state_dict()
    model = PlainNetwork(**ARCHITECTURES[arch]) if way == "plain" else create(arch)
    model.load_state_dict(weights)
    return model.to(device)


def seconds_of(step: Step, device: str) -> tuple[float, float]:
    """Seconds that passed, and those of the processor."""
    if device == "cuda":
        torch.cuda.synchronize()
    started, worked = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - worked


def compare(models: dict[str, nn.Module], sample: Sample, amp: torch.dtype | None) -> None:
    """Print how far frames and gradients (of the mean square) lie from plain code's; end if float32 on the CPU strays.

    Not of the loss: the gradient of a difference's size turns where the difference is nothing.
    """
    x, mask, _ = sample
    outs, gradients = {}, {}
    for way, model in models.items():
        with mixed(x.device, amp):
            out = model(*model.preprocess(x, mask)).float()
        torch.autograd.backward(out.square().mean())
        outs[way] = out.detach()
        gradients[way] = {key: p.grad.double() for key, p in model.named_parameters()}
    exact = gradients["plain"]
    off = {key: float((gradients["ours"][key] - g).norm() / g.norm()) for key, g in exact.items()}
    worst = max(off, key=lambda key: off[key])
    apart = (outs["ours"] - outs["plain"]).abs().max().item() / outs["plain"].abs().max().item()
    print(
        f"  ours: frames {apart:.1e} of the largest value from plain; gradients up to {off[worst]:.1e} ({worst})"
    )
    if x.device.type == "cpu" and amp is None and max(apart, off[worst]) > TOLERANCE:
        raise SystemExit(f"ours is another network than plain: more than {TOLERANCE} apart")


class Worker:
    """One way's process; it makes a step when told to."""

    def __init__(self, way: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *sys.argv, "--turns-of", way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.mebibytes, self.first_seconds = self._answer()

    def step(self, threads: int) -> tuple[float, float]:
        """Seconds that passed, and those of the processor."""
        print(threads, file=self._process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        self._process.communicate()

    def _answer(self) -> tuple[float, float]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with exit code {self._process.wait()}")
        return tuple(json.loads(line))


def work(way: str, arguments: argparse.Namespace) -> None:
    """Be a worker: tell mebibytes and seconds of the first steps, then those of each step asked for."""
    if arguments.memory == "kept" or (arguments.memory == "own" and way != "plain"):
        keep_freed_memory()
    amp, device = amp_type(arguments.amp), arguments.device
    model = build(way, arguments.arch, device)
    network = torch.compile(model) if way == "compiled" else model
    step = create_step(model, network, create_sample(arguments.size, device), amp)
    before = start_of_peak(device)
    seconds, _ = seconds_of(step, device)
    step()
    print(json.dumps([(peak(device) - before) // MIB, seconds]), flush=True)
    for line in sys.stdin:
        if int(line):
            torch.set_num_threads(int(line))
        print(json.dumps(seconds_of(step, device)), flush=True)


def take_turns(workers: dict[str, Worker], rounds: int, threads: int) -> None:
    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in workers}
    for number in range(rounds + 1):
        for way, worker in workers.items():
            seconds = worker.step(threads)
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


def start_of_peak(device: str) -> int:
    """Bytes in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return resident("VmRSS")


def peak(device: str) -> int:
    """Bytes in use at the most since."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")


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
    parser.add_argument("--memory", choices=MEMORY, default="own")
    parser.add_argument("--turns-of", choices=[*WAYS, "compiled"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turns_of:
        work(arguments.turns_of, arguments)
        return
    on_cpu = arguments.device == "cpu"
    where = f"{os.cpu_count()} cores" if on_cpu else torch.cuda.get_device_name()
    memory = f", memory {arguments.memory}" if on_cpu else ""
    print(
        f"{platform.machine()}, {where}, torch {torch.__version__}; {arguments.arch}, 12 frames of {arguments.size}x"
        f"{arguments.size}, {arguments.amp or 'float32'}{memory}; medians of {arguments.rounds} rounds"
    )
    models = {way: build(way, arguments.arch, arguments.device) for way in WAYS}
    compare(models, create_sample(arguments.size, arguments.device), amp_type(arguments.amp))
    del models
    workers = {way: Worker(way) for way in (*WAYS, *["compiled"] * arguments.compile)}
    if arguments.compile:
        print(f"  compiling and a first step took {workers['compiled'].first_seconds:.0f} s")
    for threads in dict.fromkeys((torch.get_num_threads(), 1)) if on_cpu else [0]:
        if threads:
            print(f"{threads} thread" + "s" * (threads > 1))
        take_turns(workers, arguments.rounds, threads)
    for way, worker in workers.items():
        print(f"  {way:9} takes {worker.mebibytes} MiB more at its peak")
        worker.end()


if __name__ == "__main__":
    main()
