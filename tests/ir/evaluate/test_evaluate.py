"""Evaluation: own operators against plain numpy, streaming against whole, feeds, constants and errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ir.base.diag import LadingError
from ir.base.types import DTYPES, F32, I64, Dim, TensorType
from ir.evaluate.evaluator import Evaluator, evaluate, evaluate_constants, sample_feeds
from ir.graph.graph import Graph, Value
from ir.infer.engine import infer_types
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import transposed
from tests.support.contrib.one_operator import normal, run
from tests.support.paths import ROOT

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_sliding_window_mask(dtype: type) -> None:
    positions = np.array([[3, 4, 5, 6, 7, 8]], dtype)
    (found,) = run("lading.SlidingWindowMask", positions, window=3, dynamic=True)
    i, j = positions[0][:, None], positions[0][None, :]
    np.testing.assert_array_equal(found, ((j <= i) & (j > i - 3))[None, None])


@pytest.mark.parametrize("opset", [13, 17, 20, 22])
@pytest.mark.parametrize(
    ("op", "shapes", "attrs"),
    [
        ("mnn.Attention", [(1, 5, 4, 8), (1, 5, 2, 8), (1, 5, 2, 8), ()], {}),
        pytest.param(
            "mnn.Attention", [(1, 5, 4, 8), (1, 5, 2, 8), (1, 5, 2, 8), (1, 1, 5, 5)], {}, marks=pytest.mark.mnn
        ),
        ("mnn.LayerNorm", [(2, 3, 4), (4,), (4,)], {"rms": 1}),
        ("mnn.LayerNorm", [(2, 3, 4), (3, 4), (3, 4)], {"rms": 0, "axis": (-2, -1)}),
        ("mnn.Unary", [(2, 3)], {"kind": "GELU"}),
        ("mnn.Unary", [(2, 3)], {"kind": "GELU_STANDARD"}),
        ("mnn.Unary", [(2, 3)], {"kind": "HARDSWISH"}),
        ("mnn.Reduction", [(2, 3)], {"kind": "SUM", "axes": (1,), "keep_dims": 1}),
        ("mnn.Reduction", [(2, 3)], {"kind": "MEAN", "axes": (1,), "keep_dims": 0}),
        ("mnn.Convolution", [(2, 3, 1, 1), (3, 4), (4,)], {}),
        ("mnn.Squeeze", [(1, 3)], {"axes": (0,)}),
        ("lading.AffineDequantize", [(4, 6), (2, 6), (2, 6)], {"axis": 0, "block_size": 2}),
    ],
)
def test_definitions_hold_at_older_opsets(opset: int, op: str, shapes: list[tuple[int, ...]], attrs: dict) -> None:
    """Graphs read from files keep their opset; what was defined with newer operators must mean the same there."""
    arrays = [normal(*shape) for shape in shapes]
    if op == "lading.AffineDequantize":
        arrays[0] = RNG.integers(-9, 9, shapes[0]).astype(np.int8)
    found = []
    for version in (opset, 24):
        graph = Graph("old", {"": version})
        values = [
            graph.add_input(f"x{i}", TensorType(InlineTensor(a).type.dtype, a.shape)) for i, a in enumerate(arrays)
        ]
        graph.set_outputs([graph.add(op, values, attrs).output])
        assert infer_types(graph) == []
        found += evaluate(graph, {f"x{i}": array for i, array in enumerate(arrays)}).values()
    np.testing.assert_allclose(found[0], found[1], rtol=2e-5, atol=2e-6)


def weight_graph(op: str, codes: Tensor, scale: np.ndarray, zero: np.ndarray | None, attrs: dict) -> Graph:
    graph = Graph("weight")
    values = [graph.add_const("codes", codes), graph.add_const("scale", InlineTensor(scale))]
    if zero is not None:
        values.append(graph.add_const("zero", InlineTensor(zero, codes.type.dtype if op[0] == "D" else None)))
    graph.set_outputs([graph.add(op, values, attrs).output])
    assert infer_types(graph) == []
    return graph


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("axis", "block"), [(0, 4), (1, 2), (1, 5)])
def test_affine_dequantize(bits: int, axis: int, block: int) -> None:
    dtype = DTYPES[f"i{bits}"]
    codes = RNG.integers(dtype.low, dtype.high + 1, (8, 6))
    shape = (2, 6) if axis == 0 else (8, -(-6 // block))
    scale, zero = normal(*shape), normal(*shape)
    tensor = InlineTensor(codes.astype(dtype.numpy), dtype)
    graph = weight_graph("lading.AffineDequantize", tensor, scale, zero, {"axis": axis, "block_size": block})
    wide = [np.repeat(part, block, axis)[:, : codes.shape[1]] for part in (scale, zero)]
    np.testing.assert_allclose(
        evaluate(graph, {})[graph.outputs[0].name], codes * wide[0] + wide[1], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("scale_shape", [(), (6,)])
def test_affine_dequantize_per_tensor_and_per_axis(scale_shape: tuple[int, ...]) -> None:
    codes = RNG.integers(-128, 128, (8, 6)).astype(np.int8)
    scale, zero = normal(*scale_shape), normal(*scale_shape)
    graph = weight_graph("lading.AffineDequantize", InlineTensor(codes), scale, zero, {"axis": 1})
    np.testing.assert_allclose(evaluate(graph, {})[graph.outputs[0].name], codes * scale + zero, rtol=1e-6, atol=1e-6)


# ---- element types ----


@pytest.mark.parametrize(
    "name", ["f32", "f16", "bf16", "f64", "i64", "i32", "i16", "i8", "u8", "bool", "i4", "u4", "f8e4m3fn", "i2", "i5"]
)
def test_every_element_type_goes_in_and_out(name: str) -> None:
    dtype = DTYPES[name]
    low = 0 if dtype.kind in "ub" else -2
    array = np.array([[low, 0, 1, 1, low]]).astype(dtype.numpy)
    graph = Graph("identity")
    x = graph.add_input("x", TensorType(dtype, (1, Dim("n"))))
    c = graph.add_const("c", InlineTensor(array, dtype))
    graph.set_outputs([graph.add("Concat", [x, x], {"axis": 1}).output, graph.add("Identity", [c]).output, c, x])
    if dtype.bits < 8 or name == "f8e4m3fn":
        graph.set_outputs(
            [graph.add("Cast", [x], {"to": F32.onnx}).output, graph.add("Cast", [c], {"to": 1}).output, c, x]
        )
    found = evaluate(graph, {"x": array})
    joined, copied, constant, fed = found.values()
    if dtype.bits < 8 or name == "f8e4m3fn":
        np.testing.assert_array_equal(joined, array.astype(np.float32))
        np.testing.assert_array_equal(copied, array.astype(np.float32))
    else:
        np.testing.assert_array_equal(joined, np.concatenate([array, array], 1))
        np.testing.assert_array_equal(copied, array)
    assert constant.dtype == fed.dtype == dtype.numpy
    np.testing.assert_array_equal(fed.astype(np.float32), array.astype(np.float32))
    np.testing.assert_array_equal(constant.astype(np.float32), array.astype(np.float32))


def test_large_four_bit_constants_are_fed_packed() -> None:
    codes = RNG.integers(-8, 8, (96, 128)).astype(ml_dtypes.int4)
    scale = normal(3, 128)
    graph = weight_graph("DequantizeLinear", InlineTensor(codes), scale, None, {"axis": 0, "block_size": 32})
    want = codes.astype(np.float32) * np.repeat(scale, 32, 0)
    np.testing.assert_allclose(evaluate(graph, {})[graph.outputs[0].name], want, rtol=1e-6)


@pytest.mark.parametrize("opset", [21, 24, 25])
@pytest.mark.parametrize("rows", [8, 256])
def test_two_bit_constants_run_at_every_opset(opset: int, rows: int) -> None:
    graph = Graph("two", {"": opset})
    codes = RNG.integers(-2, 2, (rows, 128)).astype(ml_dtypes.int2)
    values = [graph.add_const("codes", InlineTensor(codes)), graph.add_const("scale", InlineTensor(np.float32(0.5)))]
    graph.set_outputs([graph.add("DequantizeLinear", values).output])
    assert infer_types(graph) == []
    np.testing.assert_array_equal(evaluate(graph, {})[graph.outputs[0].name], codes.astype(np.float32) / 2)


# ---- streaming ----


class Counting(Tensor):
    """A tensor that counts how many of its rows were read."""

    def __init__(self, array: np.ndarray) -> None:
        inner = InlineTensor(array)
        super().__init__(inner.type, "counting")
        self.inner, self.read, self.most = inner, 0, 0

    def rows(self, start: int, stop: int) -> np.ndarray:
        self.read += stop - start
        self.most = max(self.most, stop - start)
        return self.inner.rows(start, stop)

    def recipe(self):
        return "counting", (id(self),), {}


def decoder(layers: int = 3, hidden: int = 64, vocab: int = 512) -> tuple[Graph, list[Counting]]:
    """A small decoder whose matrices are the transposes of stored [out, in] ones; the logits matrix is the table."""
    rng = np.random.default_rng(1)
    graph = Graph("decoder")
    seq = graph.add_dim(Dim("seq", 1, 64))
    ids = graph.add_input("ids", TensorType(I64, (1, seq)))
    stored: list[Counting] = []

    def matrix(rows: int, columns: int) -> Counting:
        stored.append(Counting((rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)))
        return stored[-1]

    def linear(x: Value, columns: int) -> Value:
        weight = graph.add_const("w", transposed(matrix(columns, x.shape[-1])))
        return graph.add("MatMul", [x, weight], types=[TensorType(F32, (1, seq, columns))]).output

    table = matrix(vocab, hidden)
    shape = TensorType(F32, (1, seq, hidden))
    x = graph.add("Gather", [graph.add_const("table", table), ids], types=[shape]).output
    gamma = graph.add_const("gamma", InlineTensor(np.ones(hidden, np.float32)))
    for _ in range(layers):
        normed = graph.add("RMSNormalization", [x, gamma], types=[shape]).output
        gate, up = linear(normed, 4 * hidden), linear(normed, 4 * hidden)
        inner = graph.add("Mul", [graph.add("Swish", [gate]).output, up], types=[gate.type]).output
        x = graph.add("Add", [x, linear(inner, hidden)], types=[shape]).output
    logits = graph.add("MatMul", [x, graph.add_const("head", transposed(table))], outputs=["logits"]).output
    graph.set_outputs([logits])
    assert infer_types(graph) == []
    return graph, stored


def test_streaming_equals_whole() -> None:
    graph, _ = decoder()
    feeds = {"ids": np.array([[3, 500, 3, 7, 8]])}
    whole = evaluate(graph, feeds)["logits"]
    # One matrix of a layer is 64 KiB; the table of 128 KiB must be computed in pieces.
    evaluator = Evaluator(graph, memory_limit=100 << 10)
    assert sum(segment.in_pieces for segment in evaluator._segments) == 2
    assert len(evaluator._segments) > 5
    np.testing.assert_allclose(evaluator.run(feeds)["logits"], whole, rtol=1e-5, atol=1e-5)
    assert whole.shape == (1, 5, 512)


def test_many_feeds_read_every_constant_once() -> None:
    graph, stored = decoder()
    evaluator = Evaluator(graph, memory_limit=100 << 10)
    feeds = [{"ids": RNG.integers(0, 512, (1, length))} for length in (1, 4, 9)]
    many = evaluator.run_many(feeds)
    for weight in stored[1:]:
        assert weight.read == weight.row_count
    # The table is read once for the logits, and by the rows of the tokens for the embedding.
    tokens = np.unique(np.concatenate([feed["ids"].reshape(-1) for feed in feeds]))
    assert stored[0].read == 512 + len(tokens)
    assert stored[0].most * 64 * 4 <= 100 << 10
    for feed, found in zip(feeds, many, strict=True):
        np.testing.assert_allclose(found["logits"], evaluate(graph, feed)["logits"], rtol=1e-5, atol=1e-5)


def test_only_what_is_wanted_is_computed() -> None:
    graph, stored = decoder()
    first = next(node.output for node in graph.nodes if node.op == "RMSNormalization")
    assert evaluate(graph, {"ids": np.array([[1, 2]])}, outputs=[first.name])[first.name].shape == (1, 2, 64)
    assert all(weight.read == 0 for weight in stored[1:])


def test_constants_stay_loaded_without_a_limit() -> None:
    graph, stored = decoder()
    evaluator = Evaluator(graph)
    for _ in range(3):
        evaluator.run({"ids": np.array([[1, 2]])})
    assert all(weight.read == weight.row_count for weight in stored[1:])


def quantized_matrix(graph: Graph, op: str, flip: bool) -> Value:
    """A dequantized [in, out] weight before everything else in the program; `flip` stores it as [out, in]."""
    codes, scale = RNG.integers(-8, 8, (256, 64)).astype(ml_dtypes.int4), np.abs(normal(256, 2))
    zero = normal(256, 2) if op.startswith("lading") else RNG.integers(-8, 8, (256, 2)).astype(ml_dtypes.int4)
    parts = [InlineTensor(part) for part in (codes, scale, zero)]
    oriented = [transposed(part) if not flip else part for part in parts]
    values = [graph.add_const(name, part) for name, part in zip("csz", oriented, strict=True)]
    weight = graph.add(op, values, {"axis": 1 if flip else 0, "block_size": 32}, before=graph.first).output
    return graph.add("Transpose", [weight], {"perm": (1, 0)}).output if flip else weight


@pytest.mark.parametrize("op", ["DequantizeLinear", "lading.AffineDequantize"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("limit", [300 << 10, 20 << 10])
def test_dequantized_weights_stream(op: str, flip: bool, limit: int) -> None:
    graph = Graph("quantized")
    x = graph.add_input("x", TensorType(F32, (1, Dim("seq"), 64)))
    weight = quantized_matrix(graph, op, flip)
    graph.set_outputs([graph.add("MatMul", [x, weight]).output, graph.add("MatMul", [x, weight]).output])
    assert infer_types(graph) == []
    feeds = {"x": normal(1, 3, 64)}
    whole = evaluate(graph, feeds)
    evaluator = Evaluator(graph, memory_limit=limit)
    assert all(segment.in_pieces for segment in evaluator._segments) == (limit < 64 << 10)
    for name, array in evaluator.run(feeds).items():
        np.testing.assert_allclose(array, whole[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [None, 1 << 20])
def test_weights_are_computed_once_for_all_feeds(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from ir.evaluate.onnxruntime_session import Session

    graph = Graph("once")
    x = graph.add_input("x", TensorType(F32, (Dim("n"), 128)))
    codes = Counting(RNG.integers(-8, 8, (128, 256)).astype(np.int8))
    scale = graph.add_const("scale", InlineTensor(np.float32(0.1)))
    weight = graph.add("DequantizeLinear", [graph.add_const("codes", codes), scale]).output
    graph.set_outputs([graph.add("MatMul", [x, weight]).output])
    assert infer_types(graph) == []
    ran: list[int] = []
    run_session = Session.run
    monkeypatch.setattr(Session, "run", lambda self, *args: ran.append(id(self)) or run_session(self, *args))
    evaluator = Evaluator(graph, memory_limit=limit)
    feeds = [{"x": normal(rows, 128)} for rows in (1, 2, 3)]
    for found, given in zip(evaluator.run_many(feeds), feeds, strict=True):
        np.testing.assert_allclose(found[graph.outputs[0].name], given["x"] @ (codes.inner.load() * 0.1), 1e-4, 1e-4)
    assert len(ran) == 1 + 3 and codes.read == 128
    evaluator.run_many(feeds)
    assert len(ran) == 4 + (3 if limit is None else 4)


@pytest.mark.parametrize(
    "case", ["Gemm", "GemmT", pytest.param("Conv", marks=pytest.mark.mnn), "MatMul", "Gather", "GatherQ"]
)
def test_operators_in_pieces(case: str) -> None:
    graph = Graph("pieces")
    stored = InlineTensor(normal(96, 64))
    x = graph.add_input("x", TensorType(F32, (3, 64)))
    bias = graph.add_const("bias", InlineTensor(normal(96)))
    if case in ("Gemm", "GemmT"):
        weight = graph.add_const("w", stored if case == "GemmT" else transposed(stored))
        attrs = {"alpha": 0.5, "beta": 2.0, "transB": int(case == "GemmT")}
        graph.set_outputs([graph.add("Gemm", [x, weight, bias], attrs).output])
    elif case == "Conv":
        packed = graph.add("mnn.Reshape", [x], {"dims": (-1, 64, 1, 1)}).output
        weight = graph.add_const("w", transposed(stored))
        graph.set_outputs([graph.add("mnn.Convolution", [packed, weight, bias]).output])
    elif case == "MatMul":
        weight = graph.add_const("w", InlineTensor(normal(64, 96)))
        graph.set_outputs([graph.add("MatMul", [x, weight]).output])
    else:
        table: Value = graph.add_const("table", stored)
        if case == "GatherQ":
            codes = InlineTensor(RNG.integers(-8, 8, (96, 64)).astype(ml_dtypes.int4))
            parts = [graph.add_const("c", codes), graph.add_const("s", InlineTensor(normal(96, 2)))]
            table = graph.add("DequantizeLinear", parts, {"axis": 1, "block_size": 32}).output
        places = graph.add_input("places", TensorType(I64, (2, 3)))
        graph.set_outputs([graph.add("Gather", [table, places]).output])
    assert infer_types(graph) == []
    feeds = {
        value.name: normal(3, 64) if value.name == "x" else np.array([[0, -1, 95], [7, 7, 8]]) for value in graph.inputs
    }
    (want,) = evaluate(graph, feeds).values()
    evaluator = Evaluator(graph, memory_limit=6 << 10)
    assert any(segment.in_pieces for segment in evaluator._segments)
    (found,) = evaluator.run(feeds).values()
    assert found.shape == want.shape and found.dtype == want.dtype
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


STREAM = """
import sys, numpy as np
from ir.evaluate.evaluator import Evaluator
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from ir.tensor.files import FileTensor
from ir.tensor.rearranged import transposed
from ir.base.types import F32, I64, TensorType

