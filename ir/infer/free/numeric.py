"""Demands of operators that compute: broadcasting, products, convolutions, norms."""

from __future__ import annotations

from ir.base.types import dtype_of_onnx
from ir.infer.free.demand import At, Demand, Extents, demands, is_known
from ir.infer.symbolic import Extent
from ir.ops.registry import ELEMENTWISE

EACH = "it is computed with element by element"
"""What is said of operands of elementwise operators."""


def joint_shape(shapes: list[Extents]) -> Extents:
    """The shape that operands of these shapes broadcast to, as far as it can be told."""
    rank = max(map(len, shapes))
    found: list[Extent | None] = []
    for axis in range(-rank, 0):
        here = [shape[axis] for shape in shapes if len(shape) >= -axis]
        wide = [extent for extent in here if extent != 1]
        known = [extent for extent in wide if is_known(extent)]
        found.append(known[0] if known else wide[0] if wide else 1)
    return tuple(found)


@demands(*ELEMENTWISE)
def _elementwise(at: At) -> Demand | None:
    others = [i for i, value in enumerate(at.node.inputs) if value is not None and i != at.index]
    shapes = [shape for i in others if (shape := at.shape(i)) is not None]
    out = at.out()
    words = EACH if at.node.op != "Cast" else f"it is cast to {dtype_of_onnx(at.node.attrs['to'])}"
    if out is None and (not shapes or len(shapes) < len(others)):
        return Demand(least=at.least(at.node.output), words=words) if not others else None
    if out is not None:
        shapes.append(out)
    if others:
        words += ", in the shape of the result; any that broadcasts to it will do"
    return Demand(joint_shape(shapes), words=words, loose=bool(others))


@demands("Clip")
def _clip(at: At) -> Demand | None:
    return Demand(at.out(), words="every element is limited") if at.index == 0 else Demand((), words="it is a limit")


@demands("PRelu")
def _slope(at: At) -> Demand | None:
    x = at.shape(0) if at.index else at.out()
    if x is None or at.index == 0:
        return Demand(x, words="every element is computed on its own") if x is not None else None
    return Demand((x[1], *(1,) * (len(x) - 2)) if len(x) > 1 else x, words="it is a slope for each channel")


@demands("Softmax", "LogSoftmax", "Hardmax", "LRN", "LpNormalization", "MeanVarianceNormalization", "Softsign")
def _same(at: At) -> Demand | None:
    return Demand(at.out(), words="the result has its shape")


@demands("Dropout")
def _dropout(at: At) -> Demand | None:
    return Demand(at.out(), words="the result has its shape") if at.index == 0 else Demand((), words="it is one number")


@demands("CumSum")
def _cumulative(at: At) -> Demand | None:
    if at.index == 0:
        return Demand(at.out(), words="the result has its shape")
    rank = len(at.shape(0) or at.out() or ())
    return Demand((), low=-rank or None, high=rank - 1 if rank else None, default=-1, words="it names one axis")


# ---- products ----


@demands("MatMul", "MatMulInteger", "QLinearMatMul")
def _matmul(at: At) -> Demand | None:
    left, right = (0, 3) if at.node.op == "QLinearMatMul" else (0, 1)
    if at.index not in (left, right):
        return Demand((), words="it is a scale or zero of a whole tensor")
    out = at.out()
    if at.index == right:
        a = at.shape(left)
        if a is None or not a:
            return None
        columns = out[-1] if out and len(a) > 1 else None
        return Demand((a[-1], columns), words=f"rows of {a[-1] or 'unknown'} elements are multiplied by it", loose=True)
    b = at.shape(right)
    if b is None or not b:
        return None
    inner = b[-2] if len(b) > 1 else b[0]
    if out is not None:
        rows = out[:-1] if len(b) > 1 else out
        return Demand((*rows, inner), words=f"its rows of {inner} elements are multiplied by a matrix", loose=True)
    return Demand((*b[:-2], None, inner), words=f"its rows of {inner} elements are multiplied by a matrix", loose=True)


