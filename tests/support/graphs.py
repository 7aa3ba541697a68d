"""Random well-typed graphs for property tests: hypothesis strategies.

`graphs` draws a graph of about two dozen operators with static and symbolic dimensions, shared constants, nodes with
several outputs, inputs left out, If bodies that capture values, and unusual names. Its types are recorded and it passes
the verifier; every dimension may take any size from 1 on.
"""

from __future__ import annotations

import string
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from ir.base.types import BOOL, DTYPES, F32, F64, I32, I64, Dim, MapType, OptionalType, SequenceType, TensorType
from ir.graph.graph import EmptyList, Graph, Value
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor

ODD_NAMES = (
    "/layers.0/MatMul_output_0", "x:0", "a b", 'quote"d', "back\\slash", "ünï", "漢字", "new\nline", "tab\t", "\u2028",
    "%", "@w", "_", "0", "1.5", "inf", "nan", "graph", "}", "// no comment", "😀", "\ud800", "", " ", "f32[2]", "x,y",
    "{", "output", ";", "->", "a=b", "\x00", "\x7f", "'", "null", "true", "b\"x\"",
)  # fmt: skip

names = st.one_of(
    st.sampled_from(ODD_NAMES),
    st.text(alphabet=string.ascii_letters + string.digits + "_.", min_size=1, max_size=8),
    st.text(max_size=6),
)
"""Names of values, nodes and places, every kind of oddity among them."""

_UNARY = ("Abs", "Ceil", "Exp", "Identity", "Neg", "Relu", "Sigmoid", "Sqrt", "Swish", "Tanh")
_BINARY = ("Add", "Div", "Max", "Min", "Mul", "Sub")
WIDTHS = (2, 4, 6)


@st.composite
def graphs(
    draw,
    *,
    min_nodes: int = 1,
    max_nodes: int = 12,
    subgraphs: bool = True,
    odd_names: bool = True,
    typed: bool = True,
) -> Graph:
    """A well-formed graph of floats, integers and booleans.

    Args:
        draw: given by hypothesis.
        min_nodes, max_nodes: bounds of the number of growing steps; a step adds one to three nodes.
        subgraphs: let there be If nodes.
        odd_names: draw names from `names`; else they are plain words.
        typed: record the types of all values.
    """
    graph = Graph(draw(names) if odd_names else "random", {"": 24})
    dims = [graph.add_dim(Dim("seq", 1, 64)), graph.add_dim(Dim("past + 1" if odd_names else "past", 1, None, 1))]
    maker = _Maker(draw, graph, dims, names if odd_names else st.just(""), typed)
    for index in range(draw(st.integers(1, 3))):
        shape = (draw(st.sampled_from(dims)), draw(st.sampled_from(WIDTHS)))
        wanted = graph.fresh_name(draw(names) if odd_names else f"in{index}")
        maker.values.append(graph.add_input(wanted, TensorType(F32, shape), draw(maker.words)))
    for _ in range(draw(st.integers(0, 2))):
        maker.constant(draw(st.sampled_from([(), (1,), (2,)])))
    for _ in range(draw(st.integers(min_nodes, max_nodes))):
        maker.grow(subgraphs)
    made = [value for value in maker.values if value.producer is not None] or [maker.unary()]
    graph.set_outputs(draw(st.lists(st.sampled_from(made), min_size=1, max_size=3)))
    if draw(st.booleans()) and graph.consts:
        graph.set_table(draw(names), draw(st.sampled_from(list(graph.consts.values()))))
    return graph


