"""What the parts of a model build their nodes with: constants, norms, linear layers, ropes and masks of one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from frontends.parts.fused import Matrix
from frontends.parts.norms import Norm
from frontends.parts.rope import Rope
from frontends.parts.stored import Stored
from ir.base.types import BOOL, F32, I64, Dim, DType, Shape, TensorType
from ir.graph.graph import OPSET, Graph, Value
from ir.tensor.base import Tensor
from ir.tensor.elementwise import shifted
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import row_gather, transposed

OWN_DOMAIN = "lading"


@dataclass(frozen=True)
class Layer:
    """The place of a part in a model.

    Attributes:
        index: number of the layer.
        base: name of its module, such as ``model.layers.3``.
        norm: the family's norm.
        window: tokens that each token sees, itself included; None for all earlier ones.
        rope: name of the rope; None for a layer that turns nothing.
    """

    index: int
    base: str
    norm: Norm = field(default_factory=Norm)
    window: int | None = None
    rope: str | None = "main"


class Part(Protocol):
    """A part of a layer: a frozen dataclass whose fields hold specs in a row, and values when it builds."""

    def build(self, b: Builder, x: Value, layer: Layer) -> Value:
        """Add the nodes that make f32[1, seq, hidden] of f32[1, seq, hidden]."""


class Builder:
    """The graph of one model while it is made.

    Attributes:
        graph: the graph.
        stored: the checkpoint.
        hidden: width of the stream between the layers.
        context: longest sequence.
        seq: the symbolic dimension of the sequence.
        ropes: checked ropes by name and width of a head.
        made: values that several parts share, by name.
        tables: cos and sin of each rope that was asked for, see `frontends.parts.rope_table`.
        is_transposed: linear weights are stored [in, out].
    """

    def __init__(
        self,
        stored: Stored,
        name: str,
        *,
        hidden: int,
        context: int,
        ropes: Mapping[tuple[str, int], Rope],
        is_transposed: bool = False,
    ) -> None:
        self.graph = Graph(name, opsets={"": OPSET, OWN_DOMAIN: 1})
        self.stored = stored
        self.hidden = hidden
        self.context = context
        self.ropes = ropes
        self.is_transposed = is_transposed
        self.seq = self.graph.add_dim(Dim("seq", 1, context))
        self.made: dict[str, Value] = {}
        self._shared: dict[tuple[str, object], Value] = {}
        self.tables: dict[tuple[str, int], tuple[Value, Value]] = {}
        self.ids = self.graph.add_input("input_ids", TensorType(I64, (1, self.seq)))
        self.positions = self._positions()

    # ---- nodes ----

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None],
        name: str,
        shape: Shape | None,
        attrs: Mapping[str, object] | None = None,
        dtype: DType = F32,
        loc: str = "",
    ) -> Value:
        """A node with one output of a known type, both called `name`."""
        types = (TensorType(dtype, shape),)
        return self.graph.add(op, inputs, attrs, outputs=(name,), types=types, name=name, loc=loc).output

    def rows(self, width: int | None = None) -> Shape:
        """The shape of one vector for each position."""
        return (1, self.seq, self.hidden if width is None else width)

    def const(self, name: str, tensor: Tensor) -> Value:
        """A constant of the checkpoint."""
        return self.graph.add_const(name, tensor)

    def ints(self, name: str, *values: int) -> Value:
        """A shared int64 vector."""
        return self._share(name, values, lambda: InlineTensor(np.array(values, np.int64)))

    def whole(self, name: str, value: int) -> Value:
        """A shared int64 scalar."""
        return self._share(name, value, lambda: InlineTensor(np.array(value, np.int64)))

    def setting(self, name: str, value: float | np.ndarray) -> Value:
        """A float32 constant that follows from the configuration; shared by its name and value."""
        array = np.asarray(value, np.float32)
        key = (array.tobytes(), array.shape)
        return self._share(name, key, lambda: InlineTensor(array, loc="config.json"))

    def _share(self, name: str, key: object, make: Callable[[], Tensor]) -> Value:
        found = self._shared.get((name, key))
        if found is None:
            found = self._shared[name, key] = self.graph.add_const(name, make())
        return found

    def times(self, value: Value, factor: float, name: str, of: str = "") -> Value:
        """Multiply by a number of the configuration; one is left out."""
        if factor == 1.0:
            return value
        scale = self.setting(name, factor)
        return self.add("Mul", [value, scale], of or f"{value.name}.scaled", value.shape)

    def same(self, op: str, inputs: Sequence[Value], name: str) -> Value:
        """An elementwise node whose result has the shape of its first input."""
        return self.add(op, inputs, name, inputs[0].shape)

    # ---- norms and linear layers ----

    def norm(self, value: Value, module: str, norm: Norm, width: int, order: np.ndarray | None = None) -> Value:
        """A norm over the last axis, its weight and bias permuted by `order`."""
        return self.norm_of(value, module, norm, self.norm_weight(module, norm, (width,)), order)

    def norm_weight(self, module: str, norm: Norm, shape: tuple[int, ...]) -> Tensor:
        """The weight of a norm with the family's offset."""
        return shifted(self.stored.get(f"{module}.weight", shape), norm.offset)

    def norm_of(self, value: Value, module: str, norm: Norm, weight: Tensor, order: np.ndarray | None = None) -> Value:
        """A norm with a weight that was asked for already."""
        const = self.graph.add_const(f"{module}.weight", reordered(weight, order))
        attrs = {"axis": -1, "epsilon": norm.epsilon}
        if norm.kind == "rms":
            return self.add("RMSNormalization", [value, const], module, value.shape, attrs, loc=const.loc)
        inputs = [value, const]
        if norm.bias:
            bias = self.stored.get(f"{module}.bias", weight.shape)
            inputs.append(self.graph.add_const(f"{module}.bias", reordered(bias, order)))
        return self.add("LayerNormalization", inputs, module, value.shape, attrs, loc=const.loc)

    def matrix(self, module: str, outputs: int, inputs: int, bias: bool | None = False) -> Matrix:
        """A stored linear layer; `bias` None means that the checkpoint decides whether it has one."""
        shape = (inputs, outputs) if self.is_transposed else (outputs, inputs)
        weight = self.stored.get(f"{module}.weight", shape)
        if bias is None:
            bias = self.stored.has(f"{module}.bias")
        offset = self.stored.get(f"{module}.bias", (outputs,)) if bias else None
        return Matrix(module, transposed(weight) if self.is_transposed else weight, offset)

    def apply(self, value: Value, matrix: Matrix, rows: Shape | None = None) -> Value:
        """``value @ W.T + b``; `rows` is the shape of the result where its rows are not those of the sequence."""
        outputs = matrix.weight.row_count
        shape = self.rows(outputs) if rows is None else rows
        weight = self.graph.add_const(f"{matrix.module}.weight", transposed(matrix.weight))
        name = matrix.module if matrix.bias is None else f"{matrix.module}.matmul"
        result = self.add("MatMul", [value, weight], name, shape, loc=weight.loc)
        if matrix.bias is None:
            return result
        bias = self.graph.add_const(f"{matrix.module}.bias", matrix.bias)
        return self.add("Add", [result, bias], matrix.module, shape, loc=bias.loc)

    def linear(self, value: Value, module: str, outputs: int, inputs: int, bias: bool | None = False) -> Value:
        """A stored linear layer, applied."""
        return self.apply(value, self.matrix(module, outputs, inputs, bias))

    # ---- heads ----

    def heads(self, value: Value, count: int, width: int, name: str) -> Value:
        """f32[1, seq, count, width] of f32[1, seq, count * width]."""
        split = self.ints(f"heads_{count}", 0, 0, count, width)
        return self.add("Reshape", [value, split], name, (1, self.seq, count, width))

    def merged(self, value: Value, width: int, name: str) -> Value:
        """f32[1, seq, width] of f32[1, seq, heads, width / heads]."""
        return self.add("Reshape", [value, self.ints("merge_heads", 0, 0, -1)], name, self.rows(width))

    # ---- positions, ropes, masks ----

    def _positions(self) -> Value:
        shape = self.add("Shape", [self.ids], "input_shape", (2,), dtype=I64)
        axis = self.whole("sequence_axis", 1)
        length = self.add("Gather", [shape, axis], "sequence_length", (), {"axis": 0}, I64)
        start, step = self.whole("range_start", 0), self.whole("range_step", 1)
        steps = self.add("Range", [start, length, step], "range", (self.seq,), dtype=I64)
        return self.add("Unsqueeze", [steps, self.ints("axis_0", 0)], "positions", (1, self.seq), dtype=I64)

    def turned(self, name: str, width: int) -> int:
        """How many elements of a head of a width a rope turns."""
        return self.ropes[name, width].width

    def mask(self, window: int) -> Value:
        """The mask shared by all layers with a window."""
        name = f"mask.window_{window}"
        if name not in self.made:
            shape, op = (1, 1, self.seq, self.seq), f"{OWN_DOMAIN}.SlidingWindowMask"
            self.made[name] = self.add(op, [self.positions], name, shape, {"window": window}, BOOL)
        return self.made[name]


def reordered(tensor: Tensor, order: np.ndarray | None) -> Tensor:
    """A tensor with its rows in another order, if there is one."""
    return tensor if order is None else row_gather(tensor, order)


__all__ = ["OWN_DOMAIN", "Builder", "Layer", "Part", "reordered"]
