"""Two processes train as one: started as ``torchrun`` starts them, over the whole of ``train``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import DEFAULT, patch

import pytest
import torch
from making import write_dataset
from torch import Tensor

from vshard.base.errors import WorkerError
from vshard.train.checkpoint import load_checkpoint
from vshard.train.history import read_epochs
from vshard.train.ranks import join_ranks

NAME = "inpaint.light_video_inpaint_v1"
_TRAIN = """
import sys
from pathlib import Path
from vshard.train.network import ARCHITECTURES
ARCHITECTURES["tiny"] = {"base_dim": 4, "lv2_mlp_ratio": 1}
from cli.main import run
code = run(["train", *sys.argv[1:]])
# A thread of the group that outlives training can abort the process when Python ends.
threads = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
left = [name for name in threads if "gloo" in name]
sys.exit(f"left to Python's end: {left}" if left else code)
"""


def start(arguments: list[str], ranks: int) -> tuple[list[int], str]:
    """Run `vshard train` in so many processes; give their exit codes and all they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _TRAIN, *arguments],
            env={**os.environ, **here, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=240)[1] for process in processes]
    return [process.returncode for process in processes], "".join(said)


def assert_close_but_for_noise(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Adam makes a step of the whole rate out of a gradient that is only noise: of one weight in a thousand, say."""
    assert ours.keys() == theirs.keys()
    apart = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in ours])
    assert apart.max() <= 3e-4 and (apart > 1e-5).float().mean() < 1e-3


def test_a_rank_whose_other_one_died_says_so() -> None:
    gloo = "[/x/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:1"
    for error in (RuntimeError(gloo), torch.distributed.DistBackendError("NCCL error")):
        with (
            alone_of_two(),
            pytest.raises(WorkerError, match="another of the 2 .* ended.*--resume"),
            join_ranks(-1),
        ):
            raise error
    for error in (RuntimeError("a bug"), WorkerError("a loader died: gloo/transport")):
        with alone_of_two(), pytest.raises(type(error), match=str(error)), join_ranks(-1):
            raise error


@contextmanager
def alone_of_two() -> Iterator[None]:
    with (
        patch.dict(os.environ, {"WORLD_SIZE": "2"}),
        patch.multiple(
            torch.distributed, init_process_group=DEFAULT, destroy_process_group=DEFAULT, get_rank=DEFAULT
        ),
    ):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), train=5, evaluation=3)


def test_two_ranks_equal_one_with_twice_the_accumulation(data: Path, tmp_path: Path) -> None:
    common = f"-i {data} --video --arch tiny --max-epoch 2 --eval-step 1 --num-samples 96"
    common += " --gpu -1 --num-workers 0 --learning-rate 1e-4 --loss temporal_l1"
    codes, said = start([*common.split(), "--model-dir", str(tmp_path / "two"), "--backward-step", "2"], 2)
    assert codes == [0, 0], said
    assert "2 processes" in said and said.count("epoch 1: loss") == 1, "the first one speaks for both"
    codes, alone = start([*common.split(), "--model-dir", str(tmp_path / "one"), "--backward-step", "4"], 1)
    assert codes == [0], alone
    two, one = (read_epochs(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert [epoch.epoch for epoch in two] == [epoch.epoch for epoch in one] == [1, 2]
    for ours, theirs in zip(two, one, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.eval_loss == pytest.approx(theirs.eval_loss, rel=1e-4)
    states = [load_checkpoint(tmp_path / name / f"{NAME}.checkpoint.pth") for name in ("two", "one")]
    assert_close_but_for_noise(states[0]["state_dict"], states[1]["state_dict"])
    assert states[0]["vshard"]["stream"]["epoch"] == states[1]["vshard"]["stream"]["epoch"] == 3
    history = [state["vshard"]["stream"]["history"] for state in states]
    for ours, theirs in zip(history[0].values(), history[1].values(), strict=True):
        assert (
            torch.allclose(ours, theirs, rtol=1e-3, equal_nan=True)
            if torch.is_tensor(ours)
            else ours == theirs
        )
    # And on with another number of processes.
    more = [*common.replace("--max-epoch 2", "--max-epoch 3").split(), "--resume", "--backward-step", "4"]
    codes, said = start([*more, "--model-dir", str(tmp_path / "two")], 1)
    assert codes == [0] and "going on with epoch 3" in said
