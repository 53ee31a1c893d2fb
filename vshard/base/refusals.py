"""What the packages that reach stores raise: whether it may pass, and one line about it."""

from __future__ import annotations

import re

from .errors import StoreError
from .places import Remote

_NAME_SHARDS = "name the shards one by one, or by a pattern with braces (train-{000000..000012}.tar)"


class AbsentError(StoreError):
    """Nothing is at a place."""


class CutError(Exception):
    """An answer ended before the bytes it announced."""


def status_of(error: BaseException) -> int | None:
    """Give the HTTP status in an exception of botocore (wrapped by s3fs), aiohttp or gcsfs."""
    answer = getattr(error.__cause__, "response", None)
    if isinstance(answer, dict):
        return int(answer["ResponseMetadata"]["HTTPStatusCode"])
    # aiohttp's name first: it warns of the other one.
    status = str(error.status if hasattr(error, "status") else getattr(error, "code", None))
    if str(error).startswith("Forbidden"):  # gcsfs gives no better sign
        return 403
    return int(status) if status.isdecimal() else None


def may_pass(error: Exception, passing: tuple[type[BaseException], ...]) -> bool:
    """Tell whether trying again may help: a busy or failing server, a cut connection, one of ``passing``."""
    status = status_of(error)
    if status is None or isinstance(error, TimeoutError):
        return isinstance(error, (CutError, *passing))
    return status in (408, 429) or status >= 500


def told(place: Remote, error: Exception, passing: tuple[type[BaseException], ...], tries: int) -> StoreError:
    """Say in one line what was raised after so many tries; ``passing`` means that the store was not reached."""
    if isinstance(error, StoreError):
        return error
    status, kind = status_of(error), type(error).__name__
    # A web address's query may hold a signature.
    said = str(getattr(error, "message", "") or getattr(error, "strerror", "") or error) or kind
    text = re.sub(r"\?\S*", "", said.splitlines()[0])
    often = f" ({tries} tries)" if tries > 1 else ""
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        what = "bucket" if "bucket does not exist" in text else "object"
        return AbsentError(f"{place}: no such {what}; check the name")
    if isinstance(error, PermissionError) or status in (401, 403):
        what = f"access denied ({status or 403})"
        advice = (
            f"check the address; if it is a folder, the server lists no folder there: {_NAME_SHARDS}"
            if place.is_web
            else "check the credentials and what they may do"
        )
        return StoreError(f"{place}: {what}; {advice}")
    if kind in ("NoCredentialsError", "PartialCredentialsError"):
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return StoreError(f"{place}: no credentials found; {advice}")
    if kind == "TooManyRedirects":
        return StoreError(f"{place}: the server redirects without end; check the address")
    if isinstance(error, CutError):
        return StoreError(f"{place}: {text}{often}; run the same command again")
    if status == 416:
        return changed(place)
    if isinstance(error, passing) and status is None:
        return StoreError(f"{place}: not reachable: {text}{often}; check the address and the network")
    if status is not None:
        return StoreError(
            f"{place}: the store answers {status}{often}: {text}; try again later, or another store"
        )
    return StoreError(f"{place}: {text}{often}")


def changed(place: Remote) -> StoreError:
    """Make the error for a file that is not the same any more."""
    return StoreError(f"{place}: changed while it was read; leave it alone and run the same command again")


def unlisted(place: Remote, found: str) -> StoreError:
    """Make the error for a folder of a web server that does not say what is in it."""
    return StoreError(f"{place}: the server lists no folder there, it {found}; {_NAME_SHARDS}")


def no_ranges(place: Remote) -> StoreError:
    """Make the error for a web server that only sends whole files."""
    return StoreError(
        f"{place}: the server sends files only as a whole (it ignores Range); download the file first"
    )


def too_long(place: Remote, length: int) -> StoreError:
    """Make the error for an answer that goes on after its end."""
    return StoreError(f"{place}: the store sent more than the {length} bytes asked for; use another store")


def compressed(place: Remote, encoding: str) -> StoreError:
    """Make the error for a web server that packs what it sends, though asked not to."""
    return StoreError(
        f"{place}: the server sends it compressed (Content-Encoding: {encoding[:20]}); download the file first"
    )
