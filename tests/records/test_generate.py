"""Records from real frames, through the stages: what the estimators see and what their records say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filming import moving_frames, write_video
from making import Listening, save_mask_network
from tiny_networks import save_networks

from vshard.base.errors import OptionError
from vshard.base.report import Silent
from vshard.records import generate
from vshard.records.plan import GenerateOptions
from vshard.records.png import decode_png
from vshard.records.record import Record
from vshard.shards.run import run_generation


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_networks(tmp_path_factory.mktemp("networks"))["relative"]


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mask_network(tmp_path_factory.mktemp("masks") / "weights.pth")


def options_of(clip: Path, output: Path, **changes: object) -> GenerateOptions:
    chosen = GenerateOptions(
        str(clip), output, prefix="g", seq=12, skip_interval=0, size=256, divergence_level=2, gpu=-1,
        backward_mask="gradient", format="dirs",
    )  # fmt: skip
    return replace(chosen, **changes)  # type: ignore[arg-type]


def metadata_of(split: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_bytes()) for path in sorted(split.glob("*/meta.json"))}


def test_learned_depth_and_the_mask_network_make_records(
    clip_path: Path, tmp_path: Path, depth_folder: Path, mask_file: Path
) -> None:
    chosen = options_of(
        clip_path, tmp_path / "train", model_type="Any_V2_S", depth_weights=str(depth_folder), depth_flip=True,
        resolution=112, backward_mask="auto", mask_weights=mask_file,
    )  # fmt: skip
    report = Listening()
    state = run_generation(chosen, report)
    assert state.records >= 2
    assert state.estimators["depth weights"].startswith("relative sha256:")
    assert state.estimators["backward mask"].startswith("mlbw sha256:")
    assert sum("under their own licence" in line for line in report.said) == 1
    methods = {}
    for key, metadata in metadata_of(tmp_path / "train").items():
        assert key.startswith("g_Any_V2_S_")
        assert metadata["depth"]["weights"] == state.estimators["depth weights"]
        assert metadata["options"]["depth_flip"] is True
        methods[metadata["view"]] = metadata["mask"]["method"]
    # Depth of an untrained network is smooth: it may leave the forward masks too small to keep.
    assert {"forward": "forward"} | methods == {
        "backward": state.estimators["backward mask"], "forward": "forward",
    }  # fmt: skip


def test_a_run_goes_on_only_with_the_weights_it_was_begun_with(
    clip_path: Path, tmp_path: Path, mask_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options_of(clip_path, tmp_path / "train", backward_mask="auto")
    whole = run_generation(replace(chosen, output=tmp_path / "whole"), Silent())
    make = generate.compose
    made = 0

    def failing(*arguments):  # type: ignore[no-untyped-def]
        nonlocal made
        made += 1
        if made == 3:
            raise OSError("unplugged")
        return make(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "compose", failing)
        with pytest.raises(OSError, match="unplugged"):
            run_generation(chosen, Silent())
    with pytest.raises(OptionError, match=r"begun with backward mask gradient, now it is mlbw sha256"):
        run_generation(replace(chosen, mask_weights=mask_file), Silent())
    # "auto" keeps to what it took, though the weights can be had by now.
    cache = Path(torch.hub.get_dir()) / "checkpoints" / "iw3_mask_mlbw_l2_d1_20250903.pth"
    cache.parent.mkdir(parents=True)
    cache.write_bytes(mask_file.read_bytes())
    report = Listening()
    assert run_generation(chosen, report) == whole
    assert report.warned == [
        "small.mp4 is 640x480: its frames are enlarged to 720 or 1080 lines and will be blurred; 1080p is best"
    ]
    assert metadata_of(tmp_path / "train") == metadata_of(tmp_path / "whole")


@pytest.mark.parametrize("ahead", [0, 2])
def test_overlapping_changes_no_byte(
    clip_path: Path, tmp_path: Path, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, list[Record]] = {}
    real = generate.generate_records

    def noted(name: str, **how: int):  # type: ignore[no-untyped-def]
        def generator(*arguments):  # type: ignore[no-untyped-def]
            for one in real(*arguments, **how):
                made.setdefault(name, []).extend(one.records)
                yield one

        return generator

    for name, how in (("usual", {}), ("other", {"ahead": ahead})):
        monkeypatch.setattr(generate, "generate_records", noted(name, **how))
        run_generation(options_of(clip_path, tmp_path / name), Silent())
    assert made["usual"] == made["other"] and made["usual"]


def test_frames_of_the_two_views_are_mirror_images(clip_path: Path, tmp_path: Path) -> None:
    """Crops large enough to overlap show the same pixels once the mirrored one is turned back."""
    run_generation(options_of(clip_path, tmp_path, size=700), Silent())
    records = metadata_of(tmp_path)
    pairs = 0
    for key, seen in records.items():
        for other, mirrored in records.items():
            if (seen["view"], mirrored["view"], seen["sequence"]) != (
                "backward",
                "forward",
                mirrored["sequence"],
            ):
                continue
            frames = [
                decode_png((tmp_path / name / "0003_C.png").read_bytes(), name) for name in (key, other)
            ]
            side, recipe = seen["recipe"]["short_side"], seen["recipe"]
            width = side if recipe["rotation_degrees"] is not None else int(640 * (side / 480))
            top = max(seen["crop"]["top"], mirrored["crop"]["top"])
            left = width - mirrored["crop"]["left"] - 700  # of the mirrored crop, on the frame as filmed
            whole = np.zeros((2, side + 1, width + 1, 3), np.int16) - 1
            a, b = seen["crop"], mirrored["crop"]
            whole[0, a["top"] : a["top"] + 700, a["left"] : a["left"] + 700] = frames[0]
            whole[1, b["top"] : b["top"] + 700, left : left + 700] = frames[1][:, ::-1]
            both = (whole >= 0).all(axis=(0, 3))
            assert both.sum() > 100_000 and top >= 0
            assert (whole[0][both] == whole[1][both]).all()
            pairs += 1
    assert pairs


def test_records_cross_no_cut_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    frames = moving_frames(62, 240, 320)
    frames[30:] = frames[30:, :, ::-1] // 2  # a cut
    frames[44:] = frames[44]  # a still
    clip = write_video(tmp_path / "cuts.mp4", frames)
    report = Listening()
    state = run_generation(options_of(clip, tmp_path / "train", seq=14, batch_size=1), report)
    assert state.planned == 4
    assert state.rejected["still"] == 1
    kept = json.loads(next((tmp_path / "train" / ".vshard").glob("*.json")).read_text())
    assert {"reason": "still", "key": kept["rejects"][-1]["key"]}.items() <= kept["rejects"][-1].items()
    for metadata in metadata_of(tmp_path / "train").values():
        shown = [round(seconds * 30) for seconds in metadata["seconds"]]
        assert shown == list(range(shown[0], shown[0] + 14))
        assert shown[0] in (0, 14, 30)
    again = run_generation(options_of(clip, tmp_path / "over", seq=14, batch_size=1, shots=False), report)
    assert again.planned == 4
    assert [m["seconds"][0] for m in metadata_of(tmp_path / "over").values()] != []
