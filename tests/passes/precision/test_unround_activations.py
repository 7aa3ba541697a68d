"""Activations that files round to integers are taken as they are, and weights stay in their codes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ir.graph.graph import Graph
from ir.quant.stored_codes import NAME
from ir.quant.stored_weight import storage_of
from tests.passes.precision.quantized_models import BLOCK, BLOCKS, COLUMNS, FEEDS, ROWS, Model, after

PASSES = "unround-activations,raise-weights"
ROUNDED = 0.02
"""What 8 bits of activations change at most, as a share of the largest output."""


def stored(graph: Graph):
    """How the weights of all products are stored, which are the only nodes besides their dequantizations."""
    assert {node.op for node in graph.nodes} <= {"MatMul", "DequantizeLinear", "Relu", "Max"}
    return [storage_of(node.operand(1), matmul=True) for node in graph.nodes if node.op == "MatMul"]


def floats(path: Path) -> Path:
    """Two layers of floats."""
    made, model = np.random.default_rng(0), Model()
    model.op(
        "Relu",
        model.op("MatMul", "x", model.const(made.normal(0, 0.1, (COLUMNS, 96)).astype(np.float32), "a")),
        name="h",
    )
    model.op("MatMul", "h", model.const(made.normal(0, 0.1, (96, ROWS)).astype(np.float32), "b"), name="y")
    model.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    made = model.made()
    del made.graph.input[1]
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("each", [False, True], ids=["whole", "each output"])
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
def test_dynamic_quantization_becomes_products_with_the_codes_of_the_file(kind, each, tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = floats(tmp_path / "floats.onnx")
    quantize_dynamic(source, tmp_path / "codes.onnx", weight_type=QuantType[kind], per_channel=each)
    model = onnx.load(tmp_path / "codes.onnx")
    graph, said = after(model, PASSES, ROUNDED)
    (warning,) = said
    assert warning.code == "Q467" and "2 places" in warning.message
    codes = [
        onnx.numpy_helper.to_array(item)
        for item in model.graph.initializer
        if item.name in ("a_quantized", "b_quantized")
    ]
    shift = 128 if kind == "QUInt8" else 0
    for weight, wanted in zip(stored(graph), codes, strict=True):
        assert (weight.bits, weight.block, weight.storage.method) == (8, weight.columns, NAME)
        np.testing.assert_array_equal(weight.quantized.rows(0, weight.rows).codes, wanted.T.astype(np.int16) - shift)


def test_codes_of_a_product_may_be_transposed():
    made, model = np.random.default_rng(3), Model()
    codes, scale = made.integers(-128, 128, (ROWS, COLUMNS)).astype(np.int8), np.float32(0.01)
    model.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]))
    turned = model.op("Transpose", model.const(codes))
    product = model.op("Cast", model.op("MatMulInteger", "q", turned, "z"), to=TensorProto.FLOAT)
    model.op("Mul", model.op("Mul", product, "s"), model.const(scale), name="y")
    model.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    graph, said = after(model.made(), PASSES, ROUNDED)
    (weight,) = stored(graph)
    assert [item.code for item in said] == ["Q467"]
    np.testing.assert_array_equal(weight.quantized.rows(0, ROWS).codes, codes)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_static_quantization_does_too(form, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        """The same input once."""

        def __init__(self) -> None:
            self.left = [{"x": FEEDS["x"]}]

        def get_next(self):
            return self.left.pop() if self.left else None

    options = {"per_channel": form == "QDQ", "weight_type": QuantType.QInt8, "quant_format": QuantFormat[form]}
    quantize_static(floats(tmp_path / "floats.onnx"), tmp_path / "codes.onnx", Reader(), **options)
    graph, said = after(onnx.load(tmp_path / "codes.onnx"), PASSES, ROUNDED)
    assert [item.code for item in said] == ["Q467"] and graph.outputs[0].name == "y"
    assert [(weight.bits, weight.storage.method) for weight in stored(graph)] == [(8, NAME)] * 2
    # The Relu between both is left out of the file, whose codes begin at zero there.
    assert [node.op for node in graph.nodes if node.op in ("Relu", "Max")] == ["Max"]


def test_constant_floats_that_are_rounded_in_the_graph_are_weights():
    made, model = np.random.default_rng(1), Model()
    weight = made.normal(0, 1, (ROWS, COLUMNS)).astype(np.float32)
    scale, zero = np.full((ROWS, BLOCKS), 0.3, np.float32), made.integers(2, 14, (ROWS, BLOCKS)).astype(ml_dtypes.uint4)
    names = [model.const(part) for part in (scale, zero)]
    codes = model.op("QuantizeLinear", model.const(weight), *names, axis=1, block_size=BLOCK)
    model.product(model.op("Transpose", model.op("DequantizeLinear", codes, *names, axis=1, block_size=BLOCK)))
    graph, said = after(model.made(), PASSES)
    (found,) = stored(graph)
    assert not said and (found.bits, found.block, found.storage.method) == (4, BLOCK, NAME)
    wide = np.repeat(zero.astype(np.float32), BLOCK, 1)
    rounded = np.clip(np.rint(weight / np.float32(0.3)) + wide, 0, 15)
    np.testing.assert_array_equal(found.quantized.rows(3, 20).codes, (rounded - 8)[3:20])


def test_codes_that_are_moved_between_are_followed_and_outputs_keep_their_names():
    model = Model()
    scale, zero = model.const(np.float32(0.02)), model.const(np.uint8(128))
    codes = model.op("QuantizeLinear", "x", scale, zero)
    cut = model.op("Reshape", codes, model.const(np.array([-1, 8, 8])))
    model.op("DequantizeLinear", model.op("Transpose", cut, perm=[0, 2, 1]), scale, zero, name="moved")
    model.op("DequantizeLinear", codes, scale, zero, name="same")
    for name in ("moved", "same"):
        model.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    graph, said = after(model.made(), "unround-activations", 1)
    assert [value.name for value in graph.outputs] == ["moved", "same"]
    assert [item.code for item in said] == ["Q467"] and "1 place of" in said[0].message
    assert {node.op for node in graph.nodes} == {"Reshape", "Transpose", "Identity"}


@pytest.mark.parametrize("other", ["scale", "zero"])
def test_codes_that_are_read_with_other_numbers_stay(other):
    model = Model()
    parts = {"scale": np.float32(0.02), "zero": np.uint8(128)}
    codes = model.op("QuantizeLinear", "x", *map(model.const, parts.values()))
    parts[other] = parts[other] + type(parts[other])(1)
    model.op("DequantizeLinear", codes, *map(model.const, parts.values()), name="y")
    model.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    graph, said = after(model.made(), "unround-activations")
    assert not said and [node.op for node in graph.nodes] == ["QuantizeLinear", "DequantizeLinear"]


def test_rows_of_codes_become_rows_of_numbers():
    made, model = np.random.default_rng(2), Model()
    table = made.integers(0, 256, (ROWS, COLUMNS)).astype(np.uint8)
    rows = model.op("Gather", model.const(table), "ids")
    model.op("DequantizeLinear", rows, model.const(np.float32(0.1)), model.const(np.uint8(120)), name="rows")
    model.outputs.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, None))
    graph, said = after(model.made(), "raise-weights")
    (gather,) = [node for node in graph.nodes if node.op == "Gather"]
    found = storage_of(gather.operand(0))
    assert not said and gather.output.is_output and (found.bits, found.rows) == (8, ROWS)
