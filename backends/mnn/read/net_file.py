"""Read ``.mnn`` files without native code, into the form of MNN's own JSON.

Tables, slots and enumerations are those of ``schema/default/*.fbs`` of MNN 3.6.1; fields are only ever appended, so one
table of slots reads the files of every release. A number that has no name here stays a number, and an operator
parameter of an unknown kind is left out, so that files of later releases can still be looked at.
"""

from __future__ import annotations

import mmap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from backends.mnn.read.flatbuffer import Buffer, Table
from ir.base.diag import LadingError

_OPS = {
    0: "AbsVal QuantizedAdd ArgMax AsString InstanceNorm BatchToSpaceND Copy BinaryOp Bnll Cast Concat Const Convolution "
    "ConvolutionDepthwise Crop CropAndResize ImageProcess Deconvolution DeconvolutionDepthwise Dequantize DetectionOutput "
    "Dropout Eltwise ELU Unique Exp ExpandDims Fill Flatten Im2Col Gather GatherV2 Im2Seq InnerProduct Input Interp Log "
    "LRN LSTM MatMul MoE NonMaxSuppression NonMaxSuppressionV2 Normalize Pack Padding Permute Pooling Power PReLU PriorBox "
    "Proposal QuantizedAvgPool QuantizedBiasAdd QuantizedConcat QuantizedDepthwiseConv2D QuantizedLogistic "
    "RasterAndInterpolate QuantizedMaxPool Texture RasterDiff QuantizedReshape QuantizedSoftmax QuantizeMaxMin QuantizeV2 "
    "Range Rank ReduceJoin Reduction ReLU ReLU6 RequantizationRange Requantize Reshape Resize RNN ROIPooling Scale Selu "
    "Seq2Out Shape Sigmoid Size Slice SliceTf Softmax SpaceToBatchND SpatialProduct Col2Im Segment Squeeze StridedSlice "
    "CastLike StringSplit StringToNumber TanH TfQuantizedConv2D Threshold Tile TopKV2 Transpose UnaryOp Unpack Where "
    "Moments RNNSequenceGRU BatchMatMul Unsqueeze CosineSimilarity DepthToSpace SpaceToDepth ReverseSequence Pooling3D "
    "Convolution3D MatrixBandPart GatherND DetectionPostProcess UnravelIndex ScatterNd OneHot BroadcastTo Dilation2D "
    "Interp3D",
    128: "Raster ConvertTensor ArgMin LinSpace RandomUniform TensorArray TensorArraySize TensorArrayRead TensorArrayWrite "
    "TensorArrayGather TensorArrayScatter TensorArraySplit TensorArrayConcat LSTMBlockCell Reverse ROIAlign RandomNormal "
    "TensorArrayInsert TensorArrayErase EyeLike CumSum Det CumProd ScatterElements GatherElements Svd Histogram "
    "DynamicQuant Stft",
    256: "Plugin Select ZerosLike Broastcast SetDiff1D ReluGrad Identity PoolGrad SoftmaxGrad Conv2DBackPropFilter "
    "TrainableParam BatchNorm ConvTranspose3D ZeroGrad",
    299: "Attention FmhaV2 Fmhca SeqLen2Spatial SplitGeLU GroupNorm LinearAttention RoPE",
    512: "Extra ConvInt8 Int8ToFloat DepthwiseConvInt8 PoolInt8 FloatToInt8 EltwiseInt8",
    600: "While If",
    603: "LayerNorm GridSample",
}
OPS = {start + index: name for start, names in _OPS.items() for index, name in enumerate(names.split())}
"""Operator names by number."""

