"""Mixtures of experts in MNN's form: one operator, a graph for each expert, and what has no such form."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from backends.mnn.target.releases import target
from backends.mnn.write.net_json import build_net
from backends.mnn.write.weight_layout import plan_layout
from ir.base.diag import LadingError
from ir.base.types import F32, I64, Dim, TensorType
from ir.graph.graph import Graph, Value
from ir.tensor.inline import InlineTensor
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from tests.support.decoders.operators import PIPELINE

RNG = np.random.default_rng(5)


def mixture(change=None, layers: int = 1) -> Graph:
    """Two linear experts, with choices and weights as inputs; `change` may give other results for them."""
    graph = Graph("mixture")
    seq = graph.add_dim(Dim("S", 1, None))
    x = graph.add_input("x", TensorType(F32, (1, seq, 8)))
    choices = graph.add_input("choices", TensorType(I64, (1, seq, 1)))
    weights = graph.add_input("weights", TensorType(F32, (1, seq, 1)))
    for layer in range(layers):
        parts = graph.add("lading.Dispatch", [x, choices], {"experts": 2}, outputs=("p", "q")).outputs
        made = [linear(graph, part, f"{layer}.{number}.weight") for number, part in enumerate(parts)]
        if change is not None:
            made = change(graph, made)
        x = graph.add("lading.Combine", [choices, weights, *made], outputs=["y"]).output
    graph.set_outputs([x, *graph.outputs])
    return graph


def watched(graph: Graph, made: list[Value]) -> list[Value]:
    """The results, something computed from the first of which is an output too."""
    graph.set_outputs([graph.add("ReduceSum", [made[0]]).output])
    return made


def linear(graph: Graph, rows: Value, name: str) -> Value:
    weight = graph.add_const(name, InlineTensor(RNG.standard_normal((8, 8)).astype(np.float32)))
    return graph.add("MatMul", [rows, weight]).output


def lowered(graph: Graph, name: str = "portable") -> Graph:
    PassManager(PIPELINE).run(graph, PassContext(target(name)))
    return graph


def test_each_expert_is_a_graph_with_its_own_tensors_and_the_common_weight_file():
    graph = lowered(mixture(layers=2))
    layout = plan_layout(graph)
    net = build_net(graph, layout)
    mixtures = [op for op in net["oplists"] if op["type"] == "MoE"]
    assert [{item["key"]: item["i"] for item in op["main"]["attr"]} for op in mixtures] == [
        {"layer_id": layer, "num_experts": 2, "top_k": 1} for layer in range(2)
    ]
    assert {op["main_type"] for op in mixtures} == {"Extra"} and {len(op["inputIndexes"]) for op in mixtures} == {3}
    assert not any(op["type"] == "Convolution" for op in net["oplists"])
    inner = net["subgraphs"]
    assert [item["name"] for item in inner] == ["/expert/0_0", "/expert/0_1", "/expert/1_0", "/expert/1_1"]
    offsets = []
    for item in inner:
        assert len(item["inputs"]) == len(item["outputs"]) == 1
        assert item["nodes"][0]["type"] == "Input" and item["nodes"][0]["outputIndexes"] == item["inputs"]
        assert {place for op in item["nodes"] for place in op["outputIndexes"]} == set(range(len(item["tensors"])))
        (product,) = [op for op in item["nodes"] if op["type"] == "Convolution"]
        offsets.append(product["main"]["external"][0])
    assert all(after - before == 4 * 8 * 9 for before, after in pairwise(offsets)) and layout.nbytes == 4 * 4 * 8 * 9


SHARED = {
    "a result of another": (lambda graph, made: [made[0], graph.add("Add", [made[1], made[1]]).output], None),
    "a number of another": (
        lambda graph, made: [
            made[0], graph.add("Mul", [made[1], graph.add("ReduceMax", [made[0]], {"keepdims": 0}).output]).output
        ],
        "of expert 0 is read outside of it",
    ),
    "an output": (lambda graph, made: watched(graph, made), "of expert 0 is an output of the graph"),
    "an input": (
        lambda graph, made: [made[0], graph.add("Mul", [made[1], graph.add_input("scale", TensorType(F32, ()))]).output],
        "expert 1 reads %scale",
    ),
    "something computed": (
        lambda graph, made: [
            made[0], graph.add("Mul", [made[1], graph.add("ReduceMax", [graph.value("x")], {"keepdims": 0}).output]).output
        ],
        "which is not computed from its rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_nothing_leads_into_an_expert_or_out_of_it(name):
    change, text = SHARED[name]
    graph = mixture(change)
    if text is None:
        assert lowered(graph)
        return
    with pytest.raises(LadingError) as caught:
        lowered(graph)
    assert caught.value.code == "P374" and text in str(caught.value)


def test_choices_have_to_be_those_of_the_rows():
    graph = mixture()
    combine = graph.outputs[0].producer
    other = graph.add_input("others", combine.inputs[0].type)
    graph.set_input(combine, 0, other)
    with pytest.raises(LadingError, match="its choices are not those") as caught:
        lowered(graph)
    assert caught.value.code == "P374"


def test_a_release_without_the_operator_is_named():
    assert lowered(mixture(), "3.2.0")
    with pytest.raises(LadingError, match=r"needs a mixture of experts, and MNN 3\.1\.0 has no operator") as caught:
        lowered(mixture(), "3.1.0")
    assert caught.value.code == "P375" and "--to onnx" in caught.value.diagnostics[0].hint
