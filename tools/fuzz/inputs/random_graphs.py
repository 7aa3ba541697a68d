"""Random graphs that are right: they pass the verifier and can be computed at every legal size."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from ir.base.types import BOOL, DTYPES, F32, F64, I64, Dim, SequenceType, TensorType
from ir.graph.graph import EmptyList, Graph, Node, Value
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor

ODD_NAMES = (
    "/layers.0/MatMul_output_0", "x:0", "a b", 'quote"d', "back\\slash", "ünï", "漢字", "new\nline", "tab\t", "\u2028",
    "%", "@w", "_", "0", "1.5", "inf", "nan", "graph", "}", "// no comment", "😀", "\ud800", "", " ", "f32[2]", "{",
    "output", ";", "->", "a=b", "\x00", "\x7f", "null", "true", 'b"x"',
)  # fmt: skip
"""Names of values, nodes and places that a careless reader or writer trips over."""

WIDTH = 4
ROWS = Dim("n", 1, 8)
"""Number of rows of every matrix."""
_UNARY = ("Abs", "Identity", "Neg", "Relu", "Sigmoid", "Tanh", "Cos", "Softplus")
_BINARY = ("Add", "Max", "Min", "Mul", "Sub")


def random_graph(rng: random.Random, *, nodes: int = 16, rows: Dim = ROWS, own: bool = False) -> Graph:
    """A graph of matrices of floats, of up to so many steps, with operators that are not ONNX's when `own`."""
    grower = _Grower(rng, rows)
    grower.steps += ["step_experts"] if own else []
    for _ in range(rng.randint(1, nodes)):
        grower.step()
    return grower.finish()


def layered_graph(rng: random.Random) -> Graph:
    """A graph of similar layers, with nodes beside the stream, in which something may differ from layer to layer."""
    grower = _Grower(rng, ROWS)
    stream = grower.floats[0]
    plan = [rng.randrange(1 << 30) for _ in range(rng.randint(1, 3))]
    for _ in range(rng.randint(2, 5)):
        for seed in plan:
            # The same choices again, but for some layers other ones.
            layer = random.Random(seed if rng.random() < 0.9 else rng.random())
            stream = _layer(grower, stream, layer)
    grower.floats.append(stream)
    grower.graph.set_outputs([stream, *rng.sample(grower.sides, min(len(grower.sides), rng.randint(0, 3)))])
    return grower.graph


def _layer(grower: _Grower, stream: Value, layer: random.Random) -> Value:
    graph, rng = grower.graph, grower.rng

    def operand() -> Value:
        kind = layer.choice(["own", "shared", "const", "stream"])
        if kind == "own":
            return graph.add_input(graph.fresh_name("own"), stream.type)
        if kind == "const":
            return grower.const(np.full(layer.choice([(), (WIDTH,)]), rng.choice([1.0, 2.0]), np.float32))
        return layer.choice(grower.floats[:2]) if kind == "shared" else stream

    def side() -> None:
        kind = layer.choice(["Sum", "Clip", "ReduceSum"])
        if kind == "Sum":
            one = operand()
            inputs = [stream, one, one if rng.random() < 0.3 else operand()]
        else:
            inputs = (
                [stream, None, grower.scalar(1.0)] if kind == "Clip" else [stream, grower.ints(layer.choice([0, 1]))]
            )
        grower.sides.append(graph.add(kind, inputs).output)

    actions: list[Callable[[], None]] = [side] * layer.randint(0, 2)
    rng.shuffle(actions)
    for action in actions:
        action()
    mixed = graph.add(layer.choice(_BINARY), [stream, operand()], types=[stream.type]).output
    return graph.add(layer.choice(_UNARY), [mixed], types=[stream.type]).output


