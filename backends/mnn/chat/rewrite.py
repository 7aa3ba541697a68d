"""Rewrite a chat template so that jinja2 and the renderers of all releases give the same text.

MNN 3.4 renders with a variant of minja, 3.5 and later with a renderer of their own; both know a part of jinja2, and what
they do not know they pass over in silence. Each rule below replaces what one of them gets wrong by what all three
compute alike:

========================  ==============================================================================================
written                   why
========================  ==============================================================================================
`default`, `get`          3.5+ passes an unknown filter's value through, so the default is lost; methods it does not know
                          give an empty text
`x in text`               3.4 looks in lists and objects only
`a or b` as a value       3.5+ gives true or false; 3.4 does so for `and`
`a < b` of integers       3.4 compares memory that was never written
`a % n == k`              3.5+ has no `%`, `*` or `/`
`(a + b).strip()`         3.5+ takes members of names alone: what stands before the dot gets a name first
`x[7:]`                   no release slices texts; where a condition says that x starts so, it is split
`join`, `replace`, ...    known to one of the two, or to none
`x if c`                  3.5+ always takes `x` where there is no `else`
`is iterable`, ...        tests mean less than in jinja2
`{{ a == b }}`            3.5+ writes true for True
`tojson`                  3.5+ sorts the keys of objects; a macro writes them in their order, with the separators that are
                          asked for, and without the last sign where `[:-1]` cuts it off
macros with defaults      3.5+ ignores the defaults
`continue`, `break`       known to 3.4 alone: a condition's other branch, or a flag that is looked at
`set` of blocks, tuples   3.5+ prints the block; 3.4 crashes on a tuple that is not a list
`tools is not none`       what transformers hands over as none is undefined in the runtime
empty system prompt       3.4 puts one in front of a question that is handed over as a text
roles of messages         3.4 moves system prompts and tool results into a user's turn unless the template passes a trial
========================  ==============================================================================================

Whether the result is the same is not believed but shown, on conversations; see `backends.mnn.chat.plan`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import nodes

from backends.mnn.chat.spell import UnspelledError, spell

NOT_ATTRIBUTES = frozenset(name for kind in (dict, list, str) for name in dir(kind))
"""Keys that are methods too, so that `x['items']` is not `x.items`."""
HANDED_OVER = ("tools", "documents")
"""Names that transformers always gives a template, and the runtime only where an application does."""
LOOP_INTEGERS = ("index", "index0", "length", "revindex", "revindex0")
EQUAL_TESTS = {"equalto": "eq", "eq": "eq", "==": "eq", "ne": "ne", "!=": "ne", "in": "in"}
METHODS_TO_FILTERS = {"upper": "upper", "lower": "lower", "capitalize": "capitalize"}

_SCALARS = (
    "{% elif v is boolean %}{{ 'true' if v else 'false' }}{% elif v is string and ('a'|tojson) == 'a' %}"
    r"{% set plain = v.split('\\')|join('\\\\') %}{% set plain = plain.split('\"')|join('\\\"') %}"
    r"{% set plain = plain.split('\n')|join('\\n') %}{% set plain = plain.split('\r')|join('\\r') %}"
    r"{% set plain = plain.split('\t')|join('\\t') %}{{ '\"' + plain + '\"' }}"
    "{% else %}{{ v|tojson }}{% endif %}{% endmacro %}"
)
"""Everything but lists and objects; 3.4 writes texts as they are, so that they get quotes and escapes here."""
_LINE = "{{ '\\n' }}{% for i in range(json_lines.depth) %}{{ step }}{% endfor %}"
JSON = "write_json"
JSON_TIGHT = "write_json_tight"
JSON_OPEN = "write_json_open"
JSON_LINES = "write_json_lines"


def _members(name: str, between: str, colon: str) -> str:
    """The members of an object, behind the brace that opens it, and the items of a list, behind the bracket."""
    last = "{% if not loop.last %}" + between + "{% endif %}{% endfor %}"
    pair = "{{ NAME(k) }}" + colon + "{{ NAME(x) }}"
    found = "{% if v is mapping %}{{ '{' }}{% for k, x in v|items %}" + pair + last + "CLOSE"
    found += "{% elif v is iterable and v is not string %}[{% for x in v %}{{ NAME(x) }}" + last
    return found.replace("NAME", name)


def _in_line(name: str, between: str, colon: str) -> str:
    whole = _members(name, between, colon).replace("CLOSE", "{{ '}' }}")
    return "{% macro " + name + "(v) %}" + whole + "]" + _SCALARS


MACROS = {
    JSON: _in_line(JSON, ", ", ": "),
    JSON_TIGHT: _in_line(JSON_TIGHT, ",", ":"),
    JSON_OPEN: "{% macro write_json_open(v) %}"
    + _members(JSON, ", ", ": ").replace("CLOSE", "")
    + "{% endif %}{% endmacro %}",
    JSON_LINES: (
        "{% set json_lines = namespace(depth=0) %}{% macro write_json_lines(v, step) %}"
        "{% if v is mapping and v|length != 0 %}{{ '{' }}{% set json_lines.depth = json_lines.depth + 1 %}"
        "{% for k, x in v|items %}" + _LINE + "{{ write_json_lines(k, step) }}: {{ write_json_lines(x, step) }}"
        "{% if not loop.last %},{% endif %}{% endfor %}"
        "{% set json_lines.depth = json_lines.depth - 1 %}" + _LINE + "{{ '}' }}"
        "{% elif v is iterable and v is not string and v is not mapping and v|length != 0 %}["
        "{% set json_lines.depth = json_lines.depth + 1 %}"
        "{% for x in v %}" + _LINE + "{{ write_json_lines(x, step) }}{% if not loop.last %},{% endif %}{% endfor %}"
        "{% set json_lines.depth = json_lines.depth - 1 %}" + _LINE + "]" + _SCALARS
    ),
}
"""JSON with the keys of objects in their own order: in one line, without spaces, without the sign that closes the whole, or
indented."""
WITHOUT_EMPTY = (
    "{% if ('a'|tojson) == 'a' and messages|length != 0 and messages[0].role == 'system' and messages[0].content == '' %}"
    "{% set messages = messages[1:] %}{% endif %}"
)
"""Drops an empty system message on 3.4, which is known by its texts without quotes: its interface puts one in front of a
question that is handed over as a text."""
TRIAL = (
    "{% for turn in messages %}{% if turn.content is defined and turn.content == '<System Needle>' %}{{ turn.content }}"
    "{% endif %}{% if turn.name is defined and turn.name == 'test_tool1' and turn.content == 'Some response!' %}"
    "{{ turn.content }}{% endif %}{% if turn.tool_calls is defined and turn.tool_calls %}"
    "{% for call in turn.tool_calls %}{% if call.id is defined and call.id == 'call_1___' %}"
    "{{ '\"argument_needle\":' }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
"""What MNN 3.4 looks for when it tries whether a template knows system prompts, tool calls and their results, printed
for the texts of that trial. Whatever fails the trial, 3.4 moves into the user's turns."""


