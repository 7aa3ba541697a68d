"""Loops of a known number of steps, written out for MNN, and choices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.mnn.modules.child import Converter
from backends.mnn.modules.emit import emit
from backends.mnn.modules.parts.apart import NESTING, apart
from backends.mnn.target.environments import module_packages
from backends.mnn.target.releases import target
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.text.printer import print_graph
from tests.support.modules.models import legal

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(8)
QUIET = onnxruntime.SessionOptions()
QUIET.log_severity_level = 4


def value(name: str, shape=None, kind: int = F32) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, constants=()) -> onnx.ModelProto:
    held = [numpy_helper.from_array(array, name) for name, array in constants]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def scanned(axis: int, direction: int) -> onnx.ModelProto:
    """Two states, a value from outside, and two results of the steps, one of them backwards."""
    nodes = [
        helper.make_node("Add", ["s", "x"], ["mid"]),
        helper.make_node("Mul", ["mid", "outside"], ["s2"]),
        helper.make_node("Sub", ["t", "x"], ["t2"]),
        helper.make_node("Tanh", ["s2"], ["r1"]),
        helper.make_node("Identity", ["t2"], ["r2"]),
    ]
    body = helper.make_graph(
        nodes, "body", [value(n, [3]) for n in ("s", "t", "x")], [value(n, [3]) for n in ("s2", "t2", "r1", "r2")]
    )
    node = helper.make_node(
        "Scan", ["a", "b", "xs"], ["y0", "y1", "y2", "y3"], body=body, num_scan_inputs=1, scan_input_axes=[axis],
        scan_input_directions=[direction], scan_output_directions=[0, 1], scan_output_axes=[0, 1],
    )  # fmt: skip
    shape = [4, 3] if axis == 0 else [3, 4]
    inputs = [value("a", [3]), value("b", [3]), value("xs", shape), value("outside", [3])]
    return model([node], inputs, [value(f"y{place}") for place in range(4)])


def looped(condition: str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["i"], ["f"], to=F32),
        helper.make_node("Add", ["s", "f"], ["s2"]),
        helper.make_node("Mul", ["s2", "x"], ["r"]),
        helper.make_node("Identity", ["go"], ["same"]),
        helper.make_node("ReduceMax", ["s2"], ["most"], keepdims=0),
        helper.make_node("Less", ["most", "limit"], ["small"]),
    ]
    body = helper.make_graph(
        nodes, "body", [value("i", [], I64), value("go", [], BOOL), value("s", [3])],
        [value(condition, [], BOOL), value("s2", [3]), value("r", [3])],
    )  # fmt: skip
    node = helper.make_node("Loop", ["trips", "", "x"], ["y0", "y1"], body=body)
    held = [("trips", np.array(4)), ("limit", np.array(3, np.float32))]
    return model([node], [value("x", [3])], [value("y0"), value("y1")], held)


def side(name: str, nodes, results, kind: int = F32) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [value(result, None, kind) for result in results])


def node(op: str, *names: str, **attrs) -> onnx.NodeProto:
    *inputs, output = names
    return helper.make_node(op, inputs, [output], **attrs)


HELD = [
    ("zero", np.array(0, np.float32)),
    ("limit", np.array(2, np.float32)),
    ("first", np.array([0])),
    ("second", np.array([1])),
    ("kernel", RNG.normal(size=(4, 1, 1)).astype(np.float32)),
    ("w", RNG.normal(size=(1, 8, 3)).astype(np.float32)),
    ("r", RNG.normal(size=(1, 8, 2)).astype(np.float32)),
    ("row", np.array([[1, -2, 3]], np.float32)),
    ("kernel1", np.array([[[0.5]]], np.float32)),
    ("third", np.array(1)),
]


def chosen(then, other, results=("y0",), behind=(), shape=("n", 3), kind: int = F32) -> onnx.ModelProto:
    """A choice by the sign of the sum of the input, between nodes whose last outputs are the results."""
    sides = {
        key: side(key, nodes, [item.output[0] for item in nodes[-len(results) :]], kind)
        for key, nodes in (("then_branch", then), ("else_branch", other))
    }
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("Tanh", ["x"], ["around"]),
        helper.make_node("If", ["positive"], list(results), **sides),
        *behind,
    ]
    outputs = [value(name) for item in (behind or nodes[-1:]) for name in item.output]
    used = {name for item in [*nodes, *then, *other] for name in item.input}
    return model(nodes, [value("x", shape)], outputs, [item for item in HELD if item[0] in {*used, "limit", "zero"}])


def nested() -> onnx.ModelProto:
    inner = helper.make_node(
        "If", ["large"], ["a"], then_branch=side("t", [node("Neg", "half", "a1")], ["a1"]),
        else_branch=side("e", [node("Abs", "around", "a2")], ["a2"]),
    )  # fmt: skip
    then = [node("Exp", "x", "half"), node("Greater", "total", "limit", "large"), inner]
    return chosen(then, [node("Neg", "x", "b")])


CHOSEN = {
    "one operator each": chosen([node("Exp", "x", "a")], [node("Neg", "x", "b")]),
    "other sizes": chosen([node("Exp", "x", "a")], [node("Concat", "x", "around", "b", axis=0)], shape=("n", 3)),
    "other numbers of axes": chosen([node("ReduceSum", "x", "second", "a", keepdims=0)], [node("Neg", "x", "b")]),
    "handed on": chosen([node("Identity", "x", "a")], [node("Mul", "x", "around", "b")]),
    "several results": chosen(
        [node("Exp", "x", "a"), node("Neg", "a", "a2")],
        [node("Neg", "around", "b"), node("Abs", "x", "b2")],
        ("p", "q"),
        [node("Mul", "p", "q", "y0"), node("Add", "q", "around", "y1")],
    ),
    "one result is not read": chosen(
        [node("Exp", "x", "a"), node("Neg", "x", "a2")],
        [node("Neg", "x", "b"), node("Abs", "x", "b2")],
        ("p", "q"),
        [node("Abs", "q", "y0")],
    ),
    "truth values": chosen(
        [node("Greater", "x", "zero", "a")],
        [node("Less", "x", "zero", "b")],
        ("p",),
        [node("Cast", "p", "y0", to=F32)],
        kind=BOOL,
    ),
    "convolutions": chosen(
        [node("Unsqueeze", "x", "second", "u"), node("Conv", "u", "kernel", "a")],
        [node("Unsqueeze", "around", "second", "v"), node("Conv", "v", "kernel", "m"), node("Relu", "m", "b")],
    ),
    "a loop": chosen(
        [
            node("Unsqueeze", "x", "second", "u"),
            helper.make_node("LSTM", ["u", "w", "r"], ["", "h"], hidden_size=2),
            node("Squeeze", "h", "first", "a"),
        ],
        [node("Exp", "x", "b")],
    ),
    "nothing is read": chosen([node("Exp", "x", "a")], [node("Identity", "row", "b")]),
    "twice the same": chosen(
        [node("Exp", "x", "a"), node("Identity", "a", "a2")],
        [node("Identity", "x", "b"), node("Identity", "x", "b2")],
        ("p", "q"),
        [node("Mul", "p", "q", "y0")],
    ),
    "within a choice": nested(),
    "behind a choice": chosen(
        [node("Exp", "x", "a")],
        [node("Neg", "x", "b")],
        ("p",),
        [
            helper.make_node(
                "If", ["positive"], ["y0"], then_branch=side("t", [node("Neg", "p", "c")], ["c"]),
                else_branch=side("e", [node("Mul", "p", "around", "d")], ["d"]),
            )
        ],
    ),
}  # fmt: skip
"""Choices that the runtime makes."""


def repeated(body, states, given, results, limit: str = "", begins: str = "", behind=()) -> onnx.ModelProto:
    """A loop over a state or several and what its steps give, the outputs of the body as they are named."""
    inputs = [value("i", [], I64), value("go", [], BOOL), *(value(name, ["n", 3]) for name in states)]
    outputs = [value(results[0], [], BOOL), *(value(name) for name in results[1:])]
    graph = helper.make_graph([node("Identity", "go", "same"), *body], "body", inputs, outputs)
    names = [f"y{place}" for place in range(len(results) - 1)]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Abs", ["total"], ["size"]),
        helper.make_node("Cast", ["size"], ["steps"], to=I64),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["rows"]),
        helper.make_node("Tanh", ["x"], ["around"]),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("Loop", [limit, begins, *given], names, body=graph),
        *behind,
    ]
    outputs = [value(name) for item in (behind or nodes[-1:]) for name in item.output]
    return model(nodes, [value("x", ["n", 3])], outputs, [*HELD, ("ever", np.array(2**63 - 1))])


def loop_within_a_loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Identity", "g1", "g2"), node("Add", "a", "around", "b")],
        "inner", [value("j", [], I64), value("g1", [], BOOL), value("a", ["n", 3])], [value("g2", [], BOOL), value("b")],
    )  # fmt: skip
    inner = helper.make_node("Loop", ["i", "", "s"], ["s2"], body=body)
    return repeated([inner], ["s"], ["x"], ["same", "s2"], "steps")


def choice_within_a_loop() -> onnx.ModelProto:
    inner = helper.make_node(
        "If", ["more"], ["s2"], then_branch=side("t", [node("Tanh", "s", "p")], ["p"]),
        else_branch=side("e", [node("Neg", "s", "q")], ["q"]),
    )  # fmt: skip
    return repeated([node("Greater", "i", "third", "more"), inner], ["s"], ["x"], ["same", "s2"], "steps")


def list_of_steps() -> onnx.ModelProto:
    body = helper.make_graph(
        [
            node("Identity", "go", "same"),
            node("Gather", "x", "i", "taken", axis=0),
            node("SequenceInsert", "list", "taken", "more"),
        ],
        "body",
        [value("i", [], I64), value("go", [], BOOL), helper.make_tensor_sequence_value_info("list", F32, None)],
        [value("same", [], BOOL), helper.make_tensor_sequence_value_info("more", F32, None)],
    )
    nodes = [
        helper.make_node("SequenceEmpty", [], ["empty"]),
        node("Shape", "x", "sizes"),
        node("Gather", "sizes", "first", "rows"),
        helper.make_node("Loop", ["rows", "", "empty"], ["all"], body=body),
        node("ConcatFromSequence", "all", "y0", axis=1, new_axis=1),
    ]
    return model(nodes, [value("x", ["n", 3])], [value("y0")], [("first", np.array([0]))])


STOPS = [node("ReduceMax", "s2", "most", keepdims=0), node("Less", "most", "limit", "small")]
REPEATED = {
    "as often as computed": repeated([node("Add", "s", "around", "s2")], ["s"], ["x"], ["same", "s2"], "steps"),
    "until something is reached": repeated(
        [node("Add", "s", "limit", "s2"), *STOPS], ["s"], ["x"], ["small", "s2"], "ever", "positive"
    ),
    "what steps give": repeated(
        [node("Tanh", "s", "s2"), node("Cast", "i", "f", to=F32), node("Mul", "s2", "f", "given")],
        ["s"],
        ["x"],
        ["same", "s2", "given"],
        "rows",
        behind=[node("Neg", "y0", "z0"), node("Exp", "y1", "z1")],
    ),
    "a row for each step": repeated(
        [node("Gather", "around", "i", "taken", axis=0), node("Add", "s", "taken", "s2")], ["s"], ["x"], ["same", "s2"], "rows"
    ),
    "states that change places": repeated(
        [node("Identity", "t", "s2"), node("Neg", "s", "t2")], ["s", "t"], ["x", "around"], ["same", "s2", "t2"], "steps"
    ),
    "a constant to begin with": repeated([node("Add", "s", "x", "s2")], ["s"], ["row"], ["same", "s2"], "steps"),
    "a convolution": repeated(
        [
            node("Unsqueeze", "s", "second", "u"),
            node("Conv", "u", "kernel1", "v"),
            node("Squeeze", "v", "second", "s2"),
        ],
        ["s"],
        ["x"],
        ["same", "s2"],
        "steps",
    ),
    "within a loop": loop_within_a_loop(),
    "a choice within": choice_within_a_loop(),
    "a list": list_of_steps(),
}  # fmt: skip
"""Loops that the runtime goes through."""


MODELS = [
    *(scanned(axis, direction) for axis in (0, 1) for direction in (0, 1)),
    looped("same"),
]


def feeds(made: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    """Inputs of two sizes, and the same with the other sign."""
    found = []
    for size in (2, 5):
        shapes = {
            item.name: [dim.dim_value or size for dim in item.type.tensor_type.shape.dim] for item in made.graph.input
        }
        found.append({name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    return [*found, *({name: -array for name, array in item.items()} for item in found)]


@pytest.mark.parametrize("made", MODELS)
def test_numbers_of_what_is_written_out(made):
    session = onnxruntime.InferenceSession(made.SerializeToString(), QUIET)
    graph = legal(made)
    assert not {"If", "Loop", "Scan"} & {node.op for node in graph.walk()}
    for feed in feeds(made):
        found = evaluate(graph, feed)
        for item, wanted in zip(graph.outputs, session.run(None, feed), strict=True):
            np.testing.assert_allclose(found[item.name], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.mnn
@pytest.mark.parametrize("release", [target().versions[0], target().versions[-1]])
def test_mnn_computes_it(release, tmp_path: Path):
    packages = module_packages([release])
    if release not in packages:
        pytest.skip(f"no environment of MNN {release}")
    with Converter(packages[release]) as converter:
        for place, made in enumerate([*MODELS, *CHOSEN.values(), *REPEATED.values()]):
            session = onnxruntime.InferenceSession(made.SerializeToString(), QUIET)
            emit(legal(made, release), tmp_path / f"{place}.mnn", converter)
            names = [item.name for item in made.graph.output]
            sets = feeds(made)
            for feed, found in zip(sets, converter.run_many(tmp_path / f"{place}.mnn", sets, names), strict=True):
                for name, wanted in zip(names, session.run(None, feed), strict=True):
                    np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("made", [*CHOSEN.values(), *REPEATED.values()], ids=[*CHOSEN, *REPEATED])
def test_parts_of_a_graph_with_bodies_are_told_by_names_alone(made):
    graph = legal(made)
    before = print_graph(graph)
    flat, joints = apart(graph)
    assert print_graph(graph) == before
    assert len(joints) == sum(each.op in NESTING for each in graph.walk()) > 0
    assert not any(each.op in NESTING for each in flat.walk())
    given = {item.name for item in flat.inputs}
    known = given | {item.name for item in flat.outputs}
    for joint in joints:
        assert given.issuperset(joint.results)
        for part in joint.parts:
            assert part.inputs and given.issuperset(own for _, own in part.inputs)
            assert known.issuperset(value for value, _ in part.inputs) and known.issuperset(part.outputs)


OPEN = chosen(
    [node("ReduceSum", "x", "second", "a", keepdims=0)], [node("Neg", "x", "b")], ("p",), [node("Exp", "p", "y0")]
)
"""What reads the result of a choice may get one axis or two."""
UNSURE = repeated([node("Neg", "s", "s2"), node("Exp", "s", "given")], ["s"], ["x"], ["same", "s2", "given"], "steps")
"""It may be that there is no step to put results together of."""


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (UNSURE, "Loop has no form that MNN computes right: it may not run at all, and gives what its steps gave"),
        (OPEN, "If has no form that MNN computes right: the number of axes of %p is not known"),
    ],
)
def test_what_depends_on_numbers_is_refused(made, words):
    with pytest.raises(LadingError, match=words):
        legal(made)
