"""Operators that look at shapes, change them, and cut and join tensors.

"Sweep" stands for runs of one node on MNN 3.6.1 and 3.4.0, with floats, 64- and 32-bit integers and truth values of 0 to 6
axes, along every axis, with fixed and free sizes, as inputs and behind a convolution, and with constant and computed
operands.
"""

from __future__ import annotations

from backends.mnn.modules.build import numbers, type_of
from backends.mnn.modules.known import all_not_negative
from backends.mnn.modules.table.row import HELD, INT, MOST_AXES, Right
from ir.graph.graph import Node
from ir.ops.registry import attribute

LOWEST_START = -1
"""The last element of an axis is there in all but empty tensors, so that a start there is never before the first."""


def whole_shape(node: Node) -> str | None:
    """Releases before 3.5.0 give all sizes whatever is asked for."""
    return None if not attribute(node, "start") and attribute(node, "end") is None else "it is not right for some sizes"


def copies_zeros(node: Node) -> str | None:
    """Zero stands for the size of the operand."""
    return "its allowzero is set" if attribute(node, "allowzero") else None


def few_axes(node: Node) -> str | None:
    """Results have as many axes as tensors may have."""
    found = type_of(node.output)
    if found is None or found.rank is None:
        return "the number of axes of its result is not known"
    return None if found.rank <= MOST_AXES else f"it is not right for a result of {found.rank} axes"


def reshape_within(node: Node) -> str | None:
    """Few axes, and zeros that stand for sizes."""
    return copies_zeros(node) or few_axes(node)


def parts_are_given(node: Node) -> str | None:
    """The number of parts is not read, and a part without elements is an error of the runtime."""
    if node.input(1) is None:
        return "the sizes of its parts are not given"
    parts = numbers(node.input(1))
    return "a part has no elements" if parts is not None and not parts.all() else None


def starts_inside(node: Node) -> str | None:
    """The runtime takes the start as it is, so that one before the first element moves the end as well."""
    starts, axes, steps = node.input(1), node.input(3), node.input(4)
    if steps is not None:
        if axes is None:
            return "its axes are not given"
        strides = numbers(steps)
        if strides is None or (strides < 1).any():
            return "a step is not known to be above 0"
    known = numbers(starts)
    if known is not None:
        return None if _inside(node, known.reshape(-1).tolist()) else "it may start before the first element"
    return None if starts is not None and all_not_negative(starts) else "it may start before the first element"


def _inside(node: Node, starts: list[int]) -> bool:
    shape, axes = type_of(node.input(0)), numbers(node.input(3))
    places = axes.reshape(-1).tolist() if axes is not None else list(range(len(starts)))
    if node.input(3) is not None and axes is None:
        return all(start >= LOWEST_START for start in starts)
    for place, start in zip(places, starts, strict=False):
        size = shape.shape[place] if shape is not None and shape.shape is not None else None
        if start < (-size if isinstance(size, int) and size else LOWEST_START):
            return False
    return True


PADDED_TOGETHER = 3
"""Axes of tensors whose axes may all be padded at once; of more, the runtime leaves some corners out."""


def padded_rightly(node: Node) -> str | None:
    """Zeros around everything, or other elements along one axis."""
    given, pads, fill = type_of(node.input(0)), numbers(node.input(1)), numbers(node.input(2))
    mode = attribute(node, "mode")
    if node.input(3) is not None:
        return "its axes are given"
    if mode not in ("constant", "reflect", "edge"):
        return f"its mode is {mode}"
    if not all_not_negative(node.operand(1)):
        return "a pad may be negative"
    zeros = mode == "constant" and (node.input(2) is None or (fill is not None and not fill.any()))
    if zeros or (given is not None and given.rank is not None and given.rank <= PADDED_TOGETHER):
        return None
    if pads is None or given is None or given.rank is None:
        return "which axes it pads is not known"
    return None if int(pads.reshape(2, -1).any(0).sum()) < 2 else "it pads several axes with what is not zero"


ROWS = (
    Right("Shape", "test_shape; sweep", when=whole_shape),
    Right("Shape", "test_shape_start_1_end_2; test_shape_clip_start; sweep", since="3.5.0"),
    Right("Size", "test_size; sweep"),
    Right("Reshape", "test_reshape; sweep: 0, -1, computed, to one element", (HELD, INT), when=reshape_within),
    Right("Flatten", "test_flatten; sweep"),
    Right("Squeeze", "test_squeeze; sweep: all axes, several, none given, computed", (HELD, INT)),
    Right(
        "Unsqueeze", "test_unsqueeze; sweep: several axes, unordered, negative, computed", (HELD, INT), when=few_axes
    ),
    Right("Transpose", "test_transpose_all_permutations; sweep"),
    Right("Expand", "test_expand; sweep: more axes, sizes of 1, computed", (HELD, INT), when=few_axes),
    Right("Tile", "test_tile; sweep: computed", (HELD, INT)),
    Right("Concat", "test_concat; sweep: 1 to 3 operands, constant ones, ones without elements"),
    Right("Split", "test_split_variable_parts; sweep: constant and computed", (HELD, INT), when=parts_are_given),
    Right(
        "Slice",
        "test_slice; sweep: ends beyond either end of the axis or of 32 bits, steps, nothing left",
        (HELD, INT),
        range(1, MOST_AXES + 1),
        when=starts_inside,
    ),
    Right(
        "Pad",
        "test_constant_pad; test_reflect_pad; test_edge_pad; sweep: each axis and all of them, computed",
        (HELD, INT, HELD),
        range(1, MOST_AXES + 1),
        when=padded_rightly,
    ),
)
"""What is right."""