@dataclass(frozen=True)
class Rewritten:
    """A template in another spelling, and the names of the rules that changed it."""

    source: str
    rules: tuple[str, ...]


def rewrite(source: str, environment: Any, *, older: bool = True) -> Rewritten | None:
    """The template in the spelling that all renderers share; None where no rule applies or it cannot be spelled.

    Args:
        source: a valid template.
        environment: the jinja2 environment of chat templates.
        older: MNN 3.4 is among those that are to render it.
    """
    body = environment.parse(source).body
    work = _Rewriter(environment, source, older)
    try:
        body = work.template(body)
        text = spell(body)
    except UnspelledError:
        return None
    fired = work.fired | _lexical(source)
    return Rewritten(text, tuple(sorted(fired))) if fired else None


def _lexical(source: str) -> set[str]:
    """What the renderers read otherwise before any syntax."""
    found = set()
    if source.endswith("\n"):
        found.add("line break at the end")
    if re.search(r"\{#(?!-)|(?<!-)#\}", source):
        found.add("comments")
    if re.search(r"\{[{%]\+|\+[}%]\}", source):
        found.add("plus at a tag")
    return found


@dataclass
class _Rewriter:
    environment: Any
    source: str
    older: bool
    fired: set[str] = field(default_factory=set)
    pending: list[nodes.Node] = field(default_factory=list)
    macros: dict[str, Any] = field(default_factory=dict)
    loops: list[Any] = field(default_factory=list)
    helpers: set[str] = field(default_factory=set)
    known: list[Any] = field(default_factory=list)
    """Conditions in whose branch a statement stands."""
    once: set[str] = field(default_factory=set)
    """Names that are set in one place of the template."""
    written: dict[str, Any] = field(default_factory=dict)
    """Those of them that are the JSON of a value, and that value."""
    count: int = 0

    # ---- statements ----

    def template(self, body: Sequence[Any]) -> list[Any]:
        """All statements, with what must stand around them."""
        self.macros = {item.name: item for item in _all(body, nodes.Macro)}
        stored = [item.name for item in _all(body, nodes.Name) if item.ctx in ("store", "param")]
        self.once = {name for name in stored if stored.count(name) == 1}
        lead = [self._given(name) for name in HANDED_OVER if self._asked(body, name)]
        found = self.block(body)
        if self.older:
            self.fired |= {"roles of messages", "empty system prompt"}
            lead = [*self.environment.parse(WITHOUT_EMPTY).body, *lead]
            found += self.block(self.environment.parse(TRIAL).body)
        if JSON_OPEN in self.helpers:
            self.helpers.add(JSON)
        helpers = [item for name in sorted(self.helpers) for item in self.environment.parse(MACROS[name]).body]
        return [*helpers, *lead, *found]

    def _asked(self, body: Sequence[Any], name: str) -> bool:
        """Whether a template looks at the kind of what may not be there."""
        looked = [*_all(body, nodes.Test), *_all(body, nodes.Filter)]
        return any(isinstance(item.node, nodes.Name) and item.node.name == name for item in looked)

    def _given(self, name: str) -> Any:
        self.fired.add(f"{name} is none")
        missing = nodes.Not(nodes.Test(_name(name), "defined", [], [], None, None))
        return nodes.If(missing, [nodes.Assign(nodes.Name(name, "store"), nodes.Const(None))], [], [])

    def block(self, body: Sequence[Any]) -> list[Any]:
        """Statements, each after the names that it needs."""
        found: list[Any] = []
        for item in body:
            outer, self.pending = self.pending, []
            done = self.statement(item)
            found += [*self.pending, *done]
            self.pending = outer
        return found

    def statement(self, item: Any) -> list[Any]:
        """One statement as one or more."""
        method = getattr(self, f"_{type(item).__name__.lower()}", None)
        return [item] if method is None else method(item)

    def _output(self, item: Any) -> list[Any]:
        return [nodes.Output([n if isinstance(n, nodes.TemplateData) else self._printed(n) for n in item.nodes])]

    def _printed(self, node: Any) -> Any:
        """True and False as Python writes them; 3.5+ writes small letters."""
        found = self.value(node)
        if not _is_truth(node):
            return found
        self.fired.add("true and false as text")
        return nodes.CondExpr(found, nodes.Const("True"), nodes.Const("False"))

    def _if(self, item: Any) -> list[Any]:
        test = self.truth(item.test)
        self.known.append(item.test)
        inside = self.block(item.body)
        self.known.pop()
        other = self.block(item.else_)
        branches: list[Any] = []
        for branch in reversed(item.elif_):
            outer, self.pending = self.pending, []
            condition, body, names = self.truth(branch.test), self.block(branch.body), self.pending
            self.pending = outer
            if names:
                other = [*names, nodes.If(condition, body, branches, other)]
                branches = []
            else:
                branches = [nodes.If(condition, body, [], []), *branches]
        return [nodes.If(test, inside, branches, other)]

    def _for(self, item: Any) -> list[Any]:
        source = self.value(item.iter)
        condition = None
        if item.test is not None:
            outer, self.pending = self.pending, []
            condition = self.truth(item.test)
            if self.pending:
                raise UnspelledError("a loop's condition that needs names")
            self.pending = outer
        if any(_loop_member(node) in ("previtem", "nextitem") for node in _all(item.body, nodes.Getattr)):
            source = self.named(source)
        self.loops.append(source if condition is None else None)
        lead, inner = self._without_break(item.body)
        body = self.block(self._without_jumps(inner))
        self.loops.pop()
        found: list[Any] = [*lead, nodes.For(item.target, source, body, [], condition, item.recursive)]
        if item.else_:
            self.fired.add("else of a loop")
            if condition is not None:
                raise UnspelledError("a loop with condition and else")
            empty = nodes.Compare(_filter(source, "length"), [nodes.Operand("eq", nodes.Const(0))])
            found.append(nodes.If(empty, self.block(item.else_), [], []))
        return found

    def _without_jumps(self, body: Sequence[Any]) -> list[Any]:
        """`continue` at the end of a condition's body becomes an `else` for the rest."""
        for place, item in enumerate(body):
            if not _jumps(item):
                continue
            simple = isinstance(item, nodes.If) and not item.elif_ and not item.else_
            inner = any(map(_jumps, item.body[:-1])) if simple else True
            if not inner and isinstance(item.body[-1], nodes.Continue):
                self.fired.add("continue")
                rest = self._without_jumps(body[place + 1 :])
                return [*body[:place], nodes.If(item.test, item.body[:-1] or [_nothing()], [], rest)]
            return self._flagged(body)
        return list(body)

    def _flagged(self, body: Sequence[Any]) -> list[Any]:
        """`continue` inside of conditions raises a flag, with which what follows is passed over."""
        self.fired.add("continue")
        flag = self._fresh()
        return [_lowered(flag), *_with_flag(body, flag, nodes.Continue)]

    def _without_break(self, body: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """`break` raises a flag that stands before the loop, with which later rounds do nothing."""
        if not any(_jumps(item, nodes.Break) for item in body):
            return [], list(body)
        self.fired.add("break")
        flag = self._fresh()
        left = nodes.Not(nodes.Getattr(_name(flag), "on", "load"))
        return [_lowered(flag)], [nodes.If(left, _with_flag(body, flag, nodes.Break), [], [])]

    def _assign(self, item: Any) -> list[Any]:
        if isinstance(item.target, nodes.Name) and item.target.name in self.once:
            written = isinstance(item.node, nodes.Filter) and item.node.name == "tojson" and not item.node.kwargs
            self.written |= {item.target.name: item.node.node} if written else {}
        if not isinstance(item.target, nodes.Tuple):
            return [nodes.Assign(item.target, self.value(item.node))]
        if not isinstance(item.node, nodes.Tuple | nodes.List) or len(item.node.items) != len(item.target.items):
            raise UnspelledError("several names set from one value")
        self.fired.add("several names set at once")
        values = [self.named(self.value(node), always=True) for node in item.node.items]
        return [nodes.Assign(name, node) for name, node in zip(item.target.items, values, strict=True)]

    def _assignblock(self, item: Any) -> list[Any]:
        if item.filter is not None:
            raise UnspelledError("a filtered block")
        self.fired.add("set of a block")
        name = self._fresh()
        macro = nodes.Macro(name, [], [], self.block(item.body))
        return [macro, nodes.Assign(item.target, _call(_name(name), []))]

    def _macro(self, item: Any) -> list[Any]:
        return [nodes.Macro(item.name, item.args, item.defaults, self.block(item.body))]

    def _scope(self, item: Any) -> list[Any]:
        return self.block(item.body)

    # ---- names ----

    def _fresh(self) -> str:
        self.count += 1
        name = f"part_{self.count}"
        return self._fresh() if name in self.source else name

    def named(self, node: Any, always: bool = False) -> Any:
        """A name for a value, or the value itself where members can be taken of it."""
        if _is_chain(node) and not always:
            return node
        name = self._fresh()
        self.pending.append(nodes.Assign(nodes.Name(name, "store"), node))
        if not always:
            self.fired.add("members of a value without name")
        return _name(name)

    def gathered(self, items: Any, start: Any, step: Callable[[Any, Any], Any], name: str, test: Any = None) -> Any:
        """What a loop over `items` makes of `start`; `step` gives the next value from the last one and the item."""
        space, item = self._fresh(), self._fresh()
        total = nodes.Getattr(_name(space), "all", "load")
        made = nodes.Call(_name("namespace"), [], [nodes.Keyword("all", start)], None, None)
        body: list[Any] = [nodes.Assign(nodes.NSRef(space, "all"), step(total, _name(item)))]
        if test is not None:
            outer, self.pending = self.pending, []
            condition = test(_name(item))
            body = [*self.pending, nodes.If(condition, body, [], [])]
            self.pending = outer
        self.pending += [
            nodes.Assign(nodes.Name(space, "store"), made),
            nodes.For(nodes.Name(item, "store"), items, body, [], None, False),
        ]
        self.fired.add(name)
        return total

    def joined(self, items: Any, between: Any, name: str) -> Any:
        """The texts of a list, with a text between them."""

        def step(total: Any, item: Any) -> Any:
            first = nodes.Getattr(_name("loop"), "first", "load")
            lead = nodes.CondExpr(first, nodes.Const(""), between)
            return nodes.Concat([total, lead, item])

        return self.gathered(items, nodes.Const(""), step, name)

    # ---- expressions ----

    def truth(self, node: Any) -> Any:
        """An expression of which only the truth matters."""
        if isinstance(node, nodes.And | nodes.Or):
            return type(node)(self.truth(node.left), self.truth(node.right))
        if isinstance(node, nodes.Not):
            return nodes.Not(self.truth(node.node))
        if isinstance(node, nodes.Mod):
            return self._remainder(node, "ne", nodes.Const(0)) or self.value(node)
        found = self.value(node)
        if _is_integer(node):
            self.fired.add("truth of an integer")
            return _compare(found, "ne", nodes.Const(0))
        return found

    def value(self, node: Any) -> Any:
        """An expression."""
        if node is None:
            return None
        method = getattr(self, f"_value_{type(node).__name__.lower()}", None)
        if method is not None:
            return method(node)
        if isinstance(node, nodes.BinExpr):
            return type(node)(self.value(node.left), self.value(node.right))
        return node

    def _value_and(self, node: Any) -> Any:
        return self._chosen(node, lambda left, right: nodes.CondExpr(self.truth(node.left), right, left))

    def _value_or(self, node: Any) -> Any:
        return self._chosen(node, lambda left, right: nodes.CondExpr(self.truth(node.left), left, right))

    def _chosen(self, node: Any, choose: Callable[[Any, Any], Any]) -> Any:
        """`a or b` and `a and b` give one of the two, not whether they are true."""
        if _is_truth(node.left) and _is_truth(node.right):
            return type(node)(self.truth(node.left), self.truth(node.right))
        self.fired.add("a value of and, or")
        return choose(self.value(node.left), self.value(node.right))

    def _value_not(self, node: Any) -> Any:
        return nodes.Not(self.truth(node.node))

    def _value_neg(self, node: Any) -> Any:
        constant = isinstance(node.node, nodes.Const) and type(node.node.value) is int
        return nodes.Const(-node.node.value) if constant else nodes.Neg(self.value(node.node))

    def _value_concat(self, node: Any) -> Any:
        return nodes.Concat([self.value(item) for item in node.nodes])

    def _value_list(self, node: Any) -> Any:
        return nodes.List([self.value(item) for item in node.items])

    def _value_tuple(self, node: Any) -> Any:
        self.fired.add("tuples")
        return nodes.List([self.value(item) for item in node.items])

    def _value_dict(self, node: Any) -> Any:
        return nodes.Dict([nodes.Pair(self.value(pair.key), self.value(pair.value)) for pair in node.items])

    def _value_condexpr(self, node: Any) -> Any:
        if node.expr2 is None:
            self.fired.add("if without else")
        other = nodes.Const("") if node.expr2 is None else self.value(node.expr2)
        return nodes.CondExpr(self.truth(node.test), self.value(node.expr1), other)

    def _value_compare(self, node: Any) -> Any:
        if len(node.ops) == 1:
            return self._compared(node.expr, node.ops[0].op, node.ops[0].expr)
        operands = [node.expr, *(item.expr for item in node.ops)]
        pairs = [
            self._compared(left, item.op, right)
            for left, item, right in zip(operands, node.ops, operands[1:], strict=False)
        ]
        self.fired.add("chains of comparisons")
        found = pairs[0]
        for pair in pairs[1:]:
            found = nodes.And(found, pair)
        return found

    def _compared(self, left: Any, op: str, right: Any) -> Any:
        if op in ("in", "notin"):
            found = self._contained(left, right)
            return found if op == "in" else nodes.Not(found)
        if op in ("eq", "ne"):
            for one, other in ((left, right), (right, left)):
                if isinstance(one, nodes.Mod) and (found := self._remainder(one, op, other)) is not None:
                    return found
            return _compare(self.value(left), op, self.value(right))
        if not (_is_integer(left) or _is_integer(right)):
            return _compare(self.value(left), op, self.value(right))
        return self._ordered(self.value(left), op, self.value(right))

    def _ordered(self, left: Any, op: str, right: Any) -> Any:
        """Whether an integer is greater, by the length of the range between the two."""
        self.fired.add("order of integers")
        if op in ("lt", "lteq"):
            left, op, right = right, {"lt": "gt", "lteq": "gteq"}[op], left
        if op == "gt" and isinstance(right, nodes.Const) and right.value == 0 and _is_length(left):
            return _compare(left, "ne", nodes.Const(0))
        stop = left if op == "gt" else _plus(left, 1)
        return _compare(_filter(_call(_name("range"), [right, stop]), "length"), "ne", nodes.Const(0))

    def _remainder(self, node: Any, op: str, wanted: Any) -> Any:
        """Whether a count leaves a remainder, by whether it is in the range of the numbers that do."""
        numbers = [item.value for item in (node.right, wanted) if isinstance(item, nodes.Const)]
        if len(numbers) != 2 or not all(type(number) is int for number in numbers) or not _is_integer(node.left):
            return None
        step, rest = numbers
        if not 0 <= rest < step:
            return None
        self.fired.add("remainders")
        value = self.value(node.left)
        sizes = [
            _filter(_call(_name("range"), [nodes.Const(rest), stop, nodes.Const(step)]), "length")
            for stop in (_plus(value, 1), value)
        ]
        return _compare(sizes[0], {"eq": "ne", "ne": "eq"}[op], sizes[1])

    def _contained(self, left: Any, right: Any) -> Any:
        item, box = self.value(left), self.value(right)
        if isinstance(right, nodes.List | nodes.Tuple | nodes.Dict):
            return _compare(item, "in", box)
        if isinstance(left, nodes.Const) and (not isinstance(left.value, str) or not left.value):
            return _compare(item, "in", box)
        self.fired.add("in")
        box = self.named(box)
        pieces = _filter(_call(nodes.Getattr(box, "split", "load"), [item]), "length")
        inside = _compare(pieces, "ne", nodes.Const(1))
        return nodes.CondExpr(_is(box, "string"), inside, _compare(item, "in", box))

    # ---- tests and filters ----

    def _value_test(self, node: Any) -> Any:
        if isinstance(node.node, nodes.Name) and node.node.name == "strftime_now" and node.name == "defined":
            self.fired.add("functions that are always there")
            return nodes.Const(True)
        if node.name in EQUAL_TESTS and len(node.args) == 1:
            self.fired.add("tests that compare")
            return self._compared(node.node, EQUAL_TESTS[node.name], node.args[0])
        if node.name == "divisibleby" and len(node.args) == 1:
            found = self._remainder(nodes.Mod(node.node, node.args[0]), "eq", nodes.Const(0))
            if found is not None:
                return found
        known = node.name in ("defined", "undefined", "none")
        subject = self._member(self.value(node.node)) if known else self.value(node.node)
        plain = _is(subject, node.name, node)
        if node.name == "undefined":
            self.fired.add("is undefined")
            return nodes.Not(_is(subject, "defined"))
        if node.name in ("iterable", "sequence"):
            self.fired.add(f"is {node.name}")
            return nodes.Or(_is(subject, "iterable"), _is(subject, "mapping"))
        if node.name in ("true", "false"):
            self.fired.add(f"is {node.name}")
            wanted = subject if node.name == "true" else nodes.Not(subject)
            return nodes.And(_is(subject, "boolean"), wanted)
        if node.name == "integer":
            self.fired.add("is integer")
            return _is(subject, "number")
        return plain

    def _member(self, node: Any) -> Any:
        """`x['name']` as `x.name`: only then 3.5+ can tell that it is missing."""
        key = node.arg.value if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) else None
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z]\w*", key, re.ASCII) or key in NOT_ATTRIBUTES:
            return node
        self.fired.add("a key that may be missing")
        return nodes.Getattr(node.node, key, "load")

    def _value_filter(self, node: Any) -> Any:
        method = getattr(self, f"_filter_{node.name}", None)
        if method is not None and (found := method(node)) is not None:
            return found
        given = [nodes.Keyword(item.key, self.value(item.value)) for item in node.kwargs]
        arguments = [self.value(item) for item in node.args]
        return nodes.Filter(self.value(node.node), node.name, arguments, given, node.dyn_args, node.dyn_kwargs)

    def _filter_default(self, node: Any) -> Any:
        arguments = [*node.args, *(item.value for item in node.kwargs if item.key in ("default_value", "boolean"))]
        self.fired.add("default")
        other = self.value(arguments[0]) if arguments else nodes.Const("")
        subject = self._member(self.value(node.node))
        falsy = arguments[1] if len(arguments) > 1 else nodes.Const(False)
        if not isinstance(falsy, nodes.Const):
            raise UnspelledError("a default that may replace what is empty")
        return nodes.CondExpr(subject if falsy.value else _is(subject, "defined"), subject, other)

    _filter_d = _filter_default

    def _filter_count(self, node: Any) -> Any:
        self.fired.add("count")
        return _filter(self.value(node.node), "length")

    def _filter_first(self, node: Any) -> Any:
        self.fired.add("first")
        return nodes.Getitem(self.named(self.value(node.node)), nodes.Const(0), "load")

    def _filter_last(self, node: Any) -> Any:
        self.fired.add("last")
        return nodes.Getitem(self.named(self.value(node.node)), nodes.Const(-1), "load")

    def _filter_reverse(self, node: Any) -> Any:
        self.fired.add("reverse")
        return nodes.Getitem(self.named(self.value(node.node)), nodes.Slice(None, None, nodes.Const(-1)), "load")

    def _filter_list(self, node: Any) -> Any:
        self.fired.add("list")
        return self.value(node.node)

    _filter_safe = _filter_list

    def _filter_join(self, node: Any) -> Any:
        if node.kwargs or len(node.args) > 1:
            return None
        between = self.value(node.args[0]) if node.args else nodes.Const("")
        return self.joined(self.value(node.node), between, "join")

    def _filter_replace(self, node: Any) -> Any:
        return self._replaced(node.node, node.args) if len(node.args) == 2 and not node.kwargs else None

    def _filter_trim(self, node: Any) -> Any:
        if not node.args or node.kwargs:
            return None
        self.fired.add("trim of letters")
        return _call(nodes.Getattr(self.named(self.value(node.node)), "strip", "load"), [self.value(node.args[0])])

    def _filter_tojson(self, node: Any) -> Any:
        given = {item.key: item.value for item in node.kwargs}
        if node.args or set(given) - {"indent", "ensure_ascii", "separators"}:
            return None
        signs = given.get("separators")
        if signs is not None and _constants(signs) not in ((",", ":"), (", ", ": ")):
            return None
        ascii_only, indent = given.get("ensure_ascii"), given.get("indent")
        if ascii_only is not None and not (isinstance(ascii_only, nodes.Const) and ascii_only.value is False):
            return None
        self.fired.add("tojson")
        if indent is None or (isinstance(indent, nodes.Const) and indent.value is None):
            name = JSON if signs is None or _constants(signs) == (", ", ": ") else JSON_TIGHT
            self.helpers.add(name)
            return _call(_name(name), [self.value(node.node)])
        if signs is not None or not isinstance(indent, nodes.Const) or type(indent.value) is not int:
            return None
        self.helpers.add(JSON_LINES)
        return _call(_name(JSON_LINES), [self.value(node.node), nodes.Const(" " * indent.value)])

    def _filter_selectattr(self, node: Any) -> Any:
        return self._selected(node, keep=True)

    def _filter_rejectattr(self, node: Any) -> Any:
        return self._selected(node, keep=False)

    def _selected(self, node: Any, keep: bool) -> Any:
        words = [item.value for item in node.args[:2] if isinstance(item, nodes.Const)]
        if node.kwargs or not words or not isinstance(words[0], str) or not words[0].isidentifier():
            return None
        name = words[0]

        def test(item: Any) -> Any:
            member = nodes.Getattr(item, name, "load")
            if len(node.args) == 1:
                found = member
            else:
                found = self._value_test(nodes.Test(member, words[1], node.args[2:], [], None, None))
            return found if keep else nodes.Not(found)

        return self.gathered(
            self.value(node.node),
            nodes.List([]),
            lambda total, item: nodes.Add(total, nodes.List([item])),
            node.name,
            test,
        )

    # ---- members and calls ----

    def _value_getattr(self, node: Any) -> Any:
        member = _loop_member(node)
        if member in ("previtem", "nextitem") and self.loops and self.loops[-1] is not None:
            return self._neighbour(member)
        if member in ("revindex", "revindex0"):
            self.fired.add(f"loop.{member}")
            index = "index0" if member == "revindex" else "index"
            sizes = [nodes.Getattr(_name("loop"), name, "load") for name in ("length", index)]
            return nodes.Sub(sizes[0], sizes[1])
        return nodes.Getattr(self.named(self.value(node.node)), node.attr, node.ctx)

    def _neighbour(self, member: str) -> Any:
        """The item before or after; at an end nothing, as an empty object has no members."""
        self.fired.add(f"loop.{member}")
        step, end = (-1, "first") if member == "previtem" else (1, "last")
        index = _plus(nodes.Getattr(_name("loop"), "index0", "load"), step)
        inside = nodes.Getitem(self.loops[-1], index, "load")
        at_end = nodes.Getattr(_name("loop"), end, "load")
        return self.named(nodes.CondExpr(at_end, nodes.Dict([]), inside), always=True)

    def _value_getitem(self, node: Any) -> Any:
        if isinstance(node.node, nodes.Call) and isinstance(node.node.node, nodes.Getattr):
            found = self._piece(node)
            if found is not None:
                return found
        if isinstance(node.arg, nodes.Slice) and (found := self._opened(node) or self._cut_off(node)) is not None:
            return found
        base = self.named(self.value(node.node))
        if isinstance(node.arg, nodes.Slice):
            parts = (self.value(item) for item in (node.arg.start, node.arg.stop, node.arg.step))
            return nodes.Getitem(base, nodes.Slice(*parts), node.ctx)
        return nodes.Getitem(base, self.value(node.arg), node.ctx)

    def _opened(self, node: Any) -> Any:
        """JSON without its last sign, into which templates write further members; no release slices texts."""
        place = node.arg
        ends = place.start is None and place.step is None and _constant(place.stop) == -1
        known = self.written.get(node.node.name) if isinstance(node.node, nodes.Name) else None
        if not ends or known is None:
            return None
        self.fired.add("JSON that is left open")
        self.helpers.add(JSON_OPEN)
        return _call(_name(JSON_OPEN), [self.value(known)])

    def _cut_off(self, node: Any) -> Any:
        """A text without its begin or end, where a condition says what that is: `x[7:]` where x starts with `<think>`."""
        place = node.arg
        start, stop = _constant(place.start), _constant(place.stop)
        for test in self.known:
            method: Any = test.node if isinstance(test, nodes.Call) and len(test.args) == 1 else None
            if not isinstance(method, nodes.Getattr) or method.node != node.node or place.step is not None:
                continue
            text = _constant(test.args[0])
            size = len(text) if isinstance(text, str) else 0
            begin = method.attr == "startswith" and place.stop is None and start == size
            end = method.attr == "endswith" and place.start is None and stop == -size
            if not size or not (begin or end):
                continue
            cut = nodes.Getattr(self.named(self.value(node.node)), "split", "load")
            parts = self.named(_call(cut, [test.args[0]]), always=True)
            rest = nodes.Slice(nodes.Const(1), None, None) if begin else nodes.Slice(None, nodes.Const(-1), None)
            return self.joined(nodes.Getitem(parts, rest, "load"), test.args[0], "a begin or end that is cut off")
        return None

    def _piece(self, node: Any) -> Any:
        """One part of a text that is split once, which no release but the first way of splitting knows."""
        method, arguments = node.node.node.attr, node.node.args
        place: Any = _constant(node.arg)
        if method in ("split", "rsplit"):
            if len(arguments) != 2 or _constant(arguments[1]) != 1:
                return None
            strict = place == 1
            place = {0: 0, 1: 1, -1: 1, -2: 0}.get(place)
        elif method in ("partition", "rpartition") and len(arguments) == 1:
            place, strict = {0: 0, 2: 1, -1: 1}.get(place), True
        else:
            return None
        if place is None:
            return None
        self.fired.add(f"{method} once")
        text, cut = self.named(self.value(node.node.node.node)), self.value(arguments[0])
        parts = self.named(_call(nodes.Getattr(text, "split", "load"), [cut]), always=True)
        head, tail = (0, nodes.Slice(nodes.Const(1), None, None))
        if method.startswith("r"):
            head, tail = (-1, nodes.Slice(None, nodes.Const(-1), None))
        lone = _compare(_filter(parts, "length"), "eq", nodes.Const(1))
        first = nodes.Getitem(parts, nodes.Const(head), "load")
        rest = self.joined(nodes.Getitem(parts, tail, "load"), cut, f"{method} once")
        if (place == 1) == method.startswith("r"):
            # The part that is never cut: before the first cut, or behind the last.
            return first
        return nodes.CondExpr(lone, nodes.Const("") if strict else first, rest)

    def _value_call(self, node: Any) -> Any:
        arguments = [self.value(item) for item in node.args]
        given = [nodes.Keyword(item.key, self.value(item.value)) for item in node.kwargs]
        if isinstance(node.node, nodes.Name):
            return nodes.Call(node.node, arguments, [*given, *self._defaults(node)], node.dyn_args, node.dyn_kwargs)
        if not isinstance(node.node, nodes.Getattr) or given:
            return nodes.Call(self.value(node.node), arguments, given, node.dyn_args, node.dyn_kwargs)
        subject, method = node.node.node, node.node.attr
        special = getattr(self, f"_method_{method}", None)
        if special is not None and (found := special(subject, node.args)) is not None:
            return found
        if method in METHODS_TO_FILTERS and not arguments:
            self.fired.add(method)
            return _filter(self.value(subject), METHODS_TO_FILTERS[method])
        return _call(nodes.Getattr(self.named(self.value(subject)), method, "load"), arguments)

    def _defaults(self, node: Any) -> Iterator[Any]:
        """Arguments that a macro's call leaves to the macro."""
        macro = self.macros.get(node.node.name)
        if macro is None:
            return
        named = {item.key for item in node.kwargs}
        plain = len(macro.args) - len(macro.defaults)
        for place, (arg, default) in enumerate(zip(macro.args[plain:], macro.defaults, strict=True), plain):
            if place >= len(node.args) and arg.name not in named:
                self.fired.add("defaults of a macro")
                yield nodes.Keyword(arg.name, self.value(default))

    def _method_items(self, subject: Any, arguments: Sequence[Any]) -> Any:
        self.fired.add("items")
        return _filter(self.value(subject), "items")

    def _method_keys(self, subject: Any, arguments: Sequence[Any]) -> Any:
        self.fired.add("keys")
        return self.value(subject)

    def _method_get(self, subject: Any, arguments: Sequence[Any]) -> Any:
        key = arguments[0] if arguments else None
        if not isinstance(key, nodes.Const) or not isinstance(key.value, str):
            return None
        self.fired.add("get")
        member = self._member(nodes.Getitem(self.named(self.value(subject)), key, "load"))
        other = self.value(arguments[1]) if len(arguments) > 1 else nodes.Const(None)
        return nodes.CondExpr(_is(member, "defined"), member, other)

    def _method_replace(self, subject: Any, arguments: Sequence[Any]) -> Any:
        return self._replaced(subject, arguments) if len(arguments) == 2 else None

    def _replaced(self, subject: Any, arguments: Sequence[Any]) -> Any:
        text = self.named(self.value(subject))
        old, new = (self.value(item) for item in arguments)
        return self.joined(_call(nodes.Getattr(text, "split", "load"), [old]), new, "replace")

    def _method_join(self, subject: Any, arguments: Sequence[Any]) -> Any:
        return self.joined(self.value(arguments[0]), self.value(subject), "join") if len(arguments) == 1 else None


