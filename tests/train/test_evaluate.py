from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from making import Listening, make_record
from PIL import Image
from store_servers import web_folder
from torch import Tensor

from vshard.base.errors import CheckpointError, DatasetError, OptionError, RecordError
from vshard.base.report import Silent
from vshard.records.png import encode_png
from vshard.records.record import Record, metadata_bytes, write_record
from vshard.shards.pack import pack
from vshard.shards.plan import PackOptions
from vshard.stream.reader import Reader
from vshard.stream.split import open_split
from vshard.train import evaluate as module
from vshard.train.checkpoint import save_model
from vshard.train.evaluate import (
    METHODS,
    EvaluateOptions,
    Evaluation,
    Speed,
    choose_records,
    evaluate,
    fill,
    measure_speed,
    open_evaluation,
    read_clip,
)
from vshard.train.evaluation_page import (
    JSON_FILE,
    PAGE_FILE,
    as_json,
    heading,
    record_picture,
    speed_lines,
    table,
    write_evaluation,
)
from vshard.train.metrics import METRICS, score
from vshard.train.network import BORDER_PX, LightVideoInpaint
from vshard.train.sources import joined, sources_of, sources_of_run, trained_on

SIZE = 72
GRAY = 0.25
CPU = torch.device("cpu")


def record_of(key: str, number: int, fingerprint: str = "", frames: int = 14) -> Record:
    record = make_record(key, frames=frames, size=SIZE, seed=number + 3)
    source = {"source": {"name": f"{fingerprint}.mp4", "fingerprint": fingerprint}} if fingerprint else {}
    return replace(record, metadata=metadata_bytes(json.loads(record.metadata) | source))


def write_records(split: Path, *wanted: tuple[str, str]) -> Path:
    for number, (key, fingerprint) in enumerate(wanted):
        write_record(split, record_of(key, number, fingerprint))
    return split


def gray_network() -> LightVideoInpaint:
    """A network whose every fill is one gray."""
    model = LightVideoInpaint(base_dim=2)
    for name, parameter in model.named_parameters():
        torch.nn.init.constant_(parameter, GRAY if name == "to_image.bias" else 0)
    return model.eval()


