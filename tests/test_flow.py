"""The whole line with the real stages: a video becomes records, shards, a checkpoint."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from making import all_files
from PIL import Image
from small_disks import needs_mount, remount, small_disk
from vshard_cli.main import run

from vshard.records.png import decode_png
from vshard.records.record import list_record_folders, parse_metadata
from vshard.train.checkpoint import load_model


def records_of(split: Path) -> list[Path]:
    return list_record_folders(split)


def test_records_hold_frames_masks_and_how_they_were_made(dataset: Path) -> None:
    views = set()
    for folder in records_of(dataset / "train"):
        metadata = parse_metadata((folder / "meta.json").read_bytes(), folder.name)
        views.add(metadata["view"])
        assert metadata["key"] == folder.name
        assert metadata["depth"]["model"] == "Parallax"
        assert metadata["source"]["name"] == "small.mp4"
        assert len(metadata["seconds"]) == len(metadata["mask"]["area_px"]) == 12
        for index in range(12):
            frame = np.array(Image.open(folder / f"{index:04d}_C.png"))
            mask = np.array(Image.open(folder / f"{index:04d}_M.png"))
            assert (frame.shape, mask.shape) == ((256, 256, 3), (256, 256))
            assert set(np.unique(mask)) <= {0, 128, 255}
            assert np.count_nonzero(mask) == metadata["mask"]["area_px"][index]
            for name in (f"{index:04d}_C.png", f"{index:04d}_M.png"):
                data = (folder / name).read_bytes()
                assert (decode_png(data, name) == np.array(Image.open(io.BytesIO(data)))).all()
    assert views == {"backward", "forward"}


def test_generating_again_elsewhere_gives_the_same_bytes(
    dataset: Path, clip_path: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(3)  # the dataset was made with one
    code = run(
        ["generate", "--dataset-dir", str(clip_path), "-o", str(tmp_path), "--prefix", "eval", "--seq", "12",
         "--skip-first", "12", "--skip-interval", "0", "--size", "256", "--divergence-level", "2", "--gpu", "-1",
         "--batch-size", "4", "--backward-mask", "gradient"]
    )  # fmt: skip
    assert code == 0
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    for path in (dataset / "eval").rglob("*.*"):
        if path.suffix in (".png", ".tar", ".idx") or path.name == "meta.json":
            assert (tmp_path / path.relative_to(dataset / "eval")).read_bytes() == path.read_bytes()


def test_pack_and_train(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "eval"):
        assert run(["pack", str(dataset / split), "-o", str(tmp_path / "shards" / split)]) == 0
    common = ["train", "-i", str(tmp_path / "shards"), "--model-dir", str(tmp_path / "model"), "--video",
              "--loss", "temporal_l1", "--arch", "narrow",
              "--num-samples", "24", "--backward-step", "2", "--eval-step", "2", "--save-eval-step", "1",
              "--gpu", "-1", "--num-workers", "1"]  # fmt: skip
    assert run([*common, "--max-epoch", "2"]) == 0
    assert run([*common, "--max-epoch", "2", "--resume"]) == 0
    assert "all 2 epochs are done" in capsys.readouterr().err
    model = load_model(tmp_path / "model" / "inpaint.light_video_inpaint_v1.pth")
    assert model.kwargs["base_dim"] == 32
    assert len(list((tmp_path / "model" / "eval").glob("*.png"))) == len(records_of(dataset / "eval"))


def bad_generate(folder: Path, clip: Path) -> dict[str, tuple[list[str], str]]:
    (folder / "file").write_bytes(b"")
    (folder / "empty.mp4").write_bytes(b"")
    data = clip.read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    out = str(folder / "out")
    return {
        "no such video": ([str(folder / "no.mp4"), "-o", out], "no.mp4: no such video file"),
        "empty file": ([str(folder / "empty.mp4"), "-o", out], "the file is empty"),
        "truncated": ([str(folder / "cut.mp4"), "-o", out], "cut off"),
        "output is a file": ([str(clip), "-o", str(folder / "file")], "cannot write"),
        "prefix /": ([str(clip), "-o", out, "--prefix", "a/b"], "--prefix 'a/b'"),
        "prefix .": ([str(clip), "-o", out, "--prefix", "a.b"], "--prefix 'a.b'"),
        "prefix space": ([str(clip), "-o", out, "--prefix", "a b"], "--prefix 'a b'"),
        "batch": ([str(clip), "-o", out, "--batch-size", "3"], "--batch-size 3: must divide --seq 16"),
        "size": ([str(clip), "-o", out, "--size", "2000"], "--size 2000: allowed is 256 to 719"),
        "seq": ([str(clip), "-o", out, "--seq", "8", "--batch-size", "1"], "--seq 8: allowed is 12 to 128"),
        "hub model": (
            [str(clip), "-o", out, "--model-type", "Any_B"],
            "--depth-weights",
        ),
        "unserved model": ([str(clip), "-o", out, "--model-type", "ZoeD_Any_N"], "--model-type ZoeD_Any_N"),
        "unknown model": ([str(clip), "-o", out, "--model-type", "Bogus"], "no such depth model"),
        "gpu": ([str(clip), "-o", out, "--gpu", "77"], "--gpu 77"),
        "mask weights": (
            [str(clip), "-o", out, "--mask-weights", str(folder / "empty.mp4")],
            "empty.mp4: is not a model file (it is empty); give iw3_mask_mlbw_l2_d1_20250903.pth",
        ),
        "mask weights of none": (
            [str(clip), "-o", out, "--mask-weights", "x.pth", "--backward-mask", "gradient"],
            "--mask-weights x.pth: the gradient mask has none",
        ),
        "level": (
            [str(clip), "-o", out, "--divergence-level", "4"],
            "--divergence-level 4: allowed is 1 to 3",
        ),
        "resolution": (
            [str(clip), "-o", out, "--resolution", "518"],
            "--resolution 518: Parallax has one size of its own",
        ),
    }


@pytest.mark.parametrize("kind", [
    "no such video", "empty file", "truncated", "output is a file", "prefix /", "prefix .", "prefix space", "batch",
    "size", "seq", "hub model", "unserved model", "unknown model", "gpu", "level", "resolution", "mask weights",
    "mask weights of none",
])  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, clip_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = bad_generate(tmp_path, clip_path)[kind]
    before = sorted(tmp_path.rglob("*"))
    assert run(["generate", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("vshard: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before


@needs_mount
def test_a_full_disk_is_one_line_and_the_same_command_finishes(
    clip_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        command = ["generate", str(clip_path), "-o", str(disk / "train"), "--prefix", "f", "--seq", "12", "--size",
                   "256", "--skip-interval", "0", "--divergence-level", "2", "--gpu", "-1",
                   "--backward-mask", "gradient"]  # fmt: skip
        assert run(command) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "the disk is full; free some space and run the same command again" in error
        assert not [p for p in (disk / "train").glob("f_*") if p.is_dir() and not (p / "meta.json").exists()]
        remount(disk, "size=200m")
        assert run(command) == 0
        whole = tmp_path / "whole"
        assert run([*command[:3], str(whole), *command[4:]]) == 0
        assert all_files(whole) == all_files(disk / "train")
        remount(disk, "ro")
        assert run([*command, "--overwrite"]) == 1
        assert "read-only" in capsys.readouterr().err.splitlines()[-1]
        assert json.loads(next((disk / "train" / ".vshard").glob("*.json")).read_text())["complete"]