# ---- nodes ----


def _all(body: Sequence[Any], kind: Any) -> Iterator[Any]:
    for item in body:
        if isinstance(item, kind):
            yield item
        yield from item.find_all(kind)


def _name(name: str) -> Any:
    return nodes.Name(name, "load")


def _constant(node: Any) -> Any:
    """The value of a constant, or of a negated number; None for anything else."""
    if isinstance(node, nodes.Neg) and isinstance(node.node, nodes.Const) and type(node.node.value) is int:
        return -node.node.value
    return node.value if isinstance(node, nodes.Const) else None


def _constants(node: Any) -> tuple[Any, ...]:
    """The values of a list or tuple of constants; empty for anything else."""
    items = node.items if isinstance(node, nodes.Tuple | nodes.List) else []
    return tuple(map(_constant, items))


def _jumps(item: Any, kind: Any = nodes.Continue) -> bool:
    """Whether a statement goes on with the loop that it stands in, or leaves it."""
    if isinstance(item, kind):
        return True
    branches = (item.body, *(branch.body for branch in item.elif_), item.else_) if isinstance(item, nodes.If) else ()
    return any(_jumps(inner, kind) for body in branches for inner in body)


def _lowered(flag: str) -> Any:
    """A flag that is not raised."""
    made = nodes.Call(_name("namespace"), [], [nodes.Keyword("on", nodes.Const(False))], None, None)
    return nodes.Assign(nodes.Name(flag, "store"), made)


