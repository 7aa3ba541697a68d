"""Graphs of half precision as graphs of single precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ir.base.types import BF16, F16, F32, MapType, OptionalType, SequenceType, TensorType, ValueType
from ir.graph.graph import Graph, Node
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from passes.framework.base import Adapter, Pass, Result
from passes.framework.context import PassContext

HALVES = frozenset({F16, BF16})
_NUMBERS = {dtype.onnx for dtype in HALVES}
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
        return _InSinglePrecision()


class _InSinglePrecision:
    """Numbers of half precision as those of single precision."""

    def adapt_feeds(self, feeds: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """See `Adapter.adapt_feeds`."""
        kinds = {value.name: value.dtype.numpy for value in graph.inputs if isinstance(value.type, TensorType)}
        return {name: array.astype(kinds.get(name, array.dtype)) for name, array in feeds.items()}

    def adapt_outputs(self, outputs: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """See `Adapter.adapt_outputs`."""
        halves = tuple(dtype.numpy for dtype in HALVES)
        return {name: array.astype(np.float32) if array.dtype in halves else array for name, array in outputs.items()}


def _widen(graph: Graph, counts: Counter[str]) -> None:
    for value in graph.inputs:
        if _wider(value.type) is not value.type:
            graph.set_type(value, _wider(value.type))
            counts["inputs"] += 1
    for value in list(graph.consts.values()):
        if value.tensor.type.dtype in HALVES:
            graph.set_const(value, cast(value.tensor, F32))
            counts["constants"] += 1
    for node in graph.nodes:
        changed = _attributes(node)
        if changed:
            graph.set_attrs(node, **changed)
            counts["attributes"] += 1
        for value in node.outputs:
            if _wider(value.type) is not value.type:
                graph.set_type(value, _wider(value.type))
                counts["values"] += 1


def _wider(type_: ValueType | None) -> Any:
    """The type with single in place of half precision; the type itself where there is none in it."""
    if isinstance(type_, TensorType):
        return TensorType(F32, type_.shape) if type_.dtype in HALVES else type_
    if isinstance(type_, SequenceType | OptionalType):
        inner = _wider(type_.element)
        return type_ if inner is type_.element else type(type_)(inner)
    if isinstance(type_, MapType):
        inner = _wider(type_.value)
        return type_ if inner is type_.value else MapType(type_.key, inner)
    return type_


def _attributes(node: Node) -> dict[str, Any]:
    """The attributes that speak of half precision, made to speak of single precision."""
    found: dict[str, Any] = {}
    for name, value in node.attrs.items():
        if isinstance(value, Tensor):
            if value.type.dtype in HALVES:
                found[name] = cast(value, F32)
        elif isinstance(value, ValueType):
            if _wider(value) is not value:
                found[name] = _wider(value)
        elif not node.domain and name in ELEMENT_TYPES and value in _NUMBERS:
            found[name] = F32.onnx
    return found
