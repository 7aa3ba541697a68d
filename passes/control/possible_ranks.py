"""Numbers of axes that values may have: what operators can give, and what those behind them can take.

Some operators take operands of one number of axes alone, and a runtime fails on others (ONNX's reference of LSTM: "the
input sequences packed into one 3-D tensor"; onnxruntime checks it). Wherever such an operator runs, what it reads
had that number of axes, and so had, some axes more or fewer, what that was made from.
"""

from __future__ import annotations

from ir.base.types import TensorType
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import has_trait

Ranks = frozenset[int] | None
"""Possible numbers of axes; None where any is."""

RECURRENT = {0: 3, 1: 3, 2: 3, 3: 2, 4: 1, 5: 3, 6: 3, 7: 2}
TAKEN = {"LSTM": RECURRENT, "GRU": RECURRENT, "RNN": RECURRENT}
"""Numbers of axes that operators take, by the place of the operand."""

WEIGHED = frozenset({"Conv", "ConvTranspose"})
"""Operators that take as many axes as their weights have."""

SAME = frozenset({"Identity", "Cast", "Softmax", "LogSoftmax", "Dropout"})
"""Operators of a result with as many axes as their first operand, besides those that work on each element."""

DEEPEST = 64
"""How far what is taken is followed."""


def meet(first: Ranks, second: Ranks) -> Ranks:
    """What both allow."""
    if first is None or second is None:
        return first if second is None else second
    return first & second


class PossibleRanks:
    """Possible numbers of axes of the values of one graph, as it stands; what is not known is any number."""

    def __init__(self) -> None:
        self._given: dict[Value, Ranks] = {}
        self._taken: dict[Value, Ranks] = {}

    def given(self, value: Value, depth: int = DEEPEST) -> Ranks:
        """Numbers of axes that a value may be made with."""
        if value not in self._given:
            self._given[value] = self._made(value, depth - 1) if depth else _recorded(value)
        return self._given[value]

    def taken(self, value: Value, depth: int = DEEPEST) -> Ranks:
        """Numbers of axes of a value with which no operator fails that runs whenever it is made."""
        if value not in self._taken:
            found: Ranks = None
            for node, place in value.uses if depth else ():
                if node.graph is value.graph:
                    found = meet(found, self._taken_by(node, place, depth - 1))
            self._taken[value] = found
        return self._taken[value]

    def _made(self, value: Value, depth: int) -> Ranks:
        node = value.producer
        step = _step(node) if node is not None else None
        if node is None or node.graph is None:
            return _recorded(value)
        if step is not None:
            found = self.given(node.operand(0), depth)
            return frozenset(step + rank for rank in found if step + rank >= 0) if found is not None else None
        if node.op == "If":
            return self._either(node, node.outputs.index(value), depth)
        return _recorded(value)

    def _either(self, node: Node, place: int, depth: int) -> Ranks:
        found: frozenset[int] = frozenset()
        for side in sides(node) or (None,):
            one = self.given(side.outputs[place], depth) if side is not None else None
            if one is None:
                return None
            found |= one
        return found

    def _taken_by(self, node: Node, place: int, depth: int) -> Ranks:
        only = TAKEN.get(node.op, {}).get(place)
        if only is not None:
            return frozenset({only})
        if node.op in WEIGHED and place == 0 and len(node.inputs) > 1:
            return _recorded(node.operand(1))
        if node.op == "Concat":
            found = self.taken(node.output, depth)
            for other in node.inputs:
                found = meet(found, _recorded(other) if other is not None else None)
            return found
        step = _step(node) if place == 0 else None
        found = self.taken(node.output, depth) if step is not None else None
        return None if found is None or step is None else frozenset(rank - step for rank in found if rank >= step)


def sides(node: Node) -> tuple[Graph, Graph] | None:
    """Both graphs of a choice, that of a true condition first; None where they are not two graphs of as many results."""
    found = [node.attrs.get(name) for name in ("then_branch", "else_branch")]
    then, other = (item if isinstance(item, Graph) else None for item in found)
    if then is None or other is None or then.inputs or other.inputs:
        return None
    return (then, other) if len(then.outputs) == len(other.outputs) == len(node.outputs) else None


def _recorded(value: Value) -> Ranks:
    found = value.type.rank if isinstance(value.type, TensorType) else None
    return None if found is None else frozenset({found})


def _step(node: Node | None) -> int | None:
    """How many axes more than its first operand the result of a node has; None where that is not known."""
    if node is None or not node.inputs or node.inputs[0] is None or len(node.outputs) != 1:
        return None
    if node.op in ("Unsqueeze", "Squeeze"):
        axes = node.input(1)
        if axes is None or axes.const is None:
            return None
        count = int(axes.tensor.type.size or 0)
        return count if node.op == "Unsqueeze" else -count
    one = len(node.inputs) == 1 and has_trait(node, "elementwise")
    return 0 if node.op in SAME or one else None


__all__ = ["PossibleRanks", "Ranks", "meet", "sides"]
