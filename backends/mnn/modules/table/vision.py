"""Convolution, pooling, resizing, normalisation, recurrence and signals.

"Sweep" stands for some hundred runs of one node on 3.4.0 and 3.6.1, drawn at random over batches of 1 to 3, channels of which
4 is no divisor, strides, widths before and behind, and sizes known in the file or only at run time, each of these run with
two sizes.
"""

from __future__ import annotations

from math import isclose

from backends.mnn.modules.build import numbers
from backends.mnn.modules.rewrites.vision.convolution import WRITTEN, kernel_of
from backends.mnn.modules.rewrites.vision.pooling import is_plain, is_same_upper
from backends.mnn.modules.rewrites.vision.recurrent import is_right
from backends.mnn.modules.rewrites.vision.resizing import text
from backends.mnn.modules.rewrites.vision.windows import window, written
from backends.mnn.modules.table.row import Right
from ir.base.types import F32, I32, I64
from ir.graph.graph import Node
from ir.ops.registry import attribute

SINGLE = frozenset({F32})
INDEX = frozenset({I32, I64})

PAIR = range(4, 5)
"""Axes of images."""


def every_attribute(node: Node) -> str | None:
    """The converter has defaults of its own, and another meaning of ``auto_pad``."""
    if not written(node, *WRITTEN) or "output_shape" in node.attrs:
        return "its attributes are not written out"
    bias = node.input(2)
    if bias is not None and not bias.is_const:
        return "its bias is computed"
    return None if kernel_of(node) is not None else "the shape of its weights is not known"


def constant_kernel(node: Node) -> str | None:
    """Three axes are read from constant weights alone, and gaps between planes are taken for none."""
    if not node.operand(1).is_const:
        return "its weights are computed"
    shape = kernel_of(node)
    unread = every_attribute(node)
    if unread is None and shape is not None and shape[0] > 1 and attribute(node, "dilations")[0] > 1:
        return "it has gaps between planes"
    return unread


def one_group_or_constant(node: Node) -> str | None:
    """Groups of computed weights are mixed up."""
    if not node.operand(1).is_const and attribute(node, "group") != 1:
        return "its weights are computed, in groups"
    shape = kernel_of(node)
    unread = every_attribute(node)
    if unread is None and shape is not None:
        found = window(node, shape)
        if any(max(pair) >= reach for pair, reach in zip(found.around, found.reach, strict=True)):
            return "it takes away more than a kernel covers"
    return unread


def plain(node: Node) -> str | None:
    """Rounding up, gaps and places of the largest are not read as they are meant; of ``auto_pad``, one is."""
    return None if is_plain(node) or is_same_upper(node) else "its attributes are not written out"


def scale_of_one_size(node: Node) -> str | None:
    """The converter reads as many numbers as the axes have that are normalised."""
    x = node.operand(0)
    axis = int(attribute(node, "axis")) % (x.rank or 1)
    if len(node.outputs) > 1:
        return "its statistics are read"
    for value in node.inputs[1:]:
        if value is not None and value.shape != x.dims[axis:]:
            return "its scale is stretched"
    return None


def in_inference(node: Node) -> str | None:
    """The converter wants constants."""
    if len(node.outputs) > 1 or attribute(node, "training_mode"):
        return "it trains"
    if any(value is None or not value.is_const for value in node.inputs[1:]):
        return "its parameters are computed"
    return None


def odd_size(node: Node) -> str | None:
    """Even numbers of neighbours are taken from the other side."""
    return None if attribute(node, "size") % 2 else "it is not right for an even size"


def column_order(node: Node) -> str | None:
    """The converter does not read the order."""
    return None if text(node, "mode") in ("DCR", "None") else "it is not right in this order"


def sampled(node: Node) -> str | None:
    """What reflects, and cubic interpolation, are not read; halves are not rounded to even."""
    if text(node, "mode") != "linear" or text(node, "padding_mode") == "reflection":
        return f"it is not right for {text(node, 'mode')}, {text(node, 'padding_mode')}"
    return None


