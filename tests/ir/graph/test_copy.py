"""A copy equals its original, subgraphs and functions included, and neither follows the other's edits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from frontends.checkpoint.load import load
from frontends.onnx.load import load as load_onnx
from ir.facts.model_card import ModelCard
from ir.graph.compare import differences
from ir.graph.copy import copied
from ir.graph.graph import Graph
from ir.text.parser import parse
from ir.text.printer import print_graph
from ir.verify.stages import verify
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from tests.support.checkpoints import make_checkpoint
from tests.support.graphs import graphs

BRANCHES = """lading 1
graph g {
  opset "" 24
  dim n = 1..8
  input %x: f32[n]
  const @flag: bool[] = [true]
  const @one: f32[] = [1.0]
  %a = Neg(%x)
  %r = If(@flag) {then_branch = graph then { %t = Add(%a, @one) output %t }, else_branch = graph else { output %a }}
  %y = Mul(%r, @one)
  output %y
}
"""


def same(one: Graph, two: Graph) -> bool:
    return differences(one, two) == [] and print_graph(one) == print_graph(two)


@settings(max_examples=40)
@given(graphs())
def test_a_copy_equals_its_original(graph):
    assert same(graph, copied(graph))


def test_a_copy_of_branches_has_branches_of_its_own():
    graph = parse(BRANCHES)
    twin = copied(graph)
    assert same(graph, twin) and verify(twin) == []
    (one,), (two,) = ([node for node in item.nodes if node.op == "If"] for item in (graph, twin))
    assert not set(one.subgraphs) & set(two.subgraphs)
    assert all(value.graph in twin.graphs() for node in twin.walk() for value in node.inputs)


def test_passes_over_the_copy_leave_the_original_alone(tmp_path):
    graph = load(make_checkpoint(tmp_path / "model", "qwen2"))
    before = print_graph(graph)
    twin = copied(graph)
    PassManager("canonicalize").run(twin, PassContext())
    assert print_graph(graph) == before != print_graph(twin)
    assert ModelCard.of(twin) == ModelCard.of(graph)
    for name, value in graph.consts.items():
        assert name not in twin.consts or twin.consts[name].const is value.const


def test_functions_are_copied(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    body = helper.make_function("own", "Double", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])],
                                [helper.make_opsetid("", 21)])  # fmt: skip
    node = helper.make_node("Double", ["x"], ["y"], domain="own")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", ports[:1], ports[1:]), functions=[body], opset_imports=opsets
    )
    onnx.save(model, tmp_path / "m.onnx")
    graph = load_onnx(tmp_path / "m.onnx")
    twin = copied(graph)
    assert same(graph, twin) and twin.functions.keys() == {"own.Double"}
    assert twin.functions["own.Double"] is not graph.functions["own.Double"]


@pytest.mark.parametrize("field", ["metadata", "dims", "opsets"])
def test_tables_are_not_shared(field):
    graph = parse(BRANCHES)
    twin = copied(graph)
    getattr(twin, field)["new"] = 1
    assert "new" not in getattr(graph, field)
