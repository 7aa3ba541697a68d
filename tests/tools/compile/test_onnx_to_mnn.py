"""The page on ONNX graphs in MNN, done as it says; names, types and outputs that are not usual."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console

from backends.contract import read
from tests.support.paths import ROOT
from tests.whole.test_docs import blocks, run_doctest
from tools.compile.job import Request, compile_model
from tools.compile.report import show_result

PAGE = ROOT / "docs" / "onnx-to-mnn.md"
HEADERS = ROOT / "tests" / "support" / "headers"
INCLUDES = (
    "algorithm",
    "memory",
    "stdexcept",
    "string",
    "vector",
    "MNN/expr/Executor.hpp",
    "MNN/expr/Module.hpp",
    "MNN/expr/NeuralNetWorkOp.hpp",
)

pytestmark = pytest.mark.mnn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's commands were run."""
    place = tmp_path_factory.mktemp("page")
    source, _ = blocks(PAGE, "python")
    (place / "classifier.py").write_text(source)
    subprocess.run([sys.executable, "classifier.py"], cwd=place, check=True, timeout=120)
    compile_model(Request(str(place / "model.onnx"), place / "build" / "classifier", guard=True, target="3.6.1"))
    return place


def test_the_contract_is_as_the_page_shows(folder, monkeypatch):
    monkeypatch.chdir(folder)
    run_doctest(blocks(PAGE, "python")[1], PAGE.name)
    contract = read(folder / "build" / "classifier")
    assert contract.model.parameters == 64 * 128 + 128 + 128 * 10 + 10
    assert [item.release for item in contract.verified] == ["3.6.1"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_application_compiles(folder):
    (block,) = blocks(PAGE, "cpp")
    lines = [
        *(f"#include <{name}>" for name in INCLUDES),
        '#include "lading_guard.h"',
        "using namespace MNN::Express;",
        block,
    ]
    (folder / "main.cpp").write_text("\n".join([*lines, "int main() { return 0; }", ""]))
    command = [
        "g++",
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{HEADERS}",
        "-Ibuild/classifier",
    ]
    done = subprocess.run([*command, "main.cpp"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_same_model_for_onnxruntime(folder):
    request = Request(str(folder / "model.onnx"), folder / "onnx", "onnx-fp32", to="onnx", opset=17, external_data=True)
    compile_model(request)
    model = onnx.load(folder / "onnx" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 17 and (folder / "onnx" / "model.onnx.data").is_file()


def test_weights_may_lie_beside_the_model(folder):
    compile_model(Request(str(folder / "model.onnx"), folder / "beside", external_data=True, target="3.6.1"))
    assert (folder / "beside" / "model.mnn.weight").stat().st_size >= 4 * (64 * 128 + 128 * 10)


def test_names_scalars_and_returned_inputs(tmp_path, capsys):
    """Several inputs and outputs with names that are no identifiers, one of no axes, one that is returned as it is."""
    nodes = [
        helper.make_node("Mul", ["x:0", "Größe"], ["a/b"]),
        helper.make_node("Add", ["a/b", "in put"], ["out 1"]),
        helper.make_node("Tanh", ["a/b"], ["完成"]),
    ]

    def ports(**shapes):
        return [helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape) for name, shape in shapes.items()]

    row = ["n", 3]
    inputs = ports(**{"x:0": row, "Größe": [], "in put": row})
    graph = helper.make_graph(nodes, "odd", inputs, ports(**{"out 1": row, "完成": row, "x:0": row}))
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "odd.onnx"
    )
    result = compile_model(Request(str(tmp_path / "odd.onnx"), tmp_path / "out", target="3.6.1"))
    shown = [f"{item.name} {item.dtype}{item.shapes[0]}" for item in result.contract.signature.inputs]
    assert shown == ["x:0 f32[n, 3]", "Größe f32[]", "in put f32[n, 3]"]
    assert [item.name for item in result.contract.signature.outputs] == ["out 1", "完成", "x:0"]
    show_result(Console(width=80), result)
    text = capsys.readouterr().out
    assert re.search(r"outputs +out 1 f32\[n, 3\]", text) and "passes   mnn-module" in text


def test_what_is_refused_is_told_once():
    """Many nodes of one operator that lack the same are one message."""
    from backends.mnn.modules.legalize import unsettled
    from frontends.onnx.load import load

    nodes = [helper.make_node("Shrink", [f"v{i}"], [f"v{i + 1}"]) for i in range(5)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("v0", "v5")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 22)]
    )
    (found,) = unsettled(load(model), ["3.6.1"])
    assert found.code == "P378" and found.where.startswith("v1, and 4 more")
