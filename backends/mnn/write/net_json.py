"""The graph as MNN's JSON form (``schema/default/MNN.fbs`` spelled in JSON), which the wheel's converter encodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backends.mnn.write.weight_layout import Layout, Matrix
from ir.base.diag import LadingError
from ir.base.types import I32, DType, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.quant.stored_weight import is_weight

_DTYPES = {"f32": "DT_FLOAT", "i32": "DT_INT32"}
_BLOB_FIELD = {"f32": "float32s", "i32": "int32s"}


def build_net(graph: Graph, layout: Layout) -> dict[str, Any]:
    """The ``Net`` table of an MNN-legal graph whose weights lie as `layout` says.

    Raises:
        LadingError: B610 an operator without an encoding, B611 a constant of a type MNN has not.
    """
    return _Builder(graph, layout).build()


class _Builder:
    def __init__(self, graph: Graph, layout: Layout) -> None:
        self.graph = graph
        self.layout = layout
        self.names: list[str] = []
        self.index: dict[Value, int] = {}
        self.ops: list[dict[str, Any]] = []

    def build(self) -> dict[str, Any]:
        for value in self.graph.inputs:
            self._input(value)
        for node in self.graph.nodes:
            if is_weight(node.output):
                continue
            encode = ENCODE.get(node.op)
            if encode is None:
                raise LadingError("B610", f"operator {node.op} has no MNN encoding", where=f"{node.loc}\n{node!r}")
            self._node(node, encode)
        return {
            "oplists": self.ops,
            "tensorName": self.names,
            "outputName": [value.name for value in self.graph.outputs],
            "sourceType": "ONNX",
            "usage": "INFERENCE",
        }

    def _tensor(self, value: Value) -> int:
        if value not in self.index:
            self.index[value] = len(self.names)
            self.names.append(value.name)
        return self.index[value]

    def _input(self, value: Value) -> None:
        dims = [dim if isinstance(dim, int) else -1 for dim in value.shape]
        main = {"dims": dims, "dtype": _dtype(value.dtype, value.name), "dformat": "NCHW"}
        self._op(value.name, "Input", "Input", main, [], [self._tensor(value)])

    def _node(self, node: Node, encode: Callable[[Node, Layout], tuple[str, str, dict[str, Any]]]) -> None:
        kind, main_type, main = encode(node, self.layout)
        operands = node.inputs[: TENSORS.get(node.op)]
        inputs = [self._operand(value) for value in operands if value is not None]
        outputs = [self._tensor(value) for value in node.outputs]
        self._op(node.output.name, kind, main_type, main, inputs, outputs, FORMAT.get(node.op, "NCHW"))

    def _operand(self, value: Value) -> int:
        if value.is_const and value not in self.index:
            self._const(value)
        return self._tensor(value)

    def _const(self, value: Value) -> None:
        array = value.const.load()
        dtype = I32 if value.dtype.name == "i64" else value.dtype
        if dtype.name not in _BLOB_FIELD:
            raise LadingError("B611", f"MNN has no constants of type {dtype}", where=value.name)
        main = {
            "dims": list(array.shape),
            "dataFormat": "NCHW",
            "dataType": _dtype(dtype, value.name),
            _BLOB_FIELD[dtype.name]: array.reshape(-1).tolist(),
        }
        self._op(value.name, "Const", "Blob", main, [], [self._tensor(value)])

    def _op(
        self,
        name: str,
        kind: str,
        main_type: str,
        main: dict[str, Any],
        inputs: list[int],
        outputs: list[int],
        layout: str = "NCHW",
    ) -> None:
        op: dict[str, Any] = {"name": name, "type": kind, "main_type": main_type}
        if main_type != "NONE":
            op["main"] = main
        if inputs:
            op["inputIndexes"] = inputs
        self.ops.append({**op, "outputIndexes": outputs, "defaultDimentionFormat": layout})


def _dtype(dtype: DType, where: str) -> str:
    if dtype.name not in _DTYPES:
        raise LadingError("B611", f"MNN has no tensors of type {dtype}", where=where)
    return _DTYPES[dtype.name]


def _convolution(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    matrix = layout.matrices[node]
    common = {
        "kernelX": 1, "kernelY": 1, "strideX": 1, "strideY": 1, "dilateX": 1, "dilateY": 1, "padMode": "CAFFE", "group": 1,
        "outputCount": matrix.weight.rows, "inputCount": matrix.weight.columns, "relu": False, "relu6": False,
    }  # fmt: skip
    main: dict[str, Any] = {"common": common}
    if matrix.weight.quantized is not None:
        main["quanParameter"] = _integer_parameters(matrix)
        main["external"] = [
            matrix.offset, matrix.header_bytes + matrix.code_bytes, matrix.alpha_bytes, matrix.bias_bytes, 0,
        ]  # fmt: skip
    elif matrix.weight.bits == 16:
        main["quanParameter"] = {"type": 3, "quantScale": 1.0, "aMin": 0, "readType": 0, "aMaxOrBits": 16}
        main["external"] = [matrix.offset, matrix.code_bytes, 0, matrix.bias_bytes, 0]
    else:
        main["external"] = [matrix.offset, matrix.code_bytes, matrix.bias_bytes]
    return "Convolution", "Convolution2D", main


def _integer_parameters(matrix: Matrix) -> dict[str, Any]:
    storage = matrix.weight.storage
    found: dict[str, Any] = {
        "type": 1,
        "useInt32": False,
        "quantScale": 1.0,
        "scaleIn": 0.0,
        "scaleOut": 0.0,
        "aMaxOrBits": storage.bits,
        # aMin 1 says that the first number of a pair is the real value of code 0, which also embedding readers expect.
        "aMin": 0 if storage.symmetric else 1,
        "readType": 0 if storage.symmetric else matrix.weight.rows * matrix.blocks,
        "has_scaleInt": False,
        "shapeInt32": matrix.wide_header,
        "weightSize": 0,
    }
    if storage.scale == "f16":
        found["scaleStorage"] = "FP16"
    return found


def _layer_norm(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    vector = layout.vectors[node]
    sizes = [4 * value.type.size for value in vector.values]
    main = {
        # On packed tensors, of which FORMAT tells it, the runtime normalizes the channels, whatever axis is named.
        "axis": list(node.attrs.get("axis", (-1,))),
        "epsilon": node.attrs["epsilon"],
        "group": 1,
        "external": [vector.offset, *sizes],
        "useRMSNorm": bool(node.attrs["rms"]),
    }
    return "LayerNorm", "LayerNorm", main


def _reshape(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    return "Reshape", "Reshape", {"dims": list(node.attrs["dims"]), "dimType": node.attrs.get("dim_type", "NCHW")}


def _convert(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    return "ConvertTensor", "TensorConvertInfo", {"source": node.attrs["source"], "dest": node.attrs["dest"]}


def _attention(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    return "Attention", "AttentionParam", {"kv_cache": True}


def _packed_attention(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    return "Attention", "AttentionParam", {"kv_cache": True, "output_c4": True}


def _rope(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    main = {
        "rope_cut_head_dim": node.attrs["turned"],
        "num_head": node.attrs["heads"],
        "kv_num_head": node.attrs["kv_heads"],
        "head_dim": node.attrs["size"],
    }
    for name, place in (("q_norm", 4), ("k_norm", 6)):
        if node.input(place) is not None:
            main[name] = _inline_norm(node, node.inputs[place], node.inputs[place + 1])
    return "RoPE", "RoPEParam", main


def _inline_norm(node: Node, gamma: Value, beta: Value) -> dict[str, Any]:
    """A norm inside another operator, whose gain and shift the runtime looks for in the graph alone."""
    return {
        "axis": [-1],
        "epsilon": node.attrs["epsilon"],
        "group": 1,
        "gamma": _numbers(gamma),
        "beta": _numbers(beta),
        "useRMSNorm": bool(node.attrs["rms"]),
    }


def _numbers(value: Value) -> list[float]:
    return value.const.load().astype("float32").reshape(-1).tolist()


def _unary(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    return "UnaryOp", "UnaryOp", {"opType": node.attrs["kind"], "T": "DT_FLOAT"}


def _binary(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    dtype = _dtype(node.inputs[0].dtype, node.output.name)
    return "BinaryOp", "BinaryOp", {"opType": node.attrs["kind"], "T": dtype, "activationType": 0}


def _mul_silu(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    return "BinaryOp", "BinaryOp", {"opType": "MUL_SILU", "T": "DT_FLOAT", "activationType": 0}


def _cast(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    source, target = node.inputs[0].type, node.output.type
    assert isinstance(source, TensorType)
    assert isinstance(target, TensorType)
    return "Cast", "CastParam", {"srcT": _dtype(source.dtype, node.name), "dstT": _dtype(target.dtype, node.name)}


def _slice(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    return (
        "Slice",
        "Slice",
        {"axis": node.attrs["axis"], "slicePoints": list(node.attrs["points"]), "sourceType": "CAFFE"},
    )


def _strided_slice(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    main = {
        "Index": "DT_INT32", "T": "DT_FLOAT", "beginMask": 0, "endMask": 0, "ellipsisMask": 0, "newAxisMask": 0,
        "shrinkAxisMask": 0, "fromType": 1,
    }  # fmt: skip
    return "StridedSlice", "StridedSliceParam", main


def _concat(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    return "Concat", "Axis", {"axis": node.attrs["axis"]}


def _gather(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    return "GatherV2", "GatherV2", {"Taxis": "DT_INT32", "Tindices": "DT_INT32", "Tparams": "DT_FLOAT"}


def _squeeze(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    return node.op_type, "SqueezeParam", {"squeezeDims": list(node.attrs["axes"])}


def _reduction(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    main = {
        "operation": node.attrs["kind"],
        "dim": list(node.attrs["axes"]),
        "coeff": 0.0,
        "keepDims": bool(node.attrs["keep_dims"]),
        "dType": _dtype(node.output.dtype, node.output.name),
    }
    return "Reduction", "ReductionParam", main


def _select(node: Node, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    return "Select", "NONE", {}


TENSORS = {"mnn.Convolution": 1, "mnn.LayerNorm": 1, "mnn.PackedNorm": 1, "mnn.AddNorm": 2, "mnn.RoPE": 4}
"""How many of an operator's inputs are tensors of the graph, where further ones are stored as its parameters."""