def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) // 1024

graph = Graph("big")
table = FileTensor(sys.argv[1], 0, TensorType(F32, (32768, 1024)))
ids = graph.add_input("ids", TensorType(I64, (1, 4)))
x = graph.add("Gather", [graph.add_const("table", table), ids]).output
for layer in range(12):
    weight = FileTensor(sys.argv[1], layer * (4 << 20), TensorType(F32, (1024, 1024)))
    x = graph.add("MatMul", [x, graph.add_const("w", transposed(weight))]).output
graph.set_outputs([graph.add("MatMul", [x, graph.add_const("head", transposed(table))]).output])
assert infer_types(graph) == []
import onnxruntime
before = memory("VmRSS")
found = Evaluator(graph, memory_limit=16 << 20).run({"ids": np.array([[1, 2, 3, 30000]])})
assert next(iter(found.values())).shape == (1, 4, 32768)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_stays_near_the_limit(tmp_path: Path) -> None:
    """176 MiB of constants under a limit of 16 MiB."""
    path = tmp_path / "weights.bin"
    with open(path, "wb") as file:
        file.truncate(128 << 20)
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 96


def test_constant_rows_of_a_large_table_are_read_alone() -> None:
    graph = Graph("rows")
    table = Counting(np.arange(5 << 20, dtype=np.float32).reshape(-1, 1024))
    places = graph.add_const("places", InlineTensor(np.array([5, 7])))
    rows = graph.add("Gather", [graph.add_const("table", table), places]).output
    x = graph.add_input("x", TensorType(F32, (1,)))
    graph.set_outputs([graph.add("Add", [rows, x]).output])
    assert infer_types(graph) == []
    (found,) = evaluate(graph, {"x": np.ones(1, np.float32)}).values()
    np.testing.assert_array_equal(found, table.inner.load()[[5, 7]] + 1)
    assert table.read == 2


