"""Graphs of older versions of ONNX's operators as graphs of a newer one."""

from __future__ import annotations

from dataclasses import dataclass

from ir.graph.graph import OPSET, Graph
from ir.ops.opset import ONNX, told, upgrade
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.framework.options import option


@dataclass(frozen=True)
class UpgradeOpset(Pass):
    """Bring a graph to a newer version of ONNX's operators, so that newer operators can be used in it.

    The graph stays as it is, with a warning, where an operator has no form in the new version.
    """

    name = "upgrade-opset"

    to: int = option(OPSET, help="version of ONNX's operators", low=7, high=OPSET)

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        now = graph.opsets.get(ONNX)
        blockers = upgrade(graph, self.to)
        if blockers:
            message = f"the graph stays at opset {now}: {told(blockers)} cannot be brought to opset {self.to}"
            ctx.warn("P324", message, graph.name)
        return None
