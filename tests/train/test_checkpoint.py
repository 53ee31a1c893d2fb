from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_inputs import GOLDEN
from torch import Tensor

from vshard.base.errors import CheckpointError, OutputError
from vshard.train.checkpoint import load_checkpoint, load_model, save_checkpoint, save_model
from vshard.train.network import ARCHITECTURES, LightVideoInpaint, create
from vshard.train.optimize import OPTIMIZERS, create_optimizer, set_training

FACTS: dict[str, Any] = json.loads((GOLDEN / "checkpoint.json").read_text())
TRAIN_KWARGS = {"learning_rate": 1e-4, "gpu": [0], "arch": "small", "resume": False, "checkpoint_file": None}


@pytest.fixture
def model() -> LightVideoInpaint:
    torch.manual_seed(0)
    return LightVideoInpaint(base_dim=16)


@pytest.fixture
def saved(model: LightVideoInpaint, tmp_path: Path) -> Path:
    path = tmp_path / "narrow.pth"
    save_model(path, model)
    return path


def write_checkpoint(path: Path, model: LightVideoInpaint, name: str = "adamw", **changes: Any) -> None:
    values = {"train_kwargs": TRAIN_KWARGS, "best_loss": 0.125, "last_epoch": 3, "ours": {"drawn": 7}}
    save_checkpoint(path, model, create_optimizer(name, model), **{**values, **changes})


