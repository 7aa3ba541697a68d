"""Types that an ONNX file records are hints: what operators give wins over them, and one warning tells of all."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.onnx.write import to_model
from frontends.onnx.load import load
from ir.base.types import F32, I64, Dim, TensorType
from ir.evaluate.evaluator import evaluate
from ir.graph.copy import copied
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from ir.text.parser import parse
from ir.text.printer import print_graph
from ir.verify.stages import verify
from passes.framework.instruments import VerifyEach
from passes.framework.manager import PassManager
from tools.conformance.cases import Case, collect

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
info = helper.make_tensor_value_info


def model_of(nodes, inputs, outputs, constants=None, value_info=(), domains=()):
    """A model of opset 20; constants are arrays by name."""
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held, value_info=list(value_info))
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def inferred(model) -> tuple[Graph, list[str]]:
    """The graph with its types, and the warnings."""
    graph = load(model)
    assert [item for item in verify(graph) if item.severity == "error"] == []
    report = PassManager("infer-types", (VerifyEach(),)).run(graph)
    return graph, [str(item) for item in report.all_diagnostics()]


CHOSEN_ROW = [
    helper.make_node("Gather", ["ids", "first"], ["a"]),
    helper.make_node("Unsqueeze", ["a", "axes"], ["b"]),
    helper.make_node("Cast", ["b"], ["c"], to=FLOAT),
]
CONSTANTS = {"first": np.int64(0), "axes": np.array([0])}


def test_what_operators_give_wins_over_what_is_recorded():
    wrong = [info("a", INT, [7]), info("b", INT, [])]
    graph, warnings = inferred(model_of(CHOSEN_ROW, [info("ids", INT, ["n"])], [info("c", INT, [1])], CONSTANTS, wrong))
    types = {name: graph.value(name).type for name in "abc"}
    assert types == {"a": TensorType(I64, ()), "b": TensorType(I64, (1,)), "c": TensorType(F32, (1,))}
    assert len(warnings) == 1 and warnings[0].startswith("warning[T211]: 3 recorded types cannot be true")
    assert "%a is i64[] by its operator, recorded is i64[7]" in warnings[0]
    found = evaluate(graph, {"ids": np.array([5, 6])})
    assert found["c"].tolist() == [5.0]
    written = {item.name: item.type.tensor_type for item in to_model(graph).graph.output}
    assert written["c"].elem_type == FLOAT and [dim.dim_value for dim in written["c"].shape.dim] == [1]


def test_one_wrong_type_is_told_as_one():
    _, warnings = inferred(
        model_of(
            [helper.make_node("Unsqueeze", ["x", "axes"], ["y"])],
            [info("x", INT, [])],
            [info("y", INT, [])],
            CONSTANTS,
        )
    )
    assert warnings == [
        "warning[T211]: 1 recorded type cannot be true and was overruled: %y is i64[1] by its operator, recorded is "
        "i64[]\n  at %y = Unsqueeze(%x, @axes)\n     from y"
    ]


def test_hints_are_hints_in_a_text_and_in_a_copy_as_well():
    wrong = [info("a", INT, [7]), info("b", INT, [])]
    graph = load(model_of(CHOSEN_ROW, [info("ids", INT, ["n"])], [info("c", INT, [1])], CONSTANTS, wrong))
    for again in (parse(print_graph(graph)), copied(graph)):
        assert again.hinted and print_graph(again) == print_graph(graph)
        assert [item.code for item in infer_types(again)] == ["T211"]
        assert "hints" not in print_graph(again) and infer_types(parse(print_graph(again))) == []


def test_hundreds_of_wrong_types_are_one_warning():
    nodes = [helper.make_node("Relu", [f"x{place}"], [f"x{place + 1}"]) for place in range(300)]
    wrong = [info(f"x{place}", FLOAT, [place + 1]) for place in range(1, 300)]
    graph, warnings = inferred(model_of(nodes, [info("x0", FLOAT, [2, 3])], [info("x300", FLOAT, None)], None, wrong))
    assert graph.outputs[0].type == TensorType(F32, (2, 3))
    assert len(warnings) == 1 and "299 recorded types" in warnings[0] and "and 296 more" in warnings[0]


def test_types_are_settled_once_they_are_inferred():
    """A pass that breaks them afterwards is told so, as in every other graph."""
    graph, _ = inferred(model_of(CHOSEN_ROW, [info("ids", INT, ["n"])], [info("c", FLOAT, None)], CONSTANTS))
    graph.set_type(graph.value("c"), TensorType(F32, (9,)))
    assert [item.code for item in infer_types(graph)] == ["T210"]
    assert [item.code for item in verify(graph)] == ["T210"]


def test_a_dimension_below_zero_is_unknown():
    graph, warnings = inferred(
        model_of(
            [helper.make_node("Relu", ["x"], ["y"])], [info("x", FLOAT, [-1, -1, 4])], [info("y", FLOAT, [-1, 3, 4])]
        )
    )
    first, second, last = graph.inputs[0].dims
    assert isinstance(first, Dim) and isinstance(second, Dim) and first != second and last == 4
    assert graph.outputs[0].type == graph.inputs[0].type and not warnings


@pytest.mark.parametrize(
    "shape",
    [["", 4], [0, 4], ["batch_size*(seq + 1)", "seq-1"], [None, None], None],
    ids=["empty", "zero", "formula", "open", "no rank"],
)
def test_dimensions_as_exporters_write_them(shape):
    graph, warnings = inferred(
        model_of([helper.make_node("Relu", ["x"], ["y"])], [info("x", FLOAT, shape)], [info("y", FLOAT, shape)])
    )
    assert graph.outputs[0].type == graph.inputs[0].type and not warnings


def test_a_name_that_means_two_sizes():
    """`n` is the length of the first input, and the file says so of a product and of a constant's axis as well."""
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["double"], axis=0),
        helper.make_node("MatMul", ["double", "w"], ["y"]),
    ]
    graph, _ = inferred(
        model_of(
            nodes,
            [info("x", FLOAT, ["n", 4])],
            [info("y", FLOAT, ["n", "n"])],
            {"w": np.ones((4, 3), np.float32)},
            [info("double", FLOAT, ["n", "n"])],
        )
    )
    rows, columns = graph.outputs[0].dims
    assert columns == 3 and rows != graph.inputs[0].dims[0]
    assert evaluate(graph, {"x": np.ones((2, 4), np.float32)})["y"].shape == (4, 3)


