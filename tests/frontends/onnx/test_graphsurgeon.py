"""graph-surgeon graphs in and out, new and in place."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper, parser
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from backends.onnx.graphsurgeon import to_graphsurgeon, update
from backends.onnx.write import to_model
from benchmarks.traced_decoder import feeds, make_decoder
from frontends.onnx.graphsurgeon import from_graphsurgeon
from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.base.types import BF16, F32, I64, Dim, MapType, OptionalType, SequenceType, TensorType
from ir.evaluate.evaluator import evaluate
from ir.graph.compare import differences
from ir.graph.graph import Graph
from ir.onnx.proto_tensor import ProtoTensor
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor
from passes.framework.manager import PassManager
from tests.support.onnx_cases import run_onnxruntime, unequal

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR

BRANCHES = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[n] x, bool c) => (float[n] y) {
        s = Neg(x)
        y = If (c) <
            then_branch = yes () => (float[n] r) { t = Add(s, x)  r = Abs(t) },
            else_branch = no () => (float[n] q) { q = Mul(s, x) }
        >
    }
"""
FUNCTION = """
    <ir_version: 10, opset_import: ["" : 20, "pkg.mine" : 1]>
    g (float[n] x) => (float[n] y) { y = pkg.mine.leaky <alpha = 0.5> (x) }
    <domain: "pkg.mine", opset_import: ["" : 20]>
    leaky <alpha> (v) => (w) {
        two = Constant <value = float {2}> ()
        h = LeakyRelu <alpha: float = @alpha> (v)
        w = Mul(h, two)
    }
"""


def code_of(work):
    with pytest.raises(LadingError) as caught:
        work()
    return caught.value.code


def test_a_decoder_is_the_same_by_both_ways():
    model = make_decoder(1)
    direct, through = load(model), from_graphsurgeon(gs.import_onnx(model))
    assert differences(direct, through) == []
    assert unequal(model, gs.export_onnx(to_graphsurgeon(through))) == []


def test_constants_are_shared_and_not_read():
    model = make_decoder(1)
    surgeon = gs.import_onnx(model)
    graph = from_graphsurgeon(surgeon)
    held = graph.consts["lm_head.weight"].const
    assert isinstance(held, ProtoTensor) and "_array" not in vars(held)
    back = to_graphsurgeon(graph)
    values = back.tensors()["lm_head.weight"]._values
    assert isinstance(values, LazyValues) and values.shape == [64, 256] and values.nbytes == 64 * 256 * 4
    assert "_array" not in vars(held)
    assert from_graphsurgeon(back).consts["lm_head.weight"].const is held
    wanted = numpy_helper.to_array(next(item for item in model.graph.initializer if item.name == "lm_head.weight"))
    assert np.array_equal(back.tensors()["lm_head.weight"].values, wanted)


def test_constants_in_files(tmp_path):
    weight = np.arange(2000, dtype=np.float32)
    weight.tofile(tmp_path / "w.bin")
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (2000,)))
    w = graph.add_const("w", FileTensor(tmp_path / "w.bin", 0, TensorType(F32, (2000,)), "w"))
    graph.set_outputs([graph.add("Add", [x, w], outputs=["y"], types=[x.type]).output])
    surgeon = to_graphsurgeon(graph)
    model = gs.export_onnx(surgeon)
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), weight)
    assert isinstance(from_graphsurgeon(surgeon).consts["w"].const, FileTensor)
    lazy = onnx.TensorProto(name="w", data_type=1, dims=[2000], data_location=onnx.TensorProto.EXTERNAL)
    lazy.external_data.add(key="location", value="w.bin")
    surgeon.tensors()["w"]._values = LazyValues(lazy)
    assert code_of(lambda: from_graphsurgeon(surgeon)) == "F608"
    assert np.array_equal(from_graphsurgeon(surgeon, base=tmp_path).consts["w"].const.load(), weight)


def test_a_graph_built_by_hand():
    x = gs.Variable("x", np.float32, ("batch", None, -1, 4))
    scale = gs.Constant("scale", np.full(4, 2, np.float32))
    half = gs.Constant("half", np.ones(4, np.float32).astype(ml_dtypes.bfloat16))
    mid, cast = gs.Variable("mid"), gs.Variable("cast", np.dtype(np.float32), None)
    y = gs.Variable("y", TensorProto.FLOAT, ("batch", None, None, 4))
    graph = gs.Graph(
        [
            # Tensors of the same name are the same, though the objects differ.
            gs.Node("Mul", inputs=[gs.Variable("mid"), gs.Variable("cast")], outputs=[y]),
            gs.Node("Mul", "scaled", inputs=[x, scale], outputs=[mid]),
            gs.Node("Cast", attrs={"to": np.float32}, inputs=[half], outputs=[cast]),
        ],
        [x],
        [y],
        opset=20,
    )
    lifted = from_graphsurgeon(graph)
    assert [node.op for node in lifted.nodes] == ["Mul", "Cast", "Mul"] and lifted.opsets == {"": 20}
    shape = lifted.inputs[0].shape
    assert shape[0] == Dim("batch") and shape[1] != shape[2] and shape[3] == 4
    assert lifted.consts["half"].dtype == BF16
    data = np.ones((1, 2, 3, 4), np.float32)
    assert evaluate(lifted, {"x": data})["y"].tolist() == (2 * data).tolist()


