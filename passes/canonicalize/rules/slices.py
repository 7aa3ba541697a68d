"""Slices of slices."""

from __future__ import annotations

import numpy as np

from ir.base.types import TensorType
from ir.graph.graph import Value
from passes.canonicalize.identities import rule, small_ints
from passes.rewrite.patterns import Const, Match, Maybe, Op, Var
from passes.rewrite.rules import Rewriter, RuleSet

Cut = dict[int, tuple[int, int, int]]
"""Start, end and step by axis."""

_CUT = (Maybe(Const("axes")), Maybe(Const("steps")))


def cut_of(rank: int, starts: Value | None, ends: Value | None, axes: Value | None, steps: Value | None) -> Cut | None:
    """What a Slice cuts, by axis counted from the first; None when it is not constant or cuts an axis twice."""
    begin, end = small_ints(starts), small_ints(ends)
    if begin is None or end is None or len(begin) != len(end):
        return None
    places = tuple(range(len(begin))) if axes is None else small_ints(axes)
    strides = (1,) * len(begin) if steps is None else small_ints(steps)
    if places is None or strides is None or len(places) != len(begin) or len(strides) != len(begin):
        return None
    if not all(-rank <= axis < rank for axis in places):
        return None
    cut = {axis % rank: found for axis, found in zip(places, zip(begin, end, strides, strict=True), strict=True)}
    return cut if len(cut) == len(begin) else None


@rule(
    Op(
        "Slice",
        Op("Slice", Var("x"), Const("starts"), Const("ends"), *_CUT, name="inner"),
        Const("starts_2"),
        Const("ends_2"),
        Maybe(Const("axes_2")),
        Maybe(Const("steps_2")),
    )
)
def join_slices(m: Match, rw: Rewriter) -> Value | None:
    """Slices along different axes are one, if nothing but slices reads the first."""
    if not isinstance(m.x.type, TensorType) or m.x.type.rank is None:
        return m.skip("the rank is unknown")
    if m.inner.is_output or any(user.op != "Slice" or user.inputs[0] is not m.inner for user in m.inner.users):
        return m.skip("the first slice is read by something else")
    rank = m.x.type.rank
    first = cut_of(rank, m.starts, m.ends, m.axes, m.steps)
    second = cut_of(rank, m.starts_2, m.ends_2, m.axes_2, m.steps_2)
    if first is None or second is None or first.keys() & second.keys():
        return m.skip("both cut the same axis, or one is not constant")
    cut = {**first, **second}
    axes = sorted(cut)
    parts = [np.array([cut[axis][place] for axis in axes], np.int64) for place in range(3)]
    operands = [rw.const(parts[0]), rw.const(parts[1]), rw.const(np.array(axes, np.int64)), rw.const(parts[2])]
    return rw.op("Slice", m.x, *operands, types=[m.output.type])


SLICES = RuleSet(join_slices)
