"""Products of matrices, and what turns scores into weights.

"Sweep" is that of `backends.mnn.modules.table.shapes`, with 30 pairs of shapes, either operand constant; for Softmax values up
to 1000 and masks of -1e9, of the lowest float and of minus infinity that leave at least one element.
"""

from __future__ import annotations

from backends.mnn.modules.build import type_of
from backends.mnn.modules.table.row import FLOAT, MOST_AXES, Right
from ir.graph.graph import Node
from ir.ops.registry import attribute

MOST_AXES_OF_PRODUCTS = 5


def matrices(node: Node) -> str | None:
    """Products with vectors are not right in all places."""
    first, second = type_of(node.input(0)), type_of(node.input(1))
    if first is None or second is None or first.rank is None or second.rank is None:
        return "the numbers of axes of its operands are not known"
    if max(first.rank, second.rank) > MOST_AXES_OF_PRODUCTS:
        return f"it is not right for {max(first.rank, second.rank)} axes"
    return "it is not right for a vector" if min(first.rank, second.rank) < 2 else None


def rows_as_they_stand(node: Node) -> str | None:
    """A constant second operand is taken for weights whatever becomes of the first; so is a single number that is added."""
    if attribute(node, "transA"):
        return "its first operand is transposed"
    added, second = type_of(node.input(2)), type_of(node.input(1))
    if added is None:
        return None
    columns = second.shape[0 if attribute(node, "transB") else 1] if second is not None and second.shape else None
    fits = bool(added.shape) and added.shape is not None and added.shape[-1] == columns and columns != 1
    return None if fits else "what is added is not known to have as many columns as the product"


def of_the_last_axis(node: Node) -> str | None:
    """Along other axes the largest element is looked for among the wrong ones."""
    given, axis = type_of(node.input(0)), attribute(node, "axis")
    if axis is None or "axis" not in node.attrs:
        return "its axis is not written down"
    if given is None or given.rank is None:
        return "the number of axes of its operand is not known"
    return None if axis in (-1, given.rank - 1) else "it is right along the last axis alone"


ROWS = (
    Right("MatMul", "test_matmul_2d; test_matmul_bcast; sweep", FLOAT, when=matrices),
    Right("Gemm", "test_gemm_all_attributes; sweep: alpha and beta", FLOAT, when=rows_as_they_stand),
    Right("Softmax", "test_softmax_large_number; sweep", FLOAT, range(1, MOST_AXES + 1), of_the_last_axis),
    Right("LogSoftmax", "test_logsoftmax_large_number; sweep", FLOAT, range(1, MOST_AXES + 1), of_the_last_axis),
)
"""What is right."""
