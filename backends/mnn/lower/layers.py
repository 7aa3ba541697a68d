"""The parts of a decoder's layers in MNN's operators: linear layers, norms and rotary embedding."""

from __future__ import annotations

import math

import numpy as np

from backends.mnn.lower.lowering import Lowering
from backends.mnn.lower.moving import permuted, rows_of
from backends.mnn.target.needs import ELSEWHERE
from backends.mnn.write.weight_layout import unheld
from ir.base.diag import LadingError
from ir.base.types import F32, Dim, Shape, TensorType
from ir.graph.graph import Node, Value
from ir.quant.stored_weight import DEQUANTIZE, storage_of
from passes.precision.planned_weights import bias_of


def decodes_constants(node: Node) -> bool:
    """True for a dequantization of constant codes, a weight of which the file may or may not have a form."""
    codes = node.input(0) if node.op in DEQUANTIZE else None
    return codes is not None and codes.is_const


# ---- linear layers ----


def lower_matmul(node: Node, low: Lowering) -> None:
    """A product with a stored matrix becomes a convolution, one along a single element a product of each with each."""
    x, weight = low.plain(node.operand(0)), node.operand(1)
    stored = storage_of(weight, matmul=True)
    if stored is None and weight.producer is not None and decodes_constants(weight.producer):
        raise unheld(weight, matmul=True)
    if stored is None:
        _outer_product(node, low, x, low.plain(weight))
        return
    if (x.rank or 0) < 2 or x.dtype != F32:
        raise low.refused(f"MNN multiplies rows of single precision, not {x.type}")
    bias, result = bias_of(node)
    if bias is None:
        bias = low.const(np.zeros(stored.rows, np.float32), "zeros")
    rows = _count(low, low.dims(x)[:-1])
    flat = low.reshape(x, (rows, stored.columns, 1, 1))
    packed = low.add("ConvertTensor", [flat], flat.type, {"source": "NCHW", "dest": "NC4HW4"})
    wide = TensorType(F32, (rows, stored.rows, 1, 1))
    product = low.add("Convolution", [packed, weight, bias], wide, stem=f"{node.output.name}.conv")
    plain = low.add("ConvertTensor", [product], wide, {"source": "NC4HW4", "dest": "NCHW"})
    low.replace(result, low.reshape(plain, low.dims(result)))


def _count(low: Lowering, shape: Shape) -> int | Dim:
    """How many rows there are; a dimension of its own where several sizes are multiplied and one is symbolic."""
    known = math.prod(dim for dim in shape if not isinstance(dim, Dim))
    free = [dim for dim in shape if isinstance(dim, Dim)]
    if not free or known == 0:
        return known
    if len(free) == 1 and known == 1:
        return free[0]
    if len(free) > 1:
        raise LadingError(
            "P371",
            f"the rows of {list(map(str, shape))} are more than one size that the runtime has to work out",
            where=f"{low.node.loc or low.node.name}\n{low.node!r}",
        )
    dim = free[0]
    high = None if dim.high is None else dim.high * known
    return low.graph.add_dim(Dim(f"{known}*{dim.name}", dim.low * known, high, known))


def _outer_product(node: Node, low: Lowering, x: Value, y: Value) -> None:
    """``[..., m, 1] @ [..., 1, n]``, as tables of angles are often computed, is a product with stretching."""
    left, right = low.dims(x), low.dims(y)
    if len(left) < 2 or len(right) < 2 or left[-1] != 1 or right[-2] != 1 or x.dtype != F32:
        raise LadingError(
            "P372",
            "MNN computes a product with a constant matrix only",
            where=f"{node.loc or node.name}\n{node!r}",
            hint=ELSEWHERE,
        )
    low.replace(node.output, low.binary("MUL", x, y, node.output.type))


# ---- norms ----


def lower_norm(node: Node, low: Lowering) -> None:
    """A norm of the last axis; gains and shifts of more axes are applied behind it."""
    x, gamma, beta = low.floats(node.operand(0)), node.operand(1), node.input(2)
    if node.attrs.get("axis", -1) not in (-1, (x.rank or 0) - 1):
        raise low.refused(f"MNN normalizes the last axis alone, not from axis {node.attrs['axis']} on")
    if any(value.use_count for value in node.outputs[1:]):
        raise low.refused("MNN gives the normalized values alone, not their mean or deviation")
    size = low.size(low.dims(x)[-1])
    inside = all(value is None or _is_vector(value, size) for value in (gamma, beta))
    if inside:
        attached = [gamma, beta if beta is not None else low.const(np.zeros(size, np.float32), "zeros")]
    else:
        attached = [low.const(np.full(size, number, np.float32), stem) for number, stem in ((1, "ones"), (0, "zeros"))]
    attrs = {
        "axis": (-1,),
        "epsilon": float(node.attrs.get("epsilon", 1e-5)),
        "rms": int(node.op == "RMSNormalization"),
    }
    normed = low.add("LayerNorm", [x, *attached], node.output.type, attrs)
    if not inside:
        normed = low.binary("MUL", normed, low.floats(gamma))
        normed = normed if beta is None else low.binary("ADD", normed, low.floats(beta))
    low.replace(node.output, normed)


