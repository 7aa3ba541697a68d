"""Graphs for the tests and measurements of general passes: decoder-like ones of any size, and random ones."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from ir.base.types import BOOL, F32, I64, Dim, TensorType
from ir.graph.graph import Graph, Value
from ir.tensor.inline import InlineTensor

HIDDEN = 8


def const(graph: Graph, name: str, data, dtype=np.float32) -> Value:
    """A constant of the graph."""
    return graph.add_const(name, InlineTensor(np.asarray(data, dtype=dtype)))


def decoder(layers: int, seq: str = "seq") -> Graph:
    """A decoder as tracing exporters write it: 35 nodes a layer, with shape arithmetic, repeats and dead ends."""
    graph = Graph("decoder")
    dim = graph.add_dim(Dim(seq, 1, 64))
    x = graph.add_input("x", TensorType(F32, (1, dim, HIDDEN)))
    heads, width = 2, HIDDEN // 2
    for layer in range(layers):
        at = f"layers.{layer}"

        def op(kind, *inputs, at=at, **attrs):
            return graph.add(kind, inputs, attrs, name=f"{at}.{kind}.{len(graph.nodes)}", loc=at).output

        def norm(value, name, op=op, at=at):
            square = op("Pow", value, const(graph, f"{at}.two", 2.0))
            mean = op("ReduceMean", square, const(graph, f"{at}.axes", [-1], np.int64), keepdims=1)
            root = op("Sqrt", op("Add", mean, const(graph, f"{at}.eps", 1e-6)))
            return op("Mul", op("Div", value, root), const(graph, f"{at}.{name}", np.full(HIDDEN, 0.5)))

        def linear(value, name, rows, columns, op=op, at=at):
            weight = np.full((rows, columns), 0.01 * (len(name) + 1), np.float32)
            bias = op("Identity", const(graph, f"{at}.{name}.bias", np.zeros(columns)))
            return op("Add", op("MatMul", value, const(graph, f"{at}.{name}", weight)), bias)

        def split_heads(value, op=op, at=at):
            shape = op("Shape", value)
            length = op("Gather", shape, const(graph, f"{at}.one", 1, np.int64), axis=0)
            length = op("Unsqueeze", length, const(graph, f"{at}.zero", [0], np.int64))
            target = op(
                "Concat",
                const(graph, f"{at}.batch", [1], np.int64),
                length,
                op("Mul", const(graph, f"{at}.h", [1], np.int64), const(graph, f"{at}.n", [heads], np.int64)),
                const(graph, f"{at}.w", [width], np.int64),
                axis=0,
            )
            return op("Transpose", op("Reshape", value, target), perm=(0, 2, 1, 3))

        normed = op("Cast", norm(x, "norm"), to=F32.onnx)
        q, k = split_heads(linear(normed, "q", HIDDEN, HIDDEN)), split_heads(linear(normed, "k", HIDDEN, HIDDEN))
        scores = op("Softmax", op("MatMul", q, op("Transpose", k, perm=(0, 1, 3, 2))), axis=-1)
        mixed = op("Transpose", op("MatMul", scores, q), perm=(0, 2, 1, 3))
        merged = op("Reshape", mixed, const(graph, f"{at}.flat", [1, -1, HIDDEN], np.int64))
        op("Neg", merged)
        x = op("Add", op("Identity", x), linear(merged, "o", HIDDEN, HIDDEN))
    graph.set_outputs([x])
    graph.rename(x, "y")
    return graph


_UNARY = ("Neg", "Abs", "Relu", "Identity", "Sigmoid", "Floor")
_BINARY = ("Add", "Sub", "Mul", "Max", "Min")


@st.composite
def random_graphs(draw) -> Graph:
    """Small graphs full of what passes remove: reshapes, casts, transposes, slices and neutral constants."""
    graph = Graph("random")
    dim = graph.add_dim(Dim("n", 1, 8))
    floats = [graph.add_input(name, TensorType(F32, (dim, 4))) for name in ("a", "b")]
    for number in range(draw(st.integers(1, 3))):
        fill = draw(st.sampled_from([0.0, 1.0, 2.0, -1.5]))
        floats.append(const(graph, f"c{number}", np.full(draw(st.sampled_from([(), (1,), (4,), (1, 4)])), fill)))
    shapes = [const(graph, "flat", [-1, 4], np.int64), const(graph, "same", [0, 4], np.int64)]
    for _ in range(draw(st.integers(1, 14))):
        _grow(draw, graph, floats, shapes)
    made = [value for value in floats if value.producer is not None] or [graph.add("Identity", [floats[0]]).output]
    chosen = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    graph.set_outputs(chosen)
    return graph


def _grow(draw, graph: Graph, floats: list[Value], shapes: list[Value]) -> None:
    kind = draw(st.sampled_from(["unary", "binary", "reshape", "transpose", "shape", "cast", "where", "concat"]))
    x, y = draw(st.sampled_from(floats)), draw(st.sampled_from(floats))
    matrices = [value for value in floats if value.type is not None and value.type.rank == 2] or floats[:1]
    matrix = draw(st.sampled_from(matrices))
    full = floats[0].type
    if kind == "unary":
        floats.append(graph.add(draw(st.sampled_from(_UNARY)), [x], types=[x.type]).output)
    elif kind == "binary":
        known = full if full in (x.type, y.type) else None
        floats.append(graph.add(draw(st.sampled_from(_BINARY)), [x, y], types=[known]).output)
    elif kind == "reshape" and matrix.type == full:
        floats.append(graph.add("Reshape", [matrix, draw(st.sampled_from(shapes))]).output)
    elif kind == "transpose" and matrix.type == full:
        turned = graph.add("Transpose", [matrix], {"perm": (1, 0)}).output
        floats.append(graph.add("Transpose", [turned], {"perm": (1, 0)}, types=[full]).output)
    elif kind == "shape" and matrix.type == full:
        shapes.append(graph.add("Shape", [matrix], types=[TensorType(I64, (2,))]).output)
    elif kind == "cast":
        wide = graph.add("Cast", [x], {"to": draw(st.sampled_from([F32.onnx, 11]))}).output
        floats.append(graph.add("Cast", [wide], {"to": F32.onnx}, types=[x.type]).output)
    elif kind == "where":
        yes = graph.add_const("yes", InlineTensor(np.array(draw(st.booleans()))))
        assert yes.dtype == BOOL
        floats.append(graph.add("Where", [yes, x, y]).output)
    elif kind == "concat" and matrix.type == full:
        both = graph.add("Concat", [matrix, matrix], {"axis": 1}).output
        half = [
            const(graph, "start", [0], np.int64),
            const(graph, "stop", [4], np.int64),
            const(graph, "at", [1], np.int64),
        ]
        floats.append(graph.add("Slice", [both, *half], types=[full]).output)
