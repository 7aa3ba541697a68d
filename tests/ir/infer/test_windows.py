"""Types of convolutions are those that ONNX's own inference gives, which is asked where the rule has no say."""

import pytest

from ir.base.types import F32, Dim, TensorType
from ir.graph.graph import Graph
from ir.infer.by_onnx import infer_by_onnx
from ir.infer.engine import infer_node
from ir.infer.inference import Inference
from ir.infer.rule_table import TypeMismatch

CASES = [
    ((2, 4, 9, 8), (6, 4, 3, 3), {}),
    ((2, 4, 9, 8), (6, 2, 3, 2), {"group": 2, "strides": (2, 1), "pads": (1, 0, 2, 1)}),
    ((2, 4, 9, 8), (6, 4, 3, 3), {"dilations": (2, 3), "kernel_shape": (3, 3)}),
    ((2, 4, 9), (6, 4, 3), {"strides": (4,)}),
    ((2, 4, 5, 6, 7), (6, 4, 1, 2, 3), {"pads": (0, 1, 1, 0, 0, 1)}),
    ((Dim("n"), 4, Dim("h"), 8), (6, 4, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ((2, 4, 9, 8), (6, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
    ((2, 4, 9, 8), (6, 4, 3, 3), {"auto_pad": "VALID"}),
    ((2, 4, 9, 8), (6, 4, Dim("k"), 3), {}),
    ((2, 4, 9, 8), (6, 4, Dim("k"), 3), {"kernel_shape": (5, 3)}),
]


def convolution(x, weight, attrs):
    graph = Graph("g", {"": 17})
    inputs = [graph.add_input(name, TensorType(F32, shape)) for name, shape in (("x", x), ("w", weight))]
    return graph.add("Conv", inputs, attrs)


@pytest.mark.parametrize(("x", "weight", "attrs"), CASES)
def test_a_convolution_has_the_type_that_onnx_gives(x, weight, attrs):
    node = convolution(x, weight, attrs)
    run = Inference(node.home, lazy=True)
    (wanted,) = infer_by_onnx(run, node)
    (found,) = infer_node(node)
    assert found.dtype == wanted.dtype
    if wanted.shape is None:
        assert found.shape is None
        return
    assert len(found.shape) == len(wanted.shape)
    for size, other in zip(found.shape, wanted.shape, strict=True):
        assert size == other or (other is None and isinstance(size, Dim))


@pytest.mark.parametrize(
    ("x", "weight", "attrs"),
    [
        ((2, 4, 9, 8), (6, 4, 3, 3), {"strides": (1,)}),
        ((2, 4, 9, 8), (6, 4, 3, 3), {"pads": (1, 1)}),
        ((2, 4, 9, 8), (6, 4, 3, 3), {"kernel_shape": (3,)}),
    ],
)
def test_what_does_not_fit_is_left_to_onnx_which_refuses_it(x, weight, attrs):
    with pytest.raises(TypeMismatch):
        infer_node(convolution(x, weight, attrs))