# ---- constants, feeds, errors ----


def test_constants_are_folded_in_one_go() -> None:
    graph = Graph("fold")
    x = graph.add_input("x", TensorType(F32, (2,)))
    c = graph.add_const("c", InlineTensor(np.array([1.0, 2.0], np.float32)))
    big = graph.add_const("big", InlineTensor(np.zeros(1000, np.float32)))
    doubled = graph.add("Add", [c, c]).output
    cut = graph.add("Neg", [doubled]).output
    graph.add("Mul", [cut, x])
    graph.add("Neg", [big])
    graph.add("RandomNormal", [], {"shape": (2,)})
    found = evaluate_constants(graph.nodes, limit=100)
    assert sorted(found) == sorted([doubled.name, cut.name])
    assert found[cut.name].tolist() == [-2.0, -4.0]
    assert evaluate_constants([]) == {}


def test_captured_constants_reach_subgraphs() -> None:
    graph = Graph("branches")
    choose = graph.add_input("choose", TensorType(DTYPES["bool"], ()))
    c = graph.add_const("c", InlineTensor(normal(40, 40)))
    node = graph.add("If", [choose])
    for name, op in (("then_branch", "Neg"), ("else_branch", "Abs")):
        sub = Graph(name, owner=node)
        sub.set_outputs([sub.add(op, [c]).output])
        graph.set_attrs(node, **{name: sub})
    graph.set_outputs([node.output])
    assert infer_types(graph) == []
    assert node.output.type == c.type
    for flag, want in ((True, np.negative), (False, np.abs)):
        (found,) = evaluate(graph, {"choose": np.array(flag)}).values()
        np.testing.assert_array_equal(found, want(c.const.load()))


