from __future__ import annotations

import tarfile

from hypothesis import given
from hypothesis import strategies as st

from vshard.shards.tar import header_bytes

SIZES = st.one_of(st.integers(0, 8**11 - 1), st.sampled_from([0, 1, 8**11 - 1]))


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=120), SIZES)
def test_headers_are_those_of_the_standard_library(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    try:
        expected = info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError:  # too long for it
        return
    assert header_bytes(name, size) == expected
