from __future__ import annotations

import http.server
import io
import json
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_inputs import GOLDEN, hash_weights, std_weights
from torch import Tensor

from vshard.base.errors import MaskModelError, OutputError
from vshard.masks import mlbw
from vshard.masks.mappers import map_depth
from vshard.masks.mlbw import MASK_WEIGHTS_FILE, MaskNetwork, find_mask_weights, load_mask_network

FACTS: dict[str, Any] = json.loads((GOLDEN / "mlbw.json").read_text())
with np.load(GOLDEN / "mlbw.npz") as _stored:
    ARRAYS = {key: torch.from_numpy(_stored[key]) for key in _stored}
# "hash:steps:52x88"
OUTPUTS = [key.removeprefix("delta:") for key in ARRAYS if key.startswith("delta:")]


def golden_network(weights: str) -> MaskNetwork:
    """The network with weights by formula: std, hash, amplified or hashm (the golden README, section A)."""
    network = MaskNetwork().eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        shape = tuple(parameter.shape)
        std = weights in ("std", "amplified")
        fill = std_weights(name, shape) if std else hash_weights(name, shape, FACTS["hash_gain"])
        parameter.copy_(torch.from_numpy(fill))
    last = network.lv1_out[1]
    if weights == "amplified":
        last.weight.mul_(30)
        last.bias.copy_(torch.tensor(FACTS["amplified_bias"]))
    if weights == "hashm":
        last.bias[4] = -2.5
    return network


def content() -> dict[str, Any]:
    """What a file of iw3 holds, with weights by formula."""
    facts = {"nunif_model": 1, "name": FACTS["name"], "kwargs": dict(FACTS["kwargs"])}
    return {**facts, "state_dict": golden_network("hash").state_dict()}


def as_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_keys_shapes_and_tables_are_those_of_iw3() -> None:
    network = MaskNetwork()
    own = [(key, list(v.shape), str(v.dtype)) for key, v in network.state_dict().items()]
    assert own == [(e["key"], e["shape"], f"torch.{e['dtype']}") for e in FACTS["state_dict"]]
    parameters = [e["key"] for e in FACTS["state_dict"] if e["kind"] == "parameter"]
    assert [name for name, _ in network.named_parameters()] == parameters
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, torch.tensor(FACTS["buffers"][name.rpartition(".")[2]]))


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_meet_the_original(case: str) -> None:
    weights, key = case.split(":", 1)
    facts = next(facts for facts in FACTS["inputs"] if facts["key"] == key)
    depth = map_depth(ARRAYS[facts["depth"]], facts["mapper"] or "none")
    reach = facts["divergence"] * 0.5 * 0.01 * facts["image_width"]
    planes = [torch.full_like(depth, value / 32) for value in (reach, -reach * facts["convergence"])]
    out = golden_network(weights)(torch.cat([depth, *planes], dim=1))
    for found, name in zip(out, ("delta", "layer_weight", "hole_mask_logits"), strict=True):
        expected = ARRAYS[f"{name}:{case}"]
        tolerance = 2e-6 if weights == "std" else 1e-5
        torch.testing.assert_close(found[: len(expected)], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [(1, 4), (4, 32), (7, 33)])
def test_any_size_goes_through(size: tuple[int, int]) -> None:
    delta, weights, hole_logits = golden_network("std")(torch.rand(2, 3, *size))
    assert (delta.shape, hole_logits.shape) == ((2, 2, *size), (2, 1, *size))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, *size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_of_iw3_loads(tmp_path: Path, dtype: torch.dtype) -> None:
    held = content()
    held["state_dict"] = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in held["state_dict"].items()
    }
    path = tmp_path / "weights.pth"
    path.write_bytes(as_bytes(held))
    network = load_mask_network(path)
    assert not network.training
    for name, parameter in network.named_parameters():
        assert (parameter.dtype, parameter.requires_grad) == (torch.float32, False)
        assert torch.equal(parameter, held["state_dict"][name].float())


