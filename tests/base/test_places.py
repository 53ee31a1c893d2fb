"""URLs and paths, before anything is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from store_folders import one_line

from vshard.base.errors import OptionError
from vshard.base.stores import Place, Remote, parse_place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a/b.tar", Path("a/b.tar")),
        ("s3:b", Path("s3:b")),
        ("a::b", Path("a::b")),
        ("./pipe:x", Path("pipe:x")),
        ("C:\\clips\\a.mp4", Path("C:\\clips\\a.mp4")),
        ("file:///x/a%20b", Path("/x/a b")),
        ("file://localhost/x", Path("/x")),
        ("s3://b/k/", Remote("s3://b/k")),
        ("S3://b/K", Remote("s3://b/K")),
        ("gs://b", Remote("gs://b")),
        ("gcs://b/k", Remote("gcs://b/k")),
        ("s3://b/a::b?c", Remote("s3://b/a::b?c")),
        ("http://h:1/x/", Remote("http://h:1/x")),
        ("https://h/x/?X-Amz-Signature=a/b", Remote("https://h/x?X-Amz-Signature=a/b")),
    ],
)
def test_a_url_is_told_from_a_path(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty path; write . for this folder"),
        ("pipe:cat x", "--allow-pipe"),
        ("ftp://h/x", "s3://"),
        ("zip://a.zip::s3://b/x", "s3://"),
        ("simplecache::s3://b/x", "chained"),
        ("s3://", "no bucket"),
        ("gs:///x", "no bucket"),
        ("http://?x", "no server"),
        ("file://other/x", "another machine"),
    ],
)
def test_other_schemes_are_refused(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=said) as error:
        parse_place(text)
    one_line(error)


def test_names_are_taken_apart_and_put_together() -> None:
    place = Remote("s3://b/x/a ?%.tar")
    assert (place.name, place.parent, place.parent / place.name) == ("a ?%.tar", Remote("s3://b/x"), place)
    assert place.with_name("c") == Remote("s3://b/x/c")
    assert Remote("gs://b").parent == Remote("gs://b") and Remote("gs://b").name == "b"
    page = Remote("https://h/x") / "a ?%.tar"
    assert page.url == "https://h/x/a%20%3F%25.tar"
    assert (page.name, page.parent) == ("a ?%.tar", Remote("https://h/x"))


def test_a_signature_is_kept_and_not_shown() -> None:
    place = Remote("https://me:PASSWORD@h/x/a.tar?sig=SECRET/%2F")
    for shown in (place, place.parent, place / "b", place.with_name("a.json")):
        assert "SECRET" not in f"{shown} {shown!r}" and "PASSWORD" not in f"{shown} {shown!r}"
        assert shown.url.endswith("?sig=SECRET/%2F") and "me:PASSWORD@h" in shown.url
    assert place.name == "a.tar" and str(place) == "https://h/x/a.tar"
    assert place.with_name("a.json").url == "https://me:PASSWORD@h/x/a.json?sig=SECRET/%2F"


def test_importing_loads_no_store() -> None:
    code = "import sys, vshard.base.stores; print(*{'fsspec', 'aiohttp', 's3fs', 'gcsfs'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b""
