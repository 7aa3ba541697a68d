"""Operators of ONNX that move elements, in MNN's: other shapes, orders of axes, cuts, choices of rows, and joins.

Shapes come from the types, so whatever a graph computes them with is not looked at (`settle_shapes`).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from backends.mnn.lower.lowering import Lowering
from ir.base.types import I32, I64, Dim, Shape, TensorType
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import attribute
from ir.tensor.inline import InlineTensor

END = 2**31 - 1
"""A bound behind every axis."""

SAME_NUMBERS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
"""Operators that keep elements and their order."""

_FOLLOWS = {"Reshape": 1, "Expand": 1, "Tile": 1}
"""Which operand of an operator says no more than the type of its result."""


def settle_shapes(graph: Graph) -> None:
    """Give operators whose result's shape is known a constant for the operand that computes it, so that the operators
    that only compute shapes are read no more."""
    shapes: dict[tuple[int, ...], Value] = {}
    for node in graph.nodes:
        place = _FOLLOWS.get(node.op)
        shape = node.input(place) if place is not None else None
        if place is None or shape is None or shape.const is not None or node.output.shape is None:
            continue
        if sum(isinstance(dim, Dim) for dim in node.output.dims) > 1 and node.op == "Reshape":
            continue
        sizes = tuple(-1 if isinstance(dim, Dim) else dim for dim in node.output.dims)
        if sizes not in shapes:
            shapes[sizes] = graph.add_const("shape", InlineTensor(np.array(sizes, np.int64)))
        graph.set_input(node, place, shapes[sizes])
    for node in reversed(graph.nodes):
        if node.op in ("Shape", "Size", *_OF_SHAPES) and not any(value.use_count for value in node.outputs):
            graph.erase(node)


_OF_SHAPES = ("Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Cast", "Mul", "Add", "Sub", "Div", "Reshape",
              "ConstantOfShape", "Equal", "Where", "Min", "Max", "Range", "Expand", "ReduceProd")  # fmt: skip
"""What shapes are computed with."""


def lower_same_numbers(node: Node, low: Lowering) -> None:
    """Another shape, which is known from the type."""
    value, result = low.plain(node.operand(0)), node.output
    if node.op in ("Identity", "Dropout"):
        if any(other.use_count for other in node.outputs[1:]):
            raise low.refused("the mask of a dropout has no MNN form")
        low.replace(result, value)
        return
    symbolic = [dim for dim in low.dims(result) if isinstance(dim, Dim)]
    if len(symbolic) > 1 and node.op in ("Squeeze", "Unsqueeze"):
        axes = tuple(low.axes(node.input(1)))
        low.replace(result, low.add(node.op, [value], TensorType(value.dtype, result.shape), {"axes": axes}))
        return
    low.replace(result, low.reshape(value, result.dims))


def lower_transpose(node: Node, low: Lowering) -> None:
    """Another order of axes."""
    x = low.plain(node.operand(0))
    order = node.attrs.get("perm") or tuple(reversed(range(len(low.dims(x)))))
    low.replace(node.output, permuted(low, x, tuple(order)))


def permuted(low: Lowering, x: Value, order: tuple[int, ...]) -> Value:
    """The axes of `x` in another order; a reshape where no two axes of more than one element change places."""
    shape = low.dims(x)
    moved = tuple(shape[axis] for axis in order)
    kept = [axis for axis in order if shape[axis] != 1]
    if kept == sorted(kept) and sum(isinstance(dim, Dim) for dim in moved) < 2:
        return low.reshape(x, moved)
    return low.add("Permute", [x], TensorType(x.dtype, moved), {"dims": order})


def lower_expand(node: Node, low: Lowering) -> None:
    """Stretching: readers that stretch their operands themselves read the operand, sizes that are known are stretched by
    adding zeros."""
    x, result = low.plain(node.operand(0)), node.output
    shape = low.dims(result)
    if low.dims(x) == shape:
        low.replace(result, x)
        return
    lacking = (1,) * (len(shape) - len(low.dims(x)))
    wide = low.reshape(x, (*lacking, *low.dims(x)))
    if all(_stretches(user, result) for user in result.users) and not result.is_output:
        low.replace(result, wide)
        return
    grown: Shape = tuple(new if old == 1 else 1 for old, new in zip(low.dims(wide), shape, strict=True))
    zeros = low.const(np.zeros([low.size(dim) for dim in grown], wide.dtype.numpy), "zeros")
    low.replace(result, low.binary("ADD", wide, zeros, TensorType(wide.dtype, shape)))


def _stretches(node: Node, value: Value) -> bool:
    """True for an elementwise operator whose result does not depend on `value` being stretched."""
    from ir.ops.registry import has_trait

    others = [other.shape for other in node.inputs if other is not None and other is not value]
    if len(others) != 1 or not has_trait(node, "elementwise") or node.op == "Where":
        return False
    return len(node.outputs) == 1 and others[0] == node.output.shape


def lower_tile(node: Node, low: Lowering) -> None:
    """Repetition along axes of known counts, by joining."""
    x = low.plain(node.operand(0))
    for axis, (old, new) in enumerate(zip(low.dims(x), low.dims(node.output), strict=True)):
        if old == new:
            continue
        count, rest = divmod(low.size(new), low.size(old))
        assert not rest
        shape = list(low.dims(x))
        shape[axis] = new
        x = low.add("Concat", [x] * count, TensorType(x.dtype, tuple(shape)), {"axis": axis})
    low.replace(node.output, x)


# ---- cuts ----


def lower_slice(node: Node, low: Lowering) -> None:
    """Cuts of constant bounds are made to lie inside the axis, since the runtime does not move bounds before its start;
    those that are computed are taken as they are."""
    x, result = low.plain(node.operand(0)), node.output
    if node.attrs.get("starts") is not None:
        starts, ends = (tuple(map(int, node.attrs[name])) for name in ("starts", "ends"))
        axes = tuple(node.attrs.get("axes") or range(len(starts)))
        bounds = [starts, ends, axes, (1,) * len(starts)]
    elif any(value is not None and value.const is None for value in node.inputs[1:]):
        low.replace(result, low.add("StridedSlice", _all_bounds(node, low), low.type_of(result)))
        return
    else:
        bounds = _constant_bounds(node)
    shape, kept = low.dims(x), []
    for start, stop, axis, step in zip(*bounds, strict=True):
        if step < 0:
            raise low.refused(f"MNN slices forwards, and this slice goes in steps of {step}")
        begin, end = _inside(low, start, stop, shape[axis])
        if (begin, end, step) != (0, END, 1):
            kept.append((begin, end, axis % len(shape), step))
    if not kept:
        low.replace(result, x)
        return
    values = [low.ints(*numbers) for numbers in zip(*kept, strict=True)]
    low.replace(result, low.add("StridedSlice", [x, *values], low.type_of(result)))


def _constant_bounds(node: Node) -> list[tuple[int, ...]]:
    found = [None if value is None else tuple(map(int, value.tensor.load().reshape(-1))) for value in node.inputs[1:]]
    found += [None] * (4 - len(found))
    starts, ends, axes, steps = found
    assert starts is not None and ends is not None
    axes = tuple(range(len(starts))) if axes is None else axes
    return [starts, ends, axes, (1,) * len(starts) if steps is None else steps]


def _all_bounds(node: Node, low: Lowering) -> list[Value]:
    """The operands of a slice of computed bounds, with axes and steps named."""
    count = low.dims(node.operand(1))[0]
    defaults = (None, None, None, tuple(range(low.size(count))), (1,) * low.size(count))
    found = []
    for place, numbers in enumerate(defaults):
        value = node.input(place)
        if value is None:
            assert numbers is not None
            found.append(low.ints(*numbers))
        elif place == 4 and value.const is not None and (value.tensor.load() < 0).any():
            raise low.refused("MNN slices forwards, and this slice goes backwards")
        elif place in (1, 2) and value.const is not None and value.dtype != I32:
            found.append(low.const(np.clip(value.tensor.load(), -END, END).astype(np.int32), value.name))
        else:
            found.append(low.plain(value))
    return found


def _inside(low: Lowering, start: int, stop: int, size: int | Dim) -> tuple[int, int]:
    """Bounds that lie in an axis; the end is `END` where it is that of the axis."""
    if not isinstance(size, Dim):
        begin, end = (min(max(bound + size if bound < 0 else bound, 0), size) for bound in (start, stop))
        if end <= begin:
            raise low.refused("a slice that leaves nothing has no MNN form")
        return begin, END if end == size else end
    for bound in (start, stop):
        if bound < 0 and -bound > max(size.low, 1):
            raise low.refused(
                f"the bound {bound} lies before the start of an axis of {size}, which may be {size.low} long"
            )
    return start, min(stop, END)


def lower_split(node: Node, low: Lowering) -> None:
    """Parts along an axis, whose sizes the types tell."""
    x = low.plain(node.operand(0))
    axis = node.attrs.get("axis", 0) % len(low.dims(x))
    sizes = [low.size(low.dims(value)[axis]) for value in node.outputs]
    if not all(sizes):
        raise low.refused("a part without elements has no MNN form")
    points = tuple(int(point) for point in np.cumsum(sizes)[:-1])
    parts = low.slice(x, axis, points) if points else (x,)
    for old, new in zip(node.outputs, parts, strict=True):
        low.replace(old, new)


def lower_concat(node: Node, low: Lowering) -> None:
    """A join along an axis."""
    values = [low.plain(value) for value in node.inputs if value is not None]
    axis = node.attrs["axis"] % len(low.dims(node.output))
    joined = values[0] if len(values) == 1 else low.add("Concat", values, low.type_of(node.output), {"axis": axis})
    low.replace(node.output, joined)


# ---- choices ----


def lower_gather(node: Node, low: Lowering) -> None:
    """Choices along an axis: cuts where the places are constants that follow each other, else rows by their numbers."""
    x, index = low.plain(node.operand(0)), node.operand(1)
    shape = low.dims(x)
    axis = attribute(node, "axis") % len(shape)
    if index.const is not None:
        places = _in_order(index.tensor.load(), shape[axis], low)
        if places is not None:
            cut = low.cut(x, axis, *places)
            low.replace(node.output, low.reshape(cut, low.dims(node.output)))
            return
    if axis:
        x = permuted(low, x, (axis, *(place for place in range(len(shape)) if place != axis)))
    chosen = rows_of(low, x, index)
    if axis:
        rank = len(low.dims(index))
        order = (*range(rank, rank + axis), *range(rank), *range(rank + axis, len(low.dims(chosen))))
        chosen = permuted(low, chosen, order)
    low.replace(node.output, chosen)


def lower_gather_elements(node: Node, low: Lowering) -> None:
    """Elements of the last axis by their places, of all rows alike."""
    x, index = low.plain(node.operand(0)), low.plain(node.operand(1))
    shape, places = low.dims(x), low.dims(index)
    axis = attribute(node, "axis") % len(shape)
    if axis != len(shape) - 1:
        raise low.refused("MNN picks elements along the last axis alone")
    if len(places) != len(shape) or any(
        a != b for at, (a, b) in enumerate(zip(shape, places, strict=True)) if at != axis
    ):
        raise low.refused(f"MNN picks elements of every row, and {index.type} are places in some of {x.type}")
    if index.const is not None or _may_be_negative(index):
        size = low.size(shape[axis])
        below = low.binary("GREATER", low.scalar(0, I32), index, TensorType(I32, places))
        from_end = low.binary("ADD", index, low.scalar(size, I32), TensorType(I32, places))
        index = low.add("Select", [below, from_end, index], TensorType(I32, places))
    picked = low.add("GatherElements", [x, index, low.scalar(axis, I32)], low.type_of(node.output))
    low.replace(node.output, picked)


def _may_be_negative(index: Value) -> bool:
    """False for places that a search for the largest numbers found."""
    return index.producer is None or index.producer.op != "mnn.TopK"


def lower_topk(node: Node, low: Lowering) -> None:
    """The largest numbers of each row, or the smallest, in order, and their places."""
    x, count = low.plain(node.operand(0)), node.operand(1)
    shape = low.dims(x)
    if attribute(node, "axis") % len(shape) != len(shape) - 1:
        raise low.refused("MNN searches the last axis alone")
    if count.const is None:
        raise low.refused("MNN takes a number of results that is known where the model is compiled")
    types = [low.type_of(value) for value in node.outputs]
    found = low.graph.add(
        "mnn.TopK", [x, low.plain(count)], {"largest": int(attribute(node, "largest"))},
        outputs=[f"{value.name}.topk" for value in node.outputs], types=types, before=node, loc=node.loc,
    )  # fmt: skip
    for old, new in zip(node.outputs, found.outputs, strict=True):
        low.replace(old, new)


def rows_of(low: Lowering, table: Value, index: Value) -> Value:
    """Rows of a table by their numbers, which are laid out flat first: releases feed positions with one axis or two."""
    numbers = low.plain(index) if index.const is None else index
    outer = low.dims(index)
    if index.const is None and len(outer) > 1 and len([dim for dim in outer if dim != 1]) < 2:
        numbers = low.reshape(numbers, (next((dim for dim in outer if dim != 1), 1),))
    rows = _numbers_of_rows(low, numbers, low.dims(table)[0])
    chosen = low.add("GatherV2", [table, rows], TensorType(table.dtype, (*low.dims(rows), *low.dims(table)[1:])))
    return low.reshape(chosen, (*outer, *low.dims(table)[1:]))


def _in_order(index: np.ndarray, size: int | Dim, low: Lowering) -> tuple[int, int] | None:
    """Start and stop of constant places that follow each other; None when they do not, or not for certain."""
    places = [int(place) for place in index.reshape(-1)]
    if not places or any(after - place != 1 for place, after in pairwise(places)):
        return None
    if isinstance(size, Dim):
        return (places[0], places[-1] + 1) if places[0] >= 0 and places[-1] < size.low else None
    if not all(-size <= place < size for place in places):
        raise low.refused(f"the place {places[0] if len(places) == 1 else places} lies outside of {size} elements")
    start = places[0] + size if places[0] < 0 else places[0]
    return (start, start + len(places)) if places[0] >= 0 or places[-1] < 0 else None


def _numbers_of_rows(low: Lowering, index: Value, size: int | Dim) -> Value:
    """Numbers of rows as the runtime reads them: it does not count negative ones from the end."""
    if index.const is not None:
        numbers = index.tensor.load().astype(np.int64)
        if (numbers < 0).any():
            numbers = np.where(numbers < 0, numbers + low.size(size), numbers)
        return low.const(numbers.astype(np.int32), "rows")
    if index.dtype not in (I32, I64):
        raise low.refused(f"MNN chooses rows by 32-bit integers, not by {index.dtype}")
    if _counts(low.graph, index):
        if not isinstance(size, Dim):
            low.positions = min(size, low.positions or size)
        return index
    if index.dtype == I64:
        index = low.add("Cast", [index], TensorType(I32, index.shape), {"to": I32.onnx})
    length = low.scalar(low.size(size), I32)
    zero = low.scalar(0, I32)
    from_end = low.binary("ADD", index, length, TensorType(I32, index.shape))
    below = low.binary("GREATER", zero, index, TensorType(I32, index.shape))
    return low.add("Select", [below, from_end, index], TensorType(I32, index.shape))


def _counts(graph: Graph, index: Value) -> bool:
    """True for positions that the runtime feeds, which are never negative, under another shape or type."""
    fact = graph.fact(DynamicInputs)
    fed = fact.find("positions") if fact is not None else None
    value = index
    while value.producer is not None and value.producer.op in ("mnn.Reshape", "mnn.Cast", "Reshape", "Cast"):
        value = value.producer.operand(0)
    return fed is not None and value.name == fed.input
