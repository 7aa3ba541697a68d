"""Edits that make the sizes in a graph smaller everywhere at once: extents of types, constants, shapes and
attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ir.base.types import Dim, TensorType, ValueType
from ir.graph.graph import Graph, GraphError, Value
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor

ELEMENT_LIMIT = 1 << 24
"""Constants of at most this many elements are made smaller."""
SHAPE_ELEMENTS = 64
"""Integer constants of at most this many elements may be shapes."""
GENTLE = frozenset({"axis", "axes", "perm", "to", "keepdims", "opset", "dtype"})
"""Attributes whose numbers are never extents."""


def graphs(graph: Graph) -> Iterator[Graph]:
    """The graph and all its subgraphs."""
    yield graph
    for node in graph.nodes:
        for sub in node.subgraphs:
            yield from graphs(sub)


def values(graph: Graph) -> Iterator[Value]:
    """All values of a graph and its subgraphs that are not constants."""
    for one in graphs(graph):
        yield from one.inputs
        for node in one.nodes:
            yield from node.outputs


def extents(graph: Graph) -> set[int]:
    """Sizes above 1 of inputs and constants."""
    found: set[int] = set()
    for one in graphs(graph):
        for value in (*one.inputs, *one.consts.values()):
            if isinstance(value.type, TensorType) and value.type.shape is not None:
                found |= {size for size in value.type.shape if isinstance(size, int) and size > 1}
    return found


def dims(graph: Graph) -> set[str]:
    """Names of the dimensions that types mention."""
    found: set[str] = set()
    for value in values(graph):
        waiting: list[Any] = [value.type]
        while waiting:
            type = waiting.pop()
            if isinstance(type, TensorType):
                found |= {size.name for size in type.shape or () if isinstance(size, Dim)}
            elif type is not None:
                waiting += [getattr(type, "element", None), getattr(type, "value", None)]
    return found


def resize(graph: Graph, old: int, new: int) -> None:
    """Make every extent `old` into `new`: in types, constants, shapes kept in constants, and attributes.

    Raises:
        GraphError: a constant is too large to be changed here.
    """
    _map_types(graph, lambda size: new if size == old else size)
    for one in graphs(graph):
        for value in list(one.consts.values()):
            one.set_const(value, _resized(value.const, old, new))  # type: ignore[arg-type]
        for node in one.nodes:
            changed = {key: _mapped(item, old, new) for key, item in node.attrs.items() if key not in GENTLE}
            changed = {key: item for key, item in changed.items() if item != node.attrs[key]}
            if changed:
                one.set_attrs(node, **changed)


def resize_dim(graph: Graph, name: str, size: int | None) -> None:
    """Replace a symbolic dimension by a size, or with None by its range without limits."""
    if size is None:
        graph.add_dim(Dim(name, 1))
        return
    _map_types(graph, lambda item: size if isinstance(item, Dim) and item.name == name else item)
    graph.dims.pop(name)


def fill(graph: Graph, name: str, number: int) -> None:
    """Give a constant the same number everywhere; GraphError when it is no constant of numbers or too large."""
    value = graph.consts[name]
    tensor: Tensor = value.const  # type: ignore[assignment]
    size = tensor.type.size
    if tensor.type.dtype.kind not in "fiub" or size is None or size > ELEMENT_LIMIT:
        raise GraphError(f"@{name} cannot be filled")
    if isinstance(tensor, InlineTensor) and np.all(np.asarray(tensor.load(), np.float64) <= number):
        raise GraphError(f"@{name} is as simple")
    array = np.full(tensor.type.shape, number).astype(tensor.type.dtype.numpy)
    graph.set_const(value, InlineTensor(array, tensor.type.dtype))


def short_names(graph: Graph) -> None:
    """Call values a, b, c, ... in the order in which they appear."""
    found = [*graph.consts.values(), *values(graph)]
    for index, value in enumerate(found):
        value.graph.rename(value, f"renamed.{index}")
    for index, value in enumerate(found):
        value.graph.rename(value, letters(index))
    graph.name = "g"


def letters(index: int) -> str:
    """a to z, then aa, ab, ..."""
    text = ""
    index += 1
    while index:
        index, place = divmod(index - 1, 26)
        text = chr(ord("a") + place) + text
    return text


def _map_types(graph: Graph, change) -> None:
    for value in list(values(graph)):
        type: ValueType | None = value.type
        if isinstance(type, TensorType) and type.shape is not None:
            value.graph.set_type(value, TensorType(type.dtype, tuple(change(size) for size in type.shape)))


def _resized(tensor: Tensor, old: int, new: int) -> Tensor:
    type = tensor.type
    is_shape = type.dtype.is_integer and (type.size or 0) <= SHAPE_ELEMENTS
    if old not in type.shape and not is_shape:  # type: ignore[operator]
        return tensor
    if (type.size or 0) > ELEMENT_LIMIT:
        raise GraphError("this constant is too large")
    array = tensor.load()[tuple(slice(new) if size == old else slice(None) for size in type.shape)]  # type: ignore[union-attr]
    if is_shape:
        array = np.where(array == old, np.asarray(new).astype(array.dtype), array)
    return InlineTensor(np.ascontiguousarray(array), type.dtype)


def _mapped(item: Any, old: int, new: int) -> Any:
    if type(item) is int:
        return new if item == old else item
    if type(item) is tuple and all(type(part) is int for part in item):
        return tuple(new if part == old else part for part in item)
    return item


__all__ = ["dims", "extents", "fill", "graphs", "letters", "resize", "resize_dim", "short_names", "values"]
