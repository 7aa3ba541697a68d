"""Constants in the element types that MNN holds: 64-bit integers as 32-bit ones, and double precision as single."""

from __future__ import annotations

import numpy as np

from ir.base.diag import Diagnostic
from ir.base.types import F32, F64, I32, I64, TensorType
from ir.graph.describe import describe
from ir.graph.graph import Graph, Value
from ir.tensor.inline import InlineTensor

CONVERTED = 1 << 30
"""The converter takes 64-bit integers beyond this for this one."""

BOUNDS = {"Slice": (1, 2), "Clip": (1, 2), "Max": (0, 1), "Min": (0, 1), "Loop": (0,)}
"""Operands that mean the same with a number beyond the range of 32 bits as with the last one within it: all that they are
compared with is within it."""


def shorten_bounds(graph: Graph) -> None:
    """Make a bound that no 32-bit integer reaches the last number within their range."""
    for one in graph.graphs():
        for value in [value for value in one.consts.values() if value.dtype == I64 and value.tensor.type.size]:
            uses = [(node, place) for node, place in value.uses if place in BOUNDS.get(node.op, ())]
            numbers = value.tensor.load() if uses else np.zeros(1, np.int64)
            within = np.clip(numbers, I32.low, I32.high)
            if bool((within == numbers).all()):
                continue
            bound = one.add_const(f"{value.name}.bound", InlineTensor(within), value.loc)
            for node, place in uses:
                node.home.set_input(node, place, bound)


def hold_constants(graph: Graph) -> list[Diagnostic]:
    """Write constants so that the converter keeps their numbers; P379 for each constant of which it cannot.

    64-bit integers of more than 30 bits become 32-bit ones that are converted where they are read, which the converter
    does not shorten; but bounds of slices, which no tensor is as long as.
    """
    found: list[Diagnostic] = []
    for one in graph.graphs():
        for value in [value for value in one.consts.values() if value.uses or value.is_output]:
            if value.dtype == I64:
                found += _integers(value)
            elif value.dtype == F64 and not _in_single(value):
                found.append(_refusal(value, "double precision", F32.name))
    return found


def _integers(value: Value) -> list[Diagnostic]:
    numbers = value.tensor.load()
    if not numbers.size or (numbers.min() >= -CONVERTED and numbers.max() <= CONVERTED):
        return []
    if all(node.op == "Slice" and place in BOUNDS["Slice"] for node, place in value.uses) and not value.is_output:
        value.graph.set_const(value, InlineTensor(np.clip(numbers, -CONVERTED, CONVERTED)))
        return []
    if numbers.min() < I32.low or numbers.max() > I32.high:
        return [_refusal(value, "64-bit integers", I32.name)]
    graph = value.graph
    narrow = graph.add_const(f"{value.name}.held", InlineTensor(numbers.astype(np.int32)), value.loc)
    first = next(iter(graph.nodes), None)
    stem = f"{value.name}.wide"
    node = graph.add("Cast", [narrow], {"to": I64.onnx}, outputs=[stem], types=[value.type], before=first)
    graph.replace(value, node.output)
    return []


def _in_single(value: Value) -> bool:
    numbers = value.tensor.load()
    with np.errstate(over="ignore"):
        return bool((np.isfinite(numbers) == np.isfinite(numbers.astype(np.float32))).all())


def _refusal(value: Value, kind: str, held: str) -> Diagnostic:
    numbers = value.tensor.load().reshape(-1)
    finite = numbers[np.isfinite(numbers)]
    largest = max(finite.max(), -finite.min(), key=float) if finite.size else numbers[0]
    shape = value.type.shape if isinstance(value.type, TensorType) else None
    where = describe(value.uses[0][0]) if value.uses else f"constant @{value.name}"
    message = f"the constant {value.name} of {kind}{list(shape or ())} holds {largest}, and MNN holds it as {held}"
    return Diagnostic("P379", message, where, "--to onnx runs it in onnxruntime")


__all__ = ["hold_constants", "shorten_bounds"]
