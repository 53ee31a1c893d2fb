from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN, std_weights, video, vmask

from vshard.base.errors import CheckpointError, OptionError, OutputError
from vshard.train import export as module
from vshard.train import products
from vshard.train.checkpoint import load_model, save_checkpoint, save_model
from vshard.train.ema import Average
from vshard.train.export import ONNX_OPSET, export_model, onnx_bytes, open_model
from vshard.train.network import LightVideoInpaint
from vshard.train.optimize import create_optimizer, set_training


def network(seed: int = 1) -> LightVideoInpaint:
    torch.manual_seed(seed)
    return LightVideoInpaint(base_dim=8)


def weights_of(model: LightVideoInpaint) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_weights(model: LightVideoInpaint, expected: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def write_checkpoint(
    path: Path, optimizer_name: str = "adamw", *, average: bool = False
) -> LightVideoInpaint:
    """A checkpoint after three steps; give the network that training would evaluate."""
    model = network()
    optimizer = create_optimizer(optimizer_name, model, 1e-2, 1e-3)
    kept = Average(model, decay=0.5, step=1) if average else None
    set_training(optimizer, True)
    for _ in range(3):
        sum(p.square().sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
        if kept is not None:
            kept.after_step()
    set_training(optimizer, False)
    state = kept.state() if kept is not None else None
    save_checkpoint(
        path, model, optimizer, train_kwargs={"sources": ["a aa"], "optimizer": optimizer_name}, best_loss=0.1,
        last_epoch=1, ours={"average": state},
    )  # fmt: skip
    if kept is not None:
        model.load_state_dict(kept.state()["weights"])
    return model


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_schedulefree"])
@pytest.mark.parametrize("average", [False, True])
def test_a_checkpoint_gives_the_weights_that_training_evaluates(
    tmp_path: Path, optimizer: str, average: bool
) -> None:
    source, output = tmp_path / "m.checkpoint.pth", tmp_path / "out.pth"
    expected = weights_of(write_checkpoint(source, optimizer, average=average))
    opened = open_model(source)
    assert not opened.model.training and opened.train_kwargs["sources"] == ["a aa"]
    assert_weights(opened.model, expected)
    entry = export_model(source, output, "city")
    assert entry == f'city: {{video: "{output}"}}'
    assert_weights(load_model(output), expected)


def test_what_is_written_is_laid_out_as_the_original_writes_it(tmp_path: Path) -> None:
    layout = json.loads((GOLDEN / "checkpoint.json").read_text())["best_model"]
    write_checkpoint(tmp_path / "m.checkpoint.pth")
    export_model(tmp_path / "m.checkpoint.pth", tmp_path / "out.pth", "a")
    content = torch.load(tmp_path / "out.pth", map_location="cpu", weights_only=True)
    assert list(content) == layout["keys"]
    types = {key: type(value).__name__ for key, value in content.items()}
    assert types | {"train_kwargs": "NoneType"} == layout["types"]


def test_a_model_of_iw3_is_opened(tmp_path: Path) -> None:
    model = network()
    save_model(tmp_path / "released.pth", model, None)
    opened = open_model(tmp_path / "released.pth")
    assert opened.train_kwargs is None
    assert_weights(opened.model, weights_of(model))


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    source = tmp_path / "m.pth"
    save_model(source, network(), None)
    for output, name, told in (
        (tmp_path / "out.pt", "a", "-o .*out.pt: must end in .pth"),
        (source, "a", "is the model itself"),
        (tmp_path / "out.pth", "1", "--name '1'"),
        (tmp_path / "out.pth", "a: b", "--name 'a: b'"),
        (tmp_path / "out.pth", "No", "--name No: YAML"),
    ):
        with pytest.raises(OptionError, match=told):
            export_model(source, output, name)
    with pytest.raises(OptionError, match="--onnx .*must end in .onnx"):
        export_model(source, tmp_path / "out.pth", "a", tmp_path / "out.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        export_model(tmp_path / "none.pth", tmp_path / "out.pth", "a")
    with pytest.raises(OutputError, match="its folder is not there; make it"):
        export_model(source, tmp_path / "no" / "out.pth", "a")
    write_checkpoint(tmp_path / "c.pth", average=True)
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    del content["vshard"]["average"]["weights"]["mask_bias"]
    for odd in (content["vshard"]["average"], {"weights": [1]}, {}, torch.zeros(2), 1):
        content["vshard"]["average"] = odd
        torch.save(content, tmp_path / "c.pth")
        with pytest.raises(CheckpointError, match="average of its weights"):
            export_model(tmp_path / "c.pth", tmp_path / "out.pth", "a")
    spoilt = network()
    torch.nn.init.constant_(spoilt.mask_bias, float("nan"))
    save_model(tmp_path / "nan.pth", spoilt, None)
    with pytest.raises(CheckpointError, match="not all numbers"):
        open_model(tmp_path / "nan.pth")
    assert not (tmp_path / "out.pth").exists()


def test_a_missing_package_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "m.pth", network(), None)

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(OptionError, match=r"--onnx: needs the package onnx; pip install 'vshard\[onnx\]'"):
        export_model(tmp_path / "m.pth", tmp_path / "out.pth", "a", tmp_path / "out.onnx")
    assert not (tmp_path / "out.pth").exists() and not (tmp_path / "out.onnx").exists()


def test_what_else_a_file_tells_of_its_training_stays_behind(tmp_path: Path) -> None:
    save_model(tmp_path / "m.pth", network(), None)
    content = torch.load(tmp_path / "m.pth", weights_only=True)
    circle: list[object] = []
    circle.append(circle)
    odd = {"device": torch.device("cpu"), "bytes": b"a", "tensor": torch.zeros(2), "circle": circle, 3: 4}
    kept = {"sources": ["a aa"], "gpu": [0], "lr": 1e-4}
    for told, expected in ((kept | odd, kept), ("nothing", {})):
        torch.save(content | {"train_kwargs": told}, tmp_path / "m.pth")
        export_model(tmp_path / "m.pth", tmp_path / "out.pth", "a")
        assert torch.load(tmp_path / "out.pth", weights_only=True)["train_kwargs"] == expected


def test_a_place_that_cannot_be_written_is_told_before_the_graph_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "onnx_bytes", lambda _: pytest.fail("made in vain"))
    save_model(tmp_path / "m.pth", network(), None)
    with pytest.raises(OutputError, match="out.onnx: its folder is not there"):
        export_model(tmp_path / "m.pth", tmp_path / "out.pth", "a", tmp_path / "no" / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pth"]


def test_onnx_is_written_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[LightVideoInpaint] = []
    monkeypatch.setattr(module, "onnx_bytes", lambda model: given.append(model) or b"graph")
    save_model(tmp_path / "m.pth", network(), None)
    export_model(tmp_path / "m.pth", tmp_path / "out.pth", "a", tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == b"graph"
    assert not given[0].training
    assert_weights(given[0], weights_of(network()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_fills_as_the_network_does() -> None:
    """Of the five inner blocks two stand for all: each takes several seconds to trace."""
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    import onnx
    import onnxruntime

    model = LightVideoInpaint(base_dim=4).eval()
    weights = {
        key: torch.from_numpy(std_weights(key, tuple(v.shape))) for key, v in model.state_dict().items()
    }
    model.load_state_dict(weights)
    model.enc2 = model.enc2[:2]
    # Pictures, not values of tens, whose rounding would hide a fault.
    torch.nn.init.normal_(model.to_image.weight, std=0.01)
    before = products._ONEDNN
    data = onnx_bytes(model)
    assert products._ONEDNN is before
    stored = onnx.load_from_string(data)
    onnx.checker.check_model(stored)
    assert {opset.domain: opset.version for opset in stored.opset_import}[""] == ONNX_OPSET
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for height, width in ((64, 128), (100, 140), (64, 63)):
        x, mask = video(12, 3, height, width, 5), vmask(12, height, width, 5)
        (found,) = session.run(None, {"x": x, "mask": mask})
        expected = model.infer(torch.from_numpy(x), torch.from_numpy(mask)).numpy()
        assert np.abs(found - expected).max() < 2e-5, (height, width)
        filled = mask[:, 0] > 0
        assert np.abs(expected - x).max(axis=1)[filled].mean() > 0.05
