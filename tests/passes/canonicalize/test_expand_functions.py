"""Calls of model-local functions are written out, and graphs are brought to a newer version of ONNX's operators."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from backends.onnx.write import to_model
from frontends.onnx.load import load
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from ir.ops.opset import upgrade
from ir.verify.stages import verify
from passes.framework.instruments import VerifyEach
from passes.framework.manager import PassManager

ROW = np.array([-1.0, 3.0], np.float32)


def expanded(model: onnx.ModelProto, pipeline: str = "expand-functions,infer-types") -> tuple[Graph, list[str]]:
    """The graph without calls, and the codes of warnings."""
    graph = load(model)
    report = PassManager(pipeline, (VerifyEach(),)).run(graph)
    return graph, [item.code for item in report.all_diagnostics()]


def both(model: onnx.ModelProto, **feeds: np.ndarray) -> tuple[dict, dict]:
    """What the model gives as it is, and without calls, which it must not have any more."""
    graph, warnings = expanded(model)
    assert not graph.functions and not warnings
    assert not any(node.domain.startswith("pkg") for node in graph.walk())
    assert [value.name for value in graph.outputs] == [item.name for item in model.graph.output]
    assert not [item for item in verify(load(to_model(graph))) if item.severity == "error"]
    return evaluate(load(model), feeds), evaluate(graph, feeds)


def same(model: onnx.ModelProto, **feeds: np.ndarray) -> None:
    """Raise AssertionError when the numbers differ."""
    before, after = both(model, **feeds)
    for name, array in before.items():
        assert after[name].shape == array.shape
        np.testing.assert_array_equal(after[name], array)


NESTED = """
<ir_version: 10, opset_import: ["" : 20, "pkg.mine" : 1]>
g (float[n] x) => (float[n] y, float[n] z) {
    y = pkg.mine.outer <alpha = 0.5> (x)
    z = pkg.mine.outer (y)
}
<domain: "pkg.mine", opset_import: ["" : 20, "pkg.mine" : 1]>
outer <alpha: float = 0.25> (v) => (w) {
    h = pkg.mine.inner <slope: float = @alpha> (v)
    w = pkg.mine.inner <slope = 3.0> (h)
}
<domain: "pkg.mine", opset_import: ["" : 20]>
inner <slope: float = 0.125, to: int = 1> (v) => (w) {
    h = LeakyRelu <alpha: float = @slope> (v)
    c = Cast <to: int = @to> (h)
    two = Constant <value = float {2}> ()
    w = Mul(c, two)
}
"""


def test_calls_in_calls_with_attributes_and_defaults():
    same(parser.parse_model(NESTED), x=ROW)


def test_what_is_left_keeps_the_names_of_the_model():
    graph, _ = expanded(parser.parse_model(NESTED))
    assert [node.op for node in graph.nodes] == ["LeakyRelu", "Cast", "Constant", "Mul"] * 4
    assert {"x", "y", "z"} <= set(graph._names)
    assert graph.value("y").producer.loc == "y/w/w"


def test_a_function_that_hands_its_input_on_and_returns_one_value_twice():
    model = parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 20, "pkg.mine" : 1]>
    g (float[n] x) => (float[n] a, float[n] b, float[n] c, float[n] d) {
        a, b, c = pkg.mine.three (x)
        d = Neg(a)
    }
    <domain: "pkg.mine", opset_import: ["" : 20]>
    three (v) => (v, w, w) { w = Relu(v) }
    """)
    same(model, x=ROW)


