"""A network that trains in seconds, and records for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import write_dataset
from runs import TINY

from vshard.train.network import ARCHITECTURES


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), train=3, evaluation=2)