FORMAT = {"mnn.PackedNorm": "NC4HW4", "mnn.AddNorm": "NC4HW4"}
"""The format of operators that do not take it from their operands (``source/geometry/GeometryLayernorm.cpp``)."""

ENCODE: dict[str, Callable[[Node, Layout], tuple[str, str, dict[str, Any]]]] = {
    "mnn.AddNorm": _layer_norm,
    "mnn.Attention": _attention,
    "mnn.Binary": _binary,
    "mnn.Cast": _cast,
    "mnn.Concat": _concat,
    "mnn.ConvertTensor": _convert,
    "mnn.Convolution": _convolution,
    "mnn.GatherV2": _gather,
    "mnn.LayerNorm": _layer_norm,
    "mnn.MulSilu": _mul_silu,
    "mnn.PackedAttention": _packed_attention,
    "mnn.PackedNorm": _layer_norm,
    "mnn.Reduction": _reduction,
    "mnn.Reshape": _reshape,
    "mnn.RoPE": _rope,
    "mnn.Select": _select,
    "mnn.Slice": _slice,
    "mnn.Squeeze": _squeeze,
    "mnn.StridedSlice": _strided_slice,
    "mnn.Unary": _unary,
    "mnn.Unsqueeze": _squeeze,
}
"""Operator type, parameter type and parameters of each MNN operator of the IR."""

__all__ = ["ENCODE", "build_net"]
