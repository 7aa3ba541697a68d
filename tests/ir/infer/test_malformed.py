"""Nodes that break the declaration of their operator, or do not fit their inputs: a coded error, never a crash."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ir.base.diag import LadingError
from ir.base.types import BOOL, DTYPES, F32, I64, Dim, TensorType
from ir.graph.graph import Graph, Value
from ir.infer.engine import infer_node, infer_types
from ir.infer.rule_table import TypeMismatch
from ir.tensor.inline import InlineTensor
from ir.text.printer import print_graph
from passes.framework.manager import PassManager

HUGE = 1 << 40


def ints(graph: Graph, *numbers: int) -> Value:
    """An int64 vector."""
    return graph.add_const(graph.fresh_name("ints"), InlineTensor(np.array(numbers, np.int64)))


def build(make: Callable[[Graph, Value], object]) -> Graph:
    """A graph with input f32[2,3] in which `make` adds a node that is read as the output."""
    graph = Graph("bad")
    node = make(graph, graph.add_input("x", TensorType(F32, (2, 3))))
    graph.set_outputs(node.outputs[:1])
    return graph


def op(kind: str, *inputs: object, outputs: int = 1, types: list | None = None, **attrs: object):
    """Makes one node of the input; a tuple of numbers stands for an int64 vector."""

    def make(graph: Graph, x: Value):
        given = [ints(graph, *item) if isinstance(item, tuple) else item and x for item in inputs]
        names = tuple(f"y{index}" for index in range(outputs))
        return graph.add(kind, given, attrs, outputs=names, types=types)

    return make


def body_op(kind: str, inputs: int, **bodies: tuple[int, int]):
    """Makes a control flow node whose bodies have so many inputs and outputs."""

    def make(graph: Graph, x: Value):
        flag = graph.add_const("flag", InlineTensor(np.array(True)))
        count = graph.add_const("count", InlineTensor(np.array(3, np.int64)))
        given = {"If": [flag], "Loop": [count, flag]}.get(kind, [])
        attrs = {"num_scan_inputs": 1} if kind == "Scan" else {}
        node = graph.add(kind, [*given, *[x] * inputs], attrs)
        for name, (takes, gives) in bodies.items():
            body = Graph(name, owner=node)
            for index in range(takes):
                body.add_input(f"{name}.{index}", None)
            flag = body.add_const(f"{name}.flag", InlineTensor(np.array(True)))
            body.set_outputs([body.add("Identity", [flag]).output for _ in range(gives)])
            graph.set_attrs(node, **{name: body})
        return node

    return make


X = TensorType(F32, (2, 3))
CASES = {
    "cast to no type": ("T212", op("Cast", "x", to=999)),
    "cast to nothing": ("T203", op("Cast", "x")),
    "quantize to no type": ("T212", op("QuantizeLinear", "x", "x", output_dtype=999)),
    "split axis": ("T212", op("Split", "x", axis=5)),
    "transpose axis": ("T212", op("Transpose", "x", perm=(0, 7))),
    "transpose axis twice": ("T212", op("Transpose", "x", perm=(0, 0))),
    "transpose by floats": ("T204", op("Transpose", "x", perm=0.5)),
    "slice axis": ("T212", op("Slice", "x", (0,), (1,), (9,))),
    "slice bounds": ("T212", op("Slice", "x", (0, 0), (1,), (0,))),
    "slice without bounds": ("T201", op("Slice", "x")),
    "scan body": ("T212", body_op("Scan", 1, body=(3, 1))),
    "loop body takes too few": ("T212", body_op("Loop", 1, body=(1, 2))),
    "loop body gives too few": ("T212", body_op("Loop", 1, body=(3, 1))),
    "if branches": ("T212", body_op("If", 0, then_branch=(0, 1), else_branch=(0, 2))),
    "cast with two outputs": ("T201", op("Cast", "x", outputs=2, types=[X, X], to=1)),
    "shape with two outputs": ("T201", op("Shape", "x", outputs=2)),
    "identity of another type": ("T210", op("Identity", "x", types=[TensorType(F32, (7,))])),
    "transpose of another type": ("T210", op("Transpose", "x", types=[TensorType(I64, (2, 3))], perm=(0, 1))),
    "constant without output": ("T201", op("Constant", outputs=0, value_int=1)),
    "reshape without output": ("T201", op("Reshape", "x", (2, 3), outputs=0)),
    "shape without output": ("T201", op("Shape", "x", outputs=0)),
    "relu without output": ("T201", op("Relu", "x", outputs=0)),
    "squeeze of too much": ("T212", lambda g, x: g.add("Squeeze", [x, g.add_input("a", TensorType(I64, (9,)))])),
    "gathered by no coordinates": (
        "T212",
        lambda g, x: g.add("GatherND", [x, g.add_input("at", TensorType(I64, ()))]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_canonicalize_gives_a_code(case: str) -> None:
    code, make = CASES[case]
    with pytest.raises(LadingError) as caught:
        PassManager("canonicalize").run(build(make))
    assert caught.value.code == code


@pytest.mark.parametrize("case", CASES)
def test_rewriting_alone_leaves_it(case: str) -> None:
    graph = build(CASES[case][1])
    before = print_graph(graph)
    PassManager("fold,simplify").run(graph)
    assert print_graph(graph) == before


@pytest.mark.parametrize("case", [name for name in CASES if CASES[name][0] != "T210"])
def test_one_node_does_not_fit(case: str) -> None:
    graph = build(CASES[case][1])
    node = graph.last
    with pytest.raises(TypeMismatch):
        infer_node(node)


@pytest.mark.parametrize("kind", ["Expand", "Reshape", "Unsqueeze", "ConstantOfShape", "Slice"])
def test_a_rank_beyond_sense_takes_no_memory(kind: str) -> None:
    graph = Graph("bomb")
    x, many = graph.add_input("x", X), graph.add_input("many", TensorType(I64, (HUGE,)))
    inputs = {"ConstantOfShape": [many], "Slice": [x, many, many]}.get(kind, [x, many])
    node = graph.add(kind, inputs)
    graph.set_outputs(node.outputs)
    problems = infer_types(graph)
    assert [problem.code for problem in problems] == (["T212"] if kind == "Slice" else [])
    assert node.output.shape is None


def test_long_integer_tensors_are_not_followed() -> None:
    graph = Graph("bomb")
    many = graph.add_input("many", TensorType(I64, (HUGE,)))
    joined = graph.add("Concat", [many, ints(graph, 1)], {"axis": 0}).output
    spread = graph.add("Expand", [ints(graph, 1), ints(graph, HUGE)]).output
    graph.set_outputs([joined, spread])
    assert infer_types(graph) == []
    assert joined.shape == (HUGE + 1,) and spread.shape == (HUGE,)


def test_a_slice_without_bounds_is_not_followed() -> None:
    graph = Graph("empty")
    x = graph.add_input("x", TensorType(I64, (2,)))
    cut = graph.add("Slice", [ints(graph, 4, 5), ints(graph), ints(graph)]).output
    graph.set_outputs([graph.add("Reshape", [x, cut]).output])
    assert infer_types(graph) == []
    assert cut.shape == (2,)


def test_a_part_left_out_of_a_concatenation() -> None:
    graph = Graph("gap")
    x = graph.add_input("x", TensorType(F32, (Dim("n"), 3)))
    graph.set_outputs([graph.add("Concat", [x, None, x], {"axis": 0}).output])
    before = print_graph(graph)
    PassManager("canonicalize").run(graph)
    assert print_graph(graph) == before


def test_flaws_are_looked_for_after_a_change_of_opset() -> None:
    graph = Graph("old", {"": 12})
    x = graph.add_input("x", TensorType(F32, (1, 3)))
    graph.set_outputs([graph.add("Squeeze", [x], {"axes": (0,)}).output])
    assert infer_types(graph) == []
    graph.opsets[""] = 13
    assert [problem.code for problem in infer_types(graph)] == ["T202"]


def test_bool_is_a_type_of_its_own() -> None:
    graph = Graph("logic")
    graph.set_outputs([graph.add("Not", [graph.add_input("flag", TensorType(BOOL, (2,)))]).output])
    assert infer_types(graph) == []


def constant(graph: Graph, *numbers: float, dtype: type = np.int64, scalar: bool = False) -> Value:
    """A constant vector or scalar."""
    array = np.array(numbers[0] if scalar else numbers, dtype)
    return graph.add_const(graph.fresh_name("c"), InlineTensor(array))


def test_a_size_as_a_truth_value_is_not_followed() -> None:
    graph = Graph("truth")
    x = graph.add_input("x", TensorType(F32, (graph.add_dim(Dim("n")), 4)))
    flags = graph.add("Cast", [graph.add("Shape", [x]).output], {"to": 9}).output
    unlike = graph.add("Not", [flags]).output
    size = graph.add("Where", [flags, constant(graph, 2), constant(graph, 3)]).output
    count = graph.add("Gather", [size, ints(graph, 0)]).output
    result = graph.add("ConstantOfShape", [count]).output
    graph.set_outputs([unlike, result])
    assert infer_types(graph) == []
    assert unlike.type == TensorType(BOOL, (2,))
    # A size may be zero, so either alternative may be the shape.
    assert result.shape is not None and isinstance(result.shape[0], Dim)


@pytest.mark.parametrize(("number", "size"), [(5, 3), (0, 2)])
def test_the_opposite_of_a_number_is_that_of_its_truth_value(number: int, size: int) -> None:
    graph = Graph("opposite")
    flag = graph.add("Cast", [constant(graph, number)], {"to": 9}).output
    shape = graph.add("Where", [graph.add("Not", [flag]).output, constant(graph, 2), constant(graph, 3)]).output
    result = graph.add("ConstantOfShape", [shape]).output
    graph.set_outputs([result])
    assert infer_types(graph) == []
    assert result.shape == (size,)


@pytest.mark.parametrize("bounds", [(np.inf, np.inf), (-np.inf, -np.inf), (0, np.inf)])
def test_a_range_without_a_length(bounds: tuple[float, float]) -> None:
    graph = Graph("endless")
    operands = [constant(graph, bound, dtype=np.float32, scalar=True) for bound in (*bounds, 1)]
    graph.set_outputs([graph.add("Range", operands).output])
    assert [problem.code for problem in infer_types(graph)] == ["T212"]


def test_scales_along_an_axis_of_a_scalar() -> None:
    graph = Graph("scalar")
    codes = graph.add_input("codes", TensorType(DTYPES["i8"], ()))
    scale, zero = (graph.add_input(name, TensorType(F32, (1,))) for name in ("scale", "zero"))
    graph.set_outputs([graph.add("lading.AffineDequantize", [codes, scale, zero], {"axis": 0}).output])
    assert [problem.code for problem in infer_types(graph)] == ["T212"]
