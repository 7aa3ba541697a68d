"""The driver of rewriting: a worklist that applies rules until none fires; see `passes.rewrite.rules`.

Work is proportional to the number of nodes and of rewrites: rules are looked up by the operator of the root, and after
a rewrite only those nodes are looked at again from which a pattern could reach what changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from ir.base.diag import LadingError
from ir.base.types import Dim, TensorType
from ir.graph.graph import Edit, Graph, Node, Value
from passes.rewrite.patterns import Match, Skips, State
from passes.rewrite.rules import (
    MOST_GENERATIONS,
    Rewriter,
    RewriteReport,
    Rule,
    RuleError,
    RuleSet,
    RuleStat,
    WhyNot,
    is_mentioned,
    joined_type,
)


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


_NOTHING = State(False)
"""What was bound where nothing can match."""


class Driver:
    """One application of a rule set to a graph."""

    def __init__(self, graph: Graph, rules: RuleSet, env: Any, explain: bool, start: Iterable[Node] | None) -> None:
        self.graph = graph
        self.rules = rules
        self.explain = explain
        self.report = RewriteReport({item.name: RuleStat() for item in rules})
        self.rewriter = Rewriter(graph, env)
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
        rewriter._begin(state.nodes)
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
        heads = [root for root in item.heads if root.ops is None or node.op in root.ops]
        if not self.explain:
            heads = [root for root in heads if root.may_match(node)]
            if not heads:
                return _NOTHING, None
        state = State(self.explain)
        value = node.outputs[0] if node.outputs else None
        for root in heads:
            if root.match_node(node, value, None, state):
                return state, node
        return state, None

    # ---- applying ----

    def apply(self, root: Node, result: Value | Sequence[Value | None]) -> bool | str:
        """Replace the root's outputs; False when nothing changed, ``edited`` when the rule only edited in place."""
        new = (result,) if isinstance(result, Value) else tuple(result)
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
        if any(one is not None and self.loses_name(root, old, one) for old, one in pairs):
            return False
        names = [(self.move(root, old, one), old.name) for old, one in pairs if one is not None]
        if not any(value.use_count for value in root.outputs):
            inputs = root.inputs
            root.home.erase(root)
            self.hand_over_names(root, names)
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
        if named and not new.loc:
            new.graph.set_loc(new, old.loc)
        graph.replace(old, new)
        return new if named else None

    def hand_over_names(self, root: Node, names: Sequence[tuple[Value | None, str]]) -> None:
        """Call the replacing values what the replaced ones were called, and the first new node what the root was."""
        name = root.name
        for value, old in names:
            if value is None:
                continue
            if value.name != old and not value.graph.has(old):
                value.graph.rename(value, old)
            if name and value.producer is not None and not value.producer.name:
                value.graph.set_name(value.producer, name)
                name = ""

    def pins_name(self, old: Value, new: Value) -> bool:
        """True when `old` is an output whose name `new` cannot take, being an input, constant or other output."""
        return old.is_output and (new.producer is None or new.graph is not old.graph or new.is_output)

    def loses_name(self, root: Node, old: Value, new: Value) -> bool:
        """True when replacing would lose a name that is needed: of an output by an Identity, or one in a fact."""
        if root.op == "Identity" and self.pins_name(old, new):
            return True
        takes_over = new.producer is not None and new.producer in self.rewriter._made
        return not takes_over and is_mentioned(self.graph, old)

    def sweep(self, values: Sequence[Value | None]) -> None:
        """Erase constants and nodes that nothing reads, from these values upwards."""
        waiting = [value for value in values if value is not None]
        while waiting:
            value = waiting.pop()
            if value.use_count:
                continue
            if value.const is not None:
                if value.graph.holds(value):
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
        if edit.kind == "set_input" and edit.value is not None:
            self.loosened[edit.value] = None
        elif edit.kind in ("set_type", "set_const") and edit.value is not None:
            self.touched.update(dict.fromkeys(edit.value.users))
        elif edit.kind == "erase" and edit.node is not None:
            for value in edit.node.inputs:
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
            # More readers than any pattern asks for: what reads the value cannot have become matchable.
            if value.use_count <= self.rules.most_users:
                near.update(dict.fromkeys(value.users))
                if value.producer is not None:
                    near[value.producer] = None
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


def rewrite(
    graph: Graph, rules: RuleSet, env: Any = None, *, explain: bool = False, start: Iterable[Node] | None = None
) -> RewriteReport:
    """Apply rules to a graph, subgraphs included, until none fires.

    Args:
        graph: the graph to edit.
        rules: what to look for.
        env: what rules see as ``rw.env``, usually the pass.
        explain: the report says why rules did not fire.
        start: the nodes to look at first, when it is known that rules fire nowhere else; all nodes if None.

    Raises:
        LadingError: P340 when the rules go on for ever.
        RuleError: a rule broke its contract.
    """
    return Driver(graph, rules, env, explain, start).run()
