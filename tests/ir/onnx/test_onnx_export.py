"""Export to ONNX: models pass the checker and compute the same in onnxruntime; files appear whole or not at all."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from ir.base.diag import LadingError
from ir.base.types import BOOL, DTYPES, F16, F32, I64, Dim, MapType, OptionalType, SequenceType, TensorType
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph, Value
from ir.infer.engine import infer_types
from ir.onnx.export import (
    LOCATION,
    export_nodes,
    layout_external,
    onnx_bytes,
    onnx_dtype,
    read_type,
    tensor_proto,
    to_model,
    write_model,
    write_type,
)
from ir.tensor.elementwise import cast
from ir.tensor.inline import InlineTensor
from ir.tensor.rearranged import transposed
from tests.support.onnx_models import Unsupported, graph_of

RNG = np.random.default_rng(11)


def session(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model if isinstance(model, str) else model.SerializeToString(), options)


def checked(graph: Graph, **options) -> onnx.ModelProto:
    model = to_model(graph, **options)
    onnx.checker.check_model(model, full_check=True)
    return model


# ---- the node tests of ONNX ----


@cache
def plain_cases() -> list:
    """Two node tests of each operator with numeric arrays for inputs."""
    from onnx.backend.test.case.node import collect_testcases

    with np.errstate(all="ignore"):
        cases = collect_testcases(None)
    count: dict[str, int] = {}
    chosen = []
    for case in cases:
        arrays = case.data_sets[0][0]
        plain = all(isinstance(a, np.ndarray | np.generic) and a.dtype.kind in "fiub" for a in arrays)
        key = case.model.graph.node[-1].op_type
        if plain and count.setdefault(key, 0) < 2:
            count[key] += 1
            chosen.append(case)
    return chosen


@pytest.mark.filterwarnings("ignore")
def test_models_come_back_the_same() -> None:
    compared = 0
    for case in plain_cases():
        feeds = {i.name: np.asarray(a) for i, a in zip(case.model.graph.input, case.data_sets[0][0], strict=True)}
        try:
            want = session(case.model).run(None, feeds)
            graph = graph_of(case.model, types=True)
        except (Unsupported, Exception) as error:
            if isinstance(error, Unsupported) or type(error).__module__.startswith("onnxruntime"):
                continue
            raise
        assert infer_types(graph) == [], case.name
        model = to_model(graph)
        onnx.checker.check_model(model)
        for found, expected in zip(session(model).run(None, feeds), want, strict=True):
            pairs = zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]
            for one, other in pairs:
                np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=case.name)
        compared += 1
    assert compared > 200


# ---- own operators ----


def mnn_layer() -> Graph:
    graph = Graph("layer")
    seq = graph.add_dim(Dim("seq", 1, 64))
    x = graph.add_input("x", TensorType(F32, (1, seq, 8)))
    mask = graph.add_input("mask", TensorType(F32, ()))
    gamma = graph.add_const("gamma", InlineTensor(np.ones(8, np.float32)))
    beta = graph.add_const("beta", InlineTensor(np.zeros(8, np.float32)))
    normed = graph.add("mnn.LayerNorm", [x, gamma, beta], {"rms": 1, "epsilon": 1e-6}).output
    flat = graph.add("mnn.Reshape", [normed], {"dims": (-1, 8, 1, 1)}).output
    weight = graph.add_const("w", InlineTensor(RNG.standard_normal((8, 8)).astype(np.float32)))
    linear = graph.add("mnn.Convolution", [flat, weight]).output
    heads = graph.add("mnn.Reshape", [linear], {"dims": (1, -1, 2, 4)}).output
    attended = graph.add("mnn.Attention", [heads, heads, heads, mask], loc="model.layers.0").output
    again = graph.add("mnn.LayerNorm", [attended, gamma, beta], {"rms": 1, "epsilon": 1e-6}).output
    graph.set_outputs([graph.add("mnn.Binary", [x, again], {"kind": "ADD"}, outputs=["y"]).output])
    assert infer_types(graph) == []
    return graph


@pytest.mark.mnn
def test_own_operators_become_functions() -> None:
    model = checked(mnn_layer())
    functions = [(item.domain, item.name, item.overload) for item in model.functions]
    assert functions.count(("mnn", "Reshape", "")) == functions.count(("mnn", "Reshape", "v1")) == 1
    assert functions.count(("mnn", "LayerNorm", "")) == 1, "nodes alike share a function"
    assert {item.domain: item.version for item in model.opset_import} == {"": 24, "mnn": 1}
    kept = next(node for node in model.graph.node if node.op_type == "Attention")
    assert (kept.domain, {p.key: p.value for p in kept.metadata_props}) == ("mnn", {LOCATION: "model.layers.0"})
    x = RNG.standard_normal((1, 3, 8)).astype(np.float32)
    (found,) = session(model).run(None, {"x": x, "mask": np.zeros((), np.float32)})
    assert found.shape == (1, 3, 8)
    plain = to_model(mnn_layer(), functions=False)
    assert not plain.functions


@pytest.mark.mnn
def test_a_definition_without_types_is_refused() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32))
    mask = graph.add_input("m", TensorType(F32))
    graph.set_outputs([graph.add("mnn.Attention", [x, x, x, mask]).output])
    with pytest.raises(LadingError, match="T230") as caught:
        to_model(graph)
    assert "mnn.Attention" in str(caught.value) and "infer the types" in str(caught.value)


# ---- graph structure ----


def small() -> tuple[Graph, Value, Value]:
    graph = Graph("small")
    x = graph.add_input("x", TensorType(F32, (Dim("n"), 2)))
    c = graph.add_const("c", InlineTensor(np.array([1.0, 2.0], np.float32)))
    return graph, x, c


def test_names_types_and_metadata() -> None:
    graph, x, c = small()
    node = graph.add("Add", [x, c], outputs=["sum"], name="adder", loc="file:adder")
    node.metadata["who"] = "me"
    graph.metadata["family"] = "test"
    graph.set_outputs([graph.add("Relu", [node.output], outputs=["y"]).output])
    assert infer_types(graph) == []
    model = checked(graph)
    assert (model.ir_version, model.producer_name, model.graph.name) == (11, "lading", "small")
    assert {p.key: p.value for p in model.metadata_props} == {"family": "test"}
    made = model.graph.node[0]
    assert (made.name, list(made.input), list(made.output)) == ("adder", ["x", "c"], ["sum"])
    assert {p.key: p.value for p in made.metadata_props} == {"who": "me", LOCATION: "file:adder"}
    assert [dim.dim_param or dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == ["n", 2]
    assert [info.name for info in model.graph.value_info] == ["sum"]


def test_inputs_and_constants_may_be_outputs() -> None:
    graph, x, c = small()
    y = graph.add("Neg", [x]).output
    graph.set_outputs([y, x, c, y])
    infer_types(graph)
    model = checked(graph)
    assert [item.name for item in model.graph.output] == [y.name, "x", "c"]
    found = session(model).run(None, {"x": np.ones((1, 2), np.float32)})
    assert [array.tolist() for array in found] == [[[-1.0, -1.0]], [[1.0, 1.0]], [1.0, 2.0]]


def test_tables_are_further_outputs() -> None:
    graph, x, c = small()
    graph.set_outputs([graph.add("Neg", [x]).output])
    graph.set_table("embedding", c)
    infer_types(graph)
    assert [item.name for item in checked(graph, tables=True).graph.output] == [graph.outputs[0].name, "c"]
    assert len(to_model(graph).graph.output) == 1


def test_inputs_left_out_in_the_middle() -> None:
    graph, x, _ = small()
    top = graph.add_const("top", InlineTensor(np.array(0.5, np.float32)))
    graph.set_outputs([graph.add("Clip", [x, None, top]).output])
    infer_types(graph)
    assert list(checked(graph).graph.node[0].input) == ["x", "", "top"]


def test_attributes_have_the_declared_kind() -> None:
    graph, x, _ = small()
    values = [
        graph.add("LeakyRelu", [x], {"alpha": 1}).output,
        graph.add("Gelu", [x], {"approximate": "tanh"}).output,
        graph.add("Constant", [], {"value": InlineTensor(np.array([3], np.int64))}).output,
        graph.add("Constant", [], {"value_floats": (1, 2.5)}).output,
        graph.add("Constant", [], {"value_strings": ("a", "b")}).output,
        graph.add("Optional", [], {"type": TensorType(F32, (1,))}).output,
        graph.add("ReduceSum", [x], {"keepdims": 0, "noop_with_empty_axes": 0}).output,
    ]
    graph.set_outputs(values[:4])
    infer_types(graph)
    model = to_model(graph)
    kinds = {attr.name: attr.type for node in model.graph.node for attr in node.attribute}
    names = onnx.AttributeProto
    assert kinds == {
        "alpha": names.FLOAT, "approximate": names.STRING, "value": names.TENSOR, "value_floats": names.FLOATS,
        "value_strings": names.STRINGS, "type": names.TYPE_PROTO, "keepdims": names.INT, "noop_with_empty_axes": names.INT,
    }  # fmt: skip
    found = session(model).run(None, {"x": -np.ones((1, 2), np.float32)})
    assert found[0].tolist() == [[-1.0, -1.0]] and found[2].tolist() == [3] and found[3].tolist() == [1.0, 2.5]


def test_subgraphs_and_captured_values() -> None:
    graph, x, c = small()
    flag = graph.add_input("flag", TensorType(BOOL, ()))
    node = graph.add("If", [flag])
    for name, op in (("then_branch", "Add"), ("else_branch", "Sub")):
        sub = Graph(name, owner=node)
        inner = sub.add_const("k", InlineTensor(np.array([10.0], np.float32)))
        sub.set_outputs([sub.add("Mul", [sub.add(op, [x, c]).output, inner]).output])
        graph.set_attrs(node, **{name: sub})
    graph.set_outputs([node.output])
    assert infer_types(graph) == []
    model = checked(graph)
    assert [item.name for item in model.graph.initializer] == ["c"]
    feeds = {"x": np.ones((1, 2), np.float32)}
    for value, want in ((True, [[20.0, 30.0]]), (False, [[0.0, -10.0]])):
        assert session(model).run(None, {**feeds, "flag": np.array(value)})[0].tolist() == want


def test_functions_of_the_graph_are_written() -> None:
    graph, x, _ = small()
    body = Graph("Scale", {"": 24})
    a = body.add_input("a", None)
    body.set_outputs([a, body.add("Mul", [a, body.add_const("two", InlineTensor(np.float32(2)))]).output])
    graph.functions["local.Scale"] = body
    graph.opsets["local"] = 1
    node = graph.add("local.Scale", [x], outputs=("", ""))
    graph.set_outputs(node.outputs)
    assert infer_types(graph) == []
    model = checked(graph)
    assert [(item.domain, item.name) for item in model.functions] == [("local", "Scale")]
    same, doubled = session(model).run(None, {"x": np.ones((1, 2), np.float32)})
    assert same.tolist() == [[1.0, 1.0]] and doubled.tolist() == [[2.0, 2.0]]


def test_some_nodes_of_a_graph() -> None:
    graph, x, c = small()
    middle = graph.add("Add", [x, c]).output
    last = graph.add("Neg", [middle])
    infer_types(graph)
    model = export_nodes(graph, [last], [middle], [last.output])
    onnx.checker.check_model(model)
    assert not model.graph.initializer
    (found,) = session(model).run(None, {middle.name: np.ones((1, 2), np.float32)})
    assert found.tolist() == [[-1.0, -1.0]]


def test_constants_can_be_inputs() -> None:
    graph, x, c = small()
    graph.set_outputs([graph.add("Add", [x, c]).output])
    infer_types(graph)
    model = checked(graph, constants=lambda value: None)
    assert [item.name for item in model.graph.input] == ["x", "c"] and not model.graph.initializer
    asked: list[Value] = []
    checked(graph, constants=lambda value: asked.append(value) or tensor_proto(value.const, value.name))
    assert asked == [c]


# ---- types and bytes ----


@pytest.mark.parametrize(
    ("name", "opset", "number"),
    [
        ("i4", 24, TensorProto.INT4), ("i3", 24, TensorProto.INT4), ("i2", 24, TensorProto.INT4),
        ("u2", 24, TensorProto.UINT4), ("i2", 25, TensorProto.INT2), ("i5", 24, TensorProto.INT8),
        ("i7", 25, TensorProto.INT8), ("bf16", 24, TensorProto.BFLOAT16), ("f32", 24, TensorProto.FLOAT),
    ],
)  # fmt: skip
def test_widths_that_onnx_lacks_are_widened(name: str, opset: int, number: int) -> None:
    dtype = DTYPES[name]
    assert onnx_dtype(dtype, opset) == number
    low = dtype.low if dtype.is_integer else -2
    array = np.array([low, 0, 1, low, 1, 0, 1], np.float32).astype(np.int8 if dtype.is_integer else dtype.numpy)
    tensor = InlineTensor(array.astype(dtype.numpy), dtype)
    proto = tensor_proto(tensor, "t", opset)
    assert proto.data_type == number
    np.testing.assert_array_equal(numpy_helper.to_array(proto).astype(np.float32), array.astype(np.float32))
    assert proto.raw_data == onnx_bytes(tensor.load(), dtype, opset)


def test_strings_are_written_as_utf8() -> None:
    proto = tensor_proto(InlineTensor(np.array(["Ä", "b"], object)), "s")
    assert list(proto.string_data) == ["Ä".encode(), b"b"]


@pytest.mark.parametrize(
    "type_",
    [
        TensorType(F32, (1, Dim("n"), 3)), TensorType(F32, ()), TensorType(F16), SequenceType(TensorType(I64, (2,))),
        OptionalType(SequenceType(TensorType(F32))), MapType(I64, TensorType(F32, ())),
    ],
    ids=str,
)  # fmt: skip
def test_types_come_back(type_) -> None:
    proto = onnx.TypeProto()
    write_type(proto, type_)
    assert read_type(proto, {}) == type_


def test_types_that_say_nothing() -> None:
    assert read_type(onnx.TypeProto(), {}) is None
    proto = onnx.helper.make_tensor_type_proto(1, [None, "n"])
    known = Dim("n", 3, 5)
    found = read_type(proto, {"n": known}, lambda: Dim("open"))
    assert found.shape == (Dim("open"), known) and found.shape[1].high == 5


# ---- files ----


def large() -> Graph:
    """Constants of every sort above the limit for inline ones: plain, transposed, cast, four-bit, four-bit
    transposed."""
    graph = Graph("large")
    x = graph.add_input("x", TensorType(F32, (Dim("n"), 64)))
    plain = InlineTensor(RNG.standard_normal((64, 48)).astype(np.float32))
    half = InlineTensor(RNG.standard_normal((40, 48)).astype(np.float16))
    codes = InlineTensor(RNG.integers(-8, 8, (80, 40)).astype(ml_dtypes.int4))
    y = graph.add("MatMul", [x, graph.add_const("plain", plain)]).output
    y = graph.add("MatMul", [y, graph.add_const("turned", transposed(cast(half, F32)))]).output
    scale = graph.add_const("scale", InlineTensor(RNG.random(80).astype(np.float32)))
    weight = graph.add("DequantizeLinear", [graph.add_const("codes", transposed(codes)), scale], {"axis": 1}).output
    graph.set_outputs([graph.add("MatMul", [y, weight], outputs=["y"]).output])
    assert infer_types(graph) == []
    return graph


def test_large_constants_go_to_a_file(tmp_path: Path) -> None:
    graph = large()
    layout = layout_external(graph)
    assert {value.name for value in layout} == {"plain", "turned", "codes"}
    assert all(offset % 4096 == 0 for offset, _ in layout.values())
    target = tmp_path / "model.onnx"
    write_model(graph, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    onnx.checker.check_model(str(target))
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    np.testing.assert_allclose(session(str(target)).run(None, {"x": x})[0], evaluate(graph, {"x": x})["y"], rtol=1e-5)
    stored = onnx.load(str(target))
    for item in stored.graph.initializer:
        want = graph.consts[item.name].const.load().astype(np.float32)
        np.testing.assert_array_equal(numpy_helper.to_array(item).astype(np.float32), want)
    write_model(graph, target)
    assert len(list(tmp_path.iterdir())) == 2, "an existing pair is replaced"


def test_external_models_name_the_file_alone() -> None:
    model = to_model(large(), external=True)
    places = [{e.key: e.value for e in item.external_data} for item in model.graph.initializer if item.external_data]
    assert {place["location"] for place in places} == {"large.onnx.data"} and len(places) == 3


def test_transposed_constants_are_written_in_column_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ir.onnx.values as values

    monkeypatch.setattr(values, "PIECE_BYTES", 1 << 10)
    graph = large()
    write_model(graph, tmp_path / "m.onnx")
    for item in onnx.load(str(tmp_path / "m.onnx")).graph.initializer:
        want = graph.consts[item.name].const.load().astype(np.float32)
        np.testing.assert_array_equal(numpy_helper.to_array(item).astype(np.float32), want)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LadingError, match="T232"):
        write_model(large(), tmp_path / "missing" / "model.onnx")
    graph = large()
    value = graph.consts["plain"]

    class Broken(InlineTensor):
        def elements(self, start: int, stop: int) -> np.ndarray:
            raise LadingError("T232", "the source is gone")

    graph.set_const(value, Broken(value.const.load()))
    with pytest.raises(LadingError, match="the source is gone"):
        write_model(graph, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
