"""Where a file is: a local path, or a URL in a store. Only names here; nothing is asked or opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from .errors import OptionError

WEB_SCHEMES = ("http", "https")
SCHEMES = ("s3", "gs", "gcs", *WEB_SCHEMES)
_ALLOWED = "use a local path, s3://, gs://, gcs://, http:// or https://"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@dataclass(frozen=True, order=True, repr=False)
class Remote:
    """A file or folder in a store, named by its URL (no trailing slash).

    ``url`` is what the store is asked for. ``str()`` and ``repr()`` are for people: they leave out a web address's
    query and user name, which may hold a signature or a password. All that is derived keeps both.
    """

    url: str

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def is_web(self) -> bool:
        return self.scheme in WEB_SCHEMES

    @property
    def halves(self) -> tuple[str, str]:
        """The URL before its query, and the query with its "?" (or nothing)."""
        # Only a web address has a query; in an object's key "?" is a letter like any other.
        base, mark, query = self.url.partition("?") if self.is_web else (self.url, "", "")
        return base, mark + query

    @property
    def name(self) -> str:
        """The last component without a query, decoded where the URL is a web address."""
        last = self.halves[0].rpartition("/")[2]
        return unquote(last) if self.is_web else last

    @property
    def parent(self) -> Remote:
        """The folder this is in; a bucket or a web server is its own parent."""
        base, query = self.halves
        scheme, _, rest = base.partition("://")
        return Remote(f"{scheme}://{rest.rpartition('/')[0] or rest}{query}")

    def __truediv__(self, name: str) -> Remote:
        base, query = self.halves
        return Remote(f"{base}/{quote(name) if self.is_web else name}{query}")

    def with_name(self, name: str) -> Remote:
        return self.parent / name

    def __str__(self) -> str:
        return re.sub(r"//[^/@]*@", "//", self.halves[0]) if self.is_web else self.url

    def __repr__(self) -> str:
        return f"Remote({str(self)!r})"


Place = Path | Remote


@dataclass(frozen=True)
class Entry:
    """One thing in a folder.

    ``stamp`` changes when the content may have changed: the time of the last change in nanoseconds, an ETag, a
    generation; it is empty where a store tells none. A folder has ``size_bytes`` 0.
    """

    name: str
    is_folder: bool
    size_bytes: int
    stamp: str


def parse_place(text: str) -> Place:
    """Tell a URL from a local path.

    Raises:
        OptionError: nothing is named, the scheme is not one of ours, or the URL names no bucket or server.
    """
    if not text:
        raise OptionError("empty path; write . for this folder")
    if text.startswith("pipe:"):
        raise OptionError(
            "pipe: runs a command, which only the commands with --allow-pipe take; name a file, or write ./pipe:…"
        )
    found = _SCHEME.fullmatch(text)
    if found is None:
        if "::" in text.partition("://")[0] and "://" in text:
            raise OptionError(f"{text.partition('://')[0]}://: chained URLs are not taken; {_ALLOWED}")
        return Path(text)
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        if urlsplit(text).netloc not in ("", "localhost"):
            raise OptionError(f"{text}: names another machine; write file:///path or the path alone")
        return Path(url2pathname(rest.removeprefix("localhost")))
    if scheme not in SCHEMES:
        raise OptionError(f"{found[1]}://: not a scheme that is read here; {_ALLOWED}")
    base, mark, query = rest.partition("?") if scheme in WEB_SCHEMES else (rest, "", "")
    base = base.rstrip("/")
    if not base or base.startswith("/"):
        what = "server" if scheme in WEB_SCHEMES else "bucket"
        raise OptionError(f"{scheme}://: names no {what}; write {scheme}://{what.upper()}/PATH")
    return Remote(f"{scheme}://{base}{mark}{query}")
