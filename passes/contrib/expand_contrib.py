"""The pass that expands operators which exporters and onnxruntime add to ONNX's."""

from __future__ import annotations

from dataclasses import dataclass

from ir.graph.describe import describe
from ir.graph.graph import Graph
from ir.ops.registry import schema_of
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext

LATEST = 1 << 20
"""Above every version of ONNX's operators."""


@dataclass(frozen=True)
class ExpandContrib(Pass):
    """Write operators that exporters and onnxruntime add to ONNX's in terms of those.

    Quantized weights become blocked dequantizations of constants, with codes and scales as they are. What has no
    equivalent stays, with one warning for each operator.
    """

    name = "expand-contrib"
    requires = ("typed",)

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        # The rules take long to import.
        if not any("." in node.op or schema_of("", node.op, LATEST) is None for node in graph.walk()):
            return None
        from passes.contrib.building import MOST_SHOWN, Left
        from passes.contrib.table import EXPANSIONS

        left = Left()
        counts = ctx.rewrite(graph, EXPANSIONS, env=left)
        for op, nodes in left.nodes.items():
            present = {node: reason for node, reason in nodes.items() if node.graph is not None}
            reasons = list(dict.fromkeys(present.values()))
            if reasons:
                shown = "; ".join(reasons[:MOST_SHOWN]) + ("; ..." if len(reasons) > MOST_SHOWN else "")
                what = f"{len(present)} nodes of {op} stay" if len(present) > 1 else f"a node of {op} stays"
                ctx.warn("P325", f"{what}: {shown}", describe(next(iter(present))))
        return counts