def raw(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def equal_weights(a: LightVideoInpaint, b: LightVideoInpaint) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def step(model: LightVideoInpaint, optimizer: torch.optim.Optimizer) -> None:
    """A training step on made-up gradients: cheap, and different for every weight and every step."""
    set_training(optimizer, True)
    for parameter in model.parameters():
        parameter.grad = torch.sin(parameter.detach() * 1000)
    optimizer.step()
    set_training(optimizer, False)


def test_a_model_file_has_the_layout_of_the_original(saved: Path) -> None:
    content = raw(saved)
    assert list(content) == FACTS["best_model"]["keys"]
    assert {key: type(value).__name__ for key, value in content.items()} == FACTS["best_model"]["types"]
    assert content["nunif_model"] == 1
    assert content["updated_at"].endswith("+00:00")
    assert hasattr(content["state_dict"], "_metadata")
    assert {v.dtype for v in content["state_dict"].values()} == {torch.float32}
    with zipfile.ZipFile(saved) as file:  # another reader finds it whole
        assert file.testzip() is None


def test_a_checkpoint_has_the_layout_of_the_original_and_our_progress(
    model: LightVideoInpaint, tmp_path: Path
) -> None:
    path = tmp_path / "narrow.checkpoint.pth"
    write_checkpoint(path, model)
    content = raw(path)
    assert list(content) == [*FACTS["training"]["keys"], "vshard"]
    types = {key: type(value).__name__ for key, value in content.items()}
    assert types == {**FACTS["training"]["types"], "vshard": "dict"}
    assert content["train_kwargs"] == TRAIN_KWARGS
    assert content["grad_scaler_state_dict"] == [{}]

    loaded = load_checkpoint(path)
    assert (loaded["vshard"], loaded["best_loss"], loaded["last_epoch"]) == ({"drawn": 7}, 0.125, 3)
    assert equal_weights(load_model(path), model)


def test_the_state_of_a_grad_scaler_is_kept(model: LightVideoInpaint, tmp_path: Path) -> None:
    path = tmp_path / "half.checkpoint.pth"
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    write_checkpoint(path, model, grad_scaler=scaler)
    assert load_checkpoint(path)["grad_scaler_state_dict"] == [scaler.state_dict()]
    assert scaler.state_dict()["scale"] == 4096.0


def test_a_checkpoint_of_the_original_is_read(model: LightVideoInpaint, tmp_path: Path) -> None:
    path = tmp_path / "theirs.checkpoint.pth"
    write_checkpoint(path, model)
    theirs = raw(path)
    del theirs["vshard"], theirs["updated_at"]
    torch.save({**theirs, "nunif_model": 99, "best_loss": 1000000000}, path)
    assert load_checkpoint(path)["vshard"] == {}


def test_any_width_and_size_round_trips(saved: Path, model: LightVideoInpaint, tmp_path: Path) -> None:
    loaded = load_model(saved)
    assert loaded.kwargs == {"base_dim": 16, "lv2_mlp_ratio": 1}
    assert equal_weights(loaded, model)
    assert loaded.training
    medium = create("medium")
    save_model(tmp_path / "medium.pth", medium)
    assert raw(tmp_path / "medium.pth")["name"] == "inpaint.light_video_inpaint_v1_medium"
    assert equal_weights(load_model(tmp_path / "medium.pth"), medium)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_round_trips(arch: str, tmp_path: Path) -> None:
    model = create(arch)
    save_model(tmp_path / "model.pth", model)
    write_checkpoint(tmp_path / "model.checkpoint.pth", model)
    for path in tmp_path.iterdir():
        loaded = load_model(path)
        assert equal_weights(loaded, model) and loaded.kwargs == model.kwargs and loaded.name == model.name


def test_the_name_alone_says_the_size(tmp_path: Path) -> None:
    path = tmp_path / "medium.pth"
    save_model(path, create("medium"))
    torch.save({**raw(path), "kwargs": {}}, path)
    assert load_model(path).kwargs == create("medium").kwargs


def test_half_precision_is_read_as_float32(model: LightVideoInpaint, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    save_model(path, model.half())
    assert raw(path)["state_dict"]["patch.weight"].dtype == torch.float16
    loaded = load_model(path)
    assert loaded.patch.weight.dtype == torch.float32
    assert equal_weights(loaded.half(), model)


def test_channels_last_weights_are_stored_plain(model: LightVideoInpaint, tmp_path: Path) -> None:
    path = tmp_path / "channels_last.pth"
    save_model(path, model.to(memory_format=torch.channels_last))
    assert all(value.is_contiguous() for value in raw(path)["state_dict"].values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_training_equals_unbroken_training(
    name: str, model: LightVideoInpaint, tmp_path: Path
) -> None:
    path = tmp_path / "run.checkpoint.pth"
    optimizer = create_optimizer(name, model)
    # radam_schedulefree leaves the weights alone for five steps.
    for _ in range(4):
        step(model, optimizer)
    save_checkpoint(path, model, optimizer, train_kwargs={}, best_loss=1.0, last_epoch=1, ours={})
    for _ in range(4):
        step(model, optimizer)

    resumed = load_model(path)
    continued = create_optimizer(name, resumed)
    continued.load_state_dict(load_checkpoint(path)["optimizer_state_dict"][0])
    assert not equal_weights(resumed, model)
    for _ in range(4):
        step(resumed, continued)
    assert equal_weights(resumed, model)


def test_a_schedule_free_optimizer_must_leave_training_mode_first(
    model: LightVideoInpaint, tmp_path: Path
) -> None:
    optimizer = create_optimizer("adamw_schedulefree", model)
    set_training(optimizer, True)
    with pytest.raises(AssertionError, match="set_training"):
        save_checkpoint(
            tmp_path / "x.pth", model, optimizer, train_kwargs={}, best_loss=1.0, last_epoch=1, ours={}
        )


def test_values_that_could_not_be_loaded_are_not_saved(model: LightVideoInpaint, saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError, match=r"checkpoint\.train_kwargs\.dirs\[1\] is a Posix"):
        save_model(saved, model, train_kwargs={"dirs": ["a", Path("b")]})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_place_that_cannot_be_written(saved: Path, model: LightVideoInpaint) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        save_model(saved / "inside_a_file.pth", model)


class Bomb:
    """Unpickled by a careless reader, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def torch_file(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def plain_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "no tensors here")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "it is empty"),
        (bytes(range(256)) * 9, r"it begins with b'\\x00\\x01"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), r"it begins with b'\\x89PNG'"),
        (plain_zip(), "damaged, cut short, or another kind of zip"),
        (torch_file([1, 2]), r"not a model file \(no nunif_model, name, kwargs, state_dict"),
        (torch_file({"state_dict": {}}), r"not a model file \(no nunif_model, name, kwargs\)"),
    ],
    ids=["empty", "bytes", "png", "zip", "list", "other dict"],
)
def test_files_of_another_kind(data: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    refused(path, found)


def refused(path: Path, found: str) -> None:
    """Both readers refuse the file in one line with its name, what was found and what to do."""
    for load in (load_model, load_checkpoint):
        with pytest.raises(CheckpointError, match=found) as caught:
            load(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert "; " in message


def test_code_in_a_file_never_runs(saved: Path, tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "bomb.pth"
    path.write_bytes(pickle.dumps(Bomb(target)))
    refused(path, "is not a model file")
    torch.save({**raw(saved), "train_kwargs": Bomb(target)}, path)
    refused(path, "Python objects besides tensors and plain values, which are never loaded")
    assert not target.exists()


def test_missing_files_and_folders(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", "No such file")
    refused(tmp_path, "is no plain file")


@pytest.mark.skipif(os.name != "posix", reason="named pipes are of POSIX")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "is no plain file")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_cut_short_files(share: float, saved: Path) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * share)])
    refused(saved, "damaged, cut short")


def test_a_flipped_bit_in_the_weights(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    saved.write_bytes(data)
    refused(saved, "damaged, cut short")


def test_a_tensor_larger_than_its_numbers_is_a_bomb(model: LightVideoInpaint, tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint.pth"
    bomb = torch.zeros(1).expand(1 << 20, 1 << 20)
    write_checkpoint(path, model)
    for key, holder in (("train_kwargs", {"x": bomb}), ("vshard", {"stream": [(bomb,)]})):
        torch.save({**raw(path), key: holder}, tmp_path / "bomb.pth")
        refused(tmp_path / "bomb.pth", "a tensor that is larger than its stored numbers")
    circle: list[Any] = [torch.zeros(3)[1:], torch.zeros(4).t(), torch.zeros(2, 3).t()]
    circle.append(circle)
    torch.save({**raw(path), "train_kwargs": {"x": circle}}, path)
    load_checkpoint(path)


def drop(content: dict[str, Any]) -> None:
    del content["state_dict"]["mask_bias"], content["state_dict"]["patch.bias"]


def add(content: dict[str, Any]) -> None:
    content["state_dict"]["extra.weight"] = torch.zeros(1)


def reshape(content: dict[str, Any]) -> None:
    content["state_dict"]["mask_bias"] = torch.zeros(1, 17, 1, 1)


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (drop, "mask_bias is missing and 1 more"),
        (add, "extra.weight is unknown"),
        (reshape, "mask_bias is 1×17×1×1 instead of 1×16×1×1"),
        (put("state_dict", "up.bias", value=7), "up.bias is a int instead of 64"),
        (put("state_dict", "up.bias", value=torch.zeros(64, dtype=torch.int64)), "up.bias is of torch.int64"),
        (put("state_dict", "up.bias", value=torch.tensor(1.0)), "up.bias is one number"),
        (put("state_dict", "up.bias", value=torch.zeros(64).to_sparse()), "up.bias is sparse instead of 64"),
        (put("state_dict", "up.bias", value=torch.zeros(64, device="meta")), "up.bias is without values"),
        (
            put("kwargs", "base_dim", value=32),
            r"do not fit .* \{'base_dim': 32.*mask_bias is .* and \d+ more",
        ),
        # The network of these sizes would take 4 GB.
        (
            put("kwargs", value={"base_dim": 1024, "lv2_mlp_ratio": 16}),
            "mask_bias is .* instead of 1×1024×1×1",
        ),
        (put("kwargs", "base_dim", value=15), "can be built from .*positive even"),
        (put("kwargs", "base_dim", value=1 << 40), "can be built from"),
        (put("kwargs", "bogus", value=1), "can be built from .*bogus"),
        (put("name", value="sbs.mlbw"), "holds the network 'sbs.mlbw'; vshard trains inpaint.light_video"),
        (put("name", value=["x"]), r"not a model file \(no name\)"),
    ],
)
def test_weights_that_do_not_fit(change: Callable[[dict[str, Any]], None], found: str, saved: Path) -> None:
    content = raw(saved)
    change(content)
    torch.save(content, saved)
    refused(saved, found)


def test_a_model_file_cannot_be_resumed(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no state of a training \(no optimizer_state_dict.*; give"):
        load_checkpoint(saved)


def test_saving_leaves_the_model_as_it_is(model: LightVideoInpaint, tmp_path: Path) -> None:
    before: dict[str, Tensor] = {key: value.clone() for key, value in model.state_dict().items()}
    write_checkpoint(tmp_path / "x.pth", model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
