"""Training against a discriminator: its steps beside the network's, stopped and resumed, on several ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import NAME, assert_same, final_state, killed_and_resumed, options
from test_ranks import assert_close_but_for_noise, start
from test_steps import fresh, inputs, plain_loss, weights
from torch import Tensor

from vshard.base.errors import CheckpointError, OptionError
from vshard.base.report import Silent
from vshard.train import run as module
from vshard.train.adversarial import Adversary, AdversaryOptions
from vshard.train.checkpoint import load_checkpoint
from vshard.train.history import read_epochs
from vshard.train.network import LightVideoInpaint
from vshard.train.ranks import Ranks
from vshard.train.run import train
from vshard.train.steps import StepOptions, Steps

pytestmark = pytest.mark.usefixtures("tiny")
ALONE = Ranks(0, 1, torch.device("cpu"))


def steps_of(
    backward_step: int, amp: torch.dtype | None = None, model: LightVideoInpaint | None = None
) -> Steps:
    model = model or fresh()
    wanted = AdversaryOptions("l3c", weight=0.2, warmup_steps=0, backward_step=backward_step, amp=amp, seed=1)
    adversary = Adversary(model.to_image.weight, ALONE, wanted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    options = StepOptions(backward_step, amp)
    return Steps(model, optimizer, plain_loss, ALONE, options, adversary=adversary)


def judging(steps: Steps) -> Tensor:
    assert steps.adversary is not None
    return torch.cat([p.detach().flatten() for p in steps.adversary.discriminator.parameters()])


def test_a_step_moves_both_by_the_mean_over_its_samples() -> None:
    steps, plain = steps_of(2), fresh()
    without = Steps(plain, torch.optim.AdamW(plain.parameters(), lr=1e-3), plain_loss, ALONE, StepOptions(2))
    before = judging(steps).clone()
    for position in range(2):
        steps.add(*inputs(position), position=position, weight=1.0)
        without.add(*inputs(position), position=position, weight=1.0)
    # Nothing is known of the weight yet, so the network steps as if alone.
    assert ((weights(steps.model) - weights(plain)).abs() > 1e-5).float().mean() < 1e-3
    assert (judging(steps) != before).float().mean() > 0.9
    told, alone = steps.drain(), without.drain()
    assert [loss.value for loss in told] == pytest.approx([loss.value for loss in alone])
    assert [loss.discriminator for loss in told] == pytest.approx([1, 1], abs=0.1)
    assert [loss.discriminator for loss in alone] == [None, None]
    for position in range(2, 32):
        steps.add(*inputs(position), position=position, weight=1.0)
        without.add(*inputs(position), position=position, weight=1.0)
    assert ((weights(steps.model) - weights(plain)).abs() > 1e-4).float().mean() > 0.1


def test_what_is_no_number_moves_neither() -> None:
    steps = steps_of(1)
    x, mask, y = inputs(0)
    steps.add(x, mask, y, position=0, weight=1.0)
    before = weights(steps.model).clone(), judging(steps).clone(), float(steps.adversary.weight)
    steps.add(x, mask, y * float("nan"), position=1, weight=1.0)
    steps.adversary.discriminator.register_forward_hook(
        lambda _module, _inputs, logits: [one * float("inf") for one in logits]
    )
    steps.add(x, mask, y, position=2, weight=1.0)
    assert torch.equal(weights(steps.model), before[0]) and torch.equal(judging(steps), before[1])
    assert float(steps.adversary.weight) == before[2]
    told = steps.drain()
    assert [loss.stepped for loss in told] == [True, False, False]
    assert np.isfinite(told[2].value) and not np.isfinite(told[2].discriminator)


def test_half_precision_comes_near() -> None:
    found = []
    for amp in (None, torch.bfloat16):
        # Fresh weights take back a level that they have given, which costs bfloat16 digits.
        model = fresh()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        steps = steps_of(1, amp, model)
        for position in range(2):
            steps.add(*inputs(position), position=position, weight=1.0)
        found.append([*(loss.discriminator for loss in steps.drain()), float(steps.adversary.weight)])
    assert found[1] == pytest.approx(found[0], rel=0.05) and found[0] != found[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["l3c", "ffc"])
def test_a_gpu_trains_both_without_waiting(name: str, amp: torch.dtype | None) -> None:
    device = torch.device("cuda", 0)
    ranks, model = Ranks(0, 1, device), fresh().to(device)
    wanted = AdversaryOptions(name, weight=0.2, warmup_steps=0, backward_step=1, amp=amp, seed=1)
    adversary = Adversary(model.to_image.weight, ranks, wanted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    steps = Steps(model, optimizer, plain_loss, ranks, StepOptions(1, amp), adversary=adversary)
    x, mask, y = (tensor.to(device) for tensor in inputs(0))
    steps.add(x, mask, y, position=0, weight=1.0)  # what is made at first use
    before = judging(steps).clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps.add(x, mask, y * float("nan"), position=1, weight=1.0)
        spoilt = judging(steps).clone()
        steps.add(x, mask, y, position=2, weight=1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(spoilt, before) and not torch.equal(judging(steps), before)
    assert [loss.stepped for loss in steps.drain()] == [True, False, True]
    assert 0 < float(adversary.weight) <= 2


def adversarial(data: Path, model_dir: Path, **changes: object) -> module.TrainOptions:
    return options(data, model_dir, **{"discriminator": "l3c", "generator_warmup_iteration": 3, **changes})


def test_killed_anywhere_and_resumed_equals_unbroken(data: Path, tmp_path: Path) -> None:
    wanted = adversarial(data, tmp_path / "whole", max_epoch=1)
    done = train(wanted, Silent())
    assert done is not None and np.isfinite([done.train_loss, done.best_loss]).all()
    whole = final_state(tmp_path / "whole")
    assert whole["vshard"]["adversary"]["step"] == 3
    assert set(load_checkpoint(tmp_path / "whole" / f"{NAME}.checkpoint.pth")["state_dict"]) == set(
        torch.load(tmp_path / "whole" / f"{NAME}.pth", weights_only=True)["state_dict"]
    )
    for kill_at in (2, 3):
        assert_same(killed_and_resumed(wanted, tmp_path / f"killed-{kill_at}", kill_at), whole)


def test_it_is_resumed_as_it_was_or_dropped_with_the_state(data: Path, tmp_path: Path) -> None:
    short = {"max_epoch": 1, "num_samples": 12}
    train(adversarial(data, tmp_path, **short), Silent())
    for other, told in (("ffc", "with --discriminator l3c; go on so"), (None, "with --discriminator l3c")):
        with pytest.raises(CheckpointError, match=told) as error:
            train(adversarial(data, tmp_path, discriminator=other, resume=True), Silent())
        assert "\n" not in str(error.value) and "--reset-state" in str(error.value)
    train(
        adversarial(data, tmp_path, discriminator=None, resume=True, reset_state=True, max_epoch=1), Silent()
    )
    assert final_state(tmp_path)["vshard"]["adversary"] is None
    with pytest.raises(CheckpointError, match="was trained without --discriminator"):
        train(adversarial(data, tmp_path, resume=True), Silent())


def test_options_out_of_range_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--discriminator l3: allowed are l3c, l3ce"):
        train(adversarial(data, tmp_path, discriminator="l3"), Silent())
    with pytest.raises(OptionError, match="--discriminator-weight -1: allowed is 0 to 1000"):
        adversarial(data, tmp_path, discriminator_weight=-1)
    with pytest.raises(OptionError, match="--generator-warmup-iteration -1: allowed is 0"):
        adversarial(data, tmp_path, generator_warmup_iteration=-1)


def test_two_ranks_equal_one_with_twice_the_accumulation(data: Path, tmp_path: Path) -> None:
    common = f"-i {data} --video --arch tiny --loss l1 --max-epoch 1 --eval-step 1 --num-samples 60 --gpu -1"
    common += " --num-workers 0 --discriminator l3c --generator-warmup-iteration 1"
    codes, said = start([*common.split(), "--model-dir", str(tmp_path / "two"), "--backward-step", "1"], 2)
    assert codes == [0, 0], said
    codes, said = start([*common.split(), "--model-dir", str(tmp_path / "one"), "--backward-step", "2"], 1)
    assert codes == [0], said
    two, one = (read_epochs(tmp_path / name / "metrics.jsonl")[0] for name in ("two", "one"))
    assert two.train_loss == pytest.approx(one.train_loss, rel=1e-4)
    assert two.eval_loss == pytest.approx(one.eval_loss, rel=1e-4)
    ours, theirs = (final_state(tmp_path / name) for name in ("two", "one"))
    assert_close_but_for_noise(ours["state_dict"], theirs["state_dict"])
    ours, theirs = (state["vshard"]["adversary"] for state in (ours, theirs))
    assert ours["step"] == theirs["step"] == 3
    assert ours["ratio"] == pytest.approx(float(theirs["ratio"]), rel=1e-3)
    assert_close_but_for_noise(ours["weights"], theirs["weights"])
