"""The operator table and type inference: against ONNX's node tests, onnxruntime's shapes, and by example."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ir.base.diag import LadingError
from ir.base.tables import Table
from ir.base.types import BOOL, DTYPES, F32, I64, Dim, SequenceType, TensorType, dtype_of_numpy
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph, Node, Value
from ir.infer.engine import infer_node, infer_types
from ir.infer.rule_table import TypeMismatch
from ir.infer.rules import RULES
from ir.infer.symbolic import SymbolTable
from ir.ops import registry as registry_module
from ir.ops.check import check_node
from ir.ops.meaning import define
from ir.ops.registry import ANY, OPERATORS, AttrDef, OpDef, attribute, is_rowwise, lookup, opdef
from ir.tensor.inline import InlineTensor
from tests.support.onnx_models import Unsupported, graph_of
from tests.support.work import calls_of

# ---- ONNX's own node tests ----

NOT_EXACT = {"NonZero", "Loop", "Range", "Scan", "Compress", "Unique", "NonMaxSuppression"}
"""Operators whose result sizes follow from contents, rounds, or numbers that are not constant here."""


@cache
def node_cases() -> list:
    from onnx.backend.test.case.node import collect_testcases

    with np.errstate(all="ignore"):
        return collect_testcases(None)


def fixed_inputs(case) -> dict[str, np.ndarray]:
    """Small integer inputs, which exporters write as constants: shapes, axes, counts."""
    arrays = zip(case.model.graph.input, case.data_sets[0][0], strict=False)
    return {
        info.name: array
        for info, array in arrays
        if isinstance(array, np.ndarray) and array.ndim <= 1 and array.dtype in (np.int64, np.int32) and array.size < 64
    }


def covered_cases() -> list:
    """Node tests all of whose operators have a rule of our own."""
    rules = RULES
    found = []
    for case in node_cases():
        try:
            graph = graph_of(case.model, fixed=fixed_inputs(case))
        except Unsupported:
            continue
        if all(node.op in rules for node in graph.walk()):
            found.append((case, graph))
    return found


def fits(type_: TensorType, array: np.ndarray) -> bool:
    shape = type_.shape
    return shape is None or (
        len(shape) == array.ndim
        and all(dim == size for dim, size in zip(shape, array.shape, strict=True) if type(dim) is int)
    )


@pytest.mark.filterwarnings("ignore")
def test_rules_agree_with_every_node_test_of_onnx() -> None:
    cases = covered_cases()
    assert len(cases) > 1000
    exact = 0
    for case, graph in cases:
        assert infer_types(graph) == [], case.name
        version = graph.version
        assert infer_types(graph) == [] and graph.version == version, case.name
        told = onnx_types(case.model)
        inexact = {node.op for node in graph.walk()} & NOT_EXACT
        for value, expected in zip(graph.outputs, case.data_sets[0][1], strict=True):
            if not isinstance(expected, np.ndarray) or not isinstance(value.type, TensorType):
                continue
            assert fits(value.type, expected), (case.name, str(value.type), expected.shape)
            if expected.dtype.kind != "V" and expected.dtype.kind != "O":
                assert value.type.dtype == dtype_of_numpy(expected.dtype), case.name
            assert value.type.is_static or inexact, (case.name, str(value.type))
            exact += value.type.is_static
            known = told.get(value.name)
            if known is not None and value.type.shape is not None and not inexact:
                pairs = zip(known, value.type.shape, strict=True)
                assert all(theirs is None or theirs == ours for theirs, ours in pairs), case.name
    assert exact > 1200


def onnx_types(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Shapes of a model's outputs as ONNX's own inference tells them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for output in copy.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    found = {}
    for output in inferred.graph.output:
        if output.type.tensor_type.HasField("shape"):
            dims = output.type.tensor_type.shape.dim
            found[output.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    return found


# ---- symbolic dimensions, against what onnxruntime computes ----

SIZES = {"S": 5, "T": 3, "B": 2, "P": 4}

TABLE = [
    ("Add", "f32[B, S, 8] f32[8]", {}, "f32[B, S, 8]"),
    ("Add", "f32[B, S, 1] f32[1, 1, 8]", {}, "f32[B, S, 8]"),
    ("Sub", "f32[S, 1] f32[1, T]", {}, "f32[S, T]"),
    ("Mul", "f32[S] f32[S]", {}, "f32[S]"),
    ("Div", "f32[] f32[S, 2]", {}, "f32[S, 2]"),
    ("Pow", "f32[S] i64[]", {}, "f32[S]"),
    ("Mod", "i64[S] i64[1]", {}, "i64[S]"),
    ("Max", "f32[S, 1] f32[1, T] f32[]", {}, "f32[S, T]"),
    ("Min", "f32[S]", {}, "f32[S]"),
    ("Sum", "f32[S, 4] f32[4]", {}, "f32[S, 4]"),
    ("Mean", "f32[1, 4] f32[S, 1]", {}, "f32[S, 4]"),
    ("Where", "bool[S, 1] f32[1, T] f32[]", {}, "f32[S, T]"),
    ("Equal", "i64[S] i64[1]", {}, "bool[S]"),
    ("GreaterOrEqual", "f32[S, 1] f32[T]", {}, "bool[S, T]"),
    ("And", "bool[S] bool[]", {}, "bool[S]"),
    ("Not", "bool[S, 2]", {}, "bool[S, 2]"),
    ("IsNaN", "f32[S]", {}, "bool[S]"),
    ("Cast", "f32[B, S]", {"to": 7}, "i64[B, S]"),
    ("CastLike", "f32[S] f16[3]", {}, "f16[S]"),
    ("Relu", "f32[B, S]", {}, "f32[B, S]"),
    ("Gelu", "f32[S, 4]", {"approximate": "tanh"}, "f32[S, 4]"),
    ("Swish", "f32[S]", {}, "f32[S]"),
    ("Sigmoid", "f32[S]", {}, "f32[S]"),
    ("Clip", "f32[S] f32[] f32[]", {}, "f32[S]"),
    ("Softmax", "f32[B, S, T]", {"axis": -1}, "f32[B, S, T]"),
    ("CumSum", "f32[S, 2] i64=1", {}, "f32[S, 2]"),
    ("MatMul", "f32[B, S, 8] f32[8, 3]", {}, "f32[B, S, 3]"),
    ("MatMul", "f32[B, 2, S, 8] f32[B, 1, 8, T]", {}, "f32[B, 2, S, T]"),
    ("MatMul", "f32[8] f32[S, 8, 3]", {}, "f32[S, 3]"),
    ("MatMul", "f32[S, 8] f32[8]", {}, "f32[S]"),
    ("MatMul", "f32[8] f32[8]", {}, "f32[]"),
    ("MatMulInteger", "u8[S, 8] u8[8, 3]", {}, "i32[S, 3]"),
    ("Gemm", "f32[S, 8] f32[3, 8] f32[3]", {"transB": 1}, "f32[S, 3]"),
    ("Gemm", "f32[8, S] f32[8, 3]", {"transA": 1}, "f32[S, 3]"),
    ("ReduceMean", "f32[B, S, 8] i64=-1", {}, "f32[B, S, 1]"),
    ("ReduceSum", "f32[B, S, 8] i64=0,2", {"keepdims": 0}, "f32[S]"),
    ("ReduceMax", "f32[B, S]", {"keepdims": 0}, "f32[]"),
    ("ReduceSum", "f32[B, S] i64=", {"noop_with_empty_axes": 1}, "f32[B, S]"),
    ("ReduceMax", "f32[B, S, 4] i64[2]", {}, "f32[?, ?, ?]"),
    ("ReduceMax", "f32[B, S, 4] i64[2]", {"keepdims": 0}, "f32[?]"),
    ("ArgMax", "f32[B, S, 8]", {"axis": 2, "keepdims": 0}, "i64[B, S]"),
    ("LayerNormalization", "f32[B, S, 8] f32[8]", {}, "f32[B, S, 8]"),
    ("RMSNormalization", "f32[B, S, 8] f32[8]", {}, "f32[B, S, 8]"),
    ("RotaryEmbedding", "f32[B, 2, S, 8] f32[B, S, 4] f32[B, S, 4]", {}, "f32[B, 2, S, 8]"),
    ("Attention", "f32[B, 4, S, 8] f32[B, 2, T, 8] f32[B, 2, T, 6]", {}, "f32[B, 4, S, 6]"),
    ("Attention", "f32[B, S, 32] f32[B, T, 16] f32[B, T, 16]", {"q_num_heads": 4, "kv_num_heads": 2}, "f32[B, S, 32]"),
    ("Reshape", "f32[B, S, 8] i64=0,0,2,4", {}, "f32[B, S, 2, 4]"),
    ("Reshape", "f32[B, S, 2, 4] i64=0,0,-1", {}, "f32[B, S, 8]"),
    ("Reshape", "f32[B, S, 8] i64=0,-1,4", {}, "f32[B, ?, 4]"),
    ("Reshape", "f32[1, S, 8] i64=-1,8", {}, "f32[S, 8]"),
    ("Reshape", "f32[S, 1, 8] i64=1,-1,8", {}, "f32[1, S, 8]"),
    ("Reshape", "f32[B, S] i64=-1", {}, "f32[?]"),
    ("Reshape", "f32[B, S, 8] i64[3]", {}, None),
    ("Flatten", "f32[B, S, 8]", {"axis": 2}, "f32[?, 8]"),
    ("Flatten", "f32[S, 2, 4]", {}, "f32[S, 8]"),
    ("Transpose", "f32[B, S, 2, 4]", {"perm": (0, 2, 1, 3)}, "f32[B, 2, S, 4]"),
    ("Transpose", "f32[B, S]", {}, "f32[S, B]"),
    ("Concat", "f32[S, 4] f32[S, 4]", {"axis": -1}, "f32[S, 8]"),
    ("Concat", "f32[1, S] f32[B, S]", {"axis": 0}, "f32[?, S]"),
    ("Concat", "f32[0, 4] f32[S, 4]", {"axis": 0}, "f32[S, 4]"),
    ("Split", "f32[S, 8]", {"axis": 1, "num_outputs": 2}, "f32[S, 4]"),
    ("Split", "f32[S, 7]", {"axis": 1, "num_outputs": 2}, "f32[S, 4] f32[S, 3]"),
    ("Split", "f32[S, 8] i64=3,5", {"axis": 1}, "f32[S, 3] f32[S, 5]"),
    ("Slice", "f32[B, S, 8] i64=0 i64=4 i64=2", {}, "f32[B, S, 4]"),
    ("Slice", "f32[B, S, 8] i64=-1 i64=9223372036854775807 i64=1", {}, "f32[B, 1, 8]"),
    ("Slice", "f32[S, 8] i64=0 i64=9223372036854775807 i64=0", {}, "f32[S, 8]"),
    ("Slice", "f32[S, 8] i64=1 i64=9223372036854775807 i64=0", {}, "f32[?, 8]"),
    ("Slice", "f32[S, 8] i64=7 i64=-9223372036854775807 i64=1 i64=-2", {}, "f32[S, 4]"),
    ("Slice", "f32[S, 8] i64=-1 i64=-9223372036854775807 i64=0 i64=-1", {}, "f32[S, 8]"),
    ("Slice", "f32[S, 8] i64[1] i64=4 i64=0", {}, "f32[?, 8]"),
    ("Slice", "f32[S, 8] i64=2,1 i64=3,4", {}, "f32[?, 3]"),
    ("Gather", "f32[100, 8] i64[B, S]", {}, "f32[B, S, 8]"),
    ("Gather", "f32[S, 8] i64=-1", {"axis": 1}, "f32[S, 1]"),
    ("GatherElements", "f32[S, 8] i64[S, 2]", {"axis": 1}, "f32[S, 2]"),
    ("GatherND", "f32[4, 5, S] i64[B, 2]", {}, "f32[B, S]"),
    ("Unsqueeze", "f32[S, 8] i64=0,-1", {}, "f32[1, S, 8, 1]"),
    ("Squeeze", "f32[1, S, 1] i64=0", {}, "f32[S, 1]"),
    ("Squeeze", "f32[1, 8, 1]", {}, "f32[8]"),
    ("Expand", "f32[S, 1] i64=3,1,4", {}, "f32[3, S, 4]"),
    ("Tile", "f32[S, 2] i64=1,3", {}, "f32[S, 6]"),
    ("Tile", "f32[S, 2] i64=2,1", {}, "f32[?, 2]"),
    ("Shape", "f32[B, S, 8]", {}, "i64[3]"),
    ("Shape", "f32[B, S, 8]", {"start": 1, "end": 2}, "i64[1]"),
    ("Size", "f32[B, S]", {}, "i64[]"),
    ("Range", "i64=1 i64=7 i64=2", {}, None),
    ("ConstantOfShape", "i64=2,3", {}, "f32[2, 3]"),
    ("NonZero", "f32[S, 2]", {}, "i64[2, ?]"),
    ("TopK", "f32[S, 8] i64=3", {}, "f32[S, 3] i64[S, 3]"),
    ("Trilu", "f32[S, T]", {}, "f32[S, T]"),
    ("ScatterND", "f32[S, 8] i64[1, 1] f32[1, 8]", {}, "f32[S, 8]"),
    ("QuantizeLinear", "f32[S, 8] f32[] u8[]", {}, "u8[S, 8]"),
    ("QuantizeLinear", "f32[S, 8] f32[]", {"output_dtype": 3}, "i8[S, 8]"),
    ("DequantizeLinear", "i8[S, 8] f32[8]", {"axis": 1}, "f32[S, 8]"),
    ("DequantizeLinear", "i8[8, 6] f32[2, 6]", {"axis": 0, "block_size": 4}, "f32[8, 6]"),
    ("DynamicQuantizeLinear", "f32[S, 8]", {}, "u8[S, 8] f32[] u8[]"),
    ("Conv", "f32[B, 3, S, 9] f32[4, 3, 3, 3]", {"pads": (1, 1, 1, 1)}, "f32[B, 4, ?, 9]"),
    ("OneHot", "i64[B, S] i64=6 f32[2]", {}, "f32[B, S, 6]"),
    ("Pad", "f32[S, 4] i64=0,1,0,1", {}, "f32[S, 6]"),
    ("Einsum", "f32[B, S, 8] f32[8, T]", {"equation": "bsi,ij->bsj"}, "f32[B, S, T]"),
    ("Dropout", "f32[S, 4]", {}, "f32[S, 4]"),
    ("lading.SlidingWindowMask", "i64[1, S]", {"window": 2}, "bool[1, 1, S, S]"),
    ("lading.AffineDequantize", "i8[8, 6] f32[2, 6] f32[2, 6]", {"axis": 0, "block_size": 4}, "f32[8, 6]"),
    ("mnn.Reshape", "f32[1, S, 8]", {"dims": (-1, 8, 1, 1)}, "f32[S, 8, 1, 1]"),
    ("mnn.Reshape", "f32[S, 8, 1, 1]", {"dims": (1, -1, 2, 4)}, "f32[1, S, 2, 4]"),
    ("mnn.ConvertTensor", "f32[S, 8, 1, 1]", {"source": "NCHW", "dest": "NC4HW4"}, "f32[S, 8, 1, 1]"),
    ("mnn.Convolution", "f32[S, 8, 1, 1] f32[8, 6] f32[6]", {}, "f32[S, 6, 1, 1]"),
    ("mnn.LayerNorm", "f32[1, S, 8] f32[8] f32[8]", {"rms": 1}, "f32[1, S, 8]"),
    ("mnn.Attention", "f32[1, S, 4, 8] f32[1, S, 2, 8] f32[1, S, 2, 8] f32[]", {}, "f32[1, S, 32]"),
    ("mnn.Unary", "f32[1, S, 1, 4]", {"kind": "COS"}, "f32[1, S, 1, 4]"),
    ("mnn.Binary", "f32[1, S, 1, 1] f32[1, 1, 1, 4]", {"kind": "MUL"}, "f32[1, S, 1, 4]"),
    ("mnn.Binary", "i32[S] i32[1]", {"kind": "LESS"}, "i32[S]"),
    ("mnn.Cast", "i32[1, S]", {"to": 1}, "f32[1, S]"),
    ("mnn.Slice", "f32[1, S, 2, 8]", {"axis": 3, "points": (4,)}, "f32[1, S, 2, 4] f32[1, S, 2, 4]"),
    ("mnn.Slice", "f32[S, 2]", {"axis": 0, "points": (1,)}, "f32[1, 2] f32[?, 2]"),
    ("mnn.StridedSlice", "f32[1, S, 8] i32[1] i32=2147483647 i32=1 i32=1", {}, "f32[1, ?, 8]"),
    ("mnn.Concat", "f32[1, S, 2, 4] f32[1, S, 2, 4]", {"axis": 3}, "f32[1, S, 2, 8]"),
    ("mnn.Squeeze", "f32[1, 1, S, T]", {"axes": (0,)}, "f32[1, S, T]"),
    ("mnn.Unsqueeze", "f32[S, T]", {"axes": (0, 1)}, "f32[1, 1, S, T]"),
    ("mnn.Select", "i32[S, 1] f32[T] f32[]", {}, "f32[S, T]"),
    ("mnn.Reduction", "f32[1, S, 8]", {"kind": "MAXIMUM", "axes": (2,), "keep_dims": 1}, "f32[1, S, 1]"),
    ("mnn.Reduction", "f32[1, S, 8]", {"kind": "SUM", "axes": (), "keep_dims": 0}, "f32[]"),
]  # fmt: skip
"""Operator, inputs (types, or constants as ``i64=1,2``), attributes, result types; ``?`` is any name of its own."""


def parse_type(text: str) -> TensorType:
    dtype, _, rest = text.partition("[")
    parts = [part.strip() for part in rest[:-1].split(",") if part.strip()]
    return TensorType(DTYPES[dtype], tuple(int(part) if part.isdigit() else Dim(part, 1) for part in parts))


def split_types(text: str) -> list[str]:
    return [part for part in text.replace(", ", ",").split(" ") if part]


def build(op: str, inputs: str, attrs: dict, outputs: int) -> tuple[Graph, Node]:
    graph = Graph("table")
    values: list[Value] = []
    for index, text in enumerate(split_types(inputs)):
        if "=" in text:
            dtype, _, numbers = text.partition("=")
            array = np.array([int(n) for n in numbers.split(",") if n], DTYPES[dtype].numpy)
            scalar = op in ("Range", "CumSum") or (op == "OneHot" and index == 1)
            values.append(graph.add_const(f"c{index}", InlineTensor(array.reshape(()) if scalar else array)))
        else:
            values.append(graph.add_input(f"x{index}", parse_type(text)))
    node = graph.add(op, values, attrs, outputs=("",) * outputs)
    graph.set_outputs(node.outputs)
    return graph, node


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    feeds = {}
    for value in graph.inputs:
        shape = tuple(dim if type(dim) is int else SIZES[dim.name] for dim in value.shape)
        feeds[value.name] = np.ones(shape, value.dtype.numpy)
    return feeds


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "expected"), TABLE, ids=[f"{i}-{row[0]}" for i, row in enumerate(TABLE)]
)
def test_symbolic_types(op: str, inputs: str, attrs: dict, expected: str | None) -> None:
    outputs = len(split_types(expected or "x"))
    if op == "Split":
        outputs = 2
    graph, node = build(op, inputs, attrs, outputs)
    assert infer_types(graph) == []
    if expected is not None and op != "Split":
        for value, text in zip(node.outputs, split_types(expected), strict=True):
            want = parse_type(text.replace("?", "any"))
            assert value.dtype == want.dtype
            for found, named in zip(value.shape, want.shape, strict=True):
                if isinstance(named, Dim) and named.name == "any":
                    assert type(found) is Dim and found.name not in SIZES
                else:
                    assert found == named
    names = [dim.name for value in node.outputs for dim in value.shape or () if type(dim) is Dim]
    assert not [name for name in names if name[0] == "?"]
    assert all(name in SIZES or name in graph.dims for name in names)
    if op in ("Reshape", "ReduceMax") and "i64[" in inputs:
        return  # onnxruntime needs the shape to be a legal one
    sizes = dict(SIZES)
    for value, array in zip(node.outputs, evaluate(graph, feeds_of(graph)).values(), strict=True):
        assert value.dtype.numpy == array.dtype
        for dim, size in zip(value.shape, array.shape, strict=True):
            assert (dim if type(dim) is int else sizes.setdefault(dim.name, size)) == size
            assert type(dim) is int or graph.dims.get(dim.name, Dim("any")).accepts(size)


# ---- names of unknown dimensions ----


class Maker:
    """A graph under construction: nodes by call, types inferred at the end."""

    def __init__(self, **inputs: str) -> None:
        self.graph = Graph("g")
        self.values = {name: self.graph.add_input(name, parse_type(text)) for name, text in inputs.items()}

    def __getattr__(self, name: str) -> Value:
        return self.values[name]

    def ints(self, *numbers: int) -> Value:
        return self.graph.add_const("ints", InlineTensor(np.array(numbers, np.int64)))

    def int(self, number: int) -> Value:
        return self.graph.add_const("int", InlineTensor(np.array(number, np.int64)))

    def add(self, op: str, *inputs: Value, **attrs) -> Value:
        return self.graph.add(op, inputs, attrs).output

    def infer(self) -> None:
        assert infer_types(self.graph) == []
        version = self.graph.version
        assert infer_types(self.graph) == []
        assert self.graph.version == version


def test_unknown_dimensions_are_never_equal_by_accident() -> None:
    m = Maker(x="f32[S, 2]", y="f32[S, 2]")
    a, b = m.add("NonZero", m.x), m.add("NonZero", m.y)
    p, q = m.add("Slice", m.x, m.ints(1), m.ints(3), m.ints(0)), m.add("Slice", m.y, m.ints(1), m.ints(3), m.ints(0))
    m.infer()
    assert a.shape[1] != b.shape[1]
    assert p.shape[0] == q.shape[0], "the same cut of the same extent is the same extent"
    assert len({a.shape[1], b.shape[1], p.shape[0], Dim("S")}) == 4


def test_fresh_names_avoid_names_in_use() -> None:
    m = Maker(x="f32[d1, d2, 2]")
    found = m.add("Reshape", m.x, m.ints(-1))
    m.infer()
    assert found.shape[0].name not in ("d1", "d2")
    assert found.shape[0].multiple_of == 2
    assert m.graph.dims[found.shape[0].name] == found.shape[0]


def test_products_that_are_the_same_have_one_name() -> None:
    m = Maker(x="f32[B, S, 8]")
    joined = m.add("Reshape", m.x, m.ints(-1, 8))
    doubled = m.add("Reshape", m.x, m.ints(-1, 4))
    back = m.add("Reshape", doubled, m.ints(-1, 8))
    size = m.add("Mul", m.add("Gather", m.add("Shape", m.x), m.int(0)), m.add("Gather", m.add("Shape", m.x), m.int(1)))
    again = m.add("Reshape", m.x, m.add("Concat", m.add("Unsqueeze", size, m.ints(0)), m.ints(8), axis=0))
    m.infer()
    assert joined.shape == back.shape == again.shape
    assert doubled.shape[0] != joined.shape[0]


def test_dynamic_shapes_survive_shape_arithmetic() -> None:
    """What exporters write for ``x.view(b, s, heads, -1).transpose(1, 2).reshape(b, s, -1)``."""
    m = Maker(x="f32[B, S, 16]")
    shape = m.add("Shape", m.x)
    b, s = (m.add("Unsqueeze", m.add("Gather", shape, m.int(i)), m.ints(0)) for i in (0, 1))
    split = m.add("Reshape", m.x, m.add("Concat", b, s, m.ints(4, -1), axis=0))
    moved = m.add("Transpose", split, perm=(0, 2, 1, 3))
    shape = m.add("Shape", moved)
    b, s = (m.add("Slice", shape, m.ints(i), m.ints(i + 1)) for i in (0, 2))
    joined = m.add("Reshape", m.add("Transpose", moved, perm=(0, 2, 1, 3)), m.add("Concat", b, s, m.ints(-1), axis=0))
    steps = m.add("Range", m.int(0), m.add("Squeeze", s, m.ints(0)), m.int(1))
    filled = m.add("Expand", m.add("Unsqueeze", steps, m.ints(0)), m.add("Concat", b, s, axis=0))
    ones = m.add("ConstantOfShape", m.add("Concat", b, m.ints(1), s, axis=0))
    m.infer()
    assert str(split.type) == "f32[B, S, 4, 4]"
    assert str(joined.type) == "f32[B, S, 16]"
    assert (str(steps.type), str(filled.type), str(ones.type)) == ("i64[S]", "i64[B, S]", "f32[B, 1, S]")


def test_history_plus_new_tokens() -> None:
    m = Maker(past="f32[1, 2, P, 8]", k="f32[1, 2, S, 8]", mask="i64[1, total]")
    keys = m.add("Concat", m.past, m.k, axis=2)
    length = m.add(
        "Sub", m.add("Gather", m.add("Shape", keys), m.int(2)), m.add("Gather", m.add("Shape", m.past), m.int(2))
    )
    steps = m.add("Range", m.int(0), length, m.int(1))
    m.infer()
    assert str(steps.type) == "i64[S]"
    assert keys.shape[2] not in (Dim("P"), Dim("S"), Dim("total"))


def test_a_recorded_total_is_taken_for_the_sum() -> None:
    m = Maker(past="f32[1, P]", k="f32[1, S]", mask="i64[1, total]")
    keys = m.add("Concat", m.past, m.k, axis=1)
    m.graph.set_type(keys, parse_type("f32[1, total]"))
    wide = m.add("Expand", m.add("Relu", keys), m.add("Shape", m.mask))
    m.infer()
    assert str(keys.type) == str(wide.type) == "f32[1, total]"


def test_a_recorded_name_that_cannot_be_is_replaced() -> None:
    m = Maker(x="f32[1, S, 8]", first="i64[1]")
    cut = m.add("Slice", m.x, m.first, m.ints(2**31 - 1), m.ints(1))
    result = m.add("Relu", cut)
    twice = m.add("Concat", m.x, m.x, axis=1)
    for value in (cut, result, twice):
        m.graph.set_type(value, parse_type("f32[1, S, 8]"))
    m.infer()
    assert cut.shape == result.shape
    assert len({cut.shape[1], twice.shape[1], Dim("S")}) == 3


def test_recorded_names_and_numbers_are_kept_where_nothing_else_is_known() -> None:
    m = Maker(x="f32[S, 4]", shape="i64[2]")
    named, numbered = m.add("Reshape", m.x, m.shape), m.add("NonZero", m.x)
    m.graph.set_type(named, parse_type("f32[rows, 2]"))
    m.graph.set_type(numbered, parse_type("i64[2, 7]"))
    m.infer()
    assert (str(named.type), str(numbered.type)) == ("f32[rows, 2]", "i64[2, 7]")


def test_recorded_dimensions_are_refined() -> None:
    m = Maker(x="f32[S, 4]")
    value = m.add("Relu", m.x)
    m.graph.set_type(value, parse_type("f32[unknown, other]"))
    m.infer()
    assert str(value.type) == "f32[S, 4]"


def test_unknown_results_stay_unknown() -> None:
    m = Maker(x="f32[S, 4]")
    strange = m.graph.add("nobody.Op", [m.x], outputs=("", "")).outputs
    later = m.add("Add", strange[0], m.x)
    m.infer()
    assert strange[0].type is None and later.type is None


def test_low_bounds_decide_broadcasts() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (Dim("S", 2),)))
    y = graph.add_input("y", TensorType(F32, (Dim("T"),)))
    z = graph.add_input("z", TensorType(F32, (Dim("U"),)))
    first, second = graph.add("Add", [x, y]).output, graph.add("Add", [y, z]).output
    assert infer_types(graph) == []
    assert first.shape == (Dim("S"),)
    assert second.shape[0] not in (Dim("T"), Dim("U"))


dims = st.integers(1, 4).map(lambda n: "ABCD"[n - 1]) | st.sampled_from([1, 2, 3, 6])


@settings(max_examples=150, deadline=None)
@given(st.lists(dims, min_size=0, max_size=4), st.lists(dims, min_size=0, max_size=4), st.data())
def test_broadcasting_is_numpys(left: list, right: list, data) -> None:
    sizes = {name: data.draw(st.integers(1, 3), name) for name in "ABCD"}
    shapes = [tuple(Dim(d) if isinstance(d, str) else d for d in dims) for dims in (left, right)]
    real = [tuple(sizes[d] if isinstance(d, str) else d for d in dims) for dims in (left, right)]
    graph = Graph("g")
    values = [graph.add_input(f"x{i}", TensorType(F32, shape)) for i, shape in enumerate(shapes)]
    value = graph.add("Add", values).output
    problems = infer_types(graph)
    try:
        want = np.broadcast_shapes(*real)
    except ValueError:
        return  # these sizes do not fit; others may
    assert problems == []
    for dim, size in zip(value.shape, want, strict=True):
        known = dim if type(dim) is int else sizes.get(dim.name, size)
        assert known == size


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_symbolic_arithmetic_is_arithmetic(data) -> None:
    """Random sums, products and exact quotients keep their value under every choice of sizes."""
    table = SymbolTable()
    names = ["S", "T", "P"]
    for name in names:
        table.declare(Dim(name, 1))
    sizes = {name: data.draw(st.integers(1, 9), name) for name in names}
    terms: list[tuple[object, int]] = [(Dim(name, 1), sizes[name]) for name in names] + [(2, 2), (3, 3)]
    by_extent: dict[object, int] = {}
    for _ in range(8):
        (a, x), (b, y) = data.draw(st.sampled_from(terms)), data.draw(st.sampled_from(terms))
        op = data.draw(st.sampled_from(["add", "multiply", "subtract", "quotient"]))
        if op == "quotient" and y == 0:
            continue
        if op == "quotient":
            found, value = table.quotient([a, b], [b]), x
        else:
            found = getattr(table, op)(a, b)
            value = {"add": x + y, "multiply": x * y, "subtract": x - y}[op]
        terms.append((found, value))
        assert by_extent.setdefault(found, value) == value, "one extent stands for two values"
        if type(found) is int:
            assert found == value
        elif value >= 0 and table.nonnegative(found):
            assert found.accepts(value)


# ---- disagreements ----


def problems_of(op: str, inputs: str, attrs: dict | None = None, recorded: str | None = None) -> list:
    graph, node = build(op, inputs, attrs or {}, 1)
    if recorded is not None:
        graph.set_type(node.output, parse_type(recorded))
    found = infer_types(graph)
    if recorded is not None:
        assert node.output.type == parse_type(recorded), "a recorded type that is refused stays"
    return found


@pytest.mark.parametrize("recorded", ["f32[S, 4]", "f16[S, 8]", "f32[S, 8, 1]"])
def test_a_recorded_type_that_cannot_be_true(recorded: str) -> None:
    (problem,) = problems_of("Relu", "f32[S, 8]", recorded=recorded)
    assert problem.code == "T210"
    assert "f32[S, 8]" in problem.message and recorded in problem.message
    assert "Relu(%x0)" in problem.where


def test_a_number_outside_the_recorded_range() -> None:
    graph, node = build("Relu", "f32[8]", {}, 1)
    graph.set_type(node.output, TensorType(F32, (Dim("n", 1, 4),)))
    assert [problem.code for problem in infer_types(graph)] == ["T210"]


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("Add", "f32[3] f32[4]", {}),
        ("Add", "f32[3] f16[3]", {}),
        ("MatMul", "f32[2, 3] f32[4, 5]", {}),
        ("Gemm", "f32[2, 3] f32[4, 5]", {}),
        ("Reshape", "f32[2, 3] i64=4,2", {}),
        ("Reshape", "f32[2, 3] i64=-1,4", {}),
        ("Reshape", "f32[2, 3] i64=-1,-1", {}),
        ("Concat", "f32[2, 3] f32[3, 2]", {"axis": 0}),
        ("Transpose", "f32[2, 3]", {"perm": (0, 1, 2)}),
        ("Squeeze", "f32[2, 3] i64=0", {}),
        ("Unsqueeze", "f32[2] i64=0,0", {}),
        ("Softmax", "f32[2]", {"axis": 5}),
        ("Split", "f32[7]", {}),
        ("Attention", "f32[1, 2, 3, 4] f32[1, 2, 3, 4] f32[1, 2, 3]", {}),
        ("DequantizeLinear", "i8[8, 6] f32[3, 6]", {"axis": 0, "block_size": 4}),
        ("mnn.Convolution", "f32[2, 3, 1, 1] f32[4, 5]", {}),
        ("mnn.Convolution", "f32[2, 3, 2, 1] f32[3, 5]", {}),
        ("mnn.LayerNorm", "f32[2, 3] f32[2] f32[2]", {"axis": (0,)}),
        ("mnn.Attention", "f32[1, 2, 8] f32[1, 2, 8] f32[1, 2, 8] f32[]", {}),
        ("mnn.Attention", "f32[1, 2, 4, 8] f32[1, 2, 3, 8] f32[1, 2, 3, 8] f32[]", {}),
        ("mnn.Attention", "f32[1, 2, 4, 8] f32[1, 2, 2, 8] f32[1, 2, 2, 6] f32[]", {}),
        ("mnn.Slice", "f32[4]", {"axis": 0, "points": (5,)}),
        ("mnn.Squeeze", "f32[1]", {"axes": ()}),
        ("mnn.Select", "i32[2] f32[2] f16[2]", {}),
        ("lading.AffineDequantize", "i8[8, 6] f32[2, 6] f32[2, 5]", {"axis": 0, "block_size": 4}),
    ],
)
def test_inputs_that_do_not_fit(op: str, inputs: str, attrs: dict) -> None:
    if op in ("Split", "mnn.Slice"):
        graph, _ = build(op, inputs, attrs, 2)
        found = infer_types(graph)
    else:
        found = problems_of(op, inputs, attrs)
    if op == "Softmax":
        assert found == [], "operators that keep the shape leave their axes to the checker"
        return
    assert [problem.code for problem in found] == ["T212"]
    assert found[0].message.startswith(op)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "code"),
    [
        ("MatMul", "f32[2, 2]", {}, "T201"),
        ("Cast", "f32[2]", {}, "T203"),
        ("Transpose", "f32[2, 2]", {"perm": (0, "a")}, "T204"),
        ("mnn.Cast", "f32[2]", {}, "T203"),
        ("mnn.Slice", "f32[2]", {"axis": 0}, "T203"),
        ("mnn.Attention", "f32[1, 2, 2, 2]", {}, "T201"),
    ],
)
def test_malformed_nodes_are_reported_as_such(op: str, inputs: str, attrs: dict, code: str) -> None:
    graph, node = build(op, inputs, attrs, 1)
    assert [problem.code for problem in infer_types(graph)] == [code]
    assert node.output.type is None
    with pytest.raises(TypeMismatch):
        infer_node(node)


def test_one_problem_does_not_stop_the_rest() -> None:
    m = Maker(x="f32[3]", y="f32[4]")
    m.add("Add", m.x, m.y)
    good = m.add("Relu", m.x)
    assert len(infer_types(m.graph)) == 1
    assert good.type == m.x.type


# ---- one node, control flow, functions, sequences ----


def test_infer_node_records_nothing() -> None:
    m = Maker(x="f32[B, S, 8]")
    shape = m.add("Shape", m.x)
    m.graph.set_type(shape, TensorType(I64, (3,)))
    size = m.add("Gather", shape, m.int(1))
    m.graph.set_type(size, TensorType(I64, ()))
    node = m.graph.add("Range", [m.int(0), size, m.int(1)])
    assert [str(found) for found in infer_node(node)] == ["i64[S]"]
    assert node.output.type is None
    joined = m.graph.add("Reshape", [m.x, m.ints(-1)])
    one, two = infer_node(joined)[0], infer_node(joined)[0]
    assert one.shape[0] != two.shape[0] and one.shape[0].name in m.graph.dims
    bad = m.graph.add("Reshape", [m.x, m.ints(-1, -1)])
    with pytest.raises(TypeMismatch, match="more than one -1"):
        infer_node(bad)


def test_infer_node_does_not_follow_integers_forever() -> None:
    m = Maker(x="f32[S]")
    size = m.add("Shape", m.x)
    m.graph.set_type(size, TensorType(I64, (1,)))
    for _ in range(5000):
        size = m.add("Add", size, m.ints(0))
        m.graph.set_type(size, TensorType(I64, (1,)))
    (found,) = infer_node(m.graph.add("ConstantOfShape", [size]))
    assert found.rank == 1 and found.shape[0] != Dim("S")


def branches(graph: Graph, condition: Value, *values: Value) -> Node:
    node = graph.add("If", [condition])
    for name, value in zip(("then_branch", "else_branch"), values, strict=True):
        sub = Graph(name, owner=node)
        sub.set_outputs([sub.add("Relu", [value]).output])
        graph.set_attrs(node, **{name: sub})
    return node


def test_branches_that_differ_leave_a_dimension_open() -> None:
    m = Maker(c="bool[]", x="f32[S, 4]", y="f32[T, 4]", z="f32[S, 4]")
    same, other = branches(m.graph, m.c, m.x, m.z), branches(m.graph, m.c, m.x, m.y)
    m.infer()
    assert str(same.output.type) == "f32[S, 4]"
    assert other.output.shape[1] == 4 and other.output.shape[0] not in (Dim("S"), Dim("T"))


def test_loops_stack_their_rounds() -> None:
    m = Maker(n="i64[]", x="f32[S, 4]")
    node = m.graph.add("Loop", [m.n, None, m.x], outputs=("", ""))
    body = Graph("body", owner=node)
    count, go, state = (body.add_input(name, None) for name in ("i", "go", "state"))
    body.set_outputs([go, body.add("Relu", [state]).output, body.add("Unsqueeze", [count, m.ints(0)]).output])
    m.graph.set_attrs(node, body=body)
    m.infer()
    assert node.outputs[0].type == TensorType(F32), "a carried value may change its shape"
    assert node.outputs[1].shape[1] == 1 and len(node.outputs[1].shape) == 2
    assert count.type == TensorType(I64, ()) and go.type == TensorType(BOOL, ())


def test_scans_run_along_an_axis() -> None:
    m = Maker(state="f32[4]", x="f32[S, 4]")
    node = m.graph.add("Scan", [m.state, m.x], {"num_scan_inputs": 1}, outputs=("", ""))
    body = Graph("body", owner=node)
    total, row = body.add_input("total", None), body.add_input("row", None)
    added = body.add("Add", [total, row]).output
    body.set_outputs([added, body.add("Identity", [added]).output])
    m.graph.set_attrs(node, body=body)
    m.infer()
    assert [str(value.type) for value in node.outputs] == ["f32[4]", "f32[S, 4]"]


def test_calls_of_functions_are_inferred_through_their_bodies() -> None:
    m = Maker(x="f32[S, 4]")
    body = Graph("Twice", {"": 24})
    body.set_outputs([body.add("Concat", [body.add_input("a", None)] * 2, {"axis": 1}).output])
    m.graph.functions["local.Twice"] = body
    m.graph.opsets["local"] = 1
    found = m.add("local.Twice", m.x)
    m.infer()
    assert str(found.type) == "f32[S, 8]"


def test_sequences() -> None:
    m = Maker(x="f32[S, 4]", n="i64[]")
    parts = m.add("SplitToSequence", m.x, m.n)
    one = m.add("SequenceAt", parts, m.int(0))
    m.infer()
    assert isinstance(parts.type, SequenceType)
    assert one.type.dtype == F32


# ---- the operator table ----


def node_of(op: str, inputs: str, attrs: dict | None = None, outputs: int = 1) -> Node:
    return build(op, inputs, attrs or {}, outputs)[1]


@pytest.mark.mnn
@pytest.mark.parametrize(
    ("node", "code", "text"),
    [
        (("MatMull", "f32[2]"), "T200", "did you mean 'MatMul'"),
        (("mnn.Unari", "f32[2]"), "T200", "did you mean 'mnn.Unary'"),
        (("MatMul", "f32[2]"), "T201", "takes 2 inputs, not 1"),
        (("mnn.LayerNorm", "f32[2] f32[2]"), "T201", "takes 3 inputs"),
        (("Softmax", "f32[2]", {"axes": 1}), "T202", "did you mean 'axis'"),
        (("Concat", "f32[2]"), "T203", "'axis'"),
        (("mnn.Cast", "f32[2]"), "T203", "'to'"),
        (("Softmax", "f32[2]", {"axis": 1.5}), "T204", "must be int"),
        (("Transpose", "f32[2]", {"perm": 0}), "T204", "must be ints"),
        (("mnn.Unary", "f32[2]", {"kind": "COSS"}), "T204", "did you mean 'COS'"),
    ],
)
def test_checks_of_nodes(node: tuple, code: str, text: str) -> None:
    (found,) = check_node(node_of(*node))
    assert found.code == code
    assert text in str(found)


@pytest.mark.mnn
def test_good_nodes_have_no_problems() -> None:
    for op, inputs, attrs, expected in TABLE:
        _, node = build(op, inputs, attrs, 2 if op == "Split" else len(split_types(expected or "x")))
        assert check_node(node) == [], op
    assert check_node(node_of("Clip", "f32[2]")) == []
    (unknown,) = check_node(node_of("nobody.Op", "f32[2]"))
    assert unknown.severity == "warning"


def test_an_input_that_cannot_be_left_out() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (2,)))
    (found,) = check_node(graph.add("MatMul", [x, None]))
    assert "input B of MatMul cannot be left out" in found.message
    assert check_node(graph.add("Clip", [x, None, x])) == []


def register(row: OpDef) -> None:
    """Add an operator as the plugin of its package would."""
    registry_module.OPERATORS.add(row.name, row, row.package)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    copy = Table("operator", dict(OPERATORS), check=registry_module.check_definition)
    monkeypatch.setattr(registry_module, "OPERATORS", copy)


@pytest.mark.mnn
def test_a_name_claimed_twice_names_both_packages(registry: None) -> None:
    row = OpDef("acme.Scale", package="acme", attrs={"by": AttrDef("by", "float", 2.0)})
    register(row)
    register(row)
    assert lookup("acme.Scale") is row
    with pytest.raises(LadingError, match="claimed by acme and by other"):
        register(OpDef("acme.Scale", package="other"))
    with pytest.raises(LadingError, match="claimed by lading and by other"):
        register(OpDef("mnn.Reshape", package="other"))
    with pytest.raises(LadingError, match="needs a domain"):
        register(OpDef("MatMul", package="other"))


def test_registered_operators_are_inferred_and_run(registry: None) -> None:
    register(
        OpDef(
            "acme.Square",
            package="acme",
            infer=lambda run, node: node.inputs[0].type,
            define=lambda body: [body.op("Mul", body.inputs[0], body.inputs[0])],
        )
    )
    m = Maker(x="f32[S]")
    found = m.add("acme.Square", m.x)
    m.graph.set_outputs([found])
    m.infer()
    assert evaluate(m.graph, {"x": np.array([3], np.float32)})[found.name].tolist() == [9.0]


@pytest.mark.mnn
def test_traits() -> None:
    assert opdef(node_of("Add", "f32[2] f32[2]")).traits == {"pure", "constant_foldable", "elementwise", "commutative"}
    assert lookup("RandomNormal").traits == {"random"}
    assert lookup("mnn.Attention").traits == {"stateful", "mixing"}
    assert lookup("Concat").max_inputs > 1000 and lookup("mnn.Concat").max_inputs == ANY
    assert lookup("Reshape").has("positional") and not lookup("Reshape").has("elementwise")
    assert lookup("NoSuchOp") is None


@pytest.mark.mnn
def test_attributes_have_defaults() -> None:
    assert attribute(node_of("Softmax", "f32[2]"), "axis") == -1
    assert attribute(node_of("Softmax", "f32[2]", {"axis": 0}), "axis") == 0
    assert attribute(node_of("mnn.LayerNorm", "f32[2] f32[2] f32[2]"), "axis") == (-1,)
    assert attribute(node_of("Relu", "f32[2]"), "nothing") is None
    old = Graph("old", {"": 9})
    node = old.add("Softmax", [old.add_input("x", TensorType(F32, (2,)))])
    assert attribute(node, "axis") == 1, "defaults are those of the graph's opset"


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "index", "want"),
    [
        ("Add", "f32[1, S, 8] f32[8]", {}, 0, True),
        ("Add", "f32[1, S, 8] f32[8]", {}, 1, False),
        ("MatMul", "f32[1, S, 8] f32[8, 3]", {}, 0, True),
        ("MatMul", "f32[1, S, 8] f32[8, 3]", {}, 1, False),
        ("MatMul", "f32[1, S, 8] f32[1, 8, 3]", {}, 0, False),
        ("Softmax", "f32[1, S, 8]", {"axis": -1}, 0, True),
        ("Softmax", "f32[1, S, 8]", {"axis": 1}, 0, False),
        ("RMSNormalization", "f32[1, S, 8] f32[8]", {}, 0, True),
        ("LayerNormalization", "f32[1, S, 8] f32[S, 8]", {"axis": 1}, 0, False),
        ("ReduceMax", "f32[1, S, 8] i64=-1", {}, 0, True),
        ("ReduceMax", "f32[1, S, 8] i64=1", {}, 0, False),
        ("Transpose", "f32[1, S, 8]", {}, 0, False),
        ("Reshape", "f32[1, S, 8] i64=-1,8", {}, 0, True),
        ("Reshape", "f32[1, S, 8] i64=1,0,1,8", {"allowzero": 0}, 0, True),
        ("Reshape", "f32[1, S, 8] i64=-1,4", {}, 0, False),
        ("Reshape", "f32[2, S, 8] i64=-1,8", {}, 0, False),
        ("Reshape", "f32[1, 5, 8] i64=5,8", {}, 0, False),
        ("Reshape", "f32[1, S, 8] i64[2]", {}, 0, False),
        ("Squeeze", "f32[1, S, 8] i64=0", {}, 0, True),
        ("Unsqueeze", "f32[S, 8] i64=0", {}, 0, True),
        ("Unsqueeze", "f32[S, 8] i64=2", {}, 0, False),
        ("Slice", "f32[1, S, 8] i64=0 i64=4 i64=-1", {}, 0, True),
        ("Slice", "f32[1, S, 8] i64=0 i64=4 i64=1", {}, 0, False),
        ("Slice", "f32[1, S, 8] i64=0 i64=1", {}, 0, False),
        ("mnn.LayerNorm", "f32[1, S, 8] f32[8] f32[8]", {}, 0, True),
        ("mnn.Unary", "f32[1, S, 8]", {"kind": "SILU"}, 0, True),
        ("mnn.Attention", "f32[1, S, 4, 8] f32[1, S, 4, 8] f32[1, S, 4, 8] f32[]", {}, 0, False),
        ("nobody.Op", "f32[1, S, 8]", {}, 0, False),
    ],
)
def test_rows_that_stand_alone(op: str, inputs: str, attrs: dict, index: int, want: bool) -> None:
    graph, node = build(op, inputs, attrs, 1)
    infer_types(graph)
    assert is_rowwise(node, index) is want


def test_definitions_need_to_exist() -> None:
    with pytest.raises(KeyError):
        define(node_of("Relu", "f32[2]"))


# ---- cost ----


def chain(nodes: int) -> Graph:
    graph = Graph("chain")
    x = graph.add_input("x", TensorType(F32, (1, Dim("S"), 8)))
    weight = graph.add_const("w", InlineTensor(np.zeros((8, 8), np.float32)))
    for _ in range(nodes // 4):
        y = graph.add("MatMul", [x, weight]).output
        x = graph.add("Add", [graph.add("Mul", [y, graph.add("Sigmoid", [y]).output]).output, x]).output
    graph.set_outputs([x])
    return graph


def test_work_grows_with_the_nodes() -> None:
    counts = []
    for count in (800, 8000):
        graph = chain(count)
        counts.append(calls_of(infer_types, graph))
        assert graph.outputs[0].type == graph.inputs[0].type
    assert counts[1] < 12 * counts[0]
