"""Common subexpressions: values that are the same for the same reason are computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from ir.graph.compare import attr_key
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import lookup, opsets_of
from ir.quant.weight import quantized_of
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.rewrite.rules import fuse_locs, is_mentioned, joined_type

_PLAIN = {int, str, bytes}
SMALL = 4096
"""Constants up to this many bytes are compared by their bytes, larger ones by where the bytes come from."""


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Compute equal expressions once, by value numbering, and keep one of equal constants.

    Two nodes are equal when operator, attributes (subgraphs by structure) and inputs are, whatever the order of the
    inputs of a commutative operator. Random and stateful operators are never merged, and every graph output keeps its
    name.
    """

    name = "cse"

    constants: bool = option(True, help="also merge equal constants")

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        counts = {"nodes": 0, "constants": 0}
        if self.constants:
            for one in graph.graphs():
                counts["constants"] += _merge_constants(one)
        _Numbering(graph, counts).block(graph, ())
        return {key: count for key, count in counts.items() if count}


# ---- constants ----


def _merge_constants(graph: Graph) -> int:
    groups: dict[Hashable, list[Value]] = {}
    for value in graph.consts.values():
        groups.setdefault(_const_key(value.tensor), []).append(value)
    merged = 0
    for group in groups.values():
        if len(group) < 2:
            continue
        if _is_small(group[0].tensor):
            merged += _unite(graph, group)
            continue
        exact: dict[str, list[Value]] = {}
        for value in group:
            exact.setdefault(value.tensor.fingerprint(), []).append(value)
        merged += sum(_unite(graph, same) for same in exact.values() if len(same) > 1)
    return merged


def _unite(graph: Graph, group: list[Value]) -> int:
    """Keep the first constant of equal ones; what facts speak of or the runtime reads by name stays."""
    fixed = set(graph.tables.values())
    keep = next((one for one in group if one in fixed), group[0])
    merged = 0
    for one in group:
        if one is keep or one in fixed or is_mentioned(graph, one):
            continue
        if one.is_output:
            # The name of an output is part of the graph's interface, so the constant stays for it.
            continue
        graph.replace(one, keep)
        graph.erase_const(one)
        merged += 1
    return merged


def _is_small(tensor: Tensor) -> bool:
    """True when comparing bytes costs little: scales and zeros are few, but a whole weight is quantized for them."""
    return tensor.nbytes <= SMALL and tensor.type.dtype.kind != "s" and not _is_quantized(tensor)


def _is_quantized(tensor: Tensor) -> bool:
    return quantized_of(tensor) is not None or any(map(_is_quantized, tensor.inputs))


def _const_key(tensor: Tensor) -> Hashable:
    kind, shape = tensor.type.dtype.name, tensor.type.shape
    if _is_small(tensor):
        return kind, shape, tensor.load().tobytes()
    if isinstance(tensor, InlineTensor):
        head = tensor.elements(0, 64)
        return kind, shape, tuple(head.tolist()) if kind == "str" else head.tobytes()
    return kind, shape


# ---- nodes ----


class _Numbering:
    """Value numbering by replacement: a merged value is gone, so equal inputs are identical ones."""

    def __init__(self, graph: Graph, counts: dict[str, int]) -> None:
        self.root = graph
        self.counts = counts
        self.opsets = opsets_of(graph)
        self.traits: dict[str, tuple[bool, bool]] = {}

    def block(self, graph: Graph, around: tuple[dict[Hashable, Node], ...]) -> None:
        """Merge the nodes of a graph with earlier ones of it and of the graphs around it."""
        known: dict[Hashable, Node] = {}
        scopes = (known, *around)
        for node in graph.nodes:
            key = self.key(node)
            if key is not None:
                first = next((scope[key] for scope in scopes if key in scope), None)
                if first is None:
                    known[key] = node
                elif self.merge(graph, node, first):
                    continue
            for sub in node.subgraphs:
                self.block(sub, scopes)

    def traits_of(self, op: str) -> tuple[bool, bool]:
        """Whether an operator may be merged at all, and whether it gives the same for any order of its inputs."""
        found = self.traits.get(op)
        if found is None:
            definition = lookup(op, self.opsets)
            pure = definition is not None and definition.has("pure") and not definition.has("random")
            found = self.traits[op] = (pure, definition is not None and definition.has("commutative"))
        return found

    def key(self, node: Node, local: dict[Value, int] | None = None) -> Hashable:
        """What makes a node's outputs what they are; None when that includes chance or effects.

        `local` numbers the values of a subgraph being keyed, which stand for themselves by number.
        """
        pure, commutative = self.traits_of(node.op)
        if not pure or not node.outputs:
            return None
        inputs: Any = node.inputs if local is None else tuple(self.operand(value, local) for value in node.inputs)
        if commutative:
            inputs = frozenset(Counter(inputs).items()) if len(inputs) > 2 else frozenset(inputs)
        parts = []
        for name in sorted(node._attrs):
            part = self.attribute(node._attrs[name], local or {})
            if part is None:
                return None
            parts.append((name, part))
        return node.op, node.overload, len(node.outputs), inputs, tuple(parts)

    def attribute(self, value: Any, local: dict[Value, int]) -> Hashable:
        """A key of an attribute that is equal only for equal attributes; None when a subgraph has no key."""
        kinds = set(map(type, value)) if type(value) is tuple else {type(value)}
        if kinds <= _PLAIN:
            return value
        if isinstance(value, Graph):
            return self.body(value, local)
        if isinstance(value, Tensor):
            return "tensor", _const_key(value), "" if _is_small(value) else value.fingerprint()
        if isinstance(value, tuple):
            items = tuple(self.attribute(item, local) for item in value)
            return None if None in items else items
        return attr_key(value)

    def body(self, graph: Graph, local: dict[Value, int]) -> Hashable:
        """A key of a subgraph: its own values by number, those it captures by identity."""
        local = dict(local)
        for value in graph.inputs:
            local[value] = len(local)
        keys: list[Hashable] = [tuple(str(value.type) for value in graph.inputs)]
        for node in graph.nodes:
            key = self.key(node, local)
            if key is None:
                return None
            keys.append(key)
            for value in node.outputs:
                local[value] = len(local)
        return (*keys, tuple(self.operand(value, local) for value in graph.outputs))

    def operand(self, value: Value | None, local: dict[Value, int]) -> Hashable:
        """A value within a subgraph: constants by contents, own values by number, captured ones by identity."""
        if value is not None and value.const is not None:
            return self.attribute(value.const, local)
        return local.get(value, value) if value is not None else None

    def merge(self, graph: Graph, node: Node, first: Node) -> bool:
        """Make readers of `node` read `first`; False when the graph's interface or a fact needs both names."""
        pairs = list(zip(node.outputs, first.outputs, strict=True))
        for old, new in pairs:
            if old.is_output and (new.is_output or new.graph is not graph):
                return False
            if is_mentioned(graph, old) or (old.is_output and is_mentioned(graph, new)):
                return False
        names = [(new, old.name) for old, new in pairs if old.is_output]
        for old, new in pairs:
            new.graph.set_type(new, joined_type(new.type, old.type))
            graph.replace(old, new)
        first.home.set_loc(first, fuse_locs([first.loc, node.loc]))
        graph.erase(node)
        for value, name in names:
            graph.rename(value, name)
        self.counts["nodes"] += 1
        return True
