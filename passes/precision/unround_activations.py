"""Activations that a file rounds to integers on their way, taken as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ir.base.types import F32, TensorType, ValueType
from ir.graph.graph import Graph, Node, Value
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.precision.raise_weights import SHAPES, erase_unread, followed

MOVES = (*SHAPES, "Transpose", "Identity")
"""Operators that give the same numbers, so that it does not matter whether they move codes or what is coded."""
NOT_NEGATIVE = ("Abs", "Exp", "Relu", "Sigmoid", "Softmax", "Sqrt")
"""Operators whose results a range from zero on does not cut off."""
SMALL = 1 << 16
"""Elements of scales and zeros that are compared by their numbers."""


@dataclass(frozen=True)
class UnroundActivations(Pass):
    """Take out of a graph that activations are rounded to integers, and multiply by dequantized weights instead.

    A QuantizeLinear whose codes are dequantized again gives way to what it rounds, and a product of integers
    (MatMulInteger, QLinearMatMul) becomes one of floats with a dequantized weight, which is kept as it is stored. Runtimes
    that quantize activations do so by scales of their own. A range that ends at zero, by which a Relu is left out of such
    files, stays one. What a file rounds is told, since logits change by it.

    Graphs that this compiler made itself are left as they are.
    """

    name = "unround-activations"
    requires = ("typed",)
    lossy = True

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        if not graph.foreign:
            return {}
        work = _Unrounding(graph)
        for node in list(graph.nodes):
            if node.op == "QLinearMatMul":
                work.write_out(node)
        for node in list(graph.nodes):
            if node.op == "MatMulInteger":
                work.product(node)
        for node in list(graph.nodes):
            if node.op == "DequantizeLinear":
                work.pair(node)
        work.finish()
        if work.rounded:
            first, count = next(iter(work.rounded.values())), len(work.rounded)
            ctx.warn(
                "Q467",
                f"activations are rounded to integers in {count} place{'s' if count > 1 else ''} of the file, which is left "
                "out",
                where=first,
                hint="logits differ from the file's by what the rounding costs; export the model without quantized "
                "activations to have one that gives the same",
            )
        return work.counts


@dataclass
class _Unrounding:
    """One run of the pass.

    Attributes:
        rounded: where activations were rounded, by the value that was.
        ranged: activations cut off at zero, by the node that rounds them.
        replaced: values that nothing should read any more.
    """

    graph: Graph
    rounded: dict[Value, str] = field(default_factory=dict)
    ranged: dict[Node, Value] = field(default_factory=dict)
    replaced: list[tuple[Value, Value]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def write_out(self, node: Node) -> None:
        """A product of codes as one of dequantized operands that is quantized."""
        given = [node.operand(place) for place in range(8)]
        if any(value.shape is None for value in (given[0], given[3], node.output)):
            return
        floats = [self._dequantized(node, *given[start : start + 3]) for start in (0, 3)]
        product = self._add(node, "MatMul", floats, TensorType(F32, node.output.shape))
        type_ = node.output.type
        made = self.graph.add("QuantizeLinear", [product, *given[6:]], types=[type_], before=node, loc=node.loc)
        self._take_over(node.output, made.output)

    def product(self, node: Node) -> None:
        """A product of integers, its cast and its factors as a product of floats."""
        left = self._rounding(node.operand(0), node.input(2))
        right = self._rounding(node.operand(1), node.input(3))
        chain = _scaled(node.output)
        if left is None or chain is None:
            return
        end, factors = chain
        rest = _without(factors, left.scale)
        if rest is None:
            return
        if right is not None:
            if _without(rest, right.scale) != []:
                return
            other = self._ranged(right)
        elif isinstance(followed(node.operand(1)), Tensor) and len(rest) == 1 and rest[0].const is not None:
            weight = self._weight(node, rest[0])
            if weight is None:
                return
            other = weight
        else:
            return
        made = self._add(end, "MatMul", [self._ranged(left), other], end.output.type)
        self._tell(left)
        if right is not None:
            self._tell(right)
        self._count("products")
        self._take_over(end.output, made)

    def pair(self, node: Node) -> None:
        """Codes that are dequantized as they were quantized: what was quantized."""
        moves: list[Node] = []
        value = node.operand(0)
        while value.producer is not None and value.producer.op in MOVES and len(value.producer.outputs) == 1:
            moves.append(value.producer)
            value = value.producer.operand(0)
        found = self._rounding(value, node.input(2))
        scale = node.operand(1)
        if found is None or not _same(found.scale, scale) or (moves and _elements(scale) != 1):
            return
        if found.axes != (node.attrs.get("axis", 1), node.attrs.get("block_size", 0)) and _elements(scale) != 1:
            return
        source = self._ranged(found)
        for move in reversed(moves):
            type_ = TensorType(source.dtype, move.output.shape)
            source = self._add(node, move.op, [source, *move.inputs[1:]], type_, move.attrs)
        if source.dtype != node.output.dtype:
            source = self._add(node, "Cast", [source], node.output.type, {"to": node.output.dtype.onnx})
        self._tell(found)
        self._count("pairs")
        self._take_over(node.output, source)

    def finish(self) -> None:
        """Erase what nothing reads any more; outputs of the graph keep their names."""
        for old, new in self.replaced:
            erase_unread(self.graph, old)
            free = not self.graph.has(old.name)
            if free and new.is_output and new.producer is not None:
                self.graph.rename(new, old.name)

    def _take_over(self, old: Value, new: Value) -> None:
        if old.is_output and (new.producer is None or new.is_output):
            node = old.producer
            assert node is not None
            new = self._add(node, "Identity", [new], old.type)
        self.graph.replace(old, new)
        self.replaced.append((old, new))

    def _tell(self, found: _Rounding) -> None:
        self.rounded.setdefault(found.source, found.where)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _add(
        self,
        before: Node,
        op: str,
        inputs: Sequence[Value | None],
        type_: ValueType | None,
        attrs: Mapping[str, Any] | None = None,
    ) -> Value:
        return self.graph.add(op, inputs, attrs, types=[type_], before=before, loc=before.loc).output

    def _rounding(self, codes: Value, zero: Value | None) -> _Rounding | None:
        """What codes were rounded from, if they count from such a zero; constants are no activations."""
        node = codes.producer
        if node is None or node.op not in ("QuantizeLinear", "DynamicQuantizeLinear"):
            return None
        source = node.operand(0)
        if source.const is not None or not isinstance(source.type, TensorType) or source.shape is None:
            return None
        dynamic = node.op == "DynamicQuantizeLinear"
        scale, own = (node.outputs[1], node.outputs[2]) if dynamic else (node.operand(1), node.input(2))
        if codes is not node.outputs[0] or not _same_zero(own, zero):
            return None
        axes = (node.attrs.get("axis", 1), node.attrs.get("block_size", 0))
        kind = codes.dtype
        end = None if dynamic else _one_number(own, 0)
        cut = "Max" if end == kind.low else "Min" if end == kind.high else ""
        return _Rounding(source, scale, axes, node, cut)

    def _ranged(self, found: _Rounding) -> Value:
        """The activations, cut off at zero where the range of their codes ends there."""
        source = found.source
        producer = source.producer
        if not found.cut or (found.cut == "Max" and producer is not None and producer.op in NOT_NEGATIVE):
            return source
        if found.node not in self.ranged:
            zero = self.graph.add_const(
                self.graph.fresh_name(f"{source.name}.zero"), InlineTensor(np.zeros((), source.dtype.numpy))
            )
            self.ranged[found.node] = self._add(found.node, found.cut, [source, zero], source.type)
        return self.ranged[found.node]

    def _dequantized(self, node: Node, codes: Value, scale: Value, zero: Value) -> Value:
        type_ = TensorType(scale.dtype, codes.shape)
        return self._add(node, "DequantizeLinear", [codes, scale, zero], type_, {"axis": (codes.rank or 1) - 1})

    def _weight(self, node: Node, scale: Value) -> Value | None:
        """Constant codes of a product under a dequantization with a scale for the whole, or for each output."""
        codes, zero = node.operand(1), node.input(3)
        columns = codes.sizes[-1]
        if codes.rank != 2 or _elements(scale) not in (1, columns):
            return None
        flat = _elements(scale) == columns and columns > 1
        numbers = [scale.tensor.load().reshape((columns,) if flat else ())]
        if zero is not None:
            if zero.const is None or _elements(zero) not in (1, columns):
                return None
            given = zero.tensor.load().reshape(-1)
            if not flat and given.size > 1:
                numbers[0], flat = np.broadcast_to(numbers[0], (columns,)), True
            numbers.append(np.broadcast_to(given, (columns,)) if flat else given.reshape(()))
        consts = [
            self.graph.add_const(self.graph.fresh_name(f"{codes.name}.{word}"), InlineTensor(array))
            for word, array in zip(("scale", "zero"), numbers, strict=False)
        ]
        made = self.graph.add(
            "DequantizeLinear",
            [codes, *consts],
            {"axis": 1},
            outputs=[self.graph.fresh_name(f"{codes.name}.real")],
            types=[TensorType(F32, codes.shape)],
            before=node,
            loc=codes.loc or node.loc,
        )
        return made.output


@dataclass(frozen=True)
class _Rounding:
    """Codes and what they were made of.

    Attributes:
        source: the activations.
        scale: of the codes.
        axes: attributes ``axis`` and ``block_size``.
        node: what rounds them.
        cut: ``Max`` or ``Min`` where the range ends at zero, from below or from above; else empty.
    """

    source: Value
    scale: Value
    axes: tuple[int, int]
    node: Node
    cut: str

    @property
    def where(self) -> str:
        """The place, for people."""
        return self.node.loc or self.node.name or self.source.name


def _scaled(product: Value) -> tuple[Node, list[Value]] | None:
    """The last of the nodes that only cast a product and multiply it, and the factors; None where there are none."""
    node: Node | None = None
    factors: list[Value] = []
    value = product
    while value.use_count == 1 and len(value.users) == 1:
        user = value.users[0]
        if user.op == "Cast" and node is None:
            node = user
        elif user.op == "Mul" and node is not None and len(factors) < 2:
            other = next((item for item in user.inputs if item is not value), None)
            if other is None:
                return None
            factors += _leaves(other)
            node = user
        else:
            break
        value = user.outputs[0]
    return (node, factors) if node is not None and len(factors) == 2 else None


def _leaves(value: Value) -> list[Value]:
    node = value.producer
    if node is None or node.op != "Mul":
        return [value]
    return [leaf for item in node.inputs if item is not None for leaf in _leaves(item)]


def _without(factors: list[Value], one: Value) -> list[Value] | None:
    """The other factors; None when the one is not among them."""
    place = next((place for place, item in enumerate(factors) if _same(item, one)), None)
    return None if place is None else factors[:place] + factors[place + 1 :]


def _elements(value: Value) -> int:
    """Elements of a value of known sizes, else 0."""
    size = value.type.size if isinstance(value.type, TensorType) else None
    return size if isinstance(size, int) else 0


def _one_number(value: Value | None, otherwise: int) -> int | None:
    """The number that all elements of a constant have; None where there are several or they are not known."""
    if value is None:
        return otherwise
    if value.const is None or not 0 < _elements(value) <= SMALL:
        return None
    found = {int(number) for number in value.tensor.load().reshape(-1)}
    return found.pop() if len(found) == 1 else None


def _same(a: Value, b: Value) -> bool:
    if a is b:
        return True
    if a.const is None or b.const is None or _elements(a) != _elements(b) or _elements(a) > SMALL:
        return False
    return bool(np.array_equal(a.tensor.load().reshape(-1), b.tensor.load().reshape(-1)))


def _same_zero(a: Value | None, b: Value | None) -> bool:
    """True when two zeros say the same; none at all says 0."""
    if a is not None and b is not None:
        return _same(a, b)
    given = a if a is not None else b
    if given is None:
        return True
    return given.const is not None and _elements(given) <= SMALL and not given.tensor.load().any()


__all__ = ["UnroundActivations"]
