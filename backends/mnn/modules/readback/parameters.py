"""What operators of a converted net say, held against the attributes of the nodes that they were made from.

The converter names an operator after the first result of its node, and a convolution in groups ``NAME__group__0`` and so on.
It also exchanges operators for others and joins them: what has another type than a node gives by itself is not looked at
here, and is judged by what it computes; nor are element-wise operators, which it joins freely. Fields are those of
``schema/default/*.fbs`` of MNN 3.6.1.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from backends.mnn.modules.build import numbers, type_of
from backends.mnn.modules.table.row import HELD
from backends.mnn.read.net_file import numbers as listed
from ir.base.types import BOOL, DType
from ir.graph.graph import Graph, Node
from ir.ops.registry import attribute

Expected = Mapping[str, Any]
"""Values of fields by name, ``outer.inner`` for those of a table in a table; a tuple for any of several."""

_GROUP = re.compile(r"__group__\d+$")
_CLOSE = 1e-6


@dataclass(frozen=True)
class Row:
    """What an operator of ONNX becomes where it is converted by itself.

    Attributes:
        types: types of the net's operator.
        expected: its fields, from the node.
    """

    types: tuple[str, ...]
    expected: Callable[[Node], Expected]


def differences(ops: Iterable[Mapping[str, Any]], graph: Graph) -> Iterator[tuple[str, str]]:
    """What is said otherwise than a graph says it: a sentence, and the operator.

    Args:
        ops: operators of a net, those of its subgraphs too.
        graph: what the net was made from.
    """
    nodes = [node for node in graph.walk() if node.op in ROWS and node.outputs]
    several = Counter(node.outputs[0].name for node in nodes)
    named = {node.outputs[0].name: node for node in nodes if several[node.outputs[0].name] == 1}
    for op in ops:
        name = str(op.get("name") or "")
        node = named.get(_GROUP.sub("", name))
        if node is None or op.get("type") not in ROWS[node.op].types:
            continue
        split = name != node.outputs[0].name
        for field, wanted in ROWS[node.op].expected(node).items():
            if split and field in _BY_GROUP:
                continue
            found = _field(op.get("main"), field)
            if not _alike(found, wanted):
                shown = wanted[0] if isinstance(wanted, tuple) else wanted
                yield (
                    f"{field} of a {op['type']} is {_shown(found)} and should be {_shown(shown)}",
                    f"{name} ({node.op})",
                )


def _field(main: Any, name: str) -> Any:
    for part in name.split("."):
        main = main.get(part) if isinstance(main, Mapping) else None
    return listed(main) if hasattr(main, "dtype") else main


def _alike(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return any(_alike(found, one) for one in wanted)
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_alike, found, wanted))
    if isinstance(wanted, float):
        return isinstance(found, int | float) and math.isclose(found, wanted, rel_tol=_CLOSE, abs_tol=1e-30)
    # A field that has its default is not written.
    return bool(found == wanted) or (found is None and wanted in (0, False))


def _shown(value: Any) -> str:
    return "not there" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# ---- windows ----


def _pair(node: Node, name: str, usual: int) -> tuple[int, int] | None:
    """An attribute for both axes of an image; one axis of a sequence is the first, beside `usual`."""
    given = tuple(attribute(node, name) or ())
    axes = type_of(node.input(0)) or type_of(node.outputs[0])
    rank = axes.rank if axes is not None else None
    if rank not in (3, 4):
        return None
    given = given or (usual,) * (rank - 2)
    return (given[0], given[1]) if rank == 4 else (given[0], usual)


def _window(node: Node, prefix: str, kernel: tuple[int, int] | None, dilated: bool) -> Expected:
    strides = _pair(node, "strides", 1)
    if kernel is None or strides is None:
        return {}
    found = {
        "kernelY": kernel[0], "kernelX": kernel[1], "strideY": strides[0], "strideX": strides[1],
        **_pads(node, prefix),
    }  # fmt: skip
    dilations = _pair(node, "dilations", 1)
    if dilated and dilations is not None:
        found |= {"dilateY": dilations[0], "dilateX": dilations[1]}
    return {f"{prefix}{name}": value for name, value in found.items()}


def _pads(node: Node, prefix: str) -> dict[str, Any]:
    """Padding of an image, where the node says it and no padding stands before it that the converter may take in."""
    pads = list(attribute(node, "pads") or ())
    before = node.operand(0).producer
    automatic = attribute(node, "auto_pad") not in (None, "NOTSET")
    if automatic or len(pads) != 4 or (before is not None and before.op == "Pad"):
        return {}
    return {"padY": pads[0], "padX": pads[1]}


def _kernel(node: Node) -> tuple[int, int] | None:
    """The size of the filter of a convolution of one or two axes."""
    filters = type_of(node.input(1))
    sizes = filters.shape if filters is not None else None
    fixed = [size for size in sizes or () if isinstance(size, int)]
    if sizes is None or len(sizes) not in (3, 4) or len(fixed) < len(sizes):
        return None
    return fixed[2], fixed[3] if len(fixed) == 4 else 1


_BY_GROUP = frozenset({"common.group", "common.outputCount"})
"""Fields that are others where the converter makes one convolution for each group."""


def _convolution(node: Node) -> Expected:
    filters = type_of(node.input(1))
    found = dict(_window(node, "common.", _kernel(node), dilated=True))
    if found and filters is not None and filters.shape is not None:
        group = int(attribute(node, "group") or 1)
        channels = filters.shape[0 if node.op == "Conv" else 1]
        outputs = channels if node.op == "Conv" or not isinstance(channels, int) else channels * group
        found |= {"common.group": group, "common.outputCount": outputs}
    return found


def _pooling(node: Node) -> Expected:
    kind = "MAXPOOL" if "Max" in node.op else "AVEPOOL"
    if node.op.startswith("Global"):
        return {"type": kind, "isGlobal": True}
    found = dict(_window(node, "", _pair(node, "kernel_shape", 1), dilated=False))
    if found:
        found |= {"type": kind, "isGlobal": False, "ceilModel": bool(attribute(node, "ceil_mode"))}
        if attribute(node, "count_include_pad") and any(attribute(node, "pads") or ()):
            found["countType"] = "INCLUDE_PADDING"
    return found


_COORDINATES = {
    "half_pixel": "HalfPixels", "pytorch_half_pixel": "PytorchHalfPixels", "align_corners": "AlignCorners",
    "asymmetric": "Asymmetric", "tf_half_pixel_for_nn": "TensorflowHalfPixels",
}  # fmt: skip
_RESIZES = {"linear": 2, "cubic": 3, "nearest": (1, 4)}


def _resize(node: Node) -> Expected:
    mode = str(attribute(node, "mode"))
    found = {
        "resizeType": _RESIZES.get(mode),
        "ctm": _COORDINATES.get(str(attribute(node, "coordinate_transformation_mode"))),
    }
    if mode == "cubic":
        found["cubicCoeffA"] = float(attribute(node, "cubic_coeff_a"))
    return {name: value for name, value in found.items() if value is not None}


# ---- axes and numbers ----


def _axis(node: Node, field: str = "axis") -> Expected:
    """An axis, counted from either end."""
    axis = attribute(node, "axis")
    shape = type_of(node.input(0))
    if axis is None or shape is None or shape.rank is None:
        return {}
    rank = shape.rank + (node.op == "OneHot")
    return {field: (int(axis), int(axis) % rank, int(axis) % rank - rank)} if rank else {}


def _fields(**names: str) -> Callable[[Node], Expected]:
    """Fields that attributes of other names say as they are."""

    def expected(node: Node) -> Expected:
        found = {field: attribute(node, name) for field, name in names.items()}
        return {field: value for field, value in found.items() if value is not None}

    return expected


def _flags(**names: str) -> Callable[[Node], Expected]:
    """Fields that are true where an attribute is not 0."""
    plain = _fields(**names)
    return lambda node: {field: bool(value) for field, value in plain(node).items()}


def _constantly(**fields: Any) -> Callable[[Node], Expected]:
    """Fields that follow from the operator alone."""
    return lambda node: fields


def _together(*parts: Callable[[Node], Expected]) -> Callable[[Node], Expected]:
    """The fields of all parts."""
    return lambda node: {name: value for part in parts for name, value in part(node).items()}


def _chosen(field: str, name: str, words: Mapping[str, Any]) -> Callable[[Node], Expected]:
    """A field that says an attribute in other words."""

    def expected(node: Node) -> Expected:
        word = words.get(str(attribute(node, name)))
        return {} if word is None else {field: word}

    return expected


def _permutation(node: Node) -> Expected:
    given = node.attrs.get("perm")
    return {} if given is None else {"dims": list(given)}


def _cast(node: Node) -> Expected:
    made = type_of(node.outputs[0])
    return {} if made is None or made.dtype not in HELD else {"dstT": _held(made.dtype)}


def _held(dtype: DType) -> Any:
    """The element types that say how MNN holds one of ours."""
    if dtype.is_float:
        return "DT_FLOAT", "DT_DOUBLE"
    return ("DT_BOOL", "DT_INT32") if dtype == BOOL else ("DT_INT32", "DT_INT64")


def _limits(node: Node) -> Expected:
    found: dict[str, Any] = {}
    for field, place in (("minValue", 1), ("maxValue", 2)):
        value = numbers(node.input(place))
        if value is not None and value.size == 1:
            found[field] = float(value.reshape(()))
    return found


def _reduction(operation: str) -> Row:
    return Row(("Reduction",), _together(_constantly(operation=operation), _flags(keepDims="keepdims")))


_REDUCED = {
    "ReduceSum": "SUM",
    "ReduceMean": "MEAN",
    "ReduceMax": "MAXIMUM",
    "ReduceMin": "MINIMUM",
    "ReduceProd": "PROD",
}

ROWS: Mapping[str, Row] = {
    "Conv": Row(("Convolution", "ConvolutionDepthwise"), _convolution),
    "ConvTranspose": Row(("Deconvolution", "DeconvolutionDepthwise"), _convolution),
    **{op: Row(("Pooling",), _pooling) for op in ("MaxPool", "AveragePool")},
    **{op: Row(("Pooling", "Pooling3D"), _pooling) for op in ("GlobalMaxPool", "GlobalAveragePool")},
    "Resize": Row(("Interp",), _resize),
    "Softmax": Row(("Softmax",), _axis),
    "Concat": Row(("Concat",), _axis),
    "Split": Row(("Slice",), _axis),
    "ArgMax": Row(("ArgMax",), _axis),
    "ArgMin": Row(("ArgMin",), _axis),
    "OneHot": Row(("OneHot",), _axis),
    "Transpose": Row(("Permute",), _permutation),
    "Cast": Row(("Cast",), _cast),
    "CumSum": Row(("CumSum",), _flags(exclusive="exclusive", reverse="reverse")),
    "DepthToSpace": Row(
        ("DepthToSpace",),
        _together(_fields(blockSize="blocksize"), _chosen("mode", "mode", {"DCR": "DCR", "CRD": "CRD"})),
    ),
    "SpaceToDepth": Row(("SpaceToDepth",), _fields(blockSize="blocksize")),
    "Pad": Row(("Padding",), _chosen("mode", "mode", {"constant": 0, "reflect": 1, "edge": 3})),
    "TopK": Row(("TopKV2",), _flags(largest="largest")),
    "LRN": Row(("LRN",), _fields(localSize="size", alpha="alpha", beta="beta", bias="bias")),
    "GridSample": Row(
        ("GridSample",),
        _together(
            _chosen("mode", "mode", {"linear": "BILINEAR", "bilinear": "BILINEAR", "nearest": "NEAREST"}),
            _chosen("paddingMode", "padding_mode", {"zeros": "ZEROS", "border": "CLAMP", "reflection": "REFLECTION"}),
            _flags(alignCorners="align_corners"),
        ),
    ),
    "RoiAlign": Row(
        ("ROIAlign",),
        _together(
            _fields(pooledWidth="output_width", pooledHeight="output_height", spatialScale="spatial_scale"),
            _fields(samplingRatio="sampling_ratio"),
            _chosen("poolType", "mode", {"avg": "AVEPOOL", "max": "MAXPOOL"}),
        ),
    ),
    "ReverseSequence": Row(("ReverseSequence",), _fields(batchDim="batch_axis", seqDim="time_axis")),
    "LayerNormalization": Row(("LayerNorm",), _fields(epsilon="epsilon")),
    "LeakyRelu": Row(("ReLU",), _fields(slope="alpha")),
    "Elu": Row(("ELU",), _fields(alpha="alpha")),
    "Selu": Row(("Selu",), _fields(alpha="alpha", scale="gamma")),
    "Clip": Row(("ReLU6",), _limits),
    **{op: _reduction(operation) for op, operation in _REDUCED.items()},
}
"""By operator of ONNX."""

__all__ = ["ROWS", "Row", "differences"]
