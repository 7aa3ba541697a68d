"""Patterns over the graph: what a rewrite rule looks for, seen from the node that it would replace.

A pattern is built once and never changes; what a match binds lives in a `Match` of its own, so that patterns can be
shared, nested and matched anywhere. Matching tries alternatives (`Or`, ``any_order``) with full backtracking: when a
later part fails, earlier choices are taken back.

========================  ===========================================================================================
``Var("x")``              any value; the same name twice must be the same value
``Const("w")``            a constant; ``value=0`` asks that every element equals it
``Op("MatMul", a, b)``    the output of such a node; ``"Add|Sub"`` for several, ``"*"`` for any
``Maybe(p)``              an input that may be left out (then every name in `p` is bound to None)
``None``                  an input that must be left out
``Rest("xs")``            all further inputs, as a tuple
``a | b``                 either pattern, the left one first
``Attr("axis")``          in ``attrs``: binds the attribute
========================  ===========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from ir.graph.graph import Node, Value
from ir.ops.registry import attribute

SCAN_LIMIT = 1 << 16
"""Largest constant in bytes whose elements `Const(value=...)` looks at."""

Goals = Any
"""What is left to match: None, or (pattern, value, further goals)."""


class State:
    """Bindings and nodes of one attempt; `trail` remembers why it failed when somebody wants to know."""

    __slots__ = ("binds", "explain", "failure", "nodes", "reach")

    def __init__(self, explain: bool) -> None:
        self.binds: dict[str, Any] = {}
        self.nodes: list[Node] = []
        self.explain = explain
        self.failure = ""
        self.reach = -1

    def fail(self, reason: Callable[[], str]) -> bool:
        """Always False; keeps the reason of the attempt that got furthest."""
        if self.explain and len(self.binds) + len(self.nodes) > self.reach:
            self.reach = len(self.binds) + len(self.nodes)
            self.failure = reason()
        return False

    def bind(self, name: str | None, found: Any, goals: Goals) -> bool:
        """Bind a name, go on with the other goals, and undo the binding if they fail."""
        if name is None:
            return proceed(goals, self)
        if name in self.binds:
            known = self.binds[name]
            if known is found or (not isinstance(found, Value) and known == found):
                return proceed(goals, self)
            return self.fail(lambda: f"{name} is both {known!r} and {found!r}")
        self.binds[name] = found
        if proceed(goals, self):
            return True
        del self.binds[name]
        return False


def proceed(goals: Goals, state: State) -> bool:
    """Match all goals."""
    if goals is None:
        return True
    pattern, value, rest = goals
    return pattern.match(value, rest, state)


class Pattern:
    """Base of patterns over one value."""

    def match(self, value: Value | None, goals: Goals, state: State) -> bool:
        """True when the value fits and the other goals can be met too."""
        raise NotImplementedError

    def names(self) -> Iterator[str]:
        """Every name this pattern may bind."""
        yield from ()

    @property
    def depth(self) -> int:
        """Levels of nodes that the pattern looks at."""
        return 0

    @property
    def most_users(self) -> int:
        """The largest number of users that the pattern asks for; 0 when it never does."""
        return 0

    def __or__(self, other: Pattern) -> Or:
        return Or(self, other)


@dataclass(frozen=True)
class Var(Pattern):
    """Any value, or one for which `when(value)` is true."""

    name: str | None = None
    when: Callable[[Value], bool] | None = None

    def match(self, value: Value | None, goals: Goals, state: State) -> bool:
        """See `Pattern.match`."""
        if value is None:
            return state.fail(lambda: f"the input {self.name} is left out")
        if self.when is not None and not self.when(value):
            return state.fail(lambda: f"{value!r} does not fit {self.name}")
        return state.bind(self.name, value, goals)

    def names(self) -> Iterator[str]:
        """See `Pattern.names`."""
        if self.name is not None:
            yield self.name


@dataclass(frozen=True)
class Const(Pattern):
    """A constant; every element equals `value` if given (of constants up to `SCAN_LIMIT` bytes), and `when` holds."""

    name: str | None = None
    value: float | None = None
    when: Callable[[Value], bool] | None = None

    def match(self, value: Value | None, goals: Goals, state: State) -> bool:
        """See `Pattern.match`."""
        if value is None or value.const is None:
            return state.fail(lambda: f"{value!r} is not a constant")
        if self.value is not None and not is_filled(value, self.value):
            return state.fail(lambda: f"{value!r} is not filled with {self.value}")
        if self.when is not None and not self.when(value):
            return state.fail(lambda: f"{value!r} does not fit {self.name}")
        return state.bind(self.name, value, goals)

    names = Var.names


def is_filled(value: Value, number: float) -> bool:
    """True for a constant of at most `SCAN_LIMIT` bytes whose every element equals a number."""
    tensor = value.const
    size = tensor.nbytes if tensor is not None else 0
    if tensor is None or not 0 < size <= SCAN_LIMIT:
        return False
    data = tensor.load()
    if data.dtype == object:
        return False
    wanted = np.asarray(number).astype(data.dtype)
    return bool((data == wanted).all())


@dataclass(frozen=True)
class Attr:
    """Binds an attribute, or its default, to a name; it must satisfy `when` if given."""

    name: str
    when: Callable[[Any], bool] | None = None


@dataclass(frozen=True)
class Maybe:
    """An input that may be left out."""

    pattern: Pattern


@dataclass(frozen=True)
class Rest:
    """All further inputs as a tuple, each satisfying `when` if given."""

    name: str
    when: Callable[[Value | None], bool] | None = None


@dataclass(frozen=True)
class _Bind(Pattern):
    """Binds a fixed value: how attributes, left-out inputs and tuples join the other goals."""

    name: str | None
    found: Any

    def match(self, value: Value | None, goals: Goals, state: State) -> bool:
        """See `Pattern.match`."""
        return state.bind(self.name, self.found, goals)


class Op(Pattern):
    """The output of a node.

    Args:
        op: operator name, several joined by ``|``, or ``*``.
        inputs: a pattern for each input, in order; a node with more inputs does not match (but see `Rest`).
        attrs: wanted attributes: a value, a predicate, or `Attr`; a missing attribute counts as its default.
        any_order: try the inputs in every order (for commutative operators; up to four inputs).
        users: how many reads the output must have, graph outputs included.
        out: which output of the node is meant; None for any.
        name: binds the output value; for the root pattern the first output.
        when: predicate on the node.
    """

    def __init__(
        self,
        op: str,
        *inputs: Pattern | Maybe | Rest | None,
        attrs: Mapping[str, Any] | None = None,
        any_order: bool = False,
        users: int | None = None,
        out: int | None = 0,
        name: str | None = None,
        when: Callable[[Node], bool] | None = None,
    ) -> None:
        self.text = op
        self.ops = None if op == "*" else frozenset(op.split("|"))
        last = inputs[-1] if inputs else None
        self.rest = last if isinstance(last, Rest) else None
        given = inputs[:-1] if self.rest else inputs
        self.inputs = tuple(item for item in given if not isinstance(item, Rest))
        self.attrs = tuple((attrs or {}).items())
        self.users = users
        self.out = out
        self.name = name
        self.when = when
        if len(self.inputs) < len(given):
            raise ValueError(f"Rest must be the last input of Op({op!r})")
        if any_order and (self.rest or len(self.inputs) > 4):
            raise ValueError(f"any_order of Op({op!r}) is for two to four inputs")
        count = len(self.inputs)
        self.orders = tuple(permutations(range(count))) if any_order else (tuple(range(count)),)
        fixed = [] if any_order else [(i, p) for i, p in enumerate(self.inputs) if p is not None]
        self.made_by = tuple((i, p.ops) for i, p in fixed if isinstance(p, Op) and p.ops is not None)
        self.constant = tuple(i for i, p in fixed if isinstance(p, Const))
        self.least = max(
            (i + 1 for i, p in enumerate(self.inputs) if p is not None and not isinstance(p, Maybe)), default=0
        )

    def match(self, value: Value | None, goals: Goals, state: State) -> bool:
        """See `Pattern.match`."""
        node = value.producer if value is not None else None
        if value is None or node is None or (self.ops is not None and node.op not in self.ops):
            return state.fail(lambda: f"{value!r} is not made by {self.text}")
        if self.out is not None and value.index != self.out:
            return state.fail(lambda: f"{value!r} is output {value.index} of {node.op}, not {self.out}")
        return self.match_node(node, value, goals, state)

    def match_node(self, node: Node, value: Value | None, goals: Goals, state: State) -> bool:
        """Match a node whose operator is known to fit; `value` is the output meant."""
        if not self._fits(node, value, state):
            return False
        inputs = node.inputs
        count = len(self.inputs)
        rest = self.rest
        if rest is not None:
            further = inputs[count:]
            if rest.when is not None and not all(map(rest.when, further)):
                return state.fail(lambda: f"an input of {node!r} does not fit {rest.name}")
            goals = (_Bind(rest.name, further), None, goals)
        state.nodes.append(node)
        for order in self.orders:
            wanted = goals
            for position in range(count - 1, -1, -1):
                place = order[position]
                wanted = _goal(self.inputs[position], inputs[place] if place < len(inputs) else None, wanted)
            if self._match_attrs(node, 0, wanted, value, state):
                return True
        state.nodes.pop()
        return False

    def _fits(self, node: Node, value: Value | None, state: State) -> bool:
        size = len(node.inputs)
        if size < self.least or (
            self.rest is None and size > len(self.inputs) and any(node.inputs[len(self.inputs) :])
        ):
            return state.fail(lambda: f"{node!r} has {size} inputs, not {len(self.inputs)}")
        if self.users is not None and value is not None and value.use_count != self.users:
            return state.fail(lambda: f"%{value.name} has {value.use_count} users, not {self.users}")
        if self.when is not None and not self.when(node):
            return state.fail(lambda: f"{node!r} does not fit")
        return True

    def _match_attrs(self, node: Node, at: int, goals: Goals, value: Value | None, state: State) -> bool:
        captured = goals
        for key, wanted in self.attrs:
            found = attribute(node, key)
            if not _attr_fits(wanted, found):
                return state.fail(partial(_attr_text, node, key, found))
            if isinstance(wanted, Attr):
                captured = (_Bind(wanted.name, found), None, captured)
        if self.name is None:
            return proceed(captured, state)
        return state.bind(self.name, value if value is not None else node.outputs[0], captured)

    def may_match(self, node: Node) -> bool:
        """False where a node of the right operator cannot match, for what makes its inputs: told without bindings."""
        inputs = node.inputs
        if len(inputs) < self.least:
            return False
        for place, ops in self.made_by:
            value = inputs[place]
            if value is None or value.producer is None or value.producer.op not in ops:
                return False
        for place in self.constant:
            value = inputs[place]
            if value is None or value.const is None:
                return False
        return True

    def names(self) -> Iterator[str]:
        """See `Pattern.names`."""
        if self.name is not None:
            yield self.name
        for _, wanted in self.attrs:
            if isinstance(wanted, Attr):
                yield wanted.name
        for item in self.inputs:
            if item is not None:
                yield from (item.pattern if isinstance(item, Maybe) else item).names()
        if self.rest is not None:
            yield self.rest.name

    def _parts(self) -> list[Pattern]:
        return [item.pattern if isinstance(item, Maybe) else item for item in self.inputs if item is not None]

    @property
    def depth(self) -> int:
        """See `Pattern.depth`."""
        return 1 + max((part.depth for part in self._parts()), default=0)

    @property
    def most_users(self) -> int:
        """See `Pattern.most_users`."""
        return max([self.users or 0, *(part.most_users for part in self._parts())])

    def __repr__(self) -> str:
        return f"Op({self.text!r}, {len(self.inputs)} inputs)"


def _goal(item: Any, value: Value | None, goals: Goals) -> Goals:
    if item is None:
        return (_ABSENT, value, goals)
    if not isinstance(item, Maybe):
        return (item, value, goals)
    if value is not None:
        return (item.pattern, value, goals)
    for name in item.pattern.names():
        goals = (_Bind(name, None), None, goals)
    return goals


class _Absent(Pattern):
    def match(self, value: Value | None, goals: Goals, state: State) -> bool:
        """See `Pattern.match`."""
        if value is not None:
            return state.fail(lambda: f"{value!r} is given, but must be left out")
        return proceed(goals, state)


_ABSENT = _Absent()


def _attr_text(node: Node, key: str, found: Any) -> str:
    return f"attribute {key} of {node!r} is {found!r}"


def _attr_fits(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, Attr):
        return wanted.when is None or bool(wanted.when(found))
    if callable(wanted):
        return bool(wanted(found))
    if isinstance(wanted, float) and isinstance(found, float):
        # Attributes are stored as 32-bit floats.
        return np.float32(wanted) == np.float32(found)
    if isinstance(wanted, list):
        wanted = tuple(wanted)
    return type(wanted) is type(found) and wanted == found


@dataclass(frozen=True)
class Or(Pattern):
    """The first of several patterns that fits together with everything else."""

    first: Pattern
    second: Pattern

    def match(self, value: Value | None, goals: Goals, state: State) -> bool:
        """See `Pattern.match`."""
        return self.first.match(value, goals, state) or self.second.match(value, goals, state)

    def names(self) -> Iterator[str]:
        """See `Pattern.names`."""
        yield from self.first.names()
        yield from self.second.names()

    @property
    def depth(self) -> int:
        """See `Pattern.depth`."""
        return max(self.first.depth, self.second.depth)

    @property
    def most_users(self) -> int:
        """See `Pattern.most_users`."""
        return max(self.first.most_users, self.second.most_users)


def roots_of(pattern: Pattern) -> tuple[Op, ...]:
    """The operator patterns that a root can be; TypeError when one alternative is not an operator."""
    if isinstance(pattern, Or):
        return roots_of(pattern.first) + roots_of(pattern.second)
    if isinstance(pattern, Op):
        return (pattern,)
    raise TypeError(f"the root of a rule's pattern must be Op(...), not {pattern!r}")


@dataclass(slots=True)
class Skips:
    """Where `Match.skip` leaves its reason."""

    wanted: bool = False
    reason: str = ""


class Match:
    """What a pattern found: read-only, made anew for each attempt.

    Names that the pattern binds are attributes: values (None for a left-out input), attribute values, tuples of values.

    Attributes:
        root: the node the rule would replace.
        nodes: every matched node, the root first.
    """

    __slots__ = ("_binds", "_skips", "nodes", "root")

    def __init__(self, root: Node, state: State, skips: Skips) -> None:
        self.root = root
        self.nodes = tuple(state.nodes)
        self._binds = state.binds
        self._skips = skips

    def __getattr__(self, name: str) -> Any:
        try:
            return self._binds[name]
        except KeyError:
            raise AttributeError(f"the pattern does not bind {name!r}; it binds {sorted(self._binds)}") from None

    def has(self, name: str) -> bool:
        """True when the matched alternative binds the name to something given."""
        return self._binds.get(name) is not None

    def node(self, name: str) -> Node:
        """The node that makes the value bound to a name."""
        return self._binds[name].producer

    @property
    def output(self) -> Value:
        """The first output of the root."""
        return self.root.outputs[0]

    def skip(self, reason: str) -> Value | None:
        """Say why the rule does not apply, for ``explain``; returns None for the rule to return."""
        if self._skips.wanted:
            self._skips.reason = reason
        return None