def test_left_out_operands_and_empty_lists():
    x, y = gs.Variable("x", np.float32, (3,)), gs.Variable("y", np.float32, (3,))
    clip = gs.Node("Clip", inputs=[x, gs.Variable.empty(), gs.Constant("top", np.array(1, np.float32))], outputs=[y])
    split = gs.Node(
        "my_op", attrs={"sizes": []}, inputs=[y], outputs=[gs.Variable.empty(), gs.Variable("z")], domain="mine"
    )
    graph = from_graphsurgeon(gs.Graph([clip, split], [x], [y], opset=20))
    first, second = graph.nodes
    assert first.inputs[1] is None and second.op == "mine.my_op"
    again = to_graphsurgeon(graph)
    assert again.nodes[0].inputs[1].is_empty() and again.nodes[1].outputs[0].is_empty()


def test_subgraphs_with_captured_values():
    model = parser.parse_model(BRANCHES)
    graph = from_graphsurgeon(gs.import_onnx(model))
    assert differences(load(model), graph) == []
    assert next(iter(graph.value("y").producer.attrs["then_branch"].nodes)).inputs[0] is graph.value("s")
    assert unequal(model, gs.export_onnx(to_graphsurgeon(graph))) == []


def test_a_constant_that_only_a_branch_reads():
    text = BRANCHES.replace("float[n] y)", "float[n] y) <float[1] k = {4}>").replace("Mul(s, x)", "Mul(s, k)")
    model = parser.parse_model(text)
    graph = from_graphsurgeon(gs.import_onnx(model))
    feed = {"x": np.array([1.0, 2.0], np.float32), "c": np.array(False)}
    assert evaluate(graph, feed)["y"].tolist() == [-4.0, -8.0]
    exported = gs.export_onnx(to_graphsurgeon(load(model)))
    assert evaluate(load(exported), feed)["y"].tolist() == [-4.0, -8.0]
    held = gs.import_onnx(model)
    update(held, load(model))
    assert evaluate(load(gs.export_onnx(held)), feed)["y"].tolist() == [-4.0, -8.0]


def test_functions():
    model = parser.parse_model(FUNCTION)
    surgeon = gs.import_onnx(model)
    graph = from_graphsurgeon(surgeon)
    x = np.array([-1.0, 1.0], np.float32)
    assert evaluate(graph, {"x": x})["y"].tolist() == [-1.0, 2.0]
    assert unequal(gs.export_onnx(surgeon), gs.export_onnx(to_graphsurgeon(graph))) == []


def test_sparse_constants():
    values, indices = numpy_helper.from_array(np.array([5.0], np.float32), "w"), numpy_helper.from_array(np.array([1]))
    x, y = gs.Variable("x", np.float32, (3,)), gs.Variable("y", np.float32, (3,))
    w = gs.Constant("w", SparseValues(helper.make_sparse_tensor(values, indices, [3])))
    graph = from_graphsurgeon(gs.Graph([gs.Node("Add", inputs=[x, w], outputs=[y])], [x], [y]))
    assert graph.consts["w"].const.load().tolist() == [0.0, 5.0, 0.0]


def test_sequences():
    s = gs.Variable("s", np.float32, (2,), type="sequence_type")
    y = gs.Variable("y", np.float32, (2,))
    first = gs.Constant("at", np.array(0))
    graph = from_graphsurgeon(gs.Graph([gs.Node("SequenceAt", inputs=[s, first], outputs=[y])], [s], [y], opset=20))
    assert graph.inputs[0].type == SequenceType(TensorType(F32, (2,)))
    assert to_graphsurgeon(graph).inputs[0].type == "sequence_type"


def test_what_graph_surgeon_cannot_represent_is_refused():
    x, y = gs.Variable("x", np.float32, (2,), type="optional_type"), gs.Variable("y", np.float32, (2,))
    graph = gs.Graph([gs.Node("OptionalGetElement", inputs=[x], outputs=[y])], [x], [y], opset=20)
    assert code_of(lambda: from_graphsurgeon(graph)) == "F620"
    graph.inputs[0].type, graph.nodes[0].attrs = "tensor_type", {"what": object()}
    assert code_of(lambda: from_graphsurgeon(graph)) == "F620"
    graph.nodes[0].attrs, graph.inputs[0].dtype = {}, "no such type"
    assert code_of(lambda: from_graphsurgeon(graph)) == "F620"


