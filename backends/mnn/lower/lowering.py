"""Builds the operators of MNN that take the place of ONNX's, one node of a graph at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import BOOL, F32, I32, I64, Dim, DType, Shape, TensorType, ValueType
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph, Node, Value
from ir.tensor.bf16_parts import bf16_parts, parts_needed
from ir.tensor.inline import InlineTensor


class Lowering:
    """Builds the MNN operators that replace one node at a time.

    Attributes:
        node: the node being lowered; its owner sets it before anything is built.
        positions: how many positions the tables have rows for that are chosen by positions; None without such tables.
        mixtures: how many mixtures of experts were lowered.
    """

    node: Node
    positions: int | None = None
    mixtures: int = 0

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._consts: dict[tuple, Value] = {}

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None],
        type: ValueType | None,
        attrs: Mapping[str, Any] | None = None,
        stem: str = "",
    ) -> Value:
        """One node with one output, placed before the node being lowered."""
        node = self.graph.add(
            f"mnn.{op}",
            inputs,
            attrs,
            outputs=[stem or f"{self.node.output.name}.{op.lower()}"],
            types=[type],
            before=self.node,
            loc=self.node.loc,
        )
        return node.output

    def const(self, array: np.ndarray, stem: str) -> Value:
        """A small constant, shared when the same numbers were asked for before."""
        key = (stem, array.dtype.str, array.shape, array.tobytes())
        if key not in self._consts:
            self._consts[key] = self.graph.add_const(stem, InlineTensor(array))
        return self._consts[key]

    def scalar(self, number: float, dtype: DType = F32) -> Value:
        """A constant of rank 0."""
        return self.const(np.array(number, dtype.numpy), f"number.{number:g}")

    def ints(self, *numbers: int) -> Value:
        """A constant vector of 32-bit integers."""
        return self.const(np.array(numbers, np.int32), "ints")

    def plain(self, value: Value) -> Value:
        """An operand in a type that MNN has: constants of 64-bit integers and booleans become 32-bit integers.

        Raises:
            LadingError: P373 numbers that need more than 32 bits, or a type that MNN has not.
        """
        type_ = value.type
        if not isinstance(type_, TensorType) or type_.dtype in (F32, I32):
            return value
        if type_.dtype not in (I64, BOOL):
            raise self.refused(f"MNN computes in single precision and 32-bit integers, not in {type_.dtype}")
        if value.const is None:
            return value
        numbers = value.tensor.load()
        if numbers.size and not -(2**31) <= numbers.min() <= numbers.max() < 2**31:
            raise self.refused(f"@{value.name} holds {max(numbers.min(), numbers.max(), key=abs)}, beyond 32 bits")
        return self.const(numbers.astype(np.int32), value.name)

    def axes(self, value: Value | None) -> tuple[int, ...]:
        """Axes in numbers; LadingError P373 when they are computed or left out."""
        if value is None or value.const is None:
            raise self.refused("MNN takes axes that are constants")
        return tuple(int(axis) for axis in value.tensor.load().reshape(-1))

    def type_of(self, value: Value) -> ValueType | None:
        """The type of a result in MNN, where 64-bit integers and booleans are 32-bit integers."""
        found = value.type
        if isinstance(found, TensorType) and found.dtype in (I64, BOOL):
            return TensorType(I32, found.shape)
        return found

    def floats(self, value: Value) -> Value:
        """`value`, which must be of single precision; LadingError P373 when it is not."""
        if not isinstance(value.type, TensorType) or value.dtype != F32:
            raise self.refused(f"MNN computes {self.node.op_type} in single precision, not in {value.type}")
        return value

    def dims(self, value: Value) -> Shape:
        """The shape of an operand or result; LadingError P373 when it is not known."""
        if value.shape is None:
            raise self.refused(f"an MNN form needs shapes, and %{value.name} is {value.type}")
        return value.shape

    def size(self, dim: int | Dim) -> int:
        """A dimension in numbers; LadingError P373 when only the run knows it."""
        if isinstance(dim, Dim):
            raise self.refused(f"the size {dim} has to be known where the model is compiled")
        return dim

    def refused(self, why: str, hint: str = "") -> LadingError:
        """The error of a node that has no form with its attributes or operands."""
        return LadingError("P373", why, where=f"{self.node.loc or self.node.name}\n{self.node!r}", hint=hint)

    def reshape(self, value: Value, shape: Sequence[int | Dim]) -> Value:
        """`value` with another shape of at most one symbolic dimension."""
        if tuple(shape) == value.shape:
            return value
        free = [dim for dim in shape if isinstance(dim, Dim)]
        if len(free) > 1:
            raise LadingError(
                "P371",
                f"a reshape to {list(map(str, shape))} leaves more than one size to the runtime",
                where=f"{self.node.loc or self.node.name}\n{self.node!r}",
            )
        dims = tuple(-1 if isinstance(dim, Dim) else dim for dim in shape)
        return self.add("Reshape", [value], TensorType(value.dtype, tuple(shape)), {"dims": dims, "dim_type": "NCHW"})

    def binary(self, kind: str, left: Value, right: Value, type: ValueType | None = None) -> Value:
        """Element-wise `kind` of two values; the result has the type of the left one unless given."""
        return self.add("Binary", [left, right], type or left.type, {"kind": kind})

    def unary(self, kind: str, value: Value, type: ValueType | None = None) -> Value:
        """The function `kind` of each element."""
        return self.add("Unary", [value], type or value.type, {"kind": kind})

    def times(self, value: Value, factor: float) -> Value:
        """Each element times a number."""
        return value if factor == 1 else self.binary("MUL", value, self.scalar(factor))

    def plus(self, value: Value, number: float) -> Value:
        """Each element plus a number."""
        return self.binary("ADD", value, self.scalar(number))

    def cut(self, value: Value, axis: int, start: int, stop: int) -> Value:
        """Elements `start` to `stop` along an axis of known size."""
        shape = list(self.dims(value))
        shape[axis] = stop - start
        bounds = [self.ints(number) for number in (start, stop, axis, 1)]
        return self.add("StridedSlice", [value, *bounds], TensorType(value.dtype, tuple(shape)))

    def replace(self, old: Value, new: Value) -> None:
        """All readers of `old` read `new`, which takes its name over; outputs stay values of their own."""
        if old.is_output and (new.is_output or new.is_input or new.is_const):
            new = self.copied(new)
        name = old.name
        self.graph.replace(old, new)
        self.graph.rename(old, self.graph.fresh_name(f"{name}.old"))
        if new.producer is not None and new.name not in (value.name for value in self.graph.inputs):
            self.graph.rename(new, name)

    def copied(self, value: Value) -> Value:
        """The same numbers as a value of its own."""
        if isinstance(value.type, TensorType) and value.dtype == F32:
            return self.binary("MUL", value, self.scalar(1))
        return self.binary("ADD", value, self.scalar(0, I32), self.type_of(value))

    def sweep(self) -> None:
        """Erase what nothing reads any more."""
        for node in reversed(self.graph.nodes):
            if not any(value.use_count for value in node.outputs):
                self.graph.erase(node)
        for value in list(self.graph.consts.values()):
            if value.use_count == 0:
                self.graph.erase_const(value)

    def embedding_parts(self) -> None:
        """Hand a table kept in single precision to the runtime as bfloat16 parts and sum the parts in the graph."""
        graph = self.graph
        fact = graph.fact(DynamicInputs)
        found = fact.find("embedding-rows") if fact is not None else None
        table = graph.tables.get("embedding")
        if found is None or table is None or table.const is None:
            return
        name, parts = table.name, parts_needed(table.const)
        exact = graph.add_const(f"{name}.bf16", bf16_parts(table.const, parts), loc=table.loc)
        graph.set_table("embedding", exact)
        if table.use_count == 0:
            graph.erase_const(table)
            graph.rename(exact, name)
        if parts > 1:
            self._sum_parts(graph.value(found.input), parts)

    def _sum_parts(self, rows: Value, parts: int) -> None:
        reshape = rows.users[0]
        self.node = reshape
        seq, one, width = self.dims(rows)
        hidden = self.size(width)
        self.graph.set_type(rows, TensorType(F32, (seq, one, parts * hidden)))
        flat = self.reshape(rows, (1, seq, parts * hidden))
        points = tuple(hidden * index for index in range(1, parts))
        pieces = self.slice(flat, 2, points)
        total = pieces[0]
        for piece in pieces[1:]:
            total = self.binary("ADD", total, piece)
        self.replace(reshape.output, total)

    def slice(self, value: Value, axis: int, points: Sequence[int]) -> tuple[Value, ...]:
        """`value` cut along `axis` at the points."""
        edges = [0, *points, self.size(self.dims(value)[axis])]
        types = []
        for start, stop in pairwise(edges):
            shape = list(value.dims)
            shape[axis] = stop - start
            types.append(TensorType(value.dtype, tuple(shape)))
        node = self.graph.add(
            "mnn.Slice",
            [value],
            {"axis": axis, "points": tuple(points)},
            outputs=[f"{value.name}.part"] * len(types),
            types=types,
            before=self.node,
            loc=self.node.loc,
        )
        return node.outputs
