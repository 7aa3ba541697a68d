"""Every operator of ONNX that is lowered gives on MNN what onnxruntime computes, old and new releases, one row and many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backends.mnn.lower.legalize import LOWER
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Value
from passes.framework.manager import PassManager
from tests.support.decoders.forms import ACTIVATIONS
from tests.support.decoders.operators import (
    PIPELINE,
    Case,
    Operands,
    distance,
    feeds_of,
    graph_of,
    module_of,
    run_module,
)
from tests.support.graphs import graphs as random_graphs
from tests.support.runs import each_release

BAR = 2e-6
LENGTHS = (7, 1)
OUTER = [param for param in each_release() if param.values[0] in ("3.4.0", "3.6.1")]
INT_MAX = 2**63 - 1


def tensor(b: Operands, *shape: int) -> Value:
    """A random constant."""
    return b.const(b.random.normal(0, 1, shape).astype(np.float32))


def half(b: Operands, *shape: int) -> Value:
    """A random constant in half precision, widened."""
    return b.op("Cast", b.const(b.random.normal(0, 1, shape).astype(np.float16)), to=1)


def coded(b: Operands, *shape: int) -> Value:
    """A random constant of 8-bit codes, decoded."""
    codes = b.random.integers(-128, 128, shape).astype(np.int8)
    return b.op("DequantizeLinear", b.const(codes), b.const(np.array(0.02, np.float32)))


def flags(b: Operands) -> Value:
    """Booleans bool[1, seq, 12]."""
    return b.op("Greater", b.x, b.y)


def cut(b: Operands, x: Value, *bounds: list[int] | None) -> Value:
    """A slice of constant bounds: starts, ends, axes, steps."""
    return b.op("Slice", x, *(None if numbers is None else b.ints(*numbers) for numbers in bounds))


def both_stretched(b: Operands, op: str) -> Value:
    return b.op(op, b.column, tensor(b, 12))


UNARY = ("Abs", "Atan", "Asinh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "HardSwish", "Neg", "Sigmoid", "Sign",
         "Sin", "Sinh", "Softplus", "Tanh")  # fmt: skip
INSIDE = ("Acos", "Asin", "Atanh", "Tan")
POSITIVE = ("Acosh", "Log", "Reciprocal", "Sqrt")
COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")

CASES: dict[str, Case] = {
    **{op: lambda b, op=op: b.op(op, b.x) for op in UNARY},
    **{op: lambda b, op=op: b.op(op, b.op("Mul", b.op("Tanh", b.x), b.number(0.9))) for op in INSIDE},
    **{op: lambda b, op=op: b.op(op, b.op("Add", b.op("Abs", b.x), b.number(1.01))) for op in POSITIVE},
    **{f"activation {name}": lambda b, make=make: make(b, b.x) for name, make in ACTIVATIONS.items()},
    "PRelu": lambda b: b.op("PRelu", b.x, tensor(b, 12)),
    "Neg of integers": lambda b: b.op("Neg", b.whole),
    "Abs of integers": lambda b: b.op("Abs", b.whole),
    **{f"{op} of two": lambda b, op=op: b.op(op, b.x, b.y) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
    **{f"{op} by rows": lambda b, op=op: b.op(op, b.x, b.column) for op in ("Add", "Mul", "Sub")},
    **{f"{op} of rows": lambda b, op=op: b.op(op, b.column, b.x) for op in ("Add", "Mul", "Sub", "Div")},
    **{f"{op} of both stretched": lambda b, op=op: both_stretched(b, op) for op in ("Add", "Sub", "Mul", *COMPARISONS)},
    **{f"{op} with a vector in front": lambda b, op=op: b.op(op, tensor(b, 12), b.x) for op in ("Add", "Sub", "Mul")},
    **{f"{op} of integers": lambda b, op=op: b.op(op, b.whole, b.const(np.array([2], np.int32)))
       for op in ("Add", "Mul", "Sub", "Max", "Min", *COMPARISONS)},
    **{f"{op} of numbers": lambda b, op=op: b.op(op, b.x, b.y) for op in COMPARISONS},
    **{f"{op} of four": lambda b, op=op: b.op(op, b.column, b.x, tensor(b, 12), b.y)
       for op in ("Max", "Min", "Sum", "Mean")},
    "Pow 2": lambda b: b.op("Pow", b.x, b.number(2)),
    "Pow 3": lambda b: b.op("Pow", b.x, b.number(3)),
    "Pow half": lambda b: b.op("Pow", b.op("Abs", b.x), b.number(0.5)),
    "Pow -0.7": lambda b: b.op("Pow", b.op("Add", b.op("Abs", b.x), b.number(0.3)), b.number(-0.7)),
    "Pow by an integer": lambda b: b.op("Pow", b.x, b.const(np.array(2, np.int64))),
    "Pow of two": lambda b: b.op("Pow", b.op("Abs", b.x), b.y),
    "And": lambda b: b.op("And", flags(b), b.op("Less", b.x, b.number(0))),
    "Or": lambda b: b.op("Or", flags(b), b.op("Less", b.x, b.number(0))),
    "Xor": lambda b: b.op("Xor", flags(b), b.op("Less", b.x, b.number(0))),
    "And stretched": lambda b: b.op("And", b.op("Less", b.column, b.number(0)),
                                    b.const(np.arange(12) % 3 == 0)),
    "Not": lambda b: b.op("Not", flags(b)),
    "Where": lambda b: b.op("Where", flags(b), b.x, b.y),
    "Where of a number and all": lambda b: b.op("Where", flags(b), b.number(-3), b.y),
    "Where of all and a number": lambda b: b.op("Where", flags(b), b.x, b.number(-3)),
    "Where of all and a vector": lambda b: b.op("Where", flags(b), b.x, tensor(b, 12)),
    "Where of a vector and all": lambda b: b.op("Where", flags(b), tensor(b, 12), b.y),
    "Where of vectors": lambda b: b.op("Where", flags(b), tensor(b, 12), b.column),
    "Where by rows": lambda b: b.op("Where", b.op("Less", b.column, b.number(0)), b.x, tensor(b, 12)),
    "Where of a constant choice": lambda b: b.op("Where", b.const(np.arange(12) % 2 == 0), b.x, b.y),
    "Where of integers": lambda b: b.op("Where", flags(b), b.whole, b.const(np.array(9, np.int32))),
    "Cast to integers": lambda b: b.op("Cast", b.x, to=7),
    "Cast to booleans": lambda b: b.op("Cast", b.op("Cast", b.whole, to=9), to=1),
    "Cast of fractions to booleans": lambda b: b.op("Not", b.op("Cast", b.op("Mul", b.x, b.number(0.1)), to=9)),
    "Cast of integers to integers": lambda b: b.op("Add", b.op("Cast", b.whole, to=7), b.ints(4)),
    "Reshape": lambda b: b.op("Reshape", b.x, b.ints(0, -1, 3, 4)),
    "Reshape by a computed shape": lambda b: b.op(
        "Reshape", b.x, b.op("Concat", b.op("Shape", b.x, start=0, end=2), b.ints(4, 3), axis=0)),
    "Flatten": lambda b: b.op("Flatten", b.heads, axis=2),
    "Squeeze": lambda b: b.op("Squeeze", b.x, b.ints(0)),
    "Unsqueeze": lambda b: b.op("Unsqueeze", b.x, b.ints(0, -1)),
    "Identity": lambda b: b.op("Identity", b.op("Identity", b.x)),
    "Dropout": lambda b: b.op("Dropout", b.x),
    "Transpose": lambda b: b.op("Transpose", b.heads, perm=(0, 2, 1, 3)),
    "Transpose of all": lambda b: b.op("Transpose", b.heads),
    "Transpose that moves ones alone": lambda b: b.op("Transpose", b.x, perm=(1, 0, 2)),
    "Transpose of integers": lambda b: b.op("Transpose", b.whole, perm=(2, 1, 0)),
    "Expand that readers do themselves": lambda b: b.op(
        "Mul", b.op("Expand", b.column, b.op("Shape", b.x)), b.x),
    "Expand": lambda b: b.op("Expand", b.column, b.ints(3, 1, 5)),
    "Expand of integers": lambda b: b.op("Expand", b.counts, b.ints(4, 1, 1)),
    "Expand to the same": lambda b: b.op("Expand", b.x, b.ints(1, 1, 12)),
    "Tile": lambda b: b.op("Tile", b.heads, b.ints(1, 1, 2, 3)),
    "Slice": lambda b: cut(b, b.x, [2], [9], [2]),
    "Slice from the end": lambda b: cut(b, b.x, [-5], [INT_MAX], [-1]),
    "Slice to before the end": lambda b: cut(b, b.x, [0], [-4], [2], [1]),
    "Slice by steps": lambda b: cut(b, b.x, [1], [INT_MAX], [2], [3]),
    "Slice from before the start": lambda b: cut(b, b.x, [-100], [4], [2]),
    "Slice of all": lambda b: cut(b, b.x, [0], [INT_MAX], [1]),
    "Slice of the last row": lambda b: cut(b, b.x, [-1], [INT_MAX], [1]),
    "Slice of some rows": lambda b: cut(b, b.x, [0], [100], [1]),
    "Slice of two axes": lambda b: cut(b, b.heads, [1, 0], [3, -2], [2, 3]),
    "Slice without axes": lambda b: cut(b, b.heads, [0, 0, 1, 2], [9, 99, 3, 5]),
    "Slice with steps and no axes": lambda b: cut(b, b.heads, [0, 0, 1, 0], [9, 99, 3, 6], None, [1, 1, 1, 2]),
    "Slice of integers": lambda b: cut(b, b.whole, [3], [7], [2]),
    "Split": lambda b: b.op("Split", b.x, b.ints(5, 7), outputs=2, axis=2),
    "Split in parts of one size": lambda b: b.op("Split", b.x, outputs=3, axis=-1, num_outputs=3),
    "Split in a last part that is shorter": lambda b: b.op(
        "Split", cut(b, b.x, [0], [11], [2]), outputs=4, axis=-1, num_outputs=4),
    "Split of heads": lambda b: b.op("Split", b.heads, outputs=2, axis=2, num_outputs=2),
    "Concat": lambda b: b.op("Concat", b.x, b.y, axis=-1),
    "Concat of heads": lambda b: b.op("Concat", b.heads, b.heads, axis=2),
    "Concat of one": lambda b: b.op("Concat", b.x, axis=1),
    "Concat of integers": lambda b: b.op("Concat", b.whole, b.whole, axis=2),
    "Gather of rows": lambda b: b.op("Gather", tensor(b, 9, 5), b.counts),
    "Gather of rows of three axes": lambda b: b.op("Gather", tensor(b, 9, 5, 2), b.counts),
    "Gather of rows counted from the end": lambda b: b.op("Gather", tensor(b, 9, 5), b.whole),
    "Gather of integers": lambda b: b.op("Gather", b.const(np.arange(9, dtype=np.int64) * 3), b.counts),
    "Gather of one": lambda b: b.op("Gather", b.x, b.const(np.array(-3, np.int64)), axis=2),
    "Gather of the first row": lambda b: b.op("Gather", b.x, b.const(np.array(0, np.int64)), axis=1),
    "Gather of neighbours": lambda b: b.op("Gather", b.heads, b.ints(1, 2, 3), axis=2),
    "Gather in disorder": lambda b: b.op("Gather", b.heads, b.ints(3, -4, 2, 2), axis=2),
    "Gather in disorder of columns": lambda b: b.op("Gather", b.x, b.const(np.array([[3, 0], [11, -1]])), axis=2),
    "Gather by computed places": lambda b: b.op("Gather", tensor(b, 4, 9), b.counts, axis=1),
    "GatherElements": lambda b: b.op("GatherElements", b.x, best(b, b.y, 3)[1], axis=2),
    "GatherElements of integers": lambda b: b.op("GatherElements", b.whole, best(b, b.y, 3)[1], axis=-1),
    "GatherElements from the end": lambda b: b.op(
        "GatherElements", b.x, b.op("Min", b.whole, b.const(np.array([5], np.int32))), axis=2),
    "TopK": lambda b: best(b, b.x, 3)[0],
    "TopK of heads": lambda b: best(b, b.heads, 2)[0],
    "TopK of the smallest": lambda b: best(b, b.x, 5, largest=0)[0],
    "TopK places": lambda b: best(b, b.x, 12)[1],
    "TopK place of the largest": lambda b: best(b, b.x, 1)[1],
    "TopK place of the largest of three": lambda b: best(b, cut(b, b.x, [0], [3], [2]), 1)[1],
    "Dispatch and Combine": lambda b: mixture(b, 4, 2),
    "Dispatch and Combine of many": lambda b: mixture(b, 24, 3),
    "Dispatch and Combine of one of three": lambda b: mixture(b, 3, 1),
    "Dispatch and Combine of one": lambda b: mixture(b, 1, 1),
    "Dispatch and Combine of two, again": lambda b: mixture(b, 2, 2),
    **{f"{op} {axes} {keep}": lambda b, op=op, axes=axes, keep=keep: b.op(op, b.heads, b.ints(*axes), keepdims=keep)
       for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
       for axes, keep in (((-1,), 1), ((2, 3), 0), ((1,), 1))},
    "ReduceProd": lambda b: b.op("ReduceProd", b.heads, b.ints(3)),
    "ReduceLogSum": lambda b: b.op("ReduceLogSum", b.op("Exp", b.heads), b.ints(3)),
    "ReduceMax of all": lambda b: b.op("ReduceMax", b.x),
    "ReduceSum of integers": lambda b: b.op("ReduceSum", b.whole, b.ints(2)),
    "Softmax": lambda b: b.op("Softmax", b.x, axis=-1),
    "Softmax of heads": lambda b: b.op("Softmax", b.heads, axis=2),
    "LogSoftmax": lambda b: b.op("LogSoftmax", b.x, axis=-1),
    "LayerNormalization": lambda b: b.op("LayerNormalization", b.x, tensor(b, 12), tensor(b, 12), axis=-1),
    "LayerNormalization without a shift": lambda b: b.op("LayerNormalization", b.x, tensor(b, 12), axis=2),
    "LayerNormalization of small numbers": lambda b: b.op(
        "LayerNormalization", b.op("Mul", b.x, b.number(1e-3)), tensor(b, 12), axis=-1, epsilon=1e-5),
    "LayerNormalization with computed gains": lambda b: b.op(
        "LayerNormalization", b.x, b.op("Exp", tensor(b, 12)), b.op("Exp", tensor(b, 12)), axis=-1),
    "RMSNormalization": lambda b: b.op("RMSNormalization", b.x, tensor(b, 12), axis=-1),
    "RMSNormalization of heads": lambda b: b.op("RMSNormalization", b.heads, tensor(b, 6), axis=-1),
    "RMSNormalization of small numbers": lambda b: b.op(
        "RMSNormalization", b.op("Mul", b.x, b.number(1e-3)), tensor(b, 12), axis=-1, epsilon=1e-6),
    "MatMul": lambda b: b.op("MatMul", b.x, tensor(b, 12, 5)),
    "MatMul of rows alone": lambda b: b.op("MatMul", b.flat, tensor(b, 12, 5)),
    "MatMul of heads": lambda b: b.op("MatMul", b.heads, tensor(b, 6, 5)),
    "MatMul with a bias behind": lambda b: b.op("Add", b.op("MatMul", b.x, tensor(b, 12, 5)), tensor(b, 5)),
    "MatMul with a bias in front": lambda b: b.op("Add", tensor(b, 5), b.op("MatMul", b.x, tensor(b, 12, 5))),
    "MatMul with a bias of three axes": lambda b: b.op("Add", b.op("MatMul", b.x, tensor(b, 12, 5)), tensor(b, 1, 1, 5)),
    "MatMul of a column and a row": lambda b: b.op(
        "MatMul", tensor(b, 1, 5, 1), b.op("Transpose", b.column, perm=(0, 2, 1))),
    "MatMul with a bias in half precision": lambda b: b.op("Add", b.op("MatMul", b.x, tensor(b, 12, 5)), half(b, 5)),
    "Add of a matrix in half precision": lambda b: b.op("Add", b.x, half(b, 1, 12)),
    "LayerNormalization in half precision": lambda b: b.op("LayerNormalization", b.x, half(b, 12), half(b, 12)),
    "Gather of rows in half precision": lambda b: b.op("Gather", half(b, 9, 200), b.counts),
    "Gather of rows of integer codes": lambda b: b.op("Gather", coded(b, 9, 200), b.counts),
    "MatMul with a bias of integer codes": lambda b: b.op("Add", b.op("MatMul", b.x, tensor(b, 12, 5)), coded(b, 5)),
    "RotaryEmbedding of halves": lambda b: rotated(b, b.x, num_heads=3),
    "RotaryEmbedding of neighbours": lambda b: rotated(b, b.x, num_heads=3, interleaved=1),
    "RotaryEmbedding of a part": lambda b: rotated(b, b.x, num_heads=2, rotary_embedding_dim=4),
    "RotaryEmbedding of neighbours of a part": lambda b: rotated(
        b, b.x, num_heads=2, rotary_embedding_dim=4, interleaved=1),
    "RotaryEmbedding of heads": lambda b: rotated(b, b.op("Transpose", b.heads, perm=(0, 2, 1, 3)), half=3),
    "RotaryEmbedding of neighbours of heads": lambda b: rotated(
        b, b.op("Transpose", b.heads, perm=(0, 2, 1, 3)), half=3, interleaved=1),
    "RotaryEmbedding by positions": lambda b: b.op(
        "RotaryEmbedding", b.x, tensor(b, 9, 2), tensor(b, 9, 2), b.op("Cast", b.counts, to=7), num_heads=3),
}  # fmt: skip


def rotated(b: Operands, x: Value, half: int = 2, **attrs: int) -> Value:
    tables = [b.op("Gather", tensor(b, 9, half), b.counts) for _ in range(2)]
    return b.op("RotaryEmbedding", x, *tables, **attrs)


def best(b: Operands, x: Value, count: int, **attrs: int) -> list[Value]:
    """The largest elements of each row, and their places."""
    return list(b.graph.add("TopK", [x, b.ints(count)], attrs, outputs=("", "")).outputs)


def mixture(b: Operands, experts: int, count: int) -> Value:
    """A router over `x`, and gated experts with a bias; the last of them changes nothing."""
    scores = b.op("Softmax", b.op("MatMul", b.x, tensor(b, 12, experts)), axis=-1)
    weights, choices = best(b, scores, count)
    parts = b.graph.add("lading.Dispatch", [b.x, choices], {"experts": experts}, outputs=("",) * experts).outputs
    made = [expert(b, rows) for rows in parts[:-1]]
    return b.op("lading.Combine", choices, weights, *made, parts[-1])


def expert(b: Operands, rows: Value) -> Value:
    gate = b.op("Swish", b.op("MatMul", rows, tensor(b, 12, 20)))
    up = b.op("Add", b.op("MatMul", rows, tensor(b, 12, 20)), tensor(b, 20))
    return b.op("MatMul", b.op("Mul", gate, up), tensor(b, 20, 12))


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """All cases in one module: the lowered graph, where it is written, and what onnxruntime computes by length."""
    graph = graph_of(CASES)
    feeds = {length: feeds_of(graph, length) for length in LENGTHS}
    wanted = {length: list(evaluate(graph, feeds[length]).values()) for length in LENGTHS}
    used = {node.op for node in graph.nodes}
    path = tmp_path_factory.mktemp("operators") / "model.mnn"
    return module_of(graph, path), path, feeds, wanted, used


def test_every_operator_that_is_lowered_is_tried(module):
    # These need a mask and a history that the engine keeps: test_families, test_linear_attention.
    assert set(LOWER) - module[-1] == {"Attention", "lading.SinkAttention", "lading.GatedDeltaRule"}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("version", OUTER)
def test_operators_compute_what_onnxruntime_does(module, version, length):
    graph, path, feeds, wanted, _ = module
    got = run_module(path, graph, feeds[length], version)
    found = {name: distance(want, one) for name, want, one in zip(CASES, wanted[length], got, strict=True)}
    assert {name: gap for name, gap in found.items() if not gap < BAR} == {}


def test_definitions_of_the_lowered_operators_say_the_same(module):
    graph, _, feeds, wanted, _ = module
    evaluated = evaluate(graph, feeds[7])
    got = [evaluated[value.name] for value in graph.outputs]
    found = {name: distance(want, one) for name, want, one in zip(CASES, wanted[7], got, strict=True)}
    assert {name: gap for name, gap in found.items() if not gap < BAR} == {}


@pytest.mark.parametrize("version", OUTER)
def test_outputs_are_values_of_their_own_where_they_hold_the_same_numbers(tmp_path, version):
    made = Operands()
    relu = made.op("Relu", made.x)
    counts = made.op("Identity", made.counts)
    made.graph.set_outputs([relu, made.op("Identity", relu), made.op("Identity", made.x), counts])
    names = [value.name for value in made.graph.outputs]
    feeds = feeds_of(made.graph, 3)
    graph = module_of(made.graph, tmp_path / "model.mnn")
    assert [value.name for value in graph.outputs] == names
    got = run_module(tmp_path / "model.mnn", graph, feeds, version)
    wanted = [np.maximum(feeds["x"], 0), np.maximum(feeds["x"], 0), feeds["x"], feeds["counts"]]
    for want, one in zip(wanted, got, strict=True):
        np.testing.assert_array_equal(one.reshape(want.shape), want)


@given(random_graphs(subgraphs=False, odd_names=False), st.integers(1, 5))
def test_a_lowered_graph_means_the_same_or_is_refused_by_name(graph, length):
    feeds = {
        value.name: np.random.default_rng(0).normal(0, 1, [n if isinstance(n, int) else length for n in value.dims])
        for value in graph.inputs
    }
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    try:
        wanted = evaluate(graph, feeds)
    except LadingError:
        assume(False)
    try:
        PassManager(PIPELINE).run(graph)
    except LadingError as error:
        assert error.code in ("P370", "P371", "P373") and " = " in error.diagnostics[0].where, error
        return
    assert {value.name for value in graph.outputs} == set(wanted)
    for name, got in evaluate(graph, feeds).items():
        np.testing.assert_allclose(got, wanted[name].astype(got.dtype), rtol=1e-4, atol=1e-5)
