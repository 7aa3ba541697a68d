"""Graphs of half precision become graphs of single precision."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from frontends.onnx.load import load
from ir.base.types import F16, F32, TensorType
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from ir.quant.stored_weight import storage_of
from passes.framework.instruments import VerifyEach
from passes.framework.manager import PassManager, Report

RNG = np.random.default_rng(11)
HALF, BRAIN, FLOAT, DOUBLE = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE
info = helper.make_tensor_value_info


def widened(model: onnx.ModelProto, pipeline: str = "infer-types,widen-floats") -> tuple[Graph, Report]:
    """The graph in single precision; types that the pass records are those that inference gives."""
    graph = load(model)
    report = PassManager(pipeline, (VerifyEach(),)).run(graph)
    assert not infer_types(graph)
    for one in graph.graphs():
        for value in one._names.values():
            assert not isinstance(value.type, TensorType) or value.type.dtype.name not in ("f16", "bf16"), value
    return graph, report


def model_of(nodes, inputs, outputs, constants, opset=23, **more):
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held, **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def chain(kind: int) -> onnx.ModelProto:
    """A product and a softmax in half precision between casts."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    constants = {
        "w": RNG.normal(size=(8, 4)).astype(dtype),
        "low": np.array(-65504, dtype),
        "keep": np.array([True, False, True, True]),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=kind),
        helper.make_node("MatMul", ["h", "w"], ["p"]),
        helper.make_node("Add", ["p", "bias"], ["b"]),
        helper.make_node("Where", ["keep", "b", "low"], ["m"]),
        helper.make_node("Softmax", ["m"], ["s"], axis=-1),
        helper.make_node("Cast", ["s"], ["y"], to=FLOAT),
    ]
    inputs = [info("x", FLOAT, ["n", 8]), info("bias", kind, [4])]
    return model_of(nodes, inputs, [info("y", FLOAT, ["n", 4]), info("s", kind, ["n", 4])], constants)


@pytest.mark.parametrize("kind", [HALF, BRAIN])
def test_a_chain_of_casts_and_constants(kind):
    model = chain(kind)
    graph, report = widened(model)
    assert report.passes[-1].counts == {"inputs": 1, "constants": 2, "values": 5, "attributes": 1}
    assert [str(value.type) for value in graph.outputs] == ["f32[n, 4]", "f32[n, 4]"]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    x, bias = RNG.normal(size=(3, 8)).astype(np.float32), RNG.normal(size=4).astype(dtype)
    found = evaluate(graph, {"x": x, "bias": bias.astype(np.float32)})["y"]
    w = graph.value("w").tensor.load().astype(np.float64)
    scores = x @ w + bias.astype(np.float64)
    scores[:, 1] = -65504.0
    exact = np.exp(scores - scores.max(1, keepdims=True))
    exact /= exact.sum(1, keepdims=True)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    if kind == HALF:
        before = evaluate(load(model), {"x": x, "bias": bias})["y"]
        assert 1e-6 < np.abs(before - exact).max() < 2e-3, "the original rounds, and what is made of it does not"


def test_casts_that_are_left_go_with_the_next_simplification():
    graph, _ = widened(chain(HALF), "infer-types,widen-floats,simplify,fold,dce")
    assert [node.op for node in graph.nodes] == ["MatMul", "Add", "Where", "Softmax", "Identity"]


def test_constants_are_read_by_nobody():
    """Widening is a recipe: no number is loaded for it."""
    graph = load(chain(HALF))
    infer_types(graph)
    tensor = graph.value("w").tensor
    PassManager("widen-floats").run(graph)
    assert "_array" not in vars(tensor), "it has been decoded"
    assert graph.value("w").tensor.recipe()[0] == "cast" and graph.value("w").tensor.inputs == (tensor,)
    np.testing.assert_array_equal(graph.value("w").tensor.load(), tensor.load().astype(np.float32))


def test_quantized_weights_keep_codes_and_scales():
    codes = helper.make_tensor("w", TensorProto.INT4, (64, 4), RNG.integers(-8, 8, 256).tolist())
    scales = RNG.uniform(0.1, 1, (2, 4)).astype(np.float16)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model = model_of(nodes, [info("x", HALF, ["n", 64])], [info("y", HALF, ["n", 4])], {"s": scales})
    model.graph.initializer.append(codes)
    graph, _ = widened(model)
    assert graph.value("d").type == TensorType(F32, (64, 4)) and graph.value("w").dtype.name == "i4"
    stored = storage_of(graph.value("d"), matmul=True)
    assert stored is not None and (stored.bits, stored.block) == (4, 32)
    np.testing.assert_array_equal(stored.quantized.scale.load(), scales.T.astype(np.float32))
    np.testing.assert_array_equal(stored.quantized.codes.load(), graph.value("w").tensor.load().T)


