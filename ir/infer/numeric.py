"""Inference rules of the numeric ONNX operators: elementwise, matrix, reduction, normalization, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ir.base.types import BOOL, DTYPES, I64, DType, TensorType, ValueType, dtype_of_onnx
from ir.graph.graph import Node, Value
from ir.infer.inference import Inference
from ir.infer.rule_table import TypeMismatch, rule
from ir.infer.symbolic import Extent

Shape = tuple["Extent | None", ...]


def words(text: str) -> list[str]:
    """The words of a text: how tables of operator names are written."""
    return text.split()


SAME_AS_INPUT = words(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh CumSum Elu Erf Exp Floor Gelu "
    "GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization LRN LeakyRelu Log LogSoftmax "
    "LpNormalization MeanVarianceNormalization Mish Neg Not Reciprocal Relu RotaryEmbedding Round ScatterElements "
    "ScatterND Scatter Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh TensorScatter "
    "ThresholdedRelu Trilu PRelu"
)
ARITHMETIC = words("Add BitShift BitwiseAnd BitwiseOr BitwiseXor Div Mod Mul Pow Sub")
COMPARE = words("And Equal Greater GreaterOrEqual Less LessOrEqual Or Xor")
REDUCE = words(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)


def tensor(value: Value | None) -> TensorType | None:
    """The type of a tensor value, or None when unknown, absent or not a tensor."""
    found = value.type if value is not None else None
    return found if type(found) is TensorType else None


def typed(dtype: Any, shape: Shape | None) -> TensorType:
    """A rule's result, in which a dimension may be None."""
    return TensorType(dtype, shape)  # type: ignore[arg-type]


def axis_of(axis: int, rank: int) -> int:
    """A non-negative axis; TypeMismatch when it is out of range."""
    if not -rank <= axis < max(rank, 1):
        raise TypeMismatch(f"axis {axis} is out of range for rank {rank}")
    return axis % rank if rank else 0


def part_axis(axis: int, rank: int) -> int:
    """A non-negative axis of an operand that must have one; TypeMismatch when it is out of range or a scalar's."""
    if not rank:
        raise TypeMismatch(f"a scalar has no axis {axis}")
    return axis_of(axis, rank)


def positive(node: Node, *names: str) -> None:
    """TypeMismatch for an attribute, where it is given, that is no count of anything."""
    for name in names:
        found = node._attrs.get(name, 1)
        if min(found if isinstance(found, tuple) else (found,), default=1) < 1:
            raise TypeMismatch(f"{name} is {found}")


def element_type(code: int) -> DType:
    """The element type of an ``onnx.TensorProto.DataType`` number; TypeMismatch when there is none."""
    try:
        return dtype_of_onnx(code)
    except KeyError:
        raise TypeMismatch(f"{code} is not the number of an element type") from None


