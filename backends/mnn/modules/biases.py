"""Sums with a constant that the converter takes for the bias of a convolution.

Whatever has as many elements as the convolution before it has channels is added to its bias: along whichever axis it lies,
behind a ReLU that has become part of the convolution, and behind a reshape. So sums are left to it that are biases, and
others are said as differences, which it does not look at. Seen on all releases, by a sweep over what stands between.
"""

from __future__ import annotations

from backends.mnn.modules.build import type_of
from ir.graph.graph import Node, Value

WEIGHED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
BETWEEN = frozenset({"Clip", "Flatten", "Identity", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that are part of a convolution, are nothing to the converter, or are looked through by it."""


def taken_for_bias(node: Node) -> tuple[Value, Value] | None:
    """The other operand and the constant of a sum that would go wrong; None where there is none."""
    for other, constant in ((node.operand(0), node.operand(1)), (node.operand(1), node.operand(0))):
        if constant.const is None or other.const is not None:
            continue
        maker, direct = _weighed(other)
        if maker is not None and _as_many(maker, constant) and not (direct and _is_bias(maker, other, constant)):
            return other, constant
    return None


def _weighed(value: Value) -> tuple[Node | None, bool]:
    """The convolution or product that a value comes from, and whether nothing is between."""
    node, direct = value.producer, True
    while node is not None and node.op in BETWEEN:
        first = node.input(0)
        node, direct = first.producer if first is not None else None, False
    return (node, direct) if node is not None and node.op in WEIGHED else (None, False)


def _channels(maker: Node) -> int | None:
    """Number of channels that a convolution or product makes; None where it is not known."""
    found = type_of(maker.output)
    axis = 1 if maker.op in ("Conv", "ConvTranspose") else -1
    size = found.shape[axis] if found is not None and found.shape and len(found.shape) >= 2 else None
    return size if isinstance(size, int) else None


def _as_many(maker: Node, constant: Value) -> bool:
    count = _channels(maker)
    return count is None or constant.tensor.type.size == count


def _is_bias(maker: Node, value: Value, constant: Value) -> bool:
    """True for a constant that lies along the channels of what it is added to."""
    made, shape = type_of(value), constant.shape
    if made is None or made.rank is None or shape is None or len(shape) > made.rank:
        return False
    axis = 1 if maker.op in ("Conv", "ConvTranspose") else made.rank - 1
    padded = (1,) * (made.rank - len(shape)) + tuple(shape)
    return all(size == 1 for place, size in enumerate(padded) if place != axis)


__all__ = ["taken_for_bias"]
