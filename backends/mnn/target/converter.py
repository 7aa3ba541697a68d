"""What the converter in MNN's wheels does with ONNX operators, release by release.

It goes by the operator's name alone, whatever its domain. An operator that it does not know ends the conversion with
"These Op Not Support". Sources: the rows of ``REGISTER_CONVERTER`` below ``tools/converter/source/onnx`` and of
``OnnxExtraManager`` below ``tools/converter/source/optimizer/onnxextra`` at each release's tag; on 3.6.1 ONNX's own test
cases were refused by exactly these operators.
"""

from __future__ import annotations

from backends.mnn.target.releases import VERSIONS, Release

_ALWAYS = frozenset(
    """
    ATan ATen Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift
    Cast CastLike Ceil Celu Clip Compress Concat ConcatFromSequence Constant ConstantOfShape Conv ConvTranspose
    Cos Cosh CumSum DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf
    Erfc Erfinv Exp Expand Expm1 EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish
    Identity If InstanceNormalization LRN LSTM LayerNorm LayerNormalization LeakyRelu Less LessOrEqual Log Log1p
    LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool MaxRoiPool MaxUnpool Mean
    MeanVarianceNormalization Min Mod Mul Neg NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot Or
    PRelu Pad Pow QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round Scatter ScatterElements
    ScatterND Selu SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength Shape
    Shrink Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split
    SplitToSequence Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze
    Upsample Where Xor raster_grad texture texture_mipmap
    """.split()
)
"""Operators that every converter from 3.0.0 to 3.6.1 knows."""

_FROM = {"STFT": "3.1.0"}
_UNTIL = {"MatMulInteger": "3.1.0", "GroupNorm": "3.1.0", "SeqLen2Spatial": "3.1.0", "SplitGeLU": "3.1.0",
          "fMHA_V2": "3.1.0", "fMHCA": "3.1.0"}  # fmt: skip
"""The first and the last release with an operator that only some have."""


def converts(release: Release, op: str) -> bool:
    """Whether the converter of a release knows an ONNX operator of this name."""
    place = VERSIONS.index(release.version)
    if op in _FROM:
        return place >= VERSIONS.index(_FROM[op])
    if op in _UNTIL:
        return place <= VERSIONS.index(_UNTIL[op])
    return op in _ALWAYS


__all__ = ["converts"]
