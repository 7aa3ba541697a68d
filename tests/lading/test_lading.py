"""The package ``lading``: a light import, the stable interface, and packages of others that have our names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import backends.contract
import ir.base.diag
import lading
import tools.embed
from backends.version import compiler_version
from lading.rooms import ROOMS
from tests.support.paths import ROOT
from tests.support.suite.code_record import expect_code


def python(*arguments: str, cwd: Path = ROOT, path: Path | str = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with a folder to import from."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, "PYTHONPATH": str(path)}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a program has imported at its end."""
    result = python("-c", f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.fixture
def hiding(tmp_path) -> Path:
    """A folder with a package ``tools`` of somebody else."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("")
    return tmp_path


def test_importing_it_loads_nothing():
    assert loaded_by("import lading") & {*ROOMS, "numpy", "onnx", "click", "rich", "importlib.metadata"} == set()


def test_the_interface_loads_no_runtime_and_no_framework():
    names = ", ".join(lading.__all__)
    found = loaded_by(f"from lading import {names}")
    assert set(ROOMS) - {"frontends"} <= found
    assert found & {"onnxruntime", "MNN", "torch", "transformers", "tokenizers"} == set()


def test_the_names_are_those_of_the_interface_and_of_the_contract():
    for name in tools.embed.__all__:
        assert getattr(lading, name) is getattr(tools.embed, name)
    assert lading.LadingError is ir.base.diag.LadingError
    assert lading.read_contract is backends.contract.read
    assert lading.check_feed is backends.contract.check_feed
    assert lading.__version__ == compiler_version()
    assert {*lading.__all__, "__version__"} == set(dir(lading))
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        lading.rum  # noqa: B018


def test_a_package_of_our_name_is_told_in_one_sentence(hiding):
    result = python("-c", "import lading; lading.run", cwd=hiding)
    assert result.returncode == 1
    assert "ImportError: error[U996]: another 'tools' hides the package" in result.stderr
    assert f"at {hiding / 'tools'}" in result.stderr
    assert python("-P", "-c", "import lading; lading.run", cwd=hiding).returncode == 0


def test_a_command_works_beside_a_package_of_our_name(hiding):
    result = python("-m", "lading", "explain", "F503", cwd=hiding)
    assert result.returncode == 0 and result.stdout.startswith("F503: "), result.stderr


def test_a_command_says_that_another_package_was_loaded_before(hiding):
    code = "import tools, runpy; runpy.run_module('lading', run_name='__main__')"
    result = python("-c", code, cwd=hiding)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    expect_code(result.stderr, "U996")


def test_a_damaged_installation_is_told(tmp_path):
    shutil.copytree(ROOT / "lading", tmp_path / "lading")
    result = python("-P", "-m", "lading", "--help", cwd=tmp_path, path=tmp_path)
    other = f"another {ROOMS[0]!r} hides" in result.stderr  # where the tree is installed as well
    assert result.returncode == 1 and (other or "the installation is not complete" in result.stderr)
    expect_code(result.stderr, "U996")


# ---- what is installed ----


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_data_file_is_installed():
    """Files that are no modules, nor what one is built from, are named by the patterns of package-data."""
    patterns = project()["tool"]["setuptools"]["package-data"]["*"]
    left = []
    for top in (*ROOMS, "lading"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file() and path.suffix not in (".py", ".pyc", ".c", ".so"):
                inside = (
                    path.name if path.parent.joinpath("__init__.py").exists() else f"{path.parent.name}/{path.name}"
                )
                if not any(fnmatch(inside, pattern) for pattern in patterns):
                    left.append(str(path.relative_to(ROOT)))
    assert left == []


def test_every_package_is_installed():
    included = project()["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in included} == {*ROOMS, "lading"}
    bare = [
        str(folder.relative_to(ROOT))
        for top in ROOMS
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}
        if not (folder / "__init__.py").exists()
    ]
    assert bare == []


def test_every_dependency_has_a_lowest_version():
    """`.ci/floors.py` makes constraints of them, with which a part of the tests is run."""
    result = python(str(ROOT / ".ci" / "floors.py"))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.split()
    assert len(lines) == len(project()["project"]["dependencies"])
    assert all(re.fullmatch(r"[\w-]+==\d[\w.]*", line) for line in lines)
