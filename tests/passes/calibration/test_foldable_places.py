"""Places where features can be scaled or turned: what does not fit is no place, whatever is unknown about it."""

from __future__ import annotations

import numpy as np
import pytest

from ir.base.types import F32, TensorType
from ir.graph.graph import Graph, Node, Value
from ir.tensor.inline import InlineTensor
from passes.calibration.foldable_places import is_last_axis_norm, is_tied, linear_of, norm_group, value_pair


def ones(graph: Graph, *shape: int) -> Value:
    """A float constant."""
    return graph.add_const(graph.fresh_name("ones"), InlineTensor(np.ones(shape, np.float32)))


def norm_graph(x: Value, *gain: int) -> Node:
    """An RMS norm of a value with a linear layer behind it, in the graph of the value."""
    graph = x.graph
    norm = graph.add("RMSNormalization", [x, ones(graph, *gain)])
    graph.set_outputs([graph.add("MatMul", [norm.output, ones(graph, 4, 2)]).output])
    return norm


def test_a_norm_with_one_gain_for_each_feature() -> None:
    graph = Graph("norm")
    norm = norm_graph(graph.add_input("x", TensorType(F32, (2, 4))), 4)
    group = norm_group(norm)
    assert group is not None and [linear.outputs for linear in group.readers] == [2]


@pytest.mark.parametrize("gain", [(), (1,), (1, 4)])
def test_a_norm_whose_gain_is_spread_is_no_place(gain: tuple[int, ...]) -> None:
    graph = Graph("spread")
    assert not is_last_axis_norm(norm_graph(graph.add_input("x", TensorType(F32, (2, 4))), *gain))


def test_a_norm_of_something_unknown_is_no_place() -> None:
    graph = Graph("unknown")
    made = graph.add("some.Operator", [graph.add_input("x", TensorType(F32, (2, 4)))]).output
    assert not is_last_axis_norm(norm_graph(made, 4))


def test_values_of_unknown_rank_are_no_place() -> None:
    graph = Graph("values")
    query = graph.add_input("query", TensorType(F32, (1, 2, 4)))
    value = graph.add("MatMul", [graph.add_input("x", None), ones(graph, 4, 4)]).output
    mixed = graph.add("Attention", [query, query, value], {"q_num_heads": 1, "kv_num_heads": 1})
    graph.set_outputs([graph.add("MatMul", [mixed.output, ones(graph, 4, 2)]).output])
    assert value_pair(mixed) is None


def test_a_look_up_without_a_table_ties_nothing() -> None:
    graph = Graph("gather")
    x = graph.add_input("x", TensorType(F32, (2, 4)))
    product = graph.add("MatMul", [x, ones(graph, 4, 2)])
    graph.set_outputs([product.output, graph.add("Gather", [None, x]).output])
    linear = linear_of(product)
    assert linear is not None and not is_tied(graph, linear)
