"""What is right stays, what can be said in other terms is, and the rest is refused by name."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.mnn.modules.child import Converter
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.onnx.export import write_model
from tests.support.modules.models import legal, one_node

F32, BOOL = TensorProto.FLOAT, TensorProto.BOOL


def test_what_has_no_form_is_refused_with_its_place():
    with pytest.raises(LadingError, match="StringNormalizer has no form that MNN computes right") as caught:
        legal(one_node("StringNormalizer", [(TensorProto.STRING, [2])], [(TensorProto.STRING, [2])]))
    assert caught.value.code == "P378" and "StringNormalizer" in caught.value.diagnostics[0].where


def test_comparisons_are_turned_round():
    graph = legal(one_node("Less", [(F32, ["n", 4]), (F32, ["n", 4])], [(BOOL, ["n", 4])]))
    assert [node.op for node in graph.nodes] == ["Greater"]
    assert [value.name for value in graph.outputs] == ["y0"]


def test_functions_of_the_schemas_are_written_out():
    graph = legal(one_node("Swish", [(F32, ["n", 4])], [(F32, ["n", 4])]))
    assert [node.op for node in graph.nodes] == ["Sigmoid", "Mul"]


@pytest.mark.mnn
def test_a_legal_graph_is_converted_and_runs(tmp_path):
    graph = legal(one_node("Less", [(F32, ["n", 4]), (F32, ["n", 4])], [(BOOL, ["n", 4])]))
    write_model(graph, tmp_path / "legal.onnx")
    a, b = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    with Converter() as converter:
        converter.convert(tmp_path / "legal.onnx", tmp_path / "model.mnn")
        found = converter.run(tmp_path / "model.mnn", {"x0": a, "x1": b}, ["y0"])
    np.testing.assert_array_equal(found["y0"].astype(bool), a < b)


@pytest.mark.parametrize(
    ("scale", "length", "refused"), [(0.6, 4, True), (0.5, 4, False), (2.0, "n", False), (1.5, "n", True)]
)
def test_corners_are_aligned_of_whole_numbers_of_elements_alone(scale, length, refused):
    """ONNX's definition divides by the length that scales give, onnxruntime by the whole number below it."""
    made = int(scale * length) if isinstance(length, int) else "m"
    x = helper.make_tensor_value_info("x", F32, [1, 1, length, 4])
    y = helper.make_tensor_value_info("y", F32, [1, 1, made, 4])
    node = helper.make_node(
        "Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="align_corners"
    )
    scales = numpy_helper.from_array(np.array([1, 1, scale, 1], np.float32), "s")
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [scales]), opset_imports=[helper.make_opsetid("", 19)]
    )
    if refused:
        with pytest.raises(LadingError, match="Resize"):
            legal(model)
    else:
        legal(model)


def test_operators_of_onnxruntime_are_taken_apart():
    """What its optimizer makes of a part of a transformer, and a product with a weight in codes of 4 bits."""
    rng = np.random.default_rng(4)
    shapes = {"gain": (32,), "shift": (32,), "w": (6, 32), "b": (6,)}
    held = [numpy_helper.from_array(rng.normal(0, 0.3, size).astype(np.float32), name) for name, size in shapes.items()]
    held.append(numpy_helper.from_array(rng.integers(0, 256, (8, 1, 16)).astype(np.uint8), "codes"))
    held.append(numpy_helper.from_array(rng.uniform(0.01, 0.02, 8).astype(np.float32), "scales"))
    nodes = [
        helper.make_node(
            "SkipLayerNormalization", ["x", "x", "gain", "shift"], ["a"], domain="com.microsoft", epsilon=1e-5
        ),
        helper.make_node("FusedMatMul", ["a", "w"], ["m"], domain="com.microsoft", alpha=0.5, transB=1),
        helper.make_node("BiasGelu", ["m", "b"], ["g"], domain="com.microsoft"),
        helper.make_node("FastGelu", ["g"], ["y"], domain="com.microsoft"),
        helper.make_node(
            "MatMulNBits", ["x", "codes", "scales"], ["z"], domain="com.microsoft", K=32, N=8, bits=4, block_size=32
        ),
    ]
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", F32, ["n", 5, 32])],
        [helper.make_tensor_value_info(name, F32, None) for name in "yz"], held,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=8)
    graph = legal(model)
    assert not any("." in node.op for node in graph.walk())
    x = rng.normal(size=(3, 5, 32)).astype(np.float32)
    found = evaluate(graph, {"x": x})
    for name, wanted in zip(
        "yz", onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x}), strict=True
    ):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)
