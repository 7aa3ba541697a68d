"""Borders between floats and 8-bit integers, as a minimum cut.

Each unit is on one side. Computing a product in integers gains time in proportion to its multiplications; what computes
with single elements loses some, since it takes them apart and rounds them again; a value that goes over the border is
converted, which moves its bytes. The cut of least capacity says for which units the conversions are worth it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ir.facts.activation_ranges import ActivationRange
from ir.graph.graph import Graph, Node, Value
from ir.graph.view import dataflow
from passes.static_quant.operators import Unit

if TYPE_CHECKING:
    import networkx as nx

CONVERTED = 5
"""Bytes that are moved when an element is converted: four on one side, one on the other."""
FLOATS, INTEGERS = "floats", "integers"
"""The terminals of the cut."""


@dataclass(frozen=True)
class Prices:
    """What computing costs, in bytes moved.

    Attributes:
        products: multiplications of numbers that take as long in floats as moving a byte, beyond what they take in integers.
        elements: bytes whose moving takes as long as what integers cost beyond floats for each element that is not the
            result of a product or moved.
    """

    products: float
    elements: float


def settled(
    graph: Graph, units: Sequence[Unit], floats: Iterable[Unit], ranges: Mapping[str, ActivationRange], prices: Prices
) -> set[Unit]:
    """The units that are better computed in integers.

    Args:
        graph: the graph.
        units: what could be, in program order.
        floats: those that have to stay in floats.
        ranges: by name, with the elements of each value.
        prices: see `Prices`.
    """
    if not units:
        return set()
    import networkx as nx

    network = _network(graph, units, set(floats), ranges, prices)
    _, (floating, _) = nx.minimum_cut(network, FLOATS, INTEGERS)
    return {unit for unit in units if unit not in floating}


def _network(
    graph: Graph, units: Sequence[Unit], floats: set[Unit], ranges: Mapping[str, ActivationRange], prices: Prices
) -> nx.DiGraph:
    """The network whose cuts are the ways to divide the units; capacities are whole bytes, edges without one are never cut.

    A value stands twice in it: on the way to readers in integers, and on the way from readers in floats. So it is
    converted once, however many readers are on the other side.
    """
    import networkx as nx

    network = nx.DiGraph()
    network.add_nodes_from((FLOATS, INTEGERS))
    owners: dict[Node, Unit] = {node: unit for unit in units for node in unit.nodes}
    for unit in units:
        if unit in floats:
            network.add_edge(FLOATS, unit)
        gain = _gain(unit, ranges, prices)
        if gain > 0:
            network.add_edge(unit, INTEGERS, capacity=gain)
        elif gain < 0 and unit not in floats:
            network.add_edge(FLOATS, unit, capacity=-gain)
    flow = dataflow(graph)
    for value in _between(units):
        made = owners.get(value.producer) if value.producer is not None else None
        readers = {owners.get(node) for node in flow.successors(value)}
        if value.is_output:
            readers.add(None)
        _price(network, value, made, readers - {made}, CONVERTED * _elements(value, ranges))
    return network


def _price(network: nx.DiGraph, value: Value, made: Unit | None, readers: set[Unit | None], cost: int) -> None:
    """Put the price of converting a value into the network; None stands for what is always in floats."""
    origin = made if made is not None else FLOATS
    down, up = ("to integers", value), ("to floats", value)
    inside = [reader for reader in readers if reader is not None]
    if inside:
        network.add_edge(origin, down, capacity=cost)
        network.add_edges_from((down, reader) for reader in inside)
    if made is None or (made.row.floats_free and value is made.result):
        return
    network.add_edge(up, made, capacity=cost)
    network.add_edges_from((reader, up) for reader in inside)
    if None in readers:
        network.add_edge(FLOATS, up)


def _between(units: Sequence[Unit]) -> list[Value]:
    """What units read and make, without what lies inside of them and without constants."""
    found: dict[Value, None] = {}
    for unit in units:
        for _, value in unit.operands():
            if value.const is None:
                found[value] = None
        for value in unit.results:
            found[value] = None
    return list(found)


def _elements(value: Value, ranges: Mapping[str, ActivationRange]) -> int:
    found = ranges.get(value.name)
    return found.elements if found is not None else 1


def _gain(unit: Unit, ranges: Mapping[str, ActivationRange], prices: Prices) -> int:
    """Bytes whose moving takes as long as integers save, or less than nothing where they cost more."""
    elements = _elements(unit.results[0], ranges)
    if unit.is_product:
        return int(elements * unit.products_per_output() / prices.products) + 1
    return -int(elements * prices.elements) if unit.row.kind == "arithmetic" else 0


__all__ = ["Prices", "settled"]
