"""The pages on tools, language models in ONNX, plugins and analyses: what they show is what happens."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ir.analysis.dataflow
import ir.analysis.liveness
import ir.analysis.repeats
import ir.graph.view
from tests.support.pages.quoted import differences
from tests.support.paths import ROOT

DOCS = ROOT / "docs"


def blocks(page: str, mark: str, language: str) -> list[tuple[str, str]]:
    """Marked blocks of a page: the rest of the mark, and the text."""
    pattern = rf"^<!-- {mark}(?:: )?([^\n]*?) ?-->\n```{language}\n(.*?)^```$"
    return re.findall(pattern, (DOCS / page).read_text(), flags=re.DOTALL | re.MULTILINE)


# ---- tools ----


def with_commands(folder: Path, page: str) -> Path:
    """A folder with the files of a page and the commands `lading` and `python`."""
    for name, text in [*blocks(page, "file", "lading"), *blocks(page, "file", "python")]:
        (folder / name).write_text(text)
    (folder / "bin").mkdir()
    for name, words in (("lading", "-m tools.main"), ("python", "")):
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        command.chmod(0o755)
    return folder


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of a page in a folder of `with_commands`, as in a terminal of 80 columns."""
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    return subprocess.run(
        command, shell=True, cwd=folder, env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the file of the page and a command `lading`."""
    made = with_commands(tmp_path_factory.mktemp("tools"), "tools.md")
    opt(["model.lading", "--passes", "canonicalize", "-o", "after.lading"], made)
    return made


def opt(arguments: list[str], folder: Path) -> None:
    """Run the opt command as the page does first of all."""
    subprocess.run(
        [sys.executable, "-m", "tools.opt", *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120, check=True,
    )  # fmt: skip


CONSOLES = [text for _, text in blocks("tools.md", "run", "console")]


@pytest.mark.parametrize("console", CONSOLES, ids=[console.split()[2] for console in CONSOLES])
def test_commands_print_what_the_page_shows(console, folder):
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, _, wanted = part.partition("\n")
        result = shell(command, folder)
        assert result.stdout == wanted, result.stderr


def test_there_is_a_console_for_each_tool():
    tools = [tool for console in CONSOLES for tool in re.findall(r"^\$ lading (\w+)", console, flags=re.MULTILINE)]
    tools = [tool for tool in tools if tool != "compile"]  # which only makes what others look at
    assert list(dict.fromkeys(tools)) == ["opt", "diff", "reduce", "inspect", "fuzz"]


# ---- language models in ONNX ----


@pytest.mark.mnn
def test_the_file_that_crashes_is_made_told_of_and_mended_as_the_page_shows(tmp_path):
    made = with_commands(tmp_path, "onnx-models.md")
    (made / "examples").symlink_to(ROOT / "examples")
    for _, text in blocks("onnx-models.md", "run", "sh"):
        for line in text.splitlines():
            done = shell(line, made)
            assert done.returncode == 0, done.stderr
    consoles = [text for _, text in blocks("onnx-models.md", "run", "console")]
    assert len(consoles) == 3
    for console in consoles:
        command, _, shown = console.removeprefix("$ ").partition("\n")
        done = shell(command, made)
        assert differences(shown, done.stdout) == [], done.stderr


# ---- plugins ----


def test_parts_of_the_example_plugin_are_its_own():
    parts = blocks("plugins.md", "part of", "python")
    assert len(parts) == 7
    for name, text in parts:
        assert text in (ROOT / "examples" / "plugin" / name).read_text(), name


def test_the_entry_point_is_that_of_the_example():
    (text,) = re.findall(r"^```toml\n(.*?)^```$", (DOCS / "plugins.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert text in (ROOT / "examples" / "plugin" / "pyproject.toml").read_text()


# ---- analyses ----


def test_examples_of_the_analyses_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = "".join(text for _, text in blocks("analyses.md", "run", "python"))
    test = doctest.DocTestParser().get_doctest(text, {}, "analyses.md", "analyses.md", 0)
    output: list[str] = []
    result = doctest.DocTestRunner().run(test, out=output.append)
    assert result.attempted > 40 and not result.failed, "".join(output)


def users_of(name: str) -> set[str]:
    """Passes, tools and analyses whose source calls a function."""
    found = set()
    for package in ("ir", "passes", "tools"):
        for path in (ROOT / package).rglob("*.py"):
            if re.search(rf"(?<!def )(?<!class )\b{name}\(", path.read_text()):
                found.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


ANALYSES = [
    name
    for module in (ir.analysis.dataflow, ir.analysis.liveness, ir.analysis.repeats)
    for name in module.__all__
    if callable(getattr(module, name)) and name[0].islower() and not name.startswith("immediate_")
]


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_is_on_the_page_and_used_by_a_pass_or_tool(name):
    page = (DOCS / "analyses.md").read_text()
    users = users_of(name)
    helper = name in ("entries", "exits")
    assert helper or f"`{name}`" in page
    direct = {user for user in users if user.startswith(("passes.", "tools."))}
    # What only other analyses call is used by the tools that call those.
    assert (
        direct or "ir.analysis.repeats" in users or "ir.analysis.dataflow" in users or "ir.analysis.liveness" in users
    )


def test_dominators_and_cuts_are_used_outside_of_the_library():
    for name in ("post_dominators", "dominance_frontiers", "single_value_cuts", "minimum_cut", "frontier", "regions"):
        assert any(user.startswith("tools.") for user in users_of(name)), name
