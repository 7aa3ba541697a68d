"""Command lines that pages show are those that the commands take, and what they print is what is shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.pages.command_lines import Checker, Line, commands_of, lines_of
from tests.support.pages.quoted import differences
from tests.support.paths import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "examples/*/README.md")
    for path in ROOT.glob(pattern)
)

OF_THE_PLUGIN = ["docs/plugins.md", "examples/plugin/README.md"]
"""Pages whose commands need the example plugin."""

pytestmark = pytest.mark.mnn


# ---- every line of every page ----


def problems_of(name: str) -> list[str]:
    """What is wrong with the command lines of a page, in a folder with the files that it shows."""
    page = (ROOT / name).read_text()
    files = re.findall(r"^<!-- file: (\S+) -->\n```\w*\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for file, text in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text)
    checker = Checker({file for file, _ in files})
    return [problem for line in lines_of(page) for problem in checker.problems(line)]


@pytest.mark.parametrize("name", sorted(set(PAGES) - {*OF_THE_PLUGIN}))
def test_command_lines_of_a_page_are_understood(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert problems_of(name) == []


@pytest.mark.parametrize("name", OF_THE_PLUGIN)
def test_command_lines_of_pages_on_the_example_plugin_are_understood_with_it(name, tmp_path):
    source = ROOT / "examples" / "plugin"
    groups = tomllib.loads((source / "pyproject.toml").read_text())["project"]["entry-points"]
    info = tmp_path / "lading_example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lading-example\nVersion: 1.0\n")
    lines = [
        line for group, rows in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in rows.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    code = f"from tests.whole.test_command_lines import problems_of; print(problems_of({name!r}))"
    path = os.pathsep.join(map(str, (tmp_path, source, ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_pages_show_command_lines():
    shown = {name: len(lines_of((ROOT / name).read_text())) for name in PAGES}
    assert shown["README.md"] > 15 and shown["benchmarks/README.md"] > 8 and shown["docs/run.md"] > 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lading compile MODEL --max-size 300", "is not a size"),
        ("lading compile MODEL --budget 4.5bits", "4.5bits"),
        ("lading compile MODEL --passes 'default{bit=5}'", "bit"),
        ("lading compile MODEL --target 9.9.9", "9.9.9"),
        ("lading compile MODEL --verify some", "some"),
        ("lading compile MODEL --text missing.txt", "there is no missing.txt"),
        ("lading compille MODEL", "no command compille"),
        ("pip install . && python -m tools.compile --pass default", "--pass"),
        ("lading run build/qwen --release 3.4.9", "3.4.9"),
        ("lading repair MODEL", "--out"),
        ("lading explain Z999", "Z999"),
        ("lading ladder --rungs fp32,int9", "int9"),
        ("lading reduce FILE --command 'lading opt {} --passes cs'", "cs"),
        ("lading cache --clear moment", "moment"),
        ("python -m benchmarks.rewriter", "no module"),
        ("python -m benchmarks.calibrated OUT --calibration TEXT --budgets 4.5", "--budgets"),
        (
            "python -m benchmarks.quality MODEL --mnn-checkout MNN --torch-python python "
            "--lading 'mixed=mixed --max-size {weight[int4-head8]}'",
            "is not a size",
        ),
        ("lading compile MODEL -o 'out", "closing quotation"),
        ("leding compile MODEL", "no program leding"),
    ],
)
def test_mistakes_of_a_line_are_found(text, problem):
    (found,) = Checker().problems(Line(text))
    assert problem.lower() in found.lower()


def test_a_mention_may_leave_out_what_a_line_may_not():
    page = "`lading repair` and `lading repair --targt 3.4.0` and `lading compile MODEL\n--max-kl 0.02`\n"
    (found,) = (problem for line in lines_of(page) for problem in Checker().problems(line))
    assert "--targt" in found


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("--lading 'mixed=mixed --max-size {weight[int4-head8]}'", "is not a size"),
        ("--max-size 300", "is not a size"),
        ("--uniform 2-9", "2-9"),
        ("--nothing here", "no command has this option"),
    ],
)
def test_an_option_with_a_value_is_one_of_some_command(option, problem):
    (line,) = lines_of(f"Words, `{option}`, and more.")
    (found,) = Checker().problems(line)
    assert problem in found
    assert Checker().problems(lines_of("With `--lading 'mixed=mixed --max-size {weight[int4-head8]}B'`.")[0]) == []


def test_shell_lines_are_taken_apart():
    text = "lading run A --file q.jsonl --json > answers.json && ! grep -q 'a;b' x | head -3"
    assert list(commands_of(text)) == [
        (["lading", "run", "A", "--file", "q.jsonl", "--json"], ["answers.json"]),
        (["grep", "-q", "a;b", "x"], []),
        (["head", "-3"], []),
    ]


# ---- what is printed ----


def consoles(name: str) -> list[tuple[str, str]]:
    """Commands behind a `$` on a page, and the output shown below each."""
    page = (ROOT / name).read_text()
    found = []
    for block in re.findall(r"^```(?:console|text)\n(\$ .*?)^```$", page, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append((command, shown))
    return found


OF_A_FOLDER = ("docs/tools.md", "docs/onnx-models.md", "docs/zh/onnx-models.md")
"""Pages whose commands are run one after the other, in a folder of their own, by test_manual_tools.py."""

# What two pages show is run once.
SHOWN = [
    pytest.param(*block, id=f"{name}: {block[0]}")
    for block, name in {
        block: name for name in reversed(PAGES) if name not in OF_A_FOLDER for block in consoles(name)
    }.items()
    if "MODEL" not in block[0]
]


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_commands_print_what_a_page_shows(command, shown, tmp_path):
    for part in ("examples", "tests"):
        (tmp_path / part).symlink_to(ROOT / part)
    program = f"{shlex.quote(sys.executable)} -m"
    line = re.sub(
        r"^python -m|^lading", lambda found: program + (" tools.main" if found[0] == "lading" else ""), command
    )
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert differences(shown, done.stdout) == [], done.stderr


def test_outputs_are_shown():
    shown = [command.split() for name in PAGES for command, _ in consoles(name)]
    assert {words[2 if words[0] == "python" else 1] for words in shown} >= {"tools.compile", "doctor", "tools.repair"}


def test_differences_of_outputs_are_found():
    shown = "time  1.13 s (read 0.06 s)\nmax 1.3e-05, 92.5%, 28 weights\n"
    assert differences(shown, "time 10.2 s (read\n 0.90 s)\nmax 1.5e-05, 92.4%, 28 weights") == []
    for other in (
        shown.replace("28", "27"),
        shown.replace("e-05", "e-04"),
        shown.replace("max", "most"),
        shown + "more",
    ):
        assert len(differences(shown, other)) == 1