def test_feeds_are_legal() -> None:
    graph, _ = decoder(1)
    mask = graph.add_input("mask", TensorType(I64, (1, Dim("total", 3, 9, 3))))
    positions = graph.add_input("positions", TensorType(I64, (1, Dim("seq"))))
    turned = graph.add("Cos", [graph.add("Cast", [positions], {"to": 1}).output]).output
    graph.set_outputs([*graph.outputs, turned, graph.add("Neg", [mask]).output])
    feeds = sample_feeds(graph, {"seq": 6}, seed=3)
    assert feeds["ids"].shape == (1, 6) and 0 <= feeds["ids"].min() <= feeds["ids"].max() < 512
    assert feeds["positions"].tolist() == [[0, 1, 2, 3, 4, 5]]
    assert feeds["mask"].tolist() == [[1] * 6]
    again = sample_feeds(graph, {"seq": 6}, seed=3)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)
    evaluate(graph, feeds)
    with pytest.raises(LadingError, match="T226"):
        sample_feeds(graph, {"total": 4})


def check(code: str, *args, **kwargs) -> str:
    with pytest.raises(LadingError) as caught:
        evaluate(*args, **kwargs)
    assert caught.value.code == code
    return str(caught.value)


def test_errors_name_the_input() -> None:
    graph, _ = decoder(1)
    ids = np.array([[1, 2]])
    assert "ids: i64[1, seq]" in check("T221", graph, {})
    assert "int32[1, 2]" in check("T222", graph, {"ids": ids.astype(np.int32)})
    assert "seq is 1..64" in check("T222", graph, {"ids": np.zeros((1, 65), np.int64)})
    assert "did you mean 'ids'" in check("T223", graph, {"id": ids})
    assert "did you mean 'logits'" in check("T223", graph, {"ids": ids}, outputs=["logit"])
    assert "rows" in check("T220", graph, {"ids": np.array([[600]])}, memory_limit=100 << 10)


