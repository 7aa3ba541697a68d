"""With MNN taken out, the compiler works: its generic rooms pass their tests, and ONNX graphs compile.

MNN is taken out twice: its row is disabled, and whatever imports it all the same gets an ImportError.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.contract import check_files, read
from tests.support.paths import ROOT

HOOK = '''
import sys

class Refused:
    """Whatever belongs to MNN is not there."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] in (["backends", "mnn"], ["frontends", "mnn"]) or name.split(".")[0] == "MNN":
            raise ImportError(f"{name} was taken out")
        return None

sys.meta_path.insert(0, Refused())
'''

ROOMS = {
    "ir": ("tests/ir/graph", "tests/ir/text", "tests/ir/verify", "tests/ir/onnx", "tests/ir/facts", "tests/ir/base"),
    "passes": ("tests/passes/rewrite", "tests/passes/precision", "tests/passes/canonicalize"),
    "ONNX": ("tests/backends/onnx", "tests/frontends/onnx/test_graphsurgeon.py"),
}
"""Tests that say whether a part of the compiler works, without those that take minutes."""


@pytest.fixture
def without_mnn(tmp_path):
    """Runs a module in a process that MNN was taken out of."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "taken_out.py").write_text(HOOK)
    (tmp_path / "hook" / "sitecustomize.py").write_text("import taken_out")
    path = os.pathsep.join([str(tmp_path / "hook"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "LADING_DISABLE": "mnn"}

    def run(*arguments: object, folder: Path = tmp_path, timeout: int = 900) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip

    return run


def test_it_is_really_out(without_mnn, tmp_path):
    (tmp_path / "look.py").write_text(
        "from ir.base.plugins import loaded\nprint([item.name for item in loaded()])\nimport backends.mnn.plugin"
    )
    result = without_mnn("look")
    assert result.stdout.strip() == "['onnx']" and "backends.mnn was taken out" in result.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_the_tests_of_generic_rooms_pass(room, without_mnn):
    quiet = ("-q", "-p", "no:cacheprovider", "-m", "not mnn", "--tb=line")
    result = without_mnn("pytest", *quiet, *ROOMS[room], folder=ROOT)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None and int(passed[1]) > 25 and "skipped" not in result.stdout


def test_an_onnx_graph_compiles_to_onnx(without_mnn, tmp_path):
    stored = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [stored])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    for arguments in (("--to", "onnx"), ()):
        result = without_mnn("tools.compile", "m.onnx", "-o", "out", "--force", *arguments)
        assert result.returncode == 0, result.stderr
    contract = read(tmp_path / "out")
    assert check_files(contract, tmp_path / "out") == [] and len(contract.verified) == 2


def test_what_is_out_is_not_offered(without_mnn):
    result = without_mnn("tools.compile", "--to", "mnn-llm", "--verify", "none", ROOT / "examples" / "tiny-qwen2.5")
    assert result.returncode == 1 and "there is no backend 'mnn-llm'" in result.stderr
    assert "mnn" not in without_mnn("tools.compile", "--list-passes").stdout
