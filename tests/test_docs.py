"""Every command has help, an example that parses, and a place in the README."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from vshard_cli.main import vshard
from vshard_cli.table import COMMANDS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def command_named(name: str) -> click.Command:
    command = vshard.get_command(click.Context(vshard), name)
    assert command is not None
    return command


def example_lines(text: str) -> list[str]:
    """The `vshard …` lines of a text, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return re.findall(r"^\s*(vshard [a-z].*)$", joined, flags=re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_and_a_place_in_the_readme(name: str) -> None:
    command = command_named(name)
    assert command.help is not None
    assert command.help.splitlines()[0] == COMMANDS[name], "the table and the docstring say the same"
    assert re.search(rf"^\s*vshard {name}\b", README, flags=re.MULTILINE)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name}: {parameter.name} has no help"


@pytest.mark.parametrize("name", COMMANDS)
def test_example_parses(name: str) -> None:
    command = command_named(name)
    examples = example_lines(command.help or "")
    assert examples, f"vshard {name} --help shows no example"
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["vshard", name]
        command.make_context(name, words[2:])


def test_a_command_of_defaults_alone_parses() -> None:
    made = command_named("demo").make_context("demo", [])
    assert made.params["output"] == Path("data/demo")


def test_readme_commands_parse() -> None:
    lines = example_lines(README)
    assert len(lines) >= len(COMMANDS)
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[1:2] == ["--help"]:
            continue
        command_named(words[1]).make_context(words[1], words[2:])


def test_readme_links_and_folders_exist() -> None:
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / target).exists(), target
