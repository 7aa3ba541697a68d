"""Choices between two graphs, of which the runtime computes the one that is chosen.

"Sweep" stands for choices by a condition that is computed, run on MNN 3.6.1 and 3.4.0 for several sizes and with conditions
that change from one run to the next: results of other sizes or ranks on either side, floats, integers and truth values,
several results, values of the graph around them read on one side or on both, convolutions and recurrent layers inside,
choices within choices, and results that are read more than once or not at all.
"""

from __future__ import annotations

from backends.mnn.modules.table.row import HELD, Right
from ir.base.types import BOOL
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import rank_of


def both_sides_work(node: Node) -> str | None:
    """The runtime gives nothing for a result that a side hands on, and dies in a side that reads nothing from outside.
    What joins the sides to the graph around them is converted by its number of axes."""
    for name in ("then_branch", "else_branch"):
        side = node.attrs.get(name)
        if not isinstance(side, Graph) or side.inputs:
            return f"its {name} is no graph without inputs"
        made = {value for inner in side.nodes for value in inner.outputs}
        if len(set(side.outputs)) != len(side.outputs) or not made.issuperset(side.outputs):
            return f"a result of its {name} is not made by a node of its own"
        read = _read_from_outside(side)
        if not read:
            return f"its {name} reads nothing that is computed outside"
        joints = [*read, *(value for value in node.outputs if value.uses)]
        open_rank = next((value for value in joints if rank_of(value) is None), None)
        if open_rank is not None:
            return f"the number of axes of %{open_rank.name} is not known"
    return None


def _read_from_outside(side: Graph) -> list[Value]:
    inside = set(side.graphs())
    read = (value for inner in side.walk() for value in inner.inputs)
    return [value for value in read if value is not None and value.const is None and value.graph not in inside]


ROWS = (Right("If", "sweep", (frozenset({BOOL}), HELD), None, both_sides_work),)
"""What is right."""
