"""Weights of depth networks: where they are found, which are refused, and that every refusal is one line."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_hub
import pytest
import torch
from fake_hub import COMMIT, REPOSITORY, put_into_cache
from huggingface_hub import constants
from huggingface_hub import utils as hub_utils
from safetensors.torch import load_file, save_file
from tiny_networks import frames_of, open_quietly, options_of, save_networks
from transformers import AutoModelForDepthEstimation, GLPNConfig
from transformers.utils import logging as transformers_logging

from vshard.base.errors import DepthModelError
from vshard.depth import hub
from vshard.depth.models import DepthOptions, open_depth_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_networks(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def refusal(options: DepthOptions) -> str:
    """The message of a model that cannot be opened: one line without the advice of others."""
    with pytest.raises(DepthModelError) as caught:
        open_depth_model(options, CPU, 1, lambda line: None)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert "DepthModelError" not in message
    return message


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the hub's packages put into their logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(handler)
    yield lines
    for logger in loggers:
        logger.removeHandler(handler)


# ---- weights by name: the cache, then the hub


def test_a_name_is_read_from_the_cache_without_a_word(
    cache: Path, folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    put_into_cache(cache, folders["relative"], REPOSITORY)
    model = open_quietly(options_of("Any_V2_S", resolution=112))
    assert capfd.readouterr() == ("", "")
    given = open_quietly(options_of("Any_V2_S", folders["relative"], resolution=112))
    assert model.weights == given.weights.replace("relative", REPOSITORY)
    assert model.licence == f"weights of Any_V2_S: Apache-2.0 ({REPOSITORY})"
    frames = frames_of(1, 60, 80)
    assert torch.equal(model.estimate(frames), given.estimate(frames))
    by_repository = open_quietly(options_of("Any_S", REPOSITORY, resolution=112))
    assert by_repository.weights == model.weights


def test_a_folder_here_does_not_stand_in_for_a_name(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["relative"], tmp_path / REPOSITORY)
    assert "not in the Hugging Face cache" in refusal(options_of("Any_V2_S"))


@pytest.mark.parametrize("name", ["Any_V2_S", "DepthPro"])
def test_without_network_and_cache_one_line_says_what_to_do(name: str) -> None:
    message = refusal(options_of(name))
    for part in ("config.json", "model.safetensors", "--depth-weights", "Parallax", "offline mode"):
        assert part in message
    assert hub.REPOSITORY.match(message)


def test_depth_weights_is_a_folder_where_a_repository_has_its_name_too(
    cache: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put_into_cache(cache, folders["metric"], REPOSITORY)
    shutil.copytree(folders["relative"], tmp_path / REPOSITORY)
    assert open_quietly(options_of("Any_V2_S", REPOSITORY)).weights.startswith(REPOSITORY.split("/")[1])


def test_cached_weights_of_another_kind_are_refused(cache: Path, folders: dict[str, Path]) -> None:
    put_into_cache(cache, folders["metric"], REPOSITORY)
    assert f"but {REPOSITORY} holds Depth Anything (metres); use --model-type Any_V2_N" in refusal(
        options_of("Any_V2_S")
    )


def test_a_broken_cache_is_an_error(cache: Path, folders: dict[str, Path]) -> None:
    snapshot = put_into_cache(cache, folders["relative"], REPOSITORY)
    (snapshot / "model.safetensors").unlink()
    assert "not in the Hugging Face cache" in refusal(options_of("Any_V2_S"))


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with fake_hub.hub_server(monkeypatch) as server:
        yield server


def test_weights_are_fetched_once(hub_server: Any, folders: dict[str, Path]) -> None:
    for name in ("config.json", "model.safetensors"):
        hub_server.files[name] = (folders["relative"] / name).read_bytes()
    warned: list[str] = []
    model = open_depth_model(options_of("Any_V2_S"), CPU, 1, warned.append)
    assert len(warned) == 1
    assert REPOSITORY in warned[0]
    assert model.weights.startswith(f"{REPOSITORY} sha256:")
    assert {name for _, name, _ in hub_server.asked} == {"config.json", "model.safetensors"}
    assert ("GET", "model.safetensors", COMMIT) in hub_server.asked  # of one commit with the configuration
    hub_server.asked.clear()
    assert open_quietly(options_of("Any_V2_S")).weights == model.weights
    assert hub_server.asked == []


def test_weights_of_another_family_are_not_even_fetched(hub_server: Any, folders: dict[str, Path]) -> None:
    hub_server.files["config.json"] = (folders["relative"] / "config.json").read_bytes()
    hub_server.files["model.safetensors"] = b"never read"
    assert "is ZoeDepth" in refusal(options_of("ZoeD_N", REPOSITORY))
    assert "model.safetensors" not in [name for verb, name, _ in hub_server.asked if verb == "GET"]


def test_a_repository_without_safetensors_is_refused(hub_server: Any, folders: dict[str, Path]) -> None:
    hub_server.files["config.json"] = (folders["relative"] / "config.json").read_bytes()
    hub_server.files["pytorch_model.bin"] = b"\x80\x02"
    message = refusal(options_of("Any_V2_S"))
    assert "EntryNotFound" in message
    assert "model.safetensors" in message


def test_a_full_disk_is_one_line(
    hub_server: Any, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors"):
        hub_server.files[name] = (folders["relative"] / name).read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert "No space left on device" in refusal(options_of("Any_V2_S"))


# ---- weights that will not do


def _without(pattern: str) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if pattern not in name}
        assert len(kept) < len(tensors)
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return break_it


def _reshape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.conv1.weight"] = tensors["head.conv1.weight"][:, :-1].contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _set_config(**changes: Any) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return break_it


def _cut_off(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def _as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _glpn(folder: Path) -> None:
    GLPNConfig().save_pretrained(folder)


HTML = "<!doctype html><html><body>Sign in</body></html>"


@pytest.mark.parametrize(
    ("break_it", "part"),
    [
        (lambda folder: (folder / "config.json").unlink(), "needs config.json and model.safetensors"),
        (_as_pickle, "pickles least of all); found config.json, pytorch_model.bin"),
        (lambda folder: (folder / "config.json").write_text(HTML), "is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds a list"),
        (lambda folder: (folder / "config.json").write_text("{}"), "holds the model 'None'"),
        (lambda folder: (folder / "model.safetensors").write_text(HTML), "SafetensorError"),
        (lambda folder: (folder / "model.safetensors").write_text(""), "SafetensorError"),
        (_cut_off, "SafetensorError"),
        (_glpn, "holds the model 'glpn'; there are Any_"),
        (_without("head.conv2"), "2 of the network's weights are missing, the first head.conv2.bias"),
        (_without("layers.1.residual_layer1.convolution1.bias"), "1 of the network's weights are missing"),
        (_reshape, "1 of the network's weights have another shape, the first head.conv1.weight"),
        (_set_config(neck_hidden_sizes="four"), "cannot be loaded"),
        (_set_config(fusion_hidden_size=10), "have another shape"),
    ],
)
def test_weights_that_will_not_do_are_one_line(
    folders: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    said: list[str],
    break_it: Callable[[Path], None],
    part: str,
) -> None:
    folder = Path(shutil.copytree(folders["relative"], tmp_path / "given"))
    break_it(folder)
    capfd.readouterr()
    message = refusal(options_of("Any_V2_S", folder))
    assert part in message
    assert str(folder) in message
    assert capfd.readouterr() == ("", "")
    assert said == []


def test_depth_pros_network_for_the_field_of_view_is_left_out(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["pro"], tmp_path / "given"))
    _without("fov_model")(folder)
    open_quietly(options_of("DepthPro", folder))


def test_weights_that_no_output_depends_on_may_be_missing(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["relative"], tmp_path / "given"))
    _without("mask_token")(folder)
    _without("layers.0.residual_layer1")(folder)
    frames = frames_of(1, 60, 80)
    whole, lacking = (
        open_quietly(options_of("Any_V2_S", given, resolution=112)) for given in (folders["relative"], folder)
    )
    assert torch.equal(whole.estimate(frames), lacking.estimate(frames))


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [
        ("metric", "Any_V2_S", "use --model-type Any_V2_N, "),
        ("relative", "Any_V2_K_L", "use --model-type Any_S, "),
        ("relative", "ZoeD_NK", "use --model-type Any_S, "),
        ("zoe", "Any_V2_N_L", "use --model-type ZoeD_N, ZoeD_K, ZoeD_NK"),
        ("zoe", "DepthPro", "use --model-type ZoeD_N"),
        ("pro", "Any_L", "use --model-type DepthPro"),
    ],
)
def test_weights_must_be_of_the_names_kind(
    folders: dict[str, Path], kind: str, name: str, advice: str
) -> None:
    message = refusal(options_of(name, folders[kind]))
    assert advice in message
    assert str(folders[kind]) in message


def test_code_beside_the_weights_is_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["relative"], tmp_path / "given"))
    _set_config(auto_map={"AutoModelForDepthEstimation": "evil.Evil", "AutoConfig": "evil.Evil"})(folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    open_quietly(options_of("Any_V2_S", folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/nowhere/at/all", "there is no such folder"),
        ("one/two/three", "there is no such folder"),
        ("no such", "there is no such folder"),
        ("", "needs config.json and model.safetensors"),
        ("owner/name", "owner/name: its config.json and model.safetensors are not in the"),
    ],
)
def test_depth_weights_that_are_not_there(source: str, said: str) -> None:
    message = refusal(options_of("Any_V2_S", source))
    assert said in message
    assert "--depth-weights" in message or source == ""
    assert ("there is no folder of that name either" in message) == (source == "owner/name")


def test_depth_weights_is_the_folder_not_the_file(folders: dict[str, Path]) -> None:
    message = refusal(options_of("Any_V2_S", folders["relative"] / "model.safetensors"))
    assert "is a file; give the folder that holds" in message


def test_without_transformers_one_line_says_what_to_install(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers.utils.logging", None)
    message = refusal(options_of("Any_V2_S", folders["relative"]))
    assert "pip install 'transformers>=5'" in message
    assert "Parallax" in message


def test_warnings_of_the_hubs_packages_stay_off_the_terminal(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = AutoModelForDepthEstimation.from_pretrained

    def warn_and_load(*args: Any, **kwargs: Any) -> Any:
        warnings.warn("something is deprecated", FutureWarning, stacklevel=1)
        return load(*args, **kwargs)

    monkeypatch.setattr(AutoModelForDepthEstimation, "from_pretrained", warn_and_load)
    open_quietly(options_of("Any_V2_S", folders["relative"]))


@pytest.mark.parametrize("bars", [True, False])
def test_the_hubs_packages_are_as_talkative_afterwards_as_before(
    folders: dict[str, Path], bars: bool
) -> None:
    def state() -> tuple[Any, ...]:
        return (
            transformers_logging.get_verbosity(),
            hub_utils.logging.get_verbosity(),
            transformers_logging.is_progress_bar_enabled(),
            hub_utils.are_progress_bars_disabled(),
        )

    def set_bars(on: bool) -> None:
        (transformers_logging.enable_progress_bar if on else transformers_logging.disable_progress_bar)()

    before = state()
    transformers_logging.set_verbosity(logging.INFO)
    hub_utils.logging.set_verbosity(logging.INFO)
    set_bars(bars)
    try:
        open_quietly(options_of("Any_V2_S", folders["relative"]))
        refusal(options_of("Any_V2_K", folders["relative"]))
        refusal(options_of("Any_V2_S"))
        assert state() == (logging.INFO, logging.INFO, bars, not bars)
    finally:
        transformers_logging.set_verbosity(before[0])
        hub_utils.logging.set_verbosity(before[1])
        set_bars(before[2])