PARAMETERS = tuple(
    (
        "NONE QuantizedAdd ArgMax AsString Axis BatchNorm BinaryOp Blob CastParam Convolution2D Crop CropAndResize "
        "Dequantize DetectionOutput Eltwise ExpandDims Fill Flatten Gather GatherV2 InnerProduct Input Interp LRN LSTM "
        "MatMul NonMaxSuppressionV2 Normalize PackParam Permute Plugin Pool PRelu PriorBox Proposal QuantizedAvgPool "
        "QuantizedBiasAdd QuantizedConcat QuantizedLogistic QuantizedMatMul QuantizedMaxPool QuantizedRelu QuantizedRelu6 "
        "QuantizedReshape QuantizedSoftmax QuantizeMaxMin QuantizeV2 Range Rank ReduceJoin ReductionParam Relu Relu6 "
        "RequantizationRange Requantize Reshape Resize RoiParameters Scale Selu Size Slice SliceTf SpaceBatch SqueezeParam "
        "StridedSliceParam TensorConvertInfo TfQuantizedConv2D TopKV2 Transpose UnaryOp MomentsParam RNNParam "
        "BatchMatMulParam QuantizedFloatParam DepthSpaceParam EltwiseInt8 ReverseSequenceParam Extra Pool3D Convolution3D "
        "ELU DetectionPostProcessParam OneHotParam PadParam WhileParam IfParam RandomUniform LayerNorm TensorArray "
        "LSTMBlockCell GridSample LoopParam ImageProcessParam CumSum GroupNorm FmhaV2Param FmhcaParam AttentionParam "
        "StftParam LinearAttentionParam ShapeParam RoPEParam"
    ).split()
)
"""Kinds of operator parameters; the number of one is its place."""

BINARY = dict(
    enumerate(
        "ADD SUB MUL DIV MAX_TEMP MIN_TEMP POW REALDIV MINIMUM MAXIMUM GREATER GREATER_EQUAL LESS FLOORDIV "
        "SquaredDifference EQUAL LESS_EQUAL FLOORMOD ? MOD ATAN2 LOGICALOR NOTEQUAL BITWISE_AND BITWISE_OR BITWISE_XOR "
        "LOGICALXOR LEFTSHIFT RIGHTSHIFT MUL_SILU".split()
    )
)
"""``BinaryOpOperation`` by number; 18 is not used."""

UNARY = dict(
    enumerate(
        "ABS NEG FLOOR CEIL SQUARE SQRT RSQRT EXP LOG SIN COS TAN ASIN ACOS ATAN RECIPROCAL LOG1P BNLL ACOSH SINH ASINH "
        "ATANH SIGN ROUND COSH ERF ERFC ERFINV EXPM1 SIGMOID TANH HARDSWISH GELU GELU_STANDARD SILU".split()
    )
)
"""``UnaryOpOperation`` by number."""

_ENUMS: dict[str, tuple[str, dict[int, str]]] = {
    name: (kind, dict(enumerate(words.split())) if isinstance(words, str) else words)
    for name, kind, words in (
        ("OpType", "i", OPS),
        ("Binary", "i", BINARY),
        ("Unary", "i", UNARY),
        ("DataType", "i", "DT_INVALID DT_FLOAT DT_DOUBLE DT_INT32 DT_UINT8 DT_INT16 DT_INT8 DT_STRING DT_COMPLEX64 "
         "DT_INT64 DT_BOOL DT_QINT8 DT_QUINT8 DT_QINT32 DT_BFLOAT16 DT_QINT16 DT_QUINT16 DT_UINT16 DT_COMPLEX128 DT_HALF "
         "DT_RESOURCE DT_VARIANT"),
        ("Format", "b", "NCHW NHWC NC4HW4 NHWC4 UNKNOWN"),
        ("Source", "b", "CAFFE TENSORFLOW TFLITE ONNX TORCH"),
        ("Forward", "b", "CPU METAL CUDA OPENCL AUTO NNAPI OPENGLES VULKAN"),
        ("Usage", "b", "INFERENCE TRAIN INFERENCE_STATIC"),
        ("PadMode", "b", "CAFFE VALID SAME"),
        ("Scales", "b", "FP32 FP16"),
        ("Pooled", "b", "MAXPOOL AVEPOOL"),
        ("Counted", "b", "DEFAULT INCLUDE_PADDING EXCLUDE_PADDING"),
        ("Coordinates", "b", "NotSet AlignCorners HalfPixels PytorchHalfPixels Asymmetric TensorflowHalfPixels "
         "TensorflowCropAndResize"),
        ("DepthOrder", "b", "DCR CRD"),
        ("Sampled", "b", "BILINEAR NEAREST"),
        ("Border", "b", "ZEROS CLAMP REFLECTION CUBE"),
        ("Reduce", "b", "SUM ASUM SUMSQ MEAN MAXIMUM MINIMUM PROD ANY ALL"),
    )
}  # fmt: skip

