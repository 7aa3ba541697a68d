"""What the backend knows of one operator of MNN, in one row: types and meaning, JSON form both ways, releases.

Rows stand in the files of their groups (`backends.mnn.dialect.norm`, `backends.mnn.dialect.rope` and so on), each with
all the functions it names; `backends.mnn.dialect.table` collects them. The operators of the IR, the encoder, the
decoder, the table of fused forms and the check of releases are read off the rows.

Names and parameters follow ``schema/default/*.fbs`` of MNN and shapes follow ``source/shape``. MNN has no 64-bit
integers and no booleans: comparisons give int32. The data format (``NCHW``, ``NC4HW4``) is a matter of layout and does
not change values, so the operators are defined on plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.mnn.dialect.builder import Builder
from backends.mnn.read.sizes import Ints
from backends.mnn.target.releases import Release
from backends.mnn.write.weight_layout import Layout
from ir.base.diag import LadingError
from ir.base.types import F32, I32, I64, DType, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.infer.numeric import tensor
from ir.ops.registry import AttrDef, OpDef

PURE = frozenset({"pure", "constant_foldable"})
FORMATS = frozenset({"NCHW", "NHWC", "NC4HW4"})

DATA_TYPES = {"DT_FLOAT": F32, "DT_INT32": I32}
"""``DataType`` of the schema -> element type, for those that graphs may hold."""

Main = Mapping[str, Any]
"""The parameters of an operator in JSON form, the table ``main`` of the schema."""

Operands = Sequence[Value | Ints]
"""What the inputs of an operator have become: tensors of the graph, or integers that are known while reading."""

Decoded = Value | Ints | tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class MnnOperator:
    """One operator.

    Attributes:
        type: name in ``OpType`` of the schema. Several rows may share it where the IR tells apart what MNN does not;
            empty for what only stands for something that the runtime does on its own.
        parameter: kind of its parameters in ``OpParameter``, for what is written.
        definition: types, meaning and drawing in the IR; None for what is taken apart when it is read.
        encode: the parameters of a node, whose stored weights lie as the layout says; None for what is never written.
        tensors: how many inputs are tensors of the graph where further ones are stored as parameters; None for all.
        format: format of an operator that does not take it from its operands.
        decode: the results of an operator of a file, put into the graph that the builder holds; one row of a type has
            it. None for what is never read.
        on_sizes: the result where all operands are known integers; None when it cannot be told.
        form: the fused form of the pass ``fuse-mnn`` that the operator belongs to, or empty.
        reads: whether a release computes the operator with some attributes right; None when every release does.
        older: puts in place of a node what releases compute that do not read it; None when there is nothing.
    """

    type: str = ""
    parameter: str = "NONE"
    definition: OpDef | None = None
    encode: Callable[[Node, Layout], dict[str, Any]] | None = None
    tensors: int | None = None
    format: str = "NCHW"
    decode: Callable[[Builder, Main, Operands], Decoded] | None = None
    on_sizes: Callable[[Main, Sequence[Ints]], Ints | None] | None = None
    form: str = ""
    reads: Callable[[Release, Mapping[str, Any]], bool] | None = None
    older: Callable[[Graph, Node], None] | None = None


def no_parameters(node: Node, layout: Layout) -> dict[str, Any]:
    """For operators without parameters, see `MnnOperator.encode`."""
    return {}


def same_operand(builder: Builder, main: Main, operands: Operands) -> Decoded:
    """For operators that change nothing but the layout, see `MnnOperator.decode`."""
    return operands[0]


def same_sizes(main: Main, operands: Sequence[Ints]) -> Ints:
    """For operators that keep integers as they are, see `MnnOperator.on_sizes`."""
    return operands[0]


def data_type(dtype: DType, where: str) -> str:
    """The name of an element type in the schema; int64 is held as int32.

    Raises:
        LadingError: B611 MNN has no such tensors.
    """
    for name, known in DATA_TYPES.items():
        if known == (I32 if dtype == I64 else dtype):
            return name
    raise LadingError("B611", f"MNN has no tensors of type {dtype}", where=where)


def attrs_of(*rows: AttrDef) -> dict[str, AttrDef]:
    """Attributes by name."""
    return {row.name: row for row in rows}


def along_last_axis(node: Node, index: int) -> bool:
    """Row-wise when the operator works along the last axis alone."""
    x = tensor(node.inputs[index])
    axis = node._attrs.get("axis", -1)
    axes = axis if isinstance(axis, tuple) else (axis,)
    return x is not None and x.rank is not None and all(place in (-1, x.rank - 1) for place in axes)


def is_packed(type_: TensorType) -> bool:
    """True for ``[rows, channels, 1, 1]``, the shape that is packed as NC4HW4, and where no shape is known."""
    return type_.shape is None or (len(type_.shape) == 4 and type_.shape[2:] == (1, 1))
