"""Operators on small constants, computed with numpy where its result is the same bit for bit.

Most of what folds in a graph are shapes, axes and pieces of weights: numbers that are moved, and arithmetic on integers.
None of these can fail natively or round in more than one way, so that they need neither onnxruntime nor the process that
it runs in for graphs of others. The tests compare every operator with onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ir.base.types import DTYPES, TensorType
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute
from ir.tensor.base import Tensor

Arrays = Sequence["np.ndarray | None"]
Kernel = Callable[[Node, Arrays, int], "np.ndarray | None"]
"""Given the node, its operands and the largest result in bytes."""

PLAIN = frozenset({"f32", "f64", "f16", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "bool"})
"""Element types that are numpy's own."""
KERNELS: dict[str, Kernel] = {}
"""What computes an operator of one output; None for a case that is left to onnxruntime."""


def small_results(nodes: Iterable[Node], limit: int) -> dict[str, np.ndarray]:
    """Results of those nodes, by value name, that numpy computes from constants and from results of earlier nodes.

    Args:
        nodes: nodes of one graph in program order.
        limit: largest operand or result in bytes.
    """
    held: dict[Value, np.ndarray] = {}
    for node in nodes:
        kernel = KERNELS.get(node.op)
        if kernel is None or len(node.outputs) != 1 or not all(_is_plain(value, limit) for value in node.inputs):
            continue
        if any(value is not None and value.const is None and value not in held for value in node.inputs):
            continue
        arrays = [_loaded(value, held) for value in node.inputs]
        try:
            with np.errstate(all="ignore"):
                result = kernel(node, arrays, limit)
        except (ValueError, IndexError, OverflowError, MemoryError):
            continue
        if result is not None and result.nbytes <= limit and _is_of_type(result, node.output):
            held[node.output] = np.ascontiguousarray(result).reshape(result.shape)
    return {value.name: array for value, array in held.items()}


def _is_plain(value: Value | None, limit: int) -> bool:
    if value is None:
        return True
    kind = value.type
    if not isinstance(kind, TensorType) or kind.dtype.name not in PLAIN:
        return False
    return value.const is None or value.const.nbytes <= limit


def _is_of_type(array: np.ndarray, value: Value) -> bool:
    kind = value.type
    return kind is None or (isinstance(kind, TensorType) and array.dtype == kind.dtype.numpy)


def _loaded(value: Value | None, held: dict[Value, np.ndarray]) -> np.ndarray | None:
    if value is None:
        return None
    return held[value] if value in held else value.tensor.load()


def kernel(*names: str) -> Callable[[Kernel], Kernel]:
    """Decorator: the function computes these operators."""

    def add(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(names, function))
        return function

    return add


def _given(arrays: Arrays, place: int) -> np.ndarray | None:
    return arrays[place] if place < len(arrays) else None


def _first(arrays: Arrays) -> np.ndarray:
    array = arrays[0]
    assert array is not None
    return array


def _ints(node: Node, name: str, arrays: Arrays, place: int) -> tuple[int, ...] | None:
    """Integers that older versions of an operator have as an attribute and newer ones as an input."""
    found = node.attrs.get(name)
    if found is not None:
        return tuple(int(item) for item in found)
    array = _given(arrays, place)
    return tuple(int(item) for item in array.reshape(-1)) if array is not None else None


# ---- numbers that are moved ----


@kernel("Identity")
def _identity(node: Node, arrays: Arrays, limit: int) -> np.ndarray:
    return _first(arrays)


@kernel("Shape")
def _shape(node: Node, arrays: Arrays, limit: int) -> np.ndarray:
    return np.array(_first(arrays).shape[slice(node.attrs.get("start", 0), node.attrs.get("end"))], np.int64)


@kernel("Size")
def _size(node: Node, arrays: Arrays, limit: int) -> np.ndarray:
    return np.array(_first(arrays).size, np.int64)


