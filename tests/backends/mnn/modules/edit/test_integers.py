"""Quantized graphs compute with integers in MNN, and give what onnxruntime gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import numpy_helper

from backends.mnn.target.environments import ReleaseEnvironments
from tests.support.modules.quantized import Chain, compiled, exact, quantized, run, step_of

pytestmark = pytest.mark.mnn

KINDS = {
    "asymmetric": ("u8s8", {}),
    "signed": ("s8s8", {}),
    "symmetric": ("s8s8", {"ActivationSymmetric": True}),
    "whole tensors": ("u8s8", {"per_channel": False}),
}
"""Ways in which onnxruntime quantizes, of those that MNN computes with integers."""


def small(chain: Chain) -> str:
    """A little of everything that networks for images are made of."""
    x = chain.add("Relu", chain.conv("x", 3, 16, 3, strides=[2, 2]))
    x = chain.add("Clip", chain.conv(x, 16, 16, 3, group=16), chain.const(np.float32(0)), chain.const(np.float32(6)))
    y = chain.add("Relu", chain.conv(x, 16, 24))
    y = chain.add("Add", y, chain.conv(y, 24, 24, 3))
    y = chain.add("Concat", chain.add("Relu", y), chain.conv(x, 16, 8), axis=1)
    y = chain.add("GlobalAveragePool", chain.conv(y, 32, 40))
    flat = chain.add("Reshape", y, chain.const(np.array([0, -1], np.int64)))
    matrix = chain.random.standard_normal((40, 10)).astype(np.float32) / 6
    return chain.add("Gemm", flat, chain.const(matrix), chain.const(np.arange(10, dtype=np.float32)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_convolution_computes_with_integers(kind: str, tmp_path):
    types, options = KINDS[kind]
    chain = Chain([2, 3, 18, 18])
    model, feeds = chain.model(small(chain)), chain.feeds()
    model = quantized(model, feeds, tmp_path, types, **options)
    _, found, net = compiled(model, tmp_path)
    convolutions = [op for op in net["oplists"] if op.get("main_type") == "Convolution2D"]
    assert len(convolutions) == 7 and not found.floats and not found.lost
    described = {item["index"]: item["quantInfo"] for item in net["extraTensorDescribe"]}
    for op in convolutions:
        assert op["main"]["quanParameter"]["aMaxOrBits"] == 8 and "weight" not in op["main"]
        assert described[op["inputIndexes"][0]]["type"] == described[op["outputIndexes"][0]]["type"] == "DT_INT8"
    want, got = exact(model, feeds[0]), run(tmp_path, feeds[0])
    assert np.abs(want - got).max() <= 2.01 * step_of(model)
    assert np.abs(want - exact(tmp_path / "float.onnx", feeds[0])).max() > 0


def test_every_release_computes_the_same(tmp_path):
    chain = Chain([2, 3, 18, 18])
    model, feeds = chain.model(small(chain)), chain.feeds()
    compiled(quantized(model, feeds, tmp_path), tmp_path)
    want = run(tmp_path, feeds[0])
    releases = ReleaseEnvironments().available()
    if not releases:
        pytest.skip("python -m tools.releases makes the environments of releases")
    for interpreter in releases.values():
        packages = next(interpreter.parent.parent.glob("lib/python*/site-packages"))
        np.testing.assert_array_equal(run(tmp_path, feeds[0], packages), want)


def between(make: Callable[[Chain, str, str], str]) -> Callable[[Chain], str]:
    """What an operator makes of two convolutions, between those and a third."""
    return lambda chain: chain.conv(make(chain, chain.conv("x", 8, 16), chain.conv("x", 8, 16)), 16, 8)


CASES: dict[str, tuple[Callable[[Chain, str, str], str], int]] = {
    "pooling": (lambda c, a, b: c.add("MaxPool", a, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 2),
    "average": (lambda c, a, b: c.add("GlobalAveragePool", a), 2),
    "maximum": (lambda c, a, b: c.add("Max", a, b), 2),
    "sum with ReLU": (lambda c, a, b: c.add("Relu", c.add("Add", a, b)), 4),
    "product": (lambda c, a, b: c.add("Mul", a, b), 4),
    "leaky": (lambda c, a, b: c.add("LeakyRelu", a, alpha=0.1), 2),
    "sigmoid": (lambda c, a, b: c.add("Sigmoid", a), 2),
    "softmax": (lambda c, a, b: c.add("Softmax", a, axis=1), 2),
    "transpose": (lambda c, a, b: c.add("Transpose", a, perm=[0, 1, 3, 2]), 2),
    "doubled": (
        lambda c, a, b: c.add("Resize", a, "", c.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest",
                              coordinate_transformation_mode="asymmetric", nearest_mode="floor"), 2,
    ),
}  # fmt: skip
"""Operators between convolutions, and how many operators compute with integers there."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["asymmetric", "symmetric"])
def test_operators_between_are_right(name: str, kind: str, tmp_path):
    make, count = CASES[name]
    types, options = KINDS[kind]
    chain = Chain([2, 8, 11, 9])
    model, feeds = chain.model(between(make)(chain)), chain.feeds()
    model = quantized(model, feeds, tmp_path, types, **options)
    _, found, _ = compiled(model, tmp_path)
    assert len(found.integer) == count
    steps = np.abs(exact(model, feeds[0]) - run(tmp_path, feeds[0])).max() / step_of(model)
    assert steps <= 2.01


