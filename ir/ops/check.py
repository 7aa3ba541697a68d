"""Whether nodes are as their operators declare them."""

from __future__ import annotations

from typing import Any

from ir.base.diag import Diagnostic, suggest
from ir.base.types import ValueType
from ir.graph.describe import describe
from ir.graph.graph import OPSET, Graph, Node
from ir.ops.registry import ANY, OPERATORS, OpDef, opdef, opsets_of, root_of, schema_of
from ir.tensor.base import Tensor


def check_node(node: Node) -> list[Diagnostic]:
    """What is wrong with the operator name, arity and attributes of a node.

    Returns:
        T200 unknown operator, T201 arity, T202 unknown, T203 missing, T204 ill-typed attribute. An operator of a domain
        that neither ONNX nor a registered package owns is a warning.
    """
    definition = opdef(node)
    where = describe(node)
    if definition is None:
        key = f"{node.op}:{node.overload}" if node.overload else node.op
        body = root_of(node.home).functions.get(key)
        return [_unknown(node, where)] if body is None else _check_call(node, body, where)
    found: list[Diagnostic] = []
    counts = (
        ("inputs", len(node.inputs), definition.min_inputs, definition.max_inputs),
        ("outputs", len(node.outputs), definition.min_outputs, definition.max_outputs),
    )
    for what, count, low, high in counts:
        if not low <= count <= high:
            bounds = str(low) if low == high else f"{low} or more" if high == ANY else f"{low} to {high}"
            found.append(Diagnostic("T201", f"{node.op} takes {bounds} {what}, not {count}", where))
    for index, value in enumerate(node.inputs[: definition.min_inputs]):
        if value is None and not _may_be_left_out(node, definition, index):
            name = definition.inputs[min(index, len(definition.inputs) - 1)]
            found.append(Diagnostic("T201", f"input {name} of {node.op} cannot be left out", where))
    return found + _check_attributes(node, definition, where)


def _check_call(node: Node, body: Graph, where: str) -> list[Diagnostic]:
    """Arity of a call of a model-local function, which may leave trailing inputs and outputs out."""
    if len(node.inputs) <= len(body.inputs) and len(node.outputs) <= len(body.outputs):
        return []
    message = f"function {node.op} takes {len(body.inputs)} inputs and gives {len(body.outputs)} outputs"
    return [Diagnostic("T201", f"{message}, not {len(node.inputs)} and {len(node.outputs)}", where)]


def _may_be_left_out(node: Node, definition: OpDef, index: int) -> bool:
    """True for an input that ONNX lets a node leave out although later ones are given."""
    if definition.package != "onnx":
        return index in definition.left_out
    from onnx import defs

    schema = schema_of(node.domain, node.op_type, opsets_of(node.graph).get(node.domain, OPSET))
    return schema.inputs[min(index, len(schema.inputs) - 1)].option == defs.OpSchema.FormalParameterOption.Optional


def _unknown(node: Node, where: str) -> Diagnostic:
    if not node.domain:
        from onnx import defs

        known = sorted({schema.name for schema in defs.get_all_schemas()})
        return Diagnostic("T200", f"ONNX has no operator {node.op}", where, suggest(node.op, known))
    if node.domain in {name.rpartition(".")[0] for name in OPERATORS if not OPERATORS[name].native}:
        hint = suggest(node.op, list(OPERATORS))
        return Diagnostic("T200", f"domain {node.domain} has no operator {node.op}", where, hint)
    return Diagnostic("T200", f"nobody registered operator {node.op}", where, severity="warning")


def _check_attributes(node: Node, definition: OpDef, where: str) -> list[Diagnostic]:
    found: list[Diagnostic] = []
    for name, value in node._attrs.items():
        described = definition.attrs.get(name)
        if described is None:
            hint = suggest(name, list(definition.attrs))
            severity = "warning" if definition.native else "error"
            found.append(Diagnostic("T202", f"{node.op} has no attribute {name!r}", where, hint, severity))
        elif not _fits(value, described.kind):
            found.append(Diagnostic("T204", f"{name} of {node.op} must be {described.kind}, not {value!r}", where))
        elif described.choices and value not in described.choices:
            hint = suggest(str(value), sorted(described.choices))
            found.append(Diagnostic("T204", f"{name} of {node.op} cannot be {value!r}", where, hint))
    for name, described in definition.attrs.items():
        if described.required and name not in node._attrs:
            found.append(Diagnostic("T203", f"{node.op} needs attribute {name!r}", where))
    return found


_ITEMS = {
    "int": int, "float": int | float, "str": str | bytes, "tensor": Tensor, "graph": Graph, "type_proto": ValueType,
    "sparse_tensor": object,
}  # fmt: skip


def _fits(value: Any, kind: str) -> bool:
    if kind in _ITEMS:
        return isinstance(value, _ITEMS[kind]) and not (kind == "float" and isinstance(value, bool))
    return isinstance(value, tuple) and all(_fits(item, kind[:-1]) for item in value)
