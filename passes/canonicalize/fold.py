"""Constant folding: what can be known before the first inference is computed now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.evaluate.evaluator import evaluate_constants
from ir.graph.graph import Graph, Node, Value
from ir.infer.engine import infer_node
from ir.infer.inference import is_sound
from ir.infer.rule_table import TypeMismatch
from ir.ops.registry import lookup, opsets_of
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from passes.canonicalize.branches import take_branches
from passes.canonicalize.fold_shapes import SHAPES
from passes.canonicalize.identities import IDENTITIES
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.rewrite.rules import RuleSet, is_mentioned

STORAGE = frozenset({"DequantizeLinear", "lading.AffineDequantize"})
"""Operators that say how a constant is stored, so that computing them now would undo a decision."""
MOVES_WEIGHTS = frozenset({"Slice", "Concat", "Squeeze", "Unsqueeze"})
"""Operators by which exporters put weights together, such as the gates of a recurrent layer in another order."""
BOUNDED = frozenset({"Compress", "NonZero", "Unique"})
"""Operators whose result size is not known beforehand but is limited by that of their operands."""
RULES = RuleSet(SHAPES, IDENTITIES)


@dataclass(frozen=True)
class Fold(Pass):
    """Compute what follows from constants and known shapes, and drop operations that change nothing.

    Large weights are never loaded: operands and results have a size limit. Dequantized and widened weights stay as they are
    stored. Of a choice whose condition is known, the chosen branch is left. Shapes are used where dimensions are numbers;
    a reshape or cast is dropped only when types prove it useless. ``x + 0.0`` is taken for ``x``, though it turns -0.0
    into 0.0.
    """

    name = "fold"

    max_bytes: int = option(65536, help="largest operand and result of a computation in bytes", low=0)
    max_moved_bytes: int = option(1 << 20, help="the same where float weights are cut or joined", low=0)

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        counts: dict[str, int] = {}
        start: Iterable[Node] | None = None
        while True:
            for name, hits in ctx.rewrite(graph, RULES, env=self, start=start).items():
                counts[name] = counts.get(name, 0) + hits
            limits = Limits(self.max_bytes, self.max_moved_bytes)
            made = [value for one in graph.graphs() for value in _fold_graph(one, limits)]
            taken = take_branches(graph)
            if not made and not taken:
                return counts
            for name, found in (("computed", made), ("from branches", taken)):
                if found:
                    counts[name] = counts.get(name, 0) + len(found)
            users = (node for value in made for node in value.users)
            start = dict.fromkeys(node for node in (*users, *taken) if node.graph is not None)


class Limits(NamedTuple):
    """Largest operand and result in bytes: of all nodes, and of those that move float weights."""

    computed: int
    moved: int

    def of(self, node: Node) -> int:
        """The limit of one node."""
        moves = node.op in MOVES_WEIGHTS and node.outputs and _is_float(node.outputs[0].type)
        return max(self) if moves else self.computed


def _is_float(type_: object) -> bool:
    return isinstance(type_, TensorType) and type_.dtype.is_float


def _fold_graph(graph: Graph, limits: Limits) -> list[Value]:
    """Replace the foldable nodes of one graph; returns the constants made."""
    made: list[Value] = []
    for node in graph.nodes:
        literal = _literal(node)
        if literal is not None:
            made += _replace(graph, [node], {node.output.name: literal})
    return made + _compute(graph, _Choice(graph, limits).nodes(), max(limits))


def _compute(graph: Graph, nodes: list[Node], limit: int) -> list[Value]:
    """Evaluate nodes at once; when that fails, find those that can be evaluated by halves."""
    if not nodes:
        return []
    try:
        arrays = evaluate_constants(nodes, limit=limit)
    except LadingError:
        if len(nodes) == 1:
            return []
        half = len(nodes) // 2
        return _compute(graph, nodes[:half], limit) + _compute(graph, nodes[half:], limit)
    results: dict[str, Tensor] = {}
    for node in nodes:
        for value in node.outputs:
            array = arrays.get(value.name)
            if array is not None and _agrees(value, array):
                results[value.name] = InlineTensor(
                    array, value.type.dtype if isinstance(value.type, TensorType) else None
                )
    return _replace(graph, nodes, results)


def _agrees(value: Value, array: np.ndarray) -> bool:
    """True when a computed array is of the recorded element type."""
    if value.type is None:
        return True
    return isinstance(value.type, TensorType) and (
        array.dtype == value.type.dtype.numpy or value.type.dtype.kind == "s"
    )


def _replace(graph: Graph, nodes: Sequence[Node], results: dict[str, Tensor]) -> list[Value]:
    """Put constants in the place of computed values that something else reads, and erase the nodes."""
    done = [node for node in nodes if all(value.name in results for value in node.outputs)]
    gone = set(done)
    made = []
    for node in done:
        for value in node.outputs:
            inner = sum(1 for reader, _ in value.uses if reader in gone)
            if value.use_count > inner:
                made.append(_substitute(graph, node, value, results[value.name]))
    for node in reversed(done):
        inputs = node.inputs
        graph.erase(node)
        for read in dict.fromkeys(inputs):
            if read is not None and read.const is not None and not read.use_count:
                read.graph.erase_const(read)
    return made


def _substitute(graph: Graph, node: Node, value: Value, tensor: Tensor) -> Value:
    """A constant with the name of a value, read wherever that was; an output keeps a node to name it."""
    name, loc = value.name, value.loc or node.loc
    if value.is_output:
        const = graph.add_const(f"{name}.value", tensor, loc=loc)
        twin = graph.add("Identity", [const], types=[tensor.type], before=node, name=node.name, loc=loc)
        graph.replace(value, twin.output)
        graph.rename(value, graph.fresh_name(f"{name}.computed"))
        graph.rename(twin.output, name)
        return const
    graph.rename(value, graph.fresh_name(f"{name}.computed"))
    const = graph.add_const(name, tensor, loc=loc)
    graph.replace(value, const)
    return const


class _Choice:
    """Which nodes of a graph can be computed now."""

    def __init__(self, graph: Graph, limits: Limits) -> None:
        self.graph = graph
        self.limits = limits
        self.opsets = opsets_of(graph)
        self.foldable: dict[str, bool] = {}
        self.chosen: set[Node] = set()

    def nodes(self) -> list[Node]:
        """The foldable nodes in program order; each reads constants and results of earlier ones alone."""
        found = []
        for node in self.graph.nodes:
            if self.reads_constants(node) and self.may_fold(node):
                self.chosen.add(node)
                found.append(node)
        return found

    def reads_constants(self, node: Node) -> bool:
        constant = all(
            value is None or value.const is not None or value.producer in self.chosen for value in node.inputs
        )
        return constant and self.operands_fit(node)

    def operands_fit(self, node: Node) -> bool:
        limit = self.limits.of(node)
        return all(_size(value.type) <= limit for value in node.inputs if value is not None and value.const is not None)

    def may_fold(self, node: Node) -> bool:
        foldable = self.foldable.get(node.op)
        if foldable is None:
            definition = lookup(node.op, self.opsets)
            foldable = definition is not None and definition.has("constant_foldable") and node.op not in STORAGE
            self.foldable[node.op] = foldable
        if not foldable or not node.outputs or node.subgraphs or not is_sound(node):
            return False
        if _widens(node) or _divides_by_zero(node) or any(is_mentioned(self.graph, value) for value in node.outputs):
            return False
        return not any(value.is_output and _needs_its_node(value) for value in node.outputs) and self.results_fit(node)

    def results_fit(self, node: Node) -> bool:
        if node.op == "Constant" or node.op in BOUNDED:
            return True
        types = [value.type for value in node.outputs]
        if None in types:
            try:
                types = infer_node(node)
            except TypeMismatch:
                return False
        return all(_size(one) <= self.limits.of(node) for one in types)


def _needs_its_node(value: Value) -> bool:
    """True for a graph output that an Identity of a constant could not give, or gives already.

    onnxruntime has no Identity for types below one byte.
    """
    narrow = isinstance(value.type, TensorType) and value.type.dtype.bits < 8 and value.type.dtype.kind != "s"
    return narrow or (value.producer is not None and value.producer.op == "Identity")


_UNKNOWN = 1 << 62


def _size(type_: object) -> int:
    """Bytes of a static tensor type, strings counted as 16 bytes; more than any limit for all other types."""
    if not isinstance(type_, TensorType) or type_.size is None:
        return _UNKNOWN
    return type_.size * 16 if type_.dtype.kind == "s" else type_.nbytes or 0


def _widens(node: Node) -> bool:
    """True for a cast of floats to wider floats: the constant is stored narrow on purpose."""
    source = node.inputs[0].type if node.op == "Cast" and node.inputs[0] is not None else None
    target = node.output.type
    if not isinstance(source, TensorType) or not isinstance(target, TensorType) or source.size in (0, 1):
        return False
    return source.dtype.is_float and target.dtype.is_float and target.dtype.bits > source.dtype.bits


def _divides_by_zero(node: Node) -> bool:
    """True for an integer division that may be by zero, which stops the process instead of failing."""
    if node.op not in ("Div", "Mod"):
        return False
    divisor = node.inputs[1]
    if divisor is None or divisor.const is None:
        type_ = divisor.type if divisor is not None else None
        return not (isinstance(type_, TensorType) and type_.dtype.is_float)
    return divisor.const.type.dtype.is_integer and not bool(divisor.const.load().all())


def _literal(node: Node) -> Tensor | None:
    """The tensor that a ``Constant`` node holds, as it is."""
    if node.op != "Constant" or not is_sound(node):
        return None
    for key, kind in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if key in node.attrs:
            return InlineTensor(np.array(node.attrs[key], kind))
    for key in ("value_string", "value_strings"):
        if key in node.attrs:
            return InlineTensor(np.array(node.attrs[key], object))
    found = node.attrs.get("value")
    return found if isinstance(found, Tensor) else None
