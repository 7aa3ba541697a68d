"""The ONNX frontend and backend: what a model says is kept, what it gets wrong is one coded error."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper, parser

from backends.onnx.write import to_model, write
from benchmarks.traced_decoder import feeds, make_decoder
from frontends.onnx import load as frontend
from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.base.types import F32, I64, Dim, MapType, OptionalType, SequenceType, TensorType
from ir.evaluate.evaluator import evaluate
from ir.facts.free_tensors import free_notes
from ir.graph.compare import differences
from ir.graph.graph import EmptyList, Graph
from ir.infer.engine import infer_types
from ir.onnx.proto_tensor import ProtoTensor
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from ir.verify.stages import verify
from passes.framework.manager import PassManager
from tests.support.onnx_cases import unequal
from tests.support.paths import ROOT
from tests.support.work import calls_of

FLOAT = TensorProto.FLOAT


def info(name, shape=("n",), dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model_of(nodes, inputs, outputs, initializers=(), opset=20, ir_version=10, **more):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers), **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def tensor(name, data, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(data, dtype), name)


def code_of(source, **options):
    with pytest.raises(LadingError) as caught:
        load(source, **options)
    assert len(caught.value.diagnostics) == 1
    return caught.value.code


def kept(model):
    """Lift, check, print, parse and emit a model; the graph. Nothing may be lost on the way."""
    graph = load(model)
    assert [str(item) for item in verify(graph) if item.severity == "error"] == []
    assert unequal(model, to_model(graph)) == []
    again = parse(print_graph(graph))
    assert differences(graph, again) == []
    assert unequal(model, to_model(again)) == []
    return graph


# ---- what is kept ----


def test_names_documentation_and_metadata():
    node = helper.make_node("Relu", ["x"], ["h"], "the/relu", doc_string="keeps what is positive")
    node.metadata_props.add(key="namespace", value="model/act")
    model = model_of([node, helper.make_node("Neg", ["h"], ["y"])], [info("x")], [info("y")], [tensor("unread", [1.0])])
    model.producer_name, model.producer_version, model.domain, model.model_version = "pytorch", "2.9", "org.lab", 7
    model.doc_string, model.graph.doc_string = "a model", "a graph"
    model.metadata_props.add(key="author", value="someone")
    model.graph.metadata_props.add(key="level", value="outer")
    model.graph.input[0].doc_string = "what comes in"
    model.graph.value_info.append(info("h"))
    model.graph.value_info[0].metadata_props.add(key="pkg.torch", value="v")
    model.graph.initializer[0].doc_string = "nobody reads this"
    model.graph.quantization_annotation.add(tensor_name="h").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="unread"
    )
    model.graph.input[0].type.denotation = "TENSOR"
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph = kept(model)
    assert [node.name for node in graph.nodes] == ["the/relu", ""]
    assert [node.loc for node in graph.nodes] == ["the/relu", "y"]
    assert graph.metadata["author"] == "someone"
    assert next(iter(graph.nodes)).metadata["namespace"] == "model/act"


def test_locations_survive_rewriting_and_come_back():
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], "first", perm=[1, 0, 2]),
        helper.make_node("Transpose", ["a"], ["y"], "second", perm=[0, 2, 1]),
    ]
    graph = load(model_of(nodes, [info("x", (2, 3, 4))], [info("y", (3, 4, 2))]))
    PassManager("simplify").run(graph)
    emitted = to_model(graph)
    assert len(emitted.graph.node) == 1
    assert load(emitted).nodes.__iter__().__next__().loc == "second + first"


def test_dimensions():
    model = model_of(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        [info("x", ("batch", None, 3)), info("z", ("batch", None, "past + 1"))],
        [info("y", None)],
    )
    graph = kept(model)
    x, z = graph.inputs
    assert x.shape[0] == z.shape[0] == Dim("batch")
    assert x.shape[1] != z.shape[1], "unknown dimensions are equal to no other"
    assert set(graph.dims) == {"batch", "past + 1", x.shape[1].name, z.shape[1].name}


def test_a_dimension_named_like_our_own_is_another():
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], [info("x", ("unk.0", None))], [info("y", None)])
    (x,) = load(model).inputs
    assert x.shape[0] != x.shape[1]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    "dtype",
    [
        "float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
        "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
        "float8_e8m0fnu", "float4_e2m1fn", "int4", "uint4", "int2", "uint2",
    ],
)  # fmt: skip
def test_every_element_type(dtype, raw):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    code = helper.np_dtype_to_tensor_dtype(kind)
    data = np.array([0, 1, 1, 0, 1], np.float32).astype(kind)
    if raw:
        proto = numpy_helper.from_array(data, "c")
    else:
        values = data.tolist() if data.dtype.kind in "bc" else data.astype(np.float64).tolist()
        proto = helper.make_tensor("c", code, [5], values)
    assert proto.HasField("raw_data") == raw
    model = model_of(
        [helper.make_node("Identity", ["c"], ["y"])], [], [info("y", (5,), code)], [proto], opset=25, ir_version=13
    )
    held = load(model).consts["c"].const
    assert isinstance(held, ProtoTensor) and "_array" not in vars(held), "decoded before it was read"
    kept(model)
    assert held.load().dtype == kind and held.load().tobytes() == data.tobytes()
    assert not held.load().flags.writeable


def test_strings_and_bytes():
    proto = helper.make_tensor("s", TensorProto.STRING, [2], [b"caf\xc3\xa9", b"\xff"])
    node = helper.make_node("my_op", ["s"], ["y"], domain="mine", text="plain", raw=b"\xfe\xff", many=["a", b"\xff"])
    model = model_of([node], [], [info("y", (2,), TensorProto.STRING)], [proto])
    model.opset_import.add(domain="mine", version=3)
    graph = load(model)
    assert graph.consts["s"].const.load().tolist() == ["café", b"\xff"]
    (held,) = graph.nodes
    assert dict(held.attrs) == {"text": "plain", "raw": b"\xfe\xff", "many": ("a", b"\xff")}
    assert unequal(model, to_model(graph)) == []


def test_attributes_of_every_kind_and_empty_lists():
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["b"])], "body", [], [info("b")])
    node = onnx.NodeProto(op_type="op", domain="mine", input=["x"], output=["y"])
    made = {
        "f": 0.1, "i": -5, "s": "text", "t": tensor("", [1, 2]), "floats": [1.0, 0.5], "ints": [1, 2], "g": body,
        "strings": ["a", "b"], "tensors": [tensor("", [1])], "type": info("", ("k", 2)).type, "graphs": [body],
    }  # fmt: skip
    node.attribute.extend(helper.make_attribute(name, value) for name, value in made.items())
    for kind in ("FLOATS", "INTS", "STRINGS", "TENSORS", "GRAPHS", "TYPE_PROTOS"):
        node.attribute.add(name=f"no_{kind}", type=getattr(AttributeProto, kind))
    model = model_of([node], [info("x")], [info("y")])
    model.opset_import.add(domain="mine", version=1)
    graph = kept(model)
    (held,) = graph.nodes
    assert isinstance(held.attrs["no_STRINGS"], EmptyList) and held.attrs["no_STRINGS"].kind == "strings"
    assert held.attrs["f"] == pytest.approx(0.1) and held.attrs["ints"] == (1, 2)
    assert held.attrs["g"].owner is held


def test_left_out_inputs_and_outputs():
    node = helper.make_node("LSTM", ["x", "w", "r", "", "", "h0"], ["", "h"], hidden_size=2)
    model = model_of(
        [node],
        [info("x", (3, 1, 2)), info("w", (1, 8, 2)), info("r", (1, 8, 2)), info("h0", (1, 1, 2))],
        [info("h", (1, 1, 2))],
    )
    graph = kept(model)
    (held,) = graph.nodes
    assert held.inputs[3] is None and len(held.outputs) == 2
    assert not graph.has("")
    extra = graph.add("Relu", [held.outputs[0]]).output
    graph.set_outputs([*graph.outputs, extra])
    assert all(to_model(graph).graph.node[0].output), "an output that is read now has to have a name"


def test_subgraphs_capture_and_hide():
    model = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[n] x, bool c) => (float[n] y) {
            s = Neg(x)
            y = If (c) <
                then_branch = yes () => (float[n] r) { t = Add(s, x)  r = Abs(t) },
                else_branch = no () => (float[n] r) { t = Mul(s, x)  r = Relu(t) }
            >
        }
        """
    )
    graph = kept(model)
    branch = graph.value("y").producer.attrs["else_branch"]
    assert [value.name for node in branch.nodes for value in node.inputs] == ["s", "x", "t"]
    assert next(iter(branch.nodes)).inputs[0] is graph.value("s")
    # Siblings share names; a name of the level around them is hidden by giving the inner value another one.
    model.graph.node[1].attribute[0].g.node[0].output[0] = "late"
    model.graph.node[1].attribute[0].g.node[1].input[0] = "late"
    model.graph.node.append(helper.make_node("Relu", ["x"], ["late"]))
    hiding = load(model)
    inner = hiding.value("y").producer.attrs["then_branch"]
    first, second = inner.nodes
    assert first.output.name != "late" and hiding.has("late") and second.inputs[0] is first.output
    x = np.array([-1.0, 2.0], np.float32)
    assert evaluate(hiding, {"x": x, "c": np.array(True)})["y"].tolist() == [0.0, 0.0]


