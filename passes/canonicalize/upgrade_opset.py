"""Operators of older ONNX versions in the words of the version that the IR is written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.graph.graph import OPSET, Graph, Node, Value
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass
from passes.framework.context import PassContext

OLDEST = 11
"""Oldest version whose operators are converted; files of older ones are from before 2019."""


@dataclass(frozen=True)
class UpgradeOpset(Pass):
    """Bring the operators of a graph that was read to the ONNX version of the IR.

    Most operators of older versions mean the same in newer ones. Those that do not are rewritten: axes and split sizes
    became operands, and softmax works on one axis. A graph with an operator that has no such form stays as it is.
    """

    name = "upgrade-opset"

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        version = graph.opsets.get("", OPSET)
        if not graph.foreign or not OLDEST <= version < OPSET:
            return {}
        nodes = [node for node in graph.walk() if not node.domain]
        changes = [(node, change) for node in nodes for since, change in CHANGES.get(node.op, ()) if version < since]
        if any(change is None for _, change in changes):
            return {}
        for node, change in changes:
            assert change is not None
            change(node)
        for one in graph.graphs():
            one.opsets[""] = OPSET
        return {"changed": len(changes)}


def _axes_as_operand(node: Node) -> None:
    axes = node.attrs.get("axes")
    node.home.set_attrs(node, axes=None)
    if axes is not None:
        node.home.set_inputs(node, [*node.inputs[:1], _ints(node, "axes", axes)])


def _split_as_operand(node: Node) -> None:
    sizes = node.attrs.get("split")
    if sizes is not None:
        node.home.set_attrs(node, split=None)
        node.home.set_inputs(node, [*node.inputs[:1], _ints(node, "split", sizes)])


def _count_outputs(node: Node) -> None:
    if node.input(1) is None:
        node.home.set_attrs(node, num_outputs=len(node.outputs))


def _one_axis(node: Node) -> None:
    """Softmax of the last axis was the same before; of others, it took all axes behind in one."""
    axis = node.attrs.get("axis", 1)
    type_ = node.operand(0).type
    rank = type_.rank if isinstance(type_, TensorType) else None
    if axis == -1 or (rank is not None and axis % rank == rank - 1):
        node.home.set_attrs(node, axis=-1)
        return
    raise LadingError(
        "P387",
        f"{node.op} of version 11 from axis {axis} on takes several axes as one",
        where=f"{node.loc or node.name}\n{node!r}",
        hint="export the model with opset 13 or later",
    )


def _ratio_as_operand(node: Node) -> None:
    """In inference nothing is dropped, whatever the ratio."""
    node.home.set_attrs(node, ratio=None)


def _ints(node: Node, stem: str, numbers: tuple[int, ...]) -> Value:
    graph = node.home
    name = graph.fresh_name(f"{node.name or node.op}.{stem}")
    return graph.add_const(name, InlineTensor(np.array(numbers, np.int64)))


_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
)  # fmt: skip

CHANGES: Mapping[str, tuple[tuple[int, Callable[[Node], None] | None], ...]] = {
    **{op: ((18, _axes_as_operand),) for op in _REDUCTIONS},
    "ReduceSum": ((13, _axes_as_operand),),
    "Squeeze": ((13, _axes_as_operand),),
    "Unsqueeze": ((13, _axes_as_operand),),
    "Split": ((13, _split_as_operand), (18, _count_outputs)),
    "Softmax": ((13, _one_axis),),
    "LogSoftmax": ((13, _one_axis),),
    "Hardmax": ((13, _one_axis),),
    "Dropout": ((12, _ratio_as_operand),),
    "GroupNormalization": ((21, None),),
    "DFT": ((20, None),),
    "GridSample": ((20, None),),
    "Upsample": ((OPSET, None),),
    "Scatter": ((OPSET, None),),
}
"""By operator: the versions since which it means something else, and how the older form is written anew; None for
operators whose older form has no such rewrite."""
