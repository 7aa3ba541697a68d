"""Graphs of one version of ONNX's operators as graphs of a newer one.

Most operators only took further element types or optional parts on; the table here says what is to be done for the
others, and which have no newer form. Nothing is changed where one node has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ir.base.types import BOOL, I64, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.ops import early
from ir.ops.registry import schema_of
from ir.tensor.inline import InlineTensor

ONNX = ""
"""The domain of ONNX's own operators."""
OLDEST = 1
"""First version that is upgraded from."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SAME = _names(
    "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool Bernoulli BitShift Cast "
    "CastLike Ceil Celu Compress Concat ConcatFromSequence Constant ConstantOfShape Conv ConvInteger "
    "ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Det Div DynamicQuantizeLinear Einsum "
    "Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm "
    "GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish Identity If "
    "InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log Loop "
    "LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization "
    "Min Mish Mod Mul Multinomial Neg NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot Optional "
    "OptionalGetElement OptionalHasElement Or PRelu Pow QLinearConv QLinearMatMul QuantizeLinear RNN "
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal Relu Reshape Round Scan "
    "ScatterElements ScatterND Selu SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert "
    "SequenceLength Shape Shrink Sigmoid Sign Sin Sinh Size SoftmaxCrossEntropyLoss Softplus Softsign "
    "SpaceToDepth SplitToSequence Sqrt Sub Sum Tan Tanh ThresholdedRelu Tile Transpose Trilu Unique Where Xor"
)
"""Operators that mean the same in every later version, which only add to them."""


_KNOWN_BEFORE = frozenset({"LayerNormalization"})
"""Operators that runtimes knew, as they are now, before ONNX had them."""


def _axes_to_input(node: Node, graph: Graph) -> None:
    """Axes that were an attribute, or none, are an input."""
    axes = node._attrs.get("axes")
    if axes is not None:
        graph.set_attrs(node, axes=None)
        graph.set_inputs(node, [*node.inputs, _ints(graph, node, "axes", axes)])


def _split(node: Node, graph: Graph) -> None:
    """The parts were an attribute; equal parts were told by the number of outputs."""
    parts = node._attrs.get("split")
    if parts is not None:
        graph.set_attrs(node, split=None)
        graph.set_inputs(node, [*node.inputs, _ints(graph, node, "parts", parts)])
    elif node.input(1) is None and "num_outputs" not in node._attrs:
        graph.set_attrs(node, num_outputs=len(node.outputs))


def _softmax(node: Node, graph: Graph) -> None:
    """All axes from the given one were taken together; they are made one, unless there is but one."""
    axis, x = node._attrs.get("axis", 1), node.operand(0)
    rank = x.rank if isinstance(x.type, TensorType) else None
    graph.set_attrs(node, axis=-1)
    if axis == -1 or (rank is not None and axis == rank - 1):
        return
    length = TensorType(I64, None if rank is None else (rank,))
    kind = _flat(x.type, axis) if isinstance(x.type, TensorType) else None
    shape = graph.add("Shape", [x], types=[length], before=node, loc=node.loc).output
    rows = graph.add("Flatten", [x], {"axis": axis}, types=[kind], before=node, loc=node.loc).output
    made = graph.add(node.op, [rows], {"axis": -1}, types=[kind], before=node, loc=node.loc).output
    graph.set_op(node, "Reshape")
    graph.set_attrs(node, axis=None)
    graph.set_inputs(node, [made, shape])


def _flat(kind: TensorType, axis: int) -> TensorType:
    """The type of a matrix whose rows are the axes from the given one; of unknown rank where sizes are not known."""
    sizes = kind.sizes
    if sizes is None:
        return TensorType(kind.dtype)
    at = axis % max(len(sizes), 1)
    return TensorType(kind.dtype, (prod(sizes[:at]), prod(sizes[at:])))


def _not_training(node: Node) -> bool:
    return len(node.outputs) == 1 and bool(node._attrs.get("spatial", 1))


def _batch_norm(node: Node, graph: Graph) -> None:
    graph.set_attrs(node, spatial=None)


def _dropout(node: Node, graph: Graph) -> None:
    """Outside of training the ratio has no effect, and the mask is of truth values."""
    graph.set_attrs(node, ratio=None)
    for mask in node.outputs[1:]:
        shape = mask.type.shape if isinstance(mask.type, TensorType) else None
        graph.set_type(mask, TensorType(BOOL, shape))


def _mask_unread(node: Node) -> bool:
    """Nobody reads the mask, which was of the element type of the numbers."""
    return not any(value.use_count for value in node.outputs[1:])


def _typed(node: Node) -> bool:
    return isinstance(node.operand(0).type, TensorType)


def _clip(node: Node, graph: Graph) -> None:
    bounds = [node._attrs.get(name) for name in ("min", "max")]
    if bounds != [None, None]:
        made = [None if bound is None else _number(graph, node, "bound", bound) for bound in bounds]
        graph.set_attrs(node, min=None, max=None)
        graph.set_inputs(node, [node.operand(0), *made])


def _slice(node: Node, graph: Graph) -> None:
    names = [name for name in ("starts", "ends", "axes") if name in node._attrs]
    if names:
        made = [_ints(graph, node, name, node._attrs[name]) for name in names]
        graph.set_attrs(node, starts=None, ends=None, axes=None)
        graph.set_inputs(node, [node.operand(0), *made])


def _pad(node: Node, graph: Graph) -> None:
    pads, fill = node._attrs.get("pads"), node._attrs.get("value", 0.0)
    if pads is not None:
        made = [_ints(graph, node, "pads", pads), _number(graph, node, "fill", fill)]
        graph.set_attrs(node, pads=None, value=None)
        graph.set_inputs(node, [node.operand(0), *made])


def _top_k(node: Node, graph: Graph) -> None:
    count = node._attrs.get("k")
    if count is not None:
        graph.set_attrs(node, k=None)
        graph.set_inputs(node, [node.operand(0), _ints(graph, node, "k", (count,))])


def _roi_align(node: Node, graph: Graph) -> None:
    if "coordinate_transformation_mode" not in node._attrs:
        graph.set_attrs(node, coordinate_transformation_mode="output_half_pixel")


def _grid_sample(node: Node, graph: Graph) -> None:
    mode = node._attrs.get("mode", "bilinear")
    graph.set_attrs(node, mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _same_sampling(node: Node) -> bool:
    return node._attrs.get("coordinate_transformation_mode") != "tf_half_pixel_for_nn"


def _nothing(node: Node, graph: Graph) -> None:
    """The node is one of the newer version as it is."""


class Change(NamedTuple):
    """What a version did to an operator.

    Attributes:
        version: the version of ONNX's operators.
        make: makes a node of an older version one of this.
        fits: tells the nodes that have a form in this version; None for all.
    """

    version: int
    make: Callable[[Node, Graph], None]
    fits: Callable[[Node], bool] | None = None


_REDUCTIONS = _names(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
_LATER: dict[str, tuple[Change, ...]] = {
    **dict.fromkeys(_REDUCTIONS - {"ReduceSum"}, (Change(18, _axes_to_input),)),
    **dict.fromkeys(("ReduceSum", "Squeeze", "Unsqueeze"), (Change(13, _axes_to_input),)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), (Change(13, _softmax),)),
    "Split": (Change(18, _split),),
    "BatchNormalization": (Change(15, _batch_norm, _not_training),),
    "Dropout": (Change(10, _nothing, _mask_unread), Change(12, _dropout)),
    "Clip": (Change(11, _clip, _typed),),
    "Slice": (Change(10, _slice),),
    "Pad": (Change(11, _pad, _typed),),
    "TopK": (Change(10, _top_k),),
    "RoiAlign": (Change(16, _roi_align),),
    "GridSample": (Change(20, _grid_sample),),
    "Resize": (Change(13, _nothing, _same_sampling),),
}
_CHANGES = {
    op: (*(Change(*each) for each in early.CHANGES.get(op, ())), *_LATER.get(op, ()))
    for op in {**early.CHANGES, **_LATER}
}
"""Operators whose older nodes have to be rewritten, each with what newer versions did to it, in order."""


def upgrade(graph: Graph, to: int) -> list[str]:
    """Make a graph one of a newer version of ONNX's operators; nothing is done for one that is as new.

    Args:
        graph: a root graph or a function's body; what it calls is not looked at.
        to: the version.

    Returns:
        The operators that have no form in the new version, and then nothing has been changed; else nothing.
    """
    now = graph.opsets.get(ONNX)
    if now is None or now >= to:
        return []
    nodes = [node for node in graph.walk() if not node.domain]
    found = {node.op: None for node in nodes if not _has_form(node, now, to)}
    if now < OLDEST or found:
        return sorted(found) or [f"opset {now}"]
    _make_newer(nodes, now, to)
    # What was added in front of nodes is of a version between.
    seen = set(nodes)
    _make_newer([node for node in graph.walk() if node not in seen and not node.domain], now, to)
    graph.opsets[ONNX] = to
    return []


def _make_newer(nodes: Sequence[Node], now: int, to: int) -> None:
    for node in nodes:
        for change in _between(node, now, to):
            change.make(node, node.home)


def told(blockers: Sequence[str]) -> str:
    """Operators that have no form in a version, for people: the first few by name."""
    return ", ".join(blockers[:4]) + (f" and {len(blockers) - 4} more" if len(blockers) > 4 else "")


def restate(graph: Graph, to: int) -> list[str]:
    """Make a graph one of a given version of ONNX's operators, newer or older; functions of the model are not looked at.

    A graph becomes one of an older version where that has every operator of it as it is.

    Args:
        graph: a root graph.
        to: the version.

    Returns:
        The operators that have no form in that version, and then nothing has been changed; else nothing.
    """
    now = graph.opsets.get(ONNX)
    if now is None or now <= to:
        return upgrade(graph, to)
    found = {node.op: None for node in graph.walk() if not node.domain and not _is_as_old(node, now, to)}
    if not found:
        graph.opsets[ONNX] = to
    return sorted(found)


def _is_as_old(node: Node, now: int, to: int) -> bool:
    """True for an operator that an older version has, with the same meaning or with less that this node makes use of."""
    before, after = schema_of(ONNX, node.op, to), schema_of(ONNX, node.op, now)
    if before is None or after is None:
        return before is after
    if before.since_version == after.since_version:
        return True
    grown = node.op in _SAME and all(name in before.attributes for name in node.attrs)
    return grown and len(node.inputs) <= before.max_input and _types_fit(node, before)


def _types_fit(node: Node, schema: Any) -> bool:
    """True when a schema allows the element types of a node."""
    from onnx import TensorProto

    allowed = {item.type_param_str: set(item.allowed_type_strs) for item in schema.type_constraints}
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)]
            if value is None or not isinstance(value.type, TensorType):
                continue
            name = f"tensor({TensorProto.DataType.Name(value.dtype.onnx).lower()})"
            if name not in allowed.get(formal.type_str, {formal.type_str}):
                return False
    return True


def _between(node: Node, now: int, to: int) -> list[Change]:
    return [change for change in _CHANGES.get(node.op, ()) if now < change.version <= to]


def _has_form(node: Node, now: int, to: int) -> bool:
    before, after = schema_of(ONNX, node.op, now), schema_of(ONNX, node.op, to)
    if before is not None and node.op in early.RENAMED:
        return all(change.fits is None or change.fits(node) for change in _between(node, now, to))
    if before is None or after is None:
        # None of both: an operator that runtimes know as one of ONNX's, whatever the version.
        return before is after or (before is None and node.op in _KNOWN_BEFORE)
    if before.since_version == after.since_version:
        return True
    changes = _between(node, now, to)
    known = node.op in _SAME or node.op in _CHANGES
    return known and all(change.fits is None or change.fits(node) for change in changes)


def _ints(graph: Graph, node: Node, name: str, numbers: Sequence[int]) -> Value:
    return graph.add_const(f"{node.output.name}.{name}", InlineTensor(np.array(numbers, np.int64)))


def _number(graph: Graph, node: Node, name: str, number: float) -> Value:
    dtype = node.operand(0).dtype
    return graph.add_const(f"{node.output.name}.{name}", InlineTensor(np.array(number, dtype.numpy), dtype))


__all__ = ["ONNX", "restate", "told", "upgrade"]
