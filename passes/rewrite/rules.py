"""Rewrite rules and the driver that applies them until none fires.

A rule is a pattern and a function ``(m: Match, rw: Rewriter) -> Value | tuple | None``: it says what stands in for the
outputs of the matched root node, or None to leave it. Everything else is the driver's: it inserts new nodes before the
root and infers their types, moves the readers, gives the name of what is replaced to its replacement, fuses locations,
removes what nothing reads any more, and looks again at the nodes whose surroundings changed, and only at those.

Order is fixed: program order, then rules as listed. Work is proportional to the number of nodes and of rewrites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ir.base.types import Dim, TensorType, ValueType
from ir.graph.graph import Fact, Graph, Node, Value
from ir.infer.engine import infer_node
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from passes.rewrite.patterns import Match, Op, Pattern, roots_of

Replacement = Value | Sequence["Value | None"] | None
MOST_LOCS = 8
MOST_GENERATIONS = 1000
"""How often a node may be replaced by its own replacement before the rules are taken to loop."""


class RuleError(Exception):
    """A rule broke its contract: a mistake of the rule's author."""


@dataclass(frozen=True)
class Rule:
    """A pattern and what to do where it matches; made with `rule`."""

    name: str
    pattern: Pattern
    function: Callable[[Match, Rewriter], Replacement]
    summary: str = ""

    @cached_property
    def heads(self) -> tuple[Op, ...]:
        """The operator patterns that the root can match, in order."""
        return roots_of(self.pattern)

    @cached_property
    def roots(self) -> frozenset[str] | None:
        """Operators that a root can have; None for any."""
        found: set[str] = set()
        for root in self.heads:
            if root.ops is None:
                return None
            found |= root.ops
        return frozenset(found)


def rule(pattern: Pattern) -> Callable[[Callable[[Match, Rewriter], Replacement]], Rule]:
    """Make a rule of a function; its name and the first line of its docstring describe it in reports."""

    def make(function: Callable[[Match, Rewriter], Replacement]) -> Rule:
        made = Rule(function.__name__, pattern, function, (function.__doc__ or "").strip().partition("\n")[0])
        _ = made.roots
        return made

    return make


class RuleSet:
    """Rules in order; sets add up, and the same rule may be in several."""

    def __init__(self, *rules: Rule | RuleSet) -> None:
        flat: list[Rule] = []
        for item in rules:
            flat.extend(item.rules if isinstance(item, RuleSet) else (item,))
        self.rules: tuple[Rule, ...] = tuple(dict.fromkeys(flat))
        names = [item.name for item in self.rules]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"different rules share the name {sorted(twice)[0]!r}")

    def __add__(self, other: RuleSet | Rule) -> RuleSet:
        return RuleSet(self, other)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def rules_for(self, op: str) -> tuple[Rule, ...]:
        """The rules whose root can be this operator, in order."""
        found = self._by_op.get(op)
        return self._any if found is None else found

    @cached_property
    def _any(self) -> tuple[Rule, ...]:
        return tuple(item for item in self.rules if item.roots is None)

    @cached_property
    def _by_op(self) -> dict[str, tuple[Rule, ...]]:
        ops = {op for item in self.rules for op in item.roots or ()}
        return {op: tuple(r for r in self.rules if r.roots is None or op in r.roots) for op in ops}

    @cached_property
    def depth(self) -> int:
        """Levels of nodes that the deepest pattern looks at."""
        return max((item.pattern.depth for item in self.rules), default=0)

    @cached_property
    def most_users(self) -> int:
        """The largest number of users that any pattern asks for."""
        return max((item.pattern.most_users for item in self.rules), default=0)


@dataclass(slots=True)
class RuleStat:
    """How often a rule was tried and fired, and the seconds both took."""

    tries: int = 0
    hits: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class WhyNot:
    """Why a rule left a node alone."""

    rule: str
    node: str
    reason: str


