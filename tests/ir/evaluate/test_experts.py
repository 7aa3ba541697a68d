"""Dispatch and Combine: against plain numpy, at every size, and through the passes that hold for all graphs."""

from __future__ import annotations

import numpy as np
import pytest

from ir.base.types import F32, I64, Dim, TensorType
from ir.dialects.experts import COMBINE, DISPATCH, partner
from ir.evaluate.evaluator import evaluate, sample_feeds
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from ir.ops.meaning import define
from ir.text.parser import parse
from ir.text.printer import print_graph
from ir.verify.stages import verify
from passes.framework.manager import PassManager
from tests.support.contrib.one_operator import run

RNG = np.random.default_rng(3)


def chosen(tokens: int, best: int, experts: int, dtype: type = np.int64) -> np.ndarray:
    """Choices of different experts for each token."""
    return np.stack([RNG.permutation(experts)[:best] for _ in range(tokens)])[None].astype(dtype)


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize(
    ("tokens", "best", "experts"), [(5, 2, 4), (1, 2, 8), (7, 1, 1), (6, 3, 3), (40, 4, 60), (3, 1, 128)]
)
def test_rows_go_to_their_experts_and_back(tokens: int, best: int, experts: int, dtype: type) -> None:
    hidden = RNG.standard_normal((1, tokens, 3)).astype(np.float32)
    choices = chosen(tokens, best, experts, dtype)
    parts = run(DISPATCH, hidden, choices, outputs=experts, dynamic=True, experts=experts)
    for expert, rows in enumerate(parts):
        np.testing.assert_array_equal(rows, hidden[:, np.flatnonzero((choices[0] == expert).any(-1))])
    weights = RNG.random((1, tokens, best)).astype(np.float32)
    made = [rows * np.float32(expert + 1) for expert, rows in enumerate(parts)]
    (found,) = run(COMBINE, choices, weights, *made, dynamic=True)
    want = (hidden[:, :, None].astype(np.float64) * ((choices + 1) * weights)[..., None]).sum(2)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_an_expert_chosen_twice_counts_twice() -> None:
    hidden, choices = np.array([[[1.0, 2.0]]], np.float32), np.array([[[1, 1]]])
    parts = run(DISPATCH, hidden, choices, outputs=2, experts=2)
    assert [rows.shape for rows in parts] == [(1, 0, 2), (1, 2, 2)]
    (found,) = run(COMBINE, choices, np.array([[[0.25, 0.5]]], np.float32), *parts)
    np.testing.assert_array_equal(found, hidden * 0.75)


def mixture(experts: int = 4, best: int = 2, opset: int = 24) -> Graph:
    """Tokens through experts that each scale them, with choices and weights as inputs."""
    graph = Graph("mixture", {"": opset})
    seq = graph.add_dim(Dim("S", 1, 64))
    hidden = graph.add_input("hidden", TensorType(F32, (1, seq, 8)))
    choices = graph.add_input("choices", TensorType(I64, (1, seq, best)))
    weights = graph.add_input("weights", TensorType(F32, (1, seq, best)))
    parts = graph.add(DISPATCH, [hidden, choices], {"experts": experts}, outputs=("part",) * experts).outputs
    made = [graph.add("Neg" if number % 2 else "Relu", [part]).output for number, part in enumerate(parts)]
    graph.set_outputs([graph.add(COMBINE, [choices, weights, *made]).output])
    assert infer_types(graph) == []
    return graph


def test_types_say_that_experts_get_rows_of_their_own_number() -> None:
    graph = mixture()
    dispatch = next(node for node in graph.nodes if node.op == DISPATCH)
    rows = [value.dims[1] for value in dispatch.outputs]
    assert len({dim.name for dim in rows}) == 4
    assert all((graph.dims[dim.name].low, graph.dims[dim.name].high) == (0, 128) for dim in rows)
    assert graph.outputs[0].type == graph.inputs[0].type
    before = print_graph(graph)
    assert infer_types(graph) == [] and print_graph(graph) == before
    again = graph.add(DISPATCH, dispatch.inputs, dispatch.attrs, outputs=("more",) * 4)
    assert infer_types(graph) == []
    assert [value.dims[1] for value in again.outputs] == rows, "the same choices give as many rows"


