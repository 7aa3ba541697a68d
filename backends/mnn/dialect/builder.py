"""Puts MNN operators into a graph, one operator of a file at a time; what the decoders of operators work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from backends.mnn.read.sizes import Ints, Size, resolve_sizes
from backends.mnn.read.stored_tensors import WeightFile
from ir.base.diag import LadingError
from ir.base.types import Dim, Shape, TensorType, ValueType
from ir.graph.graph import Graph, Value
from ir.infer.engine import infer_node
from ir.infer.rule_table import TypeMismatch
from ir.target.signature import Signature
from ir.tensor.inline import InlineTensor


class Builder:
    """The graph that is being made of a file.

    Attributes:
        weights: the external weight file.
        convention: calling convention that the graph is made for.
        attention_scale: factor of attention scores where the model's configuration sets one, else 0.
        graph: what has been made so far.
        seq, rows: extents of the sequence and of the rows whose logits are wanted.
        index: the input that says which rows are wanted, when there is one.
        op: the operator of the file at hand, after which new ones are named.
        inner: puts the subgraph of a name into the graph, and gives what it makes of an operand.
    """

    def __init__(self, weights: WeightFile, convention: Signature, attention_scale: float = 0.0) -> None:
        self.weights = weights
        self.convention = convention
        self.attention_scale = attention_scale
        self.graph = Graph("main")
        self.graph.foreign = True
        self.seq = self.graph.add_dim(Dim("seq", 1, None))
        self.rows = self.graph.add_dim(Dim("rows", 1, None))
        self.index: Value | None = None
        self.op: Mapping[str, Any] = {}
        self.inner: Callable[[str, Value], Value]
        self._consts: dict[tuple, Value] = {}

    def error(self, code: str, message: str) -> LadingError:
        """An error about the operator at hand."""
        return LadingError(code, message, where=str(self.op.get("name") or self.op.get("type")))

    def add(self, op: str, inputs: Sequence[Value], type: ValueType | None = None, /, **attrs: Any) -> Value:
        """One MNN operator with one output, named after the operator at hand; its type is inferred unless given."""
        name = str(self.op.get("name") or op)
        node = self.graph.add(f"mnn.{op}", inputs, attrs, outputs=[self.graph.fresh_name(name)], loc=name)
        if type is None:
            try:
                (type,) = infer_node(node)
            except TypeMismatch as error:
                raise self.error("F645", str(error)) from error
        self.graph.set_type(node.output, type)
        return node.output

    def const(self, array: np.ndarray, stem: str = "const") -> Value:
        """A small constant, shared by equal ones."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._consts:
            self._consts[key] = self.graph.add_const(self.graph.fresh_name(stem), InlineTensor(array))
        return self._consts[key]

    def value(self, item: Value | Ints) -> Value:
        """An operand as a tensor."""
        if isinstance(item, Value):
            return item
        if item.known is None:
            raise self.error("F645", "a size of the run is used as a number, which cannot be worked out here")
        return self.const(np.array(item.known[0] if item.scalar else item.known, np.int32))

    def dims(self, x: Value) -> Shape:
        """The shape of an operand; F645 when it cannot be told."""
        if x.shape is None:
            raise self.error("F645", f"the shape of an operand is needed, which cannot be told: %{x.name} is {x.type}")
        return x.shape

    def size(self, x: Value, axis: int) -> int:
        """A dimension of an operand in numbers; F645 when it cannot be told."""
        found = self.dims(x)[axis]
        if isinstance(found, Dim):
            raise self.error("F645", f"the size {found} of an operand is needed as a number: %{x.name} is {x.type}")
        return found

    def reshape(self, x: Value, sizes: Sequence[Size]) -> Value:
        """`x` under sizes of which one may be -1 or a size of the run."""
        shape = resolve_sizes(self.dims(x), sizes)
        if shape is None or sum(isinstance(size, Dim) for size in shape) > 1:
            raise self.error("F645", f"a reshape of {x.type} to {[str(size) for size in sizes]} cannot be worked out")
        if shape == x.shape:
            return x
        dims = tuple(-1 if isinstance(size, Dim) else size for size in shape)
        return self.add("Reshape", [x], TensorType(x.dtype, shape), dims=dims, dim_type="NCHW")

    def several(self, op: str, inputs: Sequence[Value], count: int, word: str, /, **attrs: Any) -> tuple[Value, ...]:
        """One MNN operator with so many outputs, named by a word behind the name of the operator at hand."""
        name = str(self.op.get("name"))
        names = [self.graph.fresh_name(f"{name}.{word}") for _ in range(count)]
        node = self.graph.add(f"mnn.{op}", inputs, attrs, outputs=names, loc=name)
        try:
            types = infer_node(node)
        except TypeMismatch as error:
            raise self.error("F645", str(error)) from error
        for output, type_ in zip(node.outputs, types, strict=True):
            self.graph.set_type(output, type_)
        return node.outputs

    def slice(self, x: Value, axis: int, points: Sequence[int]) -> tuple[Value, ...]:
        """`x` cut along an axis."""
        return self.several("Slice", [x], len(points) + 1, "part", axis=axis, points=tuple(points))

    def slice_rows(self, x: Value, axis: int) -> Value:
        """The rows of `x` that logits_index asks for."""
        ends = [self.const(np.array([number], np.int32)) for number in (2**31 - 1, axis, 1)]
        shape = tuple(self.rows if place == axis else size for place, size in enumerate(self.dims(x)))
        assert self.index is not None
        return self.add("StridedSlice", [x, self.index, *ends], TensorType(x.dtype, shape))
