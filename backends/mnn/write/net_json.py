"""The graph as MNN's JSON form (``schema/default/MNN.fbs`` spelled in JSON), which the wheel's converter encodes.

How an operator is written stands in its row, see `backends.mnn.dialect.operator.MnnOperator`.
"""

from __future__ import annotations

from typing import Any

from backends.mnn.dialect.constants import write_constant, write_input
from backends.mnn.dialect.operator import MnnOperator
from backends.mnn.dialect.table import WRITTEN
from backends.mnn.write.weight_layout import Layout
from ir.base.diag import LadingError
from ir.graph.graph import Graph, Node, Value
from ir.quant.stored_weight import is_weight


def build_net(graph: Graph, layout: Layout) -> dict[str, Any]:
    """The ``Net`` table of an MNN-legal graph whose weights lie as `layout` says.

    Raises:
        LadingError: B610 an operator without an encoding, B611 a constant of a type MNN has not.
    """
    return _Net(graph, layout).build()


class _Net:
    def __init__(self, graph: Graph, layout: Layout) -> None:
        self.graph = graph
        self.layout = layout
        self.names: list[str] = []
        self.index: dict[Value, int] = {}
        self.ops: list[dict[str, Any]] = []

    def build(self) -> dict[str, Any]:
        for value in self.graph.inputs:
            self._op(value.name, "Input", "Input", write_input(value), [], [self._tensor(value)])
        for node in self.graph.nodes:
            if is_weight(node.output):
                continue
            row = WRITTEN.get(node.op)
            if row is None:
                raise LadingError("B610", f"operator {node.op} has no MNN encoding", where=f"{node.loc}\n{node!r}")
            self._node(node, row)
        return {
            "oplists": self.ops,
            "tensorName": self.names,
            "outputName": [value.name for value in self.graph.outputs],
            "sourceType": "ONNX",
            "usage": "INFERENCE",
        }

    def _tensor(self, value: Value) -> int:
        if value not in self.index:
            self.index[value] = len(self.names)
            self.names.append(value.name)
        return self.index[value]

    def _node(self, node: Node, row: MnnOperator) -> None:
        assert row.encode is not None
        main = row.encode(node, self.layout)
        inputs = [self._operand(value) for value in node.inputs[: row.tensors] if value is not None]
        outputs = [self._tensor(value) for value in node.outputs]
        self._op(node.output.name, row.type, row.parameter, main, inputs, outputs, row.format)

    def _operand(self, value: Value) -> int:
        if value.is_const and value not in self.index:
            self._op(value.name, "Const", "Blob", write_constant(value, self.layout), [], [self._tensor(value)])
        return self._tensor(value)

    def _op(
        self,
        name: str,
        kind: str,
        main_type: str,
        main: dict[str, Any],
        inputs: list[int],
        outputs: list[int],
        layout: str = "NCHW",
    ) -> None:
        op: dict[str, Any] = {"name": name, "type": kind, "main_type": main_type}
        if main_type != "NONE":
            op["main"] = main
        if inputs:
            op["inputIndexes"] = inputs
        self.ops.append({**op, "outputIndexes": outputs, "defaultDimentionFormat": layout})


__all__ = ["build_net"]
