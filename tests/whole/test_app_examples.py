"""The application examples: the C++ compiles, and what the page quotes of the files is in them."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.support.paths import EXAMPLE, ROOT
from tests.support.runs import compiled

APP = ROOT / "examples" / "app"
PAGE = ROOT / "docs" / "apps.md"
HEADERS = ROOT / "tests" / "support" / "headers"

pytestmark = pytest.mark.mnn


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["chat.hpp", "feed.hpp"])
def test_the_example_compiles(name, tmp_path):
    """Against the declarations of MNN that it uses, and the guard of the example model."""
    folder = compiled(EXAMPLE, tmp_path / "out", "int8", guard=True)
    (tmp_path / "main.cpp").write_text(f'#include "{APP / name}"\nint main() {{ return 0; }}\n')
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{HEADERS}", f"-I{folder}"]
    done = subprocess.run([*command, "main.cpp"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_what_the_page_quotes_stands_in_the_files():
    quoted = re.findall(r"```(?:cpp|kotlin|objc)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    sources = [" ".join(path.read_text().split()) for path in APP.iterdir()]
    assert len(quoted) >= 3
    assert [block for block in quoted if not any(" ".join(block.split()) in source for source in sources)] == []


def test_the_page_names_every_file():
    page = PAGE.read_text()
    assert [path.name for path in APP.iterdir() if f"`{path.name}`" not in page and f"/{path.name})" not in page] == []
