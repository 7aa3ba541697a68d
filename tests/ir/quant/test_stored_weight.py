"""Weights that others quantized are read out of the graph as they are, and what is none says why."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.base.types import F32, TensorType
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from ir.quant.storage import Storage
from ir.quant.stored_codes import NAME, given_codes
from ir.quant.stored_weight import is_weight, obstacle, storage_of
from ir.quant.weight import shared_quantized
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import transposed
from ir.text.parser import parse
from ir.text.printer import print_graph

INTEGERS = {
    "i4": (TensorProto.INT4, ml_dtypes.int4, -8, 8),
    "u4": (TensorProto.UINT4, ml_dtypes.uint4, 0, 16),
    "i8": (TensorProto.INT8, np.int8, -128, 128),
    "u8": (TensorProto.UINT8, np.uint8, 0, 256),
}
"""ONNX and numpy types, and the range of the codes."""

ROWS, COLUMNS, BLOCK = 24, 64, 16


def numbers(kind: str, form: str, zeros: bool, matmul: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Codes of a matrix, its scales and zeros in one of the forms of DequantizeLinear, oriented as it is used."""
    made = np.random.default_rng(seed)
    _, dtype, low, high = INTEGERS[kind]
    shape = {"tensor": (), "rows": (ROWS,), "blocks": (ROWS, COLUMNS // BLOCK)}[form]
    found = {
        "codes": made.integers(low, high, (ROWS, COLUMNS)).astype(dtype),
        "scale": made.uniform(0.01, 0.1, shape).astype(np.float32),
    }
    if zeros:
        found["zero"] = made.integers(low, high, shape).astype(dtype)
    turned = {key: array.T if matmul and array.ndim == 2 else array for key, array in found.items()}
    return {key: np.ascontiguousarray(array).reshape(array.shape) for key, array in turned.items()}


def attributes(form: str, matmul: bool) -> dict[str, int]:
    """Attributes of DequantizeLinear for a form: rows are the outputs, blocks run along the input features."""
    if form == "tensor":
        return {}
    return {"axis": int(matmul)} if form == "rows" else {"axis": int(not matmul), "block_size": BLOCK}


def model_of(kind: str, form: str, zeros: bool, matmul: bool) -> onnx.ModelProto:
    """A matrix under DequantizeLinear that is multiplied by, or that rows are taken of; the matrix is an output too."""
    given = numbers(kind, form, zeros, matmul)
    types = {"codes": INTEGERS[kind][0], "scale": TensorProto.FLOAT, "zero": INTEGERS[kind][0]}
    packed = [
        helper.make_tensor(name, types[name], array.shape, array.astype(np.float32).reshape(-1))
        for name, array in given.items()
    ]
    use = ("MatMul", ["x", "w"], "float32", ["n", COLUMNS]) if matmul else ("Gather", ["w", "x"], "int64", ["n"])
    nodes = [
        helper.make_node("DequantizeLinear", list(given), ["w"], **attributes(form, matmul)),
        helper.make_node(use[0], use[1], ["y"]),
    ]
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info("x", kinds[use[2]], use[3])]
    shape = [COLUMNS, ROWS] if matmul else [ROWS, COLUMNS]
    outputs = [helper.make_tensor_value_info("w", TensorProto.FLOAT, shape),
               helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", shape[1]])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", inputs, outputs, packed)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("matmul", [True, False], ids=["product", "table"])
@pytest.mark.parametrize("zeros", [False, True], ids=["plain", "zeros"])
@pytest.mark.parametrize("form", ["tensor", "rows", "blocks"])
@pytest.mark.parametrize("kind", INTEGERS)
def test_dequantized_constants_of_others_are_weights(kind, form, zeros, matmul):
    model, given = model_of(kind, form, zeros, matmul), numbers(kind, form, zeros, matmul)
    value = load(model).value("w")
    assert is_weight(value) and obstacle(value, matmul=matmul) == ""
    found = storage_of(value, matmul=matmul)
    unsigned, bits = kind[0] == "u", int(kind[1])
    assert found.storage == Storage(
        bits=bits, block=BLOCK if form == "blocks" else 0, symmetric=not zeros and not unsigned, method=NAME
    )
    assert (found.name, found.rows, found.columns) == ("w", ROWS, COLUMNS)

    half = 2 ** (bits - 1) if unsigned else 0
    turned = {key: array.T if matmul and array.ndim == 2 else array for key, array in given.items()}
    per_block = {key: array.reshape(-1, array.shape[-1] if array.ndim == 2 else 1) for key, array in turned.items()}
    for start, stop in ((0, ROWS), (5, 6), (7, 20)):
        part = found.quantized.rows(start, stop)
        np.testing.assert_array_equal(part.codes, turned["codes"].astype(np.int16)[start:stop] - half)
        wanted = np.broadcast_to(per_block["scale"], (ROWS, part.scale.shape[1]))[start:stop]
        np.testing.assert_array_equal(part.scale, wanted)
        if zeros:
            zero = np.broadcast_to(per_block["zero"].astype(np.int16), (ROWS, part.scale.shape[1]))
            np.testing.assert_array_equal(part.zero, zero[start:stop] - half)
        elif unsigned:
            assert (part.zero == -half).all()
        else:
            assert part.zero is None

    real = found.dequantized_rows(0, ROWS)
    feeds = {"x": np.zeros((1, COLUMNS), np.float32) if matmul else np.zeros(1, np.int64)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for computed in (session.run(["w"], feeds)[0], ReferenceEvaluator(model).run(["w"], feeds)[0]):
        computed = computed.T if matmul else computed
        # The runtime multiplies code and zero by the scale apart, so each product is rounded before the difference.
        largest = 2.0 ** (bits + 1) * 0.1
        np.testing.assert_allclose(real, computed, rtol=0, atol=largest * 2.0**-23)
        if not zeros and not unsigned:
            np.testing.assert_array_equal(real, computed)


def graph_of(op: str = "DequantizeLinear", attrs: dict | None = None, **parts) -> Graph:
    """A product with a dequantized matrix ``[64, 24]``; parts that are None are inputs of the graph."""
    graph = Graph("g", {"": 24})
    x = graph.add_input("x", TensorType(F32, (3, COLUMNS)))
    values = []
    for name, array in parts.items():
        if array is None:
            values.append(graph.add_input(name, TensorType(F32, ())))
        else:
            values.append(graph.add_const(name, InlineTensor(array)))
    weight = graph.add(op, values, attrs or {}, outputs=["w"]).output
    graph.set_outputs([graph.add("MatMul", [x, weight], outputs=["y"]).output])
    return graph


def codes(kind: str = "i8", shape: tuple[int, ...] = (COLUMNS, ROWS)) -> np.ndarray:
    _, dtype, low, high = INTEGERS[kind]
    return np.random.default_rng(1).integers(low, high, shape).astype(dtype)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("parts", "attrs", "reason"),
    [
        ({"codes": codes(), "scale": ones(COLUMNS)}, {"axis": 0}, "a scale for each of 64 input features"),
        ({"codes": codes(), "scale": ones(COLUMNS, 3)}, {"axis": 1, "block_size": 8}, "weights of several rows"),
        ({"codes": codes(), "scale": ones(2, ROWS)}, {"axis": 0, "block_size": 48}, "blocks of 48 do not divide the 64"),
        ({"codes": codes().astype(np.int32), "scale": ones()}, {}, "codes of type i32[64, 24]"),
        ({"codes": codes().astype(ml_dtypes.float8_e4m3fn), "scale": ones()}, {}, "codes of type f8e4m3fn"),
        ({"codes": codes(shape=(2, COLUMNS, ROWS)), "scale": ones()}, {}, "no matrix"),
        ({"codes": codes(), "scale": None}, {}, "computed from other values"),
        ({"codes": codes(), "scale": ones(ROWS), "zero": np.zeros((), np.int8)}, {}, "do not fit scales"),
        ({"codes": codes(), "scale": ones(), "zero": np.zeros((), np.uint8)}, {}, "zeros are u8 and codes are i8"),
    ],
)  # fmt: skip
def test_what_no_row_storage_holds_says_why(parts, attrs, reason):
    value = graph_of(attrs=attrs, **parts).value("w")
    assert storage_of(value, matmul=True) is None
    assert reason in obstacle(value, matmul=True)


def test_other_values_are_no_weights():
    graph = graph_of(codes=codes(), scale=ones())
    assert obstacle(graph.value("y")) == "it is computed from other values" and not is_weight(graph.value("y"))
    assert not is_weight(graph.value("x")) and storage_of(graph.value("codes")) is None
    assert "no float matrix" in obstacle(graph.value("codes"))


def test_scales_of_a_row_fit_one_orientation_only():
    value = graph_of(attrs={"axis": 1}, codes=codes(), scale=ones(ROWS)).value("w")
    assert is_weight(value) and storage_of(value, matmul=True).rows == ROWS
    assert storage_of(value) is None and "input features" in obstacle(value)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_scales_are_widened(dtype):
    scale = np.random.default_rng(2).uniform(0.01, 0.1, ROWS).astype(dtype)
    found = storage_of(graph_of(codes=codes(), scale=scale).value("w"), matmul=True)
    assert found.storage.scale == "f32"
    np.testing.assert_array_equal(found.quantized.rows(0, ROWS).scale[:, 0], scale.astype(np.float32))


def test_real_zeros_of_others_are_kept():
    made = np.random.default_rng(3)
    parts = {"codes": codes("i4"), "scale": made.uniform(0.01, 0.1, (4, ROWS)), "zero": made.normal(0, 1, (4, ROWS))}
    parts = {key: array if key == "codes" else array.astype(np.float32) for key, array in parts.items()}
    graph = graph_of("lading.AffineDequantize", {"axis": 0, "block_size": 16}, **parts)
    assert infer_types(graph) == []
    found = storage_of(graph.value("w"), matmul=True)
    assert found.storage == Storage(bits=4, block=16, zero="float", method=NAME)
    np.testing.assert_array_equal(found.quantized.rows(0, ROWS).zero, parts["zero"].T)
    x = made.normal(size=(3, COLUMNS)).astype(np.float32)
    np.testing.assert_allclose(evaluate(graph, {"x": x})["y"], x @ found.dequantized_rows(0, ROWS).T, atol=1e-4)


def test_a_scale_that_is_not_finite_is_found_when_it_is_read():
    scale = ones(ROWS)
    scale[7] = np.inf
    found = storage_of(graph_of(codes=codes(), scale=scale).value("w"), matmul=True)
    with pytest.raises(LadingError, match="row 7 ") as caught:
        found.quantized.rows(4, 12)
    assert caught.value.code == "Q402"


def test_two_readings_are_one_weight():
    graph = graph_of(codes=codes("u4"), scale=ones(ROWS), zero=np.zeros(ROWS, ml_dtypes.uint4))
    first, second = (storage_of(graph.value("w"), matmul=True) for _ in range(2))
    assert first.quantized is second.quantized
    again = pickle.loads(pickle.dumps(first.quantized))
    assert again is first.quantized


def test_parts_of_a_given_weight_are_constants_of_a_text_as_any():
    scale, zero = InlineTensor(ones(ROWS) / 8), InlineTensor(codes("u4", (ROWS,)))
    made = shared_quantized(given_codes(InlineTensor(codes("u4", (ROWS, COLUMNS))), scale, zero), Storage(bits=4))
    graph = Graph("g", {"": 24})
    parts = [made.codes, made.scale, made.zero_point]
    values = [graph.add_const(name, transposed(part)) for name, part in zip("csz", parts, strict=True)]
    weight = graph.add("DequantizeLinear", values, {"axis": 0, "block_size": COLUMNS}, outputs=["w"]).output
    graph.set_outputs([weight])
    again = storage_of(parse(print_graph(graph)).value("w"), matmul=True)
    np.testing.assert_array_equal(again.quantized.rows(3, 9).codes, made.rows(3, 9).codes)
    np.testing.assert_array_equal(again.quantized.rows(3, 9).zero, made.rows(3, 9).zero)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((ones(4, 8), ones()), "codes are a matrix of integers"),
        ((codes(), ones().astype(np.float64)), "scales are f32"),
        ((codes(), ones(5)), "blocks of equal length"),
        ((codes(), ones(COLUMNS, 5)), "blocks of equal length"),
        ((codes(), ones(), np.zeros(1, np.int8)), "shape of the scales"),
        ((codes(), ones(), np.zeros((), np.uint8)), "type of the codes"),
        ((codes("u8"), ones(), ones()), "real values beside signed codes"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(given, reason):
    with pytest.raises(LadingError, match=reason) as caught:
        given_codes(*map(InlineTensor, given))
    assert caught.value.code == "T254"
