"""Put into a graph what a runtime does to activations, and take it out again.

`simulate` works on the stored form of a graph, so that the result is a reference of what the runtime computes: the
stored weights, decoded, times activations quantized as `backends.mnn.dialect.activations` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ir.base.types import I32, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.quant.stored_weight import StoredWeight, storage_of

LINEAR = {"MatMul": -1, "mnn.Convolution": 1}
"""Operators that multiply by a stored weight and the axis of their input that holds the channels."""


def integer_weight(node: Node) -> StoredWeight | None:
    """The weight of a linear layer when it is stored as integers of at most 8 bits, else None."""
    weight = node.input(1) if node.op in LINEAR else None
    if weight is None:
        return None
    found = storage_of(weight, matmul=True)
    return found if found is not None and found.storage.is_integer else None


def simulate(graph: Graph, option: int = 0, joint: Value | None = None) -> list[Node]:
    """Insert ``mnn.DynamicQuantizeRows`` before every linear layer with integer weights; layers on one value share it.

    Args:
        graph: edited in place.
        option: the runtime's ``dynamic_option``, 0 to 2.
        joint: integer vector of one element, the rows that are read in one call; None for all.

    Returns:
        The nodes that were inserted.
    """
    made: dict[tuple[Value, int, int], Node] = {}
    for node in list(graph.nodes):
        weight = integer_weight(node)
        x = node.input(0)
        if weight is None or x is None or _quantizes(x.producer):
            continue
        axis, block = LINEAR[node.op], weight.block if option == 2 else 0
        key = (x, axis, block)
        if key not in made:
            attrs = {"axis": axis, "option": option, "block": block}
            inputs = [x] if joint is None else [x, joint]
            name = f"{x.name}.int8"
            made[key] = graph.add(
                "mnn.DynamicQuantizeRows", inputs, attrs, outputs=[name], types=[x.type], before=node, loc=node.loc
            )
        graph.set_input(node, 0, made[key].output)
    return list(made.values())


@contextmanager
def simulated(graph: Graph, option: int = 0) -> Iterator[Value]:
    """The graph as `simulate` makes it until the block ends; then it is as before.

    Gives the graph input, int32[1], that says how many rows the first call has.
    """
    joint = graph.add_input(graph.fresh_name("joint_rows"), TensorType(I32, (1,)))
    made = simulate(graph, option, joint)
    try:
        yield joint
    finally:
        for node in made:
            graph.replace(node.output, node.operand(0))
            graph.erase(node)
        graph.remove_input(joint)


def _quantizes(node: Node | None) -> bool:
    return node is not None and node.op == "mnn.DynamicQuantizeRows"


__all__ = ["integer_weight", "simulate", "simulated"]
