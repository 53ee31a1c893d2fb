"""What unpacking tells: how far it is, where to see and mend damage, and names that nearly fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import make_record
from splitting import pack_in
from store_servers import web_folder

from vshard.base.errors import DatasetError, ShardError
from vshard.base.pipes import Pipe
from vshard.base.report import Silent
from vshard.base.stores import Place
from vshard.shards.index import index_place
from vshard.shards.unpack import UnpackOptions, unpack


class Counting(Silent):
    """A report that keeps what was to be done, and what is done."""

    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.done: list[int] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.totals.append(total)

    def advance(self, done: int, figures: str = "") -> None:
        self.done.append(done)


@pytest.fixture(params=["none", "zst"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """Two shards, of three records and of two: city_0 to city_4."""
    records = [make_record(f"city_{number}", frames=2, seed=number) for number in range(5)]
    pack_in(records, tmp_path / "shards", "s", compress=request.param)
    return [p for p in sorted((tmp_path / "shards").iterdir()) if p.suffix in (".tar", ".zst")]


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1500])


@pytest.mark.parametrize("only", [None, "*", "city_1", "city_[02]"])
@pytest.mark.parametrize("indexed", [True, False])
def test_progress_ends_where_the_shards_end(
    shards: list[Path], tmp_path: Path, only: str | None, indexed: bool
) -> None:
    if not indexed:
        for shard in shards:
            index_place(shard).unlink()
    report = Counting()
    unpack(UnpackOptions(tuple(shards), tmp_path / "out", only, jobs=2), report)
    total = sum(shard.stat().st_size for shard in shards)
    assert report.totals == [total]
    assert report.done == sorted(report.done)
    assert report.done[-1] == total


def test_of_what_a_command_writes_no_end_is_known(shards: list[Path], tmp_path: Path) -> None:
    report = Counting()
    unpack(UnpackOptions((Pipe(f"cat {shards[0]}"), shards[1]), tmp_path / "out"), report)
    assert report.totals == [None]
    assert report.done[-1] > shards[1].stat().st_size


@pytest.mark.parametrize("indexed", [True, False])
def test_names_that_go_on_after_the_pattern_are_suggested(
    shards: list[Path], tmp_path: Path, indexed: bool
) -> None:
    if not indexed:
        for shard in shards:
            index_place(shard).unlink()

    def refusal(only: str) -> str:
        with pytest.raises(DatasetError) as error:
            unpack(UnpackOptions(tuple(shards), tmp_path / "out", only), Silent())
        return str(error.value)

    begun = "--only {0}: no record of these shards is named so; for all names that begin so write '{0}*'"
    assert refusal("city") == begun.format("city")
    assert refusal("c?ty") == begun.format("c?ty")
    assert refusal("town").endswith("named so; see them with: vshard ls")
    assert refusal("ity*").endswith("named so; see them with: vshard ls")


def test_damage_tells_how_to_see_and_mend_it(shards: list[Path], tmp_path: Path) -> None:
    def refusal(shard: Place | Pipe) -> str:
        with pytest.raises(ShardError) as error:
            unpack(UnpackOptions((shard,), tmp_path / "out"), Silent())
        return str(error.value)

    for shard in shards:
        cut(shard)
    spaced = shards[0].rename(shards[0].with_name(f"a {shards[0].name}"))
    for shard, named in ((shards[1], str(shards[1])), (spaced, f"'{spaced}'")):
        assert refusal(shard).startswith(f"{shard}: ")
        assert refusal(shard).endswith(
            f"; see what is wrong with: vshard verify {named}, mend it with: vshard verify --repair {named}"
        )
    piped = refusal(Pipe(f"cat '{spaced}'"))
    assert "vshard verify --allow-pipe 'pipe:cat " in piped
    assert "--repair" not in piped.rpartition(";")[2]
    with web_folder(tmp_path / "shards") as (place, _):
        shard = place / shards[1].name
        assert refusal(shard).endswith(f"see what is wrong with: vshard verify {shard}")
