"""Choices between two graphs, of which the runtime computes the one that is chosen.

"Sweep" stands for choices by a condition that is computed, run on MNN 3.6.1 and 3.4.0 for several sizes and with conditions
that change from one run to the next: results of other sizes or ranks on either side, floats, integers and truth values,
several results, values of the graph around them read on one side, on both or on none, convolutions and recurrent layers inside,
choices within choices, and results that are read more than once or not at all.
"""

from __future__ import annotations

from backends.mnn.modules.table.row import HELD, Right
from ir.base.types import BOOL
from ir.graph.graph import Node
from ir.ops.registry import rank_of
from passes.choices.possible_ranks import sides


def joined_by_known_types(node: Node) -> str | None:
    """What joins the sides to the graph around them is converted by its number of axes."""
    both = sides(node)
    if both is None:
        return "its sides are not two graphs without inputs"
    joints = [value for value in node.outputs if value.uses]
    for side in both:
        inside = set(side.graphs())
        read = (value for inner in side.walk() for value in inner.inputs)
        joints += [value for value in read if value is not None and value.const is None and value.graph not in inside]
    unknown = next((value for value in joints if rank_of(value) is None), None)
    return None if unknown is None else f"the number of axes of %{unknown.name} is not known"


ROWS = (Right("If", "sweep", (frozenset({BOOL}), HELD), None, joined_by_known_types),)
"""What is right."""
