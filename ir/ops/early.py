"""Nodes of the first versions of ONNX's operators as nodes of version 7, and what later versions renamed.

Source: ONNX's ``Changelog.md``, which has every version of every operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ir.base.types import TensorType
from ir.graph.graph import Graph, Node, Value
from ir.tensor.inline import InlineTensor

Make = Callable[[Node, Graph], None]
Fits = Callable[[Node], bool]

_ELEMENTWISE = "Abs Ceil Clip Elu Exp Floor HardSigmoid InstanceNormalization LeakyRelu Log Max Mean Min Neg PRelu "
_ELEMENTWISE += "Reciprocal Relu Sigmoid Sqrt Sum Tanh"
_PAIRS = "Add And Div Equal Greater Less Mul Or Pow Sub Xor"


def _in_place(node: Node, graph: Graph) -> None:
    """Which inputs may be overwritten is not said any more."""
    graph.set_attrs(node, consumed_inputs=None)


def _rank_known(value: Value | None) -> bool:
    return value is not None and isinstance(value.type, TensorType) and value.rank is not None


def _axis_told(node: Node) -> bool:
    """An axis from which the second operand is broadcast needs the ranks of both."""
    return node._attrs.get("axis") is None or all(map(_rank_known, node.inputs))


def _broadcast(node: Node, graph: Graph) -> None:
    """An operand that was laid over the axes from a given one gets axes of size 1 behind its own."""
    axis = node._attrs.get("axis")
    graph.set_attrs(node, axis=None, broadcast=None)
    if axis is None:
        return
    left, right = node.operand(0), node.operand(1)
    whole, own = left.rank or 0, right.rank or 0
    behind = whole - (axis % max(whole, 1)) - own
    if behind > 0:
        graph.set_inputs(node, [left, _unsqueezed(node, graph, right, range(own, own + behind))])


def _unsqueezed(node: Node, graph: Graph, value: Value, axes: Sequence[int]) -> Value:
    """A value with axes behind its own, as every version of Unsqueeze until 13 says it."""
    kind = TensorType(value.dtype, (*(value.shape or ()), *(1 for _ in axes)))
    return graph.add("Unsqueeze", [value], {"axes": tuple(axes)}, types=[kind], before=node, loc=node.loc).output


def _slopes_known(node: Node) -> bool:
    return all(map(_rank_known, node.inputs))


def _prelu(node: Node, graph: Graph) -> None:
    """Slopes were one for all or one for each channel, whatever comes behind the channels."""
    x, slope = node.operand(0), node.operand(1)
    behind = (x.rank or 0) - 2
    if slope.rank == 1 and behind > 0 and slope.shape != (1,):
        graph.set_inputs(node, [x, _unsqueezed(node, graph, slope, range(1, 1 + behind))])


def _inference(node: Node) -> bool:
    """Training is what these operators did unless told otherwise."""
    return bool(node._attrs.get("is_test", 0))


def _no_test(node: Node, graph: Graph) -> None:
    graph.set_attrs(node, is_test=None)


def _cast(node: Node, graph: Graph) -> None:
    """Types were named."""
    import onnx

    to = node._attrs.get("to")
    if isinstance(to, str | bytes):
        name = to.decode() if isinstance(to, bytes) else to
        graph.set_attrs(node, to=int(onnx.TensorProto.DataType.Value(name.upper())))


def _known_type(node: Node) -> bool:
    import onnx

    to = node._attrs.get("to")
    name = to.decode() if isinstance(to, bytes) else to
    return not isinstance(name, str) or name.upper() in onnx.TensorProto.DataType.keys()  # noqa: SIM118 - no mapping


def _concat(node: Node, graph: Graph) -> None:
    graph.set_attrs(node, axis=node._attrs.get("axis", 1))


def _recurrent(node: Node, graph: Graph) -> None:
    """Whether the whole sequence is wanted follows from what is read."""
    graph.set_attrs(node, output_sequence=None)


def _gemm(node: Node, graph: Graph) -> None:
    graph.set_attrs(node, broadcast=None)


def _pad(node: Node, graph: Graph) -> None:
    graph.set_attrs(node, pads=node._attrs.get("paddings"), paddings=None)


def _reshape(node: Node, graph: Graph) -> None:
    """The shape was an attribute."""
    shape = node._attrs.get("shape")
    graph.set_attrs(node, shape=None, consumed_inputs=None)
    if shape is not None:
        value = graph.add_const(f"{node.output.name}.shape", InlineTensor(np.array(shape, np.int64)))
        graph.set_inputs(node, [node.operand(0), value])


def _one_input(node: Node) -> bool:
    return len(node.inputs) == 1


def _stays(node: Node, graph: Graph) -> None:
    """The node is one of the newer version as it is."""


def _whole_power(node: Node, graph: Graph) -> None:
    """The power of a norm was a float."""
    graph.set_attrs(node, p=int(node._attrs.get("p", 2)))


def _selu(node: Node, graph: Graph) -> None:
    """The defaults got more digits."""
    alpha, gamma = node._attrs.get("alpha", 1.6732), node._attrs.get("gamma", 1.0507)
    graph.set_attrs(node, alpha=alpha, gamma=gamma, consumed_inputs=None)


def _never(node: Node) -> bool:
    """Nothing is left of what this version did."""
    return False


def _upsample_scales(node: Node, graph: Graph) -> None:
    scales = node._attrs.get("scales")
    if scales is not None:
        graph.set_attrs(node, scales=None)
        value = graph.add_const(f"{node.output.name}.scales", InlineTensor(np.array(scales, np.float32)))
        graph.set_inputs(node, [node.operand(0), value])


def _as_resize(node: Node, graph: Graph) -> None:
    """Every element is taken from, or between, those at its place divided by the scale."""
    mode = node._attrs.get("mode", "nearest")
    name = mode.decode() if isinstance(mode, bytes) else mode
    graph.set_op(node, "Resize")
    graph.set_inputs(node, [node.operand(0), None, node.operand(1)])
    attrs = {"coordinate_transformation_mode": "asymmetric", "mode": "linear" if name == "bilinear" else name}
    graph.set_attrs(node, **attrs, **({"nearest_mode": "floor"} if name == "nearest" else {}))


def _grows(node: Node) -> bool:
    """Which element is the nearest of a smaller picture was told by nobody, and runtimes differ."""
    mode = node._attrs.get("mode", "nearest")
    scales = node.operand(1).const
    return mode not in ("nearest", b"nearest") or (scales is not None and bool((scales.load() >= 1).all()))


def _scatter(node: Node, graph: Graph) -> None:
    graph.set_op(node, "ScatterElements")


def _axis_as_input(node: Node, graph: Graph) -> None:
    """The axis of a transform was an attribute."""
    axis = graph.add_const(f"{node.output.name}.axis", InlineTensor(np.array(node._attrs.get("axis", 1), np.int64)))
    graph.set_attrs(node, axis=None)
    graph.set_inputs(node, [node.operand(0), node.input(1), axis])


CHANGES: dict[str, tuple[tuple[int, Make, Fits | None], ...]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), ((6, _in_place, None),)),
    **dict.fromkeys(_PAIRS.split(), ((6, _in_place, None), (7, _broadcast, _axis_told))),
    "PRelu": ((6, _in_place, None), (7, _prelu, _slopes_known)),
    "Selu": ((6, _selu, None),),
    "BatchNormalization": ((6, _in_place, None), (7, _no_test, _inference)),
    "Dropout": ((6, _in_place, None), (7, _no_test, _inference)),
    "Cast": ((6, _cast, _known_type),),
    "Concat": ((4, _concat, None),),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), ((7, _recurrent, None),)),
    "Gemm": ((7, _gemm, None),),
    "Pad": ((2, _pad, None),),
    "Reshape": ((5, _reshape, None),),
    "Split": ((2, _stays, _one_input),),
    "Tile": ((6, _stays, _never),),
    "Scan": ((9, _stays, _never),),
    "LpPool": ((2, _whole_power, None),),
    "GlobalLpPool": ((2, _whole_power, None),),
    "Upsample": ((7, _stays, _never), (9, _upsample_scales, None), (10, _as_resize, None)),
    "Resize": ((11, _as_resize, _grows),),
    "Scatter": ((11, _scatter, None),),
    "DFT": ((20, _axis_as_input, None),),
}
"""What versions did to operators: the version, what makes a node of it, and what tells the nodes that have a form in it."""

RENAMED = frozenset({"Upsample", "Scatter"})
"""Operators that a later version has under another name."""

__all__ = ["CHANGES", "RENAMED"]
