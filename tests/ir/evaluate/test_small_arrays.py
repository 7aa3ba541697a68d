"""What numpy computes of small constants is bit for bit what onnxruntime computes."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from frontends.onnx.load import load
from ir.evaluate.small_arrays import KERNELS, small_results

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7.5
INTS = np.array([[3, -4, 5], [1 << 40, 0, -7]], np.int64)
ODD = np.array([0.1, -0.0, np.inf, -np.inf, np.nan, 1e-42, 3e38, 1 / 3], np.float32)
HALVES = np.array([0.1, 65504, -3.5, 0], np.float16)
FLAGS = np.array([True, False, True])


def ints(*items):
    return np.array(items, np.int64)


CASES = [
    ("Identity", [X], {}),
    ("Shape", [X], {}),
    ("Shape", [X], {"start": 1, "end": -1}),
    ("Shape", [X], {"start": -5, "end": 9}),
    ("Size", [X], {}),
    ("Reshape", [X, ints(0, -1)], {}),
    ("Reshape", [X, ints(4, 0, 2)], {}),
    ("Flatten", [X], {}),
    ("Flatten", [X], {"axis": -1}),
    ("Flatten", [X], {"axis": 3}),
    ("Squeeze", [X[None, :, None]], {}),
    ("Squeeze", [X[None, :, None], ints(-3)], {}),
    ("Unsqueeze", [X, ints(0, -1)], {}),
    ("Unsqueeze", [np.float32(2), ints(0)], {}),
    ("Transpose", [X], {}),
    ("Transpose", [X], {"perm": [1, 2, 0]}),
    ("Concat", [X, X[:1]], {"axis": 0}),
    ("Concat", [INTS, INTS], {"axis": -1}),
    ("Slice", [X, ints(1), ints(9)], {}),
    ("Slice", [X, ints(-1, 3), ints(-9, 0), ints(1, -1), ints(-1, -2)], {}),
    ("Slice", [X, ints(-9), ints(2), ints(2)], {}),
    ("Slice", [X, ints(2), ints(1), ints(2)], {}),
    ("Slice", [X, ints(np.iinfo(np.int64).max), ints(np.iinfo(np.int64).min), ints(2), ints(-1)], {}),
    ("Gather", [X, ints(-1, 0)], {"axis": 1}),
    ("Gather", [INTS, np.array(1, np.int32)], {}),
    ("Expand", [INTS, ints(2, 1, 3)], {}),
    ("Expand", [INTS, ints(1)], {}),
    ("Tile", [INTS, ints(2, 1)], {}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("ConstantOfShape", [ints(2)], {"value": numpy_helper.from_array(np.array([7], np.int32))}),
    ("Where", [FLAGS, INTS, ints(1)], {}),
    *(("Cast", [array], {"to": to}) for array in (ODD, HALVES, INTS, INTS.astype(np.int8), FLAGS)
      for to in (1, 9, 10, 11) if array.dtype != INTS.dtype or to != 10),
    *(("Cast", [X], {"to": to}) for to in (3, 5, 6, 7)),
    *(("Cast", [INTS], {"to": to}) for to in (6, 7)),
    *(("Cast", [FLAGS], {"to": to}) for to in (2, 3, 5, 6, 7)),
    *((op, [a, b], {}) for op in ("Add", "Sub", "Mul", "Div")
      for a, b in ((X, X[:1] + 0.3), (ODD, ODD[::-1].copy()), (ints(7, 8, 9), ints(2, 3, 4)))),
    *((op, [INTS, ints(3, 2, 1)], {}) for op in ("Add", "Sub", "Mul")),
    *((op, [a, b], {}) for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
      for a, b in ((ODD, ODD[::-1].copy()), (INTS, ints(3, 2, 1)))),
    *((op, [FLAGS, np.array([True])], {}) for op in ("And", "Or", "Xor")),
    ("Not", [FLAGS], {}),
    ("Neg", [ODD], {}),
    ("Neg", [INTS], {}),
    ("Range", [np.array(1, np.int64), np.array(-6, np.int64), np.array(-2, np.int64)], {}),
]  # fmt: skip


def model_of(op, arrays, attrs):
    """A model of one node that reads constants."""
    names = [f"i{place}" for place in range(len(arrays))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attrs)],
        "g",
        [],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for array, name in zip(map(np.asarray, arrays), names, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def by_onnxruntime(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = onnx.shape_inference.infer_shapes(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {})[0]


def by_us(model, folder):
    onnx.save(model, folder / "one.onnx")
    return small_results(load(folder / "one.onnx").nodes, 1 << 16)


@pytest.mark.parametrize(("op", "arrays", "attrs"), CASES)
def test_a_kernel_gives_what_onnxruntime_gives(op, arrays, attrs, tmp_path):
    model = model_of(op, arrays, attrs)
    found = by_us(model, tmp_path)
    wanted = by_onnxruntime(model)
    assert found["y"].dtype == wanted.dtype and found["y"].shape == wanted.shape
    assert found["y"].tobytes() == wanted.tobytes() or (
        wanted.dtype.kind == "f" and np.array_equal(found["y"], wanted, equal_nan=True)
    )


def test_every_kernel_has_a_case():
    assert {op for op, _, _ in CASES} == set(KERNELS)


@pytest.mark.parametrize(
    ("op", "arrays", "attrs"),
    [
        ("ConstantOfShape", [ints(1 << 40)], {}),
        ("Expand", [np.ones(1, np.float32), ints(1 << 40)], {}),
        ("Tile", [np.ones(1, np.float32), ints(1 << 40)], {}),
        ("Range", [np.array(0, np.int64), np.array(1 << 40, np.int64), np.array(1, np.int64)], {}),
        ("Div", [ints(3), ints(0)], {}),
        ("Div", [INTS, ints(3, 2, 1)], {}),
        ("Slice", [X, ints(-9), ints(-99), ints(2), ints(-1)], {}),
        ("Cast", [np.array([1e30], np.float32)], {"to": 7}),
        ("Cast", [X], {"to": 2}),
        ("Cast", [ODD.astype(np.float64)], {"to": 10}),
        ("Gather", [X, ints(5)], {}),
        ("Reshape", [X, ints(5, 5)], {}),
    ],
)
def test_what_is_too_large_or_not_defined_is_left(op, arrays, attrs, tmp_path):
    assert by_us(model_of(op, arrays, attrs), tmp_path) == {}