def _with_flag(body: Sequence[Any], flag: str, kind: Any) -> list[Any]:
    """Statements up to a jump, which raises the flag; those behind a condition that may jump look at it."""
    for place, item in enumerate(body):
        if isinstance(item, kind):
            return [*body[:place], nodes.Assign(nodes.NSRef(flag, "on"), nodes.Const(True))]
        if _jumps(item, kind):
            rest = _with_flag(body[place + 1 :], flag, kind)
            others = [nodes.If(branch.test, _with_flag(branch.body, flag, kind), [], []) for branch in item.elif_]
            inner = nodes.If(item.test, _with_flag(item.body, flag, kind), others, _with_flag(item.else_, flag, kind))
            left = nodes.Not(nodes.Getattr(_name(flag), "on", "load"))
            return [*body[:place], inner, *([nodes.If(left, rest, [], [])] if rest else [])]
    return list(body)


def _nothing() -> Any:
    return nodes.Output([nodes.TemplateData("")])


def _call(function: Any, arguments: Sequence[Any]) -> Any:
    return nodes.Call(function, list(arguments), [], None, None)


def _filter(node: Any, name: str) -> Any:
    return nodes.Filter(node, name, [], [], None, None)


def _is(node: Any, name: str, test: Any = None) -> Any:
    return nodes.Test(node, name, test.args if test is not None else [], [], None, None)