@kernel("Reshape")
def _reshape(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    array, wanted = _first(arrays), _ints(node, "shape", arrays, 1)
    if wanted is None or not array.size:
        return None
    if 0 in wanted:
        if node.attrs.get("allowzero"):
            return None
        wanted = tuple(array.shape[axis] if size == 0 else size for axis, size in enumerate(wanted))
    return array.reshape(wanted)


@kernel("Flatten")
def _flatten(node: Node, arrays: Arrays, limit: int) -> np.ndarray:
    array, axis = _first(arrays), attribute(node, "axis")
    rows = int(np.prod(array.shape[:axis], dtype=np.int64))
    return array.reshape(rows, int(np.prod(array.shape[axis:], dtype=np.int64)))


@kernel("Squeeze")
def _squeeze(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    axes = _ints(node, "axes", arrays, 1)
    return np.squeeze(_first(arrays), axes) if axes != () else None


@kernel("Unsqueeze")
def _unsqueeze(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    axes = _ints(node, "axes", arrays, 1)
    return np.expand_dims(_first(arrays), axes) if axes is not None else None


@kernel("Transpose")
def _transpose(node: Node, arrays: Arrays, limit: int) -> np.ndarray:
    return np.transpose(_first(arrays), node.attrs.get("perm"))


@kernel("Concat")
def _concat(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    parts = [array for array in arrays if array is not None]
    axis = attribute(node, "axis")
    if len(parts) < len(arrays) or axis is None or len({array.dtype for array in parts}) > 1:
        return None
    return np.concatenate(parts, axis)


@kernel("Slice")
def _slice(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    array = _first(arrays)
    starts, ends = _ints(node, "starts", arrays, 1), _ints(node, "ends", arrays, 2)
    if starts is None or ends is None:
        return None
    axes, steps = _ints(node, "axes", arrays, 3), _ints(node, "steps", arrays, 4)
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        return None
    if len({axis % array.ndim for axis in axes}) < len(axes):
        return None
    cut = [slice(None)] * array.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = array.shape[axis]
        if step < 0 and start < -size:
            return None
        # ONNX's -1 - size and below is "before the first", for which Python has no number.
        cut[axis] = slice(start, None if step < 0 and end < -size else end, step)
    return array[tuple(cut)]


@kernel("Gather")
def _gather(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    index = _given(arrays, 1)
    return np.take(_first(arrays), index, attribute(node, "axis")) if index is not None else None


@kernel("Expand")
def _expand(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    array, wanted = _first(arrays), _given(arrays, 1)
    if wanted is None:
        return None
    shape = np.broadcast_shapes(array.shape, tuple(int(size) for size in wanted))
    return np.broadcast_to(array, shape) if prod(shape) * array.itemsize <= limit else None


@kernel("Tile")
def _tile(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    array, repeats = _first(arrays), _given(arrays, 1)
    if repeats is None or len(repeats) != array.ndim or array.nbytes * prod(repeats.tolist()) > limit:
        return None
    return np.tile(array, repeats)


@kernel("ConstantOfShape")
def _constant_of_shape(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    value = node.attrs.get("value")
    if value is None:
        item = np.zeros(1, np.float32)
    elif isinstance(value, Tensor) and value.type.dtype.name in PLAIN:
        item = value.load()
    else:
        return None
    shape = tuple(int(size) for size in _first(arrays))
    return np.full(shape, item.reshape(-1)[0]) if prod(shape) * item.itemsize <= limit else None


@kernel("Where")
def _where(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    yes, no = _given(arrays, 1), _given(arrays, 2)
    if yes is None or no is None or yes.dtype != no.dtype:
        return None
    return np.where(_first(arrays), yes, no)


# ---- arithmetic of one rounding at most ----


@kernel("Cast")
def _cast(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    array = _first(arrays)
    wanted = next((one for one in DTYPES.values() if one.onnx == node.attrs.get("to") and one.name in PLAIN), None)
    if wanted is None or (array.dtype == np.float64 and wanted.name == "f16"):
        return None
    if array.dtype.kind == "f" and wanted.kind in "iu":
        inside = np.isfinite(array) & (np.trunc(array) >= wanted.low) & (np.trunc(array) <= wanted.high)
        exact = wanted.bits <= 32 or (np.abs(array, where=inside, out=np.zeros_like(array)) < 2.0**53)
        if not np.all(inside & exact):
            return None
    return array.astype(wanted.numpy)


_WHOLE: Mapping[str, Callable[..., Any]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}
_COMPARISONS: Mapping[str, Callable[..., Any]] = {
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
}
_LOGIC: Mapping[str, Callable[..., Any]] = {"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor}


def _pair(node: Node, arrays: Arrays) -> tuple[np.ndarray, np.ndarray] | None:
    """Two operands of one type; not of half floats, which may be rounded twice, nor broadcast in the old way."""
    a, b = _given(arrays, 0), _given(arrays, 1)
    if a is None or b is None or a.dtype != b.dtype or a.dtype == np.float16 or node.attrs:
        return None
    return a, b


@kernel(*_WHOLE)
def _arithmetic(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    pair = _pair(node, arrays)
    return np.asarray(_WHOLE[node.op](*pair)) if pair is not None and pair[0].dtype != bool else None


@kernel("Div")
def _div(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    pair = _pair(node, arrays)
    if pair is None or pair[0].dtype == bool:
        return None
    a, b = pair
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not b.all() or (a.dtype.kind == "i" and (a < 0).any() | (b < 0).any()):
        return None
    return np.asarray(a // b)


@kernel(*_COMPARISONS)
def _compare(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    pair = _pair(node, arrays)
    return np.asarray(_COMPARISONS[node.op](*pair)) if pair is not None else None


@kernel(*_LOGIC)
def _logic(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    pair = _pair(node, arrays)
    return np.asarray(_LOGIC[node.op](*pair)) if pair is not None and pair[0].dtype == bool else None


@kernel("Not")
def _not(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    array = _first(arrays)
    return np.logical_not(array) if array.dtype == bool else None


@kernel("Neg")
def _neg(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    array = _first(arrays)
    return np.negative(array) if array.dtype.kind in "if" else None


@kernel("Range")
def _range(node: Node, arrays: Arrays, limit: int) -> np.ndarray | None:
    ends = [array for array in arrays if array is not None]
    if len(ends) != 3 or ends[0].dtype.kind != "i" or any(array.size != 1 for array in ends):
        return None
    start, stop, step = (int(array.reshape(-1)[0]) for array in ends)
    if not step or len(range(start, stop, step)) * ends[0].itemsize > limit:
        return None
    return np.arange(start, stop, step, dtype=ends[0].dtype)


__all__ = ["KERNELS", "small_results"]
