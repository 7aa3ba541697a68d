"""Which values share a scale: operands and results of what moves numbers, so that it moves integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ir.facts.activation_ranges import ActivationRange
from ir.graph.graph import Value
from passes.static_quant.operators import Unit
from passes.static_quant.schemes import Scale, Scheme

Range = tuple[float, float]
Place = tuple[Unit, int]
"""An operand of a unit."""


@dataclass
class Layout:
    """Where which scale holds.

    Attributes:
        made: scale of each value that is rounded where it is made, or where its first reader is.
        read: scale that an operand is rounded to anew, for those that do not have that of their value.
    """

    made: dict[Value, Scale] = field(default_factory=dict)
    read: dict[Place, Scale] = field(default_factory=dict)

    def of_operand(self, unit: Unit, place: int, value: Value) -> Scale:
        """The scale of what a unit reads."""
        return self.read.get((unit, place), self.made[value])


class _Groups:
    """Sets of values that share a range, joined step by step."""

    def __init__(self, ranges: Mapping[Value, Range]) -> None:
        self._parent = {value: value for value in ranges}
        self._range = dict(ranges)

    def of(self, value: Value) -> Value:
        """The value that stands for a set."""
        while self._parent[value] is not value:
            self._parent[value] = self._parent[self._parent[value]]
            value = self._parent[value]
        return value

    def range(self, value: Value) -> Range:
        """The range of a value's set."""
        return self._range[self.of(value)]

    def join(self, one: Value, other: Value, found: Range) -> None:
        """Make two sets one, with a range."""
        a, b = self.of(one), self.of(other)
        self._parent[b] = a
        self._range[a] = found


def lay_out(units: Sequence[Unit], ranges: Mapping[str, ActivationRange], scheme: Scheme, widest: float) -> Layout:
    """Scales for everything that some units read and make.

    Args:
        units: what computes in integers, in program order.
        ranges: observed ranges by name; every activation of the units has one.
        scheme: how a range becomes a scale.
        widest: times by which the range of a value may be widened so that it shares a scale; beyond that it is rounded
            anew where it is read.
    """
    own = {value: _range_of(value, ranges) for unit in units for value in _values(unit)}
    groups = _Groups(own)
    apart: dict[Place, Value] = {}
    for unit in units:
        if unit.row.kind == "passing":
            _share(unit, groups, widest, apart)
    layout = Layout()
    for value in own:
        layout.made[value] = scheme.of_range(*groups.range(value))
    for place, result in apart.items():
        layout.read[place] = scheme.of_range(*groups.range(result))
    return layout


def _values(unit: Unit) -> list[Value]:
    return [*(value for _, value in unit.operands()), *unit.results]


def _range_of(value: Value, ranges: Mapping[str, ActivationRange]) -> Range:
    if value.const is not None:
        array = value.const.load()
        return (float(min(array.min(), 0)), float(max(array.max(), 0))) if array.size else (0.0, 0.0)
    found = ranges[value.name]
    return found.low, found.high


def _share(unit: Unit, groups: _Groups, widest: float, apart: dict[Place, Value]) -> None:
    """Give operands and results of a unit one range."""
    operands = unit.operands()
    results = list(unit.head.outputs)
    if len(operands) == 1:
        # What comes out lies in the range of what goes in.
        for result in results:
            groups.join(operands[0][1], result, groups.range(operands[0][1]))
        return
    whole = _union([groups.range(value) for _, value in operands])
    groups.join(results[0], results[0], whole)
    for place, value in operands:
        if _wider(groups.range(value), whole) <= widest:
            groups.join(results[0], value, whole)
        else:
            apart[unit, place] = results[0]


def _union(ranges: Sequence[Range]) -> Range:
    lows, highs = zip(*ranges, strict=True)
    return min(0.0, *lows), max(0.0, *highs)


def _wider(mine: Range, whole: Range) -> float:
    """How many times coarser the scale of a range is for another one."""
    length = mine[1] - mine[0]
    return (whole[1] - whole[0]) / length if length > 0 else (1.0 if np.ptp(whole) == 0 else np.inf)


__all__ = ["Layout", "lay_out"]
