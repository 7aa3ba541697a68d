"""Turn a decoder into the operators that every MNN release with a language-model runtime computes alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from backends.mnn.lower.lowering import Lowering
from backends.mnn.write.weight_layout import unheld
from ir.base.diag import LadingError
from ir.base.types import BOOL, F32, I32, I64, Dim, TensorType
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph, Node, Value
from ir.quant.stored_weight import DEQUANTIZE, is_weight, storage_of
from ir.tensor.bf16_parts import bf16_parts
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.precision.planned_weights import bias_of

UNARY = {
    "Abs": "ABS", "Ceil": "CEIL", "Cos": "COS", "Erf": "ERF", "Exp": "EXP", "Floor": "FLOOR", "Log": "LOG", "Neg": "NEG",
    "Reciprocal": "RECIPROCAL", "Sigmoid": "SIGMOID", "Sin": "SIN", "Sqrt": "SQRT", "Swish": "SILU", "Tanh": "TANH",
}  # fmt: skip
"""ONNX operator to ``UnaryOpOperation`` of MNN's schema."""

BINARY = {
    "Add": "ADD", "Div": "REALDIV", "Greater": "GREATER", "Less": "LESS", "Max": "MAXIMUM", "Min": "MINIMUM", "Mul": "MUL",
    "Pow": "POW", "Sub": "SUB",
}  # fmt: skip
"""ONNX operator to ``BinaryOpOperation`` of MNN's schema."""


@dataclass(frozen=True)
class LegalizeMnn(Pass):
    """Lower every ONNX operator to MNN's own.

    Linear layers become 1x1 convolutions over ``[rows, channels, 1, 1]``, rotary embedding becomes slices and products,
    attention the runtime's operator with its own key/value cache, and an embedding that must stay exact is read as a
    sum of bfloat16 parts.
    """

    name = "legalize-mnn"
    requires = ("quantized",)
    establishes = ("mnn",)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        fact = graph.fact(DynamicInputs)
        if fact is not None:
            fact.require(graph)
        lowering = Lowering(graph)
        lowering.embedding_parts()
        counts: dict[str, int] = {}
        for node in graph.nodes:
            if node.domain == "mnn" or _is_stored_weight(node) or not any(value.use_count for value in node.outputs):
                continue
            lower = LOWER.get(node.op)
            if _decodes_constants(node):
                raise unheld(node.output, matmul=any(user.op == "MatMul" for user in node.output.users))
            if lower is None:
                raise LadingError(
                    "P370",
                    f"no MNN form of operator {node.op} is known",
                    where=f"{node.loc or node.name}\n{node!r}",
                )
            lowering.node = node
            lower(node, lowering)
            counts[node.op] = counts.get(node.op, 0) + 1
        lowering.sweep()
        return {"lowered": sum(counts.values())}

    def adapter(self, graph: Graph) -> RowParts | None:
        """Embedding rows that come in exact parts are fed as such."""
        table = graph.tables.get("embedding")
        if table is None or table.const is None or table.const.recipe()[0] != "bf16_parts":
            return None
        rows = graph.required_fact(DynamicInputs).find("embedding-rows")
        return RowParts(rows.input) if rows is not None else None


