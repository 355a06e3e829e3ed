"""The README's commands exist, with the options it gives them, and its results have a file."""

import re
import shlex

import pytest
import typer.main
from harness import ROOT

import cluster.__main__
import serve.__main__
import train.__main__

README = (ROOT / "README.md").read_text("utf-8").replace("\\\n", " ")
APPS = {"cluster": cluster.__main__.app, "serve": serve.__main__.app, "train": train.__main__.app}
COMMANDS = sorted(set(re.findall(r"python -m ((?:cluster|serve|train) [^`|\n]+)", README)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_one_of_ours(command: str) -> None:
    package, name, *arguments = shlex.split(command, comments=True)
    group = typer.main.get_group(APPS[package])
    known = group.commands[name]
    options = {option for parameter in known.params for option in parameter.opts}
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for argument in own:
        if argument.startswith("--"):
            assert argument.partition("=")[0] in options, command


def test_there_are_commands_of_every_stage() -> None:
    stages = {tuple(command.split()[:2]) for command in COMMANDS}
    wanted = {("train", "ingest"), ("train", "fit"), ("serve", "deploy"), ("serve", "predict")}
    assert wanted <= stages


def test_files_that_the_readme_names_are_there() -> None:
    named = re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(r"docs/\S+\.png", README)
    assert len(named) >= 4
    for path in named:
        assert (ROOT / path).is_file(), path
