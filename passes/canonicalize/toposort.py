"""Program order: every node after what it reads."""

from __future__ import annotations

from dataclasses import dataclass

from ir.graph.graph import Graph
from ir.graph.order import toposort
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext


@dataclass(frozen=True)
class SortNodes(Pass):
    """Order nodes so that each follows its producers, moving as few as possible.

    Subgraphs are ordered too. A graph whose order is right already stays as it is.
    """

    name = "toposort"

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        inner = [sub for node in graph.walk() for sub in node.subgraphs]
        return {"reordered": sum(toposort(one) for one in (graph, *inner))}
