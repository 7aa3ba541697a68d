"""Calls of model-local functions written out, so that nothing but operators is left."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from typing import Any

from ir.graph.graph import Graph, Node, Value
from ir.onnx.keys import MODEL, REFS, references
from ir.onnx.values import attribute_value
from ir.ops.opset import ONNX, upgrade
from passes.framework.base import Pass, Result
from passes.framework.context import PassContext

Known = dict[Value, "Value | None"]
"""What the values of a function's body are where it is called; None for an input that the call leaves out."""


@dataclass(frozen=True)
class ExpandFunctions(Pass):
    """Write out every call of a model-local function: some exporters wrap operators in functions of their own.

    A function that is written for another version of ONNX's operators than the model is upgraded first, or the model
    is. Where an operator has no newer form the call stays, with a warning.
    """

    name = "expand-functions"

    def run(self, graph: Graph, ctx: PassContext) -> Result:
        """See `Pass.run`."""
        if not graph.functions:
            return None
        blocked = _one_opset(graph)
        for key, reason in blocked.items():
            ctx.warn("P323", f"calls of the function {key} stay: {reason}", f"function {key}")
        bodies = {key: body for key, body in graph.functions.items() if key not in blocked}
        count = sum(_expand_calls(one, bodies) for one in graph.graphs())
        for body in bodies.values():
            for domain, version in body.opsets.items():
                graph.opsets.setdefault(domain, version)
        called = _called(graph)
        for key in [key for key in graph.functions if key not in called]:
            del graph.functions[key]
        return {"calls": count} if count else None


def _key(node: Node) -> str:
    return f"{node.op}:{node.overload}" if node.overload else node.op


def _called(graph: Graph) -> set[str]:
    """Every function that the graph calls, also through others."""
    found: set[str] = set()
    waiting = [graph]
    while waiting:
        for node in waiting.pop().walk():
            key = _key(node)
            if key in graph.functions and key not in found:
                found.add(key)
                waiting.append(graph.functions[key])
    return found


def _one_opset(graph: Graph) -> dict[str, str]:
    """Bring the graph and its functions to one version of ONNX's operators; why not, for functions where that fails."""
    bodies = {key: body for key, body in graph.functions.items() if ONNX in body.opsets}
    upgrade(graph, max([graph.opsets.get(ONNX, 1), *(body.opsets[ONNX] for body in bodies.values())]))
    wanted = graph.opsets.get(ONNX, 1)
    blocked: dict[str, str] = {}
    for key, body in bodies.items():
        needed = body.opsets[ONNX]
        blockers = upgrade(body, wanted)
        if needed > wanted:
            blocked[key] = f"it needs opset {needed}, and the model of opset {wanted} cannot be upgraded"
        elif blockers:
            blocked[key] = f"{blockers[0]} of opset {needed} has no form in opset {wanted}"
    return blocked


def _expand_calls(graph: Graph, bodies: dict[str, Graph]) -> int:
    """Write out the calls of one graph, and those in what is written out; how many there were."""
    waiting = [node for node in graph.nodes if _key(node) in bodies]
    count = 0
    while waiting:
        call = waiting.pop()
        made = _expand(graph, call, bodies[_key(call)])
        waiting += [node for node in made if _key(node) in bodies]
        count += 1
    return count


def _expand(graph: Graph, call: Node, body: Graph) -> list[Node]:
    """Put a copy of a function's body in the place of a call; the new nodes."""
    known: Known = {value: call.input(index) for index, value in enumerate(body.inputs)}
    attrs = {**_defaults(body), **call.attrs}
    _constants(body, graph, known)
    made = [_copy(node, graph, known, attrs, call) for node in body.nodes]
    fresh = set(made)
    results = [(value, known[result]) for value, result in zip(call.outputs, body.outputs, strict=False)]
    names = []
    taken: set[Value] = set()
    for value, found in results:
        if found is None:
            # The function gives an optional input back that the call leaves out: readers leave it out as well.
            for node, index in value.uses:
                node.home.set_input(node, index, None)
            continue
        if found.producer not in fresh or found in taken:
            node = graph.add("Identity", [found], before=call, loc=call.loc)
            made.append(node)
            found = node.output
        taken.add(found)
        graph.set_type(found, value.type)
        graph.replace(value, found)
        graph.set_loc(found, value.loc)
        names.append((found, value.name))
    graph.erase(call)
    for found, name in names:
        graph.rename(found, name)
    return made


def _constants(body: Graph, graph: Graph, known: Known) -> None:
    for value in body.consts.values():
        known[value] = graph.add_const(value.name, value.tensor, value.loc)


def _copy(node: Node, graph: Graph, known: Known, attrs: dict[str, Any], call: Node, *, last: bool = False) -> Node:
    """A node of a function's body where it is called: its operands known, its references replaced by values."""
    refs = references(node)
    given = {name: attrs.get(refs[name]) if name in refs else value for name, value in node.attrs.items()}
    made = graph.add(
        node.op,
        [known[value] if value is not None else None for value in node.inputs],
        {name: value for name, value in given.items() if value is not None and not _holds_graph(value)},
        outputs=[value.name for value in node.outputs],
        before=None if last else call,
        name="/".join(part for part in (call.name, node.name) if part),
        loc="/".join(part for part in (call.loc, node.loc) if part),
    )
    made.overload = node.overload
    made.metadata.update((key, text) for key, text in node.metadata.items() if key != REFS)
    known.update(zip(node.outputs, made.outputs, strict=True))
    inner = {name: _bodies(value, made, known, attrs, call) for name, value in given.items() if _holds_graph(value)}
    if inner:
        graph.set_attrs(made, **inner)
    return made


def _holds_graph(value: Any) -> bool:
    return isinstance(value, Graph) or (isinstance(value, tuple) and any(isinstance(part, Graph) for part in value))


def _bodies(value: Any, owner: Node, known: Known, attrs: dict[str, Any], call: Node) -> Any:
    """The graphs of an attribute, made again; their names are not those of values around them."""
    if isinstance(value, tuple):
        return tuple(_bodies(part, owner, known, attrs, call) for part in value)
    twin = Graph(value.name, owner=owner)
    seen = dict(known)
    for item in value.inputs:
        seen[item] = twin.add_input(twin.fresh_name(item.name), item.type, item.loc)
    _constants(value, twin, seen)
    for node in value.nodes:
        _copy(node, twin, seen, attrs, call, last=True)
    outputs = [(item, seen[item]) for item in value.outputs]
    twin.set_outputs([found for _, found in outputs if found is not None])
    return twin


def _defaults(body: Graph) -> dict[str, Any]:
    """Default values of a function's attributes."""
    stored = body.metadata.get(MODEL, {}).get("function", {}).get("defaults", ())
    return dict(_attribute(text) for text in stored)


def _attribute(text: str) -> tuple[str, Any]:
    """Name and value of an attribute message in base 64."""
    import onnx

    proto = onnx.AttributeProto()
    proto.ParseFromString(b64decode(text))
    return proto.name, attribute_value(proto)