def test_partners_read_the_same_choices() -> None:
    graph = mixture()
    dispatch = next(node for node in graph.nodes if node.op == DISPATCH)
    combine = graph.outputs[0].producer
    assert partner(dispatch) is combine and partner(combine) is dispatch
    graph.add(DISPATCH, dispatch.inputs, dispatch.attrs, outputs=("more",) * 4)
    assert partner(combine) is None


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "outputs", "text"),
    [
        (DISPATCH, [(F32, (1, 3, 8)), (I64, (1, 3, 2))], {"experts": 4}, 3, "4 experts give 4 outputs, not 3"),
        (DISPATCH, [(F32, (1, 3, 8)), (I64, (1, 3, 2))], {"experts": 0}, 1, "experts is 0"),
        (DISPATCH, [(F32, (3, 8)), (I64, (1, 3, 2))], {"experts": 1}, 1, "are not [1, S, H]"),
        (DISPATCH, [(F32, (1, 3, 8)), (I64, (3, 2))], {"experts": 1}, 1, "are not [1, S, K]"),
        (COMBINE, [(I64, (1, 3, 2)), (F32, (1, 3, 1)), (F32, (1, 3, 8))], {}, 1, "are not one for each"),
        (COMBINE, [(I64, (1, 3, 2)), (F32, (1, 3, 2)), (F32, (3, 8))], {}, 1, "rank 2"),
        (COMBINE, [(I64, (1, 3, 1)), (F32, (1, 3, 1)), (F32, (1, 3, 8)), (F32, (1, 0, 4))], {}, 1, "of 8 and of 4"),
    ],
)
def test_operands_that_do_not_fit(op: str, inputs: list, attrs: dict, outputs: int, text: str) -> None:
    graph = Graph("bad")
    values = [graph.add_input(f"x{place}", TensorType(*type_)) for place, type_ in enumerate(inputs)]
    graph.add(op, values, attrs, outputs=("",) * outputs)
    (problem,) = infer_types(graph)
    assert problem.code == "T212" and text in problem.message


def test_results_of_the_wrong_expert_are_noticed() -> None:
    graph = mixture()
    combine = graph.outputs[0].producer
    graph.set_input(combine, 2, combine.inputs[3])
    (problem,) = infer_types(graph)
    assert problem.code == "T212" and "expert 0 is given" in problem.message
    graph = mixture()
    combine = graph.outputs[0].producer
    graph.set_outputs([graph.add(COMBINE, combine.inputs[:-1]).output])
    graph.erase(combine)
    (problem,) = infer_types(graph)
    assert problem.code == "T212" and "3 results for 4 experts" in problem.message


@pytest.mark.parametrize("opset", [13, 18, 24])
def test_passes_keep_the_numbers(opset: int) -> None:
    graph = mixture(opset=opset)
    feeds = sample_feeds(graph, {"S": 9})
    assert feeds["choices"].min() >= 0 and feeds["choices"].max() < 4
    before = evaluate(graph, feeds)
    dispatch = next(node for node in graph.nodes if node.op == DISPATCH)
    twin = graph.add(DISPATCH, dispatch.inputs, dispatch.attrs, outputs=("twin",) * 4)
    graph.set_input(graph.outputs[0].producer.inputs[3].producer, 0, twin.outputs[1])
    graph.add("Neg", [twin.outputs[2]])
    PassManager("infer-types,canonicalize").run(graph)
    assert verify(graph) == []
    assert [node.op for node in graph.nodes].count(DISPATCH) == 1, "one of the equal ones is kept, with all its results"
    for name, array in evaluate(graph, feeds).items():
        np.testing.assert_array_equal(array, before[name])
    again = parse(print_graph(graph))
    assert print_graph(again) == print_graph(graph)


def test_the_meaning_does_not_grow_with_the_experts() -> None:
    sizes = set()
    for experts in (2, 64):
        dispatch = next(node for node in mixture(experts).nodes if node.op == DISPATCH)
        sizes.add((len(define(dispatch).nodes), len(define(partner(dispatch)).nodes)))
    assert len(sizes) == 1
