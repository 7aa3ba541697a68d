"""Small convolutional networks with random weights, as graphs, and inputs for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from ir.quant.statistics.samples import ArraySamples, CalibrationSamples, split
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse

PLAIN = """lading 1
graph plain {
  opset "" 17
  input %x: f32[2, 3, 8, 8]
  %a = Conv(%x, @w1, @b1) {pads = [1, 1, 1, 1]}
  %r = Relu(%a)
  %p = MaxPool(%r) {kernel_shape = [2, 2], strides = [2, 2]}
  %c = Conv(%p, @w2, @b2) {pads = [1, 1, 1, 1]}
  %s = Relu(%c)
  %g = GlobalAveragePool(%s)
  %f = Flatten(%g)
  %y = Gemm(%f, @w3, @b3) {transB = 1}
  output %y
}
"""
"""Two convolutions, a pool between them, and a linear layer."""

BRANCHED = """lading 1
graph branched {
  opset "" 17
  input %x: f32[1, 3, 8, 8]
  %a = Conv(%x, @w1, @b1) {pads = [1, 1, 1, 1]}
  %r = Clip(%a, @zero, @six)
  %d = Conv(%r, @w2, @b2) {pads = [1, 1, 1, 1], group = 8}
  %e = Relu(%d)
  %q = Conv(%e, @w3, @b3)
  %t = Add(%q, %x)
  %u = Resize(%t, _, @scales) {mode = "nearest"}
  %k = Concat(%u, %u) {axis = 1}
  %y = Sigmoid(%k)
  output %y
}
"""
"""A block with a depthwise convolution and a shortcut, and what detectors end with."""


def built(text: str, shapes: Sequence[tuple[str, tuple[int, ...]]], seed: int = 0, **others: np.ndarray) -> Graph:
    """A graph whose constants are random, apart from those that are given.

    Args:
        text: the graph without them.
        shapes: name and shape of each random one.
        seed: of the random numbers.
        others: further constants by name.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in shapes:
        spread = np.sqrt(2 / max(1, np.prod(shape[1:]))) if len(shape) > 1 else 0.1
        arrays[name] = (rng.standard_normal(shape) * spread).astype(np.float32)
    arrays |= others
    lines = "\n".join(f"  const @{name}: {_type(array)} = {_numbers(array)}" for name, array in arrays.items())
    head, body = text.split("  input", 1)
    graph = parse(f"{head}{lines}\n  input{body}")
    infer_types(graph)
    return graph


def _type(array: np.ndarray) -> str:
    return f"f32[{', '.join(map(str, array.shape))}]"


def _numbers(array: np.ndarray) -> str:
    return f"[{', '.join(repr(float(item)) for item in array.reshape(-1))}]"


def plain_cnn(seed: int = 0) -> Graph:
    """A network of `PLAIN`."""
    shapes = [("w1", (8, 3, 3, 3)), ("b1", (8,)), ("w2", (12, 8, 3, 3)), ("b2", (12,)), ("w3", (5, 12)), ("b3", (5,))]
    return built(PLAIN, shapes, seed)


def branched_cnn(seed: int = 0) -> Graph:
    """A network of `BRANCHED`."""
    shapes = [
        ("w1", (8, 3, 3, 3)),
        ("b1", (8,)),
        ("w2", (8, 1, 3, 3)),
        ("b2", (8,)),
        ("w3", (3, 8, 1, 1)),
        ("b3", (3,)),
    ]
    scales, zero, six = np.array([1, 1, 2, 2], np.float32), np.array(0, np.float32), np.array(6, np.float32)
    return built(BRANCHED, shapes, seed, scales=scales, zero=zero, six=six)


def samples_for(graph: Graph, count: int = 20, seed: int = 1) -> CalibrationSamples:
    """Inputs that are normally distributed."""
    rng = np.random.default_rng(seed)
    feeds = [
        {value.name: rng.standard_normal(value.sizes).astype(np.float32) for value in graph.inputs}
        for _ in range(count)
    ]
    return split(ArraySamples(feeds))


def with_const(graph: Graph, name: str, array: np.ndarray) -> Graph:
    """The graph with other contents of a constant."""
    graph.set_const(graph.value(name), InlineTensor(array))
    return graph
