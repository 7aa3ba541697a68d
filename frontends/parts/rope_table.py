"""The nodes of a rope: cos and sin of every position.

A table that depends on the length of the sequence (see `frontends.parts.rope`) is computed from the largest position of
the call. With a key/value cache old keys keep the rotation they were stored with, as in the reference implementation.
"""

from __future__ import annotations

import re

from frontends.parts.builder import Builder
from frontends.parts.rope import RopeTable, Stretch, Switch, table
from ir.base.types import BOOL, F32
from ir.graph.graph import Value

COLUMN = "rope.column"


def rope_table(b: Builder, name: str, width: int) -> tuple[Value, Value]:
    """cos and sin of a rope for heads of a width, f32[1, seq, turned / 2] each; made once."""
    found = b.tables.get((name, width))
    if found is None:
        title = "rope" if not b.tables else f"rope.{re.sub('[^A-Za-z0-9]', '_', name)}_{width}"
        found = b.tables[name, width] = _Nodes(b, title, name, width).build()
    return found


class _Nodes:
    """The nodes of one rope."""

    def __init__(self, b: Builder, title: str, name: str, width: int) -> None:
        self.b = b
        self.title = title
        self.rope = b.ropes[name, width]

    def build(self) -> tuple[Value, Value]:
        b, ropes = self.b, table(self.rope)
        column = self._column()
        shape = b.rows(self.rope.width // 2)
        angles = b.add("Mul", [column, self._frequencies(ropes, column)], f"{self.title}.angles", shape)
        found = []
        for op in ("Cos", "Sin"):
            wave = b.add(op, [angles], f"{self.title}.{op.lower()}", shape)
            found.append(b.times(wave, ropes.attention_factor, f"{self.title}.attention_factor"))
        return found[0], found[1]

    def _column(self) -> Value:
        """The positions as f32[1, seq, 1], shared by all ropes."""
        b = self.b
        if COLUMN not in b.made:
            real = b.add("Cast", [b.positions], "rope.positions", (1, b.seq), {"to": F32.onnx})
            b.made[COLUMN] = b.add("Unsqueeze", [real, b.ints("axis_2", 2)], COLUMN, (1, b.seq, 1))
        return b.made[COLUMN]

    def _setting(self, name: str, value: object) -> Value:
        return self.b.setting(f"{self.title}.{name}", value)  # type: ignore[arg-type]

    def _frequencies(self, ropes: RopeTable, column: Value) -> Value:
        """The frequencies: a constant f32[n/2], or f32[1, 1, n/2] computed from the largest position."""
        base = self._setting("inv_freq", ropes.inv_freq)
        variant = ropes.variant
        if variant is None or self.b.context <= variant.limit:
            return base
        axis = self.b.ints("axis_1", 1)
        last = self.b.add("ReduceMax", [column, axis], f"{self.title}.last", (1, 1, 1), {"keepdims": 1})
        if isinstance(variant, Switch):
            return self._switched(base, variant, last)
        return self._stretched(base, variant, last)

    def _switched(self, base: Value, variant: Switch, last: Value) -> Value:
        """The other frequencies when the sequence (last position + 1) is longer than the threshold."""
        shape = (1, 1, self.rope.width // 2)
        bound = self._setting("threshold", variant.limit - 1)
        longer = self.b.add("Greater", [last, bound], f"{self.title}.longer", (1, 1, 1), dtype=BOOL)
        other = self._setting("inv_freq_long", variant.inv_freq)
        return self.b.add("Where", [longer, other, base], f"{self.title}.frequencies", shape)

    def _stretched(self, base: Value, variant: Stretch, last: Value) -> Value:
        """``base * exp(-exponents * ln(1 + slope * max(0, last + 1 - limit)))``."""
        b, title = self.b, self.title
        one, shape = (1, 1, 1), (1, 1, self.rope.width // 2)
        offset = self._setting("offset", 1 - variant.limit)
        zero, unit = self._setting("zero", 0.0), self._setting("one", 1.0)
        slope = self._setting("slope", variant.slope)
        exponents = self._setting("exponents", -variant.exponents)
        beyond = b.add("Add", [last, offset], f"{title}.beyond", one)
        beyond = b.add("Max", [beyond, zero], f"{title}.excess", one)
        growth = b.add("Mul", [beyond, slope], f"{title}.growth", one)
        ratio = b.add("Add", [growth, unit], f"{title}.ratio", one)
        power = b.add("Log", [ratio], f"{title}.log_ratio", one)
        power = b.add("Mul", [power, exponents], f"{title}.powers", shape)
        factor = b.add("Exp", [power], f"{title}.factors", shape)
        return b.add("Mul", [factor, base], f"{title}.frequencies", shape)


__all__ = ["rope_table"]
