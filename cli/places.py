"""Arguments that name files, folders and shards, here or in a store."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vshard.base.pipes import Pipe
    from vshard.base.stores import Place


def place(text: str) -> Place:
    """Read a local path or a URL: the type of an option."""
    from vshard.base.stores import parse_place

    return parse_place(text)


def local_path(text: str | Path) -> Path:
    """Read a local path, refusing a URL: the type of an option, whose default may be a path already."""
    from vshard.base.errors import OptionError

    found = place(str(text))
    if not isinstance(found, Path):
        raise OptionError(f"{found}: this has to be on this machine; give a local path")
    return found


def jobs_option(what: str) -> Callable[..., Any]:
    """Give a command the option --jobs; without it, one a processor."""
    return click.option(
        "--jobs",
        type=click.IntRange(1, 256),
        default=lambda: os.cpu_count() or 1,
        show_default="one a processor",
        help=f"{what} at a time.",
    )


allow_pipe_option = click.option(
    "--allow-pipe",
    is_flag=True,
    help="Take pipe:COMMAND as a shard too: runs the command and reads its output.",
)


def shard_arguments(texts: tuple[str, ...], *, allow_pipe: bool) -> tuple[Place | Pipe, ...]:
    """Give the shards that arguments name: files, folders of shards, patterns, URLs, pipes where allowed."""
    from vshard.base.pipes import parse_pipe
    from vshard.shards.sources import find_shards

    found: list[Place | Pipe] = []
    for text in texts:
        pipe = parse_pipe(text, allowed=allow_pipe)
        found += [pipe] if pipe is not None else find_shards([text])
    return tuple(dict.fromkeys(found))