@demands("Gemm")
def _gemm(at: At) -> Demand | None:
    out = at.out() or (None, None)
    a, b = at.shape(0) or (None, None), at.shape(1) or (None, None)
    if len(out) != 2 or len(a) != 2 or len(b) != 2:
        return None
    across_a, across_b = at.attr("transA"), at.attr("transB")
    rows = out[0] if is_known(out[0]) else a[1] if across_a else a[0]
    columns = out[1] if is_known(out[1]) else b[0] if across_b else b[1]
    inner = (a[0] if across_a else a[1]) if at.index == 1 else (b[1] if across_b else b[0])
    if at.index == 0:
        return Demand((inner, rows) if across_a else (rows, inner), words="it is the left factor of a product")
    if at.index == 1:
        return Demand((columns, inner) if across_b else (inner, columns), words="it is the right factor of a product")
    return Demand((columns,), words="it is added to every row of a product", loose=True)


@demands("Einsum")
def _einsum(at: At) -> Demand | None:
    left, _, right = str(at.attr("equation")).replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in left or at.index >= len(terms):
        return None
    letters: dict[str, Extent | None] = {}
    for term, shape in [*((term, at.shape(i)) for i, term in enumerate(terms) if i != at.index), (right, at.out())]:
        if shape is not None and len(shape) == len(term):
            letters |= {letter: extent for letter, extent in zip(term, shape, strict=True) if extent is not None}
    return Demand(tuple(letters.get(letter) for letter in terms[at.index]), words=f"the equation is {left}->{right}")


# ---- convolutions and pools ----


@demands("Conv", "ConvInteger", "QLinearConv")
def _conv(at: At) -> Demand | None:
    weight = 3 if at.node.op == "QLinearConv" else 1
    if at.index not in (0, weight, 2 if weight == 1 else 8):
        return Demand((), words="it is a scale or zero of a whole tensor")
    x, w, out = at.shape(0), at.shape(weight), at.out()
    group = at.attr("group") or 1
    if at.index == weight:
        rank = len(x or out or ())
        if rank < 3:
            return None
        inner = x[1] // group if x is not None and isinstance(x[1], int) else None
        kernel = at.node.attrs.get("kernel_shape") or _kernel(at, x, out, rank)
        return Demand(
            (_channels(at, out), inner, *kernel), words=f"{rank - 2}-dimensional windows are multiplied by it"
        )
    if at.index:
        filters = w[0] if w is not None else _channels(at, out)
        return Demand((filters,), words="it is added to every channel of a convolution")
    if w is None:
        return None
    inner = w[1] * group if isinstance(w[1], int) else None
    spatial = tuple(_before(at, axis, out, w) for axis in range(2, len(w)))
    return Demand((out[0] if out else None, inner, *spatial), words=f"windows of {inner} channels are taken from it")


def _channels(at: At, out: Extents | None) -> Extent | None:
    bias = at.shape(2) if at.node.op != "QLinearConv" and at.index != 2 else None
    return bias[0] if bias else out[1] if out is not None and len(out) > 1 else None


def _plain(at: At) -> bool:
    """True for windows that move one step at a time without gaps, padded by numbers."""
    ones = all(set(at.node.attrs.get(name) or (1,)) == {1} for name in ("strides", "dilations"))
    return ones and (at.node.attrs.get("auto_pad") or "NOTSET") in ("NOTSET", "VALID")


def _padding(at: At, axis: int, spatial: int) -> int:
    pads = at.node.attrs.get("pads") or (0,) * (2 * spatial)
    return pads[axis - 2] + pads[axis - 2 + spatial]


def _kernel(at: At, x: Extents | None, out: Extents | None, rank: int) -> Extents:
    if x is None or out is None or not _plain(at):
        return (None,) * (rank - 2)
    sizes = []
    for axis in range(2, rank):
        a, b = x[axis], out[axis]
        known = isinstance(a, int) and isinstance(b, int)
        sizes.append(a + _padding(at, axis, rank - 2) - b + 1 if known else None)  # type: ignore[operator]
    return tuple(sizes)


def _before(at: At, axis: int, out: Extents | None, w: Extents) -> Extent | None:
    """The size of an axis of what a convolution reads, from the size of its result."""
    b, k = out[axis] if out is not None else None, w[axis]
    if not isinstance(b, int) or not isinstance(k, int) or not _plain(at):
        return None
    return b - _padding(at, axis, len(w) - 2) + k - 1