def broadcast(run: Inference, shapes: Sequence[Shape | None]) -> Shape | None:
    """Numpy broadcasting of shapes; None when one is unknown."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    result = known[0]
    for shape in known[1:]:
        if shape == result:
            continue
        short, long = sorted((result, shape), key=len)
        head = len(long) - len(short)
        tail = tuple(_broadcast_dim(run, a, b) for a, b in zip(long[head:], short, strict=True))
        result = (*long[:head], *tail)
    return result


def _broadcast_dim(run: Inference, a: Extent | None, b: Extent | None) -> Extent | None:
    if a is None or b is None:
        known = b if a is None else a
        # A number above 1 fixes the axis whatever the other is.
        return known if type(known) is int and known != 1 else None
    return run.table.broadcast(a, b)


def one_dtype(*types: TensorType | None) -> DType | None:
    """The element type that all known operands share; TypeMismatch when they differ."""
    found: DType | None = None
    for type_ in types:
        if type_ is None:
            continue
        if found is not None and type_.dtype is not found and type_.dtype != found:
            raise TypeMismatch(f"the element types {found} and {type_.dtype} differ")
        found = type_.dtype
    return found


@rule(*SAME_AS_INPUT)
def same_as_input(run: Inference, node: Node) -> ValueType | None:
    return node.operand(0).type


@rule(*ARITHMETIC)
def arithmetic(run: Inference, node: Node) -> ValueType | None:
    a, b = tensor(node.inputs[0]), tensor(node.inputs[1])
    if a is None or b is None:
        return None
    if a.dtype is not b.dtype and node.op != "Pow":
        one_dtype(a, b)
    shape = a.shape
    if shape is b.shape or shape == b.shape:
        return a
    return typed(a.dtype, broadcast(run, (shape, b.shape)))


@rule(*COMPARE)
def compare(run: Inference, node: Node) -> ValueType | None:
    a, b = tensor(node.inputs[0]), tensor(node.inputs[1])
    if a is None or b is None:
        return None
    one_dtype(a, b)
    return typed(BOOL, broadcast(run, (a.shape, b.shape)))


@rule("IsNaN", "IsInf")
def predicate(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    return None if x is None else TensorType(BOOL, x.shape)


@rule("Max", "Mean", "Min", "Sum")
def variadic(run: Inference, node: Node) -> ValueType | None:
    types = [tensor(value) for value in node.inputs]
    known = [type_ for type_ in types if type_ is not None]
    if len(known) < len(types):
        return None
    return typed(one_dtype(*known), broadcast(run, [type_.shape for type_ in known]))


@rule("Where")
def where(run: Inference, node: Node) -> ValueType | None:
    types = [tensor(value) for value in node.inputs]
    known = [type_ for type_ in types if type_ is not None]
    if len(known) < len(types):
        return None
    return typed(one_dtype(*known[1:]), broadcast(run, [type_.shape for type_ in known]))


@rule("Cast")
def cast(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    to = node._attrs["to"]
    return None if x is None else TensorType(element_type(to), x.shape)


@rule("CastLike")
def cast_like(run: Inference, node: Node) -> ValueType | None:
    x, like = tensor(node.inputs[0]), tensor(node.inputs[1])
    return None if x is None or like is None else TensorType(like.dtype, x.shape)


@rule("Dropout")
def dropout(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    x = tensor(node.inputs[0])
    return (x, None if x is None else TensorType(BOOL if run.opset >= 10 else x.dtype, x.shape))


# ---- quantization ----


@rule("QuantizeLinear")
def quantize(run: Inference, node: Node) -> ValueType | None:
    x, zero = tensor(node.inputs[0]), tensor(node.input(2))
    if x is None or (zero is None and node.input(2) is not None):
        return None
    if zero is not None:
        return TensorType(zero.dtype, x.shape)
    asked = node._attrs.get("output_dtype", 0)
    return TensorType(element_type(asked) if asked else DTYPES["u8"], x.shape)


@rule("DequantizeLinear")
def dequantize(run: Inference, node: Node) -> ValueType | None:
    x, scale = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None or scale is None:
        return None
    check_blocks(node, x, scale, node._attrs.get("axis", 1))
    asked = node._attrs.get("output_dtype", 0)
    return TensorType(element_type(asked) if asked else scale.dtype, x.shape)


def check_blocks(node: Node, codes: TensorType, scale: TensorType, axis: int) -> None:
    """TypeMismatch when a block-quantized operand and its scales do not fit; see ONNX DequantizeLinear-21."""
    block = node._attrs.get("block_size", 0)
    if not block or codes.shape is None or scale.shape is None:
        return
    if len(codes.shape) != len(scale.shape):
        raise TypeMismatch("blocked scales have the rank of the codes")
    axis = axis_of(axis, len(codes.shape))
    for index, (count, scales) in enumerate(zip(codes.shape, scale.shape, strict=True)):
        if type(count) is not int or type(scales) is not int:
            continue
        if scales != (-(-count // block) if index == axis else count):
            raise TypeMismatch(f"{count} codes in blocks of {block} along axis {axis} do not fit {scales} scales")


# ---- matrices ----


@rule("MatMul", "MatMulInteger")
def matmul(run: Inference, node: Node) -> ValueType | None:
    a, b = tensor(node.inputs[0]), tensor(node.inputs[1])
    if a is None or b is None:
        return None
    dtype = DTYPES["i32"] if node.op == "MatMulInteger" else one_dtype(a, b)
    return typed(dtype, matmul_shape(run, a.shape, b.shape))


def matmul_shape(run: Inference, a: Shape | None, b: Shape | None) -> Shape | None:
    """Shape of numpy's ``a @ b``."""
    if a is None or b is None:
        return None
    if not a or not b:
        raise TypeMismatch("a matrix product needs operands of rank 1 or more")
    inner = b[-2] if len(b) > 1 else b[0]
    if type(a[-1]) is int and type(inner) is int and a[-1] != inner:
        raise TypeMismatch(f"the inner dimensions {a[-1]} and {inner} differ")
    batch = a[:-2] if len(b) <= 2 else broadcast(run, (a[:-2], b[:-2]))
    return (*(batch or ()), *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


@rule("Gemm")
def gemm(run: Inference, node: Node) -> ValueType | None:
    a, b = tensor(node.inputs[0]), tensor(node.inputs[1])
    if a is None or b is None:
        return None
    dtype = one_dtype(a, b)
    if a.shape is None or b.shape is None:
        return typed(dtype, (None, None))
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise TypeMismatch("Gemm multiplies matrices of rank 2")
    rows, left = a.shape[::-1] if node._attrs.get("transA") else a.shape
    right, columns = b.shape[::-1] if node._attrs.get("transB") else b.shape
    if type(left) is int and type(right) is int and left != right:
        raise TypeMismatch(f"the inner dimensions {left} and {right} differ")
    return typed(dtype, (rows, columns))


# ---- reductions ----


@rule(*REDUCE)
def reduce(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return x
    given = node.input(1) is not None or "axes" in node._attrs
    axes = run.attribute_or_input(node, "axes", 1) if given else ()
    keep = node._attrs.get("keepdims", 1)
    if axes is None:
        count = 0 if keep else run.length_of(node.input(1))
        if count is not None and count > len(x.shape):
            raise TypeMismatch(f"{count} axes of an operand of rank {len(x.shape)}")
        return typed(x.dtype, None if count is None else (None,) * (len(x.shape) - count))
    if not axes and node._attrs.get("noop_with_empty_axes"):
        return x
    return typed(x.dtype, reduced_shape(x.shape, axes, keep))


def reduced_shape(shape: Shape, axes: Sequence[int], keep: int) -> Shape:
    """A shape with `axes` reduced (all when empty) to 1 or dropped."""
    rank = len(shape)
    gone = {axis_of(axis, rank) for axis in axes} if axes else set(range(rank))
    if keep:
        return tuple(1 if axis in gone else dim for axis, dim in enumerate(shape))
    return tuple(dim for axis, dim in enumerate(shape) if axis not in gone)


@rule("ArgMax", "ArgMin")
def arg_reduce(run: Inference, node: Node) -> ValueType | None:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return TensorType(I64)
    return typed(I64, reduced_shape(x.shape, (node._attrs.get("axis", 0),), node._attrs.get("keepdims", 1)))


@rule("TopK")
def top_k(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    x = tensor(node.inputs[0])
    if x is None or x.shape is None:
        return (x, TensorType(I64))
    found = run.known_of(node.input(1))
    if found is not None and len(found.entries) != 1:
        raise TypeMismatch(f"k has {len(found.entries)} elements, not 1")
    count = node._attrs["k"] if "k" in node._attrs else found.entries[0] if found is not None else None
    axis = axis_of(node._attrs.get("axis", -1), len(x.shape))
    count = run.table.fresh() if count is None else count
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    return (TensorType(x.dtype, shape), TensorType(I64, shape))


# ---- normalization ----


@rule("LayerNormalization")
def layer_norm(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    x = tensor(node.inputs[0])
    if x is None:
        return (None,)
    stash = element_type(node._attrs.get("stash_type", 1))
    if x.shape is None:
        return (x, TensorType(stash), TensorType(stash))
    axis = axis_of(node._attrs.get("axis", -1), len(x.shape))
    kept = (*x.shape[:axis], *(1 for _ in x.shape[axis:]))
    return (x, TensorType(stash, kept), TensorType(stash, kept))


@rule("RMSNormalization")
def rms_norm(run: Inference, node: Node) -> ValueType | None:
    x, scale = tensor(node.inputs[0]), tensor(node.inputs[1])
    return None if x is None or scale is None else TensorType(scale.dtype, x.shape)


@rule("BatchNormalization")
def batch_norm(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    x, mean, variance = tensor(node.inputs[0]), tensor(node.input(3)), tensor(node.input(4))
    if len(node.outputs) > 1 and run.opset < 14:
        return (x,)
    return (x, mean, variance)


# ---- attention ----


@rule("Attention")
def attention(run: Inference, node: Node) -> tuple[ValueType | None, ...]:
    """ONNX Attention-23/24: Y, present_key, present_value, qk_matmul_output."""
    q, k, v = (tensor(node.inputs[index]) for index in range(3))
    if q is None or k is None or v is None:
        return (None,)
    if q.shape is None or k.shape is None or v.shape is None:
        return (TensorType(q.dtype), TensorType(k.dtype), TensorType(v.dtype), TensorType(q.dtype))
    ranks = {len(q.shape), len(k.shape), len(v.shape)}
    if ranks not in ({3}, {4}):
        raise TypeMismatch("q, k and v are all of rank 3 or all of rank 4")
    q_heads, kv_heads = node._attrs.get("q_num_heads"), node._attrs.get("kv_num_heads")
    batch, length, new = q.shape[0], q.shape[-2], k.shape[-2]
    if ranks == {4}:
        q_heads, kv_heads = q.shape[1], k.shape[1]
        key_size, value_size = k.shape[3], v.shape[3]
        y: Shape = (batch, q_heads, length, value_size)
    else:
        if not q_heads or not kv_heads:
            raise TypeMismatch("q_num_heads and kv_num_heads are needed for operands of rank 3")
        key_size = run.table.quotient([k.shape[2]], [kv_heads])
        value_size = run.table.quotient([v.shape[2]], [kv_heads])
        y = (batch, length, run.table.multiply(q_heads, value_size))
    past = tensor(node.input(4))
    if past is not None and past.shape is not None and len(past.shape) != 4:
        raise TypeMismatch("past_key is of rank 4")
    total: Extent | None = new
    if node.input(4) is not None:
        total = None if past is None or past.shape is None else run.table.add(past.shape[2], new)
    return (
        typed(q.dtype, y),
        typed(k.dtype, (batch, kv_heads, total, key_size)),
        typed(v.dtype, (batch, kv_heads, total, value_size)),
        typed(q.dtype, (batch, q_heads, length, total)),
    )


__all__ = [
    "axis_of",
    "broadcast",
    "check_blocks",
    "element_type",
    "matmul_shape",
    "one_dtype",
    "part_axis",
    "positive",
    "reduced_shape",
    "tensor",
    "typed",
    "words",
]
