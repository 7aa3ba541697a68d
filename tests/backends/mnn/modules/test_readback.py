"""Parameters and weights of converted nets are held against the graph that they were made from."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.mnn.modules.child import Converter
from backends.mnn.modules.emit import expected_seconds
from backends.mnn.modules.readback.check_net import check_net
from backends.mnn.modules.readback.parameters import differences
from backends.mnn.modules.readback.weights import lost_weights
from backends.mnn.read.net_file import read_net
from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.onnx.export import write_model
from passes.framework.context import PassContext
from passes.framework.manager import PassManager

F32 = TensorProto.FLOAT
IMAGE = ["n", 4, 8, 8]


def constant(name, *shape):
    return numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), name)


def graph_of(op, consts=(), shape=IMAGE, **attrs):
    """One node with an input ``x`` and constants."""
    inits = [constant(f"c{place}", *each) for place, each in enumerate(consts)]
    node = helper.make_node(op, ["x", *(item.name for item in inits)], ["y"], **attrs)
    ports = [helper.make_tensor_value_info("x", F32, shape)], [helper.make_tensor_value_info("y", F32, None)]
    model = helper.make_model(
        helper.make_graph([node], "g", *ports, inits), opset_imports=[helper.make_opsetid("", 22)]
    )
    graph = load(model)
    PassManager("infer-types").run(graph, PassContext())
    return graph


CASES = [
    ("Conv", [(6, 4, 3, 5), (6,)], {"pads": [1, 2, 1, 2], "strides": [2, 1], "dilations": [1, 2]}),
    ("Conv", [(6, 2, 3, 3)], {"pads": [1, 1, 1, 1], "group": 2}),
    ("Conv", [(4, 1, 3, 3)], {"group": 4}),
    ("ConvTranspose", [(4, 6, 3, 3)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("MaxPool", [], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0], "ceil_mode": 1}),
    ("AveragePool", [], {"kernel_shape": [2, 3], "strides": [1, 1], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("GlobalAveragePool", [], {}),
    ("Softmax", [], {"axis": -2}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("ArgMax", [], {"axis": 2, "keepdims": 0}),
    ("Cast", [], {"to": TensorProto.INT64}),
    ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}),
    ("LRN", [], {"size": 3, "alpha": 0.25, "beta": 0.5, "bias": 2.0}),
    ("LayerNormalization", [(8,), (8,)], {"axis": -1, "epsilon": 1e-3}),
    ("LeakyRelu", [], {"alpha": 0.2}),
    ("Elu", [], {"alpha": 0.2}),
    ("MatMul", [(8, 5)], {}),
]


@pytest.mark.mnn
def test_what_the_converter_writes_is_found_right():
    with Converter() as converter:
        found = {
            place: _fault(converter, graph_of(op, consts, **attrs)) for place, (op, consts, attrs) in enumerate(CASES)
        }
    assert {CASES[place][0]: fault for place, fault in found.items() if fault} == {}


def _fault(converter, graph, written=None):
    """What is wrong with the net of a graph, converted as another one where that is given."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "model.onnx", Path(folder) / "model.mnn"
        write_model(written if written is not None else graph, source)
        log = converter.convert(source, made)
        try:
            check_net(made, graph, log)
        except LadingError as error:
            return str(error.diagnostics[0].message)
    return ""


OTHERS = [
    ("Conv", [(6, 4, 3, 3)], {"strides": [2, 1]}, {"strides": [1, 2]}, "strideY of a Convolution is 1 and should be 2"),
    ("Conv", [(6, 4, 3, 3)], {"pads": [1, 1, 1, 1]}, {}, "padY of a Convolution is 0 and should be 1"),
    (
        *("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2]}, {"kernel_shape": [2, 2]}),
        "strideY of a Pooling is 0 and should be 2",
    ),
    ("Softmax", [], {"axis": 1}, {"axis": 3}, "axis of a Softmax is 3 and should be 1"),
    ("Transpose", [], {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}, "dims of a Permute is"),
    ("LayerNormalization", [(8,), (8,)], {"epsilon": 1e-3}, {"epsilon": 1e-2}, "epsilon of a LayerNorm is 0.01"),
    ("Cast", [], {"to": TensorProto.INT32}, {"to": TensorProto.FLOAT8E5M2}, "dstT of a Cast is DT_INVALID"),
]


@pytest.mark.mnn
@pytest.mark.parametrize(("op", "consts", "meant", "written", "told"), OTHERS, ids=lambda value: str(value)[:12])
def test_another_parameter_is_found(op, consts, meant, written, told):
    with Converter() as converter:
        assert told in _fault(converter, graph_of(op, consts, **meant), graph_of(op, consts, **written))


@pytest.mark.mnn
def test_a_weight_that_is_gone_is_found(tmp_path):
    with Converter() as converter:
        graph = graph_of("Conv", [(6, 4, 3, 3)])
        write_model(graph_of("Conv", [(5, 4, 3, 3)]), tmp_path / "model.onnx")
        converter.convert(tmp_path / "model.onnx", tmp_path / "model.mnn")
    ops = read_net(tmp_path / "model.mnn")["oplists"]
    assert [text for text, _ in lost_weights(ops, graph)] == [
        "the weight 'c0' of 216 numbers is nowhere in the converted model"
    ]
    assert [text for text, _ in differences(ops, graph)] == ["common.outputCount of a Convolution is 5 and should be 6"]


def test_the_time_of_a_conversion_grows_with_the_square():
    def products(count):
        nodes = [helper.make_node("MatMul", [f"v{i}", "w"], [f"v{i + 1}"]) for i in range(count)]
        ends = [helper.make_tensor_value_info(name, F32, ["n", 4]) for name in ("v0", f"v{count}")]
        model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [constant("w", 4, 4)]))
        assert isinstance(model, onnx.ModelProto)
        return expected_seconds(load(model))

    assert products(200) == pytest.approx(4 * products(100))
    assert expected_seconds(graph_of("Elu")) < 0.001


@pytest.mark.mnn
def test_the_square_of_a_difference_is_no_fault(tmp_path):
    """The converter gives it the name of the product and makes one operator of both."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"]), helper.make_node("Sub", ["x", "m"], ["d"])]
    nodes.append(helper.make_node("Mul", ["d", "d"], ["y"]))
    ends = [helper.make_tensor_value_info(name, F32, ["n", 4]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 22)]
    )
    with Converter() as converter:
        assert _fault(converter, load(model)) == ""


@pytest.mark.mnn
def test_a_weight_of_one_number_may_be_anywhere():
    with Converter() as converter:
        assert _fault(converter, graph_of("MatMul", [(1, 1)], shape=["n", 4, 8, 1])) == ""