def test_a_branch_returns_a_value_from_around_it_and_constants_stay_inside():
    inner = helper.make_graph([helper.make_node("Add", ["x", "k"], ["r"])], "no", [], [info("r")], [tensor("k", [2.0])])
    model = model_of(
        [
            helper.make_node(
                "If", ["c"], ["y"], then_branch=helper.make_graph([], "yes", [], [info("x")]), else_branch=inner
            )
        ],
        [info("x"), info("c", (), TensorProto.BOOL)],
        [info("y")],
    )
    graph = kept(model)
    node = graph.value("y").producer
    assert node.attrs["then_branch"].outputs[0] is graph.value("x")
    assert "k" in node.attrs["else_branch"].consts and not graph.consts


def test_loop_and_scan():
    model = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[2] x, int64 trips) => (float[2] last, float[k, 2] all) {
            t = Constant <value = bool {1}> ()
            last, all = Loop (trips, t, x) <body = b
                (int64 i, bool go, float[2] before) => (bool on, float[2] after, float[2] seen) {
                on = Identity(go)
                after = Add(before, x)
                seen = Identity(after)
            }>
        }
        """
    )
    graph = kept(model)
    found = evaluate(graph, {"x": np.ones(2, np.float32), "trips": np.array(3)})
    assert found["last"].tolist() == [4.0, 4.0] and found["all"].shape == (3, 2)


FUNCTIONS = """
    <ir_version: 10, opset_import: ["" : 20, "pkg.mine" : 1]>
    g (float[n] x) => (float[n] y) {
        a = pkg.mine.outer <alpha = 0.5> (x)
        y = pkg.mine.inner (a)
    }
    <domain: "pkg.mine", opset_import: ["" : 20, "pkg.mine" : 1]>
    outer <alpha, to: int = 1> (v) => (w) {
        h = LeakyRelu <alpha: float = @alpha> (v)
        c = Cast <to: int = @to> (h)
        w = pkg.mine.inner (c)
    }
    <domain: "pkg.mine", opset_import: ["" : 20]>
    inner (v) => (w) { two = Constant <value = float {2}> ()  w = Mul(v, two) }
