"""Operators that change the shape of a tensor or its layout, and those that ask for a shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.operator import (
    FORMATS,
    PURE,
    Decoded,
    Main,
    MnnOperator,
    Operands,
    attrs_of,
    same_operand,
    same_sizes,
)
from backends.mnn.read.net_file import numbers
from backends.mnn.read.sizes import Ints
from backends.mnn.write.weight_layout import Layout
from ir.base.types import Dim, TensorType, ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import same_as_input, tensor
from ir.infer.rule_table import TypeMismatch
from ir.infer.shapes import reshaped, squeezed_shape, typed, unsqueezed_shape
from ir.infer.values import same_elements
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef

# ---- another shape ----


def _reshape_type(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    return None if x is None else typed(x.dtype, reshaped(run, x.shape, node._attrs["dims"]))


def _reshape(body: Body) -> list[Value]:
    return [body.op("Reshape", body.inputs[0], body.ints(*body.attr("dims")))]


def _write_reshape(node: Node, layout: Layout) -> dict[str, Any]:
    return {"dims": list(node.attrs["dims"]), "dimType": node.attrs.get("dim_type", "NCHW")}


def _read_reshape(builder: Builder, main: Main, operands: Operands) -> Decoded:
    sizes = operands[1].items if len(operands) > 1 and isinstance(operands[1], Ints) else numbers(main.get("dims"))
    return builder.reshape(builder.value(operands[0]), sizes)


def _squeeze_type(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return x
    axes = node._attrs["axes"]
    if not axes:
        # The runtime takes no axes to mean every axis of extent 1, which depends on run-time sizes.
        raise TypeMismatch("no axis is named")
    change = squeezed_shape if node.op == "mnn.Squeeze" else unsqueezed_shape
    return typed(x.dtype, change(x.shape, axes))


def _squeeze(body: Body) -> list[Value]:
    return [body.op(body.node.op_type, body.inputs[0], body.ints(*body.attr("axes")))]


def _write_squeeze(node: Node, layout: Layout) -> dict[str, Any]:
    return {"squeezeDims": list(node.attrs["axes"])}


def _axes(main: Main, operands: Operands) -> tuple[int, ...]:
    known = operands[1].known if len(operands) > 1 and isinstance(operands[1], Ints) else None
    return known if known is not None else tuple(numbers(main.get("squeezeDims")))


def _read_squeeze(builder: Builder, main: Main, operands: Operands) -> Decoded:
    x, axes = builder.value(operands[0]), _axes(main, operands)
    shape = builder.dims(x)
    places = {axis % len(shape) for axis in axes} or {place for place, size in enumerate(shape) if size == 1}
    kept = [size for place, size in enumerate(shape) if place not in places]
    if sum(isinstance(size, Dim) for size in kept) > 1:
        return builder.add("Squeeze", [x], axes=tuple(sorted(places)))
    return builder.reshape(x, kept)


def _squeeze_sizes(main: Main, operands: Sequence[Ints]) -> Ints | None:
    return Ints(operands[0].items, True) if len(operands[0].items) == 1 else None


def _read_unsqueeze(builder: Builder, main: Main, operands: Operands) -> Decoded:
    x, axes = builder.value(operands[0]), _axes(main, operands)
    shape = builder.dims(x)
    rank = len(shape) + len(axes)
    places, sizes = {axis % rank for axis in axes}, iter(shape)
    return builder.reshape(x, [1 if place in places else next(sizes) for place in range(rank)])


def _unsqueeze_sizes(main: Main, operands: Sequence[Ints]) -> Ints | None:
    return Ints(operands[0].items) if operands[0].scalar else None


# ---- another order of axes ----


def _permuted_type(run: Inference, node: Node) -> ValueType | None:
    x, order = tensor(node.inputs[0]), node._attrs["dims"]
    if x is None or x.shape is None:
        return x
    if sorted(order) != list(range(len(x.shape))):
        raise TypeMismatch(f"{list(order)} is no order of the axes of {x}")
    return TensorType(x.dtype, tuple(x.shape[axis] for axis in order))


def _permute(body: Body) -> list[Value]:
    return [body.op("Transpose", body.inputs[0], perm=body.attr("dims"))]


def _write_permute(node: Node, layout: Layout) -> dict[str, Any]:
    return {"dims": list(node.attrs["dims"])}


def _read_permute(builder: Builder, main: Main, operands: Operands) -> Decoded:
    return builder.add("Permute", [builder.value(operands[0])], dims=tuple(numbers(main.get("dims"))))


# ---- another layout ----


def _identity(body: Body) -> list[Value]:
    return [body.op("Identity", body.inputs[0])]


def _write_convert(node: Node, layout: Layout) -> dict[str, Any]:
    return {"source": node.attrs["source"], "dest": node.attrs["dest"]}


# ---- sizes ----


def _read_shape(builder: Builder, main: Main, operands: Operands) -> Decoded:
    return Ints(tuple(builder.dims(builder.value(operands[0]))))


def _shape_sizes(main: Main, operands: Sequence[Ints]) -> Ints:
    return Ints(() if operands[0].scalar else (len(operands[0].items),))


def _read_rank(builder: Builder, main: Main, operands: Operands) -> Decoded:
    return Ints((len(builder.dims(builder.value(operands[0]))),), True)


def _rank_sizes(main: Main, operands: Sequence[Ints]) -> Ints:
    return Ints((0 if operands[0].scalar else 1,), True)


ROWS = (
    MnnOperator(
        type="Reshape",
        parameter="Reshape",
        definition=OpDef(
            "mnn.Reshape",
            inputs=("x",),
            attrs=attrs_of(AttrDef("dims", "ints", required=True), AttrDef("dim_type", "str", "NCHW", choices=FORMATS)),
            traits=PURE | {"positional"},
            infer=_reshape_type,
            follow=same_elements,
            define=_reshape,
            role="layout",
            doc="The same elements under another shape; 0 copies the axis of the operand, one -1 takes what is left.",
        ),
        encode=_write_reshape,
        decode=_read_reshape,
    ),
    MnnOperator(
        type="Squeeze",
        parameter="SqueezeParam",
        definition=OpDef(
            "mnn.Squeeze",
            inputs=("x",),
            attrs=attrs_of(AttrDef("axes", "ints", required=True)),
            traits=PURE | {"positional"},
            infer=_squeeze_type,
            define=_squeeze,
            role="layout",
            doc="Drops axes of extent 1.",
        ),
        encode=_write_squeeze,
        decode=_read_squeeze,
        on_sizes=_squeeze_sizes,
    ),
    MnnOperator(
        type="Unsqueeze",
        parameter="SqueezeParam",
        definition=OpDef(
            "mnn.Unsqueeze",
            inputs=("x",),
            attrs=attrs_of(AttrDef("axes", "ints", required=True)),
            traits=PURE | {"positional"},
            infer=_squeeze_type,
            define=_squeeze,
            role="layout",
            doc="Puts axes of extent 1 in.",
        ),
        encode=_write_squeeze,
        decode=_read_unsqueeze,
        on_sizes=_unsqueeze_sizes,
    ),
    MnnOperator(
        type="Permute",
        parameter="Permute",
        definition=OpDef(
            "mnn.Permute",
            inputs=("x",),
            attrs=attrs_of(AttrDef("dims", "ints", required=True)),
            infer=_permuted_type,
            define=_permute,
            role="layout",
            doc="The axes in another order.",
        ),
        encode=_write_permute,
        decode=_read_permute,
    ),
    MnnOperator(
        type="ConvertTensor",
        parameter="TensorConvertInfo",
        definition=OpDef(
            "mnn.ConvertTensor",
            inputs=("x",),
            attrs=attrs_of(
                AttrDef("source", "str", required=True, choices=FORMATS),
                AttrDef("dest", "str", required=True, choices=FORMATS),
            ),
            traits=PURE | {"positional", "elementwise"},
            infer=same_as_input,
            define=_identity,
            role="layout",
            doc="Another memory layout of the same values.",
        ),
        encode=_write_convert,
        decode=same_operand,
    ),
    MnnOperator(type="Identity", decode=same_operand, on_sizes=same_sizes),
    MnnOperator(type="Shape", decode=_read_shape, on_sizes=_shape_sizes),
    MnnOperator(type="Rank", decode=_read_rank, on_sizes=_rank_sizes),
)
"""Rows for `backends.mnn.dialect.table`."""