def test_a_file_that_leaves_out_what_its_shapes_say_loads(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(as_bytes({**content(), "kwargs": {}}))
    load_mask_network(path)


def with_weights(**changed: Any) -> bytes:
    """A file in which some weights are replaced; None leaves one out. Dots are written as two underscores."""
    held = content()
    for key, value in changed.items():
        held["state_dict"][key.replace("__", ".")] = value
    held["state_dict"] = {key: value for key, value in held["state_dict"].items() if value is not None}
    return as_bytes(held)


def with_flipped_bit() -> bytes:
    data = bytearray(as_bytes(content()))
    data[len(data) // 2] ^= 1
    return bytes(data)


def compressed() -> bytes:
    """A whole file, which PyTorch would load, with its members deflated."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(as_bytes(content()))) as plain,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file,
    ):
        for name in plain.namelist():
            file.writestr(name, plain.read(name))
    return buffer.getvalue()


FIRST = "lv1_in.1.bias"
BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", r"is not a model file \(it is empty\)"),
    "a page": (
        lambda: b"<!DOCTYPE html>",
        r"is not a model file \(it begins with b'<!DO', not b'PK\\x03\\x04'\)",
    ),
    "cut short": (lambda: as_bytes(content())[:-200], r"is damaged, cut short, or another kind of zip file"),
    "one bit off": (with_flipped_bit, r"is damaged, cut short"),
    "compressed": (compressed, r"is damaged, cut short"),
    "code": (lambda: as_bytes({"name": Path("x")}), r"holds Python objects besides tensors and plain values"),
    "no dict": (lambda: as_bytes([1]), r"holds no model of iw3 \(no name, kwargs, state_dict\)"),
    "no kwargs": (
        lambda: as_bytes({**content(), "kwargs": None}),
        r"holds no model of iw3 \(no kwargs\)",
    ),
    "another network": (
        lambda: as_bytes({**content(), "name": "sbs.row_flow_v3"}),
        r"holds the network 'sbs.row_flow_v3', not 'sbs.mlbw'",
    ),
    "another size": (
        lambda: as_bytes({**content(), "kwargs": {**FACTS["kwargs"], "num_layers": 4}}),
        r"holds sbs.mlbw with {'num_layers': 4}, not with {'num_layers': 2}",
    ),
    "no holes": (
        lambda: as_bytes({**content(), "kwargs": {"hole_mask": False}}),
        r"with {'hole_mask': False}, not with {'hole_mask': True}",
    ),
    "a key less": (lambda: with_weights(**{FIRST: None}), rf"do not fit sbs.mlbw: {FIRST} is missing;"),
    "a key more": (lambda: with_weights(odd=torch.ones(1)), r"do not fit sbs.mlbw: odd is unknown;"),
    "several faults": (
        lambda: with_weights(**{FIRST: None}, odd=torch.ones(1)),
        rf"{FIRST} is missing and 1 more;",
    ),
    "a shape": (lambda: with_weights(**{FIRST: torch.ones(9)}), rf"{FIRST} is 9 instead of 8;"),
    "one number": (lambda: with_weights(**{FIRST: torch.ones(())}), rf"{FIRST} is one number instead of 8;"),
    "a list": (lambda: with_weights(**{FIRST: [1.0]}), rf"{FIRST} is a list;"),
    "whole numbers": (
        lambda: with_weights(**{FIRST: torch.ones(8, dtype=torch.int64)}),
        rf"{FIRST} is of torch.int64 instead of torch.float32;",
    ),
    "a table": (
        lambda: with_weights(**{"lv2.0.bias.index": torch.full((256,), 999)}),
        r"lv2.0.bias.index is not the table of a 4×4 window;",
    ),
    "NaN": (
        lambda: with_weights(**{FIRST: torch.full((8,), torch.nan)}),
        rf"{FIRST} holds values that are not finite;",
    ),
    "infinity in float32": (
        lambda: with_weights(**{FIRST: torch.full((8,), 1e300, dtype=torch.float64)}),
        rf"{FIRST} holds values that are not finite;",
    ),
    "a tensor that is nowhere": (
        lambda: with_weights(**{FIRST: torch.ones(8, device="meta")}),
        rf"{FIRST} is a tensor of another kind \(torch.strided, meta\);",
    ),
    "a tensor for a number": (
        lambda: as_bytes({**content(), "kwargs": {"base_dim": torch.ones(3)}}),
        r"with {'base_dim': 'a Tensor'}, not with {'base_dim': 32}",
    ),
    "infinity": (
        lambda: with_weights(**{FIRST: torch.full((8,), -torch.inf)}),
        rf"{FIRST} holds values that are not finite;",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_another_file_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    make, message = BAD_FILES[kind]
    path = tmp_path / "weights.pth"
    path.write_bytes(make())
    with pytest.raises(MaskModelError, match=message) as error:
        load_mask_network(path)
    assert str(error.value).startswith(f"{path}: ")
    assert MASK_WEIGHTS_FILE in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_a_folder_and_a_huge_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path, tmp_path / "absent.pth"):
        with pytest.raises(MaskModelError, match=r"is not a file; give iw3_mask_mlbw"):
            load_mask_network(path)
    huge = tmp_path / "huge.pth"
    with huge.open("wb") as file:
        file.truncate(64_000_001)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
        with pytest.raises(MaskModelError, match=r"has 64000001 bytes, at most 64000000 are read;"):
            load_mask_network(huge)

        def refuse(self: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        patch.setattr(Path, "read_bytes", refuse)
        with huge.open("wb") as file:
            file.truncate(10)
        with pytest.raises(
            MaskModelError, match=r"cannot be read \(Permission denied\); give a file you may"
        ):
            load_mask_network(huge)


class Site(http.server.HTTPServer):
    """Answers every request with ``status``, ``body`` and the length it claims; counts those asked and finished."""

    status, body, asked, finished = 200, b"", 0, 0
    claimed: int | None = None


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(self.server.status)
        claimed = self.server.claimed
        self.send_header("Content-Length", str(len(self.server.body) if claimed is None else claimed))
        self.end_headers()
        try:
            self.wfile.write(self.server.body)
            self.server.finished += 1
        except OSError:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PyTorch's cache, in a folder that does not exist yet."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    with Site(("127.0.0.1", 0), _Handler) as server:
        monkeypatch.setattr(mlbw, "MASK_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}/weights.pth")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_given_path_is_taken_and_nothing_asked(site: Site, cache: Path) -> None:
    assert find_mask_weights(Path("mine.pth")) == Path("mine.pth")
    assert (site.asked, cache.exists()) == (0, False)


def test_the_file_is_downloaded_once_into_the_cache(site: Site, cache: Path) -> None:
    site.body = as_bytes(content())
    path = find_mask_weights(None)
    assert path == cache / "iw3_mask_mlbw_l2_d1_20250903.pth"
    assert path.read_bytes() == site.body
    load_mask_network(path)
    assert find_mask_weights(None) == path
    assert site.asked == 1
    assert list(cache.iterdir()) == [path]


def refused_download(cache: Path, message: str) -> None:
    with pytest.raises(MaskModelError, match=message) as error:
        find_mask_weights(None)
    text = str(error.value)
    assert text.startswith("iw3_mask_mlbw_l2_d1_20250903.pth: ")
    assert "--mask-weights PATH" in text
    assert "--backward-mask gradient" in text
    assert "\n" not in text
    assert not cache.exists()


@pytest.mark.parametrize(
    ("body", "claimed"),
    [(as_bytes(content())[:-300], None), (as_bytes(content())[:-300], len(as_bytes(content())))],
    ids=["shorter file", "broken connection"],
)
def test_a_truncated_download_leaves_nothing(
    site: Site, cache: Path, body: bytes, claimed: int | None
) -> None:
    site.body, site.claimed = body, claimed
    refused_download(cache, r"is damaged, cut short|cannot be downloaded from http.*IncompleteRead")


def test_a_page_in_place_of_the_file_leaves_nothing(site: Site, cache: Path) -> None:
    site.body = b"<!DOCTYPE html><p>Log in to this network</p>"
    refused_download(
        cache, r"what http://127.0.0.1:\d+/weights.pth sent is not a model file \(it begins with b'<!DO'"
    )


def test_another_model_in_place_of_the_file_leaves_nothing(site: Site, cache: Path) -> None:
    site.body = as_bytes({**content(), "name": "sbs.row_flow_v3"})
    refused_download(cache, r"sent holds the network 'sbs.row_flow_v3'")


def test_a_huge_download_is_cut_off(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlbw, "LARGEST_FILE_BYTES", 1000)
    site.body = b"PK\x03\x04" + b"0" * 30_000_000  # more than sockets hold
    refused_download(cache, r"has more than 1000 bytes")
    site.shutdown()
    assert (site.asked, site.finished) == (1, 0)


def test_a_missing_release_is_told(site: Site, cache: Path) -> None:
    site.status = 404
    refused_download(cache, r"cannot be downloaded from http://127.0.0.1:\d+/weights.pth \(Not Found\)")


def test_no_network_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:  # bound but not listening, so nobody else answers there
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("no_proxy", "*")
        url = f"http://127.0.0.1:{held.getsockname()[1]}/weights.pth"
        monkeypatch.setattr(mlbw, "MASK_WEIGHTS_URL", url)
        refused_download(cache, rf"cannot be downloaded from {url} \(.*refused")


def test_a_cache_that_cannot_be_written_is_told(site: Site, cache: Path) -> None:
    site.body = as_bytes(content())
    cache.parent.write_text("a file in the way")
    with pytest.raises(OutputError, match=r"^cannot write .*checkpoints"):
        find_mask_weights(None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_says_nearly_the_same() -> None:
    network, x = (
        golden_network("hash"),
        torch.rand((1, 3, 49, 75), generator=torch.Generator().manual_seed(2)),
    )
    on_cpu: tuple[Tensor, ...] = network(x)
    for found, expected in zip(network.cuda()(x.cuda()), on_cpu, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=5e-3)  # convolutions in TF32