@dataclass
class RewriteReport:
    """What one application of a rule set did.

    Attributes:
        stats: statistics by rule name, in rule order.
        why_not: with ``explain``, every try that failed and its reason.
    """

    stats: dict[str, RuleStat]
    why_not: list[WhyNot] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Hits by rule name, for the rules that fired."""
        return {name: stat.hits for name, stat in self.stats.items() if stat.hits}

    @property
    def hits(self) -> int:
        """All hits."""
        return sum(stat.hits for stat in self.stats.values())


def fuse_locs(locs: Sequence[str]) -> str:
    """One location that names the distinct parts, in order: ``a + b``; of many, the first `MOST_LOCS`."""
    parts: dict[str, None] = {}
    for loc in locs:
        if loc and loc not in parts:
            parts.update(dict.fromkeys(loc.split(" + ")))
        if len(parts) >= MOST_LOCS:
            break
    return " + ".join(list(parts)[:MOST_LOCS])


class Rewriter:
    """What a rule may use to build its replacement.

    Attributes:
        graph: the graph being rewritten, the outermost one.
        env: the pass that applies the rules, for its options; None outside a pass.
    """

    def __init__(self, graph: Graph, env: Any) -> None:
        self.graph = graph
        self.env = env
        self._begin([])

    def _begin(self, matched: list[Node]) -> None:
        """Get ready for one call of a rule."""
        self._matched = matched
        self._fused: str | None = None
        self._made: list[Node] = []
        self._consts: list[Value] = []

    @property
    def _root(self) -> Node:
        """The node that a rule would replace."""
        return self._matched[0]

    @property
    def _loc(self) -> str:
        """The locations of the matched nodes, fused when first asked for."""
        if self._fused is None:
            self._fused = fuse_locs([node.loc for node in self._matched])
        return self._fused

    def op(
        self,
        op: str,
        *inputs: Value | None,
        attrs: Mapping[str, Any] | None = None,
        types: Sequence[ValueType | None] | None = None,
        outputs: int = 1,
        name: str = "",
    ) -> Any:
        """The output of a new node placed before the root; a tuple of them when `outputs` is not 1.

        Args:
            op: operator name.
            inputs: values; None leaves an optional input out.
            attrs: attributes.
            types: output types; inferred when not given.
            outputs: number of outputs.
            name: stem for the output's name while it stands in for nothing.
        """
        root = self._root
        if any(value is not None and value.producer is root for value in inputs):
            raise RuleError(f"{op} reads an output of the node it is to replace, {root!r}")
        stem = name or f"{root.outputs[0].name}.{op.rpartition('.')[2].lower()}"
        node = root.home.add(op, inputs, attrs, outputs=(stem,) * outputs, types=types, before=root, loc=self._loc)
        self._made.append(node)
        if types is None:
            for value, found in zip(node.outputs, infer_node(node), strict=False):
                value.graph.set_type(value, found)
        return node.outputs[0] if outputs == 1 else node.outputs

    def const(self, data: np.ndarray | Tensor, name: str = "") -> Value:
        """A new constant of the root's graph."""
        tensor = data if isinstance(data, Tensor) else InlineTensor(data)
        root = self._root
        value = root.home.add_const(name or f"{root.outputs[0].name}.const", tensor, loc=self._loc)
        self._consts.append(value)
        return value

    def fact(self, kind: type[Fact] | str) -> Any:
        """A fact of the graph by class or name, or None."""
        return self.graph.facts.get(kind if isinstance(kind, str) else kind.name)


def is_mentioned(graph: Graph, value: Value) -> bool:
    """True when a fact recorded on the graph names the value, so that the name must stay."""
    return any(isinstance(fact, Fact) and fact.mentions(value.name) for fact in graph.facts.values())


def joined_type(old: ValueType | None, new: ValueType | None) -> ValueType | None:
    """The type that knows most: numbers before names, names that readers were inferred with before new ones."""
    if old is None or new is None:
        return new or old
    if not isinstance(old, TensorType) or not isinstance(new, TensorType) or old.shape is None or new.shape is None:
        return new if isinstance(new, TensorType) and new.shape is not None else old
    shape = tuple(
        b if isinstance(a, Dim) and isinstance(b, int) else a for a, b in zip(old.shape, new.shape, strict=True)
    )
    return TensorType(old.dtype, shape)
