"""Element types that the declaration of an operator allows an operand."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from ir.base.types import BOOL, DTYPES, F32, I64, DType
from ir.graph.graph import Node, Value
from ir.ops.registry import opsets_of, schema_of

_NAMES = {"float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16", "int64": "i64", "int32": "i32",
          "int16": "i16", "int8": "i8", "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
          "bool": "bool", "string": "str"}  # fmt: skip
_USUAL = (F32, I64, BOOL)
"""Element types in the order in which they are taken where several would do."""


def allowed(
    node: Node,
    index: int,
    element: Callable[[Value], DType | None],
    among: Callable[[Value], tuple[DType, ...]] = lambda value: (),
) -> tuple[DType, ...]:
    """The element types that an operand may have, given those of the others; empty where nothing is said.

    Args:
        node: the node.
        index: which operand.
        element: element types of values as far as they are known.
        among: those that a value of unknown type may have; empty where nothing is known.
    """
    opsets = opsets_of(node.graph)
    schema = schema_of(node.domain, node.op_type, opsets.get(node.domain, 1))
    if schema is None or not schema.inputs:
        return ()
    formals = schema.inputs
    formal = formals[min(index, len(formals) - 1)]
    variadic = formal.option.name == "Variadic"
    uniform = not variadic or formal.is_homogeneous
    ends = [(value, formals[min(place, len(formals) - 1)]) for place, value in enumerate(node.inputs) if place != index]
    ends += list(zip(node.outputs, schema.outputs, strict=False))
    alike = [value for value, other in ends if value is not None and other.type_str == formal.type_str and uniform]
    for value in alike:
        if (found := element(value)) is not None:
            return (found,)
    options = _types(formal.type_str, node.domain, node.op_type, opsets.get(node.domain, 1))
    for value in alike:
        limited = among(value)
        options = tuple(one for one in options if not limited or one in limited) or options
    return options


@lru_cache(maxsize=4096)
def _types(name: str, domain: str, op: str, opset: int) -> tuple[DType, ...]:
    schema = schema_of(domain, op, opset)
    texts = next((item.allowed_type_strs for item in schema.type_constraints if item.type_param_str == name), [name])
    found = [DTYPES[_NAMES[text[7:-1]]] for text in texts if text.startswith("tensor(") and text[7:-1] in _NAMES]
    return tuple(found)


def usual(options: tuple[DType, ...]) -> DType | None:
    """The one to take where several element types would do."""
    return next((one for one in _USUAL if one in options), options[0] if options else None)


__all__ = ["allowed", "usual"]
