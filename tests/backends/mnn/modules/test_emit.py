"""What the converter writes is looked at, whatever it says, and does not change from one time to the next."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from backends.mnn.modules.child import Converter
from backends.mnn.modules.emit import emit
from backends.mnn.modules.readback.check_net import check_net
from backends.mnn.read.net_file import read_net
from backends.mnn.run.native import json_to_mnn
from ir.base.child import ChildFailed
from ir.base.diag import LadingError
from tests.support.modules.models import legal, one_node

F32 = TensorProto.FLOAT


@pytest.fixture
def graph():
    return legal(one_node("Mul", [(F32, ["n", 4]), (F32, ["n", 4])], [(F32, ["n", 4])]))


def net(**changed):
    """The JSON form of a net that multiplies two tensors."""

    def port(name, number):
        main = {"dims": [-1, 4], "dtype": "DT_FLOAT", "dformat": "NCHW"}
        return {"type": "Input", "name": name, "outputIndexes": [number], "main_type": "Input", "main": main}

    product = {
        **{"type": "BinaryOp", "name": "y0", "inputIndexes": [0, 1], "outputIndexes": [2]},
        **{"main_type": "BinaryOp", "main": {"opType": "MUL", "T": "DT_FLOAT"}},
    }
    ops = [port("x0", 0), port("x1", 1), product | changed]
    return {"oplists": ops, "tensorName": ["x0", "x1", "y0"], "outputName": ["y0"]}


def test_equal_graphs_give_equal_files(graph, tmp_path):
    with Converter() as converter:
        emit(graph, tmp_path / "one.mnn", converter)
        emit(graph, tmp_path / "other.mnn", converter)
    assert (tmp_path / "one.mnn").read_bytes() == (tmp_path / "other.mnn").read_bytes()
    assert len(read_net(tmp_path / "one.mnn")["mnn_uuid"]) == 36


def test_a_net_that_has_what_the_graph_asks_for_is_taken(graph, tmp_path):
    json_to_mnn(net(), tmp_path / "model.mnn")
    assert check_net(tmp_path / "model.mnn", graph, "")["tensorName"] == ["x0", "x1", "y0"]


def test_no_file_is_told_with_what_the_converter_said(graph, tmp_path):
    with pytest.raises(LadingError, match="wrote no model") as caught:
        check_net(tmp_path / "none.mnn", graph, "Start to Convert\nThese Op Not Support: Foo\n")
    assert (caught.value.code, caught.value.diagnostics[0].where) == ("B773", "These Op Not Support: Foo")
    (tmp_path / "odd.mnn").write_bytes(bytes(64))
    with pytest.raises(LadingError, match="no readable model"):
        check_net(tmp_path / "odd.mnn", graph, "")


def test_an_operator_without_its_operand_is_told(graph, tmp_path):
    json_to_mnn(net(inputIndexes=[0, -1]), tmp_path / "model.mnn")
    with pytest.raises(LadingError, match="reads a tensor of number -1") as caught:
        check_net(tmp_path / "model.mnn", graph, "")
    assert (caught.value.code, caught.value.diagnostics[0].where) == ("B774", "BinaryOp 'y0'")


def test_an_operator_ahead_of_its_operands_is_told(graph, tmp_path):
    turned = net()
    turned["oplists"].reverse()
    json_to_mnn(turned, tmp_path / "model.mnn")
    with pytest.raises(LadingError, match="reads the tensor 'x0' before anything makes it") as caught:
        check_net(tmp_path / "model.mnn", graph, "")
    assert caught.value.code == "B774"


def test_another_parameter_is_told(tmp_path):
    softmax = legal(one_node("Softmax", [(F32, ["n", 4])], [(F32, ["n", 4])], axis=1))
    (node,) = [node for node in softmax.walk() if node.op == "Softmax"]
    other = net()
    said = {"type": "Softmax", "name": node.output.name, "inputIndexes": [0], "main_type": "Axis", "main": {"axis": 0}}
    other["oplists"] = [other["oplists"][0], {**said, "outputIndexes": [1]}]
    other["tensorName"] = ["x0", "y0"]
    json_to_mnn(other, tmp_path / "model.mnn")
    with pytest.raises(LadingError, match="axis of a Softmax is 0 and should be 1") as caught:
        check_net(tmp_path / "model.mnn", softmax, "")
    assert (caught.value.code, caught.value.diagnostics[0].where) == ("B777", f"{node.output.name} (Softmax)")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"dtype": "DT_INT32"}, "takes its input 'x0' as DT_INT32 instead of f32"),
        ({"dims": [-1, 5]}, r"in the shape \[-1, 5\] instead of f32\[n, 4\]"),
        ({"dims": [4]}, r"in the shape \[4\] instead of f32\[n, 4\]"),
    ],
)
def test_another_type_of_an_input_is_told(changed, told, graph, tmp_path):
    other = net()
    other["oplists"][0]["main"] |= changed
    json_to_mnn(other, tmp_path / "model.mnn")
    with pytest.raises(LadingError, match=told) as caught:
        check_net(tmp_path / "model.mnn", graph, "")
    assert caught.value.code == "B775"


def test_a_lost_output_is_told(graph, tmp_path):
    json_to_mnn(net(outputIndexes=[1]), tmp_path / "model.mnn")
    with pytest.raises(LadingError, match="has no output 'y0'") as caught:
        check_net(tmp_path / "model.mnn", graph, "")
    assert caught.value.code == "B775"


def test_a_converter_that_dies_leaves_nothing(graph, tmp_path, monkeypatch):
    def dies(*arguments, **options):
        raise ChildFailed("died of SIGSEGV", "the last words")

    monkeypatch.setattr(Converter, "convert", dies)
    with Converter() as converter, pytest.raises(LadingError, match="converter died of SIGSEGV") as caught:
        emit(graph, tmp_path / "model.mnn", converter)
    assert caught.value.code == "B776" and not list(tmp_path.iterdir())


def test_nothing_is_left_in_the_folder_for_temporary_files(graph, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    x = np.ones((3, 4), np.float32)
    with Converter() as converter:
        emit(graph, tmp_path / "model.mnn", converter)
        converter.run(tmp_path / "model.mnn", {"x0": x, "x1": x}, ["y0"])
    assert list(scratch.iterdir()) == []


def test_the_converted_model_computes_the_graph(graph, tmp_path):
    a, b = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    with Converter() as converter:
        emit(graph, tmp_path / "model.mnn", converter)
        found = converter.run(tmp_path / "model.mnn", {"x0": a, "x1": b}, ["y0"])["y0"]
    np.testing.assert_allclose(found, a * b, rtol=1e-6)
