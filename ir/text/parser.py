"""Reads the text form of a graph back (see `ir.text.printer` for the grammar); errors point at the line and column."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from ir.base.diag import suggest
from ir.base.types import DTYPES, Dim, TensorType, ValueType
from ir.graph.facts import build
from ir.graph.graph import EmptyList, Graph, Node, Value
from ir.text.lexer import Tokens
from ir.text.literals import Literals, Scope
from ir.text.printer import VERSION

_LISTS = ("floats", "graphs", "ints", "strings", "tensors", "types")
_LINES = ("const", "dim", "fact", "function", "hints", "input", "meta", "opset", "output", "table")


def parse(text: str, base: str | os.PathLike[str] | None = None, source: str = "text") -> Graph:
    """The graph that a text describes.

    Args:
        text: what `ir.text.printer.print_graph` wrote, or a person did.
        base: folder that relative paths of files are in; the current one when left out.
        source: what to call the text in errors.

    Raises:
        LadingError: I100 to I108, T270, with the line underlined.
    """
    parser = _Parser(text, os.fspath(base) if base is not None else "", source)
    try:
        return parser.root()
    except RecursionError:
        parser.at.fail("I100", "this is nested too deeply")


class _Parser(Literals):
    """Recursive descent over the lines of graphs."""

    def __init__(self, text: str, base: str, source: str) -> None:
        super().__init__(Tokens(text, source), base)

    def root(self) -> Graph:
        at = self.at
        at.expect("lading")
        start, end = at.start, at.end
        version = at.integer()
        if version != VERSION:
            at.fail("I101", f"this is version {version} of the text form; version {VERSION} is read here", start, end)
        graph = self.graph(None, None)
        if at.kind != "end":
            at.fail("I100", f"nothing can follow the graph, not {at.text!r}")
        return graph

    # ---- graphs ----

    def graph(self, owner: Node | None, outer: Scope | None) -> Graph:
        at = self.at
        at.expect("graph")
        graph = Graph(at.name(), owner.home.opsets if owner is not None else None, owner)
        if owner is None:
            graph.opsets = {}
            graph.foreign = True
        scope = Scope(graph, {}, outer)
        at.expect("{")
        while True:
            if at.kind == "value" or at.text == "(":
                self.node(scope)
            elif at.kind == "word" and at.text in _LINES:
                keyword = at.text
                at.next()
                getattr(self, "line_" + keyword)(scope)
            elif at.kind == "mark" and at.text == "}":
                at.next()
                return graph
            else:
                hint = suggest(at.text, _LINES) if at.kind == "word" else ""
                at.fail("I100", f"a line cannot begin with {at.shown()}", hint=hint)

    def line_opset(self, scope: Scope) -> None:
        self.new(scope.graph.opsets, "opset", self.at.name, self.at.integer)

    def line_hints(self, scope: Scope) -> None:
        scope.graph.hinted = scope.graph.owner is None

    def line_meta(self, scope: Scope) -> None:
        self.new(scope.graph.metadata, "metadata key", self.at.name, self.at.json)

    def new(self, table: dict[str, Any], what: str, key: Callable[[], str], value: Callable[[], Any]) -> None:
        """Read a key and a value into a table that must not have the key yet."""
        start, end = self.at.start, self.at.end
        name = key()
        if name in table:
            self.at.fail("I103", f"{what} {name!r} is given twice", start, end)
        table[name] = value()

    def line_dim(self, scope: Scope) -> None:
        at = self.at
        start, end = at.start, at.end
        name = at.name()
        if name in scope.graph.dims:
            at.fail("I103", f"dimension {name!r} is declared twice", start, end)
        at.expect("=")
        low = at.integer()
        at.expect("..")
        high = at.integer() if at.kind == "number" else None
        step = at.integer() if at.accept("step") else 1
        scope.dims[name] = scope.graph.add_dim(Dim(name, low, high, step))
        scope.types.clear()

    def line_const(self, scope: Scope) -> None:
        at = self.at
        start, end = at.start, at.end
        name = self.fresh(scope, "@")
        at.expect(":")
        type = self.type(scope)
        at.expect("=")
        tensor = self.contents(scope, type)
        value = self.made(scope.graph.add_const(name, tensor), name, start, end)
        if at.accept(";"):
            scope.graph.set_loc(value, at.string())

    def line_input(self, scope: Scope) -> None:
        at = self.at
        name = self.fresh(scope, "%")
        type = self.type(scope) if at.accept(":") else None
        scope.graph.add_input(name, type, at.string() if at.accept(";") else "")

    def line_output(self, scope: Scope) -> None:
        values = [self.operand(scope)]
        while self.at.accept(","):
            values.append(self.operand(scope))
        scope.graph.set_outputs([*scope.graph.outputs, *values])

    def line_table(self, scope: Scope) -> None:
        at = self.at
        start, end = at.start, at.end
        name = at.name()
        if name in scope.graph.tables:
            at.fail("I103", f"table {name!r} is given twice", start, end)
        at.expect("=")
        scope.graph.set_table(name, self.operand(scope))

    def line_fact(self, scope: Scope) -> None:
        at = self.at
        start, end = at.start, at.end
        name = at.name()
        if name in scope.graph.facts:
            at.fail("I103", f"fact {name!r} is given twice", start, end)
        with at.located(start, end):
            scope.graph.set_fact(name, build(name, at.json()))

    def line_function(self, scope: Scope) -> None:
        def body() -> Graph:
            self.at.expect("=")
            return self.graph(None, None)

        self.new(scope.graph.functions, "function", self.at.name, body)

    # ---- values ----

    def fresh(self, scope: Scope, sign: str) -> str:
        """Take the name of a new value."""
        at = self.at
        if at.kind != "value":
            at.fail("I100", f"{sign}name expected, not {at.shown()}")
        if at.text[0] != sign:
            kind = "a constant is written @name" if sign == "@" else "only a constant is written @name"
            at.fail("I108", f"{at.text} should begin with {sign}: {kind}")
        name = self.value_name()
        if scope.find(name) is not None:
            at.fail("I103", f"{at.text} is defined twice")
        at.next()
        return name

    def value_name(self) -> str:
        text = self.at.text
        return self.at.unquote(text[1:]) if text[1] == '"' else text[1:]

    def made(self, value: Value, name: str, start: int, end: int) -> Value:
        # The graph gives another name when this one is empty or a subgraph further up has it.
        if not name:
            value.graph.rename(value, name)
        elif value.name != name:
            self.at.fail("I103", f"{name!r} is the name of a value in a subgraph above", start, end)
        return value

    def operand(self, scope: Scope) -> Value:
        """Take a reference to a value."""
        at = self.at
        if at.kind != "value":
            at.fail("I100", f"a value (%name or @name) expected, not {at.shown()}")
        name = self.value_name()
        value = scope.find(name)
        if value is None:
            at.fail("I102", f"{at.text} is not defined above", hint=self.near(scope, name))
        if (value.const is None) != (at.text[0] == "%"):
            right = "@" if value.const is not None else "%"
            at.fail("I108", f"{name!r} is {'' if right == '@' else 'not '}a constant: write {right}{at.text[1:]}")
        at.next()
        return value

    def near(self, scope: Scope, name: str) -> str:
        found: list[str] = []
        inner: Scope | None = scope
        while inner is not None:
            found += [other for other in inner.graph._names if abs(len(other) - len(name)) <= 2]
            inner = inner.outer
        return suggest(name, list(islice(reversed(found), 2000)))

    # ---- nodes ----

    def node(self, scope: Scope) -> None:
        at, graph = self.at, scope.graph
        names: list[str] = []
        types: list[ValueType | None] = []
        places: list[tuple[int, int, str | None]] = []
        if at.accept("("):
            at.expect(")")
        else:
            self.outputs(scope, names, types, places)
        at.expect("=")
        op = at.name()
        inputs = self.operands(scope)
        node: Node | None = None

        def add(attrs: dict[str, Any], name: str) -> Node:
            made = graph.add(op, inputs, attrs, outputs=names, types=types, name=name)
            for value, wanted, (start, end, _) in zip(made.outputs, names, places, strict=True):
                if value.name != wanted:
                    self.made(value, wanted, start, end)
            return made

        def owner() -> Node:
            # A subgraph sees the values around its node, so the node has to be there first.
            nonlocal node
            node = node or add({}, "")
            return node

        attrs = self.attrs(scope, owner) if at.text == "{" and at.kind == "mark" else {}
        name = at.string() if at.kind == "string" else ""
        if node is None:
            node = add(attrs, name)
        else:
            graph.set_attrs(node, **attrs)
            graph.set_name(node, name)
        self.tail(node, places)

    def outputs(
        self, scope: Scope, names: list[str], types: list[ValueType | None], places: list[tuple[int, int, str | None]]
    ) -> None:
        at = self.at
        while True:
            start, end = at.start, at.end
            name = self.fresh(scope, "%")
            if name in names:
                at.fail("I103", f"%{name} is defined twice", start, end)
            names.append(name)
            types.append(self.type(scope) if at.accept(":") else None)
            places.append((start, end, at.string() if at.accept("at") else None))
            if not at.accept(","):
                return

    def operands(self, scope: Scope) -> list[Value | None]:
        at = self.at
        at.expect("(")
        found: list[Value | None] = []
        if at.accept(")"):
            return found
        while True:
            if at.accept("_"):
                found.append(None)
            else:
                found.append(self.operand(scope))
            if not at.accept(","):
                at.expect(")")
                return found

    def tail(self, node: Node, places: Sequence[tuple[int, int, str | None]]) -> None:
        at = self.at
        if at.accept("overload"):
            node.overload = at.string()
        if at.accept("meta"):
            start, end = at.start, at.end
            data = at.json()
            if not isinstance(data, dict) or not all(isinstance(item, str) for item in data.values()):
                at.fail("I100", "the metadata of a node is a JSON object of texts", start, end)
            node.metadata = data
        node.loc = at.string() if at.accept(";") else ""
        for value, (_, _, loc) in zip(node.outputs, places, strict=True):
            value.loc = node.loc if loc is None else loc

    # ---- attributes ----

    def attrs(self, scope: Scope, owner: Callable[[], Node]) -> dict[str, Any]:
        at = self.at
        at.expect("{")
        found: dict[str, Any] = {}
        if at.accept("}"):
            return found
        while True:
            start, end = at.start, at.end
            name = at.name()
            if name in found:
                at.fail("I103", f"attribute {name!r} is given twice", start, end)
            at.expect("=")
            found[name] = self.attr(scope, owner)
            if not at.accept(","):
                at.expect("}")
                return found

    def attr(self, scope: Scope, owner: Callable[[], Node]) -> Any:
        at = self.at
        if at.kind == "type" and at.text[-2:] == "[]" and at.text[:-2] in _LISTS:
            kind = at.text[:-2]
            at.next()
            return EmptyList(kind)
        if at.kind == "mark" and at.text == "[":
            return at.list(lambda: self.attr(scope, owner))
        if at.text == "graph" and at.kind == "word":
            return self.graph(owner(), scope)
        if at.accept("type"):
            return self.type(scope)
        if at.kind == "type" or (at.kind == "word" and at.text in DTYPES):
            type = self.type(scope)
            if not isinstance(type, TensorType):
                at.fail("I100", "only a tensor has contents")
            return self.contents(scope, type)
        return at.scalar()


__all__ = ["parse"]