"""


def test_functions_with_attributes_and_calls():
    model = parser.parse_model(FUNCTIONS)
    model.functions[0].doc_string = "a function"
    model.functions[0].value_info.append(info("h", None))
    model.functions[0].metadata_props.add(key="k", value="v")
    graph = kept(model)
    assert list(graph.functions) == ["pkg.mine.outer", "pkg.mine.inner"]
    assert [node.op for node in graph.nodes] == ["pkg.mine.outer", "pkg.mine.inner"]
    x = np.array([-1.0, 3.0], np.float32)
    assert evaluate(graph, {"x": x})["y"].tolist() == [-2.0, 12.0]
    infer_types(graph)
    assert str(graph.value("a").type) == "f32[n]"
    PassManager("fold,cse,dce,toposort").run(graph)
    assert evaluate(load(to_model(graph)), {"x": x})["y"].tolist() == [-2.0, 12.0]


def test_overloads_of_a_function():
    model = parser.parse_model(FUNCTIONS)
    second = model.functions.add()
    second.CopyFrom(model.functions[1])
    second.overload = "negative"
    second.node[1].CopyFrom(helper.make_node("Neg", ["v"], ["w"]))
    model.graph.node[1].overload = "negative"
    graph = kept(model)
    assert "pkg.mine.inner:negative" in graph.functions
    assert evaluate(graph, {"x": np.array([-1.0, 3.0], np.float32)})["y"].tolist() == [1.0, -6.0]


def test_sequence_optional_and_map_types():
    sequence = helper.make_sequence_type_proto(info("", ("k", 2)).type)
    optional = helper.make_optional_type_proto(sequence)
    map_type = onnx.TypeProto()
    map_type.map_type.key_type = TensorProto.INT64
    map_type.map_type.value_type.CopyFrom(info("", ()).type)
    types = {"s": sequence, "o": optional, "m": map_type, "e": onnx.TypeProto()}
    inputs = [helper.make_value_info(name, type_) for name, type_ in types.items()]
    nodes = [helper.make_node("OptionalGetElement", ["o"], ["y"])]
    graph = kept(model_of(nodes, inputs, [helper.make_value_info("y", sequence)]))
    element = TensorType(F32, (Dim("k"), 2))
    wanted = [SequenceType(element), OptionalType(SequenceType(element)), MapType(I64, TensorType(F32, ())), None]
    assert [value.type for value in graph.inputs] == wanted


def test_a_default_is_an_input_from_version_4_on():
    model = model_of(
        [helper.make_node("Mul", ["x", "s"], ["y"])], [info("x"), info("s", (1,))], [info("y")], [tensor("s", [3.0])]
    )
    graph = kept(model)
    assert [value.name for value in graph.inputs] == ["x", "s"]
    PassManager("canonicalize").run(graph)
    after = to_model(graph)
    assert [item.name for item in after.graph.input] == ["x", "s"]
    assert (
        numpy_helper.to_array(after.graph.initializer[0]).tolist() == [3.0] and after.graph.initializer[0].name == "s"
    )


def test_a_default_that_is_also_read_as_a_constant_is_written_twice():
    model = model_of(
        [helper.make_node("Mul", ["x", "s"], ["a"]), helper.make_node("Add", ["a", "c"], ["y"])],
        [info("x"), info("s", (1,))],
        [info("y")],
        [tensor("s", [3.0]), tensor("c", [3.0])],
    )
    graph = load(model)
    PassManager("cse").run(graph)
    after = to_model(graph)
    onnx.checker.check_model(after, full_check=True)
    assert "s" in {item.name for item in after.graph.initializer} and len(after.graph.initializer) == 2


def test_an_initializer_among_the_inputs_is_a_constant_before_version_4():
    model = model_of(
        [helper.make_node("Mul", ["x", "s"], ["y"])],
        [info("s", (1,)), info("x")],
        [info("y")],
        [tensor("s", [3.0])],
        opset=8,
        ir_version=3,
    )
    graph = kept(model)
    assert [value.name for value in graph.inputs] == ["x"] and list(graph.consts) == ["s"]
    graph.add_const("more", InlineTensor(np.zeros(1, np.float32)))
    assert [item.name for item in to_model(graph).graph.input] == ["s", "x", "more"], "version 3 wants constants there"


def test_sparse_initializers_become_dense():
    values, by_axis = tensor("w", [5.0, 7.0]), tensor("i", [[0, 1], [2, 0]], np.int64)
    linear = tensor("j", [1, 4], np.int64)
    for indices in (by_axis, linear):
        model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [info("x", (3, 2))], [info("y", (3, 2))])
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 2]))
        graph = kept(model)
        assert graph.consts["w"].const.load().tolist() == [[0, 5], [0, 0], [7, 0]]
    node = helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(values, by_axis, [3, 2]))
    graph = kept(model_of([node, helper.make_node("Neg", ["c"], ["y"])], [], [info("y", (3, 2))]))
    assert evaluate(graph, {})["y"].tolist() == [[0, -5], [0, 0], [-7, 0]]


def test_other_domains_and_their_order():
    model = model_of([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")], [info("x")], [info("y")])
    model.opset_import.insert(0, helper.make_opsetid("com.microsoft", 1))
    model.opset_import[1].domain = "ai.onnx"
    graph = kept(model)
    assert graph.opsets == {"com.microsoft": 1, "": 20} and next(iter(graph.nodes)).op == "Relu"
    assert [item.domain for item in to_model(graph).opset_import] == ["", "com.microsoft"]


def test_a_model_without_standard_operators_imports_none():
    model = model_of([helper.make_node("op", ["x"], ["y"], domain="mine")], [info("x")], [info("y")])
    del model.opset_import[:]
    model.opset_import.add(domain="mine", version=2)
    assert kept(model).opsets == {"mine": 2}


def test_a_model_of_before_operator_sets():
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [info("y")], ir_version=2)
    del model.opset_import[:]
    assert kept(model).opsets == {"": 1}


# ---- order and free tensors ----


def test_nodes_out_of_order_are_sorted_and_others_stay():
    nodes = [
        helper.make_node("Neg", ["b"], ["y"]),
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
    ]
    graph = load(model_of(nodes, [info("x")], [info("y")]))
    assert [node.op for node in graph.nodes] == ["Abs", "Exp", "Neg"]
    inner = helper.make_graph([*nodes[:1], *nodes[2:]], "body", [], [info("y")])
    nodes = [
        helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner),
        helper.make_node("Abs", ["x"], ["a"]),
    ]
    graph = load(model_of(nodes, [info("x"), info("c", (), TensorProto.BOOL)], [info("z")]))
    assert [node.op for node in graph.nodes] == ["Abs", "If"], "a captured value comes first"
    assert [node.op for node in graph.value("z").producer.attrs["then_branch"].nodes] == ["Exp", "Neg"]


def test_a_cycle_is_an_error():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], "one"), helper.make_node("Neg", ["a"], ["b"], "two")]
    with pytest.raises(LadingError, match=r"'one'.*'two'") as caught:
        load(model_of(nodes, [info("x")], [info("b")]))
    assert caught.value.code == "F605"


def test_tensors_that_nobody_produces():
    nodes = [helper.make_node("Add", ["x", "logits_index"], ["y"], "slice")]
    model = model_of(nodes, [info("x")], [info("y")], value_info=[info("logits_index", (1,), TensorProto.INT64)])
    with pytest.raises(LadingError, match=r"'logits_index'.*\n.*slice") as caught:
        load(model, free="error")
    assert caught.value.code == "F604"
    graph = load(model)
    assert [value.name for value in graph.inputs] == ["x", "logits_index"]
    assert graph.inputs[1].type == TensorType(F32, (1,)), "its reader decides, and what is recorded is a hint"


def test_free_tensors_of_subgraphs_and_outputs():
    branch = helper.make_graph([helper.make_node("Neg", ["far"], ["r"])], "b", [], [info("r")])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = model_of([node], [info("c", (), TensorProto.BOOL)], [info("y"), info("never")])
    with pytest.raises(LadingError, match="'never'") as caught:
        load(model)
    assert caught.value.code == "F604"
    del model.graph.output[1]
    assert [value.name for value in load(model).inputs] == ["c", "far"]
    with pytest.raises(ValueError, match="free"):
        load(model, free="whatever")


def test_a_misspelt_name_is_suggested():
    model = model_of([helper.make_node("Neg", ["hiden_states"], ["y"])], [info("hidden_states")], [info("y")])
    (note,) = free_notes(load(model))
    assert "'hiden_states'" in note.message and "'hidden_states' is meant" in note.hint


# ---- files ----


def big_model(folder, name="m.onnx", **options):
    data = np.arange(4096, dtype=np.float32).reshape(64, 64)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [info("x", ("n", 64))],
        [info("y", ("n", 64))],
        [tensor("w", data)],
    )
    onnx.save_model(model, folder / name, **options)
    return data


def external(folder, **options):
    return big_model(folder, save_as_external_data=True, location="w.bin", size_threshold=0, **options)


def test_external_data_is_read_from_its_file(tmp_path):
    data = external(tmp_path)
    graph = load(tmp_path / "m.onnx")
    held = graph.consts["w"].const
    assert isinstance(held, FileTensor) and np.array_equal(held.load(), data)
    assert np.array_equal(held.rows(3, 5), data[3:5])
    model = onnx.load_model(tmp_path / "m.onnx", load_external_data=False)
    assert code_of(model) == "F608"
    assert np.array_equal(load(model, base=tmp_path).consts["w"].const.load(), data)


def edit_external(folder, **entries):
    model = onnx.load_model(folder / "m.onnx", load_external_data=False)
    proto = model.graph.initializer[0]
    known = {item.key: item for item in proto.external_data}
    for key, value in entries.items():
        (known.get(key) or proto.external_data.add(key=key)).value = value
    (folder / "m.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ({"location": "../w.bin"}, "F608"), ({"location": "/etc/passwd"}, "F608"), ({"location": ""}, "F608"),
        ({"location": "a/../../w.bin"}, "F608"), ({"location": "a\0b"}, "F608"), ({"location": "gone.bin"}, "F609"),
        ({"location": "folder"}, "F609"), ({"location": "x" * 5000}, "F609"), ({"offset": "8"}, "F610"),
        ({"offset": "99999999999999999999"}, "F610"), ({"offset": "-4"}, "F610"), ({"offset": "0x10"}, "F610"),
        ({"length": "12"}, "F607"), ({"length": "many"}, "F610"),
    ],
)  # fmt: skip
def test_external_data_that_is_not_there(tmp_path, entries, code):
    external(tmp_path)
    (tmp_path / "folder").mkdir()
    edit_external(tmp_path, **entries)
    assert code_of(tmp_path / "m.onnx") == code


def test_links_may_not_leave_the_folder_but_a_whole_cache_may_be_linked(tmp_path):
    outside, blobs, shown = tmp_path / "secret.bin", tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    shown.mkdir()
    data = external(blobs)
    for name in ("m.onnx", "w.bin"):
        (shown / name).symlink_to(blobs / name)
    assert np.array_equal(load(shown / "m.onnx").consts["w"].const.load(), data)
    outside.write_bytes((blobs / "w.bin").read_bytes())
    (blobs / "w.bin").unlink()
    (blobs / "w.bin").symlink_to(outside)
    assert code_of(blobs / "m.onnx") == "F608"


def test_weights_of_a_large_file_stay_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(frontend, "SCAN_BYTES", 1024)
    monkeypatch.setattr(frontend, "WEIGHT_BYTES", 1024)
    data = big_model(tmp_path)
    path = tmp_path / "m.onnx"
    held = load(path).consts["w"].const
    assert isinstance(held, FileTensor) and np.array_equal(held.load(), data)
    assert unequal(onnx.load_model(path), to_model(load(path))) == []
    content = path.read_bytes()
    view = load(content).consts["w"].const
    assert isinstance(view, InlineTensor) and not isinstance(view, ProtoTensor) and np.array_equal(view.load(), data)
    for size in (len(content) - 1, len(content) - 5000, 2000):
        assert code_of(content[:size]) == "F601"
    path.write_bytes(content[:-3])
    assert code_of(path) == "F601"


def test_the_large_file_walk_gives_the_same_model_for_every_layout(monkeypatch):
    model = make_decoder(1)
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].float_data.extend([0.5] * (256 * 64))
    del model.graph.initializer[1].dims[:]
    model.graph.initializer[1].dims.append(numpy_helper.to_array(make_decoder(1).graph.initializer[1]).size)
    wanted = load(model)
    monkeypatch.setattr(frontend, "SCAN_BYTES", 0)
    monkeypatch.setattr(frontend, "WEIGHT_BYTES", 64)
    found = load(model.SerializeToString())
    assert differences(wanted, found) == []


@pytest.mark.parametrize(("external_option", "files"), [(True, 2), (False, 1), (None, 1), (100000, 1), (100, 2)])
def test_written_files_are_read_again(tmp_path, external_option, files):
    data = big_model(tmp_path)
    graph = load(tmp_path / "m.onnx")
    write(graph, tmp_path / "out.onnx", external=external_option)
    assert len(list(tmp_path.glob("out.onnx*"))) == files
    again = load(tmp_path / "out.onnx")
    assert np.array_equal(again.consts["w"].const.load(), data)
    assert unequal(onnx.load_model(tmp_path / "m.onnx"), onnx.load_model(tmp_path / "out.onnx")) == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_model_over_its_own_files(tmp_path):
    data = external(tmp_path)
    graph = load(tmp_path / "m.onnx")
    os.rename(tmp_path / "w.bin", tmp_path / "m.onnx.data")
    edit_external(tmp_path, location="m.onnx.data")
    graph = load(tmp_path / "m.onnx")
    graph.add_const("front", InlineTensor(np.zeros(5000, np.float32)))
    graph.consts = {"front": graph.consts["front"], "w": graph.consts["w"]}
    write(graph, tmp_path / "m.onnx", external=True)
    assert np.array_equal(graph.consts["w"].const.load(), data), "the graph reads the new file"
    assert np.array_equal(load(tmp_path / "m.onnx").consts["w"].const.load(), data)
    write(graph, tmp_path / "m.onnx")
    assert np.array_equal(graph.consts["w"].const.load(), data)


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    big_model(tmp_path)
    graph = load(tmp_path / "m.onnx")
    write(graph, tmp_path / "out.onnx", external=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("backends.onnx.write.write_constant", full)
    with pytest.raises(LadingError, match="No space left") as caught:
        write(graph, tmp_path / "out.onnx", external=True)
    assert caught.value.code == "B690"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(LadingError) as caught:
        write(graph, tmp_path / "no folder" / "out.onnx")
    assert caught.value.code == "B690"


def test_a_model_too_large_for_one_file(tmp_path, monkeypatch):
    big_model(tmp_path)
    graph = load(tmp_path / "m.onnx")
    monkeypatch.setattr("backends.onnx.write.LARGEST", 10000)
    monkeypatch.setattr("backends.onnx.write.ROOM", 0)
    with pytest.raises(LadingError) as caught:
        write(graph, tmp_path / "out.onnx", external=False)
    assert caught.value.code == "B692"
    write(graph, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size >= 16384


# ---- hostile and damaged models ----


def plain():
    return model_of([helper.make_node("Add", ["x", "c"], ["y"])], [info("x")], [info("y")], [tensor("c", [1.0, 2.0])])


def test_files_that_are_no_models(tmp_path):
    assert code_of(tmp_path / "gone.onnx") == "F600"
    assert code_of(tmp_path) == "F600"
    (tmp_path / "text.onnx").write_text("not a model at all")
    assert code_of(tmp_path / "text.onnx") == "F601"
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert code_of(tmp_path / "empty.onnx") == "F564"
    content = plain().SerializeToString()
    codes = {code_of(content[:size]) for size in range(len(content))}
    assert codes <= {"F601", "F604", "F617"} and "F601" in codes
    with pytest.raises(TypeError):
        load(helper.make_tensor_value_info("x", FLOAT, [1]))


def damaged(change):
    model = plain()
    change(model)
    return model


def set_dims(*dims):
    def change(model):
        model.graph.initializer[0].dims[:] = dims

    return change


def set_shape(*sizes):
    def change(model):
        model.graph.input[0].CopyFrom(info("x", sizes))

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: setattr(m, "ir_version", 99), "F602"),
        (lambda m: setattr(m.opset_import[0], "version", 99), "F602"),
        (lambda m: setattr(m.opset_import[0], "version", 0), "F602"),
        (lambda m: m.opset_import.add(domain="ai.onnx", version=3), "F612"),
        (lambda m: setattr(m.opset_import[0], "domain", "other"), "F617"),
        (lambda m: m.ClearField("opset_import"), "F617"),
        (lambda m: m.training_info.add(), "F603"),
        (lambda m: m.graph.node.add().CopyFrom(m.graph.node[0]), "F606"),
        (lambda m: m.graph.input.add().CopyFrom(m.graph.input[0]), "F606"),
        (lambda m: m.graph.initializer.add().CopyFrom(m.graph.initializer[0]), "F606"),
        (lambda m: m.graph.node[0].output.append("y"), "F606"),
        (set_dims(-2), "F607"),
        (set_dims(3), "F607"),
        (set_dims(2**62, 2**62, 2**62), "F607"),
        (set_dims(*[1] * 100), "F607"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 77), "F607"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.STRING), "F607"),
        (lambda m: m.graph.initializer[0].ClearField("raw_data"), "F607"),
        (lambda m: m.graph.initializer[0].segment.SetInParent(), "F611"),
        (lambda m: setattr(m.graph.initializer[0], "name", ""), "F612"),
        (lambda m: setattr(m.graph.input[0], "name", ""), "F612"),
        (lambda m: m.graph.node[0].attribute.add(name="what"), "F612"),
        (lambda m: m.graph.node[0].attribute.extend([helper.make_attribute("a", 1)] * 2), "F612"),
        (lambda m: m.graph.node[0].attribute.add(name="a", type=2, ref_attr_name="b"), "F612"),
        (lambda m: m.graph.node[0].device_configurations.add(), "F611"),
        (set_shape(*[1] * 100), "F613"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 88), "F613"),
        (lambda m: m.graph.input[0].type.opaque_type.SetInParent(), "F611"),
        (lambda m: setattr(m.graph.input[0].type.sparse_tensor_type, "elem_type", 1), "F611"),
        (lambda m: setattr(m.graph.node[0], "op_type", "Add.Two"), "F614"),
        (lambda m: setattr(m.graph.node[0], "op_type", ""), "F614"),
        (lambda m: m.functions.add(name="Add", domain="ai.onnx"), "F615"),
        (lambda m: m.functions.add(name="a.b", domain="mine"), "F614"),
        (lambda m: m.functions.extend([onnx.FunctionProto(name="f", domain="mine")] * 2), "F615"),
    ],
)  # fmt: skip
def test_damaged_models(change, code):
    assert code_of(damaged(change)) == code
    assert code_of(damaged(change).SerializeToString()) == code


def test_sparse_tensors_that_do_not_fit():
    def sparse(indices, dims):
        return damaged(
            lambda m: m.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor("s", [1.0]), indices, dims))
        )

    assert code_of(sparse(tensor("", [9], np.int64), [3])) == "F607"
    assert code_of(sparse(tensor("", [-1], np.int64), [3])) == "F607"
    assert code_of(sparse(tensor("", [0, 1], np.int64), [3])) == "F607"
    assert code_of(sparse(tensor("", [0]), [3])) == "F607"
    assert code_of(sparse(tensor("", [0], np.int64), [1 << 40])) == "F611"
    assert code_of(sparse(tensor("", [0], np.int64), [-3])) == "F607"


def test_functions_that_call_themselves():
    model = parser.parse_model(FUNCTIONS)
    model.functions[1].node[1].CopyFrom(helper.make_node("outer", ["v"], ["w"], domain="pkg.mine"))
    assert code_of(model) == "F615"


def test_text_that_is_no_text():
    content = plain().SerializeToString()
    assert code_of(content.replace(b"\x0a\x01x", b"\x0a\x01\xff")) in ("F604", "F616")
    assert code_of(content.replace(b"\x12\x01g", b"\x12\x01\xff")) == "F616"


def test_random_damage_is_an_error_or_a_model():
    rng = random.Random(7)
    sources = [parser.parse_model(FUNCTIONS).SerializeToString(), plain().SerializeToString()]
    node = helper.make_node("If", ["c"], ["y"], then_branch=plain().graph, else_branch=plain().graph)
    sources.append(model_of([node], [info("c", (), TensorProto.BOOL), info("x")], [info("y")]).SerializeToString())
    outcomes = set()
    for _ in range(6000):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((1, 1, 1, 0, 3))] = rng.randbytes(rng.choice((1, 1, 1, 2, 0))) or b"\0"
        try:
            graph = load(bytes(data))
        except LadingError as error:
            outcomes.add(error.code)
            continue
        to_model(graph).SerializeToString()
        outcomes.add("fine")
    assert {"fine", "F601", "F604", "F607", "F612", "F613", "F616"} <= outcomes


# ---- size ----


def test_fifty_thousand_nodes_and_back():
    model = make_decoder(204)
    assert len(model.graph.node) > 50000
    graph = load(model)
    assert to_model(graph) == model
    assert isinstance(next(iter(graph.consts.values())).const, ProtoTensor)


def test_work_grows_with_the_nodes():
    small, large = make_decoder(2), make_decoder(20)
    there = [calls_of(load, model) / len(model.graph.node) for model in (small, large)]
    back = [calls_of(to_model, load(model)) / len(model.graph.node) for model in (small, large)]
    assert there[1] < 1.2 * there[0] and back[1] < 1.2 * back[0]


def test_a_decoder_through_the_passes_computes_the_same():
    model = make_decoder(2)
    graph = load(model)
    wanted = evaluate(load(model), feeds(2))
    PassManager("canonicalize").run(graph)
    assert len(graph.nodes) < 0.45 * len(model.graph.node)
    again = load(to_model(graph))
    assert isinstance(again, Graph)
    found = evaluate(again, feeds(2))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_the_comparison_with_other_rewriters_runs(tmp_path):
    out = tmp_path / "table.md"
    command = [sys.executable, "-m", "benchmarks.rewriters", "--nodes", "200", "500", "--repeat", "1", "--limit", "60"]
    command += [
        "--tools",
        "lading",
        "onnx-graphsurgeon",
        "--markdown",
        str(out),
        "--json",
        str(tmp_path / "table.json"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    rows = [line.split(" | ") for line in out.read_text().splitlines()[2:]]
    assert [row[0].removeprefix("| ") for row in rows] == ["lading"] * 2 + ["onnx-graphsurgeon"] * 2
    assert all(int(row[2]) < 0.7 * int(row[1]) for row in rows), "every tool made the graph smaller"
    timings = json.loads((tmp_path / "table.json").read_text())
    assert [timing["max_difference"] for timing in timings] == [0.0, 0.0, None, None]
