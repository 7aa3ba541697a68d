"""Shape arithmetic of MNN graphs, done while reading: exporters compute the sizes of reshapes with operators.

`Ints` stands for a small integer tensor whose elements are known, where a size that only the run decides is a `Dim`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ir.base.types import Dim

Size = int | Dim | None
"""A known number, a size of the run, or unknown."""


@dataclass(frozen=True)
class Ints:
    """Elements of an integer tensor of rank 0 or 1; `scalar` when it has no axes."""

    items: tuple[Size, ...]
    scalar: bool = False

    @property
    def known(self) -> tuple[int, ...] | None:
        """The elements when all are plain numbers."""
        return self.items if all(type(item) is int for item in self.items) else None  # type: ignore[return-value]


def _divide(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "ADD": lambda a, b: a + b,
    "SUB": lambda a, b: a - b,
    "MUL": lambda a, b: a * b,
    "REALDIV": _divide,
    "FLOORDIV": lambda a, b: a // b,
    "MOD": lambda a, b: a % b,
    "FLOORMOD": lambda a, b: a % b,
    "MAXIMUM": max,
    "MINIMUM": min,
}


def evaluate(kind: str, main: Mapping[str, Any], operands: Sequence[Ints]) -> Ints | None:
    """The result of an operator on known integers, or None when it is not one that shapes are made with."""
    rule = _RULES.get(kind)
    if rule is None:
        return None
    try:
        return rule(main, operands)
    except (IndexError, ZeroDivisionError, ValueError):
        return None


def _binary(main: Mapping[str, Any], operands: Sequence[Ints]) -> Ints | None:
    operation, (left, right) = _ARITHMETIC.get(main.get("opType", "ADD")), operands
    if operation is None:
        return None
    count = max(len(left.items), len(right.items))
    pairs = zip(left.items * (count // len(left.items)), right.items * (count // len(right.items)), strict=True)
    items = tuple(operation(a, b) if type(a) is int and type(b) is int else None for a, b in pairs)
    return Ints(items, left.scalar and right.scalar)


def _gather(main: Mapping[str, Any], operands: Sequence[Ints]) -> Ints | None:
    places = operands[1].known
    if places is None:
        return None
    return Ints(tuple(operands[0].items[place] for place in places), operands[1].scalar)


def _strided_slice(main: Mapping[str, Any], operands: Sequence[Ints]) -> Ints | None:
    bounds = [item.known for item in operands[1:]]
    if any(bound is None or len(bound) != 1 for bound in bounds) or main.get("beginMask") or main.get("endMask"):
        return None
    begin, end = bounds[0][0], bounds[1][0]  # type: ignore[index]
    step = bounds[-1][0] if len(bounds) in (3, 4) and (main.get("fromType") == 0 or len(bounds) == 4) else 1  # type: ignore[index]
    items = operands[0].items[begin : min(end, 1 << 30) : step]
    return Ints(items, bool(main.get("shrinkAxisMask")))


def _concat(main: Mapping[str, Any], operands: Sequence[Ints]) -> Ints:
    return Ints(tuple(item for operand in operands for item in operand.items))


def _unsqueeze(main: Mapping[str, Any], operands: Sequence[Ints]) -> Ints | None:
    return Ints(operands[0].items) if operands[0].scalar else None


def _squeeze(main: Mapping[str, Any], operands: Sequence[Ints]) -> Ints | None:
    return Ints(operands[0].items, True) if len(operands[0].items) == 1 else None


def _shape(main: Mapping[str, Any], operands: Sequence[Ints]) -> Ints:
    return Ints(() if operands[0].scalar else (len(operands[0].items),))


def _rank(main: Mapping[str, Any], operands: Sequence[Ints]) -> Ints:
    return Ints((0 if operands[0].scalar else 1,), True)


def _same(main: Mapping[str, Any], operands: Sequence[Ints]) -> Ints:
    return operands[0]


_RULES: dict[str, Callable[[Mapping[str, Any], Sequence[Ints]], Ints | None]] = {
    "BinaryOp": _binary,
    "GatherV2": _gather,
    "StridedSlice": _strided_slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Shape": _shape,
    "Rank": _rank,
    "Cast": _same,
    "Identity": _same,
}


def resolve_sizes(shape: Sequence[int | Dim], wanted: Sequence[Size]) -> tuple[int | Dim, ...] | None:
    """The shape that a reshape of `shape` to `wanted` gives: zeros copied and -1 worked out; None when it cannot be
    told."""
    if any(size is None for size in wanted):
        return None
    sizes = [shape[place] if size == 0 and place < len(shape) else size for place, size in enumerate(wanted)]
    if -1 not in sizes:
        return tuple(sizes)  # type: ignore[arg-type]
    known = [size for size in sizes if size != -1]
    left = Counter(size for size in shape if isinstance(size, Dim))
    left.subtract(Counter(size for size in known if isinstance(size, Dim)))
    if any(count < 0 for count in left.values()):
        return None
    dims = list(left.elements())
    above = prod(size for size in shape if type(size) is int)
    below = prod(size for size in known if type(size) is int)
    if not below or above % below or len(dims) > 1 or (dims and above != below):
        return None
    rest = dims[0] if dims else above // below
    return tuple(rest if size == -1 else size for size in sizes)  # type: ignore[arg-type]
