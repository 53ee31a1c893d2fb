from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vshard.base.errors import OptionError
from vshard.train.network import LightVideoInpaint, create
from vshard.train.ranks import Ranks, join_ranks
from vshard.train.steps import Loss, StepOptions, Steps, reads_flag

ALONE = Ranks(0, 1, torch.device("cpu"))


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Twelve frames of 64×64 with holes of 8×8, and the target without its border."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand((12, 3, 64, 64), generator=rng)
    holes = (torch.rand((12, 1, 8, 8), generator=rng) > 0.7).float()
    mask = holes.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return x, mask, x[..., 16:-16, 16:-16]


def plain_loss(out: Tensor, target: Tensor, position: int) -> Tensor:
    del position
    return (out - target).square().mean()


def fresh() -> LightVideoInpaint:
    torch.manual_seed(4)
    return create("narrow")


def steps_of(
    model: LightVideoInpaint, options: StepOptions, *, fused: bool = False, ranks: Ranks = ALONE
) -> Steps:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    return Steps(model, optimizer, plain_loss, ranks, options)


def weights(model: LightVideoInpaint) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_added_gradients_are_those_of_the_mean() -> None:
    steps = steps_of(fresh(), StepOptions(3))
    for position in range(3):
        stepped = steps.add(*inputs(position), position=position, weight=1.0)
        assert stepped == (position == 2) and steps.added == (position + 1) % 3
    model = fresh()
    losses = []
    for seed in range(3):
        x, mask, y = inputs(seed)
        losses.append(plain_loss(model(*model.preprocess(x, mask)), y, seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.stack(losses).mean().backward()
    optimizer.step()
    # Adam's first step is the gradient's sign: where that is noise, it is noise of the rate's size.
    assert ((weights(steps.model) - weights(model)).abs() > 1e-5).float().mean() < 1e-3
    assert steps.drain() == [
        Loss(i, 1.0, pytest.approx(loss.item(), rel=1e-5), True) for i, loss in enumerate(losses)
    ]
    assert steps.drain() == []


def test_the_last_sample_of_an_epoch_steps_and_a_filler_changes_nothing() -> None:
    steps, alone = steps_of(fresh(), StepOptions(3)), steps_of(fresh(), StepOptions(3))
    steps.add(*inputs(0), position=0, weight=1.0)
    assert not steps.add(*inputs(1), position=1, weight=0.0) and steps.finish() and not steps.finish()
    alone.add(*inputs(0), position=0, weight=1.0)
    alone.finish()
    assert torch.equal(weights(steps.model), weights(alone.model))
    assert [loss.weight for loss in steps.drain()] == [1.0, 0.0]


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_with_a_loss_that_is_no_number_is_left_out(fused: bool) -> None:
    steps = steps_of(fresh(), StepOptions(2), fused=fused)
    assert reads_flag(steps.optimizer) == fused
    before = weights(steps.model).clone()
    x, mask, y = inputs(0)
    steps.add(x, mask, y, position=0, weight=1.0)
    steps.add(x, mask, y * float("nan"), position=1, weight=1.0)
    assert torch.equal(weights(steps.model), before)
    steps.add(x, mask, y, position=2, weight=1.0)
    steps.finish()
    assert not torch.equal(weights(steps.model), before) and weights(steps.model).isfinite().all()
    first, second, third = steps.drain()
    assert (first.stepped, second.stepped, third.stepped) == (False, False, True)
    assert first.value == third.value and second.value != second.value
    untouched = steps_of(fresh(), StepOptions(2), fused=fused)
    untouched.add(x, mask, y, position=2, weight=1.0)
    untouched.finish()
    assert torch.equal(weights(untouched.model), weights(steps.model))


def test_gradients_are_clipped_to_a_norm() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    steps = Steps(
        model, optimizer, lambda a, b, at: 1e4 * plain_loss(a, b, at), ALONE, StepOptions(1, None, 0.25)
    )
    before = weights(model).clone()
    steps.add(*inputs(0), position=0, weight=1.0)
    assert float((weights(model) - before).norm()) == pytest.approx(0.25, rel=1e-3)


def test_bfloat16_comes_near() -> None:
    found = []
    for amp in (None, torch.bfloat16):
        steps = steps_of(fresh(), StepOptions(1, amp))
        steps.add(*inputs(0), position=0, weight=1.0)
        found.append(steps.drain()[0].value)
    assert found[1] == pytest.approx(found[0], rel=0.02) and found[0] != found[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", [None, torch.float16, torch.bfloat16])
def test_a_gpu_leaves_spoilt_steps_out_without_waiting(amp: torch.dtype | None) -> None:
    device = torch.device("cuda", 0)
    model = fresh().to(device)
    steps = steps_of(model, StepOptions(1, amp), fused=True, ranks=Ranks(0, 1, device))
    x, mask, y = (tensor.to(device) for tensor in inputs(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        before = weights(model).clone()
        steps.add(x, mask, y * float("nan"), position=0, weight=1.0)
        spoilt = weights(model).clone()
        steps.add(x, mask, y, position=1, weight=1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(spoilt, before) and not torch.equal(weights(model), before)
    assert [loss.stepped for loss in steps.drain()] == [False, True]


_RANK = """
import sys, torch
from test_steps import fresh, inputs, steps_of, weights
from vshard.train.ranks import join_ranks
from vshard.train.steps import StepOptions
with join_ranks(-1) as ranks:
    model = fresh()
    if not ranks.is_first:
        torch.nn.init.zeros_(model.mask_bias)
    steps = steps_of(model, StepOptions(2), ranks=ranks)
    for k in range(5):
        x, mask, y = inputs(2 * k + ranks.number)
        bad = k == 2 and ranks.number == 1
        steps.add(x, mask, y * (float("nan") if bad else 1), position=2 * k + ranks.number, weight=1.0)
    steps.finish()
    losses = [loss for own in ranks.gather(steps.drain()) for loss in own]
    assert ranks.any([ranks.number == 1, False]) == [True, False]
    if ranks.is_first:
        torch.save({"weights": weights(model), "losses": sorted(map(tuple, losses))}, sys.argv[1])
    ranks.wait()
"""


def test_two_ranks_step_like_one_that_adds_up_twice_as_many(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(tmp_path / "found")],
            env={
                **os.environ,
                "PYTHONPATH": path,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in (0, 1)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    found = torch.load(tmp_path / "found", weights_only=True)
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = Steps(model, optimizer, plain_loss, ALONE, StepOptions(4))
    for position in range(10):
        x, mask, y = inputs(position)
        bad = position == 5
        steps.add(x, mask, y * (float("nan") if bad else 1), position=position, weight=1.0)
    # The last step of two ranks adds up one sample each, and divides by as many as any other step.
    steps.finish()
    assert ((found["weights"] - weights(model)).abs() > 2e-5).float().mean() < 1e-3
    alone = steps.drain()
    assert [loss[0] for loss in found["losses"]] == list(range(10))
    assert [loss[3] for loss in found["losses"]] == [loss.stepped for loss in alone]
    ours = torch.tensor([loss[2] for loss in found["losses"]])
    assert torch.allclose(ours, torch.tensor([loss.value for loss in alone]), rtol=1e-4, equal_nan=True)


def test_several_processes_take_their_own_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="--gpu 0: each of 2 processes"), join_ranks(0):
        pass
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(OptionError, match="WORLD_SIZE=many"), join_ranks(None):
        pass


def broken_compiler(_network: object) -> object:
    def fast(*_inputs: Tensor) -> Tensor:
        raise RuntimeError("no C++ compiler\nmore lines")

    return fast


def no_compiler(_network: object) -> object:
    raise RuntimeError("not for this Python")


@pytest.mark.parametrize(
    ("compiler", "reason"), [(broken_compiler, "no C++ compiler"), (no_compiler, "not for this Python")]
)
def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, compiler: object, reason: str
) -> None:
    monkeypatch.setattr(torch, "compile", compiler)
    told: list[str] = []
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = Steps(model, optimizer, plain_loss, ALONE, StepOptions(1, compile=True), warn=told.append)
    plain = steps_of(fresh(), StepOptions(1))
    for position in range(2):
        for one in (steps, plain):
            one.add(*inputs(position), position=position, weight=1.0)
    assert told == [f"--compile: the network cannot be compiled here ({reason}); it runs as it is"]
    assert torch.equal(weights(steps.model), weights(plain.model))


def test_an_error_of_a_compiled_network_that_has_run_is_none_of_the_compilers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def compiler(network: LightVideoInpaint) -> object:
        def fast(*clip: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise RuntimeError("a fault of its own")
            return network(*clip)

        return fast

    monkeypatch.setattr(torch, "compile", compiler)
    steps = steps_of(fresh(), StepOptions(1, compile=True))
    steps.add(*inputs(0), position=0, weight=1.0)
    with pytest.raises(RuntimeError, match="a fault of its own"):
        steps.add(*inputs(1), position=1, weight=1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_steps_are_the_plain_ones() -> None:
    on_gpu = Ranks(0, 1, torch.device("cuda"))
    found = []
    for compiled in (False, True):
        model = fresh().cuda()
        steps = steps_of(model, StepOptions(1, compile=compiled), ranks=on_gpu)
        steps.add(*(one.cuda() for one in inputs(0)), position=0, weight=1.0)
        found.append(steps.drain()[0].value)
    assert found[1] == pytest.approx(found[0], rel=1e-3)