class _Maker:
    """Adds random nodes to a graph; `values` are the floats to choose operands from."""

    def __init__(self, draw, graph: Graph, dims: list[Dim], words, typed: bool) -> None:
        self.draw = draw
        self.graph = graph
        self.dims = dims
        self.words = words
        self.typed = typed
        self.values: list[Value] = []
        self.types: dict[Value, TensorType] = {}

    def type_of(self, value: Value) -> TensorType:
        return self.types.get(value) or value.type  # type: ignore[return-value]

    def add(self, op: str, inputs, *types: TensorType, **attrs) -> tuple[Value, ...]:
        stems = [self.draw(self.words) for _ in types]
        recorded = list(types) if self.typed else [None] * len(types)
        node = self.graph.add(
            op, inputs, attrs, outputs=stems, types=recorded, name=self.draw(self.words), loc=self.draw(self.words)
        )
        self.types.update(zip(node.outputs, types, strict=True))
        return node.outputs

    def constant(self, shape: tuple[int, ...], low: float = -2.0) -> Value:
        fill = self.draw(st.sampled_from([0.0, 1.0, low, 0.5]))
        size = int(np.prod(shape, dtype=np.int64))
        array = (np.arange(size, dtype=np.float32) * np.float32(0.25) + np.float32(fill)).reshape(shape)
        return self.graph.add_const(self.draw(self.words) or "c", InlineTensor(array))

    def ints(self, *numbers: int) -> Value:
        wanted = np.array(numbers, np.int64)
        for value in self.graph.consts.values():
            if value.type == TensorType(I64, wanted.shape) and np.array_equal(value.const.load(), wanted):
                return value
        return self.graph.add_const("ints", InlineTensor(wanted))

    def pick(self, accept: Callable[[TensorType], bool] = lambda type: True) -> Value | None:
        fitting = [value for value in self.values if accept(self.type_of(value))]
        return self.draw(st.sampled_from(fitting)) if fitting else None

    def unary(self) -> Value:
        value = self.pick()
        return self.add(self.draw(st.sampled_from(_UNARY)), [value], self.type_of(value))[0]

    def grow(self, subgraphs: bool) -> None:
        steps = [self.step_unary, self.step_binary, self.step_matmul, self.step_softmax, self.step_concat]
        steps += [self.step_split, self.step_topk, self.step_transpose, self.step_reshape, self.step_slice]
        steps += [self.step_clip, self.step_reduce, self.step_where, self.step_cast, self.step_gather, self.step_shape]
        if subgraphs:
            steps.append(self.step_if)
        self.draw(st.sampled_from(steps))()

    def step_unary(self) -> None:
        self.values.append(self.unary())

    def step_binary(self) -> None:
        value = self.pick()
        type = self.type_of(value)
        other = self.draw(st.sampled_from([v for v in self.values if self.type_of(v) == type]))
        if self.draw(st.booleans()):
            shared = [v for v in self.graph.consts.values() if v.type in (TensorType(F32, ()), TensorType(F32, (1,)))]
            other = self.draw(st.sampled_from(shared)) if shared else self.constant(())
        if type.dtype == F32:
            self.values.extend(self.add(self.draw(st.sampled_from(_BINARY)), [value, other], type))

    def step_matmul(self) -> None:
        value = self.pick(lambda t: t.rank == 2 and isinstance(t.shape[1], int))
        if value is None:
            return
        rows, columns = self.type_of(value).shape
        width = self.draw(st.sampled_from(WIDTHS))
        self.values.extend(self.add("MatMul", [value, self.constant((columns, width))], TensorType(F32, (rows, width))))

    def step_softmax(self) -> None:
        value = self.pick(lambda t: t.rank > 0)
        if value is not None:
            axis = self.draw(st.sampled_from([-1, 0]))
            self.values.extend(self.add("Softmax", [value], self.type_of(value), axis=axis))

    def step_concat(self) -> None:
        value = self.pick(lambda t: t.rank == 2 and isinstance(t.shape[1], int) and t.shape[1] < 32)
        if value is None:
            return
        rows, columns = self.type_of(value).shape
        other = self.pick(lambda t: t.rank == 2 and t.shape[0] == rows and isinstance(t.shape[1], int))
        total = columns + self.type_of(other).shape[1]
        self.values.extend(self.add("Concat", [value, other], TensorType(F32, (rows, total)), axis=1))

    def step_split(self) -> None:
        value = self.pick(lambda t: t.rank == 2 and isinstance(t.shape[1], int) and t.shape[1] % 2 == 0)
        if value is not None:
            rows, columns = self.type_of(value).shape
            half = TensorType(F32, (rows, columns // 2))
            self.values.extend(self.add("Split", [value], half, half, axis=1, num_outputs=2))

    def step_topk(self) -> None:
        value = self.pick(lambda t: t.rank == 2 and isinstance(t.shape[1], int))
        if value is not None:
            best = (self.type_of(value).shape[0], 1)
            self.values.append(self.add("TopK", [value, self.ints(1)], TensorType(F32, best), TensorType(I64, best))[0])

    def step_transpose(self) -> None:
        value = self.pick(lambda t: t.rank == 2)
        if value is not None:
            rows, columns = self.type_of(value).shape
            self.values.extend(self.add("Transpose", [value], TensorType(F32, (columns, rows)), perm=(1, 0)))

    def step_reshape(self) -> None:
        value = self.pick(lambda t: t.rank == 2 and isinstance(t.shape[1], int) and t.shape[1] % 2 == 0)
        if value is not None:
            rows, columns = self.type_of(value).shape
            target = TensorType(F32, (rows, columns // 2, 2))
            self.values.extend(self.add("Reshape", [value, self.ints(0, columns // 2, 2)], target, allowzero=0))

    def step_slice(self) -> None:
        value = self.pick(lambda t: t.rank == 2 and isinstance(t.shape[1], int))
        if value is not None:
            where = [self.ints(0), self.ints(1), self.ints(1)]
            self.values.extend(self.add("Slice", [value, *where], TensorType(F32, (self.type_of(value).shape[0], 1))))

    def step_clip(self) -> None:
        value = self.pick()
        high = self.constant(())
        self.values.extend(self.add("Clip", [value, None, high], self.type_of(value)))

    def step_reduce(self) -> None:
        value = self.pick(lambda t: t.rank == 2)
        if value is not None:
            kept = TensorType(F32, (self.type_of(value).shape[0], 1))
            op = self.draw(st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax"]))
            self.values.extend(self.add(op, [value, self.ints(-1)], kept, keepdims=1))

    def step_where(self) -> None:
        value = self.pick()
        type = self.type_of(value)
        flag = self.add("Greater", [value, self.constant(())], TensorType(BOOL, type.shape))[0]
        self.values.extend(self.add("Where", [flag, value, value], type))

    def step_cast(self) -> None:
        value = self.pick()
        type = self.type_of(value)
        wide = self.add("Cast", [value], TensorType(F64, type.shape), to=F64.onnx)[0]
        self.values.extend(self.add("Cast", [wide], type, to=F32.onnx))

    def step_gather(self) -> None:
        value = self.pick(lambda t: t.rank == 2)
        if value is not None:
            row = TensorType(F32, (1, self.type_of(value).shape[1]))
            self.values.extend(self.add("Gather", [value, self.ints(0)], row, axis=0))

    def step_shape(self) -> None:
        value = self.pick()
        rank = self.type_of(value).rank
        if rank:
            size = self.add("Shape", [value], TensorType(I64, (rank,)))[0]
            self.add("Cast", [size], TensorType(I32, (rank,)), to=I32.onnx)

    def step_if(self) -> None:
        value = self.pick()
        type = self.type_of(value)
        flag = self.graph.add_const(self.draw(self.words) or "flag", InlineTensor(np.array(self.draw(st.booleans()))))
        (result,) = self.add("If", [flag], type)
        bodies = {key: self.body(result, value, type, key) for key in ("then_branch", "else_branch")}
        self.graph.set_attrs(result.producer, **bodies)
        self.values.append(result)

    def body(self, result: Value, value: Value, type: TensorType, name: str) -> Graph:
        body = Graph(name, owner=result.producer)
        inner = _Maker(self.draw, body, self.dims, self.words, self.typed)
        inner.types = dict(self.types)
        inner.values = [value]
        for _ in range(self.draw(st.integers(0, 2))):
            inner.values.append(inner.unary())
        scale = inner.constant(())
        inner.values.extend(inner.add("Mul", [inner.values[-1], scale], type))
        body.set_outputs([inner.values[-1]])
        return body


# ---- for the text form: everything an attribute or constant can be ----

_floats = st.one_of(st.floats(), st.sampled_from([0.1, -0.0, float("inf"), float("-inf"), float("nan"), 1e300, 5e-324]))


@st.composite
def tensors(draw) -> Tensor:
    """An inline tensor of any element type, with any bits."""
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(st.sampled_from([(), (0,), (1,), (3,), (2, 2), (1, 0, 2), (21,)]))
    size = int(np.prod(shape, dtype=np.int64))
    if dtype.kind == "s":
        array = np.empty(size, object)
        array[:] = draw(st.lists(st.text(max_size=5), min_size=size, max_size=size))
        return InlineTensor(array.reshape(shape), dtype)
    if dtype.kind == "b":
        return InlineTensor(np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool).reshape(shape))
    if dtype.is_integer:
        found = draw(st.lists(st.integers(dtype.low, dtype.high), min_size=size, max_size=size))
        wide = np.array(found, np.uint64 if dtype.name == "u64" else np.int64)
        return InlineTensor(wide.astype(dtype.numpy).reshape(shape), dtype)
    width = dtype.numpy.itemsize
    raw = draw(st.binary(min_size=size * width, max_size=size * width))
    if dtype.bits < 8:
        raw = bytes(byte & 15 for byte in raw)
    return InlineTensor(np.frombuffer(raw, dtype.numpy).reshape(shape), dtype)


def value_types():
    """A type: tensors with static, symbolic and unknown shapes, sequences, optionals and maps."""
    dtypes = st.sampled_from(sorted(DTYPES)).map(DTYPES.__getitem__)
    dims = st.one_of(st.integers(0, 9), names.map(Dim))
    shapes = st.one_of(st.none(), st.lists(dims, max_size=3).map(tuple))
    plain = st.builds(TensorType, dtypes, shapes)
    return st.recursive(
        plain,
        lambda inner: st.one_of(
            inner.map(SequenceType), inner.map(OptionalType), st.builds(MapType, st.just(I64), inner)
        ),
        max_leaves=3,
    )


def attributes():
    """An attribute value that is not a graph."""
    scalar = st.one_of(st.integers(-(2**70), 2**70), _floats, st.text(max_size=8), st.binary(max_size=8))
    single = st.one_of(scalar, tensors(), value_types())
    kinds = st.sampled_from(["floats", "graphs", "ints", "strings", "tensors", "types"])
    return st.one_of(single, st.lists(single, max_size=3).map(tuple), kinds.map(EmptyList))
