"""Small graphs of all kinds in which one tensor is read and never made, and what that tensor has to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import parser


@dataclass(frozen=True)
class Case:
    """One graph.

    Attributes:
        name: what is missing.
        text: the graph in ONNX's text form; ``lost`` is the tensor.
        type: what the tensor has to be, in the words of the text form of the IR; a constant is ``= [..]``.
        low, high: range of its elements, where readers force one.
    """

    name: str
    text: str
    type: str
    low: int | None = None
    high: int | None = None

    @property
    def model(self) -> onnx.ModelProto:
        """The model."""
        return parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>\n' + self.text)


def feeds(model: onnx.ModelProto, low: int | None, high: int | None, seed: int = 0) -> dict[str, np.ndarray]:
    """An array for each input of a model; integers of ``lost`` are drawn from a range."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    given = {item.name for item in model.graph.initializer}
    for item in model.graph.input:
        if item.name in given:
            continue
        tensor = item.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else OPEN.get(dim.dim_param, 1) for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.kind == "f":
            made[item.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            made[item.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            most = 1 if high is None else high
            least = (0 if low is None else low) if item.name.startswith("lost") else 0
            made[item.name] = rng.integers(min(least, most), most + 1, shape).astype(dtype)
    return made


OPEN = {"n": 3, "seq": 5, "batch": 2, "lost.0": 8}
"""Sizes of named dimensions; others are 1."""

CASES: Sequence[Case] = (
    Case("Add", "g (float[2,3] x) => (float[2,3] y) { y = Add(x, lost) }", "f32[2, 3]"),
    Case("Mul by what broadcasts", "g (float[2,1] x) => (float[2,3] y) { y = Mul(x, lost) }", "f32[2, 3]"),
    Case("Sub from a sum", "g (int32[n] x) => (int32[n] y) { a = Sub(lost, x)  y = Neg(a) }", "i32[n]"),
    Case("Relu", "g (float[2] x) => (float[2] y) { a = Relu(lost)  y = Add(a, x) }", "f32[2]"),
    Case("Less", "g (double[4] x) => (bool[4] y) { y = Less(x, lost) }", "f64[4]"),
    Case("And", "g (bool[4] x) => (bool[4] y) { y = And(lost, x) }", "bool[4]"),
    Case("Pow", "g (float[4] x) => (float[4] y) { y = Pow(x, lost) }", "f32[4]"),
    Case("PRelu slope", "g (float[1,4,5] x) => (float[1,4,5] y) { y = PRelu(x, lost) }", "f32[4, 1]"),
    Case("Clip limit", "g (float[4] x) => (float[4] y) { y = Clip(x, lost) }", "f32[]"),
    Case("MatMul weight", "g (float[n,4] x) => (float[n,6] y) { y = MatMul(x, lost) }", "f32[4, 6]"),
    Case("MatMul input", "g (float[2] z) => (float[n,6] y) <float[4,6] w = "
         "{1,2,3,4,5,6,1,2,3,4,5,6,1,2,3,4,5,6,1,2,3,4,5,6}> "
         "{ y = MatMul(lost, w) }", "f32[n, 4]"),
    Case("weight of two layers", "g (float[n,4] x) => (float[n,3] y) <float[5,3] w = {1,2,3,1,2,3,1,2,3,1,2,3,1,2,3}> "
         "{ a = MatMul(x, lost)  b = Relu(a)  y = MatMul(b, w) }", "f32[4, 5]"),
    Case("Gemm weight", "g (float[n,4] x) => (float[n,6] y) { y = Gemm<transB = 1>(x, lost) }", "f32[6, 4]"),
    Case("Gemm bias", "g (float[n,2] x) => (float[n,3] y) <float[2,3] w = {1,2,3,4,5,6}> { y = Gemm(x, w, lost) "
         "}", "f32[3]"),
    Case("Conv weight", "g (float[1,4,8,8] x) => (float[1,6,6,6] y) { y = Conv(x, lost) }", "f32[6, 4, 3, 3]"),
    Case("Conv weight of groups", "g (float[1,4,8,8] x) => (float[1,4,8,8] y) "
         "{ y = Conv<group = 4, kernel_shape = [3,3], pads = [1,1,1,1]>(x, lost) }", "f32[4, 1, 3, 3]"),
    Case("Conv bias", "g (float[1,1,3,3] x) => (float[1,2,3,3] y) <float[2,1,1,1] w = {1,2}> { y = Conv(x, w, "
         "lost) }", "f32[2]"),
    Case("norm gain", "g (float[2,3,8] x) => (float[2,3,8] y) { y = LayerNormalization(x, lost) }", "f32[8]"),
    Case("batch norm mean", "g (float[2,3,8] x) => (float[2,3,8] y) <float[3] s = {1,1,1}, float[3] b = {0,0,0}, "
         "float[3] v = {1,1,1}> { y = BatchNormalization(x, s, b, lost, v) }", "f32[3]"),
    Case("Reshape shape", "g (float[2,6] x) => (float[3,4] y) { y = Reshape(x, lost) }", "= [3, 4]"),
    Case("Reshape shape of a sequence", "g (float[1,seq,8] x) => (float[1,seq,2,4] y) { y = Reshape(x, lost) }",
         "= [1, -1, 2, 4]"),
    Case("Reshape shape of two dimensions", "g (float[batch,seq,8] x) => (float[batch,seq,2,4] y) { y = "
         "Reshape(x, lost) }",
         "= [0, 0, 2, 4]"),
    Case("Reshape shape of an open size", "g (float[n,8] x) => (float[?,2,4] y) { y = Reshape(x, lost) }", "= [-1, 2, 4]"),
    Case("Gather indices of open sizes", "g (float[8,3] x) => (float[?,?,3] y) { y = Gather(x, lost) }",
         "i64[unk.0, unk.1]", -8, 7),
    Case("Reshape data", "g (float[2] z) => (float[2,6] y) <int64[2] s = {2,6}> { y = Reshape(lost, s) }", "f32[2, 6]"),
    Case("Expand shape", "g (float[1,3] x) => (float[4,3] y) { y = Expand(x, lost) }", "= [4, 3]"),
    Case("Slice starts", "g (float[8,3] x) => (float[k,3] y) <int64[1] e = {8}, int64[1] a = {0}> { y = "
         "Slice(x, lost, e, a) }",
         "i64[1]", -8, 7),
    Case("Slice starts of int32", "g (float[8,3] x) => (float[k,3] y) <int32[1] e = {8}, int32[1] a = {0}> "
         "{ y = Slice(x, lost, e, a) }", "i32[1]", -8, 7),
    Case("Slice ends", "g (float[8,3] x) => (float[k,3] y) <int64[1] s = {0}, int64[1] a = {0}> "
         "{ y = Slice(x, s, lost, a) }", "i64[1]"),
    Case("Slice axes", "g (float[8,3] x) => (float[8,2] y) <int64[1] s = {1}, int64[1] e = {3}> "
         "{ y = Slice(x, s, e, lost) }", "= [1]"),
    Case("Slice axes of two", "g (float[8,3,5] x) => (float[4,3,2] y) <int64[2] s = {0,3}, int64[2] e = {4,5}> "
         "{ y = Slice(x, s, e, lost) }", "= [0, 2]"),
    Case("Slice steps", "g (float[8] x) => (float[k] y) <int64[1] s = {0}, int64[1] e = {8}, int64[1] a = {0}> "
         "{ y = Slice(x, s, e, a, lost) }", "i64[1]"),
    Case("Squeeze axes", "g (float[1,3,1,5] x) => (float[1,3,5] y) { y = Squeeze(x, lost) }", "= [2]"),
    Case("Unsqueeze axes", "g (float[3,5] x) => (float[3,1,5] y) { y = Unsqueeze(x, lost) }", "= [1]"),
    Case("ReduceSum axes", "g (float[2,3,5] x) => (float[2,1,5] y) { y = ReduceSum(x, lost) }", "= [1]"),
    Case("Transpose", "g (float[2] z) => (float[2,3,5] y) { y = Transpose<perm = [1,2,0]>(lost) }", "f32[5, 2, 3]"),
    Case("Concat", "g (float[2,3] x) => (float[2,8] y) { y = Concat<axis = 1>(x, lost) }", "f32[2, 5]"),
    Case("Split sizes", "g (float[8] x) => (float[3] y, float[5] z) { y, z = Split(x, lost) }", "= [3, 5]"),
    Case("Pad sizes", "g (float[2,3] x) => (float[a,b] y) { y = Pad(x, lost) }", "i64[4]"),
    Case("Tile repeats", "g (float[2,3] x) => (float[4,3] y) { y = Tile(x, lost) }", "= [2, 1]"),
    Case("Where condition", "g (float[2,3] x, float[2,3] z) => (float[2,3] y) { y = Where(lost, x, z) }", "bool[2, 3]"),
    Case("Where value", "g (bool[2,3] c, float[2,3] z) => (float[2,3] y) { y = Where(c, lost, z) }", "f32[2, 3]"),
    Case("Gather indices", "g (float[8,3] x) => (float[2,5,3] y) { y = Gather(x, lost) }", "i64[2, 5]", -8, 7),
    Case("Gather of one", "g (float[8,3] x) => (float[8] y) { y = Gather<axis = 1>(x, lost) }", "i64[]", -3, 2),
    Case("Gather table", "g (int64[n] i) => (float[n,4] y) { y = Gather(lost, i) }", "f32[lost.0, 4]"),
    Case("GatherElements indices", "g (float[8,3] x) => (float[2,3] y) { y = GatherElements(x, lost) "
         "}", "i64[2, 3]", -8, 7),
    Case("GatherND indices", "g (float[8,3] x) => (float[2,3] y) { y = GatherND(x, lost) }", "i64[2, 1]", -8, 7),
    Case("ScatterElements updates", "g (float[8,3] x) => (float[8,3] y) <int64[1,3] i = {1,2,3}> "
         "{ y = ScatterElements(x, i, lost) }", "f32[1, 3]"),
    Case("TopK count", "g (float[8] x) => (float[k] y, int64[k] i) { y, i = TopK(x, lost) }", "i64[1]", 1, 8),
    Case("CumSum axis", "g (float[2,3] x) => (float[2,3] y) { y = CumSum(x, lost) }", "i64[]", -2, 1),
    Case("OneHot depth", "g (int64[4] x) => (float[4,7] y) <float[2] v = {0,1}> { y = OneHot(x, lost, v) }", "= [7]"),
    Case("Range limit", "g (float[2] z) => (int64[k] y) <int64 a = {0}, int64 d = {1}> { y = Range(a, lost, d) "
         "}", "i64[]"),
    Case("Cast", "g (float[2] z) => (float[3] y) { y = Cast<to = 1>(lost) }", "i64[3]"),
    Case("Cast to integers", "g (float[5] x) => (float[3] y) { i = Cast<to = 7>(lost)  y = Gather(x, i) }", "i32[3]"),
    Case("If condition", "g (float[2] x) => (float[2] y) { y = If(lost) <then_branch = a () => (float[2] t) { t "
         "= Neg(x) }, "
         "else_branch = b () => (float[2] e) { e = Relu(x) }> }", "bool[]"),
    Case("read by a branch", "g (bool c, float[2] x) => (float[2] y) { y = If(c) <then_branch = a () => (float[2] t) "
         "{ t = Add(x, lost) }, else_branch = b () => (float[2] e) { e = Relu(x) }> }", "f32[2]"),
    Case("Loop trip count", "g (float[2] x) => (float[2] y) { one = Constant <value = bool {1}> ()  "
         "y = Loop(lost, one, x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) { d = "
         "Identity(c)  t = Add(s, s) }> }", "i64[]", 0, None),
    Case("Loop state", "g (float[2] x) => (float[2] y) { n = Constant <value = int64 {3}> ()  "
         "one = Constant <value = bool {1}> ()  y = Loop(n, one, lost) <body = b (int64 i, bool c, float[2] s) "
         "=> (bool d, float[2] t) "
         "{ d = Identity(c)  t = Add(s, x) }> }", "f32[2]"),
    Case("two readers", "g (float[2,3] x) => (float[2,3] y, float[2,3] z) "
         "{ y = Add(x, lost)  z = LayerNormalization(x, lost) }", "f32[3]"),
    Case("of a chain", "g (float[2,8] x) => (float[2,8] y) { a = Sigmoid(lost)  b = Mul(a, lost)  y = Add(x, b) "
         "}", "f32[2, 8]"),
    Case("two are lost", "g (float[2,8] x) => (float[2,8] y) { a = Add(lost, lost2)  y = Add(x, a) }", "f32[2, 8]"),
    Case("half precision", "g (float16[2,8] x) => (float16[2,8] y) { y = Add(x, lost) }", "f16[2, 8]"),
    Case("scale of a dequantization", "g (int8[4] x) => (float[4] y) { y = DequantizeLinear(x, lost) }", "f32[]"),
    Case("Einsum", "g (float[2,3] x) => (float[2,5] y) { y = Einsum<equation = \"ij,jk->ik\">(x, lost) }", "f32[3, 5]"),
    Case("LSTM weight", "g (float[5,2,4] x, float[1,12,3] r) => (float[5,1,2,3] y) { y = LSTM<hidden_size = "
         "3>(x, lost, r) }",
         "f32[1, 12, 4]"),
    Case("history of attention", "g (float[1,2,3,4] q, float[1,2,5,4] v) => (float[1,2,3,4] y) "
         "{ y = Identity(q)  k = Add(lost, v)  z = MatMul(k, k2)  k2 = Transpose<perm = [0,1,3,2]>(v) "
         "}", "f32[1, 2, 5, 4]"),
)  # fmt: skip