def save_gray(path: Path, *sources: str) -> Path:
    save_model(path, gray_network(), {"sources": list(sources)})
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose eval/ has five records of three videos."""
    root = tmp_path_factory.mktemp("data")
    keys = [("a_M_0000000a_000000", "aa"), ("a_M_0000000a_000001", "aa"), ("b_M_0000000b_000000", "bb")]
    write_records(root / "eval", *keys, ("b_M_0000000b_000001", "bb"), ("c_M_0000000c_000000", ""))
    write_records(root / "train", ("t_M_000000dd_000000", "dd"))
    return root


@pytest.fixture(scope="module")
def found(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    model = save_gray(tmp_path_factory.mktemp("model") / "gray.pth", "t_M_000000dd_000000 dd")
    return evaluate(EvaluateOptions(model, data, gpu=-1, seed=3), Silent())


def expected_fill(clip: module.Clip) -> tuple[Tensor, Tensor, Tensor]:
    """What the gray network makes of a clip, written out: output, target, holes, all without the border."""
    x = torch.from_numpy(clip.rgb).permute(0, 3, 1, 2) / 255
    hole = torch.from_numpy(clip.hole)[:, None]
    _, soft = LightVideoInpaint(2).preprocess(x, hole)
    out = torch.where(hole, 0, x) * (1 - soft) + GRAY * soft
    inner = (..., slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    return out[inner], x[inner], hole[inner]


def test_scores_are_those_of_what_the_network_makes(data: Path, found: Evaluation) -> None:
    reader = Reader(open_split(data / "eval"))
    assert [one.key for one in found.records] == reader.split.keys.tolist()
    for number, one in enumerate(found.records):
        clip = read_clip(reader, number)
        output, target, hole = expected_fill(clip)
        assert one.scores["model"] == pytest.approx(score(output, target, hole), rel=1e-3, nan_ok=True)
        assert one.scores.keys() == set(METHODS)
        black = score(torch.where(hole, 0, target), target, hole)
        assert one.scores["unfilled"] == pytest.approx(black, rel=1e-4, nan_ok=True)
        filled = fill(clip, gray_network(), CPU)
        for name in ("unfilled", "shifted", "telea"):
            assert torch.equal(filled.fills[name][~hole.expand_as(target)], target[~hole.expand_as(target)])
    of_video = (found.records[:2], found.records[2:4], found.records[4:])
    by_video = [np.mean([one.scores["model"]["psnr_hole"] for one in part]) for part in of_video]
    mean = found.means["model"]["psnr_hole"]
    assert mean is not None and mean.mean == pytest.approx(np.mean(by_video)) and mean.videos == 3
    assert mean.low is not None and mean.high is not None and mean.low < mean.mean < mean.high


def test_the_middle_of_a_record_is_read_whole(data: Path) -> None:
    clip = read_clip(Reader(open_split(data / "eval")), 0)
    folder = data / "eval" / clip.key
    assert clip.rgb.shape == (12, SIZE, SIZE, 3)
    for number in (0, 11):
        with Image.open(folder / f"{number + 1:04d}_C.png") as picture:
            assert np.array_equal(clip.rgb[number], np.asarray(picture))
        with Image.open(folder / f"{number + 1:04d}_M.png") as picture:
            assert np.array_equal(clip.hole[number], np.asarray(picture) > 0)


def test_the_same_again_and_in_a_shard(data: Path, found: Evaluation, tmp_path: Path) -> None:
    pack(PackOptions((str(data / "eval"),), tmp_path / "eval", "p", shard_records=2), Silent())
    model = Path(found.model)
    again = evaluate(EvaluateOptions(model, tmp_path / "eval", gpu=-1, seed=3), Silent())
    assert as_json(again) | {"data": ""} == as_json(found) | {"data": ""}


def test_some_records_are_drawn_by_the_seed() -> None:
    assert choose_records(5, None, 1) == choose_records(5, 9, 1) == [0, 1, 2, 3, 4]
    some = choose_records(1000, 20, 1)
    assert len(set(some)) == 20 and some == sorted(some) == choose_records(1000, 20, 1)
    assert some != choose_records(1000, 20, 2)


@pytest.mark.parametrize(
    ("sources", "refused"),
    [
        (["other_M_0000000f_000004 bb"], ["bb.mp4"]),  # renamed, told by its content
        (["a_M_0000000a_000008 other"], []),  # another file of that name
        (["x_M_0000000c_000000"], ["video 0000000c"]),  # no metadata on either side
        (["x_M_0000000c_000000 cc"], ["video 0000000c"]),  # none on one side: it may be that file
        (["x_M_0000000a_000000"], ["aa.mp4"]),
        (["t_M_000000dd_000000 dd"], []),
        (["x aa", "y bb"], ["aa.mp4", "bb.mp4"]),
    ],
)
def test_videos_that_were_trained_on_are_refused(
    data: Path, tmp_path: Path, sources: list[str], refused: list[str]
) -> None:
    options = EvaluateOptions(save_gray(tmp_path / "m.pth", *sources), data, gpu=-1, records=None)
    allowed = evaluate(replace(options, allow_trained=True), Silent())
    assert list(allowed.trained) == refused and allowed.sources_known
    assert any("was trained on" in note for note in allowed.notes) == bool(refused)
    if refused:
        told = f"m.pth was trained on {len(refused)} of its 3 videos .*{refused[0]}.*--allow-trained"
        with pytest.raises(DatasetError, match=told):
            evaluate(options, Silent())


def test_a_model_that_does_not_tell_is_said_to(data: Path, tmp_path: Path) -> None:
    for kwargs in (None, {}, {"sources": "a"}, {"sources": [1]}, {"sources": ["?", "x_M_0000000e_000000"]}):
        save_model(tmp_path / "m.pth", gray_network(), kwargs)
        found = evaluate(EvaluateOptions(tmp_path / "m.pth", data, gpu=-1, records=1), Silent())
        assert not found.sources_known
        assert any("not all known" in note for note in found.notes)


def test_sources_are_a_line_a_video_in_any_form(data: Path, tmp_path: Path) -> None:
    expected = ["a_M_0000000a_000000 aa", "b_M_0000000b_000000 bb", "c_M_0000000c_000000"]
    assert sources_of(open_split(data / "eval"), 1, Silent()) == expected
    pack(PackOptions((str(data / "eval"),), tmp_path, "p", shard_records=1), Silent())
    assert sources_of(open_split(tmp_path), 2, Silent()) == expected
    save_model(tmp_path / "m.pth", gray_network(), {"sources": expected})
    stored = torch.load(tmp_path / "m.pth", weights_only=True)["train_kwargs"]
    assert trained_on(stored).complete and trained_on(stored).lines() == expected
    assert joined(expected, trained_on({"sources": ["x ff", expected[0]]})) == [*expected, "x ff"]
    assert joined(["x ff"], trained_on(None)) == ["?", "x ff"]


def test_a_run_has_seen_what_its_first_weights_have(data: Path, tmp_path: Path) -> None:
    split, own = open_split(data / "train"), ["t_M_000000dd_000000 dd"]
    told, silent = save_gray(tmp_path / "told.pth", "x ff"), tmp_path / "silent.pth"
    save_model(silent, gray_network(), None)
    assert sources_of_run(split, Silent(), None, None) == own
    assert sources_of_run(split, Silent(), None, told) == [*own, "x ff"]
    assert sources_of_run(split, Silent(), None, silent) == ["?", *own]
    last = {"train_kwargs": {"sources": ["u ee"]}}
    assert sources_of_run(split, Silent(), last, told) == [*own, "u ee"]
    assert sources_of_run(split, Silent(), {"train_kwargs": {"sources": own}}, told) == own


def test_damaged_metadata_leaves_the_key_to_tell(tmp_path: Path) -> None:
    write_records(tmp_path, ("a_M_0000000a_000000", "aa"))
    (tmp_path / "a_M_0000000a_000000" / "meta.json").write_bytes(b"{")
    assert sources_of(open_split(tmp_path), 1, Silent()) == ["a_M_0000000a_000000"]


def test_json_is_plain_and_complete(found: Evaluation) -> None:
    facts = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert facts["schema"] == "vshard.evaluation/1"
    assert facts["videos"] == ["aa.mp4", "bb.mp4", "video 0000000c"]
    assert facts["sources_known"] is True and facts["trained_videos"] == []
    without_lpips = {name for name in METRICS if not name.startswith("lpips")}
    assert facts["metrics"].keys() == set(METRICS)
    assert facts["means"].keys() == set(METHODS)
    for means in facts["means"].values():
        assert means.keys() == without_lpips
        assert means["psnr_hole"].keys() == {"mean", "low", "high", "videos"}
    assert len(facts["records"]) == 5
    assert facts["records"][0]["scores"]["telea"].keys() == without_lpips
    assert facts["speed_1080p"] == [] and any("--speed" in note for note in facts["notes"])


def test_a_record_without_holes_has_no_numbers_there(tmp_path: Path) -> None:
    record = record_of("a_M_0000000a_000000", 0)
    empty = encode_png(np.zeros((SIZE, SIZE), np.uint8))
    write_record(tmp_path / "eval", replace(record, masks=(empty,) * 14))
    found = evaluate(EvaluateOptions(save_gray(tmp_path / "m.pth"), tmp_path, gpu=-1), Silent())
    assert math.isnan(found.records[0].scores["model"]["psnr_hole"])
    assert found.means["model"]["psnr_hole"] is None
    facts = as_json(found)
    assert facts["records"][0]["scores"]["model"]["psnr_hole"] is None
    assert facts["means"]["model"]["psnr_hole"] is None
    assert any(row[1] == "-" for row in table(found))
    assert any("one video" in note for note in found.notes)


def test_page_and_files(data: Path, tmp_path: Path) -> None:
    model = save_gray(tmp_path / "m.pth")
    pictures: dict[str, bytes] = {}

    def show(clip: module.Clip, filled: module.Filled, scored: module.Scored) -> None:
        pictures[clip.key] = record_picture(clip, filled, scored)
        tile = np.asarray(Image.open(io.BytesIO(pictures[clip.key])))
        side = SIZE - 2 * BORDER_PX
        assert tile.shape == (18 + 3 * (side + 18), 5 * side, 3)
        # The truth is in the last column, but for the line around its holes.
        shown = tile[18 : 18 + side, 4 * side :]
        truth = filled.target[0].mul(255).round().byte().permute(1, 2, 0).numpy()
        line = (shown == (255, 0, 200)).all(axis=2)
        assert np.array_equal(shown[~line], truth[~line])
        assert line.any() and not line[filled.hole[0, 0].numpy()].any()

    found = evaluate(EvaluateOptions(model, data, gpu=-1, pictures=2), Silent(), show=show)
    assert list(pictures) == ["a_M_0000000a_000000", "c_M_0000000c_000000"]
    page, facts = write_evaluation(tmp_path / "out", found, pictures)
    assert (page.name, facts.name) == (PAGE_FILE, JSON_FILE)
    assert json.loads(facts.read_text()) == json.loads(json.dumps(as_json(found)))
    text = page.read_text()
    for key, picture in pictures.items():
        assert f'src="pictures/{key}.png"' in text
        assert (tmp_path / "out" / "pictures" / f"{key}.png").read_bytes() == picture
    assert "PSNR in the hole" in text and "OpenCV Telea" in text


def test_text_of_strangers_is_harmless(found: Evaluation, tmp_path: Path) -> None:
    odd = replace(found, model="<script>", notes=("a <b> & c\x1b[0m",))
    page, _ = write_evaluation(tmp_path, odd, {})
    text = page.read_text()
    assert "<script>" not in text and "<b>" not in text and "\x1b" not in text


def test_speed_is_measured_where_asked(found: Evaluation) -> None:
    (speed,) = measure_speed(gray_network(), CPU, (64, 64))
    assert speed.precision == "float32" and speed.ms_a_frame > 0 and speed.peak_bytes > 10**7
    (line,) = speed_lines(replace(found, speeds=(speed,)))
    assert "ms a frame" in line and "GB" in line


def test_a_model_that_fills_with_no_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path / "eval", make_record("a_000000", size=64))
    save_model(tmp_path / "model.pth", gray_network())
    real = module.fill

    def spoilt(*arguments: object) -> module.Filled:
        filled = real(*arguments)
        filled.fills["model"][0, 0, 0, 0] = math.inf
        return filled

    monkeypatch.setattr(module, "fill", spoilt)
    with pytest.raises(CheckpointError, match=r"model.pth: fills a_000000 with what are not numbers"):
        evaluate(EvaluateOptions(tmp_path / "model.pth", tmp_path / "eval", gpu=-1), Silent())


def test_speed_that_cannot_be_measured_costs_no_score(
    found: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    (speed,) = measure_speed(gray_network(), CPU, (64, 64))
    (line,) = speed_lines(replace(found, speeds=(speed,)))
    assert speed.peak_bytes is None and line.endswith("ms a frame")

    def too_large(*_: object) -> Iterator[Speed]:
        yield speed
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, "measure_speed", too_large)
    speeds, (note,) = module._speeds(gray_network(), CPU)
    assert speeds == (speed,) and "did not fit into memory" in note


def test_table_has_a_row_a_metric_and_a_column_a_method(found: Evaluation) -> None:
    rows = table(found)
    assert rows[0] == ["", "model", "unfilled", "shifted from the background", "OpenCV Telea"]
    assert len(rows) == 1 + len(found.means["model"])
    mean = found.means["telea"]["psnr_hole"]
    assert mean is not None
    assert rows[1][4] == f"{mean.mean:.2f} ({mean.low:.2f} to {mean.high:.2f})"
    assert "5 records of 3 videos; mean over videos (95% interval)" in heading(found)


class Squares:
    source = "squares"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def distance_map(self, output: Tensor, target: Tensor) -> Tensor:
        assert output.device == self.device
        return (output - target).square().mean(dim=1, keepdim=True)


def test_lpips_is_scored_where_there_is_one(data: Path, tmp_path: Path) -> None:
    found = evaluate(
        EvaluateOptions(save_gray(tmp_path / "m.pth"), data, gpu=-1, records=1), Silent(), Squares
    )
    assert found.means["model"].keys() == METRICS.keys()
    assert found.lpips == as_json(found)["lpips"] == "squares"
    assert not any("LPIPS" in note for note in found.notes)
    scores = found.records[0].scores["model"]
    assert scores["lpips_hole"] == pytest.approx(10 ** (-scores["psnr_hole"] / 10), rel=1e-3)


def test_what_cannot_be_scored_is_told(data: Path, tmp_path: Path) -> None:
    assert open_evaluation(data).root == open_evaluation(data / "eval").root == data / "eval"
    with pytest.raises(DatasetError, match=r"holds the split train; give that"):
        (tmp_path / "t" / "train").mkdir(parents=True)
        open_evaluation(tmp_path / "t")
    with pytest.raises(DatasetError, match="no such folder"):
        open_evaluation(tmp_path / "none")
    with pytest.raises(OptionError, match="--records 0"):
        EvaluateOptions(tmp_path, data, records=0)
    with pytest.raises(OptionError, match="--pictures -1"):
        EvaluateOptions(tmp_path, data, pictures=-1)
    with pytest.raises(CheckpointError, match="cannot be read"):
        evaluate(EvaluateOptions(tmp_path / "no.pth", data), Silent())
    write_record(tmp_path / "few", record_of("a_000000", 0, frames=11))
    with pytest.raises(RecordError, match="a_000000: has 11 frames, 12 are scored"):
        read_clip(Reader(open_split(tmp_path / "few")), 0)
    write_record(tmp_path / "small", make_record("a_000000", frames=12, size=40))
    with pytest.raises(RecordError, match="at least 43x43"):
        read_clip(Reader(open_split(tmp_path / "small")), 0)


def test_progress_is_told(data: Path, tmp_path: Path) -> None:
    class Counting(Listening):
        def advance(self, done: int, figures: str = "") -> None:
            self.said.append(f"{done} {figures}")

    report = Counting()
    evaluate(EvaluateOptions(save_gray(tmp_path / "m.pth"), data, gpu=-1, records=2), report)
    assert any(line.startswith("2 PSNR in the hole") for line in report.said)


def test_a_split_in_a_store_gives_the_same(
    data: Path, found: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vshard.stream.cache.default_folder", lambda: tmp_path / "cache")
    pack(PackOptions((str(data / "eval"),), tmp_path / "served" / "eval", "p", shard_records=2), Silent())
    with web_folder(tmp_path / "served") as (served, _):
        again = evaluate(EvaluateOptions(Path(found.model), served, gpu=-1, seed=3), Silent())
    assert again.data.startswith("http://")
    assert as_json(again) | {"data": ""} == as_json(found) | {"data": ""}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_scores_the_same_and_is_timed_twice(found: Evaluation, data: Path) -> None:
    on_gpu = evaluate(EvaluateOptions(Path(found.model), data, gpu=0, seed=3), Silent(), Squares)
    for here, there in zip(found.records, on_gpu.records, strict=True):
        for method, scores in here.scores.items():
            near = {name: there.scores[method][name] for name in scores}
            assert near == pytest.approx(scores, rel=1e-3, nan_ok=True)
    assert [speed.precision for speed in on_gpu.speeds] == ["float32", "fp16"]


def test_a_picture_shows_where_the_holes_are() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(12, 3, 320, 352, generator=generator)
    hole = torch.zeros(12, 1, 320, 352, dtype=torch.bool)
    hole[..., 290:300, 330:340] = True
    clip = module.Clip("a", np.zeros((12, 352, 384, 3), np.uint8), np.zeros((12, 352, 384), bool))
    filled = module.Filled(target, hole, dict.fromkeys(METHODS, target))
    picture = record_picture(clip, filled, module.Scored("a", "v", {}))
    shown = np.asarray(Image.open(io.BytesIO(picture)))[18 : 18 + 256, 4 * 256 :]
    truth = target[0, :, 64:, 96:].mul(255).round().byte().permute(1, 2, 0).numpy()
    assert (shown == truth).all(axis=2).mean() > 0.99
