"""What is read off an ONNX message without lifting it: names that nothing makes, types, operators."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from frontends.onnx.survey import survey
from tests.support.lost.models import lost_model

F, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def info(name, kind=F, shape=("n",)):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs=(), outputs=(), **options):
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), **options)


@pytest.mark.parametrize(
    ("kind", "name", "reading", "types"),
    [
        ("slice", "logits_index", "Slice 'rows' (starts)", ("i32", "i64")),
        ("end", "length", "Slice 'rows' (ends)", ("i32", "i64")),
        ("gather", "logits_index", "Gather 'rows' (indices)", ("i32", "i64")),
        ("where", "keep", "Where 'rows' (condition)", ("bool",)),
        ("reshape", "shape", "Reshape 'rows' (shape)", ("i64",)),
    ],
)
def test_a_tensor_that_nothing_makes(kind, name, reading, types):
    (lost,) = survey(lost_model(kind)).lost
    assert (lost.name, [str(item) for item in lost.readings], lost.types) == (name, [reading], types)
    assert not lost.output


@pytest.mark.parametrize("kind", ["whole", "frozen", "last"])
def test_nothing_is_lost_in_a_whole_model(kind):
    assert survey(lost_model(kind)).lost == ()
    assert survey(lost_model("slice", declared=True)).lost == ()


def test_operands_behind_the_last_one_that_is_there():
    (lost,) = survey(lost_model("matmul")).lost
    assert lost.readings[0].last
    (lost,) = survey(lost_model("slice")).lost
    assert not lost.readings[0].last


def test_types_that_several_readers_force():
    nodes = [helper.make_node("Gather", ["x", "k"], ["a"]), helper.make_node("Reshape", ["x", "k"], ["b"])]
    (lost,) = survey(model(nodes, [info("x")], [info("a"), info("b")])).lost
    assert lost.types == ("i64",) and len(lost.readings) == 2


def test_an_output_that_nothing_makes():
    (lost,) = survey(model([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [info("z")])).lost
    assert (lost.name, lost.readings, lost.output) == ("z", (), True)


def test_names_of_bodies():
    """A branch reads what is around it; what is nowhere is lost, and what it makes itself is not."""
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "away"], ["in"]), helper.make_node("Relu", ["in"], ["out"])],
        "b",
        [],
        [info("out")],
    )
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["out"])], "o", [], [info("out")])
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=body, else_branch=other)
    found = survey(model([node], [info("x"), info("c", BOOL, [])], [info("y")]))
    assert [(item.name, str(item.readings[0])) for item in found.lost] == [("away", "If 'choice' (in a body)")]
    assert found.operators == {("", "If"): 1, ("", "Add"): 1, ("", "Relu"): 2} and found.nodes == 4


def test_nodes_that_are_out_of_order_lose_nothing():
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])]
    assert survey(model(nodes, [info("x")], [info("y")])).lost == ()


def test_declarations():
    untyped = onnx.ValueInfoProto(name="u")
    odd = info("x", I64, (1, "seq", None))
    odd.type.tensor_type.shape.dim.add().dim_value = -1
    found = survey(model([helper.make_node("Relu", ["u"], ["y"])], [untyped, odd], [info("y")]))
    assert [(item.name, str(item), item.made) for item in found.inputs] == [
        ("u", "no type", True),
        ("x", "i64[1, seq, ?, ?]", False),
    ]


def test_domains_functions_and_weights():
    function = helper.make_function(
        "own", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("Twice", ["x"], ["a"], domain="own"),
        helper.make_node("Gelu", ["a"], ["y"], domain="com.microsoft"),
        helper.make_node("Relu", ["y"], ["z"], domain="ai.onnx"),
    ]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("z")], [helper.make_tensor("w", F, [1], [1.0])])
    opsets = [helper.make_opsetid("ai.onnx", 17), helper.make_opsetid("com.microsoft", 1)]
    found = survey(helper.make_model(graph, functions=[function], opset_imports=opsets))
    assert found.operators == {("own", "Twice"): 1, ("com.microsoft", "Gelu"): 1, ("", "Relu"): 1, ("", "Add"): 1}
    assert found.functions == {("own", "Twice")} and found.stored == {"f32": 1}
    assert found.opsets == {"": 17, "com.microsoft": 1}