_SCALARS = {"bool": "?", "byte": "b", "ubyte": "B", "int": "i", "uint": "I", "long": "q", "float": "f"}
_VECTORS = {
    "[int]": "<i4", "[uint]": "<u4", "[long]": "<i8", "[float]": "<f4", "[byte]": "i1", "[ubyte]": "u1", "[ushort]": "<u2",
}  # fmt: skip

_TABLES = {
    "Net": "bizCode text, extraTensorDescribe [TensorDescribe], extraInfo ExtraInfo, oplists [Op], outputName [text], "
    "preferForwardType Forward, sourceType Source, tensorName [text], tensorNumber int, usage Usage, "
    "subgraphs [SubGraphProto], mnn_uuid text",
    "ExtraInfo": "buffer [byte], name text, version text",
    "SubGraphProto": "name text, inputs [int], outputs [int], tensors [text], nodes [Op], "
    "extraTensorDescribe [TensorDescribe]",
    "Op": "inputIndexes [int], main_type -, main -, name text, outputIndexes [int], type OpType, "
    "defaultDimentionFormat Format, externalPath text",
    "TensorDescribe": "blob -, index int, name text, regions -, quantInfo TensorQuantInfo",
    "TensorQuantInfo": "scale float, zero float, min float, max float, type DataType",
    "Convolution2D": "common Convolution2DCommon, weight [float], bias [float], quanParameter IDSTQuan, symmetricQuan "
    "QuantizedFloatParam, "
    "sparseParameter -, external [long]",
    "QuantizedFloatParam": "weight [byte], bias [int], scale [float], tensorScale [float], method byte, nbits int, "
    "zeroPoint byte, outputZeroPoint byte, clampMin byte, clampMax byte, winogradAttr [int], outputDataType DataType, "
    "floatzeros [float]",
    "Convolution2DCommon": "padX int, padY int, kernelX int, kernelY int, strideX int, strideY int, dilateX int, dilateY "
    "int, padMode PadMode, group int, outputCount int, inputCount int, relu bool, relu6 bool, pads [int], outPads [int], "
    "hasOutputShape bool",
    "IDSTQuan": "buffer [byte], alpha [float], type int, useInt32 bool, quantScale float, scaleIn float, scaleOut float, "
    "aMaxOrBits int, aMin int, readType int, has_scaleInt bool, shapeInt32 bool, weightSize uint, index [uint], alphaFp16 "
    "[ushort], scaleStorage Scales",
    "LayerNorm": "axis [int], epsilon float, gamma [float], beta [float], group int, external [long], useRMSNorm bool",
    "AttentionParam": "kv_cache bool, kv_shared_layer text, layer_index int, kv_shared_layer_index int, mhq_quant -, "
    "output_c4 bool, attnScale float",
    "LinearAttentionParam": "attn_type text, num_k_heads int, num_v_heads int, head_k_dim int, head_v_dim int, "
    "use_qk_l2norm bool",
    "RoPEParam": "rope_cut_head_dim int, num_head int, kv_num_head int, head_dim int, q_norm LayerNorm, k_norm LayerNorm",
    "Blob": "dims [int], dataFormat Format, dataType DataType, uint8s [ubyte], int8s [byte], int32s [int], int64s [long], "
    "float32s [float], strings [text], external [long]",
    "Input": "dims [int], dtype DataType, dformat Format",
    "Reshape": "dims [int], dimType Format",
    "TensorConvertInfo": "source Format, dest Format",
    "BinaryOp": "opType Binary, T DataType, activationType int",
    "UnaryOp": "opType Unary, T DataType, tableInt8 [byte]",
    "StridedSliceParam": "Index DataType, T DataType, beginMask int, endMask int, ellipsisMask int, newAxisMask int, "
    "shrinkAxisMask int, fromType int",
    "Slice": "axis int, slicePoints [int], sourceType Source",
    "Axis": "axis int",
    "SqueezeParam": "squeezeDims [int]",
    "CastParam": "srcT DataType, dstT DataType",
    "ReductionParam": "operation Reduce, dim [int], coeff float, keepDims bool, dType DataType",
    "GatherV2": "Taxis DataType, Tindices DataType, Tparams DataType",
    "Gather": "Tindices DataType, Tparams DataType, validateIndices bool, axis int",
    "Permute": "dims [int]",
    "TopKV2": "T DataType, sorted bool, largest bool",
    "Range": "Tidx DataType",
    "ShapeParam": "hasStart bool, start int, hasEnd bool, end int",
    "StftParam": "n_fft int, hop_length int, abs bool",
    "Scale": "channels int, scaleData [float], biasData [float], external [long]",
    "MatMul": "T DataType, transposeA bool, transposeB bool, weight [float], bias [float]",
    "BatchMatMulParam": "adjX bool, adjY bool",
    "Extra": "type text, engine text, info [byte], attr [Attribute], vector bool",
    "Attribute": "s text, i int, b bool, key text, type DataType, f float",
    "ArgMax": "outMaxVal int, topK int, axis int, softmaxThreshold int",
    "PadParam": "mode byte",
    "OneHotParam": "dType DataType, axis int",
    "GroupNorm": "axis int, epsilon float, gamma [float], beta [float], group int, bSwish int, external [long]",
    "Relu": "slope float",
    "Relu6": "minValue float, maxValue float",
    "Size": "outputDataType DataType",
    "PackParam": "dataType DataType, axis int",
    "CumSum": "exclusive bool, reverse bool",
    "Pool": "padX int, padY int, isGlobal bool, kernelX int, kernelY int, strideX int, strideY int, type Pooled, padType "
    "PadMode, dataType DataType, ceilModel bool, pads [int], countType Counted",
    "Pool3D": "strides [int], kernels [int], pads [int], type Pooled, padType PadMode, isGlobal bool",
    "Convolution3D": "common Convolution3DCommon, weight [float], bias [float], external [long]",
    "Convolution3DCommon": "dilates [int], strides [int], kernels [int], pads [int], padMode PadMode, inputCount int, "
    "outputCount int, relu bool, relu6 bool, group int, outPads [int], hasOutputShape bool",
    "Interp": "widthScale float, heightScale float, outputWidth int, outputHeight int, resizeType int, alignCorners bool, "
    "halfPixelCenters bool, widthOffset float, heightOffset float, cubicCoeffA float, ctm Coordinates, depthScale float, "
    "outputDepth int, depthOffset float",
    "DepthSpaceParam": "blockSize int, mode DepthOrder",
    "LRN": "regionType int, localSize int, alpha float, beta float, bias float",
    "GridSample": "mode Sampled, paddingMode Border, alignCorners bool, backward bool",
    "RoiParameters": "pooledWidth int, pooledHeight int, spatialScale float, samplingRatio int, aligned bool, poolType "
    "Pooled, outputGrad bool",
    "ELU": "alpha float",
    "Selu": "scale float, alpha float",
    "PRelu": "slopeCount int, slope [float]",
    "ReverseSequenceParam": "batchDim int, seqDim int",
    "Flatten": "axis int, endAxis int",
    "Transpose": "Tperm DataType",
    "ExpandDims": "T DataType, Tdim DataType, axis int",
    "MomentsParam": "dim [int], keepDims bool, dType DataType",
    "RandomUniform": "seed int, seed2 int, type DataType, low float, high float",
    "BatchNorm": "channels int, slopeData [float], meanData [float], varData [float], biasData [float], Adata [float], "
    "Bdata [float], epsilon float",
    "InnerProduct": "outputCount int, biasTerm int, weightSize int, weight [float], bias [float], axis int, transpose bool, "
    "quanParameter IDSTQuan",
    "LSTM": "outputCount int, weightSize int, clippingThreshold float, weightI Blob, weightH Blob, bias Blob, weightIQ Blob, "
    "weightIA Blob, quantScale float",
    "RNNParam": "numUnits int, isBidirectionalRNN bool, linearBeforeReset bool, keepAllOutputs bool, fwGateWeight Blob, "
    "fwGateBias Blob, fwCandidateWeight Blob, fwCandidateBias Blob, fwRecurrentBias Blob, bwGateWeight Blob, bwGateBias "
    "Blob, bwCandidateWeight Blob, bwCandidateBias Blob, bwRecurrentBias Blob",
    "IfParam": "then_graph text, else_graph text, aliases_inputs [StringVec], aliases_outputs [StringVec]",
    "WhileParam": "cond_graph text, body_graph text, aliases_inputs [StringVec], aliases_outputs [text], aliases_updates "
    "[StringVec]",
    "StringVec": "data [text]",
}
"""Fields of each table in order of their slots; ``-`` is read by nothing here."""


