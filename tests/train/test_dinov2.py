from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_hub import hub_server, put_into_cache
from golden_inputs import pred, video
from huggingface_hub import constants
from tiny_networks import draw_weights
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from vshard.train.dinov2 import REPOSITORY, find_dinov2
from vshard.train.losses import Loss, NetworkOptions, loss_by_name
from vshard.train.perceptual import PerceptualError

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "mlp_ratio": 2,
}
REGISTERS = 4


def make_network(seed: int = 5) -> Dinov2WithRegistersModel:
    network = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=REGISTERS, **SIZES))
    draw_weights(network, torch.Generator().manual_seed(seed))
    return network.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2")
    make_network().save_pretrained(path)
    return path


def clips(T: int = 3, H: int = 28, W: int = 42, seed: int = 1) -> tuple[Tensor, Tensor]:
    shape = (T, 3, H, W, seed)
    return torch.from_numpy(pred(*shape)).requires_grad_(), torch.from_numpy(video(*shape))


def test_it_is_one_less_the_cosine_of_tokens_without_registers(folder: Path) -> None:
    z, y = clips()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    network, cosines = make_network(), []
    for output, target in zip(z, y, strict=True):
        a, b = (network(((x - mean) / std)[None]).last_hidden_state[0] for x in (output, target))
        assert len(a) == 1 + REGISTERS + 2 * 3  # the frame's, the registers', and one for each 14×14 pixels
        for place in [0, *range(1 + REGISTERS, len(a))]:
            cosines.append(a[place] @ b[place] / (a[place].norm() * b[place].norm()))
    wanted = 1 - torch.stack(cosines).mean()
    loss = find_dinov2(folder)
    assert loss(z, y).item() == pytest.approx(wanted.item(), rel=1e-4)
    found, expected = (torch.autograd.grad(value, z)[0] for value in (loss(z, y), wanted))
    assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0).item() > 0.9999


def test_equal_clips_cost_nothing_and_noise_costs_more(folder: Path) -> None:
    loss, (_, y) = find_dinov2(folder), clips()
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    costs = [loss(y + level * noise, y).item() for level in (0.0, 0.02, 0.05, 0.1)]
    assert costs[0] == pytest.approx(0, abs=1e-6)
    assert costs == sorted(costs) and costs[1] > 1e-5


def test_frames_of_any_size_are_mirrored_to_whole_tokens(folder: Path) -> None:
    loss, (z, y) = find_dinov2(folder), clips(2, 30, 41)
    # 42×42: of 12 rows 6 above and 6 below, of one column 0 left and 1 right.
    grown = [
        torch.from_numpy(np.pad(x.detach().numpy(), ((0, 0), (0, 0), (6, 6), (0, 1)), mode="reflect"))
        for x in (z, y)
    ]
    assert loss(z, y).item() == pytest.approx(loss(*grown).item(), rel=1e-5)


def test_gradients_reach_the_output_alone(folder: Path) -> None:
    loss, (z, y) = find_dinov2(folder), clips()
    y.requires_grad_()
    gradients = torch.autograd.grad(loss(z, y), [z, y], allow_unused=True)
    assert gradients[0].abs().max().item() > 0 and gradients[1] is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert not any(module.training for module in loss.modules())


def test_the_loss_by_its_name(folder: Path) -> None:
    z, y = clips()
    loss: Loss = loss_by_name("l1dinov2", NetworkOptions(weights=folder))
    assert loss.source is not None and loss.source.startswith("DINOv2 sha256:")
    wanted = loss_by_name("l1")(z, y) + 0.1 * find_dinov2(folder)(z, y)
    assert loss(z, y).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_run_that_goes_on_keeps_its_network(folder: Path, tmp_path: Path) -> None:
    source = find_dinov2(folder).source
    assert find_dinov2(folder, source).source == source
    make_network(seed=6).save_pretrained(tmp_path)
    with pytest.raises(PerceptualError) as error:
        find_dinov2(tmp_path, source)
    message = str(error.value)
    assert source in message and "--perceptual-weights PATH, or start anew" in message and "\n" not in message


@pytest.mark.usefixtures("cache")
def test_without_network_and_cache_one_line_says_what_to_do() -> None:
    said: list[str] = []
    with pytest.raises(PerceptualError) as error:
        find_dinov2(say=said.append)
    message = str(error.value)
    for part in (
        REPOSITORY,
        "config.json",
        "model.safetensors",
        "--perceptual-weights PATH",
        "another --loss",
    ):
        assert part in message
    assert "depth" not in message and "\n" not in message
    assert said == []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_cached_network_is_taken_without_a_word(cache: Path, folder: Path) -> None:
    put_into_cache(cache, folder, REPOSITORY)
    said: list[str] = []
    assert find_dinov2(say=said.append).source == find_dinov2(folder).source
    assert said == []


@pytest.mark.usefixtures("cache")
def test_the_hubs_network_is_fetched_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with hub_server(monkeypatch, REPOSITORY) as server:
        for name in ("config.json", "model.safetensors"):
            server.files[name] = (folder / name).read_bytes()
        found = find_dinov2(say=said.append)
        asked = len(server.asked)
        assert find_dinov2(say=said.append).source == found.source == find_dinov2(folder).source
        assert len(server.asked) == asked
    assert said == [f"fetching the vision network {REPOSITORY} (0 MB) into the Hugging Face cache"]


def without(key: str, folder: Path, target: Path) -> None:
    network = make_network()
    state = {name: value for name, value in network.state_dict().items() if name != key}
    network.save_pretrained(target, state_dict=state)


def of_another_size(target: Path) -> None:
    make_network().save_pretrained(target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"hidden_size": 24}))


def of_another_network(target: Path) -> None:
    Dinov2Model(Dinov2Config(**SIZES)).save_pretrained(target)


def damaged(target: Path) -> None:
    make_network().save_pretrained(target)
    os.truncate(target / "model.safetensors", 1000)


BAD_FOLDERS = {
    "empty": (lambda target: None, "cannot be loaded"),
    "damaged": (damaged, "cannot be loaded"),
    "lacking": (lambda target: without("layernorm.weight", target, target), "do not fill the network"),
    "of another size": (of_another_size, "do not fill the network"),
    "without registers": (of_another_network, "holds a dinov2, not a dinov2_with_registers"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_other_folders_are_refused_in_one_line(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, said = BAD_FOLDERS[kind]
    make(tmp_path)
    capfd.readouterr()  # the bars of saving
    with pytest.raises(PerceptualError) as error:
        find_dinov2(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}: ") and said in message
    assert "--perceptual-weights PATH" in message and "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_weights_are_a_folder(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "model.safetensors", tmp_path / "none"):
        with pytest.raises(PerceptualError, match="is no folder; give the folder of its files"):
            find_dinov2(path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same(folder: Path) -> None:
    loss, (z, y) = find_dinov2(folder), clips()
    wanted = loss(z, y).item()
    assert loss.cuda()(z.detach().cuda(), y.cuda()).item() == pytest.approx(wanted, rel=1e-2)