class _Grower:
    """A graph that grows; `floats` are its matrices of floats with `WIDTH` columns."""

    def __init__(self, rng: random.Random, rows: Dim) -> None:
        self.rng = rng
        self.graph = Graph("random")
        self.typed = rng.random() < 0.7
        self.rows = self.graph.add_dim(rows)
        self.type = TensorType(F32, (self.rows, WIDTH))
        self.floats = [self.graph.add_input(name, self.type) for name in ("a", "b")]
        self.sides: list[Value] = []
        self.steps = [name for name in dir(self) if name.startswith("step_") and name != "step_experts"]
        if rng.random() < 0.5:
            self.floats.append(self.const(np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)))

    def const(self, array: np.ndarray) -> Value:
        return self.graph.add_const("c", InlineTensor(array))

    def scalar(self, number: float) -> Value:
        return self.const(np.float32(number))

    def ints(self, *numbers: int) -> Value:
        return self.graph.add_const("i", InlineTensor(np.array(numbers, np.int64)))

    def full(self) -> Value:
        return self.rng.choice([value for value in self.floats if value.const is None])

    def add(self, op: str, *inputs: Value | None, type: TensorType | None = None, **attrs) -> Value:
        return self.graph.add(op, inputs, attrs, types=[type if self.typed else None]).output

    def step(self) -> None:
        name = self.rng.choice(self.steps)
        self.floats.append(getattr(self, name)())

    def finish(self) -> Graph:
        made = [value for value in self.floats if value.producer is not None]
        self.graph.set_outputs(self.rng.sample(made, min(len(made), self.rng.randint(1, 3))))
        return self.graph

    # ---- steps ----

    def step_unary(self) -> Value:
        return self.add(self.rng.choice(_UNARY), self.full(), type=self.type)

    def step_binary(self) -> Value:
        other = self.rng.choice([*self.floats, self.scalar(self.rng.choice([0.0, 1.0, -1.0, 0.5]))])
        pair = [self.full(), other]
        self.rng.shuffle(pair)
        return self.add(self.rng.choice(_BINARY), *pair, type=self.type)

    def step_matmul(self) -> Value:
        weight = self.const(np.eye(WIDTH, dtype=np.float32) * np.float32(self.rng.choice([1.0, 0.5, -1.0])))
        return self.add("MatMul", self.full(), weight, type=self.type)

    def step_transposes(self) -> Value:
        turned = self.add("Transpose", self.full(), perm=(1, 0))
        middle = self.add("Neg", turned) if self.rng.random() < 0.5 else turned
        return self.add("Transpose", middle, type=self.type, perm=(1, 0))

    def step_reshapes(self) -> Value:
        flat = self.add("Reshape", self.full(), self.ints(-1) if self.rng.random() < 0.5 else self.ints(-1, 2, 2))
        return self.add("Reshape", flat, self.ints(-1, WIDTH), type=self.type)

    def step_shaped(self) -> Value:
        value = self.full()
        rows = self.add("Gather", self.add("Shape", value), self.ints(0), axis=0)
        target = self.add("Concat", rows, self.ints(WIDTH), axis=0)
        return self.add("Reshape", value, target, type=self.type)

    def step_halves(self) -> Value:
        both = self.add("Concat", self.full(), self.full(), axis=1)
        start = self.rng.choice([0, 2, WIDTH])
        return self.add("Slice", both, self.ints(start), self.ints(start + WIDTH), self.ints(1), type=self.type)

    def step_split(self) -> Value:
        node = self.graph.add("Split", [self.full()], {"axis": 1, "num_outputs": 2}, outputs=("", ""))
        parts = list(node.outputs)
        self.rng.shuffle(parts)
        return self.add("Concat", *parts, axis=1, type=self.type)

    def step_casts(self) -> Value:
        return self.add("Cast", self.add("Cast", self.full(), to=F64.onnx), to=F32.onnx, type=self.type)

    def step_clip(self) -> Value:
        low, high = self.scalar(-1.0), self.scalar(1.0)
        bounds = self.rng.choice([(low, high), (None, high), (low, None), (low,), ()])
        return self.add("Clip", self.full(), *bounds, type=self.type)

    def step_where(self) -> Value:
        flag = self.add("Greater", self.full(), self.scalar(0.0), type=TensorType(BOOL, self.type.shape))
        return self.add("Where", flag, self.full(), self.rng.choice(self.floats), type=self.type)

    def step_reduce(self) -> Value:
        value = self.full()
        kind = self.rng.choice(["ReduceMax", "ReduceMean", "ReduceSum"])
        axes = self.rng.choice([self.ints(-1), self.ints(1), None])
        return self.add(
            "Sub", value, self.add(kind, *[value, axes][: 1 + (axes is not None)], keepdims=1), type=self.type
        )

    def step_softmax(self) -> Value:
        return self.add("Softmax", self.full(), axis=self.rng.choice([-1, 1]), type=self.type)

    def step_sort(self) -> Value:
        node = self.graph.add("TopK", [self.full(), self.ints(WIDTH)], {"axis": 1}, outputs=("", ""))
        return node.output

    def step_gather(self) -> Value:
        places = self.ints(*self.rng.choices(range(WIDTH), k=WIDTH))
        return self.add("Gather", self.full(), places, axis=1, type=self.type)

    def step_experts(self) -> Value:
        """Each row to some of a few experts, one of which may get none, and back."""
        count = self.rng.randint(1, 3)
        rows = self.add("Unsqueeze", self.full(), self.ints(0))
        scores = self.add("Slice", rows, self.ints(0), self.ints(count), self.ints(2))
        best = self.graph.add("TopK", [scores, self.ints(self.rng.randint(1, count))], outputs=("", ""))
        parts = self.graph.add(
            "lading.Dispatch", [rows, best.outputs[1]], {"experts": count}, outputs=("",) * count
        ).outputs
        given = [self.add(self.rng.choice(_UNARY), part) for part in parts]
        summed = self.add("lading.Combine", best.outputs[1], best.outputs[0], *given)
        return self.add("Squeeze", summed, self.ints(0), type=self.type)

    def step_if(self) -> Value:
        value = self.full()
        flag = self.const(np.array(self.rng.random() < 0.5))
        if self.rng.random() < 0.5:
            flag = self.add("Equal", self.add("Shape", value, start=0, end=1), self.ints(3))
        node = self.graph.add("If", [flag], types=[self.type])
        for name in ("then_branch", "else_branch"):
            body = Graph(name, owner=node)
            inner = body.add(self.rng.choice(_UNARY), [value], types=[self.type])
            body.set_outputs([inner.output])
            self.graph.set_attrs(node, **{name: body})
        return node.output


