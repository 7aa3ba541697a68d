"""The graph as MNN's JSON form (``schema/default/MNN.fbs`` spelled in JSON), which the wheel's converter encodes.

How an operator is written stands in its row, see `backends.mnn.dialect.operator.MnnOperator`. The experts of a mixture
are graphs of their own, whose matrices lie in the same weight file.
"""

from __future__ import annotations

from typing import Any

from backends.mnn.dialect.constants import write_constant, write_input
from backends.mnn.dialect.experts import MIXTURE, ROWS_OF_EXPERTS, nodes_of_experts, source_of, subgraph_name
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
    """One level of a file: the main graph, or the graph of an expert, with its own tensors."""

    def __init__(self, graph: Graph, layout: Layout) -> None:
        self.graph = graph
        self.layout = layout
        self.names: list[str] = []
        self.index: dict[Value, int] = {}
        self.ops: list[dict[str, Any]] = []

    def build(self) -> dict[str, Any]:
        inner = self._experts()
        for value in self.graph.inputs:
            self.input(value)
        for node in self.graph.nodes:
            if not is_weight(node.output) and node.op != ROWS_OF_EXPERTS:
                inner.get(node, self).write(node)
        levels = dict.fromkeys(inner.values())
        return {
            "oplists": self.ops,
            "tensorName": self.names,
            "outputName": [value.name for value in self.graph.outputs],
            "sourceType": "ONNX",
            "usage": "INFERENCE",
            **({"subgraphs": [level.described() for level in levels]} if levels else {}),
        }

    def _experts(self) -> dict[Node, _Expert]:
        """The graph of the expert that each node belongs to which stands in one."""
        found: dict[Node, _Expert] = {}
        for node in self.graph.nodes:
            if node.op != MIXTURE:
                continue
            source = source_of(node, ROWS_OF_EXPERTS)
            assert source is not None
            levels = [
                _Expert(self.graph, self.layout, subgraph_name(node.attrs["layer"], number), rows, result)
                for number, (rows, result) in enumerate(zip(source.outputs, node.inputs[2:], strict=True))
            ]
            found.update((inside, levels[number]) for inside, number in nodes_of_experts(source, node).items())
        return found

    def input(self, value: Value) -> None:
        """Write an input."""
        self._op(value.name, "Input", "Input", write_input(value), [], [self._tensor(value)])

    def write(self, node: Node) -> None:
        """Write a node.

        Raises:
            LadingError: B610 an operator without an encoding.
        """
        row = WRITTEN.get(node.op)
        if row is None:
            raise LadingError("B610", f"operator {node.op} has no MNN encoding", where=f"{node.loc}\n{node!r}")
        self._node(node, row)

    def _tensor(self, value: Value) -> int:
        if value not in self.index:
            self.index[value] = len(self.names)
            self.names.append(value.name)
        return self.index[value]

    def _node(self, node: Node, row: MnnOperator) -> None:
        assert row.encode is not None
        main = row.encode(node, self.layout)
        operands = self._mixture(node) if node.op == MIXTURE else node.inputs[: row.tensors]
        inputs = [self._operand(value) for value in operands if value is not None]
        outputs = [self._tensor(value) for value in node.outputs]
        self._op(node.output.name, row.type, row.parameter, main, inputs, outputs, row.format)

    @staticmethod
    def _mixture(node: Node) -> list[Value | None]:
        """What the operator reads: the rows that were handed to the experts, weights and choices."""
        source = source_of(node, ROWS_OF_EXPERTS)
        assert source is not None
        return [source.inputs[0], node.inputs[1], node.inputs[0]]

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


class _Expert(_Net):
    """The graph of an expert, from the rows it is given to what it makes of them."""

    def __init__(self, graph: Graph, layout: Layout, name: str, rows: Value, result: Value | None) -> None:
        super().__init__(graph, layout)
        assert result is not None
        self.name, self.rows, self.result = name, rows, result
        self.input(rows)

    def described(self) -> dict[str, Any]:
        """The ``SubGraphProto``."""
        ends = {"inputs": [self.index[self.rows]], "outputs": [self.index[self.result]]}
        return {"name": self.name, **ends, "tensors": self.names, "nodes": self.ops}


__all__ = ["build_net"]
