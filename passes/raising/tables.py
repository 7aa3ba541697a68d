"""Tables of cosines and sines: found among what the runtime knows by what they are, and built again from positions.

A pair of values with one row a token whose squares add up to one number, the first at its largest and the second 0 at
position 0. The frequencies or the baked table behind them are constants of the graph, taken as they are: fitted
frequencies lose accuracy far out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ir.base.types import F32, I64, Shape, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.tensor.inline import InlineTensor

FAR = (4100, 33000, 131072)
"""Tokens at which a rebuilt table is compared, as far as the graph can compute them."""


NEAR_ONE = 2e-3
"""By how much squares may miss their sum, which tables in half precision do."""


@dataclass(frozen=True, eq=False)
class Table:
    """A pair of tables.

    Attributes:
        cos, sin: the values.
        layout: ``half`` when each number is there once, ``halves`` when the row is there twice, ``pairs`` when each
            number is there twice.
        negative: the sines have the other sign.
        width: elements of a row that are turned.
    """

    cos: Value
    sin: Value
    layout: str
    negative: bool
    width: int

    def rows(self, found: dict[Value, np.ndarray], tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin as float64[tokens, width / 2], of the first sequence of a batch."""
        cos, sin = (_once(_flat(found[value], tokens), self.layout) for value in (self.cos, self.sin))
        return cos, -sin if self.negative else sin


def tables_among(values: Iterable[Value], found: dict[Value, np.ndarray], tokens: int) -> list[Table]:
    """All pairs of tables among evaluated values, computed for positions 0, 1, ..."""
    rows: dict[Value, np.ndarray] = {}
    for value in values:
        array = found.get(value)
        if array is not None and array.size == tokens * array.shape[-1] and np.isfinite(array).all():
            rows[value] = _flat(array, tokens)
    cosines = [value for value, x in rows.items() if np.abs(x[0] - x[0, 0]).max() == 0 and x[0, 0] > 0.1]
    sines = [value for value, x in rows.items() if np.abs(x[0]).max() == 0 and np.abs(x).max() > 0]
    tables: list[Table] = []
    for cos in cosines:
        for sin in sines:
            a, b = rows[cos], rows[sin]
            if a.shape == b.shape and np.allclose(a * a + b * b, a[0, 0] ** 2, rtol=0, atol=NEAR_ONE * a[0, 0] ** 2):
                tables.append(_table(cos, sin, a, b))
    return tables


def _table(cos: Value, sin: Value, a: np.ndarray, b: np.ndarray) -> Table:
    width, layout = a.shape[1], "half"
    if width % 2 == 0 and width > 2:
        half = width // 2
        if np.array_equal(a[:, :half], a[:, half:]) and np.array_equal(b[:, :half], b[:, half:]):
            layout = "halves"
        elif np.array_equal(a[:, 0::2], a[:, 1::2]) and np.array_equal(b[:, 0::2], b[:, 1::2]):
            layout = "pairs"
    negative = bool(b[1].max() <= 0) if len(b) > 1 else False
    return Table(cos, sin, layout, negative, 2 * width if layout == "half" else width)


def _flat(array: np.ndarray, tokens: int) -> np.ndarray:
    return array.reshape(tokens, -1).astype(np.float64)


