"""Graphs of half precision as graphs of single precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ir.base.types import BF16, F16, F32, DType, MapType, OptionalType, SequenceType, TensorType, ValueType
from ir.graph.graph import Graph, Node
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from passes.framework.base import Adapter, Pass, Result
from passes.framework.context import PassContext

WIDE: Mapping[DType, DType] = {F16: F32, BF16: F32}
"""What each element type is computed in."""
HALVES = frozenset(WIDE)
ELEMENT_TYPES = frozenset(
    {"to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision", "precision"}
)
"""Attributes of ONNX's operators that hold the number of an element type."""


@dataclass(frozen=True)
class WidenFloats(Pass):
    """Compute in float32 what a graph computes in float16 or bfloat16.

    Constants are widened where they are read and not before, which changes none of them; codes of quantized weights
    stay, and their scales are the same numbers. Inputs are declared float32 as well. What was rounded to half precision
    no longer is, so results are nearer to those of exact arithmetic. float64 and 8-bit floats stay as they are.
    """

    name = "widen-floats"
    lossy = True

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        counts: Counter[str] = Counter()
        for root in (graph, *graph.functions.values()):
            for one in root.graphs():
                _widen(one, counts)
        return {name: counts[name] for name in ("inputs", "constants", "values", "attributes") if counts[name]}

    def adapter(self, graph: Graph) -> Adapter:
        """See `Pass.adapter`."""
        return InWideTypes(WIDE)


@dataclass(frozen=True)
class InWideTypes:
    """Numbers of narrow element types as those of wide ones: the adapter of passes that widen."""

    wide: Mapping[DType, DType]

    def adapt_feeds(self, feeds: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """See `Adapter.adapt_feeds`."""
        kinds = {value.name: value.dtype.numpy for value in graph.inputs if isinstance(value.type, TensorType)}
        return {name: array.astype(kinds.get(name, array.dtype)) for name, array in feeds.items()}

    def adapt_outputs(self, outputs: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """See `Adapter.adapt_outputs`."""
        kinds = {dtype.numpy: held.numpy for dtype, held in self.wide.items()}
        return {name: array.astype(kinds.get(array.dtype, array.dtype)) for name, array in outputs.items()}


def _widen(graph: Graph, counts: Counter[str]) -> None:
    for value in graph.inputs:
        if wider(value.type, WIDE) is not value.type:
            graph.set_type(value, wider(value.type, WIDE))
            counts["inputs"] += 1
    for value in list(graph.consts.values()):
        if value.tensor.type.dtype in HALVES:
            graph.set_const(value, _in_single(value.tensor))
            counts["constants"] += 1
    for node in graph.nodes:
        changed = wider_attributes(node, WIDE, _in_single)
        if changed:
            graph.set_attrs(node, **changed)
            counts["attributes"] += 1
        for value in node.outputs:
            if wider(value.type, WIDE) is not value.type:
                graph.set_type(value, wider(value.type, WIDE))
                counts["values"] += 1


def wider(type_: ValueType | None, wide: Mapping[DType, DType]) -> Any:
    """The type with wide element types in place of narrow ones; the type itself where there are none in it."""
    if isinstance(type_, TensorType):
        return TensorType(wide[type_.dtype], type_.shape) if type_.dtype in wide else type_
    if isinstance(type_, SequenceType | OptionalType):
        inner = wider(type_.element, wide)
        return type_ if inner is type_.element else type(type_)(inner)
    if isinstance(type_, MapType):
        inner = wider(type_.value, wide)
        return type_ if inner is type_.value else MapType(type_.key, inner)
    return type_


def wider_attributes(node: Node, wide: Mapping[DType, DType], widened: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The attributes that speak of narrow element types, made to speak of wide ones.

    Args:
        node: the node, which is not changed.
        wide: wide element types by narrow ones.
        widened: makes a constant of a narrow type one of its wide type.
    """
    numbers = {dtype.onnx: held.onnx for dtype, held in wide.items()}
    found: dict[str, Any] = {}
    for name, value in node.attrs.items():
        if isinstance(value, Tensor):
            if value.type.dtype in wide:
                found[name] = widened(value)
        elif isinstance(value, ValueType):
            if wider(value, wide) is not value:
                found[name] = wider(value, wide)
        elif not node.domain and name in ELEMENT_TYPES and value in numbers:
            found[name] = numbers[value]
    return found


def _in_single(tensor: Tensor) -> Tensor:
    return cast(tensor, F32)
