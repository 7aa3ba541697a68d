"""Operators with a weight larger than the memory limit, computed with numpy from pieces of the weight.

A weight is a constant, or constants under dequantization, Cast, Transpose or Identity. It is read along the axis in
which the stored matrix is contiguous and never held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ir.base.types import TensorType, dtype_of_onnx
from ir.evaluate.onnxruntime_session import load_constant, stored_form
from ir.graph.graph import Node, Value
from ir.ops.registry import attribute, has_trait, opdef
from ir.quant.stored_weight import DEQUANTIZE
from ir.quant.weight import QuantizedWeight, quantized_of
from ir.tensor.base import Tensor
from ir.tensor.rearranged import transposed


@dataclass(frozen=True)
class Slab:
    """A matrix that can be read in ranges along one axis.

    Attributes:
        axis: the axis, 0 or 1.
        read: the elements of a range along the axis, as a matrix of the element type.
    """

    axis: int
    read: Callable[[int, int], np.ndarray]


def slab_of(value: Value, axis: int) -> Slab | None:
    """How a weight is read in ranges along an axis; None when that would need the whole weight."""
    if not isinstance(value.type, TensorType) or value.type.rank != 2:
        return None
    if value.const is not None:
        return _stored(value.const, axis)
    node = value.producer
    source = node.inputs[0] if node is not None and node.inputs else None
    if node is None or source is None:
        return None
    if node.op == "Transpose" and tuple(node._attrs.get("perm", (1, 0))) == (1, 0):
        whole = slab_of(source, 1 - axis)
        return None if whole is None else Slab(axis, lambda start, stop: whole.read(start, stop).T)
    inner = slab_of(source, axis)
    if inner is None:
        return None
    if node.op == "Identity":
        return inner
    if has_trait(node, "conversion"):
        to = dtype_of_onnx(node._attrs["to"]).numpy
        return Slab(axis, lambda start, stop: inner.read(start, stop).astype(to))
    if node.op in DEQUANTIZE and all(item is None or item.const is not None for item in node.inputs):
        return _dequantized(node, inner, source.sizes[1 - axis])
    return None


def _stored(tensor: Tensor, axis: int) -> Slab | None:
    flipped = tensor.recipe()[0] == "transposed"
    if axis == 0:
        return None if flipped else Slab(0, tensor.rows)
    if not flipped:
        return None
    base = transposed(tensor)
    return Slab(1, lambda start, stop: base.rows(start, stop).T)


def _dequantized(node: Node, codes: Slab, extent: int) -> Slab | None:
    """``(codes - zero point) * scale`` or ``codes * scale + zero``, with blocks along one axis of the codes."""
    axis = attribute(node, "axis") % 2
    block = attribute(node, "block_size") or 0
    if block and axis != codes.axis and (recipe := _shared_recipe(node)) is not None:
        return _requantized(node, recipe, codes.axis, block)
    parts = [_Spread.of(node.input(index), axis, block, codes.axis, extent) for index in (1, 2)]
    scale, zero = parts
    if scale is None or (zero is None and node.input(2) is not None):
        return None
    kind = node.operand(1).dtype.numpy
    asked = node._attrs.get("output_dtype", 0)
    wanted = dtype_of_onnx(asked).numpy if asked else kind

    def read(start: int, stop: int) -> np.ndarray:
        raw = codes.read(start, stop)
        if zero is None:
            numbers = raw.astype(kind) * scale.read(start, stop)
        elif node.op == "lading.AffineDequantize":
            numbers = raw.astype(kind) * scale.read(start, stop) + zero.read(start, stop)
        else:
            numbers = (raw.astype(np.int32) - zero.read(start, stop).astype(np.int32)).astype(kind)
            numbers *= scale.read(start, stop)
        return numbers.astype(wanted, copy=False)

    return Slab(codes.axis, read)


def _shared_recipe(node: Node) -> QuantizedWeight | None:
    """The recipe of which all constants of a dequantization are parts."""
    recipes = {id(quantized_of(stored_form(v.tensor))): v for v in node.inputs if v is not None}
    return quantized_of(stored_form(node.operand(0).tensor)) if len(recipes) == 1 else None


def _requantized(node: Node, recipe: QuantizedWeight, axis: int, block: int) -> Slab:
    """Ranges of a weight whose codes, scales and zeros are quantized together, rows along `axis`."""
    zeros = node.input(2) is not None

    def read(start: int, stop: int) -> np.ndarray:
        part = recipe.rows(start, stop)
        scale = np.repeat(part.scale, block, 1)
        zero = part.zero if zeros else None
        if zero is not None and node.op == "lading.AffineDequantize":
            numbers = part.codes * scale + np.repeat(zero, block, 1)
        elif zero is not None:
            numbers = (part.codes - np.repeat(zero.astype(np.int16), block, 1)).astype(np.float32) * scale
        else:
            numbers = part.codes * scale
        return numbers.T if axis else numbers

    return Slab(axis, read)


@dataclass(frozen=True)
class _Spread:
    """Scales or zeros of a quantized matrix, read in the shape of a range of its codes.

    Attributes:
        source: how a matrix of block values is read; None when `whole` holds a scalar or one value for each place.
        whole: the values, when there is no source.
        axis: the axis along which a block runs.
        block: its length.
        along: the axis in which ranges are read.
        extent: length of the other axis.
    """

    source: Slab | None
    whole: np.ndarray | None
    axis: int
    block: int
    along: int
    extent: int

    @classmethod
    def of(cls, value: Value | None, axis: int, block: int, along: int, extent: int) -> _Spread | None:
        """The reader of a constant operand; None when there is none or it cannot be read in ranges."""
        if value is None:
            return None
        if value.rank == 2:
            source = slab_of(value, along)
            return None if source is None else cls(source, None, axis, block, along, extent)
        whole = load_constant(value.tensor).reshape(-1)
        return cls(None, whole, axis, block, along, extent)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Values that broadcast against the codes of a range."""
        if self.whole is not None:
            if self.whole.size == 1:
                return self.whole.reshape(())
            line = self.whole[start:stop] if self.axis == self.along else self.whole
            return line[:, None] if self.axis == 0 else line[None, :]
        assert self.source is not None
        if self.axis != self.along:
            wide = np.repeat(self.source.read(start, stop), self.block, self.axis)
            return wide[:, : self.extent] if self.axis else wide[: self.extent]
        first = start // self.block
        wide = np.repeat(self.source.read(first, -(-stop // self.block)), self.block, self.axis)
        skip = start - first * self.block
        return wide[:, skip : skip + stop - start] if self.axis else wide[skip : skip + stop - start]


def weight_input(node: Node) -> int | None:
    """Which input of a node may be larger than memory: a table that is picked from, or the matrix of a linear layer."""
    if node.op == "Gather":
        return 0
    definition = opdef(node)
    return definition.weight_input if definition is not None else None


def large_weight(node: Node) -> Value:
    """The weight of a node for which `can_run` holds."""
    index = weight_input(node)
    assert index is not None
    weight = node.inputs[index]
    assert weight is not None
    return weight


def can_run(node: Node) -> bool:
    """True when `run` computes the node from pieces of its weight."""
    index = weight_input(node)
    weight = node.input(index) if index is not None else None
    if weight is None or not isinstance(weight.type, TensorType) or weight.type.rank != 2:
        return False
    if node.op == "Gather":
        return attribute(node, "axis") in (0, -2) and slab_of(weight, 0) is not None
    if node.op == "Gemm" and attribute(node, "transA"):
        return False
    return weight.dtype.is_float and _product_slab(node, weight) is not None


def _product_slab(node: Node, weight: Value) -> Slab | None:
    return slab_of(weight, 1) or slab_of(weight, 0)


def run(
    node: Node, operands: list[list[np.ndarray | None]], budget: int, contents: Tensor | None = None
) -> list[np.ndarray]:
    """Compute one node for several sets of operands, reading each piece of the weight once.

    Args:
        node: a node for which `can_run` is true.
        operands: for each set the node's inputs, the weight's place left None.
        budget: size of a piece in bytes.
        contents: what to take for a constant weight instead of what it holds.
    """
    weight = large_weight(node)
    rows, columns = weight.sizes
    shape = (rows, columns)
    if node.op == "Gather":
        slab = slab_of(weight, 0) if contents is None else _table_slab(contents)
        assert slab is not None
        return _gather(slab, shape, [_given(item, 1) for item in operands], budget)
    matrices = [_matrix(node, _given(item, 0)) for item in operands]
    joined = np.concatenate(matrices) if len(matrices) > 1 else matrices[0]
    flipped = node.op == "Gemm" and bool(attribute(node, "transB"))
    slab = _product_slab(node, weight) if contents is None else _stored(contents, 1) or _stored(contents, 0)
    assert slab is not None
    product = _product(joined, slab, shape, flipped, budget)
    results, start = [], 0
    for given, matrix in zip(operands, matrices, strict=True):
        part = product[start : start + len(matrix)]
        start += len(matrix)
        results.append(_finish(node, part, given))
    return results


def _channels_second(node: Node) -> bool:
    definition = opdef(node)
    return definition is not None and definition.channel_axis == 1


def _matrix(node: Node, x: np.ndarray) -> np.ndarray:
    wide = x.reshape(x.shape[0], -1) if _channels_second(node) else x.reshape(-1, x.shape[-1])
    return wide if wide.dtype in (np.float32, np.float64) else wide.astype(np.float32)


def _given(operands: list[np.ndarray | None], index: int) -> np.ndarray:
    """An operand other than the weight."""
    found = operands[index]
    assert found is not None
    return found


def _finish(node: Node, product: np.ndarray, given: list[np.ndarray | None]) -> np.ndarray:
    """Bring rows of a product into the shape and type of the node's result."""
    x = _given(given, 0)
    bias = given[2] if len(given) > 2 else None
    if node.op == "Gemm":
        product = product * np.float32(attribute(node, "alpha"))
        bias = None if bias is None else bias * np.float32(attribute(node, "beta"))
    if bias is not None:
        product = product + bias
    if _channels_second(node):
        shape = (*product.shape, *[1] * (x.ndim - 2))
    else:
        shape = product.shape if node.op == "Gemm" else (*x.shape[:-1], product.shape[-1])
    shaped = product.reshape(shape)
    return shaped.astype(x.dtype, copy=False)


def _ranges(extent: int, width: int, itemsize: int, budget: int) -> Iterator[tuple[int, int]]:
    step = max(budget // max(width * itemsize, 1), 1)
    # Whole numbers of 64 keep quantization blocks and packed codes together.
    step = step // 64 * 64 or step
    for start in range(0, extent, step):
        yield start, min(start + step, extent)


def _table_slab(contents: Tensor) -> Slab:
    return _stored(contents, 0) or Slab(0, contents.rows)


def _product(x: np.ndarray, slab: Slab, shape: tuple[int, int], flipped: bool, budget: int) -> np.ndarray:
    """``x @ W`` (``x @ W.T`` when flipped) from columns of W where it is stored so, else from its rows."""
    extent, across = shape[slab.axis], shape[1 - slab.axis]
    columns = shape[0] if flipped else shape[1]
    by_columns = (slab.axis == 1) != flipped
    out = (np.empty if by_columns else np.zeros)((len(x), columns), x.dtype)
    for start, stop in _ranges(extent, across, x.dtype.itemsize, budget):
        part = slab.read(start, stop).astype(x.dtype, copy=False)
        part = part.T if flipped else part
        if by_columns:
            np.matmul(x, part, out=out[:, start:stop])
        else:
            out += x[:, start:stop] @ part
    return out


def _gather(slab: Slab, shape: tuple[int, int], places: list[np.ndarray], budget: int) -> list[np.ndarray]:
    """Rows of a matrix; only those asked for are read."""
    count, width = shape
    wanted = [np.where(index < 0, index + count, index).astype(np.int64) for index in places]
    unique = np.unique(np.concatenate([index.reshape(-1) for index in wanted]))
    if unique.size and not 0 <= unique[0] <= unique[-1] < count:
        raise IndexError(f"rows {unique[0]} to {unique[-1]} of a table with {count}")
    rows: np.ndarray | None = None
    for low, high in _runs(unique, max(budget // max(width * 4, 1), 1)):
        part = slab.read(int(unique[low]), int(unique[high - 1]) + 1)
        rows = np.empty((unique.size, width), part.dtype) if rows is None else rows
        rows[low:high] = part
    if rows is None:
        rows = np.empty((0, width), slab.read(0, min(1, count)).dtype)
    return [rows[np.searchsorted(unique, index)] for index in wanted]


def _runs(numbers: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of places in a sorted vector whose numbers follow each other, at most `most` long."""
    breaks = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), numbers.size]
    for low, high in pairwise(breaks):
        for start in range(low, high, most):
            yield start, min(start + most, high)


__all__ = ["can_run", "large_weight", "run", "slab_of", "weight_input"]