def interpolated(node: Node) -> str | None:
    """Other attributes are not read; places between elements are computed from sizes, not from scales."""
    x, scales, wanted = node.operand(0), numbers(node.input(2)), numbers(node.input(3))
    if attribute(node, "axes") or attribute(node, "antialias") or text(node, "keep_aspect_ratio_policy") != "stretch":
        return "not all of its attributes are read"
    if attribute(node, "exclude_outside"):
        return "not all of its attributes are read"
    if scales is not None and scales.size:
        ratios = [float(each) for each in scales]
        if ratios[:2] != [1, 1]:
            return "it resizes more than two axes"
    elif node.input(3) is None:
        return "its scales are computed"
    else:
        made = node.output.dims
        if made[:2] != x.dims[:2]:
            return "it may resize more than two axes"
        ratios = []
        if wanted is not None and all(isinstance(each, int) for each in x.dims[2:]):
            ratios = [one / other for one, other in zip(wanted[2:], x.dims[2:], strict=True)]
    mode, places = text(node, "mode"), text(node, "coordinate_transformation_mode")
    if places == "align_corners" and scales is not None and any(
        not isinstance(dim, int) or abs(ratio * dim - round(ratio * dim)) > 1e-4
        for ratio, dim in zip(ratios, x.dims, strict=False) if ratio != int(ratio)
    ):  # fmt: skip
        return "its scales may not make whole numbers of elements, of which the corners are aligned"
    if mode == "linear" and places in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"):
        return None
    if (
        mode == "cubic"
        and places in ("asymmetric", "align_corners")
        and isclose(attribute(node, "cubic_coeff_a"), -0.75)
    ):
        return None
    rounding = text(node, "nearest_mode")
    if mode == "nearest" and (places, rounding) == ("half_pixel", "round_prefer_floor"):
        return None
    if mode == "nearest" and (places, rounding) == ("asymmetric", "floor"):
        whole = all(each == int(each) or 1 / each == int(1 / each) for each in ratios)
        return None if ratios and whole else "it is not right for scales that are no whole numbers"
    return f"it is not right for {mode}, {places}, {rounding}"


def recurrent(node: Node) -> str | None:
    """What is left unread, and names that are missing, give other numbers or end the process."""
    return None if is_right(node) else "it is not right in this form"


ROWS = (
    Right("Conv", "sweep of 600 runs, computed weights among them", SINGLE, PAIR, every_attribute),
    Right("Conv", "sweep of 270 runs", SINGLE, range(5, 6), constant_kernel),
    Right("ConvTranspose", "sweep of 490 runs, computed weights among them", SINGLE, PAIR, one_group_or_constant),
    Right("MaxPool", "sweep of 120 runs; elements below -2^24 count as -2^24", SINGLE, PAIR, plain),
    Right("AveragePool", "sweep of 110 runs", SINGLE, PAIR, plain),
    Right("GlobalAveragePool", "sweep of 61 runs", SINGLE, range(3, 5)),
    Right("GlobalMaxPool", "sweep of 56 runs", SINGLE, range(3, 5)),
    Right("BatchNormalization", "sweep of 95 runs", SINGLE, range(2, 6), in_inference),
    Right("InstanceNormalization", "sweep of 180 runs, computed parameters among them", SINGLE, range(3, 6)),
    Right("LayerNormalization", "sweep of 190 runs, computed parameters among them", SINGLE, range(1, 7), scale_of_one_size),
    Right("LRN", "sweep of 15 runs; test_lrn", SINGLE, PAIR, odd_size),
    Right("MeanVarianceNormalization", "sweep of 80 runs", SINGLE, range(3, 6)),
    Right("DepthToSpace", "sweep of 93 runs", SINGLE, PAIR),
    Right("SpaceToDepth", "sweep of 92 runs", SINGLE, PAIR, column_order),
    Right("GridSample", "sweep of 150 runs", SINGLE, range(4, 6), sampled),
    Right("Resize", "sweep of 500 runs, and of 500 with lengths of 1 to 127", (*[SINGLE] * 3, INDEX), PAIR, interpolated),
    Right("LSTM", "sweep of 400 runs forwards, 300 both ways", SINGLE, range(3, 4), recurrent),
    Right("RNN", "sweep of 400 runs forwards, 300 both ways", SINGLE, range(3, 4), recurrent),
    Right("GRU", "sweep of 180 runs forwards, 130 both ways", SINGLE, range(3, 4), recurrent),
)  # fmt: skip
"""What is right."""
