"""Operators that take elements by their places or put them there.

"Sweep" is that of `backends.mnn.modules.table.shapes`, with indices of 0 to 3 axes, constant, and as inputs of 32 and 64
bits.
"""

from __future__ import annotations

from backends.mnn.modules.build import type_of
from backends.mnn.modules.known import all_not_negative
from backends.mnn.modules.table.row import FLOAT, HELD, INT, MOST_AXES, NUMBER, Right
from ir.graph.graph import Node
from ir.ops.registry import attribute

SOME_AXES = range(1, MOST_AXES + 1)


def counted_from_the_start(node: Node) -> str | None:
    """Negative indices, which count from the end, are read as they are."""
    return None if all_not_negative(node.operand(1)) else "an index may be negative"


def vectors_of_few(node: Node) -> str | None:
    """Behind batches, one place is found by one index alone."""
    batches, vectors = int(attribute(node, "batch_dims") or 0), type_of(node.input(1))
    if batches and (vectors is None or not vectors.shape or vectors.shape[-1] != 1):
        return "it is not right for batches of vectors of indices"
    return counted_from_the_start(node)


def scattered_by_number(node: Node) -> str | None:
    """The size of what is put is taken of the wrong axes unless indices are a column of single numbers."""
    indices = type_of(node.input(1))
    if attribute(node, "reduction") not in (None, "none"):
        return "its reduction is not read"
    if indices is None or indices.shape is None or len(indices.shape) != 2 or indices.shape[1] != 1:
        return "it is right for a column of indices"
    return counted_from_the_start(node)


def put_plainly(node: Node) -> str | None:
    """The converter reads no attribute after `axis`."""
    if attribute(node, "reduction") not in (None, "none"):
        return "its reduction is not read"
    return counted_from_the_start(node)


def reduced_along_the_first(node: Node) -> str | None:
    """With the axis left out, the converter reads the reduction."""
    if node.attrs.get("axis") is not None or node.attrs.get("reduction") not in ("add", "mul"):
        return "its reduction is not read"
    return counted_from_the_start(node)


def values_alone(node: Node) -> str | None:
    """Among equal elements the runtime takes any, so that their places are not those of the first ones."""
    return "the places of its results are read" if node.outputs[1].use_count else None


def has_elements(node: Node) -> str | None:
    """Nothing is read of what has no elements."""
    found = type_of(node.input(0))
    return "it is not right without elements" if found is not None and 0 in (found.shape or ()) else None


def corners(node: Node) -> str | None:
    """Boxes are read as corners, whatever is said, and a number of boxes is asked for."""
    if attribute(node, "center_point_box"):
        return "its boxes are given by their centers"
    return "the number of boxes is not given" if node.input(2) is None else None


def held_alike(node: Node) -> str | None:
    """The result is held as the operand is, whatever type is asked for."""
    given, made = type_of(node.input(0)), type_of(node.output)
    alike = given is not None and made is not None and (given.dtype in FLOAT) == (made.dtype in FLOAT)
    return None if alike else "it is not right for another element type"


def filled_by_name(node: Node) -> str | None:
    """Without a value the converter fills with what its memory holds."""
    return None if node.attrs.get("value") is not None else "its value is not written down"


ROWS = (
    Right("Gather", "test_gather; sweep: negative indices, constant data", (HELD, INT), SOME_AXES),
    Right("GatherElements", "test_gather_elements; sweep", (HELD, INT), SOME_AXES, counted_from_the_start),
    Right("GatherND", "test_gathernd; sweep: 0 to 2 batches", (HELD, INT), SOME_AXES, vectors_of_few),
    Right("ScatterElements", "test_scatter_elements; sweep", (HELD, INT, HELD), SOME_AXES, put_plainly),
    Right(
        "ScatterElements",
        "sweep: places that are met more than once",
        (FLOAT, INT, FLOAT),
        SOME_AXES,
        reduced_along_the_first,
    ),
    Right("ScatterND", "test_scatternd; sweep", (HELD, INT, HELD), SOME_AXES, scattered_by_number),
    Right("NonZero", "test_nonzero_example; sweep: nothing but zeros", (HELD,), SOME_AXES),
    Right("TopK", "test_top_k; sweep: equal elements, computed numbers", (NUMBER, INT), SOME_AXES, values_alone),
    Right(
        "Trilu", "test_triu; test_tril; sweep: -5 to 5, computed", (HELD, INT), range(2, MOST_AXES + 1), has_elements
    ),
    Right("EyeLike", "test_eyelike_with_dtype; sweep: -5 to 5", HELD, range(2, 3), held_alike),
    Right("Range", "test_range_float_type_positive_delta; sweep", NUMBER),
    Right("ConstantOfShape", "test_constantofshape_float_ones; sweep", (INT,), when=filled_by_name),
    Right("NonMaxSuppression", "test_nonmaxsuppression; sweep", (FLOAT, FLOAT, INT, FLOAT), when=corners),
)
"""What is right."""
