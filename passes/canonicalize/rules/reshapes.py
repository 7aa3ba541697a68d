"""Operators that change the shape alone, written with constants and joined where types tell the shape.

An exporter computes the shape of a reshape from sizes of other values, with five operators for a batch that stays as it
is. Type inference follows such numbers: each is known, or the size that the operand has at the same place (0 in the
shape), or the one that is left (-1). The last is taken only where no other size can be 0, since -1 of nothing is not
defined, or where the exporter wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ir.base.types import Dim, TensorType
from ir.graph.graph import OPSET, Graph, Value
from ir.infer.inference import Inference
from ir.ops.registry import attribute
from passes.canonicalize.identities import rule, small_ints
from passes.rewrite.patterns import Const, Match, Maybe, Op, Rest, Var
from passes.rewrite.rules import Rewriter, RuleSet

MOVES = "Reshape|Flatten|Squeeze|Unsqueeze"
"""Operators that keep elements and their order and change the shape alone."""
AXES_AS_INPUT = 13
"""First opset in which Squeeze and Unsqueeze read their axes."""
REDUCTIONS = "ReduceMean|ReduceSum|ReduceMax|ReduceMin|ReduceProd"
"""Reductions that give back a single element."""

x = Var("x")
Shape = tuple["int | Dim", ...]
Wanted = Sequence["int | Dim | None"]


def shape_of(value: Value) -> Shape | None:
    """The dimensions of a tensor; None when they are not known."""
    return value.type.shape if isinstance(value.type, TensorType) else None


def constant_shape(source: Shape, target: Wanted) -> list[int] | None:
    """The second input of a Reshape with ``allowzero = 0`` from one shape to another; None when no constant says it.

    Args:
        source: dimensions before.
        target: what the shape is to be: sizes, 0 and -1 as a Reshape reads them, None for what is not known.
    """
    sizes = [
        size if isinstance(size, int) else 0 if axis < len(source) and source[axis] == size else None
        for axis, size in enumerate(target)
    ]
    unknown = [axis for axis, size in enumerate(sizes) if size is None]
    if not unknown:
        return [size for size in sizes if size is not None]
    if len(unknown) > 1 or any(size == 0 and axis >= len(source) for axis, size in enumerate(sizes)):
        return None
    rest = [source[axis] if size == 0 else size for axis, size in enumerate(sizes) if size is not None]
    sure = all(size > 0 if isinstance(size, int) else size.low > 0 for size in rest)
    return [-1 if size is None else size for size in sizes] if sure else None


def ones_between(shorter: Wanted, longer: Wanted) -> tuple[int, ...] | None:
    """The axes of ones that make the longer shape of the shorter one; None when something else differs."""
    axes, at = [], 0
    for axis, size in enumerate(longer):
        if size is not None and at < len(shorter) and shorter[at] == size and len(longer) - axis >= len(shorter) - at:
            at += 1
        elif size == 1:
            axes.append(axis)
        else:
            return None
    return tuple(axes) if at == len(shorter) else None


def moved(m: Match, rw: Rewriter, value: Value, target: Wanted) -> Value | None:
    """A value in another shape, by one operator; None when no constant says how."""
    source = shape_of(value)
    if source is None:
        return m.skip("the shape of the operand is unknown")
    sizes = constant_shape(source, target)
    if sizes is not None:
        return rw.op("Reshape", value, rw.const(np.array(sizes, np.int64)), types=[m.output.type])
    for op, shorter, longer in (("Unsqueeze", source, target), ("Squeeze", target, source)):
        axes = ones_between(shorter, longer)
        if axes:
            return on_axes(rw, op, value, axes, m.output)
    return m.skip("the shape has more than one size that is not known, or one that may be 0")


def on_axes(rw: Rewriter, op: str, value: Value, axes: Sequence[int], like: Value) -> Value:
    """A Squeeze or Unsqueeze, its axes where the opset has them."""
    if opset_of(rw.graph) < AXES_AS_INPUT:
        made: Value = rw.op(op, value, attrs={"axes": tuple(axes)}, types=[like.type])
    else:
        made = rw.op(op, value, rw.const(np.array(axes, np.int64)), types=[like.type])
    return made


def opset_of(graph: Graph) -> int:
    """Version of the ONNX operators of a graph."""
    return graph.opsets.get("", OPSET)


@rule(Op("Reshape", x, Var("shape", when=lambda value: value.const is None)))
def reshape_to_known_shape(m: Match, rw: Rewriter) -> Value | None:
    """A reshape to a shape that is computed from sizes."""
    known = Inference(m.root.home, lazy=True).known_of(m.shape)
    if known is None or attribute(m.root, "allowzero"):
        return m.skip("the shape is unknown, or a 0 in it is a size")
    return moved(m, rw, m.x, known.entries)


@rule(Op("Expand", x, Var("shape", when=lambda value: value.const is None)))
def expand_to_known_shape(m: Match, rw: Rewriter) -> Value | None:
    """A broadcast to a shape that is computed from sizes; where the operand is as long, 1 keeps it."""
    source, known = shape_of(m.x), Inference(m.root.home, lazy=True).known_of(m.shape)
    if source is None or known is None:
        return m.skip("a shape is unknown")
    entries = (1,) * (len(source) - len(known.entries)) + known.entries
    kept = (1,) * (len(entries) - len(source)) + source
    sizes = [
        entry if isinstance(entry, int) else 1 if entry is not None and entry == old else None
        for entry, old in zip(entries, kept, strict=True)
    ]
    if None in sizes:
        return m.skip("a size that the operand does not have is not a number")
    return rw.op("Expand", m.x, rw.const(np.array(sizes, np.int64)), types=[m.output.type])


def is_fixed(value: Value | None) -> bool:
    """True for a shape or axes that are left out or constant."""
    return value is None or value.const is not None


@rule(Op(MOVES, Op(MOVES, x, Rest("inner", when=is_fixed), users=1), Rest("outer", when=is_fixed)))
def join_moves(m: Match, rw: Rewriter) -> Value | None:
    """Two changes of the shape are one."""
    target = shape_of(m.output)
    if target is None or 0 in target:
        return m.skip("the shape is unknown, or nothing")
    return moved(m, rw, m.x, target)


@rule(Op(REDUCTIONS, x, Maybe(Const("axes"))))
def reduce_nothing(m: Match, rw: Rewriter) -> Value | None:
    """A sum, mean, product or extreme of single elements is that element."""
    shape = shape_of(m.x)
    axes = m.root.attrs.get("axes") if m.axes is None else small_ints(m.axes)
    if shape is None or (axes is None and m.axes is not None):
        return m.skip("the rank or the axes are unknown")
    if not axes:
        if attribute(m.root, "noop_with_empty_axes"):
            return m.skip("it reduces no axis")
        axes = tuple(range(len(shape)))
    if not shape or any(not -len(shape) <= axis < len(shape) or shape[axis] != 1 for axis in axes):
        return m.skip("an axis may be longer than 1")
    return m.x if attribute(m.root, "keepdims") else on_axes(rw, "Squeeze", m.x, axes, m.output)


RESHAPES = RuleSet(reshape_to_known_shape, expand_to_known_shape, join_moves, reduce_nothing)
