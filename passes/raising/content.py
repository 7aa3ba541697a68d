"""What in a decoder is content and what the runtime knows: the tokens' values, and everything else.

Content is what is computed from the rows that token ids choose, or from a history of keys and values. Masks, positions
and sizes are not, whatever they are computed from: a path through the shape of a value carries none of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import ELEMENTWISE
from ir.quant.stored_weight import is_weight
from passes.raising.cuts import SIZES

PRODUCTS = frozenset({"MatMul", "Gemm", "com.microsoft.MatMulNBits"})
"""Operators that may multiply content by a constant matrix."""


@dataclass(frozen=True)
class Linear:
    """A product of content and a constant matrix, its bias included.

    Attributes:
        node: the product.
        read: the content that is multiplied.
        value: the result, with the bias added.
        width: elements of a row of the result.
    """

    node: Node
    read: Value
    value: Value
    width: int


@dataclass(frozen=True)
class Content:
    """The content of a decoder.

    Attributes:
        ids: the input that holds token ids.
        look_up: the node that takes rows from the embedding.
        history: float inputs that hold keys and values of earlier calls.
        values: all content.
        fixed: values that follow from constants alone, constants themselves left out.
        linears: the products, by the value that they give.
    """

    ids: Value
    look_up: Node
    history: tuple[Value, ...]
    values: frozenset[Value]
    fixed: frozenset[Value]
    linears: dict[Value, Linear]

    def is_known(self, value: Value) -> bool:
        """True for what the runtime knows: neither content nor constant."""
        return value not in self.values and value not in self.fixed and not value.is_const


def content_of(graph: Graph) -> Content | None:
    """The content of a graph; None for a graph that is no decoder: no ids choose rows of a table of floats.

    Raises:
        LadingError: P380 the model takes the rows in place of the ids.
    """
    fixed = fixed_values(graph)
    found = _look_up(graph, fixed)
    if found is None:
        return None
    ids, look_up = found
    flowing = _downstream(graph, (look_up.output,), fixed)
    history = tuple(value for value in graph.inputs if _is_history(value, flowing))
    values = _downstream(graph, (look_up.output, *history), fixed)
    return Content(ids, look_up, history, frozenset(values), frozenset(fixed), _linears(graph, values, fixed))


def fixed_values(graph: Graph) -> set[Value]:
    """Values that follow from constants alone."""
    fixed: set[Value] = set()
    for node in graph.nodes:
        if node.subgraphs or not node.outputs:
            continue
        if all(value is None or value.is_const or value in fixed for value in node.inputs):
            fixed.update(node.outputs)
    return fixed


def _downstream(graph: Graph, sources: Iterable[Value], fixed: set[Value]) -> set[Value]:
    found = set(sources)
    for node in graph.nodes:
        if node.op in SIZES:
            continue
        if any(value in found for value in _reads(node)):
            found.update(value for value in node.outputs if value not in fixed)
    return found


def _reads(node: Node) -> Iterable[Value]:
    """What a node reads, its subgraphs included."""
    yield from (value for value in node.inputs if value is not None)
    for sub in node.subgraphs:
        for inner in sub.walk():
            yield from (value for value in inner.inputs if value is not None)


def _look_up(graph: Graph, fixed: set[Value]) -> tuple[Value, Node] | None:
    """The input that holds token ids, and the node that they choose rows by: of the table with most rows as wide as the
    logits, else of the widest one."""
    roots = _integer_roots(graph)
    found = [
        (roots[index], node)
        for node in graph.nodes
        if node.op == "Gather"
        and node.attrs.get("axis", 0) == 0
        and _is_table(node.operand(0), fixed)
        and (index := node.operand(1)) in roots
    ]
    if not found:
        return None
    vocabularies = {value.dims[-1] for value in graph.outputs if (value.rank or 0) >= 2}

    def rank(item: tuple[Value, Node]) -> tuple[bool, int]:
        rows, width = item[1].operand(0).dims
        return rows in vocabularies, width if isinstance(width, int) else 0

    return max(found, key=rank)


def chooses_rows(value: Value, fixed: Collection[Value]) -> bool:
    """True for integers that are used for nothing but to choose rows of a table of floats."""
    if not value.use_count:
        return False
    for node, place in value.uses:
        if node.op in SIZES:
            continue
        if node.op in _PLACING and place == 0:
            if not chooses_rows(node.output, fixed):
                return False
        elif node.op != "Gather" or place != 1 or node.attrs.get("axis", 0) or not _is_table(node.operand(0), fixed):
            return False
    return True


def _integer_roots(graph: Graph) -> dict[Value, Value]:
    """The one integer input that each value takes its elements from, where none but the casting, clipping and placing of
    numbers lies between."""
    roots = {value: value for value in graph.inputs if isinstance(value.type, TensorType) and value.dtype.is_integer}
    for node in graph.nodes:
        if node.op in _PLACING and node.inputs and node.inputs[0] in roots:
            roots[node.outputs[0]] = roots[node.operand(0)]
    return roots


_PLACING = frozenset({"Cast", "Clip", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def _is_table(value: Value, fixed: Collection[Value]) -> bool:
    known = value.is_const or value in fixed or is_weight(value)
    return known and isinstance(value.type, TensorType) and value.dtype.is_float and value.rank == 2


def _is_history(value: Value, flowing: set[Value]) -> bool:
    """A float input of rank 4 or more that is joined with content, not added to it as masks are."""
    if not isinstance(value.type, TensorType) or not value.dtype.is_float or (value.rank or 0) < 4:
        return False
    return any(isinstance(dim, int) and dim > 1 for dim in value.dims) or _joined(value, flowing)


def _joined(value: Value, flowing: set[Value]) -> bool:
    for node, place in value.uses:
        if node.op in ("Cast", "Identity", "Reshape", "Transpose"):
            if _joined(node.output, flowing):
                return True
        elif node.op not in ELEMENTWISE and place != MASK_PLACE.get(node.op) and not flowing.isdisjoint(node.inputs):
            return True
    return False


MASK_PLACE = {
    "Attention": 3, "com.microsoft.Attention": 3, "com.microsoft.MultiHeadAttention": 5,
    "com.microsoft.GroupQueryAttention": 10, "LlmExporter.FusedAttention": 3,
}  # fmt: skip
"""Which operand of an attention operator is its mask, or what is added to its scores."""


def _linears(graph: Graph, values: set[Value], fixed: set[Value]) -> dict[Value, Linear]:
    found: dict[Value, Linear] = {}
    for node in graph.nodes:
        if node.op not in PRODUCTS or node.operand(0) not in values or not _known_rest(node, fixed):
            continue
        value = _with_bias(node, fixed)
        width = _width(node, value)
        if width is not None:
            found[value] = Linear(node, node.operand(0), value, width)
    return found


def _known_rest(node: Node, fixed: set[Value]) -> bool:
    return all(value is None or value.is_const or value in fixed or is_weight(value) for value in node.inputs[1:])


def _with_bias(node: Node, fixed: set[Value]) -> Value:
    """The result with a constant added to every row, where that is all that happens to it."""
    value = node.output
    if value.use_count != 1 or value.is_output or value.users[0].op != "Add":
        return value
    add = value.users[0]
    (other,) = [item for item in add.inputs if item is not value] or (value,)
    if other is None or not (other.is_const or other in fixed) or other.shape is None:
        return value
    return add.output if all(dim == 1 for dim in other.dims[:-1]) else value


def _width(node: Node, value: Value) -> int | None:
    last = value.dims[-1] if value.shape else None
    if isinstance(last, int):
        return last
    weight = node.operand(1)
    if weight.shape is None or weight.rank != 2 or node.op not in ("MatMul", "Gemm"):
        return None
    size = weight.dims[0 if node.attrs.get("transB", 0) else 1]
    return size if isinstance(size, int) else None


def require_no_rows(graph: Graph) -> None:
    """Refuse a decoder that takes embedding rows and holds no table to take them from.

    Raises:
        LadingError: P380.
    """
    for value in graph.inputs:
        if isinstance(value.type, TensorType) and value.dtype.is_float and value.rank == 3:
            raise LadingError(
                "P380",
                f"the model takes the rows of its embedding as {value.name!r} and does not hold the embedding",
                where=f"graph {graph.name}",
                hint="name the embedding with --embedding, or export the model with token ids as its input",
            )