def test_types_of_values_that_do_not_exist_and_outputs_without_any():
    bare = onnx.ValueInfoProto(name="y")
    graph, warnings = inferred(
        model_of(
            [helper.make_node("Relu", ["x"], ["y"])], [info("x", FLOAT, [2])], [bare], None, [info("gone", FLOAT, [7])]
        )
    )
    assert graph.outputs[0].type == TensorType(F32, (2,)) and not warnings


def test_a_recorded_type_of_an_unknown_operator_gives_way_to_its_reader():
    nodes = [
        helper.make_node("Strange", ["x"], ["s"], domain="nobody"),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    constants = {"w": np.ones((4, 3), np.float32)}
    for recorded, rank in (([5], 1), ([], None), ([2, 4], 2)):
        graph, warnings = inferred(
            model_of(
                nodes,
                [info("x", FLOAT, [2])],
                [info("y", FLOAT, None)],
                constants,
                [info("s", FLOAT, recorded)],
                ["nobody"],
            )
        )
        kept = recorded == [2, 4]
        assert [("T211" in item) for item in warnings if "T200" not in item] == ([] if kept else [True])
        assert graph.value("s").rank == rank and graph.value("s").type.is_static == kept


def test_a_declared_input_gives_way_to_its_reader():
    graph, warnings = inferred(
        model_of(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            [info("x", FLOAT, [2, 5])],
            [info("y", FLOAT, None)],
            {"w": np.ones((4, 3), np.float32)},
        )
    )
    assert graph.inputs[0].rank == 2 and not graph.inputs[0].type.is_static
    assert "%x does not fit MatMul, recorded is f32[2, 5]" in warnings[0]
    assert evaluate(graph, {"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 3)


def test_wrong_types_inside_of_bodies():
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "state"], ["next"]), helper.make_node("Identity", ["go"], ["again"])],
        "body",
        [info("round", FLOAT, [3]), info("go", INT, []), info("state", INT, [])],
        [info("again", FLOAT, []), info("next", INT, [4, 4])],
        value_info=[],
    )
    graph, warnings = inferred(
        model_of(
            [helper.make_node("Loop", ["count", "flag", "x"], ["y"], body=body)],
            [info("x", FLOAT, [2])],
            [info("y", INT, [1, 1])],
            {"count": np.int64(2), "flag": np.array(True)},
        )
    )
    assert graph.outputs[0].dtype == F32 and len(warnings) == 1
    assert evaluate(graph, {"x": np.ones(2, np.float32)})["y"].tolist() == [4.0, 4.0]


def falsified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a wrong type recorded for everything that its nodes make, and none besides."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.value_info[:]
    outputs = {item.name for item in changed.graph.output}
    made = [name for node in changed.graph.node for name in node.output if name]
    wrong = [info(name, TensorProto.COMPLEX128, [3, "odd", 1, 9]) for name in made]
    changed.graph.value_info.extend(item for item in wrong if item.name not in outputs)
    for item in changed.graph.output:
        if item.name in made:
            item.type.CopyFrom(wrong[0].type)
    return changed


def untold(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without any type of what its nodes make."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.value_info[:]
    for item in changed.graph.output:
        item.ClearField("type")
    return changed


def test_wrong_types_change_nothing_that_inference_knows():
    """Over every twelfth case of ONNX's own suite."""
    cases = [case for case in collect() if isinstance(case, Case)][::12]
    seen: Counter[str] = Counter()
    for case in cases:
        model = onnx.load_from_string(case.model)
        honest, misled = load(untold(model)), load(falsified(model))
        before = [item for item in infer_types(honest) if item.severity == "error"]
        after = [item for item in infer_types(misled) if item.severity == "error"]
        if before:
            continue
        assert not after, (case.key, after)
        for one, other in zip(honest.nodes, misled.nodes, strict=True):
            for right, found in zip(one.outputs, other.outputs, strict=True):
                if isinstance(right.type, TensorType) and right.type.is_static:
                    assert found.type == right.type, (case.key, found, right)
                    seen["settled"] += 1
    assert seen["settled"] > 100