def _once(rows: np.ndarray, layout: str) -> np.ndarray:
    if layout == "halves":
        return rows[:, : rows.shape[1] // 2]
    return rows[:, 0::2] if layout == "pairs" else rows


@dataclass(frozen=True)
class Source:
    """What a table is built again from.

    Attributes:
        frequencies: float32[width / 2] that positions are multiplied by, or None.
        factor: what cosines and sines are multiplied by.
        baked: the two constants that rows are taken from, when there are no frequencies.
        counted: where the graph counts the positions that its own nodes compute the table from, when it has neither.
    """

    frequencies: np.ndarray | None
    factor: float
    baked: tuple[Value, Value] | None = None
    counted: tuple[Value, ...] = ()

    @property
    def words(self) -> str:
        """What it is, for people."""
        if self.counted:
            return "computed"
        return "baked" if self.baked is not None else "frequencies"


def source_of(
    table: Table, constants: Sequence[Value], positions: np.ndarray, rows: tuple[np.ndarray, np.ndarray]
) -> Source | None:
    """The constants of the graph that give the same rows.

    Args:
        table: the table.
        constants: constants that it is computed from.
        positions: int[n], positions that the rows are of.
        rows: cos and sin, float64[n, width / 2].
    """
    cos, sin = rows
    half = cos.shape[1]
    for value in constants:
        tensor = value.const
        if tensor is None or not tensor.type.dtype.is_float or tensor.type.size not in (half, 2 * half):
            continue
        frequencies = tensor.load().astype(np.float32).reshape(-1)
        if frequencies.size == 2 * half:
            frequencies = frequencies[:half] if table.layout == "halves" else frequencies[0::2]
        angles = (positions[:, None].astype(np.float32) * frequencies).astype(np.float64)
        factor = float(np.float32(cos[0, 0])) if positions[0] == 0 else 1.0
        # Rounding of an angle shows in its cosine as it is.
        room = 4e-7 * np.maximum(1.0, np.abs(angles)) * factor
        if (np.abs(np.cos(angles) * factor - cos) <= room).all() and (
            np.abs(np.sin(angles) * factor - sin) <= room
        ).all():
            return Source(frequencies, factor)
    found = [_baked(values, positions, constants, table) for values in (cos, sin)]
    if found[0] is not None and found[1] is not None:
        return Source(None, 1.0, (found[0], found[1]))
    return None


def _baked(rows: np.ndarray, positions: np.ndarray, constants: Sequence[Value], table: Table) -> Value | None:
    for value in constants:
        tensor = value.const
        if tensor is None or not tensor.type.dtype.is_float or len(tensor.shape) < 2:
            continue
        width = tensor.shape[-1]
        count = (tensor.type.size or 0) // width
        if width not in (rows.shape[1], 2 * rows.shape[1]) or count <= positions.max():
            continue
        flat = tensor.load().reshape(count, width)[positions].astype(np.float64)
        layout = "half" if width == rows.shape[1] else table.layout if table.layout != "half" else "halves"
        if np.array_equal(_once(flat, layout), rows):
            return value
    return None


def gather_rows(graph: Graph) -> None:
    """Take the rows of tables outside of rotary embedding, where its operator takes them itself by position."""
    made: dict[tuple[Value, Value], Value] = {}
    for node in graph.nodes:
        positions = node.input(3) if node.op == "RotaryEmbedding" else None
        if positions is None:
            continue
        rows = []
        for table in (node.operand(1), node.operand(2)):
            if (table, positions) not in made:
                made[table, positions] = graph.add("Gather", [table, positions], {"axis": 0}, before=node).output
            rows.append(made[table, positions])
        graph.set_inputs(node, [node.operand(0), *rows])


class Builder:
    """Builds tables from positions counted from 0, at the start of a graph; equal ones once."""

    def __init__(self, graph: Graph, ids: Value) -> None:
        """Build into a graph whose token ids are [1, seq]."""
        self.graph = graph
        self.ids = ids
        self._first = graph.first
        self._positions: Value | None = None
        self._made: dict[object, tuple[Value, Value]] = {}
        self._counted: set[Value] = set()
        self._after: Node | None = None

    def positions(self) -> Value:
        """0..seq-1 as int64[1, seq]."""
        if self._positions is None:
            seq = self.ids.dims[-1]
            shape = self._add("Shape", [self.ids], "input_shape", TensorType(I64, (2,)))
            axis = self._const("sequence_axis", np.array(1, np.int64))
            length = self._add("Gather", [shape, axis], "sequence_length", TensorType(I64, ()), axis=0)
            ends = [
                self._const(name, np.array(item, np.int64)) for name, item in (("range_start", 0), ("range_step", 1))
            ]
            steps = self._add("Range", [ends[0], length, ends[1]], "range", TensorType(I64, (seq,)))
            front = self._const("axis_0", np.array([0], np.int64))
            self._positions = self._add("Unsqueeze", [steps, front], "positions", TensorType(I64, (1, seq)))
        return self._positions

    def table(self, source: Source, table: Table) -> tuple[Value, Value]:
        """cos and sin, float32[1, seq, width / 2]."""
        if source.counted:
            return self._own(source, table)
        if source.baked is not None:
            return self._rows(source.baked, table)
        assert source.frequencies is not None
        key = (source.frequencies.tobytes(), source.factor)
        if key not in self._made:
            self._made[key] = self._waves(source.frequencies, source.factor)
        return self._made[key]

    def _waves(self, frequencies: np.ndarray, factor: float) -> tuple[Value, Value]:
        seq, half = self.ids.dims[-1], len(frequencies)
        real = self._add("Cast", [self.positions()], "rope.positions", TensorType(F32, (1, seq)), to=F32.onnx)
        last = self._const("axis_2", np.array([2], np.int64))
        column = self._add("Unsqueeze", [real, last], "rope.column", TensorType(F32, (1, seq, 1)))
        type_ = TensorType(F32, (1, seq, half))
        angles = self._add("Mul", [column, self._const("rope.inv_freq", frequencies)], "rope.angles", type_)
        waves = []
        for op, name in (("Cos", "rope.cos"), ("Sin", "rope.sin")):
            wave = self._add(op, [angles], name, type_)
            if factor != 1.0:
                scale = self._const("rope.attention_factor", np.array(factor, np.float32))
                wave = self._add("Mul", [wave, scale], f"{name}.scaled", type_)
            waves.append(wave)
        return waves[0], waves[1]

    def _own(self, source: Source, table: Table) -> tuple[Value, Value]:
        """The graph's own nodes, counting from the positions that all tables are built from."""
        key = (table.cos, table.sin)
        if key not in self._made:
            for value in source.counted:
                self.recount(value)
            self._made[key] = (self._row_of(table.cos, table, False), self._row_of(table.sin, table, table.negative))
        return self._made[key]

    def recount(self, value: Value) -> None:
        """Put the positions that all tables are built from in the place of a value that counts them."""
        if value in self._counted:
            return
        self._counted.add(value)
        assert isinstance(value.type, TensorType)
        shape = (*(1 for _ in range((value.rank or 1) - 1)), self.ids.dims[-1])
        sizes = self._const("positions.shape", np.array([*shape[:-1], -1], np.int64))
        made = self._add("Reshape", [self.positions(), sizes], f"{value.name}.counted", TensorType(I64, shape))
        if value.dtype != I64:
            made = self._add("Cast", [made], f"{value.name}.cast", TensorType(value.dtype, shape), to=value.dtype.onnx)
        self.graph.replace(value, made)

    def _row_of(self, value: Value, table: Table, negative: bool) -> Value:
        """A table's value as one row for each token, each number once."""
        seq, width = self.ids.dims[-1], value.dims[-1]
        assert isinstance(width, int) and value.producer is not None
        self._after = value.producer
        rows = self._next("Reshape", [value, self._ints(1, -1, width)], f"{value.name}.rows", (1, seq, width))
        if table.layout != "half":
            bounds = ((0,), (width // 2,), (2,)) if table.layout == "halves" else ((0,), (width,), (2,), (2,))
            inputs = [rows, *(self._ints(*numbers) for numbers in bounds)]
            rows = self._next("Slice", inputs, f"{value.name}.once", (1, seq, width // 2))
        return self._next("Neg", [rows], f"{value.name}.positive", rows.dims) if negative else rows

    def _next(self, op: str, inputs: list[Value], stem: str, shape: Shape) -> Value:
        name = self.graph.fresh_name(stem)
        node = self.graph.add(
            op, inputs, outputs=(name,), types=(TensorType(F32, shape),), name=name, after=self._after
        )
        self._after = node
        return node.output

    def _ints(self, *numbers: int) -> Value:
        return self._const("rope." + "_".join(str(number) for number in numbers), np.array(numbers, np.int64))

    def _rows(self, baked: tuple[Value, Value], table: Table) -> tuple[Value, Value]:
        if baked not in self._made:
            found = []
            for value in baked:
                assert value.const is not None
                array = value.const.load().astype(np.float32)
                layout = "half" if array.shape[-1] == table.width // 2 else table.layout
                rows = _once(array.reshape(-1, array.shape[-1]), layout)
                const = self._const(f"{value.name}.rows", np.ascontiguousarray(rows))
                type_ = TensorType(F32, (1, self.ids.dims[-1], rows.shape[1]))
                found.append(self._add("Gather", [const, self.positions()], f"{value.name}.row", type_, axis=0))
            self._made[baked] = (found[0], found[1])
        return self._made[baked]

    def _add(self, op: str, inputs: list[Value], stem: str, type_: TensorType, **attrs: object) -> Value:
        name = self.graph.fresh_name(stem)
        node = self.graph.add(op, inputs, attrs, outputs=(name,), types=(type_,), name=name, before=self._first)
        return node.output

    def _const(self, stem: str, array: np.ndarray) -> Value:
        return self.graph.add_const(self.graph.fresh_name(stem), InlineTensor(array))


def rows_of_source(source: Source, table: Table, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin that a table built from a source has at positions, float64[n, width / 2]."""
    if source.baked is not None:
        found = []
        for value in source.baked:
            assert value.const is not None
            array = value.const.load()
            layout = table.layout if array.shape[-1] != table.width // 2 else "half"
            found.append(_once(array.reshape(-1, array.shape[-1])[positions].astype(np.float64), layout))
        return found[0], found[1]
    assert source.frequencies is not None
    angles = (positions[:, None].astype(np.float32) * source.frequencies).astype(np.float64)
    return np.cos(angles) * source.factor, np.sin(angles) * source.factor
