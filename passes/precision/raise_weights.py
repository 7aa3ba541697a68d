"""Weights that a file stores quantized, brought to the one form in which they are kept bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import F32, TensorType, dtype_of_onnx, int_type
from ir.graph.graph import Graph, Node, Value
from ir.quant.came_coded import came_coded
from ir.quant.coded import Coded, Parts, coded, rounded, signed_codes, tiled, unsigned_type, wide_codes
from ir.quant.storage import Storage
from ir.quant.stored_codes import given_codes
from ir.quant.stored_weight import DEQUANTIZE
from ir.target.target import Target
from ir.tensor.base import Tensor, same_tensor
from ir.tensor.elementwise import cast
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import reshaped, transposed
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.precision.plan_file import check_pattern

SHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""Operators that give the same numbers in another shape, which the type of their result says."""
COMPARED_BYTES = 64 << 20
"""Bytes of two tensors that are compared at a time."""


@dataclass(frozen=True)
class RaiseWeights(Pass):
    """Bring weights that a file stores quantized to the form in which they are kept bit for bit.

    What is multiplied by or looked up in, and comes from constants through DequantizeLinear, Transpose, Reshape, Squeeze,
    Unsqueeze or widening casts, becomes a dequantization of matrices that are read straight from the file: codes, scales
    and zeros stay what they are, in another order where they have to. Zeros that say nothing are left out, codes of a
    width that the target does not read become wider ones, and a table that holds the numbers of the logits matrix becomes
    the same matrix, whatever both are called and however they lie. Weights whose scales the target has no form for, and
    those named by requantize, are decoded when they are read and stored anew like any float weight.

    Of a graph that this compiler made itself only constants are looked at that a checkpoint stores as codes: those that
    are kept become dequantizations, the others stay the decoded numbers that they are.
    """

    name = "raise-weights"
    requires = ("typed",)

    requantize: tuple[str, ...] = option(
        (), help="patterns of weights stored quantized to decode and store anew: [*] for all of them"
    )

    def prepare(self) -> None:
        """Refuse patterns that cannot be matched with; LadingError Q411."""
        for pattern in self.requantize:
            check_pattern(pattern, f"requantize={pattern[:200]}")

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        work = _Raising(graph, ctx, self.requantize)
        if graph.foreign:
            _look_up_numbers(graph)
            work.decode_vectors()
        for node, place in list(_uses(graph)):
            if graph.foreign or node.operand(place).is_const:
                work.raise_use(node, place)
        work.finish()
        unused = [pattern for pattern in self.requantize if pattern not in work.used]
        if unused:
            names = ", ".join(sorted(work.seen)[:3])
            raise LadingError(
                "Q412",
                f"{unused[0]!r} matches no weight that is stored quantized",
                where=f"requantize={unused[0]}",
                hint=f"such weights are called {names}, ..." if names else "the model has no such weights",
            )
        return work.counts


def _uses(graph: Graph) -> Iterator[tuple[Node, int]]:
    """Nodes with the place of the operand that may be a weight: tables first, which matrices are compared with."""
    nodes = list(graph.nodes)
    yield from ((node, 0) for node in nodes if node.op == "Gather" and not node.attrs.get("axis", 0))
    yield from ((node, 1) for node in nodes if node.op == "MatMul")


def _look_up_numbers(graph: Graph) -> None:
    """Rows of codes that are dequantized become rows of dequantized codes, where one scale holds for all."""
    for node in list(graph.nodes):
        gather = node.operand(0).producer if node.op == "DequantizeLinear" else None
        if gather is None or gather.op != "Gather" or gather.attrs.get("axis", 0):
            continue
        table, parts = gather.operand(0), [item for item in node.inputs[1:] if item is not None]
        if table.const is None or any(item.const is None or item.tensor.type.size != 1 for item in parts):
            continue
        numbers = graph.add(
            "DequantizeLinear",
            [table, *parts],
            types=[TensorType(node.output.dtype, table.shape)],
            before=node,
            loc=node.loc,
        )
        rows = graph.add(
            "Gather",
            [numbers.output, gather.operand(1)],
            {"axis": 0},
            types=[node.output.type],
            before=node,
            loc=node.loc,
        )
        old, name = node.output, node.output.name
        graph.replace(old, rows.output)
        erase_unread(graph, old)
        graph.rename(rows.output, name)


