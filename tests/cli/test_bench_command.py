from __future__ import annotations

import json
from pathlib import Path

import pytest
from making import make_record
from vshard_cli.main import run

from vshard.records.record import write_record

FEW = ["--samples", "2", "--rounds", "1", "--num-workers", "1"]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        write_record(Path("data/train"), make_record(f"some_{number:06d}", frames=13, size=264, seed=number))


@pytest.mark.slow
def test_json_has_an_object_a_loader(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "-i", "data", *FEW, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"vshard", "vshard_finished", "directory", "webdataset", "floor"}
    for loader in told.values():
        assert loader["cpu_ms_per_sample"] > 0 and loader["samples_per_s"] > 0
        assert len(loader["runs"]) == 1
    assert set(told["vshard"]["stages_cpu_ms"]) == {"read", "inflate", "unfilter", "augment", "hand-over"}
    assert told["vshard"]["gpu_step_assumed"] is True


def test_a_table_stages_and_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "-i", "data/train", *FEW, "--only", "vshard", "--gpu-step-ms", "40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["LOADER", "CPU", "MS", "SAMPLES/S", "MB/S", "CPU,", "TIMES", "OURS"]
    assert lines[1].startswith("vshard ") and lines[1].endswith("ours, uint8 handed over")
    assert "Over 2 records, with 1 loader process." in lines
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        "read",
        "inflate",
        "unfilter",
        "augment",
        "hand-over",
    ]
    rate = float(lines[1].split()[2])
    start, _, fed = lines[-1].partition(" feed ")
    assert start == f"A GPU that takes 40 ms a sample does 25.0 a second: {rate:.1f}"
    assert abs(float(fed.removesuffix(" such GPUs.")) - rate / 25) < 0.06


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--only", "folders"], 1, "--only folders: allowed are vshard, vshard_finished, directory"),
        (["--rounds", "0"], 1, "--rounds 0: allowed is 1 or more"),
        (["--gpu-step-ms", "0"], 2, "0.0 is not in the range x>0"),
    ],
)
def test_options_are_checked(
    arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "-i", "data", *arguments]) == code
    assert told in capsys.readouterr().err
