"""Operators that cut tensors, choose rows of them and join them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.operator import (
    PURE,
    Decoded,
    Main,
    MnnOperator,
    Operands,
    along_last_axis,
    attrs_of,
    data_type,
    no_parameters,
)
from backends.mnn.read.net_file import numbers
from backends.mnn.read.sizes import Ints
from backends.mnn.write.weight_layout import Layout
from ir.base.types import I32, TensorType, ValueType
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import part_axis, tensor, typed
from ir.infer.rule_table import TypeMismatch
from ir.infer.shapes import concat, slice_
from ir.infer.values import concat_elements
from ir.ops.meaning import Body
from ir.ops.registry import ANY, AttrDef, OpDef

# ---- Slice: an axis cut at points ----


def _slice_types(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return (x,) * len(node.outputs)
    points = node._attrs["points"]
    if len(node.outputs) != len(points) + 1:
        raise TypeMismatch(f"{len(points)} points cut into {len(points) + 1} parts, not {len(node.outputs)}")
    axis = part_axis(node._attrs["axis"], len(x.shape))
    whole = x.shape[axis]
    if list(points) != sorted(points) or (type(whole) is int and points and points[-1] > whole):
        raise TypeMismatch(f"points {list(points)} do not cut extent {whole}")
    sizes = [stop - start for start, stop in pairwise((0, *points))]
    sizes.append(run.table.subtract(whole, points[-1] if points else 0))
    return tuple(TensorType(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 :])) for size in sizes)


def _slice(body: Body) -> list[Value]:
    axis, points = body.attr("axis"), body.attr("points")
    edges = (0, *points, 2**31 - 1)
    return [
        body.op("Slice", body.inputs[0], body.ints(start), body.ints(stop), body.ints(axis))
        for start, stop in pairwise(edges)
    ]


def _write_slice(node: Node, layout: Layout) -> dict[str, Any]:
    return {"axis": node.attrs["axis"], "slicePoints": list(node.attrs["points"]), "sourceType": "CAFFE"}


def _read_slice(builder: Builder, main: Main, operands: Operands) -> Decoded:
    x, axis = builder.value(operands[0]), main.get("axis", 0)
    return builder.slice(x, axis, numbers(main.get("slicePoints")))


# ---- StridedSlice ----


def _strided_slice(body: Body) -> list[Value]:
    bounds = [None if value is None else body.op("Cast", value, to=7) for value in body.inputs[1:]]
    return [body.op("Slice", body.inputs[0], *bounds)]


def _write_strided_slice(node: Node, layout: Layout) -> dict[str, Any]:
    return {
        "Index": "DT_INT32", "T": "DT_FLOAT", "beginMask": 0, "endMask": 0, "ellipsisMask": 0, "newAxisMask": 0,
        "shrinkAxisMask": 0, "fromType": 1,
    }  # fmt: skip


def _read_strided_slice(builder: Builder, main: Main, operands: Operands) -> Decoded:
    x = builder.value(operands[0])
    if main.get("fromType") != 1 or any(
        main.get(key) for key in ("beginMask", "endMask", "shrinkAxisMask", "newAxisMask")
    ):
        raise builder.error("F644", "slices with TensorFlow's masks are not read")
    if builder.index is not None and operands[1] is builder.index:
        axes = operands[3].known if len(operands) > 3 and isinstance(operands[3], Ints) else (0,)
        if builder.convention.fed("output-rows") is None:
            return x
        if axes is None:
            raise builder.error("F645", "the axis of a slice is a size of the run, which cannot be worked out here")
        shape = builder.dims(x)
        axis = axes[0] % len(shape)
        if len(shape) == 4:  # rows of packed channels: cut where rows lie one below the other
            flat = builder.reshape(x, (1, shape[0], shape[1]))
            return builder.reshape(builder.slice_rows(flat, 1), (builder.rows, shape[1], 1, 1))
        return builder.slice_rows(x, axis)
    return builder.add("StridedSlice", [x, *(builder.value(item) for item in operands[1:])])


def _strided_slice_sizes(main: Main, operands: Sequence[Ints]) -> Ints | None:
    bounds = [item.known for item in operands[1:]]
    known = [bound[0] for bound in bounds if bound is not None and len(bound) == 1]
    if len(known) < len(bounds) or main.get("beginMask") or main.get("endMask"):
        return None
    begin, end = known[0], known[1]
    stepped = len(bounds) == 4 or (len(bounds) == 3 and main.get("fromType") == 0)
    step = known[-1] if stepped else 1
    items = operands[0].items[begin : min(end, 1 << 30) : step]
    return Ints(items, bool(main.get("shrinkAxisMask")))


# ---- Concat ----


def _concat(body: Body) -> list[Value]:
    return [body.op("Concat", *body.inputs, axis=body.attr("axis"))]


def _write_concat(node: Node, layout: Layout) -> dict[str, Any]:
    return {"axis": node.attrs["axis"]}


def _read_concat(builder: Builder, main: Main, operands: Operands) -> Decoded:
    values = [builder.value(item) for item in operands]
    return builder.add("Concat", values, axis=main.get("axis", 0) % len(builder.dims(values[0])))


def _concat_sizes(main: Main, operands: Sequence[Ints]) -> Ints:
    return Ints(tuple(item for operand in operands for item in operand.items))


# ---- GatherV2: rows by their numbers ----


def _gather_type(run: Inference, node: Node) -> ValueType | None:
    x, index = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None or index is None or x.shape is None or index.shape is None:
        return None
    return TensorType(x.dtype, (*index.shape, *x.shape[1:]))


def _gather(body: Body) -> list[Value]:
    return [body.op("Gather", *body.inputs, axis=0)]


def _write_gather(node: Node, layout: Layout) -> dict[str, Any]:
    return {"Taxis": "DT_INT32", "Tindices": "DT_INT32", "Tparams": "DT_FLOAT"}


def _read_gather(builder: Builder, main: Main, operands: Operands) -> Decoded:
    if len(operands) > 2 and getattr(operands[2], "known", None) != (0,):
        raise builder.error("F644", "gathers along another axis than the first are not read")
    return builder.add("GatherV2", [builder.value(operands[0]), builder.value(operands[1])])


def _gather_sizes(main: Main, operands: Sequence[Ints]) -> Ints | None:
    places = operands[1].known
    if places is None:
        return None
    return Ints(tuple(operands[0].items[place] for place in places), operands[1].scalar)


# ---- TopKV2 and GatherElements: elements of rows by their size and by their places ----


def _topk(body: Body) -> list[Value]:
    count = body.op("Cast", body.op("Reshape", body.operand(1), body.ints(1)), to=7)
    found = body.graph.add(
        "TopK", [body.operand(0), count], {"axis": -1, "largest": body.attr("largest")}, outputs=("", "")
    )
    return [found.outputs[0], body.op("Cast", found.outputs[1], to=I32.onnx)]


def _topk_types(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    x, count = tensor(node.inputs[0]), run.ints_of(node.inputs[1])
    if x is None or x.shape is None:
        return x, None
    part_axis(-1, len(x.shape))
    size = count[0] if count else None
    if type(size) is int and type(x.shape[-1]) is int and not 0 < size <= x.shape[-1]:
        raise TypeMismatch(f"the best {size} of {x.shape[-1]}")
    shape = (*x.shape[:-1], size)
    return typed(x.dtype, shape), typed(I32, shape)


def _write_topk(node: Node, layout: Layout) -> dict[str, Any]:
    kind = data_type(node.operand(0).dtype, node.output.name)
    return {"T": kind, "sorted": True, "largest": bool(node.attrs["largest"])}


def _read_topk(builder: Builder, main: Main, operands: Operands) -> Decoded:
    x, count = builder.value(operands[0]), builder.value(operands[1])
    return builder.several("TopK", [x, count], 2, "best", largest=int(main.get("largest", True)))


def _gather_elements(body: Body) -> list[Value]:
    return [body.op("GatherElements", body.operand(0), body.operand(1), axis=-1)]


def _gather_elements_type(run: Inference, node: Node) -> ValueType | None:
    x, places = tensor(node.inputs[0]), tensor(node.inputs[1])
    return None if x is None or places is None else TensorType(x.dtype, places.shape)


def _read_gather_elements(builder: Builder, main: Main, operands: Operands) -> Decoded:
    x, places = (builder.value(item) for item in operands[:2])
    axis = operands[2].known if len(operands) > 2 and isinstance(operands[2], Ints) else (0,)
    last = len(builder.dims(x)) - 1
    if axis is None or axis[0] not in (-1, last):
        raise builder.error("F644", "elements by their places along another axis than the last are not read")
    return builder.add("GatherElements", [x, places, builder.const(np.array(last, np.int32))])


ROWS = (
    MnnOperator(
        type="Slice",
        parameter="Slice",
        definition=OpDef(
            "mnn.Slice",
            inputs=("x",),
            max_outputs=ANY,
            attrs=attrs_of(AttrDef("axis", "int", required=True), AttrDef("points", "ints", required=True)),
            infer=_slice_types,
            define=_slice,
            rowwise=along_last_axis,
            role="layout",
            doc="Cuts an axis at the points: n points make n + 1 parts.",
        ),
        encode=_write_slice,
        decode=_read_slice,
    ),
    MnnOperator(
        type="StridedSlice",
        parameter="StridedSliceParam",
        definition=OpDef(
            "mnn.StridedSlice",
            inputs=("x", "begin", "end", "axes", "steps"),
            min_inputs=3,
            max_inputs=5,
            infer=slice_,
            define=_strided_slice,
            role="layout",
            doc="ONNX Slice with 32-bit bounds, for bounds that do not lie before the start of an axis and positive "
            "steps.",
        ),
        encode=_write_strided_slice,
        decode=_read_strided_slice,
        on_sizes=_strided_slice_sizes,
    ),
    MnnOperator(
        type="Concat",
        parameter="Axis",
        definition=OpDef(
            "mnn.Concat",
            inputs=("xs",),
            max_inputs=ANY,
            attrs=attrs_of(AttrDef("axis", "int", required=True)),
            infer=concat,
            follow=concat_elements,
            define=_concat,
            rowwise=along_last_axis,
            role="layout",
            doc="Joins tensors along an axis.",
        ),
        encode=_write_concat,
        decode=_read_concat,
        on_sizes=_concat_sizes,
    ),
    MnnOperator(
        type="GatherV2",
        parameter="GatherV2",
        definition=OpDef(
            "mnn.GatherV2",
            inputs=("x", "index"),
            min_inputs=2,
            max_inputs=2,
            traits=PURE,
            infer=_gather_type,
            define=_gather,
            role="layout",
            doc="Rows of x by their numbers: x [n, ...] and index [...] to [*index, ...].",
        ),
        encode=_write_gather,
        decode=_read_gather,
        on_sizes=_gather_sizes,
    ),
    MnnOperator(
        type="TopKV2",
        parameter="TopKV2",
        definition=OpDef(
            "mnn.TopK",
            inputs=("x", "count"),
            min_inputs=2,
            max_inputs=2,
            min_outputs=2,
            max_outputs=2,
            attrs=attrs_of(AttrDef("largest", "int", 1)),
            traits=PURE,
            infer=_topk_types,
            define=_topk,
            role="layout",
            doc="The largest elements of each row in order, or the smallest, and their places as int32.",
        ),
        encode=_write_topk,
        decode=_read_topk,
    ),
    MnnOperator(
        type="GatherElements",
        definition=OpDef(
            "mnn.GatherElements",
            inputs=("x", "places", "axis"),
            min_inputs=3,
            max_inputs=3,
            traits=PURE,
            infer=_gather_elements_type,
            define=_gather_elements,
            role="layout",
            doc="Elements of the last axis, whose number is given, by their places, which lie as the result does.",
        ),
        encode=no_parameters,
        decode=_read_gather_elements,
    ),
)
"""Rows for `backends.mnn.dialect.table`."""