def read_net(path: Path) -> dict[str, Any]:
    """The ``Net`` of a file as `backends.mnn.run.native.mnn_to_json` would spell it, with all digits of floats.

    Vectors of numbers stay numpy views of the mapped file; fields that the file does not have are left out.

    Raises:
        LadingError: B711 no such file, B710 not an MNN model.
    """
    try:
        with path.open("rb") as file:
            data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise LadingError("B711", f"cannot be read: {error}", where=str(path)) from error
    return parse_net(data, str(path))


def parse_net(data: Any, name: str = "") -> dict[str, Any]:
    """`read_net` of bytes."""
    buffer = Buffer(data, name)
    net = _table(buffer.root(), "Net")
    if not net.get("oplists") or "tensorName" not in net:
        raise buffer.error("it holds no operators, so it is no MNN model")
    return net


@cache
def _fields(name: str) -> tuple[tuple[int, str, str], ...]:
    pairs = [pair.split() for pair in _TABLES[name].split(",")]
    return tuple((slot, field, kind) for slot, (field, kind) in enumerate(pairs) if kind != "-")


@cache
def number_kinds(name: str) -> tuple[str, ...]:
    """The `struct` kind of each slot of a table, empty for what is referred to."""
    kinds = [pair.split()[1] for pair in _TABLES[name].split(",")]
    return tuple(_SCALARS.get(kind) or (_ENUMS[kind][0] if kind in _ENUMS else "") for kind in kinds)


