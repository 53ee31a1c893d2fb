"""The entry point: finds commands without importing them, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by the user.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import threading
from contextlib import suppress

import click

from vshard import __version__

from .console import plain
from .table import COMMANDS

STOPPED = 130
# Set this variable to see the traceback of an error that is a fault of vshard's.
DEBUG = "VSHARD_DEBUG"


class LazyGroup(click.Group):
    """A group whose commands are imported when they run: `vshard --help` needs neither torch nor NumPy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name}", __package__)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their one-line help, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="vshard")
def vshard() -> None:
    """Make training data for video inpainting out of ordinary videos, and train on it.

    \b
    Example:
      vshard generate city.mp4 -o data/city/train --prefix city --model-type Parallax
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    # Torch's threads spin while they wait for each other; beside loader processes or any other work that makes
    # steps on the CPU several times slower (benchmarks/LOG.md). It has to be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vshard.base.ahead import THREAD_NAME

    code = run(sys.argv[1:] if arguments is None else arguments)
    if any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()):
        # Stopped twice: a stage is still in the middle of its work, and Python may not end under it.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line and give its exit code."""
    from vshard.base.errors import VshardError
    from vshard.base.stopping import StoppedError

    try:
        vshard.main(arguments, prog_name="vshard", standalone_mode=False)
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)
        _print(told.getvalue().rstrip("\n").split("\n"))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("stopped; run the same command again")
        return STOPPED
    except StoppedError as error:
        _complain(str(error))
        return STOPPED
    except VshardError as error:
        _complain(f"error: {error}")
        return 1
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # Somebody closed our output (`vshard … | head`): nothing more to say, and no noise at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        _complain(f"error: {error.filename or 'the output'}: {error.strerror or error}")
        return 1
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        kind = type(error).__name__
        _complain(f"error: unexpected {kind}: {str(error)[:300]}; please report it with what {DEBUG}=1 shows")
        return 1
    return 0


def _complain(line: str) -> None:
    _print(["vshard: " + " ".join(line.split("\n"))])


def _print(lines: list[str]) -> None:
    with suppress(OSError, ValueError):
        click.echo("\n".join(map(plain, lines)), err=True)


if __name__ == "__main__":
    main()
