"""The command ``lading``: sections of its help, suggestions, its version, and completion in shells."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from backends.version import compiler_version
from tests.support.paths import ROOT
from tools.main import MEANT, TOOLS, main


def lading(*words: str):
    return CliRunner().invoke(main, words)


def test_help_shows_every_command_once_in_its_section():
    lines = lading("--help").output.splitlines()
    for name, tool in TOOLS.items():
        (at,) = [number for number, line in enumerate(lines) if line.split()[:1] == [name]]
        heads = [line for line in lines[:at] if line.endswith(":") and not line.startswith(" ")]
        assert heads[-1] == f"{tool.section}:"
        assert tool.summary in lines[at]


def test_help_fits_a_narrow_terminal():
    assert max(map(len, lading("--help").output.splitlines())) <= 80
    assert all(len(tool.summary) <= 60 and tool.summary.endswith(".") for tool in TOOLS.values())


def test_help_imports_no_command():
    code = "import sys; from tools.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {tool.module for tool in TOOLS.values()} & set(result.stdout.split())


@pytest.mark.parametrize("name", TOOLS)
def test_every_command_is_there(name):
    command = main.get_command(click.Context(main), name)
    assert command is not None and command.help


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option):
    result = lading(option)
    assert (result.exit_code, result.output) == (0, f"lading {compiler_version()}\n")


@pytest.mark.parametrize(
    ("typed", "meant"), [("complie", "compile"), ("inspct", "inspect"), ("Doctor", "doctor"), *MEANT.items()]
)
def test_a_mistyped_command_is_answered_with_the_nearest(typed, meant):
    result = lading(typed, "x")
    assert result.exit_code == 2
    assert f"there is no command {typed!r}; did you mean {meant!r}?" in result.output


def test_a_command_that_is_like_no_other_is_told():
    assert "there is no command 'xyzzy'\n" in lading("xyzzy").output


def test_a_mistyped_option_is_answered_with_the_nearest():
    result = lading("compile", "--taget", "3.6.1")
    assert result.exit_code == 2 and "--target" in result.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_completion(shell):
    result = completion(f"{shell}_source")
    assert result.returncode == 0 and "_lading_completion" in result.stdout


def test_commands_and_options_are_completed():
    assert words(completion("bash_complete", "lading com", 1)) == ["compile"]
    assert words(completion("bash_complete", "lading compile --ver", 2)) == ["--verify", "--verify-each"]
    assert words(completion("bash_complete", "lading compile --verify ", 3)) == ["none", "quick", "full"]


def completion(instruction: str, line: str = "", at: int = 0) -> subprocess.CompletedProcess[str]:
    """What the installed command answers a shell."""
    start = "import sys; sys.argv = ['lading']; from lading.__main__ import main; main()"
    asked = {"_LADING_COMPLETE": instruction, "COMP_WORDS": line, "COMP_CWORD": str(at)}
    return subprocess.run(
        [sys.executable, "-c", start], cwd=ROOT, env={**os.environ, **asked}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def words(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.partition(",")[2] for line in result.stdout.splitlines()]