# ---- what the text form has to hold ----


def decorate(graph: Graph, rng: random.Random) -> Graph:
    """Give a graph odd names, places, metadata, constants and attributes; it can no longer be computed."""
    for value in [*graph.inputs, *graph.consts.values(), *(value for node in graph.nodes for value in node.outputs)]:
        name = rng.choice(ODD_NAMES)
        if rng.random() < 0.3 and not graph.has(name):
            graph.rename(value, name)
        if rng.random() < 0.2:
            graph.set_loc(value, rng.choice(ODD_NAMES))
    for node in graph.walk():
        _decorate_node(node, rng)
    for _ in range(rng.randint(0, 3)):
        graph.add_const(rng.choice(ODD_NAMES) or "k", random_tensor(rng))
    foreign = graph.add("test.Foreign", [rng.choice([None, *graph.inputs])], outputs=("", ""))
    graph.set_attrs(foreign, **{f"k{number}": random_attribute(rng) for number in range(rng.randint(0, 4))})
    graph.metadata[rng.choice(ODD_NAMES)] = random_json(rng)
    if rng.random() < 0.5 and graph.consts:
        graph.set_table(rng.choice(ODD_NAMES), rng.choice(list(graph.consts.values())))
    return graph


def _decorate_node(node: Node, rng: random.Random) -> None:
    if rng.random() < 0.2:
        node.graph.set_name(node, rng.choice(ODD_NAMES))  # type: ignore[union-attr]
    if rng.random() < 0.2:
        node.graph.set_loc(node, rng.choice(ODD_NAMES))  # type: ignore[union-attr]
    if rng.random() < 0.1:
        node.metadata[rng.choice(ODD_NAMES)] = rng.choice(ODD_NAMES)


def random_tensor(rng: random.Random) -> Tensor:
    """An inline tensor of any element type, with any bits."""
    dtype = DTYPES[rng.choice(sorted(DTYPES))]
    shape = rng.choice([(), (0,), (1,), (3,), (2, 2), (1, 0, 2), (21,)])
    size = int(np.prod(shape, dtype=np.int64))
    if dtype.kind == "s":
        array = np.empty(size, object)
        array[:] = [rng.choice(ODD_NAMES) for _ in range(size)]
        return InlineTensor(array.reshape(shape), dtype)
    if dtype.kind == "b":
        return InlineTensor(np.array([rng.random() < 0.5 for _ in range(size)], bool).reshape(shape))
    if dtype.is_integer:
        wide = np.array(
            [rng.randint(dtype.low, dtype.high) for _ in range(size)], "u8" if dtype.name == "u64" else "i8"
        )
        return InlineTensor(wide.astype(dtype.numpy).reshape(shape), dtype)
    raw = rng.randbytes(size * dtype.numpy.itemsize)
    if dtype.bits < 8:
        raw = bytes(byte & 15 for byte in raw)
    return InlineTensor(np.frombuffer(raw, dtype.numpy).reshape(shape), dtype)


def random_attribute(rng: random.Random) -> object:
    """An attribute value of any kind but graphs."""
    numbers = [0, -1, 2**63, -(2**70), 0.1, -0.0, float("inf"), float("nan"), 1e300, 5e-324]
    types = [TensorType(I64, (2, Dim("n", 1, 8))), TensorType(F32, None), SequenceType(TensorType(BOOL, ()))]
    single = [*numbers, *ODD_NAMES, b"", b"\x00\xff", random_tensor(rng), *types]
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(single)
    if kind < 0.8:
        return EmptyList(rng.choice(["floats", "graphs", "ints", "strings", "tensors", "types"]))
    return tuple(rng.choice(single) for _ in range(rng.randint(1, 3)))


def random_json(rng: random.Random, depth: int = 3) -> object:
    """JSON data of odd texts and numbers."""
    kind = rng.choice(["text", "number", "list", "table"] if depth else ["text", "number"])
    if kind == "text":
        return rng.choice([*ODD_NAMES, None, True])
    if kind == "number":
        return rng.choice([0, -1, 2**53, 2**80, 0.1, 1e-300])
    if kind == "list":
        return [random_json(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice(ODD_NAMES): random_json(rng, depth - 1) for _ in range(rng.randint(0, 3))}


__all__ = ["ODD_NAMES", "decorate", "layered_graph", "random_attribute", "random_graph", "random_json", "random_tensor"]
