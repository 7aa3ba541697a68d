"""Removal of what nothing reads."""

from __future__ import annotations

from dataclasses import dataclass

from ir.graph.graph import Graph, Node
from ir.ops.registry import ANY, opdef
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.framework.options import option


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove nodes and constants that nothing reads, and trailing optional outputs of nodes that nothing reads.

    Declared inputs stay unless asked otherwise, since callers feed them. What the runtime reads outside the graph
    (outputs, tables) is alive. Subgraphs are cleaned too.
    """

    name = "dce"

    inputs: bool = option(False, help="also remove graph inputs that nothing reads")

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        counts = {"nodes": 0, "outputs": 0, "constants": 0, "inputs": 0}
        _sweep(graph, counts)
        for one in graph.graphs():
            for value in list(one.consts.values()):
                if not value.use_count:
                    one.erase_const(value)
                    counts["constants"] += 1
        if self.inputs:
            for value in graph.inputs:
                if not value.use_count:
                    graph.remove_input(value)
                    counts["inputs"] += 1
        return {key: count for key, count in counts.items() if count}


def _sweep(graph: Graph, counts: dict[str, int]) -> None:
    """Erase dead nodes, readers before producers, so that one sweep is enough."""
    for node in reversed(graph.nodes):
        used = [bool(value.use_count) for value in node.outputs]
        if not any(used) and node.outputs and _may_go(node):
            counts["nodes"] += 1 + sum(1 for sub in node.subgraphs for _ in sub.walk())
            graph.erase(node)
            continue
        for sub in node.subgraphs:
            _sweep(sub, counts)
        if used and not used[-1]:
            counts["outputs"] += _trim(graph, node, used)


def _may_go(node: Node) -> bool:
    definition = opdef(node)
    return definition is None or not definition.has("stateful")


def _trim(graph: Graph, node: Node, used: list[bool]) -> int:
    """Drop the unused optional outputs at the end of a node; returns how many."""
    definition = opdef(node)
    if definition is None or definition.max_outputs == ANY or node.subgraphs:
        return 0
    last = max((index for index, read in enumerate(used) if read), default=-1)
    keep = max(last + 1, definition.min_outputs, 1)
    if keep >= len(used):
        return 0
    kept = node.outputs[:keep]
    types = [value.type for value in kept]
    twin = graph.add(
        node.op, node.inputs, node.attrs, outputs=("",) * keep, types=types, before=node, name=node.name, loc=node.loc
    )
    twin.metadata.update(node.metadata)
    names = [value.name for value in kept]
    for old, new in zip(kept, twin.outputs, strict=True):
        graph.replace(old, new)
        graph.set_loc(new, old.loc)
    graph.erase(node)
    for value, name in zip(twin.outputs, names, strict=True):
        graph.rename(value, name)
    return len(used) - keep