def test_groups_become_convolutions_of_integers(tmp_path):
    chain = Chain([1, 16, 9, 9])
    model = chain.model(chain.conv(chain.add("Relu", chain.conv("x", 16, 32, 3, group=4)), 32, 8))
    feeds = chain.feeds()
    model = quantized(model, feeds, tmp_path)
    _, found, _ = compiled(model, tmp_path)
    assert len(found.integer) == 5 and not found.floats
    assert np.abs(exact(model, feeds[0]) - run(tmp_path, feeds[0])).max() <= 1.01 * step_of(model)


def test_weights_with_zeros_keep_their_codes_and_compute_with_floats(tmp_path):
    chain = Chain([1, 8, 9, 9], seed=5)
    model = chain.model(chain.conv(chain.add("Relu", chain.conv("x", 8, 32, 3)), 32, 8))
    feeds = chain.feeds()
    model = quantized(model, feeds, tmp_path, "u8u8", per_channel=False)
    _, found, _ = compiled(model, tmp_path)
    assert found.stored == {8: 2} and not found.integer
    assert set(found.floats.values()) == {"its weights have zeros"}
    assert np.abs(exact(model, feeds[0]) - run(tmp_path, feeds[0])).max() <= 2.01 * step_of(model)


def test_depthwise_weights_of_dead_channels_are_raised_to_what_the_kernel_takes(tmp_path):
    chain = Chain([1, 16, 9, 9])
    x = chain.add("Relu", chain.conv("x", 16, 16, 3, group=16))
    dead = numpy_helper.to_array(chain.constants[0]).copy()
    dead[3:5] *= 1e-5
    chain.constants[0].CopyFrom(numpy_helper.from_array(dead, "c0"))
    model, feeds = chain.model(chain.conv(x, 16, 8)), chain.feeds()
    model = quantized(model, feeds, tmp_path)
    _, found, net = compiled(model, tmp_path)
    scales = next(op for op in net["oplists"] if op["type"] == "ConvolutionDepthwise")["main"]["quanParameter"]["alpha"]
    assert (np.sort(scales)[:2] == np.float32(1e-6)).all() and len(found.integer) == 2
    assert np.abs(exact(model, feeds[0]) - run(tmp_path, feeds[0])).max() <= 1.01 * step_of(model)


def test_means_over_planes_are_exact(tmp_path):
    chain = Chain([1, 8, 20, 20])
    mean = chain.add("Flatten", chain.add("GlobalAveragePool", chain.add("Relu", chain.conv("x", 8, 16, 3))))
    matrix = chain.random.standard_normal((16, 10)).astype(np.float32)
    model, feeds = chain.model(chain.add("Gemm", mean, chain.const(matrix))), chain.feeds()
    model = quantized(model, feeds, tmp_path)
    _, found, net = compiled(model, tmp_path)
    assert len(found.integer) == 2 and {"Pooling"} == {op["type"] for op in net["oplists"] if "Pool" in op["type"]}
    assert np.abs(exact(model, feeds[0]) - run(tmp_path, feeds[0])).max() <= 1.01 * step_of(model)
