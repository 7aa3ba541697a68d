"""The gated delta rule: attention that is linear in its length, whose memory is one matrix a head.

Yang, Kautz, Hatamizadeh: Gated Delta Networks (2024), with the causal convolution before it that decoders have. ONNX 27
calls the parts CausalConvWithState and LinearAttention.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from ir.base.types import TensorType, ValueType
from ir.graph.graph import Graph, Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import one_dtype, positive, tensor, typed
from ir.infer.rule_table import TypeMismatch
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef

SIZES = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")
"""Attributes: heads of queries and keys, heads of values and of the memory, and the widths of both."""

ATTRS = {name: AttrDef(name, "int", required=True) for name in SIZES}

EPSILON = 1e-6
"""Added to the squared length of queries and keys before they are divided by its root."""


def check_sizes(node: Node, channels: TensorType | None, axis: int) -> None:
    """TypeMismatch where the attributes or operands do not fit the channels ``q | k | v`` along an axis."""
    positive(node, *SIZES)
    key_heads, heads, key_size, size = (node._attrs[name] for name in SIZES)
    if heads % key_heads:
        raise TypeMismatch(f"{heads} heads cannot share {key_heads} heads of keys evenly")
    width = 2 * key_heads * key_size + heads * size
    one_dtype(channels, *(tensor(value) for value in node.inputs[1:]))
    decay, beta, kernel = (tensor(value) for value in node.inputs[1:])
    wants = (
        ("channels", channels, axis, width),
        ("decays", decay, 2, heads),
        ("betas", beta, 2, heads),
        ("rows of the convolution", kernel, 0, width),
    )
    for name, operand, place, wanted in wants:
        if operand is None or operand.shape is None:
            continue
        shape = operand.shape
        if len(shape) != 3:
            raise TypeMismatch(f"{name} have three axes, not the shape {tuple(map(str, shape))}")
        if type(shape[place]) is int and shape[place] != wanted:
            raise TypeMismatch(f"{shape[place]} {name} where the heads make {wanted}")


def _type(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    check_sizes(node, x, 2)
    if x is None:
        return None
    width = node._attrs["num_v_heads"] * node._attrs["head_v_dim"]
    return typed(x.dtype, (*(x.shape[:2] if x.shape is not None else (None, None)), width))


def _define(body: Body) -> list[Value]:
    channels = body.op("Transpose", body.operand(0), perm=(0, 2, 1))
    mixed = delta_rule(body, channels, *(body.operand(place) for place in (1, 2, 3)))
    return [body.op("Reshape", mixed, body.ints(1, -1, body.attr("num_v_heads") * body.attr("head_v_dim")))]


def delta_rule(body: Body, channels: Value, decay: Value, beta: Value, kernel: Value) -> Value:
    """From channels ``[1, q | k | v, S]`` to ``[S, heads, 1, size]``, the memory empty before the first position.

    The channels go through a causal convolution of their own and SiLU. Queries and keys get length one, queries are
    divided by the root of their width, and each head of them serves as many heads of the memory as there are more.
    """
    key_heads, heads, key_size, size = (body.attr(name) for name in SIZES)
    wide = key_heads * key_size
    x = _convolved(body, channels, kernel, 2 * wide + heads * size)
    sizes = body.ints(wide, wide, heads * size)
    rows = body.op("Squeeze", body.op("Transpose", x, perm=(0, 2, 1)), body.ints(0))
    q, k, v = body.graph.add("Split", [rows, sizes], {"axis": 1}, outputs=("q", "k", "v")).outputs
    q, k = (_unit(body, _shaped(body, part, key_heads, 1, key_size)) for part in (q, k))
    q = body.op("Div", q, body.like(sqrt(key_size), body.operand(0)))
    q, k = (_repeated(body, part, heads // key_heads, heads, key_size) for part in (q, k))
    by_rows = (q, k, _shaped(body, k, heads, key_size, 1), _shaped(body, v, heads, 1, size))
    gates = (_shaped(body, part, heads, 1, 1) for part in (body.op("Exp", decay), beta))
    empty = body.op("Expand", body.like(0, body.operand(0)), body.ints(heads, key_size, size))
    return _recurrence(body.graph, empty, (*by_rows, *gates))


def _convolved(body: Body, channels: Value, kernel: Value, width: int) -> Value:
    """Each channel with its own kernel, on itself and what came before, then SiLU."""
    before = body.op("Sub", body.op("Gather", body.op("Shape", kernel), body.ints(2), axis=0), body.ints(1))
    pads = body.op("Concat", body.ints(0, 0), before, body.ints(0, 0, 0), axis=0)
    found = body.op("Conv", body.op("Pad", channels, pads), kernel, group=width)
    if body.opset >= 24:
        return body.op("Swish", found)
    return body.op("Mul", found, body.op("Sigmoid", found))


def _shaped(body: Body, x: Value, *sizes: int) -> Value:
    """`x` as ``[S, *sizes]``."""
    return body.op("Reshape", x, body.ints(-1, *sizes))


def _unit(body: Body, x: Value) -> Value:
    power = body.reduce("ReduceSum", body.op("Mul", x, x), (-1,))
    return body.op("Div", x, body.op("Sqrt", body.op("Add", power, body.like(EPSILON, body.operand(0)))))


def _repeated(body: Body, x: Value, times: int, heads: int, size: int) -> Value:
    """Each head ``[S, n, 1, size]`` `times` times, in place."""
    if times == 1:
        return x
    return _shaped(body, body.op("Concat", *[x] * times, axis=2), heads, 1, size)


def _recurrence(graph: Graph, memory: Value, steps: Sequence[Value]) -> Value:
    """The memory fades, what it holds for a key moves towards the value, and the query reads it, one step after
    another."""
    scan = graph.add("Scan", [memory, *steps], outputs=("memory", "mixed"))
    inner = Graph("step", owner=scan)
    old, q, k, column, v, decay, beta = (
        inner.add_input(name, None) for name in ("old", "q_t", "k_t", "k_column", "v_t", "decay_t", "beta_t")
    )

    def op(name: str, *inputs: Value) -> Value:
        return inner.add(name, inputs).output

    faded = op("Mul", old, decay)
    change = op("Mul", op("Sub", v, op("MatMul", k, faded)), beta)
    new = op("Add", faded, op("Mul", column, change))
    inner.set_outputs([new, op("MatMul", q, new)])
    graph.set_attrs(scan, body=inner, num_scan_inputs=len(steps))
    return scan.outputs[1]


DEFINITION = OpDef(
    "lading.GatedDeltaRule",
    inputs=("qkv", "decay", "beta", "conv"),
    min_inputs=4,
    max_inputs=4,
    attrs=ATTRS,
    infer=_type,
    define=_define,
    traits=frozenset({"pure", "constant_foldable", "mixing"}),
    role="attention",
    doc="qkv [1, S, C] with C = 2 * key heads * key size + heads * size, decay [1, S, heads] as the logarithm of what is "
    "kept, beta [1, S, heads], conv [C, 1, K], to [1, S, heads * size]. SiLU of the causal convolution of each channel, "
    "cut into q, k and v; q and k of length one, q over the root of its size; then for each position and head, with a "
    "memory that begins empty: memory *= exp(decay); memory += outer(k, beta * (v - k @ memory)); result q @ memory.",
)
"""Row for `ir.ops.registry.OPERATORS`."""
