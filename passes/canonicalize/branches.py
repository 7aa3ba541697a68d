"""Conditions that are known: what was one of two branches stands where the choice was."""

from __future__ import annotations

from ir.base.types import TensorType
from ir.graph.copy import add_again
from ir.graph.graph import Graph, Node, Value


def take_branches(graph: Graph) -> list[Node]:
    """Put the nodes of the chosen branch in the place of every If whose condition is a constant, in the bodies of a graph
    too; the new nodes."""
    made: list[Node] = []
    for node in list(graph.nodes):
        branch = _chosen(node) if node.op == "If" else None
        if branch is not None:
            made += _take(graph, node, branch)
        else:
            made += [inner for body in node.subgraphs for inner in take_branches(body)]
    return made


def _chosen(node: Node) -> Graph | None:
    """The branch that is taken whenever the node runs; None where that is not known."""
    condition = node.input(0)
    if condition is None or condition.const is None or condition.tensor.type.size != 1:
        return None
    branches = [node.attrs.get(name) for name in ("else_branch", "then_branch")]
    if any(not isinstance(one, Graph) or one.inputs or len(one.outputs) != len(node.outputs) for one in branches):
        return None
    chosen = branches[bool(condition.tensor.load().all())]
    return chosen if isinstance(chosen, Graph) else None


class _Known(dict[Value, Value]):
    """Values that stand for those of a branch; those of the graphs around it stand for themselves."""

    def __missing__(self, value: Value) -> Value:
        return value


def _take(graph: Graph, node: Node, branch: Graph) -> list[Node]:
    known = _Known()
    for value in branch.consts.values():
        known[value] = graph.add_const(value.name, value.tensor, value.loc)
    made = [add_again(inner, graph, known, before=node) for inner in branch.nodes]
    fresh, taken = set(made), set[Value]()
    names: list[tuple[Value, str]] = []
    for old, result in zip(node.outputs, branch.outputs, strict=True):
        new = known[result]
        if new.producer not in fresh or new in taken:
            copy = graph.add("Identity", [new], types=[new.type], before=node, loc=node.loc)
            made.append(copy)
            new = copy.output
        taken.add(new)
        if not isinstance(new.type, TensorType) or new.type.shape is None:
            graph.set_type(new, old.type)
        graph.replace(old, new)
        names.append((new, old.name))
    condition = node.operand(0)
    graph.erase(node)
    if not condition.use_count:
        condition.graph.erase_const(condition)
    for value, name in names:
        graph.rename(value, name)
    named = {value for value, _ in names}
    for old, new in known.items():
        if new not in named and new.name != old.name and not graph.has(old.name):
            graph.rename(new, old.name)
    return made


__all__ = ["take_branches"]
