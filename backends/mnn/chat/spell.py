"""A template's syntax tree as text that jinja2 and both renderers of MNN read alike.

Everything is a tag, text included, so that no rule about white space around tags, comments or the end of the file
matters, which is where the three differ first. Operators stand in parentheses, since precedence differs too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import nodes

OPERATORS: dict[type[nodes.BinExpr], str] = {
    nodes.Add: "+",
    nodes.Sub: "-",
    nodes.Mul: "*",
    nodes.Div: "/",
    nodes.FloorDiv: "//",
    nodes.Mod: "%",
    nodes.Pow: "**",
    nodes.And: "and",
    nodes.Or: "or",
}
COMPARISONS = {
    "eq": "==",
    "ne": "!=",
    "gt": ">",
    "gteq": ">=",
    "lt": "<",
    "lteq": "<=",
    "in": "in",
    "notin": "not in",
}
ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


class UnspelledError(Exception):
    """A construct that is not written; the message names it."""


def spell(body: Sequence[nodes.Node]) -> str:
    """The statements as text.

    Raises:
        UnspelledError: one of them, or an expression, is of a kind that is not written.
    """
    return "".join(_statement(item) for item in body)


def _statement(item: nodes.Node) -> str:
    write = STATEMENTS.get(type(item))
    if write is None:
        raise UnspelledError(type(item).__name__)
    return write(item)


def _tag(text: str) -> str:
    return f"{{%- {text} -%}}"


def _output(item: Any) -> str:
    return "".join(
        _print(nodes.Const(node.data)) if isinstance(node, nodes.TemplateData) else _print(node) for node in item.nodes
    )


def _print(node: nodes.Expr) -> str:
    return f"{{{{- {expression(node)} -}}}}"


def _if(item: Any) -> str:
    parts = [_tag(f"if {expression(item.test)}"), spell(item.body)]
    for branch in item.elif_:
        parts += [_tag(f"elif {expression(branch.test)}"), spell(branch.body)]
    if item.else_:
        parts += [_tag("else"), spell(item.else_)]
    return "".join([*parts, _tag("endif")])


def _for(item: Any) -> str:
    if item.recursive:
        raise UnspelledError("a recursive loop")
    condition = f" if {expression(item.test)}" if item.test is not None else ""
    other = _tag("else") + spell(item.else_) if item.else_ else ""
    head = _tag(f"for {_target(item.target)} in {expression(item.iter)}{condition}")
    return head + spell(item.body) + other + _tag("endfor")


def _target(node: Any) -> str:
    if isinstance(node, nodes.Tuple):
        return ", ".join(_target(item) for item in node.items)
    if isinstance(node, nodes.NSRef):
        return f"{node.name}.{node.attr}"
    if isinstance(node, nodes.Name):
        return node.name
    raise UnspelledError(type(node).__name__)


def _macro(item: Any) -> str:
    plain = len(item.args) - len(item.defaults)
    params = [
        arg.name if place < plain else f"{arg.name}={expression(item.defaults[place - plain])}"
        for place, arg in enumerate(item.args)
    ]
    return _tag(f"macro {item.name}({', '.join(params)})") + spell(item.body) + _tag("endmacro")


STATEMENTS: dict[type[nodes.Node], Callable[[Any], str]] = {
    nodes.Output: _output,
    nodes.If: _if,
    nodes.For: _for,
    nodes.Assign: lambda item: _tag(f"set {_target(item.target)} = {expression(item.node)}"),
    nodes.Macro: _macro,
    nodes.Scope: lambda item: spell(item.body),
    nodes.Break: lambda item: _tag("break"),
    nodes.Continue: lambda item: _tag("continue"),
}


# ---- expressions ----


def expression(node: nodes.Expr) -> str:
    """An expression as text.

    Raises:
        UnspelledError: it is of a kind that is not written.
    """
    write = EXPRESSIONS.get(type(node))
    if write is not None:
        return write(node)
    if isinstance(node, nodes.BinExpr) and type(node) in OPERATORS:
        return f"({expression(node.left)} {OPERATORS[type(node)]} {expression(node.right)})"
    raise UnspelledError(type(node).__name__)


def _const(node: Any) -> str:
    value = node.value
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value.translate(ESCAPES)}"' if isinstance(value, str) else repr(value)


def _arguments(node: Any) -> str:
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        raise UnspelledError("arguments from a list")
    given = [expression(item) for item in node.args]
    return ", ".join([*given, *(f"{item.key}={expression(item.value)}" for item in node.kwargs)])


def _filter(node: Any) -> str:
    if node.node is None:
        raise UnspelledError("a block of a filter")
    arguments = _arguments(node)
    return f"({expression(node.node)} | {node.name}{f'({arguments})' if arguments else ''})"


def _test(node: Any) -> str:
    if node.args or node.kwargs:
        raise UnspelledError(f"the test {node.name} with arguments")
    return f"({expression(node.node)} is {node.name})"


def _condition(node: Any) -> str:
    if node.expr2 is None:
        return f"({expression(node.expr1)} if {expression(node.test)})"
    return f"({expression(node.expr1)} if {expression(node.test)} else {expression(node.expr2)})"


def _compare(node: Any) -> str:
    return f"({' '.join([expression(node.expr), *(f'{COMPARISONS[o.op]} {expression(o.expr)}' for o in node.ops)])})"


def _concat(node: Any) -> str:
    text = expression(node.nodes[0])
    for item in node.nodes[1:]:
        text = f"({text} ~ {expression(item)})"
    return text


def _slice(node: Any) -> str:
    start, stop = (expression(item) if item is not None else "" for item in (node.start, node.stop))
    return f"{start}:{stop}{f':{expression(node.step)}' if node.step is not None else ''}"


def _item(node: Any) -> str:
    key = _slice(node.arg) if isinstance(node.arg, nodes.Slice) else expression(node.arg)
    return f"{expression(node.node)}[{key}]"


EXPRESSIONS: dict[type[nodes.Node], Callable[[Any], str]] = {
    nodes.Const: _const,
    nodes.Name: lambda node: node.name,
    nodes.List: lambda node: f"[{', '.join(map(expression, node.items))}]",
    nodes.Tuple: lambda node: f"[{', '.join(map(expression, node.items))}]",
    nodes.Dict: lambda node: (
        "{" + ", ".join(f"{expression(pair.key)}: {expression(pair.value)}" for pair in node.items) + "}"
    ),
    nodes.Filter: _filter,
    nodes.Test: _test,
    nodes.CondExpr: _condition,
    nodes.Compare: _compare,
    nodes.Concat: _concat,
    nodes.Not: lambda node: f"(not {expression(node.node)})",
    nodes.Neg: lambda node: f"(-{expression(node.node)})",
    nodes.Pos: lambda node: expression(node.node),
    nodes.Getattr: lambda node: f"{expression(node.node)}.{node.attr}",
    nodes.Getitem: _item,
    nodes.Call: lambda node: f"{expression(node.node)}({_arguments(node)})",
}

__all__ = ["UnspelledError", "expression", "spell"]
