"""Linear layers: 1x1 convolutions by a matrix of the weight file, in the forms of ``Convolution2D``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.operator import Decoded, Main, MnnOperator, Operands
from backends.mnn.read.net_file import numbers
from backends.mnn.read.stored_tensors import WeightFile, first_code
from backends.mnn.write.weight_layout import Layout, Matrix
from ir.base.diag import LadingError
from ir.base.types import DTYPES, F16, F32, TensorType, ValueType
from ir.graph.graph import Graph, Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import one_dtype, tensor, typed
from ir.infer.rule_table import TypeMismatch
from ir.ops.meaning import Body
from ir.ops.registry import OpDef
from ir.quant.stored_codes import stored_codes, stored_weight
from ir.quant.weight import QuantizedWeight
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import transposed

U8 = DTYPES["u8"]

# ---- types and meaning ----


def _convolution_type(run: Inference, node: Node) -> ValueType | None:
    x, weight = tensor(node.inputs[0]), tensor(node.inputs[1])
    if x is None or weight is None:
        return None
    if x.shape is None or weight.shape is None:
        return typed(x.dtype, (None, None, 1, 1))
    if len(x.shape) != 4 or x.shape[2:] != (1, 1) or len(weight.shape) != 2:
        raise TypeMismatch("a 1x1 convolution takes [n, ic, 1, 1] and a weight [ic, oc]")
    if type(x.shape[1]) is int and type(weight.shape[0]) is int and x.shape[1] != weight.shape[0]:
        raise TypeMismatch(f"{x.shape[1]} input channels meet a weight for {weight.shape[0]}")
    return typed(one_dtype(x, weight), (x.shape[0], weight.shape[1], 1, 1))


def _convolution(body: Body) -> list[Value]:
    x, weight, bias = (*body.inputs, None)[:3]
    result = body.op("MatMul", body.op("Flatten", x, axis=1), weight)
    if bias is not None:
        result = body.op("Add", result, bias)
    return [body.op("Unsqueeze", result, body.ints(2, 3))]


# ---- writing ----


def _write_convolution(node: Node, layout: Layout) -> dict[str, Any]:
    matrix = layout.matrices[node]
    common = {
        "kernelX": 1, "kernelY": 1, "strideX": 1, "strideY": 1, "dilateX": 1, "dilateY": 1, "padMode": "CAFFE",
        "group": 1, "outputCount": matrix.weight.rows, "inputCount": matrix.weight.columns, "relu": False,
        "relu6": False,
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
    return main


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


# ---- reading ----


def _read_convolution(builder: Builder, main: Main, operands: Operands) -> Decoded:
    common = main.get("common", {})
    odd = {key: common.get(key, 1) for key in ("kernelX", "kernelY", "strideX", "strideY", "group")}
    if any(size != 1 for size in odd.values()) or common.get("relu") or common.get("relu6"):
        raise builder.error("F644", "convolutions other than 1x1 without activation are not read")
    name = str(builder.op.get("name"))
    weight, bias = read_matrix(builder.weights, builder.op)
    x = builder.value(operands[0])
    flat = builder.reshape(x, (builder.dims(x)[0], common["inputCount"], 1, 1))
    packed = builder.add("ConvertTensor", [flat], flat.type, source="NCHW", dest="NC4HW4")
    wide = TensorType(F32, (flat.dims[0], common["outputCount"], 1, 1))
    inputs = [packed, add_weight(builder.graph, name, weight), builder.graph.add_const(f"{name}.bias", bias)]
    product = builder.add("Convolution", inputs, wide)
    return builder.add("ConvertTensor", [product], wide, source="NC4HW4", dest="NCHW")


def read_matrix(weights: WeightFile, op: Main) -> tuple[Tensor | QuantizedWeight, Tensor]:
    """Weight ``[rows, columns]`` and bias ``f32[rows]`` of a convolution.

    Raises:
        LadingError: F642 beyond the file, F643 a form that is not read.
    """
    main, name = op["main"], str(op.get("name"))
    common, quant, external = main.get("common", {}), main.get("quanParameter"), numbers(main.get("external"))
    rows, columns = common.get("outputCount", 0), common.get("inputCount", 0)
    if len(external) < 3:
        return _inline_matrix(main, rows, columns, name)
    alpha_bytes, bias_bytes = (external[2], external[3]) if quant else (0, external[2])
    offset = external[0]
    end = offset + external[1] + alpha_bytes
    bias: Tensor = InlineTensor(np.zeros(rows, np.float32))
    if bias_bytes:
        bias = weights.tensor(end, TensorType(F32, (rows,)), f"{name}.bias")
    if quant is None:
        return weights.tensor(offset, TensorType(F32, (rows, columns)), name), bias
    if quant.get("type") == 3:
        return weights.tensor(offset, TensorType(F16, (rows, columns)), name), bias
    if quant.get("type") != 1 or not math.isclose(quant.get("quantScale", 0.0), 1.0):
        raise LadingError("F643", f"weights of type {quant.get('type')} are not read", where=name)
    return _stored_codes(weights, quant, offset, external[1], alpha_bytes, (rows, columns), name), bias


def _inline_matrix(main: Main, rows: int, columns: int, name: str) -> tuple[Tensor, Tensor]:
    weight, bias = main.get("weight"), main.get("bias")
    if weight is None or len(weight) != rows * columns or main.get("quanParameter"):
        raise LadingError("F643", "weights inside the model file are read as single floats only", where=name)
    zeros = np.zeros(rows, np.float32)
    return (
        InlineTensor(np.array(weight, np.float32).reshape(rows, columns)),
        InlineTensor(zeros if bias is None else np.array(bias, np.float32)),
    )


def _stored_codes(
    weights: WeightFile, quant: Main, offset: int, nbytes: int, alpha_bytes: int, shape: tuple[int, int], name: str
) -> QuantizedWeight:
    rows, columns = shape
    start, bits = _first_code(weights, offset, nbytes, shape, name)
    half = quant.get("scaleStorage") == "FP16"
    pairs = bool(quant.get("readType"))
    blocks, rest = divmod(alpha_bytes, rows * (2 if half else 4) * (2 if pairs else 1))
    if rest or not blocks or columns % blocks:
        raise LadingError("F643", f"{alpha_bytes} bytes of scales do not fit {rows} rows of {columns}", where=name)
    kind = TensorType(F16 if half else F32, (rows, blocks, 2) if pairs else (rows, blocks))
    low = quant.get("aMin", 0) if pairs else 0
    codes = weights.tensor(start, TensorType(U8, (offset + nbytes - start,)), f"{name}.codes")
    alpha = weights.tensor(offset + nbytes, kind, f"{name}.alpha")
    # A positive aMin says that zeros are the value of code 0; the runtime takes 0 for -128.
    low = 0 if low > 0 else (low or -128) if pairs else 0
    return stored_weight(stored_codes(codes, alpha, rows, columns, bits, low), weights.scale)


def _first_code(weights: WeightFile, offset: int, nbytes: int, shape: tuple[int, int], name: str) -> tuple[int, int]:
    """Place of the first code and width of the codes, from the dimensions and the table before them."""
    head = weights.tensor(offset, TensorType(U8, (min(nbytes, 270),)), name).load()
    found = first_code(head, nbytes, shape)
    if found is not None and found.straight:
        return offset + found.place, found.bits
    raise LadingError("F643", f"the codes of a matrix {list(shape)} have another header or table", where=name)


def add_weight(graph: Graph, name: str, weight: Tensor | QuantizedWeight, *, rows_first: bool = False) -> Value:
    """Put a matrix into a graph in the form that `ir.quant.stored_weight.storage_of` reads, ``[in, out]`` unless
    `rows_first`."""
    if isinstance(weight, Tensor):
        oriented = weight if rows_first else transposed(weight)
        const = graph.add_const(name, oriented)
        if weight.type.dtype == F32:
            return const
        type_ = TensorType(F32, oriented.type.shape)
        return graph.add("Cast", [const], {"to": F32.onnx}, outputs=[f"{name}.wide"], types=[type_]).output
    parts = [("codes", weight.codes), ("scale", weight.scale), ("zero", weight.zero_point)]
    inputs = [
        graph.add_const(f"{name}.{word}", part if rows_first else transposed(part))
        for word, part in parts
        if part is not None
    ]
    shape = weight.shape if rows_first else weight.shape[::-1]
    return graph.add(
        "DequantizeLinear" if weight.storage.symmetric else "lading.AffineDequantize",
        inputs,
        {"axis": 1 if rows_first else 0, "block_size": weight.storage.block or weight.shape[1]},
        outputs=[f"{name}.weight"],
        types=[TensorType(F32, shape)],
    ).output


ROWS = (
    MnnOperator(
        type="Convolution",
        parameter="Convolution2D",
        definition=OpDef(
            "mnn.Convolution",
            inputs=("x", "weight", "bias"),
            min_inputs=2,
            max_inputs=3,
            infer=_convolution_type,
            define=_convolution,
            weight_input=1,
            channel_axis=1,
            role="linear",
            doc="A 1x1 convolution: [n, ic, 1, 1] by a weight [ic, oc] and a bias [oc] to [n, oc, 1, 1].",
        ),
        encode=_write_convolution,
        tensors=1,
        decode=_read_convolution,
    ),
)
"""Rows for `backends.mnn.dialect.table`."""
