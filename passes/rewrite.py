"""Rewrite rules and the driver that applies them until none fires.

A rule is a pattern and a function ``(m: Match, rw: Rewriter) -> Value | tuple | None``: it says what stands in for the
outputs of the matched root node, or None to leave it. Everything else is the driver's: it inserts new nodes before the
root and infers their types, moves the readers, gives the name of what is replaced to its replacement, fuses locations,
removes what nothing reads any more, and looks again at the nodes whose surroundings changed, and only at those.

Order is fixed: program order, then rules as listed. Work is proportional to the number of nodes and of rewrites.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ir.diag import LadingError
from ir.facts import Fact
from ir.graph import Edit, Graph, Node, Value
from ir.infer import infer_node
from ir.tensor import InlineTensor, Tensor
from ir.types import Dim, TensorType, ValueType
from passes.patterns import Match, Op, Pattern, Skips, State, roots_of

if TYPE_CHECKING:
    from passes.base import PassContext

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
        ctx: the pass's context; None outside a pass.
    """

    def __init__(self, graph: Graph, env: Any, ctx: PassContext | None) -> None:
        self.graph = graph
        self.env = env
        self.ctx = ctx
        self._root: Node = None  # type: ignore[assignment]
        self._loc = ""
        self._made: list[Node] = []
        self._consts: list[Value] = []

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
        node = root.graph.add(  # type: ignore[union-attr]
            op, inputs, attrs, outputs=(stem,) * outputs, types=types, before=root, name=root.name, loc=self._loc
        )
        self._made.append(node)
        if types is None:
            for value, found in zip(node.outputs, infer_node(node), strict=False):
                value.graph.set_type(value, found)
        return node.outputs[0] if outputs == 1 else node.outputs

    def const(self, data: np.ndarray | Tensor, name: str = "") -> Value:
        """A new constant of the root's graph."""
        tensor = data if isinstance(data, Tensor) else InlineTensor(data)
        graph = self._root.graph
        value = graph.add_const(name or f"{self._root.outputs[0].name}.const", tensor, loc=self._loc)  # type: ignore[union-attr]
        self._consts.append(value)
        return value

    def fact(self, kind: type | str) -> Any:
        """A fact of the graph by class or name, or None."""
        return self.graph.facts.get(kind if isinstance(kind, str) else kind.name)  # type: ignore[attr-defined]


def spoken_of(graph: Graph, value: Value) -> bool:
    """True when a fact recorded on the graph names the value, so that the name must stay."""
    facts = [fact for fact in graph.facts.values() if isinstance(fact, Fact)]
    return any(fact.renamed(value.name, f"{value.name}.") is not fact for fact in facts)


@dataclass(frozen=True, slots=True)
class _Lineage:
    """How a node came about: which rule replaced what, back to the original graph."""

    generation: int
    rule: str
    parent: _Lineage | None

    def rules(self, most: int = 64) -> list[str]:
        """Names of the last rules, most recent last, each once."""
        names: list[str] = []
        item: _Lineage | None = self
        while item is not None and most:
            names.append(item.rule)
            item, most = item.parent, most - 1
        return list(dict.fromkeys(reversed(names)))