@dataclass(frozen=True)
class RowParts:
    """Feeds of a graph that sums its embedding rows from bfloat16 parts."""

    input: str

    def adapt_feeds(self, feeds: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """The same feeds with the rows cut into as many parts as the graph reads."""
        rows = feeds[self.input]
        seq, one, width = rows.shape
        parts = graph.value(self.input).dims[-1] // width
        split = bf16_parts(InlineTensor(rows.reshape(seq, width)), parts).load().astype(np.float32)
        return {**feeds, self.input: split.reshape(seq, one, parts * width)}

    def adapt_outputs(self, outputs: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
        """Outputs do not change."""
        return dict(outputs)


def _is_stored_weight(node: Node) -> bool:
    return bool(node.outputs) and is_weight(node.output)


def _decodes_constants(node: Node) -> bool:
    """True for a dequantization of constant codes, a weight of which the file may or may not have a form."""
    codes = node.input(0) if node.op in DEQUANTIZE else None
    return codes is not None and codes.is_const


def _matmul(node: Node, low: Lowering) -> None:
    x, weight = node.operand(0), node.operand(1)
    stored = storage_of(weight, matmul=True)
    if stored is None and weight.producer is not None and _decodes_constants(weight.producer):
        raise unheld(weight, matmul=True)
    if stored is None:
        raise LadingError(
            "P372", "MNN computes a product with a constant matrix only", where=f"{node.loc or node.name}\n{node!r}"
        )
    if (x.rank or 0) < 2 or x.dtype != F32:
        raise _no_form(node, f"MNN multiplies rows of single precision, not {x.type}")
    bias, result = bias_of(node)
    if bias is None:
        bias = low.const(np.zeros(stored.rows, np.float32), "zeros")
    rows = x.dims[-2]
    flat = low.reshape(x, (rows, stored.columns, 1, 1))
    packed = low.add("ConvertTensor", [flat], flat.type, {"source": "NCHW", "dest": "NC4HW4"})
    wide = TensorType(F32, (rows, stored.rows, 1, 1))
    product = low.add("Convolution", [packed, weight, bias], wide, stem=f"{node.output.name}.conv")
    plain = low.add("ConvertTensor", [product], wide, {"source": "NC4HW4", "dest": "NCHW"})
    low.replace(result, low.reshape(plain, low.dims(result)))


def _norm(node: Node, low: Lowering) -> None:
    x, gamma, beta = node.operand(0), node.operand(1), node.input(2)
    if node.attrs.get("axis", -1) not in (-1, (x.rank or 0) - 1):
        raise _no_form(node, f"MNN normalizes the last axis alone, not from axis {node.attrs['axis']} on")
    if any(value.use_count for value in node.outputs[1:]):
        raise _no_form(node, "MNN gives the normalized values alone, not their mean or deviation")
    if not gamma.is_const or (beta is not None and not beta.is_const):
        raise _no_form(node, "MNN keeps the gains and shifts of norms in the model, and these are computed")
    beta = beta or low.const(np.zeros(gamma.sizes, np.float32), "zeros")
    attrs = {
        "axis": (-1,),
        "epsilon": float(node.attrs.get("epsilon", 1e-5)),
        "rms": int(node.op == "RMSNormalization"),
    }
    low.replace(node.output, low.add("LayerNorm", [x, gamma, beta], node.output.type, attrs))


def _rotary(node: Node, low: Lowering) -> None:
    x, cos, sin = (node.operand(place) for place in range(3))
    if x.rank != 3 or node.attrs.get("interleaved", 0) or node.input(3) is not None:
        raise LadingError(
            "P373",
            "only rotary embedding of [1, seq, heads * size] with half rotation and gathered tables has an MNN form",
            where=f"{node.loc or node.name}\n{node!r}",
        )
    one, seq, width = x.dims
    heads = node.attrs["num_heads"]
    size = low.size(width) // heads
    half = low.size(low.dims(cos)[-1])
    x4 = low.reshape(x, (one, seq, heads, size))
    cos4, sin4 = (low.reshape(table, (one, seq, 1, half)) for table in (cos, sin))
    points = (half,) if 2 * half == size else (half, 2 * half)
    left, right, *rest = low.slice(x4, 3, points)
    first = low.binary("SUB", low.binary("MUL", left, cos4), low.binary("MUL", right, sin4))
    second = low.binary("ADD", low.binary("MUL", right, cos4), low.binary("MUL", left, sin4))
    turned = low.add("Concat", [first, second, *rest], x4.type, {"axis": 3})
    low.replace(node.output, low.reshape(turned, low.dims(node.output)))


def _attention(node: Node, low: Lowering) -> None:
    _require_plain_attention(node)
    q, k, v = (node.operand(place) for place in range(3))
    heads, kv_heads = node.attrs["q_num_heads"], node.attrs["kv_num_heads"]
    one, seq, width = q.dims
    size = low.size(width) // heads
    scale = float(node.attrs.get("scale", 1 / math.sqrt(size)))
    if not math.isclose(scale, 1 / math.sqrt(size), rel_tol=1e-7):
        factor = np.array([scale * math.sqrt(size)], np.float32)
        q = low.binary("MUL", q, low.const(factor, "attention.scale"))
    q4 = low.reshape(q, (one, seq, heads, size))
    k4 = low.reshape(k, (one, seq, kv_heads, low.size(low.dims(k)[-1]) // kv_heads))
    v4 = low.reshape(v, (one, seq, kv_heads, low.size(low.dims(v)[-1]) // kv_heads))
    mask = node.input(3)
    if mask is None:
        fact = low.graph.fact(DynamicInputs)
        fed = fact.find("attention-mask") if fact is not None else None
        if fed is None:
            raise _no_form(node, "MNN's attention needs a mask that the runtime feeds; discover-inputs declares it")
        mask = low.graph.value(fed.input)
    low.replace(node.output, low.add("Attention", [q4, k4, v4, mask], node.output.type))


def _require_plain_attention(node: Node) -> None:
    """Raise P373 for attention that the runtime's operator would compute otherwise."""
    if node.operand(0).rank != 3:
        raise _no_form(node, "only attention over [1, seq, heads * size] has an MNN form")
    if any(value is not None for value in node.inputs[4:]) or any(value.use_count for value in node.outputs[1:]):
        raise _no_form(node, "the runtime keeps keys and values itself, and gives the mixed values alone")
    if node.attrs.get("softcap", 0.0):
        raise _no_form(node, f"the runtime does not cap scores, and this attention has softcap {node.attrs['softcap']}")
    if (node.input(3) is None) != bool(node.attrs.get("is_causal", 0)):
        raise _no_form(node, "the runtime's attention is causal, or takes a mask that says everything")


def _no_form(node: Node, why: str) -> LadingError:
    return LadingError("P373", why, where=f"{node.loc or node.name}\n{node!r}")


def _unary(node: Node, low: Lowering) -> None:
    if node.op == "Swish" and node.attrs.get("alpha", 1.0) != 1.0:
        raise LadingError("P373", "Swish with alpha other than 1 has no MNN form", where=node.loc or node.name)
    low.replace(node.output, low.add("Unary", [node.inputs[0]], node.output.type, {"kind": UNARY[node.op]}))


def _relu(node: Node, low: Lowering) -> None:
    x = node.operand(0)
    if x.dtype != F32:
        raise _no_form(node, f"MNN computes Relu in single precision, not in {x.dtype}")
    zero = low.const(np.zeros((), np.float32), "zero")
    low.replace(node.output, low.binary("MAXIMUM", x, zero, node.output.type))


def _gelu(node: Node, low: Lowering) -> None:
    """The error function's form is one operator. That of the tanh formula is off by 1.6e-4 in the runtime, so the formula
    is written out."""
    x = node.operand(0)
    if x.dtype != F32:
        raise _no_form(node, f"MNN computes Gelu in single precision, not in {x.dtype}")
    if node.attrs.get("approximate", "none") == "none":
        low.replace(node.output, low.add("Unary", [x], node.output.type, {"kind": "GELU_STANDARD"}))
        return

    def times(value: Value, factor: float, stem: str) -> Value:
        return low.binary("MUL", value, low.const(np.array(factor, np.float32), stem))

    one = low.const(np.array(1, np.float32), "one")
    cube = times(low.binary("MUL", low.binary("MUL", x, x), x), 0.044715, "gelu.cubic")
    inner = times(low.binary("ADD", x, cube), math.sqrt(2 / math.pi), "gelu.slope")
    wave = low.add("Unary", [inner], x.type, {"kind": "TANH"})
    gate = times(low.binary("ADD", wave, one), 0.5, "gelu.half")
    low.replace(node.output, low.binary("MUL", x, gate, node.output.type))


def _binary(node: Node, low: Lowering) -> None:
    if not isinstance(node.output.type, TensorType) or len(node.inputs) != 2:
        raise LadingError(
            "P373", f"{node.op} of {len(node.inputs)} operands has no MNN form", where=node.loc or node.name
        )
    type_ = node.output.type
    if type_.dtype == BOOL:
        type_ = TensorType(I32, type_.shape)
    low.replace(node.output, low.binary(BINARY[node.op], node.operand(0), node.operand(1), type_))


def _cast(node: Node, low: Lowering) -> None:
    value = node.operand(0)
    to = node.output.dtype
    if to == BOOL and value.dtype.is_float:
        raise _no_form(node, "booleans are 32-bit integers in MNN, where fractions would be cast to 0")
    # MNN has no 64-bit integers: what ONNX calls int64 is int32 there, and so are comparison results.
    to = I32 if to in (I64, BOOL) else to
    if value.dtype == to:
        low.replace(node.output, value)
        return
    low.replace(node.output, low.add("Cast", [value], TensorType(to, node.output.shape), {"to": to.onnx}))


def _slice(node: Node, low: Lowering) -> None:
    low.replace(node.output, low.add("StridedSlice", list(node.inputs), node.output.type))


def _same_numbers(node: Node, low: Lowering) -> None:
    """Reshape, Unsqueeze and Squeeze: the shape is known from the type."""
    value, result = node.operand(0), node.output
    symbolic = [dim for dim in low.dims(result) if isinstance(dim, Dim)]
    if len(symbolic) > 1 and node.op in ("Squeeze", "Unsqueeze"):
        axes = _axes(node, node.input(1))
        low.replace(result, low.add(node.op, [value], TensorType(value.dtype, result.shape), {"axes": axes}))
        return
    reshaped = low.reshape(value, result.dims)
    low.replace(result, reshaped)


def _axes(node: Node, axes: Value | None) -> tuple[int, ...]:
    """Axes in numbers; P373 when they are computed or left out."""
    if axes is None or axes.const is None:
        raise _no_form(node, "MNN takes axes that are constants")
    return tuple(int(axis) for axis in axes.const.load().reshape(-1))


def _split(node: Node, low: Lowering) -> None:
    axis = node.attrs.get("axis", 0)
    sizes = [low.size(low.dims(value)[axis]) for value in node.outputs]
    points = tuple(int(point) for point in np.cumsum(sizes)[:-1])
    for old, new in zip(node.outputs, low.slice(node.operand(0), axis, points), strict=True):
        low.replace(old, new)


def _concat(node: Node, low: Lowering) -> None:
    attrs = {"axis": node.attrs["axis"]}
    low.replace(node.output, low.add("Concat", list(node.inputs), node.output.type, attrs))


def _where(node: Node, low: Lowering) -> None:
    low.replace(node.output, low.add("Select", list(node.inputs), node.output.type))


def _reduce_max(node: Node, low: Lowering) -> None:
    value = node.operand(0)
    axes = node.input(1)
    if axes is None and node.attrs.get("noop_with_empty_axes", 0):
        raise _no_form(node, "MNN reduces all axes where none is named")
    chosen = _axes(node, axes) if axes is not None else tuple(range(len(low.dims(value))))
    attrs = {"kind": "MAXIMUM", "axes": chosen, "keep_dims": int(node.attrs.get("keepdims", 1))}
    type_ = TensorType(I32 if value.dtype == I64 else value.dtype, node.output.shape)
    low.replace(node.output, low.add("Reduction", [value], type_, attrs))


LOWER: dict[str, Callable[[Node, Lowering], None]] = {
    "MatMul": _matmul,
    "RMSNormalization": _norm,
    "LayerNormalization": _norm,
    "RotaryEmbedding": _rotary,
    "Attention": _attention,
    "Cast": _cast,
    "Slice": _slice,
    "Reshape": _same_numbers,
    "Squeeze": _same_numbers,
    "Unsqueeze": _same_numbers,
    "Split": _split,
    "Concat": _concat,
    "Where": _where,
    "ReduceMax": _reduce_max,
    "Relu": _relu,
    "Gelu": _gelu,
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
}
"""How each ONNX operator is lowered."""
