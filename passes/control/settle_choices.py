"""Choices of which one side alone fits what comes behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ir.base.types import TensorType
from ir.graph.graph import Graph, Node
from ir.tensor.inline import InlineTensor
from passes.canonicalize.fold import Fold
from passes.canonicalize.infer_types import typed
from passes.control.possible_ranks import PossibleRanks, Ranks, meet, sides
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext


@dataclass(frozen=True)
class SettleChoices(Pass):
    """Take the branch of a choice whose other branch cannot be meant, by the number of axes of its results.

    Exporters write a choice for what depended on sizes while a model was traced: an axis is dropped when its size is 1. The
    results of the branches then differ in their number of axes, and operators behind, such as recurrent layers and
    convolutions, take one number alone. Where all results of one branch would make such an operator fail that runs whenever
    the choice is made, the model works with the other branch only. That one is taken, with the warning P392: for an input
    with which the model fails, the compiled one may not.
    """

    name = "settle-choices"
    requires = ("typed",)

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        settled: list[str] = []
        while found := _settled(graph):
            settled += found
            Fold().run(graph, ctx)
            typed(graph)
            Fold().run(graph, ctx)
        if not settled:
            return None
        count = "1 choice of the model is" if len(settled) == 1 else f"{len(settled)} choices of the model are"
        message = f"{count} settled: for inputs that choose otherwise the model fails, and the compiled one may not"
        ctx.warn("P392", message, "\n".join(settled), "in the application, feed sizes that the model takes")
        return {"settled": len(settled)}


def _settled(graph: Graph) -> list[str]:
    """Make the conditions constants of which only one value can be meant; what was found, a line for each."""
    ranks = PossibleRanks()
    found: list[str] = []
    for node in [node for node in graph.walk() if node.op == "If"]:
        condition = node.input(0)
        both = sides(node)
        if both is None or condition is None or condition.const is not None:
            continue
        misfits = [_misfit(node, side, ranks) for side in both]
        wrong = [text for text in misfits if text is not None]
        if len(wrong) != 1:
            continue
        _decide(node, misfits[0] is None)
        name = "then_branch" if misfits[0] is not None else "else_branch"
        found.append(f"{node.name or node.outputs[0].name}: its {name} {wrong[0]}")
    return found


def _misfit(node: Node, side: Graph, ranks: PossibleRanks) -> str | None:
    """Why a side of a choice cannot be meant; None when it can."""
    for result, value in zip(node.outputs, side.outputs, strict=True):
        given, taken = ranks.given(value), ranks.taken(result)
        if given is not None and taken is not None and not meet(given, taken):
            return f"gives {_axes(given)}, and {_axes(taken)} can be read"
    return None


def _axes(ranks: Ranks) -> str:
    words = [str(rank) for rank in sorted(ranks or ())] or ["no number of"]
    return " or ".join(words) + (" axis" if words == ["1"] else " axes")


def _decide(node: Node, taken: bool) -> None:
    """Make the condition of a choice a constant wherever it is read in the graph of the choice and inside."""
    graph, condition = node.home, node.operand(0)
    shape = condition.shape if isinstance(condition.type, TensorType) else None
    sizes = tuple(1 for _ in shape or ())
    known = graph.add_const(f"{condition.name}.known", InlineTensor(np.full(sizes, taken)), condition.loc)
    inside = set(graph.graphs())
    for reader, place in condition.uses:
        if reader.graph in inside:
            reader.home.set_input(reader, place, known)


__all__ = ["SettleChoices"]
