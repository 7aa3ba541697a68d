"""Choices and loops, whose bodies are graphs that the runtime computes when it comes to them.

"Sweep" stands for choices and loops by conditions that are computed, run on MNN 3.6.1 and 3.4.0 for several sizes and with
conditions that change from one run to the next: results of other sizes or ranks on either side of a choice, floats, integers
and truth values, several results, values of the graph around read by one body, by both or by none, convolutions and
recurrent layers inside, bodies within bodies, results that are read more than once or not at all, and what each step of a
loop gives.
"""

from __future__ import annotations

from collections.abc import Iterable

from backends.mnn.modules.build import numbers
from backends.mnn.modules.table.row import HELD, Right
from ir.base.types import BOOL
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import rank_of
from passes.control.possible_ranks import sides

MOST_NODES = 4096
"""Nodes that a loop may become when its steps are written out."""

PICKING = frozenset({"Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
"""Operators that give elements of what they read."""


def joined_by_known_types(node: Node) -> str | None:
    """What joins the sides to the graph around them is converted by its number of axes."""
    both = sides(node)
    if both is None:
        return "its sides are not two graphs without inputs"
    return _unknown_rank(node, both, ())


def goes_on_by_itself(node: Node) -> str | None:
    """States are converted by their number of axes, which the body has to say."""
    body = node.attrs.get("body")
    if not isinstance(body, Graph) or len(body.inputs) != max(len(node.inputs), 2) or None in node.inputs[2:]:
        return "its body does not take what it is given"
    if len(node.outputs) != len(body.outputs) - 1:
        return "its results are not those of its body"
    if steps_written_out(node) is not None:
        return "its steps are written out"
    if any(value.use_count for value in node.outputs[len(body.inputs) - 2 :]) and not _runs(node):
        return "it may not run at all, and gives what its steps gave"
    return _unknown_rank(node, [body], body.inputs[2:])


def _unknown_rank(node: Node, bodies: Iterable[Graph], joints: Iterable[Value]) -> str | None:
    found = [*joints, *(value for value in node.outputs if value.uses)]
    for body in bodies:
        inside = set(body.graphs())
        read = (value for inner in body.walk() for value in inner.inputs)
        found += [value for value in read if value is not None and value.const is None and value.graph not in inside]
    unknown = next((value for value in found if rank_of(value) is None), None)
    return None if unknown is None else f"the number of axes of %{unknown.name} is not known"


def steps_written_out(node: Node) -> int | None:
    """How often a loop runs that is written out: always as often, and not too often."""
    body, trips, start = node.attrs.get("body"), numbers(node.input(0)), node.input(1)
    if not isinstance(body, Graph) or trips is None or not _goes_on(body):
        return None
    begins = numbers(start)
    if start is not None and (begins is None or not begins.all()):
        return None
    steps = int(trips.reshape(-1)[0])
    return steps if 0 < steps * sum(1 for _ in body.walk()) <= MOST_NODES else None


def _runs(node: Node) -> bool:
    """True for a loop that begins, with a limit that is none, a number above 0 or a size; without a step the runtime dies
    when it is to put together what steps gave."""
    limit, begins = node.input(0), numbers(node.input(1))
    if node.input(1) is not None and (begins is None or not begins.all()):
        return False
    known = numbers(limit)
    return limit is None or (bool((known > 0).all()) if known is not None else _is_size(limit))


def _is_size(value: Value) -> bool:
    while value.producer is not None and value.producer.op in PICKING:
        value = value.producer.operand(0)
    return value.producer is not None and value.producer.op in ("Shape", "Size")


def _goes_on(body: Graph) -> bool:
    """True for a body that never says that the loop is to end."""
    found = body.outputs[0]
    while found.producer is not None and found.producer.op == "Identity":
        found = found.producer.operand(0)
    known = numbers(found)
    return found is body.inputs[1] or (known is not None and bool(known.all()))


ROWS = (
    Right("If", "sweep", (frozenset({BOOL}), HELD), None, joined_by_known_types),
    Right("Loop", "sweep", HELD, None, goes_on_by_itself),
)
"""What is right."""