@pytest.mark.parametrize("type_", [OptionalType(TensorType(F32)), MapType(I64, TensorType(F32))])
def test_types_that_would_be_lost_are_refused(type_):
    graph = Graph("g", {"": 20})
    graph.set_outputs([graph.add_input("x", type_)])
    assert code_of(lambda: to_graphsurgeon(graph)) == "B694"


def test_defaults_and_odd_attributes_are_refused():
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    default = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [info], [out],
                                [numpy_helper.from_array(np.ones(1, np.float32), "x")])  # fmt: skip
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    assert (
        code_of(lambda: to_graphsurgeon(load(helper.make_model(default, opset_imports=imports, ir_version=8))))
        == "B694"
    )
    for attribute in (
        helper.make_attribute("a", [numpy_helper.from_array(np.ones(1))]),
        helper.make_attribute("a", info.type),
        helper.make_attribute("a", b"\xff"),
        AttributeProto(name="a", type=AttributeProto.TENSORS),
    ):
        node = helper.make_node("op", ["x"], ["y"], domain="mine")
        node.attribute.append(attribute)
        graph = helper.make_graph([node], "g", [info], [out])
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        assert code_of(lambda model=model: to_graphsurgeon(load(model))) == "B694"


# ---- in place ----


def test_the_held_graph_becomes_the_new_one():
    model = make_decoder(1)
    given = [feeds(1)[item.name] for item in model.graph.input]
    wanted = run_onnxruntime(model, given)
    held = gs.import_onnx(model)
    tensors, nodes = held.tensors(), {node.name: node for node in held.nodes}
    logits, weight = tensors["logits"], tensors["lm_head.weight"]
    graph = from_graphsurgeon(held)
    PassManager("canonicalize").run(graph)
    update(held, graph)
    assert len(held.nodes) == len(graph.nodes) < len(nodes)
    now = held.tensors()
    assert now["logits"] is logits is held.outputs[0] and now["lm_head.weight"] is weight
    last = nodes["/lm_head/MatMul"]
    assert last in held.nodes and logits.inputs == [last] and weight.outputs == [last]
    gone = [node for node in nodes.values() if not any(node is one for one in held.nodes)]
    assert gone and not any(len(node.inputs) or len(node.outputs) for node in gone)
    for tensor in now.values():
        assert all(any(node is one for one in held.nodes) for node in (*tensor.inputs, *tensor.outputs))
    held.cleanup().toposort()
    after = gs.export_onnx(held)
    onnx.checker.check_model(after, full_check=True)
    assert all(np.array_equal(a, b) for a, b in zip(wanted, run_onnxruntime(after, given), strict=True))


def test_variables_become_constants_and_back():
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <float[2] a = {1, 2}> { b = Neg(a)  y = Add(x, b) }
        """
    )
    held = gs.import_onnx(model)
    b = held.tensors()["b"]
    graph = from_graphsurgeon(held)
    PassManager("fold").run(graph)
    update(held, graph)
    assert isinstance(b, gs.Constant) and b.values.tolist() == [-1.0, -2.0] and len(held.nodes) == 1
    graph = load(model)
    update(held, graph)
    assert isinstance(held.tensors()["b"], gs.Variable) and held.tensors()["b"] is b and len(held.nodes) == 2


def test_subgraphs_read_the_tensors_that_are_kept():
    model = parser.parse_model(BRANCHES)
    held = gs.import_onnx(model)
    s = held.tensors()["s"]
    update(held, from_graphsurgeon(held))
    branch = held.nodes[1].attrs["then_branch"]
    assert branch.nodes[0].inputs[0] is s and held.nodes[1] in list(held.nodes)
    assert unequal(model, gs.export_onnx(held)) == []


def test_an_error_leaves_the_held_graph_alone():
    held = gs.import_onnx(parser.parse_model(BRANCHES))
    before = gs.export_onnx(held)
    graph = from_graphsurgeon(held)
    graph.add_input("o", OptionalType(TensorType(F32)))
    assert code_of(lambda: update(held, graph)) == "B694"
    assert gs.export_onnx(held) == before


def test_widths_that_onnx_lacks_are_widened():
    graph = Graph("g")
    w = graph.add_const("w", InlineTensor(np.array([3, -4], np.int8), "i3"))
    graph.set_outputs([graph.add("Identity", [w], outputs=["y"]).output])
    values = to_graphsurgeon(graph).tensors()["w"].values
    assert values.astype(int).tolist() == [3, -4]
    assert to_model(graph).graph.initializer[0].data_type == TensorProto.INT4
