"""Take quantization out of the graph and record it, so that what is left is a graph of floats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from backends.mnn.modules.edit.codes import ActivationCodes, CodeRange
from ir.base.types import F32, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import attribute
from ir.quant.coded import Coded, coded, signed_codes
from ir.quant.stored_codes import given_codes, stored_weight
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import reshaped, transposed
from passes.framework.base import Pass
from passes.framework.context import PassContext

WEIGHED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second operand is a weight."""

BOUNDED = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
"""Operators whose results lie between two numbers."""

MEANS = frozenset(
    "Reshape Transpose Squeeze Unsqueeze Flatten Identity Slice Split Gather Concat Expand Tile MaxPool AveragePool "
    "GlobalAveragePool GlobalMaxPool DepthToSpace SpaceToDepth".split()
)
"""Operators whose results lie between the numbers that they read, if none of these are constants."""


@dataclass(frozen=True)
class TakeQdq(Pass):
    """Take QuantizeLinear and DequantizeLinear out of the graph, and record what they say.

    Weights under DequantizeLinear become constants that keep their codes: MNN's file holds those, and not the floats
    they stand for. A pair that rounds a tensor to integers of 8 bits becomes a Clip to the numbers that these can
    stand for, and its scale and zero point are recorded: where MNN computes with integers, they are those of the
    tensor. What is left of the two operators is for legalize-module to say no to.
    """

    name = "take-qdq"
    requires = ("typed",)
    lossy = True

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        counts = {"weights": 0, "activations": 0}
        for node in [node for one in graph.graphs() for node in one.nodes if node.op == "DequantizeLinear"]:
            constant = _constant(node)
            if constant is not None:
                _store(node, constant)
                counts["weights"] += 1
        ranges: dict[Value, CodeRange] = {}
        pairs = [node for one in graph.graphs() for node in one.nodes if node.op == "DequantizeLinear"]
        for node in pairs:
            counts["activations"] += _take(node, ranges)
        _tidy(graph)
        if ranges:
            graph.set_fact(ActivationCodes.name, ActivationCodes({value.name: item for value, item in ranges.items()}))
        return counts


# ---- constants ----


def _constant(node: Node) -> Tensor | None:
    """The numbers of a dequantized constant, which remember their codes where these are those of a weight."""
    codes, scale, zero = node.operand(0).const, node.operand(1).const, node.input(2)
    if codes is None or scale is None or (zero is not None and zero.const is None):
        return None
    zeros = zero.const if zero is not None else None
    axis, block = attribute(node, "axis") or 0, attribute(node, "block_size") or 0
    if codes.type.dtype.is_integer and codes.type.dtype.bits <= 8 and codes.type.rank:
        codes, zeros = _centred(codes, zeros)
        found = coded(codes, scale, zeros, axis, block)
        if not isinstance(found, str):
            weight = _weight(node, found, codes.shape)
            return weight if weight is not None else found.numbers()
    return _decoded(codes, scale, zeros, axis, block)


