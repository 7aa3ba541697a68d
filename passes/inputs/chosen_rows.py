"""Rows of the sequence that a graph chooses itself before it returns logits, and by what.

Exporters cut the wanted rows out at several places (before the final norm, before the logits matrix, behind it), by
several operators, and by an index that is an input, a constant or a tensor that nothing makes. What a place does is told
by computing it: numbered rows go in, at several lengths and for several indices, and the numbers of those that come out
say which were chosen. Neither names nor operators decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import F32, I64, Dim, DType, TensorType
from ir.facts.free_tensors import FreeTensors
from ir.facts.inputs import Why
from ir.graph.describe import describe
from ir.graph.graph import Graph, Node, Value
from ir.graph.order import reads
from ir.ops import registry as ops
from passes.inputs.finding import Finding

LENGTHS = (5, 8, 13)
"""Lengths of sequences on which a choice is tried."""
MOST_ELEMENTS = 1 << 27
"""Elements of the rows that a choice is tried on."""
_END = 2**31 - 1
_MOVING = frozenset(
    {"Slice", "Gather", "GatherND", "GatherElements", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity", "Cast",
     "Split", "Transpose", "Compress", "ReduceSum", "ReduceMax", "MatMul", "Expand"}
)  # fmt: skip
"""Operators by which rows are picked or laid out otherwise; what they pick is found by evaluation."""
_LAYOUT = frozenset({"Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity"})
_SHAPE = frozenset({"Shape", "Size"})
_ROLES = {1: "start", 2: "end", 3: "axes", 4: "steps"}


@dataclass(frozen=True)
class ChosenRows(Finding):
    """A choice of rows that the graph makes itself.

    `value` has all rows.

    Attributes:
        made: what is left of them; to be replaced by all rows.
        indices: inputs of the graph that choose.
        behind: nodes from `made` to the logits, in program order.
    """

    made: Value
    indices: tuple[Value, ...]
    behind: tuple[Node, ...]


def find(graph: Graph, ids: Value, logits: Value, *, after: bool = False) -> ChosenRows | None:
    """The choice of rows nearest to the token ids, on the way from the last layer to the logits; None without any.

    Args:
        graph: the graph.
        ids: its token ids.
        logits: its output.
        after: another choice was undone before, so that what cannot lay out all rows was for the chosen ones.

    Raises:
        LadingError: P332 a fixed row is chosen that is not the last, P333 rows are chosen in another way than by an
            index of the runtime's kind.
    """
    tail = _Tail(graph, ids, logits)
    for start, made, behind in tail.moves():
        found = _Trial(graph, ids, tail.following, start, made).choice(after)
        if found is not None:
            return ChosenRows(start, found.why, found.reason, found.where, made, found.indices, behind)
    return None


# ---- the way to the logits ----


class _Tail:
    """The nodes behind the last layer, through which every row goes on its own or is moved as a whole."""

    def __init__(self, graph: Graph, ids: Value, logits: Value) -> None:
        self.logits = logits
        self.following = _following(graph, ids)
        self.place = {node: index for index, node in enumerate(graph.nodes)}

    def moves(self) -> Iterator[tuple[Value, Value, tuple[Node, ...]]]:
        """Runs of moving nodes from the inputs towards the logits: the value before, the one behind, and all nodes from
        there on."""
        steps = self._steps()[::-1]
        number = 0
        while number < len(steps):
            node, moving = steps[number]
            number += 1
            if not moving:
                continue
            start, made = self._data(node)[0], node.output
            while number < len(steps) and steps[number][1]:
                made = steps[number][0].output
                number += 1
            yield start, made, tuple(item for item, _ in steps[number:])

    def _steps(self) -> list[tuple[Node, bool]]:
        """Nodes from the logits towards the inputs, and whether each is the only way and moves rows."""
        front = {self.logits}
        steps: list[tuple[Node, bool]] = []
        while front:
            latest = max(front, key=lambda value: self.place.get(value.producer, -1))  # type: ignore[arg-type]
            node = latest.producer
            if node is None or node.graph is not self.logits.graph or len(node.outputs) != 1 or node.subgraphs:
                return steps
            data = self._data(node)
            if not data:
                return steps
            if keeps_rows(node, data):
                steps.append((node, False))
            elif _moves(node, data) and len(front) == 1:
                steps.append((node, True))
            else:
                return steps
            front.remove(latest)
            front.update(data)
        return steps

    def _data(self, node: Node) -> list[Value]:
        return [value for value in dict.fromkeys(node.inputs) if value is not None and value in self.following]


def _moves(node: Node, data: Sequence[Value]) -> bool:
    """True when a node may pick rows of its data; tokens that pick rows of a table are none."""
    place = 1 if node.op == "MatMul" else 0
    return node.op in _MOVING and len(data) == 1 and node.input(place) is data[0]


def _following(graph: Graph, ids: Value) -> set[Value]:
    """Every value that depends on which tokens there are, not on their number alone."""
    found = {ids}
    for node in graph.nodes:
        if node.op not in _SHAPE and any(value in found for value in reads(node)):
            found.update(node.outputs)
    return found


def keeps_rows(node: Node, data: Sequence[Value]) -> bool:
    """True when a node computes each row on its own, also where shapes behind a choice are not known."""
    places = [index for index, value in enumerate(node.inputs) if value is not None and value in data]
    if any(value is not None and value in data for sub in node.subgraphs for value in sub.outputs):
        return False
    definition = ops.opdef(node)
    if definition is None:
        return False
    if (node.op == "Identity" or node.op not in _LAYOUT) and all(ops.is_rowwise(node, place) for place in places):
        return _others_fit(node, places)
    rank = data[0].rank
    if node.op in ("MatMul", "Gemm"):
        return places == [0] and not node.attrs.get("transA", 0) and ops.rank_of(node.input(1)) == 2
    if node.op in ops.NORMS or node.op in ("Softmax", "LogSoftmax"):
        axis = ops.attribute(node, "axis")
        return places == [0] and (axis == -1 or (rank is not None and axis == rank - 1))
    return definition.has("elementwise") and node.op not in _LAYOUT and _others_fit(node, places)


def _others_fit(node: Node, places: Sequence[int]) -> bool:
    """True when the other operands of an elementwise node are the same for every row."""
    definition = ops.opdef(node)
    if definition is None or not definition.has("elementwise"):
        return True
    others = [value for index, value in enumerate(node.inputs) if value is not None and index not in places]
    return all(value.shape is not None and all(dim == 1 for dim in value.shape[:-1]) for value in others)


# ---- what a move does ----


@dataclass(frozen=True)
class _Choice:
    why: Why
    reason: str
    where: str
    indices: tuple[Value, ...]


class _Trial:
    """A move of rows on its own: what goes in are numbered rows, inputs that choose, and shapes."""

    def __init__(self, graph: Graph, ids: Value, following: set[Value], start: Value, made: Value) -> None:
        self.graph, self.ids, self.following, self.start, self.made = graph, ids, following, start, made
        self.nodes: list[Node] = []
        self.shapes: list[Value] = []
        self.indices: list[Value] = []
        self._collect()

    def _collect(self) -> None:
        """The nodes between `start` and `made`, those that compute an index among them, and what they read."""
        self.moved, self.carried = {self.start}, {self.start}
        for node in self.graph.nodes:
            if any(value in self.moved for value in reads(node)):
                self.moved.update(node.outputs)
            if node.op not in _SHAPE and any(value in self.carried for value in reads(node)):
                self.carried.update(node.outputs)
        chosen: set[Node] = set()
        waiting, seen = [self.made], {self.start}
        while waiting:
            value = waiting.pop()
            if value in seen or value.const is not None:
                continue
            seen.add(value)
            made = value.producer
            if made is None:
                if value is self.ids or value not in self.graph.inputs:
                    raise self._unknown(f"they depend on {value!r}")
                self.indices.append(value)
                continue
            node = made
            if node.subgraphs or (node.op not in _SHAPE and value not in self.moved and value in self.following):
                raise self._unknown(f"they depend on {value!r}")
            chosen.add(node)
            if node.op in _SHAPE and node.operand(0) not in self.moved:
                self.shapes.append(node.operand(0))
            else:
                waiting += reads(node)
        self.nodes = [node for node in self.graph.nodes if node in chosen]
        self.shapes = list(dict.fromkeys(self.shapes))

    @property
    def _carrying(self) -> list[Node]:
        """The nodes that rows go through, in order."""
        return [node for node in self.nodes if any(value in self.carried for value in node.outputs)]

    @property
    def node(self) -> Node:
        """The node that chooses: the first that is no mere layout."""
        return next((node for node in self._carrying if node.op not in _LAYOUT), self._carrying[0])

    @property
    def is_layout(self) -> bool:
        """True when nothing is picked, only laid out."""
        return all(node.op in _LAYOUT for node in self._carrying)

    def choice(self, after: bool) -> _Choice | None:
        """What is chosen by what; None when every row stays where it is.

        Args:
            after: as for `find`.

        Raises:
            LadingError: P332, P333.
        """
        if (self.start.rank or 0) < 2 or any(dim != 1 for dim in self.start.dims[:-2]):
            if self.is_layout:
                return None
            raise self._unknown(f"they are cut out of {self.start!r}, whose rows are not known")
        run = _Run(self)
        return self._by_index(run) if self.indices else self._frozen(run, after)

    def _frozen(self, run: _Run, after: bool) -> _Choice | None:
        got = {length: run.rows(length, {}) for length in run.lengths}
        where = self.node.loc or self.node.name
        if all(rows == tuple(range(length)) for length, rows in got.items()):
            if self.is_layout:
                return None
            reason = f"{_named(self.node)} keeps every row, whatever is wanted"
            return _Choice("frozen-by-tracing", reason, where, ())
        if all(rows == (length - 1,) for length, rows in got.items()):
            reason = f"{self._index_words()} froze the choice of the last row into {_named(self.node)}"
            return _Choice("frozen-by-tracing", reason, where, ())
        if self.is_layout:
            return _Choice("frozen-by-tracing", "it lays out the rows that were chosen", where, ()) if after else None
        rows = {item for item in got.values() if item is not None}
        short = [length for length, found in got.items() if found is None]
        fixed = next(iter(rows)) if len(rows) == 1 else None
        if fixed is not None and short and max(short) > max(fixed, default=0):
            fixed = None
        if fixed is not None and len(got) > 1:
            what = f"row {fixed[0]}" if len(fixed) == 1 else f"rows {fixed[0]} to {fixed[-1]}" if fixed else "no row"
            message = f"{self._index_words()} freezes the logits to {what} of every sequence"
        else:
            shown = "; ".join(f"{_shown(item)} of {length}" for length, item in got.items())
            message = f"{self._index_words()} freezes the logits to rows that are not the last one: {shown}"
        hint = "export the model without a fixed row: the whole sequence, the last row, or an input that chooses"
        raise LadingError("P332", message, describe(self.node), hint)

    def _index_words(self) -> str:
        """The constant that chooses, or what else does, for people."""
        named = [v for v in self.node.inputs if v is not None and v.const is not None and v.dtype.is_integer]
        return f"the constant @{named[0].name}" if named else "what the graph computes from shapes"

    def _by_index(self, run: _Run) -> _Choice:
        """The choice that inputs of the graph make."""
        how = run.fitted()
        if how is None:
            names = ", ".join(value.name for value in self.indices)
            raise self._unknown(f"what {names} chooses is neither the row it names nor the rows from there on")
        free = self.graph.fact(FreeTensors)
        dangling = [value for value in self.indices if free is not None and free.find(value.name) is not None]
        names = ", ".join(f"%{value.name}" for value in self.indices)
        origin = "nothing in the model makes" if dangling else "the model declares as an input"
        reason = f"{_named(self.node)} keeps {how} {names}, which {origin}"
        return _Choice(
            "dangling" if dangling else "declared",
            reason,
            self.node.loc or self.node.name,
            tuple(self.indices),
        )

    def _unknown(self, what: str) -> LadingError:
        node = self.made.producer
        return LadingError(
            "P333",
            f"rows of the sequence are chosen in a way that is not the runtime's: {what}",
            describe(node) if node is not None else repr(self.made),
            "the runtime names one row, from which on logits are wanted: -1 for the last, 0 for all",
        )


def _named(node: Node) -> str:
    return f"{node.op} {(node.name or node.output.name)!r}"


def _shown(rows: tuple[int, ...] | None) -> str:
    if rows is None:
        return "no whole rows"
    return ", ".join(map(str, rows)) or "none"


class _Run:
    """Evaluates a move on numbered rows."""

    def __init__(self, trial: _Trial) -> None:
        from ir.evaluate.evaluator import Evaluator

        self.trial = trial
        dims = trial.start.dims
        self.seq = dims[-2]
        if type(dims[-1]) is not int or dims[-1] < 1:
            raise trial._unknown(f"they are cut out of {trial.start!r}, whose width is not known")
        self.width = dims[-1]
        if isinstance(self.seq, Dim):
            low, high = self.seq.low, self.seq.high
            usable = [length for length in LENGTHS if self.seq.accepts(length)]
            self.lengths = tuple(usable) or tuple(dict.fromkeys(size for size in (low, high) if size))
        else:
            self.lengths = (self.seq,)
        if max(self.lengths, default=0) * self.width > MOST_ELEMENTS:
            raise trial._unknown(f"they are cut out of {trial.start!r}, which is too large to try")
        # A row is known by its number, and its columns by what is added to it.
        self.columns = (np.arange(self.width) % 7 / 8).astype(np.float32)
        graph = Graph("rows", trial.graph.opsets)
        graph.foreign = trial.graph.foreign
        graph.functions = trial.graph.functions
        known: dict[Value, Value] = {trial.start: graph.add_input("rows.in", TensorType(F32))}
        for number, value in enumerate(trial.shapes):
            known[value] = graph.add_input(f"shape.{number}", TensorType(_dtype(value)))
        for number, value in enumerate(trial.indices):
            known[value] = graph.add_input(f"index.{number}", TensorType(_dtype(value)))
        for node in trial.nodes:
            for value in reads(node):
                if value not in known and value.const is not None:
                    known[value] = graph.add_const(value.name, value.const)
            made = graph.add(
                node.op,
                [known[value] if value is not None else None for value in node.inputs],
                dict(node.attrs),
            )
            made.overload = node.overload
            known.update(zip(node.outputs, made.outputs, strict=True))
        graph.set_outputs([known[trial.made]])
        self.graph = graph
        self.inputs = {value: known[value].name for value in (*trial.shapes, *trial.indices)}
        from ir.infer.engine import infer_types

        infer_types(graph)
        self.evaluator = Evaluator(graph)

    def rows(self, length: int, index: Mapping[Value, np.ndarray]) -> tuple[int, ...] | None:
        """The numbers of the rows that come out, in order; None when what comes out is no rows."""
        dims = self.trial.start.dims
        numbered = np.arange(length, dtype=np.float32)[:, None] + self.columns
        numbered = numbered.reshape(*dims[:-2], length, self.width)  # type: ignore[arg-type]
        feeds = {"rows.in": numbered}
        for value in self.trial.shapes:
            feeds[self.inputs[value]] = np.zeros(self._shape(value, length), _dtype(value).numpy)
        feeds |= {self.inputs[value]: array for value, array in index.items()}
        try:
            got = next(iter(self.evaluator.run({k: v for k, v in feeds.items() if self._is_read(k)}).values()))
        except LadingError:
            return None
        if got.size % self.width or (got.ndim and got.size and got.shape[-1] != self.width):
            return None
        got = got.reshape(-1, self.width)
        rows = got[:, 0] - self.columns[0]
        if not np.array_equal(got, rows[:, None] + self.columns) or (rows % 1).any():
            return None
        return tuple(int(row) for row in rows)

    def _is_read(self, name: str) -> bool:
        return self.graph.value(name).use_count > 0

    def _shape(self, value: Value, length: int) -> tuple[int, ...]:
        if value.shape is None:
            raise self.trial._unknown(f"they depend on the shape of {value!r}")
        found = tuple(
            dim if isinstance(dim, int) else length if dim == self._sequence(dim) else 1 for dim in value.dims
        )
        if prod(max(size, 1) for size in found) > MOST_ELEMENTS:
            raise self.trial._unknown(f"they depend on the shape of {value!r}, which is too large to try")
        return found

    def _sequence(self, dim: Dim) -> int | Dim:
        """The dimension of the sequence: that of the rows, or that of the token ids."""
        return dim if dim in (self.seq, *self.trial.ids.dims) else self.seq

    def fitted(self) -> str | None:
        """How the inputs choose, in words; None when in no way that the runtime could."""
        roles = {value: self._role(value) for value in self.trial.indices}
        starts = [value for value, role in roles.items() if role in ("start", "index")]
        if len(starts) != 1 or len(set(roles.values())) != len(roles):
            return None
        if all(self._only_last(starts[0], roles, length) for length in self.lengths):
            return "the last row, named by"
        for meaning, words in (("from", "the rows from"), ("at", "the row named by")):
            if all(
                self._agrees(meaning, starts[0], roles, length, row)
                for length in self.lengths
                for row in dict.fromkeys((0, 1, length - 2, length - 1))
                if 0 <= row < length
            ) and (meaning == "at" or self._agrees(meaning, starts[0], roles, self.lengths[-1], -1)):
                return words
        return None

    def _only_last(self, start: Value, roles: Mapping[Value, str], length: int) -> bool:
        """True when the last row, by its number or as -1, is the only one that can be had, since there is room for one."""
        if length < 2:
            return False
        got = {}
        for row in (length - 2, length - 1, -1):
            feeds = {value: self._index(value, role, row, _END) for value, role in roles.items()}
            if any(item is None for item in feeds.values()):
                return False
            got[row] = self.rows(length, feeds)  # type: ignore[arg-type]
        last = (length - 1,)
        return got[length - 2] is None and got[length - 1] == last and got[-1] in (last, None)

    def _agrees(self, meaning: str, start: Value, roles: Mapping[Value, str], length: int, row: int) -> bool:
        """True when the index `row` gives the rows of a meaning; with an end that is chosen too, up to that."""
        first = row % length
        ends: tuple[int | None, ...] = (first + 1, _END) if "end" in roles.values() else (None,)
        for end in ends:
            feeds = {value: self._index(value, role, row, end) for value, role in roles.items()}
            if any(item is None for item in feeds.values()):
                return False
            wanted = (first,) if meaning == "at" else tuple(range(length))[first : end if end is not None else length]
            if self.rows(length, feeds) != wanted:  # type: ignore[arg-type]
                return False
        return True

    def _index(self, value: Value, role: str, row: int, end: int | None) -> np.ndarray | None:
        dims = value.shape if value.shape is not None else (1,)
        shape = tuple(dim if isinstance(dim, int) else 1 for dim in dims)
        if int(np.prod(shape)) != 1:
            return None
        number = {"start": row, "index": row, "end": end, "axes": self._axis(), "steps": 1}[role]
        return None if number is None else np.full(shape, number, _dtype(value).numpy)

    def _axis(self) -> int:
        node = self.trial.node
        rank = node.operand(0).rank or self.trial.start.rank or 2
        return rank - 2

    def _role(self, value: Value) -> Literal["start", "end", "axes", "steps", "index"] | str:
        """What an input is to the node that chooses, by the operand that it reaches."""
        node = self.trial.node
        if node.op != "Slice":
            return "index"
        reached = {
            place for place, item in enumerate(node.inputs) if place and item is not None and _reaches(value, item)
        }
        return _ROLES[min(reached)] if reached else "index"


def _reaches(value: Value, target: Value) -> bool:
    waiting, seen = [target], set()
    while waiting:
        item = waiting.pop()
        if item is value:
            return True
        if item not in seen and item.producer is not None:
            seen.add(item)
            waiting += reads(item.producer)
    return False


def _dtype(value: Value) -> DType:
    return value.dtype if isinstance(value.type, TensorType) else I64


__all__ = ["ChosenRows", "find", "keeps_rows"]
