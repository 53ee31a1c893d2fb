from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from perceptual_files import WHEEL_SOURCE, as_shift_tolerant, as_torchvision, flat, saved
from torch import Tensor

from vshard.base.errors import OutputError
from vshard.train import perceptual
from vshard.train.losses import Loss, NetworkOptions, loss_by_name
from vshard.train.perceptual import PerceptualError, find_perceptual, load_perceptual


@pytest.fixture
def vgg_path(tmp_path: Path) -> Path:
    """Torchvision's file, in the format of 2017 as it is published."""
    path = tmp_path / "vgg.pth"
    torch.save(as_torchvision(flat(0.25)), path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture
def own_path(tmp_path: Path) -> Path:
    """A file of the user's own."""
    return saved(flat(0.5), tmp_path, "own.pth")


@pytest.fixture
def cached(vgg_path: Path) -> Path:
    """Torchvision's file where a download of PyTorch would have put it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / perceptual.VGG_FILE
    path.parent.mkdir(parents=True)
    path.symlink_to(vgg_path)
    return path


def test_the_source_is_of_weights_not_of_files(vgg_path: Path, own_path: Path, tmp_path: Path) -> None:
    package = Path(str(distribution("torchmetrics").locate_file("torchmetrics")))
    heads = torch.load(
        package / "functional/image/lpips_models/vgg.pth", weights_only=True, map_location="cpu"
    )
    both = saved(flat(0.25) | heads, tmp_path)
    assert load_perceptual(both).source == load_perceptual(vgg_path).source
    assert load_perceptual(own_path).source != load_perceptual(vgg_path).source
    blurred = saved(as_shift_tolerant(flat(0.5)), tmp_path)
    kinds = [load_perceptual(path).source.partition(" sha256:")[0] for path in (own_path, blurred)]
    assert kinds == ["LPIPS-VGG16", "shift-tolerant LPIPS-VGG16"]


def test_making_one_draws_no_random_numbers(own_path: Path) -> None:
    before = torch.get_rng_state()
    load_perceptual(own_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_network_it_says_so_and_takes_the_wheels() -> None:
    said: list[str] = []
    assert find_perceptual(say=said.append).source == WHEEL_SOURCE
    assert said[0] == "fetching vgg16-397923af.pth (528 MB) for the perceptual loss"
    assert said[1].startswith("vgg16-397923af.pth cannot be had (")
    assert said[1].endswith("): the perceptual loss is the shift-tolerant one")
    assert len(said) == 2 and "\n" not in said[1]


def test_the_cached_file_is_taken_without_a_word(cached: Path) -> None:
    said: list[str] = []
    assert find_perceptual(say=said.append).source == load_perceptual(cached).source
    assert said == []


class Requests(BaseHTTPRequestHandler):
    """Serves ``server.body``, or an error where it is None."""

    def do_GET(self) -> None:
        body: bytes | None = self.server.body  # type: ignore[attr-defined]
        self.send_response(404 if body is None else 200)
        length = self.server.length  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(body or b"") if length is None else length))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    served: Any = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
    served.body, served.length = None, None
    thread = Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(perceptual, "VGG_URL", f"http://127.0.0.1:{served.server_port}/vgg.pth")
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def test_a_download_is_kept(server: Any, vgg_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.body = vgg_path.read_bytes()
    name = f"vgg16-{hashlib.sha256(server.body).hexdigest()[:8]}.pth"
    monkeypatch.setattr(perceptual, "VGG_FILE", name)
    said: list[str] = []
    found = find_perceptual(say=said.append)
    assert found.source == load_perceptual(vgg_path).source
    assert said == [f"fetching {name} (528 MB) for the perceptual loss"]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    assert (folder / name).read_bytes() == server.body
    assert {path.name for path in folder.iterdir()} <= {name, f"{name}.lock"}
    server.body = None
    assert find_perceptual(say=said.append).source == found.source
    assert len(said) == 1


@pytest.mark.parametrize(
    ("body", "length", "trouble"),
    [
        (None, None, "Not Found"),
        (b"another file", None, "what came is not whole"),
        (b"the first half", 28, "what came is not whole"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    server: Any, body: bytes | None, length: int | None, trouble: str
) -> None:
    server.body, server.length = body, length
    said: list[str] = []
    assert find_perceptual(say=said.append).source == WHEEL_SOURCE
    assert trouble in said[1]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    assert {path.name for path in folder.iterdir()} <= {f"{perceptual.VGG_FILE}.lock"}


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file where the cache would be")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with pytest.raises(OutputError) as error:
        find_perceptual()
    assert "\n" not in str(error.value)


def test_without_the_wheel_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "_WHEEL", "no_such_package")
    with pytest.raises(PerceptualError, match="pip install no-such-package") as error:
        find_perceptual()
    assert "--perceptual-weights PATH" in str(error.value) and "\n" not in str(error.value)


def test_a_run_that_goes_on_keeps_its_network(cached: Path, own_path: Path) -> None:
    vgg = find_perceptual().source
    assert find_perceptual(stored=vgg).source == vgg
    # The wheel's, though the cache has torchvision's by now.
    said: list[str] = []
    assert find_perceptual(stored=WHEEL_SOURCE, say=said.append).source == WHEEL_SOURCE
    assert said == []
    own = load_perceptual(own_path).source
    assert find_perceptual(own_path, stored=own).source == own
    for weights, stored in ((None, own), (own_path, vgg), (own_path, WHEEL_SOURCE)):
        with pytest.raises(PerceptualError) as error:
            find_perceptual(weights, stored)
        message = str(error.value)
        assert stored in message and "--perceptual-weights PATH, or start anew" in message
        assert "\n" not in message


def test_a_run_that_goes_on_never_falls_back(vgg_path: Path) -> None:
    stored = load_perceptual(vgg_path).source
    with pytest.raises(PerceptualError) as error:
        find_perceptual(stored=stored)
    message = str(error.value)
    assert message.startswith(f"this run's perceptual loss is {stored}, whose weights cannot be had (")
    assert message.endswith("give vgg16-397923af.pth by --perceptual-weights PATH")


def test_a_loss_tells_the_source_and_refuses_another(vgg_path: Path, own_path: Path) -> None:
    loss: Loss = loss_by_name("l1lpips", NetworkOptions(weights=vgg_path))
    assert loss.source == load_perceptual(vgg_path).source
    assert loss_by_name("l1lpips", NetworkOptions(vgg_path, loss.source)).source == loss.source
    with pytest.raises(PerceptualError, match="start anew"):
        loss_by_name("l1lpips", NetworkOptions(own_path, loss.source))


def cut(state: dict[str, Tensor]) -> Any:
    return {key: value for key, value in state.items() if key != "net.slice5.28.bias"}


def deeper(state: dict[str, Tensor]) -> Any:
    """As VGG19: more convolutions."""
    return state | {
        "net.slice5.30.weight": torch.zeros(512, 512, 3, 3),
        "net.slice5.30.bias": torch.zeros(512),
    }


def headless(state: dict[str, Tensor]) -> Any:
    return {key: value for key, value in state.items() if key != "lin2.model.1.weight"}


BAD_FILES = {
    "of other tensors": (lambda _: {"conv.weight": torch.zeros(3)}, "0 numbered layers instead of 13"),
    "without a bias": (cut, "net.slice5.28.bias"),
    "of a deeper network": (deeper, "14 numbered layers instead of 13"),
    "without a head": (headless, "lin2.model.1.weight"),
    "of another width": (
        lambda state: state | {"net.slice1.0.bias": torch.zeros(32)},
        "a layer of (32,) instead of (64,)",
    ),
    "of what is no number": (
        lambda state: state | {"net.slice1.0.bias": torch.full((64,), float("nan"))},
        "a layer that is not all numbers",
    ),
    "of a list": (lambda _: [torch.zeros(3)], "holds no named tensors"),
    "of nested tensors": (lambda _: {"state_dict": {"a": torch.zeros(3)}}, "holds no named tensors"),
    "of numbered tensors": (lambda _: {0: torch.zeros(3)}, "holds no named tensors"),
    "of bytes": (lambda _: b"\x89PNG", "is damaged, or no file of weights"),
    "of nothing": (lambda _: b"", "is damaged, or no file of weights"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_other_files_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    make, said = BAD_FILES[kind]
    content = make(flat(0.5))
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(PerceptualError) as error:
        find_perceptual(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and said in message and "vgg16-397923af.pth" in message
    assert "\n" not in message


def test_damaged_and_missing_files_are_one_line(own_path: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.pth"
    half.write_bytes(own_path.read_bytes()[:3000])
    flipped, pipe = tmp_path / "flipped.pth", tmp_path / "pipe.pth"
    state = io.BytesIO()
    torch.save({"a": torch.zeros(999)}, state)
    data = bytearray(state.getvalue())
    data[data.index(bytes(99)) + 50] = 1
    flipped.write_bytes(data)
    os.mkfifo(pipe)
    for path, said in (
        (half, "is damaged"),
        (tmp_path / "none.pth", "cannot be read (No such file"),
        (tmp_path, "cannot be read (is no plain file"),
        (pipe, "cannot be read (is no plain file"),
        (flipped, "is damaged"),
    ):
        with pytest.raises(PerceptualError, match="give vgg16") as error:
            find_perceptual(path)
        assert str(error.value).startswith(f"{path}: {said}") and "\n" not in str(error.value)