def _is_vector(value: Value, size: int) -> bool:
    """True for a constant with one number for each element of the normalized axis."""
    return value.is_const and value.shape == (size,) and value.dtype == F32


# ---- rotary embedding ----


def lower_rotary(node: Node, low: Lowering) -> None:
    """Rotation of pairs of elements of each head: an element and the one half of the rotated width behind it, or
    neighbours."""
    x, size = _heads(node, low)
    cos, sin = _angles(node, low, low.dims(x))
    half = low.size(low.dims(cos)[-1])
    if 2 * half > size:
        raise low.refused(f"tables of {half} angles turn {2 * half} elements, and heads have {size}")
    turn = _turned_neighbours if node.attrs.get("interleaved", 0) else _turned_halves
    turned = turn(low, x, cos, sin, half)
    if node.operand(0).rank == 4:
        turned = permuted(low, turned, (0, 2, 1, 3))
    low.replace(node.output, low.reshape(turned, low.dims(node.output)))


def _heads(node: Node, low: Lowering) -> tuple[Value, int]:
    """The operand as ``[1, seq, heads, size]``, and the size of a head."""
    x = low.floats(node.operand(0))
    shape = low.dims(x)
    if len(shape) == 4:
        x = permuted(low, x, (0, 2, 1, 3))
        return x, low.size(low.dims(x)[-1])
    heads = node.attrs.get("num_heads", 0)
    if len(shape) != 3 or not heads:
        raise low.refused("rotary embedding without a number of heads has no MNN form")
    size = low.size(shape[-1]) // heads
    return low.reshape(x, (*shape[:2], heads, size)), size


def _angles(node: Node, low: Lowering, heads: Shape) -> list[Value]:
    """Cosines and sines as ``[1, seq, 1, half]``; rows of tables are gathered where positions come along."""
    found, places = [], node.input(3)
    for value in (low.floats(node.operand(1)), low.floats(node.operand(2))):
        shape = low.dims(value)
        if places is not None:
            if len(shape) != 2:
                raise low.refused(f"rows of a table of angles {value.type} have no MNN form")
            value = rows_of(low, value, places)
            shape = low.dims(value)
        if len(shape) != 3 or shape[0] != 1 or shape[1] != heads[1]:
            raise low.refused(f"angles {value.type} are not those of each position")
        found.append(low.reshape(value, (1, shape[1], 1, shape[2])))
    return found


def _turned_halves(low: Lowering, x: Value, cos: Value, sin: Value, half: int) -> Value:
    size = low.dims(x)[3]
    points = (half,) if 2 * half == size else (half, 2 * half)
    left, right, *rest = low.slice(x, 3, points)
    first, second = _turned(low, left, right, cos, sin)
    return low.add("Concat", [first, second, *rest], x.type, {"axis": 3})


def _turned_neighbours(low: Lowering, x: Value, cos: Value, sin: Value, half: int) -> Value:
    one, seq, heads, size = low.dims(x)
    turned, *rest = low.slice(x, 3, (2 * half,)) if 2 * half != size else (x,)
    pairs = low.reshape(turned, (one, seq, heads, half, 2))
    left, right = (low.reshape(part, (one, seq, heads, half)) for part in low.slice(pairs, 4, (1,)))
    columns = [low.reshape(part, (one, seq, heads, half, 1)) for part in _turned(low, left, right, cos, sin)]
    both = low.add("Concat", columns, pairs.type, {"axis": 4})
    flat = low.reshape(both, (one, seq, heads, 2 * half))
    return low.add("Concat", [flat, *rest], x.type, {"axis": 3}) if rest else flat


def _turned(low: Lowering, left: Value, right: Value, cos: Value, sin: Value) -> tuple[Value, Value]:
    first = low.binary("SUB", low.binary("MUL", left, cos), low.binary("MUL", right, sin))
    second = low.binary("ADD", low.binary("MUL", right, cos), low.binary("MUL", left, sin))
    return first, second


__all__ = ["decodes_constants", "lower_matmul", "lower_norm", "lower_rotary"]