@dataclass
class _Raising:
    """One run of the pass.

    Attributes:
        made: what stands in for a value, by its orientation.
        tables: matrices ``[rows, columns]`` that are looked up in: numbers or codes.
        seen, used: names of weights that are stored quantized, and patterns that matched one.
        refused: weights that no form has room for, by the reason.
    """

    graph: Graph
    ctx: PassContext
    requantize: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)
    made: dict[tuple[Value, int], Value] = field(default_factory=dict)
    tables: list[Tensor | Parts] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    refused: dict[str, list[str]] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        """What the graph is compiled for."""
        return self.ctx.target

    def decode_vectors(self) -> None:
        """Make floats of biases and gains in codes, which are no matrices and small."""
        for node in list(self.graph.nodes):
            type_ = node.output.type if node.op == "DequantizeLinear" else None
            if not isinstance(type_, TensorType) or (type_.rank or 0) > 1 or node.attrs.get("block_size", 0):
                continue
            if any(item is not None and item.const is None for item in node.inputs) or node.output.dtype != F32:
                continue
            codes, scale, *zero = (item.tensor.load() for item in node.inputs if item is not None)
            if any(part.size not in (1, codes.size) for part in (scale, *zero)):
                continue
            exact = codes.astype(np.int64) - (_alike(zero[0]).astype(np.int64) if zero else 0)
            numbers = exact.astype(np.float32) * _alike(scale).astype(np.float32)
            old = node.output
            if old.is_output:
                continue
            new = self.graph.add_const(self.graph.fresh_name(old.name), InlineTensor(numbers), loc=node.loc)
            self._count("vectors")
            self.graph.replace(old, new)
            erase_unread(self.graph, old)
            self.graph.rename(new, old.name)

    def raise_use(self, node: Node, place: int) -> None:
        """Put the raised form in the place of an operand."""
        value, features = node.operand(place), 1 - place
        key = (value, features)
        if key not in self.made:
            new = self._raised(value, features)
            if new is None:
                return
            self.made[key] = new
        if self.made[key] is not value:
            self.graph.set_input(node, place, self.made[key])

    def finish(self) -> None:
        """Erase what nothing reads any more, and give the names that become free to what took over."""
        for value, _ in self.made:
            erase_unread(self.graph, value)
        for (old, _), new in self.made.items():
            name = old.name
            if old is not new and not self.graph.has(name):
                self.graph.rename(new, name)
        for why, names in self.refused.items():
            self._tell(why, names)

    def _tell(self, why: str, names: list[str]) -> None:
        """Say which weights in codes are stored anew, and why: of files it is a warning, of checkpoints as usual."""
        several = len(names) > 1
        what = f"{len(names)} weights are" if several else "a weight is"
        they = "they are" if several else "it is"
        where = ", ".join(f"%{name}" for name in names[:3]) + (", ..." if len(names) > 3 else "")
        hint = "the contract says how each is stored and what that costs; give them a rule to choose their storage"
        if self.graph.foreign:
            message = f"{what} stored quantized in a form that is not kept: {why}; {they} decoded and stored anew"
            self.ctx.warn("Q466", message, where=where, hint=hint)
        else:
            message = f"{what} quantized in the checkpoint in a form that is not kept: {why}; {they} stored like floats"
            self.ctx.note("Q468", message, where, hint)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _raised(self, value: Value, features: int) -> Value | None:
        """What stands in for a value; the value itself where it is as it should be, None for no weight."""
        found = followed(value)
        if found is None or not isinstance(value.type, TensorType):
            return None
        if isinstance(found, Coded) and value.dtype != F32:
            return None
        if isinstance(found, Tensor):
            stored = came_coded(found) if value.dtype == F32 else None
            if stored is None:
                return self._floats(value, found, features) if self.graph.foreign else value
            if isinstance(stored, str):
                return self._kept_as_numbers(value, stored)
            found = stored
        self.seen.add(value.name)
        named = [pattern for pattern in self.requantize if _matches(pattern, value.name)]
        self.used.update(named)
        if named:
            self._count("requantized")
            return self._numbers(value, found)
        parts = found.matrix(features)
        fitted = parts if isinstance(parts, str) else self._fitted(parts, found.affine, features)
        if isinstance(fitted, Parts):
            self._count("kept")
            shared = self._shared(value, fitted, features, found.affine)
            return self._codes(value, shared, features, found.affine)
        return self._kept_as_numbers(value, fitted, found)

    def _kept_as_numbers(self, value: Value, why: str, found: Coded | None = None) -> Value | None:
        """The decoded numbers of a weight that no form has room for."""
        numbers = self._numbers(value, found)
        if numbers is not None:
            self._count("requantized")
            self.refused.setdefault(why, []).append(value.name)
        return numbers

    # ---- floats ----

    def _floats(self, value: Value, tensor: Tensor, features: int) -> Value:
        """A constant that was transposed or reshaped, and one that a table is equal to."""
        if tensor.type.rank == 2:
            rows = tensor if features else transposed(tensor)
            if features:
                self.tables.append(rows)
            else:
                same = next((item for item in self.tables if isinstance(item, Tensor) and equal(item, rows)), None)
                tensor = transposed(same) if same is not None else tensor
        if value.const is not None and same_tensor(value.const, tensor):
            return value
        self._count("floats")
        return self.graph.add_const(self.graph.fresh_name(value.name), tensor, loc=value.loc)

    def _numbers(self, value: Value, found: Coded | None) -> Value | None:
        """The weight as a float constant that is decoded when it is read."""
        if found is None or value.is_const:
            return value
        numbers = found.numbers()
        if numbers is None:
            return None
        return self.graph.add_const(self.graph.fresh_name(value.name), numbers, loc=value.loc)

    # ---- codes ----

    def _fitted(self, parts: Parts, affine: bool, features: int) -> Parts | str:
        """A matrix in codes that the target reads right and computes the same with, or why there is none."""
        if self.target.symmetric and not affine and _says_nothing(parts):
            codes = parts.codes if parts.codes.type.dtype.kind == "i" else signed_codes(parts.codes)
            parts = Parts(codes, parts.scale, None)
        if parts.codes.type.dtype.kind == "u" and parts.zero is None:
            # Unsigned codes without zeros count from 0, which is the lowest code and not the middle one.
            zeros = np.zeros(parts.scale.shape, parts.codes.type.dtype.numpy)
            parts = parts._replace(zero=InlineTensor(zeros))
        rows, columns = parts.codes.shape
        width = parts.codes.type.dtype.bits
        if features:
            readable = [bits for bits in self.target.embedding_widths if bits <= 8]
            widths = [bits for bits in readable if self.target.reads_rows(bits, rows)]
            widths = widths if self.target.rows_in_weight_file else []
        else:
            widths = list(self.target.widths)
        wide = next((bits for bits in sorted(widths) if bits >= width), None)
        if wide is None:
            return f"rows of {width} bits are not read from a table of {rows} rows"
        if wide != width:
            self._count("widened")
            parts = _widened(parts, wide, affine)
        return ("" if features else self.target.unfit(columns, _storage(parts))) or parts

    def _shared(self, value: Value, parts: Parts, features: int, affine: bool) -> Parts:
        """The matrix itself, or that of a table which holds the same numbers."""
        if features:
            self.tables.append(parts)
            return parts
        tables = (table for table in self.tables if isinstance(table, Parts))
        same = next((table for table in tables if _holds_same(table, parts, affine)), None)
        if same is None:
            return parts
        given, bits = parts.codes.type.dtype.bits, same.codes.type.dtype.bits
        if given < bits:
            message = (
                f"the logits matrix is kept in codes of {bits} bits instead of {given}, because rows of the embedding are "
                f"read from it and can be read at {bits}; no number changes, and kept apart both would be larger"
            )
            self.ctx.note("Q464", message, value.name)
        return same

    def _codes(self, value: Value, parts: Parts, features: int, affine: bool) -> Value:
        """The dequantization of a matrix; the value itself where it is that already."""
        oriented = [_oriented(part, features) for part in parts if part is not None]
        blocks = parts.scale.shape[1] if parts.scale.shape else 0
        attrs = {"axis": features, "block_size": parts.codes.row_size // blocks} if blocks else {}
        op = DEQUANTIZE[1] if affine else DEQUANTIZE[0]
        old = value.producer
        if old is not None and old.op == op and _is_made_of(old, oriented, attrs):
            return value
        words = ("codes", "scale", "zero")
        consts = [
            self.graph.add_const(self.graph.fresh_name(f"{value.name}.{word}"), part, loc=value.loc)
            for word, part in zip(words, oriented, strict=False)
        ]
        type_ = TensorType(F32, value.shape)
        node = self.graph.add(op, consts, attrs, types=[type_], before=self.graph.first, loc=value.loc)
        return node.output


# ---- following constants ----


@dataclass(frozen=True)
class Integers:
    """Codes as floats, before they are scaled: ``codes - zero``."""

    codes: Tensor
    zero: Tensor | None = None

    def coded(self, scale: Tensor) -> Coded | None:
        """The same times scales that are spread over them."""
        return tiled(self.codes, scale, self.zero)


def followed(value: Value) -> Coded | Tensor | None:
    """What a value is made of, when that is constants of a file alone: coded numbers, or a tensor in another order.

    None for anything else, and for an order that no transpose of a matrix gives.
    """
    chain: list[Node] = []
    while value.const is None:
        node = value.producer
        if node is None or node.op not in STEPS or len(node.outputs) != 1:
            return None
        chain.append(node)
        if node.op in DEQUANTIZE:
            break
        source = node.input(_followed_operand(node))
        if source is None:
            return None
        value = source
    found: Found = value.const
    for node in reversed(chain):
        found = STEPS[node.op](node, found)
        if found is None:
            return None
    return found.coded(InlineTensor(np.ones((), np.float32))) if isinstance(found, Integers) else found


def _followed_operand(node: Node) -> int:
    """The operand that becomes the result; of a product that which is no constant float."""
    first = node.input(0)
    return int(node.op == "Mul" and first is not None and first.is_const and first.dtype.is_float)


def _dequantized(node: Node, _: Found) -> Coded | None:
    parts = [None if item is None else followed(item) for item in (*node.inputs, None)[:3]]
    codes, scale, zero = parts
    if not isinstance(codes, Tensor) or not isinstance(scale, Tensor) or isinstance(zero, Coded):
        return None
    if zero is None and node.input(2) is not None:
        return None
    axis, block = node.attrs.get("axis", 1), node.attrs.get("block_size", 0)
    made = coded(codes, scale, zero, axis, block, affine=node.op == DEQUANTIZE[1])
    return made if isinstance(made, Coded) else None


def _quantized(node: Node, found: Found) -> Tensor | None:
    """Codes of constant floats, which are rounded as they are read."""
    parts = [None if item is None else followed(item) for item in (*node.inputs, None)[1:3]]
    scale, zero = parts
    if not isinstance(found, Tensor) or not isinstance(scale, Tensor) or isinstance(zero, Coded):
        return None
    if zero is None and node.input(2) is not None:
        return None
    axis, block = node.attrs.get("axis", 1), node.attrs.get("block_size", 0)
    return rounded(found, scale, zero, node.output.dtype, axis, block)


def _converted(node: Node, found: Found) -> Found:
    to = dtype_of_onnx(node.attrs["to"])
    if not to.is_float:
        return None
    if not isinstance(found, Tensor):
        return found
    kind = found.type.dtype
    if kind.is_integer and 2 <= kind.bits <= 8:
        return Integers(found)
    return cast(found, to) if kind.is_float else None


def _lessened(node: Node, found: Found) -> Found:
    """Codes less their zeros, which are whole numbers of their type."""
    zero = followed(node.operand(1))
    if not isinstance(found, Integers) or found.zero is not None or not isinstance(zero, Tensor):
        return None
    kind = found.codes.type.dtype
    if (zero.type.size or 0) > MOST_ZEROS or not zero.type.dtype.is_float:
        return None
    numbers = zero.load().astype(np.float32)
    if not ((numbers == np.rint(numbers)) & (numbers >= kind.low) & (numbers <= kind.high)).all():
        return None
    return Integers(found.codes, InlineTensor(numbers.astype(kind.numpy), kind))


def _multiplied(node: Node, found: Found) -> Found:
    scale = followed(node.operand(1 - _followed_operand(node)))
    if not isinstance(found, Integers) or not isinstance(scale, Tensor) or not scale.type.dtype.is_float:
        return None
    return found.coded(scale)


def _turned(node: Node, found: Found) -> Found:
    if isinstance(found, Integers):
        codes = _turned(node, found.codes) if _is_alike(found.zero) else None
        return Integers(codes, found.zero) if isinstance(codes, Tensor) else None
    if found is None:
        return None
    rank = len(found.axes) if isinstance(found, Coded) else found.type.rank or 0
    order = tuple(node.attrs.get("perm", range(rank)[::-1]))
    if isinstance(found, Coded):
        return found.transposed(order)
    return transposed(found) if order == (1, 0) else found if order == tuple(range(rank)) else None


def _in_shape(node: Node, found: Found) -> Found:
    shape = node.output.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    sizes = node.output.sizes
    if isinstance(found, Integers):
        return Integers(reshaped(found.codes, sizes), found.zero) if _is_alike(found.zero) else None
    return found.reshaped(sizes) if isinstance(found, Coded) else reshaped(found, sizes) if found is not None else None


def _is_alike(zero: Tensor | None) -> bool:
    """True for zeros that are the same in whatever order the codes lie."""
    return zero is None or zero.type.shape == ()


Found = Coded | Tensor | Integers | None
"""What constants were made into so far."""

STEPS: dict[str, Callable[[Node, Found], Found]] = {
    **dict.fromkeys(DEQUANTIZE, _dequantized),
    **dict.fromkeys(SHAPES, _in_shape),
    "QuantizeLinear": _quantized,
    "Cast": _converted,
    "Sub": _lessened,
    "Mul": _multiplied,
    "Transpose": _turned,
    "Identity": lambda node, found: found,
}
"""What each operator makes of what it is given."""
MOST_ZEROS = 1 << 22
"""Zeros that are looked at to see whether they are whole numbers."""


# ---- parts ----


def _storage(parts: Parts) -> Storage:
    return given_codes(*(part for part in parts if part is not None)).storage


def _says_nothing(parts: Parts) -> bool:
    """True when codes and zeros are those of a symmetric form: every zero is the middle of the codes."""
    dtype = parts.codes.type.dtype
    if parts.zero is None:
        return dtype.kind == "i"
    middle = 0 if dtype.kind == "i" else 1 << (dtype.bits - 1)
    return all(bool((rows.astype(np.int16) == middle).all()) for _, _, rows in parts.zero.pieces())


def _widened(parts: Parts, bits: int, affine: bool) -> Parts:
    """The same matrix in wider codes."""
    kind = int_type(bits) if parts.codes.type.dtype.kind == "i" else unsigned_type(bits)
    zero = parts.zero
    return Parts(wide_codes(parts.codes, kind), parts.scale, zero if zero is None or affine else wide_codes(zero, kind))


def _alike(array: np.ndarray) -> np.ndarray:
    """Numbers of a vector, or the one number of all its elements."""
    return array.reshape(()) if array.size == 1 else array


def _oriented(part: Tensor, features: int) -> Tensor:
    return part if features or part.type.rank != 2 else transposed(part)


def _is_made_of(node: Node, parts: list[Tensor], attrs: Mapping[str, int]) -> bool:
    consts = [item.const for item in node.inputs if item is not None]
    same = len(consts) == len(parts) and all(
        const is not None and same_tensor(const, part) for const, part in zip(consts, parts, strict=True)
    )
    return same and all(node.attrs.get(key) == number for key, number in attrs.items())


def _holds_same(table: Parts, other: Parts, affine: bool) -> bool:
    """True when a matrix holds the numbers of a table, in codes of at most its width."""
    kinds = [part.codes.type.dtype for part in (table, other)]
    if other.codes.shape != table.codes.shape or (other.zero is None) != (table.zero is None):
        return False
    if kinds[0].kind != kinds[1].kind or kinds[1].bits > kinds[0].bits:
        return False
    wide = _widened(other, kinds[0].bits, affine)
    pairs = [(one, two) for one, two in zip(table[::-1], wide[::-1], strict=True) if one is not None]
    return all(two is not None and equal(one, two) for one, two in pairs)


def equal(one: Tensor, two: Tensor) -> bool:
    """True when two tensors hold the same numbers in the same type, wherever they lie."""
    if same_tensor(one, two):
        return True
    if one.type != two.type:
        return False
    raw = np.dtype(f"u{one.type.dtype.numpy.itemsize}")
    for start, stop, rows in one.pieces(COMPARED_BYTES):
        if not np.array_equal(rows.view(raw), np.ascontiguousarray(two.rows(start, stop)).view(raw)):
            return False
    return True


def _matches(pattern: str, name: str) -> bool:
    return re.search(pattern[3:], name) is not None if pattern.startswith("re:") else fnmatchcase(name, pattern)


def erase_unread(graph: Graph, value: Value) -> None:
    """Erase a value that nothing reads, and what it alone was made of."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if one.use_count or one.is_output or one.is_input or not graph.holds(one):
            continue
        if one.is_const:
            graph.erase_const(one)
        elif one.producer is not None and not any(item.use_count or item.is_output for item in one.producer.outputs):
            waiting += [item for item in one.producer.inputs if item is not None]
            graph.erase(one.producer)


__all__ = ["SHAPES", "RaiseWeights", "equal", "erase_unread", "followed"]
