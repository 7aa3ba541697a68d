"""Gives tensors that nothing makes the type, shape and range that their readers force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import DTYPES, F32, I32, I64, Dim, DType, TensorType, dtype_of_onnx
from ir.graph.graph import Graph, Node, Value
from ir.graph.order import reads
from ir.infer.engine import infer_types
from ir.infer.free import indices, layout, numeric
from ir.infer.free.demand import RULES, UNTOLD, At, Demand, Extents, agree, finer, is_known, joined, shape_of
from ir.infer.free.elements import allowed, usual
from ir.infer.inference import Inference, is_sound
from ir.infer.symbolic import Extent
from ir.tensor.inline import InlineTensor

FILLED_BY = (numeric, layout, indices)
"""Modules with rules."""
MOST_ROUNDS = 12
"""Rounds of looking backwards and forwards, and as many more as tensors may have to be guessed one after the other; each
settles something, or guesses, or is the last."""


@dataclass(frozen=True)
class Settled:
    """What became of one tensor that nothing makes.

    Attributes:
        value: the input of the graph, or the constant that it is now.
        demand: what its readers say of it together.
        readers: who reads it, in words.
        guessed: what was not forced, in words; empty when all was.
    """

    value: Value
    demand: Demand
    readers: tuple[str, ...]
    guessed: str = ""

    @property
    def reason(self) -> str:
        """What forces it, as a sentence."""
        words = self.demand.words or "it is read as it is"
        return words + (f"; {self.guessed}" if self.guessed else "")


def settle(graph: Graph, free: Sequence[Value]) -> list[Settled]:
    """Type free inputs of a graph, and make constants of those that the rest of the graph determines.

    Recorded types of other values are taken as they are; types that were unknown for want of the free ones are inferred.
    What is recorded for the free ones themselves is a hint: it holds where no reader contradicts it.

    Args:
        graph: the outermost graph.
        free: inputs of it that nothing in the model declares.

    Raises:
        LadingError: F632 readers want different types, F633 a tensor has to be a constant and several would do, F634
            nothing says what elements a tensor has.
    """
    if not free:
        return []
    return _Solver(graph, free).run()


@dataclass
class _Solver:
    graph: Graph
    free: Sequence[Value]
    found: dict[Value, Demand] = field(default_factory=dict)
    types: dict[Value, tuple[DType, ...]] = field(default_factory=dict)
    shapes: dict[Value, Extents] = field(default_factory=dict)
    guesses: dict[Value, list[str]] = field(default_factory=dict)
    hints: dict[Value, TensorType] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.guesses = {value: [] for value in self.free}
        self.hints = {value: value.type for value in self.free if isinstance(value.type, TensorType)}
        self.free = [value for value in self.free if value.type is None or value in self.hints]
        for value in self.hints:
            self.graph.set_type(value, None)
        self.names = set(self.graph.dims)
        self._numbers = Inference(self.graph, lazy=True)

    def run(self) -> list[Settled]:
        for _ in range(MOST_ROUNDS + 2 * len(self.free)):
            infer_types(self.graph)
            self._look_back()
            if not self._note() and not self._guess():
                break
        self._require_types()
        return [self._made(value) for value in self.free]

    # ---- looking back ----

    def _look_back(self) -> None:
        """What readers say of every value that depends on a free one, the last readers first."""
        self.found.clear()
        self.types.clear()
        self._numbers = Inference(self.graph, lazy=True)
        behind = set(self.free)
        nodes: list[Node] = []
        for node in self.graph.walk():
            if any(value in behind for value in reads(node)):
                behind.update(node.outputs)
                behind.update(value for sub in node.subgraphs for value in sub.inputs)
                nodes.append(node)
        wanted: dict[Value, list[Demand]] = {}
        for node in reversed(nodes):
            for made in dict.fromkeys((*node.outputs, *(v for sub in node.subgraphs for v in sub.inputs))):
                self._join(made, wanted.pop(made, []))
            for index, value in enumerate(node.inputs):
                if value is not None and value in behind:
                    self._hear(node, index, value, wanted)
        for value, demands in wanted.items():
            self._join(value, demands)

    def _hear(self, node: Node, index: int, value: Value, wanted: dict[Value, list[Demand]]) -> None:
        options = allowed(node, index, self._element, lambda other: self.types.get(other, ()))
        if options:
            before = self.types.get(value, ())
            self.types[value] = tuple(one for one in before if one in options) or options if before else options
        demand = self._ask(node, index)
        if demand is not None:
            wanted.setdefault(value, []).append(demand)

    def _ask(self, node: Node, index: int) -> Demand | None:
        """What a node says of one of its operands."""
        rule = RULES.get(node.op)
        if rule is None or not is_sound(node):
            return None
        try:
            return rule(At(node, index, self._shape, self._element, self._numbers.ints_of, self._least))
        except (ArithmeticError, LookupError, TypeError, ValueError):
            return None  # Other operands do not fit the operator, so nothing follows from them.

    def _join(self, value: Value, demands: list[Demand]) -> None:
        if demands:
            # Readers that take one form only come first.
            demands.sort(key=lambda demand: (demand.loose, demand.values is None))
            self.found[value] = joined(demands)

    def _shape(self, value: Value) -> Extents | None:
        demand = self.found.get(value)
        shape = finer(shape_of(value), finer(self.shapes.get(value), demand.shape if demand is not None else None))
        return None if shape is None else tuple(self._told(extent) for extent in shape)

    def _told(self, extent: Extent | None) -> Extent | None:
        """An extent; a name that inference made up says only what is equal to what."""
        if isinstance(extent, Dim) and extent.name not in self.names and not extent.name.startswith(UNTOLD):
            return Dim(UNTOLD + extent.name)
        return extent

    def _least(self, value: Value) -> int:
        demand = self.found.get(value)
        return demand.least if demand is not None else 0

    def _element(self, value: Value) -> DType | None:
        if isinstance(value.type, TensorType):
            return value.type.dtype
        demand = self.found.get(value)
        if demand is not None and demand.dtype is not None:
            return demand.dtype
        options = self.types.get(value, ())
        hint = self.hints.get(value)
        if hint is not None and (not options or hint.dtype in options):
            return hint.dtype
        return options[0] if len(options) == 1 else None

    # ---- looking ahead ----

    def _note(self) -> bool:
        """Record what is forced; True when something new is."""
        changed = False
        for value in self.free:
            demand = self.found.get(value, Demand())
            self._require_agreement(value)
            shape = finer(self.shapes.get(value), demand.shape)
            hint = self.hints.get(value)
            if hint is not None and hint.shape is not None and _allows(demand, shape, hint.shape):
                shape = finer(hint.shape, shape)
            if shape is not None and shape != self.shapes.get(value):
                self.shapes[value] = shape
                changed = True
            if value.type is None and (dtype := self._element(value)) is not None:
                changed = self._set(value, dtype) or changed
            elif isinstance(value.type, TensorType):
                changed = self._set(value, value.type.dtype) or changed
        return changed

    def _guess(self) -> bool:
        """Settle what is not forced for values that lack something, but for those on which what is settled now may bear;
        False when none lacks anything."""
        settled: set[Node] = set()
        for guess in (self._guess_element, self._guess_rank):
            found = False
            for value in self.free:
                if settled.isdisjoint(value.users) and guess(value):
                    settled.update(value.users)
                    found = True
            if found:
                return True
        return False

    def _guess_element(self, value: Value) -> bool:
        options = self.types.get(value, ())
        dtype = self._likely(value, options) if value.type is None else None
        if dtype is None:
            return False
        self.guesses[value].append(_other_types(dtype, options))
        return self._set(value, dtype)

    def _guess_rank(self, value: Value) -> bool:
        if not isinstance(value.type, TensorType) or value.type.shape is not None or value in self.shapes:
            return False
        least = max(1, self._least(value))
        self.guesses[value].append("nothing says its rank" if least == 1 else f"it has {least} axes or more")
        self.shapes[value] = (None,) * least
        return self._set(value, value.type.dtype)

    def _likely(self, value: Value, options: tuple[DType, ...]) -> DType | None:
        """The element type to take where several would do."""
        targets = _cast_to(value)
        if targets:
            return next((one for one in (I64, I32, F32) if one in options and one not in targets), None) or usual(
                options
            )
        demand = self.found.get(value, Demand())
        counts = demand.values is not None or demand.low is not None or demand.high is not None
        return I64 if counts and I64 in options else usual(options)

    def _set(self, value: Value, dtype: DType) -> bool:
        """Give a free input its type as far as it is known; True when that is news."""
        shape = self.shapes.get(value)
        old = value.type
        if shape is None:
            made = TensorType(dtype) if old is None else old
        else:
            before = shape_of(value) or (None,) * len(shape)
            made = TensorType(dtype, tuple(self._dim(value, axis, extent, before) for axis, extent in enumerate(shape)))
        if made == old:
            return False
        self.graph.set_type(value, made)
        return True

    def _dim(self, value: Value, axis: int, extent: int | Dim | None, before: Extents) -> int | Dim:
        if extent is not None and is_known(extent):
            return extent
        if isinstance(extent, Dim) and (inferred := self.graph.dims.get(extent.name.removeprefix(UNTOLD))) is not None:
            return inferred
        had = before[axis] if axis < len(before) else None
        if had is not None:
            return had
        name = f"{value.name}.{axis}"
        while name in self.graph.dims:
            name += "'"
        return self.graph.add_dim(Dim(name))

    # ---- what comes of it ----

    def _require_agreement(self, value: Value) -> None:
        """Refuse a tensor that two readers take differently.

        Raises:
            LadingError: F632.
        """
        for node, index in value.uses:
            options = allowed(node, index, lambda other: self._element(other) if other is not value else None)
            dtype = self._element(value)
            if options and dtype is not None and dtype not in options:
                raise self._disagree(value, node, " or ".join(map(str, options)), str(dtype))
            said, shape = self._ask(node, index), self.shapes.get(value)
            if said is not None and shape is not None and not said.loose and not agree(said.shape, shape):
                raise self._disagree(value, node, _words(said.shape), _words(shape))

    def _disagree(self, value: Value, node: Node, one: str, other: str) -> LadingError:
        return LadingError(
            "F632",
            f"nothing makes {value.name!r}, and what reads it wants different tensors: {_reader(node)} takes {one}, "
            f"others {other}",
            self.graph.name,
            "the model was put together wrongly: give each of them the tensor that it should read",
        )

    def _require_types(self) -> None:
        for value in self.free:
            if value.type is None:
                readers = ", ".join(readers_of(value)) or "an output"
                message = f"nothing makes {value.name!r}, and nothing says what it holds: it is read by {readers}"
                hint = "declare it as an input, or give the tensor its type among the model's value_info"
                raise LadingError("F634", message, self.graph.name, hint)

    def _made(self, value: Value) -> Settled:
        demand, readers = self.found.get(value, Demand()), readers_of(value)
        demand = replace(demand, shape=self.shapes.get(value, demand.shape))
        guessed = "; ".join(dict.fromkeys(text for text in self.guesses[value] if text))
        if demand.values is None:
            return Settled(value, demand, readers, guessed)
        if len(demand.values) != 1:
            shown = " or ".join(str(list(one)) for one in demand.values[:6]) or "nothing"
            message = (
                f"nothing makes {value.name!r}, and the rest of the graph does not say what it is: {shown} would do"
            )
            raise LadingError(
                "F633",
                message,
                f"{self.graph.name}, read by {', '.join(readers)}; {demand.words}",
                "add it to the model as a constant",
            )
        (numbers,) = demand.values
        dtype = value.dtype if isinstance(value.type, TensorType) else I64
        shape = demand.shape if demand.shape is not None else (len(numbers),)
        array = np.array(numbers, dtype.numpy).reshape(() if shape == () else (len(numbers),))
        name = value.name
        self.graph.rename(value, self.graph.fresh_name(f"{name}.free"))
        constant = self.graph.add_const(name, InlineTensor(array, dtype), loc=value.loc)
        self.graph.replace(value, constant)
        self.graph.remove_input(value)
        return Settled(constant, demand, readers, guessed)


def _cast_to(value: Value) -> set[DType]:
    """The element types that a value is cast to before anything is computed with it; nobody casts to what it is."""
    found: set[DType] = set()
    waiting, seen = [value], {value}
    while waiting:
        for node in waiting.pop().users:
            if node.op == "Cast":
                if not is_sound(node) or node.attrs["to"] not in _KNOWN:
                    return set()
                found.add(dtype_of_onnx(node.attrs["to"]))
            elif node.op in _MOVES:
                waiting += [item for item in node.outputs if item not in seen]
                seen.update(node.outputs)
            elif node.op not in ("Shape", "Size"):
                return set()
    return found


_KNOWN = frozenset(item.onnx for item in DTYPES.values())
_MOVES = frozenset(
    {"Reshape", "Squeeze", "Unsqueeze", "Expand", "Transpose", "Flatten", "Identity", "Slice", "Gather", "Concat"}
)


def _allows(demand: Demand, shape: Extents | None, hint: Extents) -> bool:
    """True when a recorded shape is one that the readers take."""
    if shape is None or agree(shape, hint):
        return True
    if not demand.loose:
        return False
    return len(shape) != len(hint) or agree(shape, tuple(None if extent == 1 else extent for extent in hint))


def _other_types(dtype: DType, options: tuple[DType, ...]) -> str:
    others = [str(one) for one in options if one != dtype]
    if len(others) > 2:
        return f"elements of {len(others)} other types would do as well"
    return f"elements of type {' or '.join(others)} would do as well" if others else ""


def _words(shape: Extents | None) -> str:
    return "any shape" if shape is None else "[" + ", ".join("?" if e is None else str(e) for e in shape) + "]"


def _reader(node: Node) -> str:
    return f"{node.op} {(node.name or node.loc or (node.outputs[0].name if node.outputs else ''))!r}"


def readers_of(value: Value) -> tuple[str, ...]:
    """Who reads a value, in words."""
    return tuple(_reader(node) for node in value.users)


__all__ = ["Settled", "readers_of", "settle"]
