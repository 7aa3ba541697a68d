"""Inference rules of the ONNX control flow operators, whose bodies are inferred with them."""

from __future__ import annotations

from ir.base.types import BOOL, I64, TensorType, ValueType
from ir.graph.graph import Graph, Node, Value
from ir.infer.inference import Inference, conflict
from ir.infer.numeric import axis_of, part_axis, tensor, typed
from ir.infer.rule_table import TypeMismatch, rule
from ir.infer.symbolic import Extent


@rule("If")
def if_(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    then, other = node._attrs["then_branch"], node._attrs["else_branch"]
    if len(then.outputs) != len(other.outputs):
        raise TypeMismatch(f"the alternatives give {len(then.outputs)} and {len(other.outputs)} values")
    run.graph(then)
    run.graph(other)
    return tuple(either(a.type, b.type) for a, b in zip(then.outputs, other.outputs, strict=True))


def either(a: ValueType | None, b: ValueType | None) -> ValueType | None:
    """The type of a value that is one of two; a dimension in which they differ is unknown."""
    if a == b:
        return a
    if type(a) is not TensorType or type(b) is not TensorType:
        return None
    if a.dtype != b.dtype:
        raise TypeMismatch(f"the alternatives have element types {a.dtype} and {b.dtype}")
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return TensorType(a.dtype)
    return typed(a.dtype, tuple(x if x == y else None for x, y in zip(a.shape, b.shape, strict=True)))


@rule("Loop")
def loop(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    body: Graph = node._attrs["body"]
    carried = node.inputs[2:]
    if len(body.inputs) != len(node.inputs):
        raise TypeMismatch(f"the body takes {len(body.inputs)} values, not {len(node.inputs)}")
    if len(body.outputs) <= len(carried):
        raise TypeMismatch(f"the body gives {len(body.outputs)} values, not {1 + len(carried)} or more")
    _declare(run, body.inputs[0], TensorType(I64, ()))
    _declare(run, body.inputs[1], TensorType(BOOL, ()))
    for value, outer in zip(body.inputs[2:], carried, strict=True):
        # A carried value may change its shape from one round to the next.
        found = tensor(outer)
        if found is not None:
            _declare(run, value, TensorType(found.dtype))
        elif outer is not None:
            _declare(run, value, outer.type)
    run.graph(body)
    results = []
    for outer, last in zip(carried, body.outputs[1 : 1 + len(carried)], strict=True):
        results.append(either(outer.type, last.type) if outer is not None else None)
    for value in body.outputs[1 + len(carried) :]:
        results.append(_stacked(value, 0))
    return tuple(results)


@rule("Scan")
def scan(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    if run.opset < 9:
        return (None,)
    body: Graph = node._attrs["body"]
    count = node._attrs["num_scan_inputs"]
    states = len(node.inputs) - count
    if not 0 < count <= len(node.inputs):
        raise TypeMismatch(f"{count} of {len(node.inputs)} inputs are to be scanned")
    if len(body.inputs) != len(node.inputs) or len(body.outputs) < states:
        raise TypeMismatch(
            f"the body takes {len(body.inputs)} and gives {len(body.outputs)} values "
            f"for {len(node.inputs)} inputs, {states} of them states"
        )
    axes = node._attrs.get("scan_input_axes") or (0,) * count
    places = node._attrs.get("scan_output_axes") or (0,) * (len(body.outputs) - states)
    if len(axes) != count or len(places) != len(body.outputs) - states:
        raise TypeMismatch("there is not one axis for each scanned input and output")
    for value, outer in zip(body.inputs, node.inputs[:states], strict=False):
        _declare(run, value, outer.type if outer is not None else None)
    length = None
    for value, outer, axis in zip(body.inputs[states:], node.inputs[states:], axes, strict=True):
        found = tensor(outer)
        if found is None or found.shape is None:
            continue
        axis = part_axis(axis, len(found.shape))
        length = found.shape[axis] if type(length) is not int else length
        _declare(run, value, TensorType(found.dtype, found.shape[:axis] + found.shape[axis + 1 :]))
    run.graph(body)
    stacked = [_stacked(v, axis, length) for v, axis in zip(body.outputs[states:], places, strict=True)]
    return (*(value.type for value in body.outputs[:states]), *stacked)


def _stacked(value: Value, axis: int, length: Extent | None = None) -> ValueType | None:
    """Type of the results of every round of a body put together along a new axis."""
    found = tensor(value)
    if found is None or found.shape is None:
        return None if found is None else TensorType(found.dtype)
    axis = axis_of(axis, len(found.shape) + 1)
    return typed(found.dtype, (*found.shape[:axis], length, *found.shape[axis:]))


def _declare(run: Inference, value: Value, type_: ValueType | None) -> None:
    """Give an input of a body the type that flows in, where none is recorded or what is recorded is a wrong hint."""
    if type_ is None:
        return
    recorded = value.type
    if recorded is None:
        value.graph.set_type(value, type_)
    elif run.hinted and type(type_) is TensorType and type(recorded) is TensorType and conflict(recorded, type_):
        run.overrule(value, type_)
