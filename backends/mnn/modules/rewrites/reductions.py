"""Reductions, positions of extremes, and running products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from backends.mnn.modules.build import Build, numbers, type_of
from backends.mnn.modules.rewrites.types import Rewrite, Table
from backends.mnn.modules.table.row import FLOAT, INT
from ir.base.types import F32, I64, DType
from ir.graph.graph import Node, Value


def _element_type(value: Value | None) -> DType | None:
    found = type_of(value)
    return found.dtype if found is not None else None


def _no_axes(node: Node) -> bool:
    """True where no axes are named, so that all are meant, or none."""
    axes = node.input(1)
    found = type_of(axes)
    return axes is None or (found is not None and found.size == 0)


def _reduced(b: Build, op: str, value: Value, **attrs: int) -> Value:
    """A value reduced along the axes of the node that is replaced."""
    axes = None if _no_axes(b.node) else b.node.input(1)
    return b.add(op, value, axes, **{"keepdims": b.attr("keepdims"), **attrs})


def no_axes(step: Callable[[Build, Value], Value]) -> Rewrite:
    """Without axes, all or none: with none the steps that stand around the reduction are what is left."""

    def rewrite(node: Node, b: Build) -> Sequence[Value] | None:
        if not _no_axes(node):
            return None
        if b.attr("noop_with_empty_axes"):
            return [step(b, node.operand(0))]
        return [_reduced(b, node.op, node.operand(0))] if node.input(1) is not None else None

    rewrite.__doc__ = no_axes.__doc__
    return rewrite


def empty(fill: Callable[[DType], float]) -> Rewrite:
    """What is said to come of nothing, where there are no elements."""

    def rewrite(node: Node, b: Build) -> Sequence[Value] | None:
        given, made = type_of(node.input(0)), type_of(node.output)
        if given is None or given.shape is None or 0 not in given.shape or made is None or made.sizes is None:
            return None
        return [b.const(np.full(made.sizes, fill(made.dtype), made.dtype.numpy), "nothing")]

    rewrite.__doc__ = empty.__doc__
    return rewrite


def _least(dtype: DType) -> float:
    return -np.inf if dtype.is_float else dtype.low


def _most(dtype: DType) -> float:
    return np.inf if dtype.is_float else dtype.high


def _itself(b: Build, x: Value) -> Value:
    return b.add("Identity", x)


def _square(b: Build, x: Value) -> Value:
    return b.add("Mul", x, x)


def _in_floats(b: Build, x: Value, step: Callable[[Value], Value]) -> Value:
    """A step that integers have no operator for, in floats and back."""
    return step(x) if x.dtype in FLOAT else b.cast(step(b.cast(x, F32)), x.dtype)


def reduce_l1(node: Node, b: Build) -> Sequence[Value]:
    """The sum of magnitudes."""
    return [_reduced(b, "ReduceSum", b.add("Abs", node.operand(0)))]


def reduce_l2(node: Node, b: Build) -> Sequence[Value]:
    """The root of the sum of squares."""
    x = node.operand(0)
    return [_in_floats(b, x, lambda y: b.add("Sqrt", _reduced(b, "ReduceSum", b.add("Mul", y, y))))]


def reduce_sum_square(node: Node, b: Build) -> Sequence[Value]:
    """The sum of squares."""
    return [_reduced(b, "ReduceSum", _square(b, node.operand(0)))]


def reduce_log_sum(node: Node, b: Build) -> Sequence[Value]:
    """The logarithm of the sum."""
    x = node.operand(0)
    return [_in_floats(b, x, lambda y: b.add("Log", _reduced(b, "ReduceSum", y)))]


def reduce_log_sum_exp(node: Node, b: Build) -> Sequence[Value]:
    """The logarithm of the sum of exponentials, all taken less the largest, so that none leaves the range."""
    given = type_of(node.input(0))
    if given is not None and given.shape is not None and 0 in given.shape:
        return [b.add("Log", _reduced(b, "ReduceSum", b.add("Exp", node.operand(0))))]

    def steps(x: Value) -> Value:
        nearer = b.add("Sub", x, _reduced(b, "ReduceMax", x, keepdims=1))
        logarithm = b.add("Log", _reduced(b, "ReduceSum", b.add("Exp", nearer)))
        return b.add("Add", logarithm, _reduced(b, "ReduceMax", x))

    return [_in_floats(b, node.operand(0), steps)]


def integer_mean(node: Node, b: Build) -> Sequence[Value] | None:
    """The sum over the number of elements, which is rounded towards zero."""
    x = node.operand(0)
    if _element_type(x) not in INT:
        return None
    sizes = b.add("Shape", x)
    axes = node.input(1)
    chosen = sizes if axes is None else b.add("Gather", sizes, b.cast(axes, I64), axis=0)
    count = b.cast(b.add("ReduceProd", chosen, keepdims=0), x.dtype)
    return [b.add("Div", _reduced(b, "ReduceSum", x), count)]


def arg_extreme(reduction: str) -> Rewrite:
    """The first place of what equals the extreme, or the last one: by comparison, which is exact for integers.

    The runtime reads integers as floats, and knows only the first place.
    """

    def rewrite(node: Node, b: Build) -> Sequence[Value] | None:
        given = type_of(node.input(0))
        last = bool(b.attr("select_last_index"))
        if given is None or given.rank in (None, 0) or given.dtype not in FLOAT | INT:
            return None
        if given.dtype in FLOAT and not last:
            return None
        assert given.rank is not None
        x, axis = node.operand(0), int(b.attr("axis")) % given.rank
        found = b.add("Equal", x, b.add(reduction, x, b.ints(axis), keepdims=1))
        keep = int(b.attr("keepdims"))
        if not last:
            return [b.add("ArgMax", b.cast(found, F32), axis=axis, keepdims=keep)]
        size = b.add("Gather", b.add("Shape", x), b.scalar(axis, I64), axis=0)
        places = b.add("Range", b.scalar(0, I64), size, b.scalar(1, I64))
        wide = b.reshape(places, [-1 if place == axis else 1 for place in range(given.rank)])
        marked = b.add("Where", found, wide, b.scalar(-1, I64))
        return [b.add("ReduceMax", marked, b.ints(axis), keepdims=keep)]

    rewrite.__doc__ = arg_extreme.__doc__
    return rewrite


MOST_TRIED = 3
"""Axes of a tensor for which each is tried where the axis is computed."""


def running_product(node: Node, b: Build) -> Sequence[Value] | None:
    """Products of neighbours, of pairs of neighbours and so on, of twice as many in each step (Hillis and Steele 1986).

    The length of the axis has to be known, since the number of steps follows from it. Of an axis that is computed all are
    tried where they are few.
    """
    x, given, axis = node.operand(0), type_of(node.input(0)), numbers(node.input(1))
    sizes = given.sizes if given is not None else None
    if not sizes or not all(sizes):
        return None
    if axis is not None:
        return [_along(b, x, int(axis.reshape(-1)[0]) % len(sizes), sizes)]
    if len(sizes) > MOST_TRIED:
        return None
    chosen = b.add("Mod", node.operand(1), b.like(len(sizes), node.operand(1)))
    found = _along(b, x, 0, sizes)
    for place in range(1, len(sizes)):
        here = b.add("Equal", chosen, b.like(place, chosen))
        found = b.add("Where", here, _along(b, x, place, sizes), found)
    return [found]


def _along(b: Build, x: Value, place: int, sizes: Sequence[int]) -> Value:
    """The running product along one axis, as the node that is replaced wants it."""
    length, backwards = sizes[place], bool(b.attr("reverse"))

    def moved(value: Value, by: int) -> Value:
        """Moved along the axis, with ones in what gets free."""
        free = [min(by, length) if at == place else size for at, size in enumerate(sizes)]
        ones = b.const(np.ones(free, x.dtype.numpy))
        begin, end = (by, length) if backwards else (0, length - by)
        if begin >= end:
            return ones
        kept = b.add("Slice", value, b.ints(begin), b.ints(end), b.ints(place), b.ints(1))
        return b.add("Concat", *((kept, ones) if backwards else (ones, kept)), axis=place)

    found = moved(x, 1) if b.attr("exclusive") else x
    step = 1
    while step < length:
        found = b.add("Mul", found, moved(found, step))
        step *= 2
    return found


REWRITES: Table = {
    "ArgMax": (arg_extreme("ReduceMax"),),
    "ArgMin": (arg_extreme("ReduceMin"),),
    "CumProd": (running_product,),
    "ReduceL1": (no_axes(lambda b, x: b.add("Abs", x)), reduce_l1),
    "ReduceL2": (no_axes(lambda b, x: b.add("Abs", x)), reduce_l2),
    "ReduceLogSum": (no_axes(lambda b, x: _in_floats(b, x, lambda y: b.add("Log", y))), reduce_log_sum),
    "ReduceLogSumExp": (no_axes(_itself), reduce_log_sum_exp),
    "ReduceMax": (no_axes(_itself), empty(_least)),
    "ReduceMean": (no_axes(_itself), empty(lambda dtype: np.nan if dtype.is_float else 0), integer_mean),
    "ReduceMin": (no_axes(_itself), empty(_most)),
    "ReduceProd": (no_axes(_itself),),
    "ReduceSum": (no_axes(_itself),),
    "ReduceSumSquare": (no_axes(_square), reduce_sum_square),
}
"""Rewrites by operator."""
