"""Convolution, pooling, resizing, sampling, normalisation, recurrence and signals for MNN.

Each rewrite gives the numbers of its operator without MNN, and what the table calls right is right on MNN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from onnx import TensorProto

from backends.mnn.modules.build import Build
from backends.mnn.modules.child import Converter
from backends.mnn.modules.legalize import _replaced
from backends.mnn.modules.rewrites.vision import REWRITES
from backends.mnn.modules.table.rows import why_not
from backends.mnn.target.releases import target
from backends.onnx.write import write
from frontends.onnx.load import load as load_onnx
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from passes.canonicalize.fold import Fold
from passes.framework.context import PassContext
from passes.framework.load import load
from passes.framework.manager import PassManager
from tests.support.modules.models import legal, one_node
from tests.support.modules.sweep import OneNode, assert_same, held

RNG = np.random.default_rng(11)
RELEASES = target().versions


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def case(op: str, *operands: np.ndarray | None, fed: int = 1, outputs: int = 1, opset: int = 23, **attrs) -> OneNode:
    """A node of which all operands but the first few are constants."""
    return OneNode(op, operands, range(fed, len(operands)), opset, outputs, attrs)


def convolutions() -> Iterator[OneNode]:
    for op in ("Conv", "ConvTranspose"):
        for axes in (1, 2, 3):
            x, w, bias = normal(2, 4, *(7, 6, 5)[:axes]), normal(4, 4, *(3, 2, 3)[:axes]), normal(4)
            steps = (2, 1, 2)[:axes]
            for fed in (1, 3):
                yield case(op, x, w, bias, fed=fed, strides=steps, pads=[1, 0, 1][:axes] + [0, 1, 1][:axes])
            grouped = normal(4, 2, *(3, 2, 3)[:axes])
            for fed in (1, 2):
                yield case(op, x, grouped, fed=fed, group=2, dilations=(2, 1, 2)[:axes])
            for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
                yield case(op, x, w, strides=steps, auto_pad=auto)
    x, w = normal(1, 2, 5, 4), normal(2, 3, 3, 3)
    yield case("ConvTranspose", x, w, strides=[2, 2], output_shape=[10, 8])
    yield case("ConvTranspose", x, w, strides=[3, 2], output_padding=[2, 1], pads=[1, 1, 0, 2])


def pools() -> Iterator[OneNode]:
    for axes in (1, 2, 3):
        x = normal(2, 3, *(8, 7, 6)[:axes])
        kernel, strides = (3, 2, 3)[:axes], (2, 1, 2)[:axes]
        pads = [1, 0, 1][:axes] + [0, 1, 1][:axes]
        for op, more in (
            ("MaxPool", {}),
            ("AveragePool", {}),
            ("AveragePool", {"count_include_pad": 1}),
            ("LpPool", {"p": 3}),
        ):
            yield case(op, x, kernel_shape=kernel, **more)
            yield case(op, x, kernel_shape=kernel, strides=strides, pads=pads, **more)
            yield case(op, x, kernel_shape=kernel, strides=strides, ceil_mode=1, **more)
            yield case(op, x, kernel_shape=kernel, strides=strides, dilations=(1, 2, 2)[:axes], pads=pads, **more)
            yield case(op, x, kernel_shape=kernel, strides=strides, auto_pad="SAME_LOWER", **more)
        for order in (0, 1):
            yield case("MaxPool", x, kernel_shape=kernel, strides=strides, pads=pads, storage_order=order, outputs=2)
        for op in ("GlobalAveragePool", "GlobalMaxPool"):
            yield case(op, x)
    yield case("MaxUnpool", np.array([[[[5, 6], [7, 8]]]], np.float32), np.array([[[[5, 7], [13, 15]]]]),
               kernel_shape=[2, 2], strides=[2, 2])  # fmt: skip


def resizes() -> Iterator[OneNode]:
    x = normal(1, 2, 5, 6)
    for places in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners"):
        for scales in ([1, 1, 2, 1.5], [1, 1, 0.6, 0.5]):
            given = np.array(scales, np.float32)
            for mode in ("linear", "cubic"):
                yield case("Resize", x, None, given, mode=mode, coordinate_transformation_mode=places)
            roundings = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
            for rounding in roundings if places != "half_pixel_symmetric" else ():
                yield case("Resize", x, None, given, mode="nearest", nearest_mode=rounding,
                           coordinate_transformation_mode=places)  # fmt: skip
    sizes = np.array([7, 8])
    for policy in ("stretch", "not_larger", "not_smaller"):
        yield case("Resize", x, None, None, sizes, axes=[2, 3], mode="linear", keep_aspect_ratio_policy=policy)
    for mode in ("linear", "cubic"):
        yield case("Resize", x, None, np.array([1, 1, 0.6, 0.6], np.float32), mode=mode, antialias=1)
    yield case(
        "Resize", x, None, np.array([1, 1, 0.8, 1.3], np.float32), mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5
    )
    part = np.array([0, 0, -0.2, 0.1, 1, 1, 0.7, 1.1], np.float32)
    yield case("Resize", x, part, None, np.array([1, 2, 4, 3]), mode="linear",
               coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=9.0)  # fmt: skip
    yield case("Resize", normal(2, 3, 4, 4, 5), None, np.array([1, 1, 2, 1, 1.5], np.float32), mode="linear")


def samples() -> Iterator[OneNode]:
    x, grid = normal(2, 3, 4, 5), (RNG.random((2, 3, 4, 2)) * 2.8 - 1.4).astype(np.float32)
    for mode in ("linear", "nearest", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            for aligned in (0, 1):
                yield case("GridSample", x, grid, fed=2, mode=mode, padding_mode=padding, align_corners=aligned)
    yield case("Col2Im", normal(2, 3 * 6, 12), np.array([6, 5]), np.array([2, 3]), dilations=[2, 1])
    offset, mask = normal(1, 2 * 2 * 4, 4, 3), RNG.random((1, 2 * 4, 4, 3)).astype(np.float32)
    yield case("DeformConv", normal(1, 4, 5, 4), normal(3, 4, 2, 2), offset, normal(3), mask, fed=5, offset_group=2)
    yield case("SpaceToDepth", normal(2, 3, 4, 6), blocksize=2)
    yield case("DepthToSpace", normal(2, 12, 3, 2), blocksize=2, mode="CRD")


def norms() -> Iterator[OneNode]:
    x = normal(2, 4, 5, 3)
    four = [np.abs(normal(4)) + np.float32(0.2) for _ in range(4)]
    for fed in (1, 5):
        yield case("BatchNormalization", x, *four, fed=fed, epsilon=0.01)
    yield case("BatchNormalization", x, *four, outputs=3, training_mode=1, momentum=0.7)
    for op in ("InstanceNormalization", "GroupNormalization"):
        yield case(op, x, *four[:2], **({"num_groups": 2} if op.startswith("G") else {}))
    for axis, shape in ((-1, (3,)), (2, (5, 3)), (2, (3,)), (1, (4, 5, 3))):
        yield case("LayerNormalization", x, normal(*shape), normal(*shape), fed=3, axis=axis)
    yield case("LayerNormalization", x, normal(3), outputs=3)
    yield case("LRN", x, size=3, alpha=0.1, beta=0.6, bias=2.0)
    flat = normal(2, 3, 4)
    flat[0, 1] = 0
    for order in (1, 2):
        yield case("LpNormalization", flat, p=order, axis=-1)


def recurrences() -> Iterator[OneNode]:
    for op, gates, results in (("RNN", 1, 2), ("GRU", 3, 2), ("LSTM", 4, 3)):
        for way in ("forward", "reverse", "bidirectional"):
            count = 2 if way == "bidirectional" else 1
            weights = [normal(count, gates * 3, size) * np.float32(0.5) for size in (2, 3)]
            bias, states = normal(count, 2 * gates * 3), [normal(count, 2, 3) for _ in range(results - 1)]
            said: Mapping = {"hidden_size": 3, "direction": way}
            x = normal(4, 2, 2)
            yield case(op, x, *weights, outputs=results, **said)
            yield case(op, x, *weights, bias, None, *states, outputs=1, **said)
            yield case(op, x, *weights, bias, np.array([4, 2], np.int32), outputs=results, **said)
            if op == "GRU":
                yield case(op, x, *weights, bias, linear_before_reset=1, outputs=2, **said)
    peepholes = [
        normal(1, 12, 2),
        normal(1, 12, 3),
        normal(1, 24),
        None,
        normal(1, 2, 3),
        normal(1, 2, 3),
        normal(1, 9),
    ]
    yield case("LSTM", normal(4, 2, 2), *peepholes, hidden_size=3, outputs=3, clip=0.8)
    yield case("RNN", normal(4, 2, 2), normal(1, 3, 2), normal(1, 3, 3), hidden_size=3, outputs=2, activations=["Relu"])


def signals() -> Iterator[OneNode]:
    for parts in (1, 2):
        x = normal(2, 6, 5, parts)
        for length in (None, np.array(4), np.array(8)):
            yield case("DFT", x, length, np.array(1))
            yield case("DFT", x, length, np.array(-2), inverse=1)
    yield case("DFT", normal(2, 6, 1), None, np.array(1), onesided=1)
    yield case("STFT", normal(2, 20, 1), np.array(4), np.abs(normal(8)), np.array(8), onesided=0)
    yield case("STFT", normal(2, 20, 1), np.array(3), None, np.array(6), onesided=0)


CASES = {
    name: list(make())
    for name, make in {
        "convolutions": convolutions, "pools": pools, "resizes": resizes, "samples": samples, "norms": norms,
        "recurrences": recurrences, "signals": signals,
    }.items()
}  # fmt: skip


def rewritten(item: OneNode) -> Graph:
    """What the rewrites of this room make of a node; what other rooms would make of that is left."""
    graph, ctx = load_onnx(item.model()), PassContext(target())
    PassManager(load("canonicalize,infer-types")).run(graph, ctx)
    changed = True
    while changed:
        changed = False
        for node in [node for node in graph.nodes if node.op in REWRITES and why_not(node, RELEASES) is not None]:
            for rewrite in REWRITES[node.op]:
                b = Build(node)
                results = rewrite(node, b)
                assert results is not None or not b.made, f"{item}: {rewrite.__name__} built and gave nothing"
                if _replaced(node, results, b) is not None:
                    changed = True
                    break
        Fold().run(graph, ctx)
    left = [node for node in graph.nodes if node.op in REWRITES and why_not(node, RELEASES) is not None]
    assert not left, f"{item}: {left[0]!r}: {why_not(left[0], RELEASES)}"
    return graph


@pytest.mark.parametrize("name", CASES)
def test_what_nodes_are_made_of_gives_their_numbers(name):
    for item in CASES[name]:
        graph = rewritten(item)
        found = evaluate(graph, held(graph, item.feeds))
        assert_same([found[value.name] for value in graph.outputs], item.wanted(), item)


@pytest.mark.mnn
@pytest.mark.parametrize("name", CASES)
def test_nodes_are_right_on_mnn(name, tmp_path):
    with Converter() as converter:
        for item in CASES[name]:
            graph = rewritten(item)
            PassManager(load("dce,infer-types")).run(graph, PassContext(target()))
            out = tmp_path / "model.mnn"
            out.unlink(missing_ok=True)
            write(graph, tmp_path / "model.onnx")
            converter.convert(tmp_path / "model.onnx", out)
            feeds = {
                key: array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
                for key, array in held(graph, item.feeds).items()
            }
            found = converter.run(out, feeds, [value.name for value in graph.outputs])
            assert_same(list(found.values()), item.wanted(), item)


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike"])
def test_random_numbers_have_no_form(op):
    from ir.base.diag import LadingError

    shape = [(TensorProto.FLOAT, [2, 3])]
    with pytest.raises(LadingError, match=f"{op} has no form that MNN computes right") as caught:
        legal(one_node(op, shape, shape))
    assert caught.value.code == "P378"


@pytest.mark.mnn
@pytest.mark.parametrize("way", ["forward", "reverse"])
def test_weights_of_any_size_stay_constants(way, tmp_path):
    """Weights too large to be folded, initial states, and sequences of a length that the model leaves open."""
    states = [normal(1, 2, 96) for _ in range(2)]
    weights = [normal(1, 384, size) * np.float32(0.1) for size in (64, 96)]
    item = case("LSTM", normal(4, 2, 64), *weights, normal(1, 768), None, *states, outputs=3, hidden_size=96,
                direction=way)  # fmt: skip
    item.constant = (1, 2, 3)
    model = item.model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "length"
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    write(legal(model), tmp_path / "model.onnx")
    with Converter() as converter:
        converter.convert(tmp_path / "model.onnx", tmp_path / "model.mnn")
        for length in (1, 2, 5):
            item.operands = [normal(length, 2, 64), *item.operands[1:]]
            found = converter.run(tmp_path / "model.mnn", item.feeds, ["y0", "y1", "y2"])
            assert_same(list(found.values()), item.wanted(), item)
