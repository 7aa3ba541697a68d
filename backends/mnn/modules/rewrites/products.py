"""Products of matrices, and what turns scores into weights, in other terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.mnn.modules.build import Build, type_of
from backends.mnn.modules.rewrites.types import Rewrite, Table
from backends.mnn.modules.table.products import MOST_AXES_OF_PRODUCTS, rows_as_they_stand
from backends.mnn.modules.table.row import FLOAT, INT
from ir.base.types import F32, I64
from ir.graph.graph import Node, Value


def _ranks(node: Node) -> tuple[int, int] | None:
    first, second = type_of(node.input(0)), type_of(node.input(1))
    if first is None or second is None or first.rank is None or second.rank is None:
        return None
    return first.rank, second.rank


def product_with_vector(node: Node, b: Build) -> Sequence[Value] | None:
    """A vector becomes a matrix of one row or one column, whose axis is dropped again."""
    ranks = _ranks(node)
    if ranks is None or min(ranks) > 1 or 0 in ranks:
        return None
    x, y = node.operand(0), node.operand(1)
    drop = []
    if ranks[0] == 1:
        x = b.add("Unsqueeze", x, b.ints(0))
        drop.append(-2 if ranks[1] > 1 else -1)
    if ranks[1] == 1:
        y = b.add("Unsqueeze", y, b.ints(1))
        drop.append(-1)
    if ranks == (1, 1):
        drop = [0, 1]
    return [b.add("Squeeze", b.add("MatMul", x, y), b.ints(*drop))]


def product_of_integers(node: Node, b: Build) -> Sequence[Value] | None:
    """Products of elements and their sums, as integers: there is no product of matrices for them."""
    ranks = _ranks(node)
    if ranks is None or min(ranks) < 2 or node.operand(0).dtype not in INT:
        return None
    rows = b.add("Unsqueeze", node.operand(0), b.ints(-1))
    columns = b.add("Unsqueeze", node.operand(1), b.ints(-3))
    return [b.add("ReduceSum", b.add("Mul", rows, columns), b.ints(-2), keepdims=0)]


def product_of_many_axes(node: Node, b: Build) -> Sequence[Value] | None:
    """The leading axes stretched to the same sizes and made one."""
    ranks = _ranks(node)
    if ranks is None or max(ranks) <= MOST_AXES_OF_PRODUCTS or min(ranks) < 2 or node.operand(0).dtype not in FLOAT:
        return None
    x, y = node.operand(0), node.operand(1)
    made = type_of(node.output)
    first, second = type_of(x), type_of(y)
    if made is None or made.sizes is None or first is None or second is None or not first.sizes or not second.sizes:
        return None
    lead = made.sizes[:-2]
    x, y = (
        b.reshape(b.add("Expand", each, b.ints(*lead, *sizes[-2:])), [-1, *sizes[-2:]])
        for each, sizes in ((x, first.sizes), (y, second.sizes))
    )
    return [b.reshape(b.add("MatMul", x, y), made.sizes)]


def gemm(node: Node, b: Build) -> Sequence[Value] | None:
    """Its transposes, its product, its factors and its sum one by one."""
    if rows_as_they_stand(node) is None and node.operand(0).dtype in FLOAT:
        return None
    x, y = (
        b.add("Transpose", node.operand(index), perm=(1, 0)) if b.attr(name) else node.operand(index)
        for index, name in ((0, "transA"), (1, "transB"))
    )
    found = b.add("MatMul", x, y)
    if b.attr("alpha") != 1:
        found = _scaled(b, found, float(b.attr("alpha")))
    added = node.input(2)
    if added is None or b.attr("beta") == 0:
        return [found]
    return [b.add("Add", found, added if b.attr("beta") == 1 else _scaled(b, added, float(b.attr("beta"))))]


def _scaled(b: Build, x: Value, factor: float) -> Value:
    if x.dtype in FLOAT:
        return b.add("Mul", x, b.like(factor, x))
    return b.cast(b.add("Mul", b.cast(x, F32), b.scalar(factor)), x.dtype)


def along_the_last(op: str) -> Rewrite:
    """The axis in the last place, written down."""

    def rewrite(node: Node, b: Build) -> Sequence[Value] | None:
        given = type_of(node.input(0))
        if given is None or not given.rank or given.dtype not in FLOAT:
            return None
        last, axis = given.rank - 1, int(b.attr("axis")) % given.rank
        if axis == last:
            return [b.add(op, node.operand(0), axis=-1)] if node.attrs.get("axis") is None else None
        order = list(range(given.rank))
        order[axis], order[last] = last, axis
        turned = b.add("Transpose", node.operand(0), perm=tuple(order))
        return [b.add("Transpose", b.add(op, turned, axis=-1), perm=tuple(order))]

    rewrite.__doc__ = along_the_last.__doc__
    return rewrite


def hardmax(node: Node, b: Build) -> Sequence[Value] | None:
    """One at the first place of the largest element, and zero elsewhere."""
    given = type_of(node.input(0))
    if given is None or not given.rank:
        return None
    x, axis = node.operand(0), int(b.attr("axis")) % given.rank
    length = given.shape[axis] if given.shape is not None else None
    largest = b.add("ArgMax", x, axis=axis, keepdims=1)
    if isinstance(length, int):
        places = b.const(np.arange(length).reshape([-1 if at == axis else 1 for at in range(given.rank)]), "places")
    else:
        end = b.add("Gather", b.add("Shape", x), b.ints(axis), axis=0)
        count = b.add("Range", b.scalar(0, I64), b.reshape(end, []), b.scalar(1, I64))
        places = b.reshape(count, [-1 if at == axis else 1 for at in range(given.rank)])
    whole = b.add("Expand", largest, b.add("Shape", x))
    return [b.cast(b.add("Equal", whole, places), x.dtype)]


REWRITES: Table = {
    "Gemm": (gemm,),
    "Hardmax": (hardmax,),
    "LogSoftmax": (along_the_last("LogSoftmax"),),
    "MatMul": (product_with_vector, product_of_integers, product_of_many_axes),
    "Softmax": (along_the_last("Softmax"),),
}
"""Rewrites by operator."""