def test_inputs_that_a_call_leaves_out():
    model = parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 20, "pkg.mine" : 1]>
    g (float[n] x, float high) => (float[n] a, float[n] b, float[n] c) {
        a = pkg.mine.limit (x, , high)
        b = pkg.mine.limit (x)
        low, same = pkg.mine.hand_on (x)
        c = Clip(same, low)
    }
    <domain: "pkg.mine", opset_import: ["" : 20]>
    limit (v, low, high) => (w) { w = Clip(v, low, high) }
    <domain: "pkg.mine", opset_import: ["" : 20]>
    hand_on (v, low) => (low, w) { w = Neg(v) }
    """)
    graph, _ = expanded(model)
    found = evaluate(graph, {"x": ROW, "high": np.float32(2)})
    assert [found[name].tolist() for name in "abc"] == [[-1.0, 2.0], [-1.0, 3.0], [1.0, -3.0]]


def test_overloads_are_functions_of_their_own():
    model = parser.parse_model(NESTED)
    second = model.functions.add()
    second.CopyFrom(model.functions[1])
    second.overload = "negative"
    del second.node[:]
    second.node.append(helper.make_node("Neg", ["v"], ["w"]))
    model.functions[0].node[1].overload = "negative"
    del model.functions[0].node[1].attribute[:]
    graph, _ = expanded(model)
    assert evaluate(graph, {"x": ROW})["y"].tolist() == [1.0, -6.0]


def body(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
    """A branch of one node."""
    output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
    return helper.make_graph([node], name, [], [output])


def branching() -> onnx.ModelProto:
    """A function whose branches capture its operands, refer to its attributes and call another function."""
    branches = {
        "then_branch": body("yes", helper.make_node("LeakyRelu", ["h"], ["t"])),
        "else_branch": body("no", helper.make_node("twice", ["h"], ["e"], domain="pkg.mine")),
    }
    branches["then_branch"].node[0].attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    nodes = [helper.make_node("Neg", ["v"], ["h"]), helper.make_node("If", ["flag"], ["w"], **branches)]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("pkg.mine", 1)]
    choose = helper.make_function("pkg.mine", "choose", ["flag", "v"], ["w"], nodes, opsets, ["slope"])
    double = [helper.make_node("Add", ["v", "v"], ["w"])]
    twice = helper.make_function("pkg.mine", "twice", ["v"], ["w"], double, opsets[:1])
    calls = [
        helper.make_node("choose", ["flag", "x"], ["h"], domain="pkg.mine", slope=0.5),
        helper.make_node("choose", ["flag", "h"], ["y"], domain="pkg.mine", slope=0.25),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        calls, "g", [info("flag", TensorProto.BOOL, []), info("x", TensorProto.FLOAT, ["n"])],
        [info("y", TensorProto.FLOAT, ["n"])],
    )  # fmt: skip
    return helper.make_model(graph, functions=[choose, twice], opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("flag", [True, False])
def test_bodies_capture_refer_and_call(flag):
    same(branching(), flag=np.array(flag), x=ROW)


def test_calls_inside_of_bodies_of_the_model():
    model = branching()
    inner = helper.make_graph(
        [helper.make_node("twice", ["x"], ["h2"], domain="pkg.mine")],
        "then",
        [],
        [helper.make_tensor_value_info("h2", TensorProto.FLOAT, None)],
    )
    other = body("else", helper.make_node("Abs", ["x"], ["h3"]))
    model.graph.node.insert(0, helper.make_node("If", ["flag"], ["first"], then_branch=inner, else_branch=other))
    model.graph.output.append(helper.make_tensor_value_info("first", TensorProto.FLOAT, ["n"]))
    same(model, flag=np.array(True), x=ROW)


OLDER = """
<ir_version: 8, opset_import: ["" : 13, "pkg.mine" : 1]>
g (float[2,4] x) => (float[2,1] y) {
    h = pkg.mine.total (x)
    y = ReduceMean <axes = [1]> (h)
}
<domain: "pkg.mine", opset_import: ["" : 18]>
total (v) => (w) {
    axes = Constant <value_ints = [1]> ()
    m = ReduceMax (v, axes)
    w = Sub (v, m)
}
"""


def test_a_function_of_a_newer_opset_takes_the_model_along():
    graph, warnings = expanded(parser.parse_model(OLDER))
    x = np.arange(8, dtype=np.float32).reshape(2, 4) ** 2
    assert graph.opsets[""] == 18 and not graph.functions and not warnings
    wanted = (x - x.max(1, keepdims=True)).mean(1, keepdims=True)
    np.testing.assert_allclose(evaluate(graph, {"x": x})["y"], wanted, rtol=1e-6)


NEAREST = 'Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn">'
"""A way to sample that versions from 13 on have not."""


def test_a_function_that_the_model_cannot_follow_stays():
    text = OLDER.replace("ReduceMean <axes = [1]> (h)", "Relu(u)")
    text = text.replace("h = pkg.mine.total (x)", "h = pkg.mine.total (x)\n u = " + NEAREST + "(x, s, s)")
    model = parser.parse_model(text.replace("float[2,4] x", "float[2,4] x, float[2] s"))
    model.opset_import[0].version = 11
    graph, warnings = expanded(model, "expand-functions")
    assert warnings == ["P323"] and list(graph.functions) == ["pkg.mine.total"] and graph.opsets[""] == 11


def test_a_function_that_nothing_calls_goes():
    model = parser.parse_model(NESTED)
    del model.graph.node[:]
    model.graph.node.extend([helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])])
    graph, _ = expanded(model)
    assert not graph.functions


def test_a_layer_of_functions_is_linear():
    """Every call is written out once, however many there are."""
    calls = 4000
    model = parser.parse_model(NESTED)
    del model.graph.node[:]
    names = ["x", *(f"v{place}" for place in range(calls - 1)), "z"]
    model.graph.node.extend(helper.make_node("outer", [a], [b], domain="pkg.mine") for a, b in pairwise(names))
    del model.graph.output[0]
    graph, _ = expanded(model, "expand-functions")
    assert len(graph.nodes) == 8 * calls


# ---- versions of operators ----


def old_model(text: str, opset: int) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 7, opset_import: ["" : {opset}]>\n{text}')


NUMBERS = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
FORMS = {
    "axes of a reduction": (17, "g (float[2,3,4] x) => (float[n,m] y) { y = ReduceMean <axes = [1], keepdims = 0> (x) }"),
    "a reduction of all axes": (11, "g (float[2,3,4] x) => (float[n] y) { y = ReduceSum <keepdims = 0> (x) }"),
    "axes of a squeeze": (
        11, "g (float[2,3,4] x) => (float[n] y) { u = Unsqueeze <axes = [0, 2]> (x)\n y = Squeeze <axes = [2]> (u) }",
    ),
    "equal parts": (13, "g (float[2,3,4] x) => (float[n] y, float[n] z) { y, z = Split <axis = 2> (x) }"),
    "given parts": (11, "g (float[2,3,4] x) => (float[n] y, float[n] z) { y, z = Split <axis = 2, split = [1, 3]> (x) }"),
    "softmax of the last axis": (11, "g (float[2,3,4] x) => (float[n] y) { y = Softmax <axis = 2> (x) }"),
    "clip": (9, "g (float[2,3,4] x) => (float[n] y) { y = Clip <min = -0.5, max = 0.25> (x) }"),
    "clip from above": (9, "g (float[2,3,4] x) => (float[n] y) { y = Clip <max = 0.25> (x) }"),
    "slice": (9, "g (float[2,3,4] x) => (float[n] y) { y = Slice <starts = [1], ends = [3], axes = [2]> (x) }"),
    "pad": (9, "g (float[2,3,4] x) => (float[n] y) { y = Pad <pads = [0, 0, 1, 0, 0, 2], value = 7.0> (x) }"),
    "top k": (9, "g (float[2,3,4] x) => (float[n] y, int64[n] z) { y, z = TopK <k = 2> (x) }"),
    "dropout with a mask that nobody reads": (
        7, "g (float[2,3,4] x) => (float[n] y) { y, m = Dropout <ratio = 0.9> (x) }",
    ),
    "dropout": (9, "g (float[2,3,4] x) => (float[n] y) { y = Dropout <ratio = 0.9> (x) }"),
    "softmax of several axes": (11, "g (float[2,3,4] x) => (float[n] y) { y = Softmax <axis = 1> (x) }"),
    "softmax by default": (9, "g (float[2,3,4] x) => (float[n] y) { y = Softmax (x) }"),
    "log softmax of all axes": (9, "g (float[2,3,4] x) => (float[n] y) { y = LogSoftmax <axis = 0> (x) }"),
    "upsample": (
        9, "g (float[2,3,4] x) => (float[n] y) <float[3] s = {1.0, 2.0, 1.5}> { y = Upsample (x, s) }",
    ),
    "upsample by attributes": (8, "g (float[2,3,4] x) => (float[n] y) { y = Upsample <scales = [1.0, 1.0, 2.0]> (x) }"),
    "upsample of a computed scale": (
        9, "g (float[2,3,4] x) => (float[n] y) <float[3] s = {1.0, 2.0, 1.0}> { t = Abs (s)\n y = Upsample (x, t) }",
    ),
    "scatter": (
        10, "g (float[2,3,4] x) => (float[n] y) <int64[1,1,2] at = {3, 0}, float[1,1,2] new = {5.0, 6.0}> "
        "{ y = Scatter <axis = 2> (x, at, new) }",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMS)
def test_older_forms_compute_the_same(case):
    opset, text = FORMS[case]
    model = old_model(text, opset)
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")
    before = evaluate(load(model), {"x": NUMBERS})
    graph, warnings = expanded(model, "infer-types,upgrade-opset,infer-types")
    assert graph.opsets[""] == 24 and not warnings
    after = evaluate(graph, {"x": NUMBERS})
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    assert not [item for item in verify(graph) if item.severity == "error"]


BLOCKED = {
    "sampling that is gone": (
        11, "g (float[2,3,4] x, float[3] s) => (float[n] y) { y = " + NEAREST + " (x, s, s) }", "Resize",
    ),
    "nearest of a smaller picture": (
        10, "g (float[2,3,4] x) => (float[n] y) <float[3] s = {1.0, 1.0, 0.5}> { y = Resize (x, s) }", "Resize",
    ),
    "nearest of any size": (10, "g (float[2,3,4] x, float[3] s) => (float[n] y) { y = Resize (x, s) }", "Resize"),
    "training": (6, "g (float[2,3,4] x) => (float[n] y) { y = Dropout (x) }", "Dropout"),
    "parts that are computed": (1, "g (float[4] x, float[2] p) => (float[n] y, float[n] z) { y, z = Split (x, p) }", "Split"),
    "tiles of the first version": (1, "g (float[4] x, float t, float a) => (float[n] y) { y = Tile (x, t, a) }", "Tile"),
}  # fmt: skip


@pytest.mark.parametrize("case", BLOCKED)
def test_what_has_no_newer_form_is_told_and_nothing_is_changed(case):
    opset, text, name = BLOCKED[case]
    graph = load(old_model(text + "\n", opset))
    infer_types(graph)
    version = graph.version
    assert upgrade(graph, 24) == [name]
    assert graph.version == version and graph.opsets[""] == opset
    report = PassManager("upgrade-opset").run(graph)
    (warning,) = report.all_diagnostics()
    assert warning.code == "P324" and name in warning.message and f"stays at opset {opset}" in warning.message


def test_bodies_are_upgraded_with_the_graph_around_them():
    inner = helper.make_graph(
        [helper.make_node("ReduceMax", ["x"], ["t"], axes=[0], keepdims=0)], "yes", [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = body("no", helper.make_node("Abs", ["x"], ["e"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=other)], "g",
        [info("x", TensorProto.FLOAT, [3])], [info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(True), "flag")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    found, _ = expanded(model, "infer-types,upgrade-opset,infer-types")
    assert evaluate(found, {"x": np.array([1, 5, 2], np.float32)})["y"].tolist() == 5.0