def slot_of(name: str, field: str) -> int:
    """The slot of a field of a table."""
    return [pair.split()[0] for pair in _TABLES[name].split(",")].index(field)


def _table(table: Table, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for slot, field, kind in _fields(name):
        if table.place(slot):
            found[field] = _field(table, slot, kind)
    if name == "Op":
        _parameters(table, found)
    return found


def _parameters(table: Table, found: dict[str, Any]) -> None:
    number = int(table.number(1, "B") or 0)
    kind = PARAMETERS[number] if number < len(PARAMETERS) else number
    found["main_type"] = kind
    main = table.table(2) if number else None
    if main is not None and kind in _TABLES:
        found["main"] = _table(main, str(kind))


def _field(table: Table, slot: int, kind: str) -> Any:
    if kind in _SCALARS:
        return table.number(slot, _SCALARS[kind])
    if kind in _ENUMS:
        code, names = _ENUMS[kind]
        number = table.number(slot, code)
        return names.get(int(number), number) if number is not None else None
    if kind in _VECTORS:
        return table.array(slot, _VECTORS[kind])
    if kind == "text":
        return table.text(slot)
    if kind == "[text]":
        return table.texts(slot)
    if kind.startswith("["):
        return [_table(item, kind[1:-1]) for item in table.tables(slot) or ()]
    inner = table.table(slot)
    return None if inner is None else _table(inner, kind)


def numbers(vector: np.ndarray | list | None) -> list:
    """A vector field as a list; empty when absent."""
    return [] if vector is None else np.asarray(vector).tolist()