def _compare(left: Any, op: str, right: Any) -> Any:
    return nodes.Compare(left, [nodes.Operand(op, right)])


def _plus(node: Any, number: int) -> Any:
    if isinstance(node, nodes.Const):
        return nodes.Const(node.value + number)
    return nodes.Add(node, nodes.Const(number)) if number > 0 else nodes.Sub(node, nodes.Const(-number))


def _loop_member(node: Any) -> str | None:
    loop = isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name) and node.node.name == "loop"
    return node.attr if loop else None


def _is_length(node: Any) -> bool:
    return isinstance(node, nodes.Filter) and node.name in ("length", "count")


def _is_integer(node: Any) -> bool:
    """Whether an expression is an integer whatever the chat."""
    if isinstance(node, nodes.Const):
        return type(node.value) is int
    if isinstance(node, nodes.Add | nodes.Sub | nodes.Mul | nodes.Mod | nodes.FloorDiv):
        return _is_integer(node.left) or _is_integer(node.right)
    return _is_length(node) or _loop_member(node) in LOOP_INTEGERS


def _is_truth(node: Any) -> bool:
    """Whether an expression is true or false and nothing else."""
    if isinstance(node, nodes.And | nodes.Or):
        return _is_truth(node.left) and _is_truth(node.right)
    if isinstance(node, nodes.Const):
        return isinstance(node.value, bool)
    methods = isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr)
    if methods:
        return node.node.attr in ("startswith", "endswith")
    return isinstance(node, nodes.Not | nodes.Compare | nodes.Test) or _loop_member(node) in ("first", "last")


def _is_chain(node: Any) -> bool:
    """Whether members can be taken of an expression by every renderer: a name, and members and methods of it."""
    if isinstance(node, nodes.Name):
        return True
    if isinstance(node, nodes.Getattr | nodes.Getitem):
        return _is_chain(node.node)
    return isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and _is_chain(node.node.node)


__all__ = ["Rewritten", "rewrite"]