@pytest.mark.parametrize(
    ("node", "attribute"),
    [
        (helper.make_node("ConstantOfShape", ["n"], ["y"], value=helper.make_tensor("v", HALF, [1], [2.5])), "value"),
        (helper.make_node("Constant", [], ["y"], value=helper.make_tensor("v", HALF, [2], [2.5, 1.5])), "value"),
        (helper.make_node("EyeLike", ["x"], ["y"], dtype=HALF), "dtype"),
        (helper.make_node("DequantizeLinear", ["c", "f"], ["y"], output_dtype=HALF), "output_dtype"),
    ],
)
def test_attributes_that_name_half_precision(node, attribute):
    constants = {"n": np.array([2, 3]), "c": np.array([1, 2], np.int8), "f": np.array(0.5, np.float32)}
    used = {name: array for name, array in constants.items() if name in node.input}
    model = model_of([node], [info("x", FLOAT, [2, 2])], [info("y", HALF, None)], used)
    graph, report = widened(model)
    assert graph.outputs[0].dtype == F32 and report.passes[-1].counts["attributes"] == 1
    x = np.ones((2, 2), np.float32)
    found = evaluate(graph, {"x": x})["y"]
    assert found.dtype == np.float32 and attribute in graph.outputs[0].producer.attrs


def test_angles_in_double_precision_stay():
    """As exporters compute frequencies: exact up to the cast."""
    nodes = [
        helper.make_node("Cast", ["p"], ["d"], to=DOUBLE),
        helper.make_node("Mul", ["d", "f"], ["a"]),
        helper.make_node("Cos", ["a"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=HALF),
    ]
    model = model_of(nodes, [info("p", TensorProto.INT64, ["n"])], [info("y", HALF, ["n"])], {"f": np.array([0.1])})
    graph, _ = widened(model)
    assert [str(node.output.type) for node in graph.nodes] == ["f64[n]", "f64[n]", "f64[n]", "f32[n]"]
    places = np.array([1, 100_000])
    np.testing.assert_array_equal(evaluate(graph, {"p": places})["y"], np.cos(places * 0.1).astype(np.float32))


def test_bodies_and_functions():
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["t"])], "yes", [], [info("t", HALF, None)],
        [numpy_helper.from_array(np.float16(1), "one")],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "no", [], [info("e", HALF, None)])
    nodes = [
        helper.make_node("If", ["flag"], ["h"], then_branch=body, else_branch=other),
        helper.make_node("half", ["h"], ["y"], domain="mine"),
    ]
    model = model_of(nodes, [info("x", HALF, [2])], [info("y", HALF, None)], {"flag": np.array(True)})
    opsets = [helper.make_opsetid("", 23)]
    inner = [
        helper.make_node("Constant", [], ["k"], value=helper.make_tensor("k", HALF, [], [0.5])),
        helper.make_node("Mul", ["v", "k"], ["w"]),
    ]
    model.functions.append(helper.make_function("mine", "half", ["v"], ["w"], inner, opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    graph, _ = widened(model)
    assert evaluate(graph, {"x": np.array([1, 3], np.float32)})["y"].tolist() == [1.0, 2.0]


def test_sequences_of_half_precision():
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["q"]),
        helper.make_node("SequenceAt", ["q", "i"], ["y"]),
    ]
    model = model_of(nodes, [info("x", HALF, [2])], [info("y", HALF, None)], {"i": np.int64(1)})
    graph, _ = widened(model)
    assert str(graph.value("q").type).startswith("seq<f32") and graph.outputs[0].dtype == F32


def test_a_graph_without_half_precision_stays():
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    graph = load(model_of(nodes, [info("x", FLOAT, [2])], [info("y", FLOAT, [2])], {}))
    infer_types(graph)
    version = graph.version
    report = PassManager("widen-floats").run(graph)
    assert graph.version == version and not report.passes[0].counts


def test_eight_bits_stay():
    codes = np.array([1, 2, 3], ml_dtypes.float8_e4m3fn)
    nodes = [helper.make_node("DequantizeLinear", ["c", "s"], ["y"])]
    model = model_of(nodes, [], [info("y", HALF, None)], {"c": codes, "s": np.float16(2)})
    graph, _ = widened(model)
    assert graph.value("c").dtype.name == "f8e4m3fn" and evaluate(graph, {})["y"].tolist() == [2.0, 4.0, 6.0]
    assert graph.value("s").dtype != F16