def _centred(codes: Tensor, zeros: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Codes without zeros where all zeros are the middle of their range, which is that of signed codes."""
    unsigned = codes.type.dtype.kind == "u"
    middle = 1 << (codes.type.dtype.bits - 1) if unsigned else 0
    if zeros is None and not unsigned:
        return codes, None
    if zeros is not None and bool((zeros.load() == middle).all()):
        return signed_codes(codes) if unsigned else codes, None
    return codes, zeros


def _weight(node: Node, seen: Coded, shape: tuple[int, ...]) -> Tensor | None:
    """The numbers of a weight with their codes; None where scales are not those of output channels or blocks of one."""
    by_rows = _rows_first(node)
    if by_rows is None or len(shape) < 2:
        return None
    flat = seen.reshaped((shape[0], math.prod(shape[1:])))
    parts = flat.matrix(1 if by_rows else 0) if flat is not None else ""
    if isinstance(parts, str):
        return None
    rows = stored_weight(given_codes(*parts)).dequantized()
    return reshaped(rows if by_rows else transposed(rows), shape)


def _rows_first(node: Node) -> bool | None:
    """Whether output channels lie along the first axis, by what reads the weight; None when that disagrees."""
    found: set[bool | None] = set()
    for user, place in node.output.uses:
        if place != 1 or user.op not in WEIGHED:
            found.add(None)
        elif user.op == "Gemm":
            found.add(bool(attribute(user, "transB")))
        elif user.op == "MatMul":
            found.add(False if node.output.rank == 2 else None)
        else:
            found.add(True if user.op == "Conv" else None)
    return found.pop() if len(found) == 1 else None


def _decoded(codes: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int) -> Tensor | None:
    """The numbers of other constants, such as biases in 32 bits."""
    if block or not codes.type.dtype.is_integer or not scale.type.dtype.is_float:
        return None
    numbers, factors = codes.load().astype(np.float64), scale.load().astype(np.float64)
    offsets = zero.load().astype(np.float64) if zero is not None else np.zeros_like(factors)
    if factors.size > 1:
        shape = [1] * numbers.ndim
        shape[axis] = factors.size
        factors, offsets = factors.reshape(shape), offsets.reshape(shape)
    else:
        factors, offsets = factors.reshape(()), offsets.reshape(())
    return InlineTensor(np.asarray((numbers - offsets) * factors, np.float32))


def _store(node: Node, numbers: Tensor) -> None:
    graph, old = node.home, node.output
    name, kind = old.name, old.type
    value = graph.add_const(f"{name}.numbers", numbers, loc=node.loc)
    if isinstance(kind, TensorType) and kind.dtype != F32:
        widened = graph.add("Cast", [value], {"to": kind.dtype.onnx}, types=[kind], before=node, loc=node.loc)
        value = widened.output
    graph.replace(old, value)
    graph.erase(node)
    graph.rename(value, name)


# ---- activations ----


def _take(node: Node, ranges: dict[Value, CodeRange]) -> int:
    """Take one pair away; 1 when there was one."""
    graph, first = node.home, node.operand(0).producer
    if first is None or first.op != "QuantizeLinear" or first.graph is not node.graph:
        return 0
    source, found = first.operand(0), _range(first, node)
    if found is None or source.const is not None or (source in ranges and ranges[source] != found):
        return 0
    value = _cut_off(node, source, found, ranges)
    old = node.output
    if old.is_output and (value.is_input or value.is_output or value.is_const):
        value = graph.add("Identity", [value], types=[value.type], before=node, loc=node.loc).output
    name = old.name if old.is_output else ""
    graph.replace(old, value)
    graph.erase(node)
    if name:
        graph.rename(value, name)
    ranges[value] = found
    return 1


def _cut_off(node: Node, source: Value, found: CodeRange, ranges: Mapping[Value, CodeRange]) -> Value:
    """The value within the numbers that codes stand for: what is beyond them is cut off, whatever computes with it."""
    low, high = ((code - found.zero) * found.scale for code in (found.low, found.high))
    if _within(source, low, high, found, ranges):
        return source
    graph = node.home
    bounds = [
        graph.add_const(f"{source.name}.{name}", InlineTensor(np.array(number, np.float32)), loc=node.loc)
        for name, number in (("lowest", low), ("highest", high))
    ]
    clip = graph.add(
        "Clip", [source, *bounds], outputs=(f"{source.name}.held",), types=[source.type], before=node, loc=node.loc
    )
    return clip.output


def _within(value: Value, low: float, high: float, found: CodeRange, ranges: Mapping[Value, CodeRange]) -> bool:
    """True for what is never beyond two numbers."""
    node = value.producer
    if node is None:
        return False
    if node.op in BOUNDED:
        least, most = BOUNDED[node.op]
        return low <= least and most <= high
    if node.op in MEANS:
        given = [item for item in node.inputs if item is not None and item.const is None]
        return bool(given) and all(ranges.get(item) == found for item in given)
    return False


def _range(quantize: Node, dequantize: Node) -> CodeRange | None:
    """The codes of a pair; None where the two differ or are not those of a whole tensor in 8 bits."""
    scales = [_number(node.operand(1)) for node in (quantize, dequantize)]
    zeros = [_number(node.input(2)) if node.input(2) is not None else 0 for node in (quantize, dequantize)]
    kind = quantize.output.type
    if not isinstance(kind, TensorType) or kind.dtype.bits != 8 or not kind.dtype.is_integer:
        return None
    if None in scales or None in zeros or scales[0] != scales[1] or zeros[0] != zeros[1]:
        return None
    scale, zero = scales[0], zeros[0]
    assert scale is not None and zero is not None
    return CodeRange(float(np.float32(scale)), int(zero) - (128 if kind.dtype.kind == "u" else 0))


def _number(value: Value | None) -> float | None:
    if value is None or value.const is None or value.const.type.size != 1:
        return None
    return float(value.const.load().reshape(-1)[0])


def _tidy(graph: Graph) -> None:
    """Erase what nothing reads any more."""
    for one in graph.graphs():
        for node in list(reversed(one.nodes)):
            if node.op == "QuantizeLinear" and not node.output.use_count:
                one.erase(node)


__all__ = ["TakeQdq"]