class _Driver:
    def __init__(
        self, graph: Graph, rules: RuleSet, env: Any, ctx: PassContext | None, start: Iterable[Node] | None
    ) -> None:
        self.graph = graph
        self.rules = rules
        self.explain = bool(ctx and ctx.explain)
        self.report = RewriteReport({item.name: RuleStat() for item in rules})
        self.rewriter = Rewriter(graph, env, ctx)
        self.queue: deque[Node] = deque(graph.walk() if start is None else dict.fromkeys(start))
        self.queued: set[Node] = set(self.queue)
        self.lineage: dict[Node, _Lineage] = {}
        self.touched: dict[Node, None] = {}
        self.loosened: dict[Value, None] = {}
        self.limit = MOST_GENERATIONS

    def run(self) -> RewriteReport:
        stop = self.graph.listen(self.on_edit)
        try:
            while self.queue:
                node = self.queue.popleft()
                self.queued.discard(node)
                if node.graph is not None:
                    self.visit(node)
        finally:
            stop()
        return self.report

    def visit(self, node: Node) -> None:
        """Try the rules for a node in order; the first that fires ends the visit."""
        for item in self.rules.rules_for(node.op):
            stat = self.report.stats[item.name]
            stat.tries += 1
            start = perf_counter()
            fired = self.attempt(item, node)
            stat.seconds += perf_counter() - start
            if fired:
                stat.hits += 1
                self.enqueue_touched()
                return

    def attempt(self, item: Rule, node: Node) -> bool:
        """Match and apply one rule at one node."""
        state, root = self.find(item, node)
        if root is None:
            if self.explain:
                self.report.why_not.append(WhyNot(item.name, repr(node), state.failure))
            return False
        skips = Skips(self.explain)
        rewriter = self.rewriter
        rewriter._root, rewriter._made, rewriter._consts = node, [], []
        rewriter._loc = fuse_locs([one.loc for one in state.nodes])
        version = self.graph.version
        try:
            result = item.function(Match(node, state, skips), rewriter)
            fired = self.apply(node, result) if result is not None else False
        except Exception as error:
            error.add_note(f"in rule {item.name} at {node!r}")
            raise
        self.drop_unused()
        if fired == "edited":
            fired = self.graph.version != version
        if fired:
            self.follow(item, node)
            return True
        self.touched.clear()
        self.loosened.clear()
        if self.explain:
            reason = skips.reason or "the rule declined" if result is None else "the replacement changes nothing"
            self.report.why_not.append(WhyNot(item.name, repr(node), reason))
        return False

    def find(self, item: Rule, node: Node) -> tuple[State, Node | None]:
        """The bindings of a rule's pattern at a node, and the node, or None when it does not match."""
        state = State(self.explain)
        value = node.outputs[0] if node.outputs else None
        for root in item.heads:
            if (root.ops is None or node.op in root.ops) and root.match_node(node, value, None, state):
                return state, node
        return state, None

    # ---- applying ----

    def apply(self, root: Node, result: Replacement) -> bool | str:
        """Replace the root's outputs; False when nothing changed, ``edited`` when the rule only edited in place."""
        new = (result,) if isinstance(result, Value) else tuple(result)  # type: ignore[arg-type]
        if len(new) != len(root.outputs):
            raise RuleError(f"the rule returned {len(new)} values for {len(root.outputs)} outputs")
        pairs = [(old, one) for old, one in zip(root.outputs, new, strict=True) if one is not old]
        if not pairs:
            return "edited"
        for old, one in pairs:
            if one is None and old.use_count:
                raise RuleError(f"the rule returned None for %{old.name}, which is used")
            if one is not None:
                _check_types(old, one)
        if root.op == "Identity" and any(one is not None and self.pins_name(old, one) for old, one in pairs):
            return False
        names = [(self.move(root, old, one), old.name) for old, one in pairs if one is not None]
        if not any(value.use_count for value in root.outputs):
            inputs = root.inputs
            root.graph.erase(root)  # type: ignore[union-attr]
            for value, name in names:
                if value is not None and value.name != name and not value.graph.has(name):
                    value.graph.rename(value, name)
            self.sweep(inputs)
        return True

    def move(self, root: Node, old: Value, new: Value) -> Value | None:
        """Make the readers of `old` read `new`; returns the value that is to take over the name, if any."""
        graph = old.graph
        if self.pins_name(old, new):
            node = graph.add("Identity", [new], outputs=(old.name,), types=(old.type,), before=root, loc=root.loc)
            self.rewriter._made.append(node)
            new = node.outputs[0]
        named = new.producer is not None and (new.producer in self.rewriter._made or old.is_output)
        if new.const is None:
            new.graph.set_type(new, joined_type(old.type, new.type))
        if new.producer is not None and not new.loc:
            new.graph.set_loc(new, old.loc)
        graph.replace(old, new)
        return new if named else None

    def pins_name(self, old: Value, new: Value) -> bool:
        """True when `old` is an output whose name `new` cannot take: inputs, constants and other outputs keep theirs."""
        return old.is_output and (new.producer is None or new.graph is not old.graph or new.is_output)

    def sweep(self, values: Sequence[Value | None]) -> None:
        """Erase constants and nodes that nothing reads, from these values upwards."""
        waiting = [value for value in values if value is not None]
        while waiting:
            value = waiting.pop()
            if value.use_count:
                continue
            if value.const is not None:
                if value.graph.consts.get(value.name) is value:
                    value.graph.erase_const(value)
                continue
            node = value.producer
            if node is None or node.graph is None or any(out.use_count for out in node.outputs):
                continue
            inputs = node.inputs
            node.graph.erase(node)
            waiting.extend(one for one in inputs if one is not None)

    def drop_unused(self) -> None:
        """Erase what the rule built and nothing reads."""
        rewriter = self.rewriter
        for node in reversed(rewriter._made):
            if node.graph is not None and not any(value.use_count for value in node.outputs):
                node.graph.erase(node)
        for value in rewriter._consts:
            if not value.use_count and value.graph.consts.get(value.name) is value:
                value.graph.erase_const(value)

    # ---- following changes ----

    def on_edit(self, edit: Edit) -> None:
        """Note the nodes that a finished edit may have made matchable."""
        if edit.node is not None:
            self.touched[edit.node] = None
        if edit.value is not None and edit.kind in ("set_input", "set_type", "set_const"):
            self.loosened[edit.value] = None
        if edit.kind == "erase":
            for value in edit.node.inputs:  # type: ignore[union-attr]
                if value is not None:
                    self.loosened[value] = None

    def follow(self, item: Rule, root: Node) -> None:
        """Extend the lineage of what a hit made, and stop when it is longer than any sensible rewriting."""
        parent = self.lineage.pop(root, None)
        lineage = _Lineage(parent.generation + 1 if parent else 1, item.name, parent)
        if lineage.generation > self.limit:
            rules = lineage.rules()
            names = " and ".join(rules) if len(rules) < 3 else ", ".join(rules)
            raise LadingError(
                "P340",
                f"the rules keep replacing what they made: {names}",
                repr(root),
                "a rule must not match its own result, nor undo another rule",
            )
        for node in self.rewriter._made:
            if node.graph is not None:
                self.lineage[node] = lineage
        if root.graph is not None:
            self.lineage[root] = lineage

    def enqueue_touched(self) -> None:
        """Put the nodes near the change at the head of the queue."""
        near = self.touched
        for value in self.loosened:
            if value.producer is not None:
                near[value.producer] = None
            if value.use_count <= self.rules.most_users:
                near.update(dict.fromkeys(value.users))
        level = list(near)
        for _ in range(self.rules.depth - 1):
            level = [user for node in level if node.graph is not None for out in node.outputs for user in out.users]
            near.update(dict.fromkeys(level))
        for node in reversed(near):
            if node.graph is not None and node not in self.queued:
                self.queue.appendleft(node)
                self.queued.add(node)
        self.touched, self.loosened = {}, {}


