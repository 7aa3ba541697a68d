"""Weights of mixtures of experts: which place each has in which expert, and which choose the experts."""

from __future__ import annotations

from dataclasses import dataclass

from ir.base.types import Dim
from ir.dialects.experts import COMBINE, DISPATCH
from ir.graph.graph import Graph, Node, Value


@dataclass(frozen=True)
class Seat:
    """The place of a weight in an expert.

    Attributes:
        group: names the weights that have this place in the experts of a mixture.
        expert: number of the expert.
        share: share of the tokens that an expert sees on average.
    """

    group: str
    expert: int
    share: float


def seats_of(graph: Graph) -> dict[Value, Seat]:
    """The places of the constants that experts multiply their rows by."""
    found: dict[Value, Seat] = {}
    for node in graph.nodes:
        if node.op == DISPATCH:
            share = _share(node)
            for expert, rows in enumerate(node.outputs):
                for place, weight in enumerate(_weights_behind(rows)):
                    found.setdefault(weight, Seat(f"{node.output.name} {place}", expert, share))
    return found


def _share(dispatch: Node) -> float:
    shape = dispatch.operand(1).shape
    best = shape[2] if shape is not None and len(shape) == 3 else None
    return 1.0 if best is None or isinstance(best, Dim) else min(1.0, best / len(dispatch.outputs))


def _weights_behind(rows: Value) -> list[Value]:
    """Constants that rows, and what becomes of them before they are added up, are multiplied by; in program order of the
    first path."""
    found: dict[Value, None] = {}
    seen: set[Node] = set()
    waiting = [rows]
    for value in waiting:
        for user, index in value.uses:
            if user.op in (COMBINE, DISPATCH) or user in seen:
                continue
            seen.add(user)
            weight = user.input(1)
            if user.op == "MatMul" and index == 0 and weight is not None and weight.is_const:
                found[weight] = None
            waiting.extend(user.outputs)
    return list(found)


def routers_of(graph: Graph) -> set[Value]:
    """Constants whose products the choices of experts are made of."""
    found: set[Value] = set()
    seen: set[Node] = set()
    waiting = [node.operand(1) for node in graph.nodes if node.op == DISPATCH]
    while waiting:
        node = waiting.pop().producer
        if node is None or node in seen:
            continue
        seen.add(node)
        weight = node.input(1)
        if node.op == "MatMul" and weight is not None and weight.is_const:
            found.add(weight)
        else:
            waiting += [value for value in node.inputs if value is not None]
    return found


__all__ = ["Seat", "routers_of", "seats_of"]