@demands("ConvTranspose")
def _transposed_conv(at: At) -> Demand | None:
    x, w, out = at.shape(0), at.shape(1), at.out()
    group = at.attr("group") or 1
    if at.index == 1:
        rank = len(x or out or ())
        made = out[1] // group if out is not None and len(out) > 1 and isinstance(out[1], int) else None
        kernel = at.node.attrs.get("kernel_shape") or (None,) * (rank - 2)
        return Demand((x[1] if x else None, made, *kernel), words="it spreads every element") if rank > 2 else None
    if at.index == 2:
        return Demand((out[1] if out and len(out) > 1 else None,), words="it is added to every channel")
    return Demand((out[0] if out else None, w[0], *(None,) * (len(w) - 2))) if w is not None else None


@demands("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _pool(at: At) -> Demand | None:
    out = at.out()
    return Demand((*out[:2], *(None,) * (len(out) - 2)), words="windows are taken from it") if out else None


# ---- norms ----


@demands("BatchNormalization", "InstanceNormalization", "GroupNormalization")
def _channel_norm(at: At) -> Demand | None:
    x = at.shape(0) if at.index else at.out()
    if at.index == 0:
        return Demand(x, words="the result has its shape")
    return Demand((x[1] if x is not None and len(x) > 1 else None,), words="it has a number for each channel")


@demands("LayerNormalization", "RMSNormalization")
def _row_norm(at: At) -> Demand | None:
    x = at.shape(0) if at.index else at.out()
    if at.index == 0 or x is None:
        return Demand(x, words="the result has its shape") if x is not None else None
    return Demand(x[at.attr("axis") :], words="it has a number for each element of a row")


@demands("QuantizeLinear", "DequantizeLinear")
def _quantize(at: At) -> Demand | None:
    if at.index == 0:
        return Demand(at.out(), words="the result has its shape")
    scale = at.shape(3 - at.index)
    if scale is not None:
        return Demand(scale, words="scales and zeros have one shape")
    return Demand((), words="it is a scale or zero; one for the whole tensor will do", loose=True)


@demands("DynamicQuantizeLinear")
def _dynamic(at: At) -> Demand | None:
    return Demand(at.out(), words="the result has its shape")


# ---- recurrent, attention ----


@demands("LSTM", "GRU", "RNN")
def _recurrent(at: At) -> Demand | None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[at.node.op]
    hidden = at.node.attrs.get("hidden_size")
    ways = 2 if at.attr("direction") == "bidirectional" else 1
    x, w = at.shape(0), at.shape(1)
    seq, batch, width = x if x is not None and len(x) == 3 else (None, None, w[2] if w and len(w) == 3 else None)
    rows = gates * hidden if hidden else None
    forms: dict[int, Extents] = {
        0: (seq, batch, width),
        1: (ways, rows, width),
        2: (ways, rows, hidden),
        3: (ways, 2 * rows if rows else None),
        4: (batch,),
        5: (ways, batch, hidden),
        6: (ways, batch, hidden),
        7: (ways, 3 * hidden if hidden else None),
    }
    return Demand(forms.get(at.index), words=f"operand {at.index} of {at.node.op} has this form")


@demands("Attention")
def _attention(at: At) -> Demand | None:
    q, k, v, out = at.shape(0), at.shape(1), at.shape(2), at.out()
    form = q or k or v or out
    if at.index > 2 or form is None:
        return None
    if at.index == 0:
        like = out if out is not None and v is not None and k is not None and v[-1] == k[-1] else None
        return Demand(like or (form[0], *(None,) * (len(form) - 1)), words="attention asks with it")
    twin = v if at.index == 1 else k
    if twin is not None:
        return Demand((*twin[:-1], twin[-1]), words="keys and values belong together")
    return Demand((form[0], *(None,) * (len(form) - 1)), words="attention reads it")


@demands("RotaryEmbedding")
def _rotary(at: At) -> Demand | None:
    x, cos, sin = at.shape(0), at.shape(1), at.shape(2)
    if at.index == 0:
        return Demand(at.out(), words="the result has its shape")
    if at.index in (1, 2):
        other = sin if at.index == 1 else cos
        return Demand(other, words="cosines and sines have one shape") if other is not None else None
    if x is None:
        return None
    high = cos[0] - 1 if cos is not None and isinstance(cos[0], int) else None
    seq = x[2] if len(x) == 4 else x[1]
    return Demand((x[0], seq), low=0, high=high, default=0, words="it holds the position of each token")