def _check_types(old: Value, new: Value) -> None:
    a, b = old.type, new.type
    if a is None or b is None:
        return
    fits = type(a) is type(b)
    if fits and isinstance(a, TensorType) and isinstance(b, TensorType):
        fits = a.dtype == b.dtype and (a.shape is None or b.shape is None or _shapes_fit(a.shape, b.shape))
    if not fits:
        raise RuleError(f"the rule replaced {old!r} by {new!r}: the types differ")


def _shapes_fit(a: tuple, b: tuple) -> bool:
    return len(a) == len(b) and all(
        x == y or isinstance(x, Dim) or isinstance(y, Dim) for x, y in zip(a, b, strict=True)
    )


def joined_type(old: ValueType | None, new: ValueType | None) -> ValueType | None:
    """The type that knows most: numbers before names, names that readers were inferred with before new ones."""
    if old is None or new is None:
        return new or old
    if not isinstance(old, TensorType) or not isinstance(new, TensorType) or old.shape is None or new.shape is None:
        return new if isinstance(new, TensorType) and new.shape is not None else old
    shape = tuple(b if isinstance(a, Dim) and isinstance(b, int) else a for a, b in zip(old.shape, new.shape, strict=True))
    return TensorType(old.dtype, shape)


def rewrite(
    graph: Graph,
    rules: RuleSet,
    env: Any = None,
    ctx: PassContext | None = None,
    start: Iterable[Node] | None = None,
) -> RewriteReport:
    """Apply rules to a graph, subgraphs included, until none fires.

    Args:
        graph: the graph to edit.
        rules: what to look for.
        env: what rules see as ``rw.env``, usually the pass.
        ctx: the pass's context; its `explain` makes the report say why rules did not fire.
        start: the nodes to look at first, when it is known that rules fire nowhere else; all nodes if None.

    Raises:
        LadingError: P340 when the rules go on for ever.
        RuleError: a rule broke its contract.
    """
    return _Driver(graph, rules, env, ctx, start).run()