def test_sizes_of_one_dimension_agree() -> None:
    graph = Graph("sum")
    values = [graph.add_input(name, TensorType(F32, (Dim("n"),))) for name in "ab"]
    graph.set_outputs([graph.add("Add", values).output])
    assert "n is 2 in 'a' and 3 in 'b'" in check("T222", graph, {"a": normal(2), "b": normal(3)})


def test_errors_of_the_runtime_name_the_nodes() -> None:
    graph = Graph("bad")
    x = graph.add_input("x", TensorType(F32))
    graph.set_outputs([graph.add("MatMul", [x, x], name="product").output])
    text = check("T220", graph, {"x": normal(2, 3)})
    assert "node 'product'" in text and "onnxruntime" in text
    unknown = Graph("unknown")
    unknown.set_outputs([unknown.add("nobody.Op", [unknown.add_input("x", TensorType(F32, (1,)))]).output])
    check("T220", unknown, {"x": normal(1)})


def test_a_constant_beyond_the_limit_is_reported() -> None:
    graph = Graph("large")
    x = graph.add_input("x", TensorType(F32, (1, 1000)))
    graph.set_outputs([graph.add("Add", [x, graph.add_const("c", InlineTensor(normal(1, 1000)))]).output])
    assert "allow at least 4000 bytes" in check("T224", graph, {"x": normal(1, 1000)}, memory_limit=1000)


def test_values_that_are_not_tensors_cannot_be_fed() -> None:
    from ir.base.types import SequenceType

    graph = Graph("sequence")
    x = graph.add_input("x", SequenceType(TensorType(F32)))
    graph.set_outputs([graph.add("SequenceLength", [x]).output])
    check("T225", graph, {"x": normal(1)})
