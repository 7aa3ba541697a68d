"""Rules that turn what is known about shapes into constants."""

from __future__ import annotations

import numpy as np

from ir.base.types import TensorType
from ir.graph.graph import Value
from passes.canonicalize.identities import rule, small_ints
from passes.rewrite.patterns import Attr, Const, Match, Maybe, Op, Rest, Var
from passes.rewrite.rules import Rewriter, RuleSet

x = Var("x")


def shape_vector(value: Value, start: int | None = 0, end: int | None = None) -> tuple | None:
    """The dimensions that ``Shape`` with these attributes gives, symbolic ones included; None for unknown rank."""
    if not isinstance(value.type, TensorType) or value.type.shape is None:
        return None
    return value.type.shape[slice(start, end)]


def _constant(dims: tuple | None, m: Match, rw: Rewriter) -> Value | None:
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return m.skip("a dimension is not a number")
    return rw.const(np.array(dims, np.int64))


@rule(Op("Shape", x, attrs={"start": Attr("start"), "end": Attr("end")}))
def shape_is_known(m: Match, rw: Rewriter) -> Value | None:
    """Shape of numbers alone."""
    return _constant(shape_vector(m.x, m.start, m.end), m, rw)


@rule(Op("Size", x))
def size_is_known(m: Match, rw: Rewriter) -> Value | None:
    """Size of a value with a static shape."""
    size = m.x.type.size if isinstance(m.x.type, TensorType) else None
    return rw.const(np.array(size, np.int64)) if size is not None else m.skip("a dimension is not a number")


_SHAPE = Op("Shape", x, attrs={"start": Attr("start"), "end": Attr("end")})


@rule(Op("Gather", _SHAPE, Const("index"), attrs={"axis": 0}))
def dimension_is_known(m: Match, rw: Rewriter) -> Value | None:
    """Picking dimensions that are numbers from a shape that also has others."""
    dims, index = shape_vector(m.x, m.start, m.end), small_ints(m.index)
    if dims is None or index is None or not all(-len(dims) <= i < len(dims) for i in index):
        return m.skip("the rank or the index is unknown")
    picked = [dims[i] for i in index]
    if not all(isinstance(dim, int) for dim in picked):
        return m.skip("a picked dimension is not a number")
    return rw.const(np.array(picked, np.int64).reshape(m.index.shape))


@rule(Op("Slice", _SHAPE, Const("starts"), Const("ends"), Maybe(Const("axes")), Maybe(Const("steps"))))
def dimensions_are_known(m: Match, rw: Rewriter) -> Value | None:
    """Cutting dimensions that are numbers out of a shape that also has others."""
    dims = shape_vector(m.x, m.start, m.end)
    starts, ends, steps = small_ints(m.starts), small_ints(m.ends), small_ints(m.steps) or (1,)
    if dims is None or starts is None or ends is None or len(starts) != 1 or len(ends) != 1 or 0 in steps:
        return m.skip("the rank or the bounds are unknown")
    return _constant(dims[_as_python(starts[0], ends[0], steps[0])], m, rw)


def _as_python(start: int, end: int, step: int) -> slice:
    """ONNX's bounds as Python's, which has no number for "before the first"."""
    far = 1 << 31
    return slice(start, None if step < 0 and end < -far else end, step)


@rule(Op("Gather", Op("Concat", Rest("parts"), attrs={"axis": 0}), Const("index"), attrs={"axis": 0}))
def part_is_known(m: Match, rw: Rewriter) -> Value | None:
    """Picking one number from joined vectors picks it from its part."""
    index = small_ints(m.index)
    lengths = [
        part.type.size if part is not None and isinstance(part.type, TensorType) and part.type.rank == 1 else None
        for part in m.parts
    ]
    known = [length for length in lengths if length is not None]
    if index is None or len(index) != 1 or len(known) < len(lengths):
        return m.skip("the lengths of the parts or the index are unknown")
    at = index[0] + (sum(known) if index[0] < 0 else 0)
    for part, length in zip(m.parts, known, strict=True):
        if 0 <= at < length:
            place = rw.const(np.full(m.index.shape, at, np.int64))
            return rw.op("Gather", part, place, attrs={"axis": 0}, types=[m.output.type])
        at -= length
    return m.skip("the index is outside")


@rule(Op("Gather", Op("Unsqueeze", x, Const("axes")), Const("index", value=0), attrs={"axis": 0}))
def number_is_known(m: Match, rw: Rewriter) -> Value | None:
    """The first and only part of what was given a first axis."""
    if small_ints(m.axes) != (0,) or m.index.type.rank != 0:
        return m.skip("the new axis is not the first, or the part keeps it")
    return m.x


SHAPES = RuleSet(
    shape_is_known, size_is_known, dimension_is_known, dimensions_are_known, part_is_known, number_is_known
)
