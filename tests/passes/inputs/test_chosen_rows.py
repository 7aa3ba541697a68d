"""discover-inputs on decoders that choose the rows of their logits themselves, at every place and in every way."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.base.types import F32, TensorType
from ir.evaluate.evaluator import evaluate
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph
from passes.framework.check_numbers import CheckNumbers
from passes.framework.instruments import VerifyEach
from passes.framework.manager import PassManager
from passes.inputs import chosen_rows
from tests.support.checkpoints import make_checkpoint
from tests.support.dangling.general import CASES
from tools.fuzz.inputs.row_choices import KINDS, ORIGINS, PLACES, choosing, decoder

pytestmark = pytest.mark.mnn  # what a runtime feeds comes with one

PIPELINE = "infer-types,discover-inputs"
WHY = {"dangling": "dangling", "declared": "declared", "constant": "frozen-by-tracing", "computed": "frozen-by-tracing"}
IDS = np.random.default_rng(1).integers(0, 320, 11)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> onnx.ModelProto:
    return decoder(make_checkpoint(tmp_path_factory.mktemp("plain"), "qwen2", num_hidden_layers=1))


@pytest.fixture(scope="module")
def logits(plain) -> np.ndarray:
    return evaluate(load(plain), {"input_ids": IDS[None]})["logits"]


def discovered(model: onnx.ModelProto) -> tuple[Graph, DynamicInputs]:
    graph = load(model)
    PassManager(PIPELINE).run(graph)
    return graph, graph.required_fact(DynamicInputs)


def require_right(model: onnx.ModelProto, logits: np.ndarray) -> tuple[Graph, DynamicInputs]:
    """One choice of rows is left, the runtime's, before the final norm, and it gives all rows and the last."""
    graph, fact = discovered(model)
    left = [node for node in graph.nodes if node.op in ("Slice", "Gather", "GatherND")]
    assert [node.inputs[1].name for node in left] == ["logits_index"]
    assert [user.op for user in left[0].output.users] == ["RMSNormalization"]
    assert [value.name for value in graph.inputs] == ["input_ids", "attention_mask", "position_ids", "logits_index"]
    assert [str(dim) for dim in graph.outputs[0].dims] == ["1", "rows", "320"]
    every = evaluate(graph, fact.feeds(graph, IDS, index=0))["logits"]
    last = evaluate(graph, fact.feeds(graph, IDS, index=-1))["logits"]
    np.testing.assert_allclose(every, logits, atol=2e-5)
    np.testing.assert_allclose(last, logits[:, -1:], atol=2e-5)
    return graph, fact


@pytest.mark.parametrize(("place", "kind", "origin"), list(itertools.product(PLACES, KINDS, ORIGINS)))
def test_a_choice_of_rows_becomes_the_runtimes(plain, logits, place, kind, origin):
    _, fact = require_right(choosing(plain, place, kind, origin), logits)
    found = fact.find("output-rows")
    assert found.why == WHY[origin] and found.node == "choose"
    assert ("%logits_index" in found.reason) == (origin in ("dangling", "declared"))


@pytest.mark.parametrize("name", ["logits_index", "rows.end", "input_ids", "position_ids", "onnx::Gather_17"])
@pytest.mark.parametrize("origin", ["dangling", "declared", "constant"])
def test_names_decide_nothing(plain, logits, name, origin):
    if name == "input_ids":
        plain = renamed(plain, "input_ids", "tokens")
    _, fact = require_right(choosing(plain, "head", "gather", origin, name), logits)
    assert fact.find("output-rows").why == WHY[origin]


def test_all_rows_need_no_choice(plain, logits):
    _, fact = require_right(plain, logits)
    assert fact.find("output-rows").why == "whole-sequence"


def test_two_choices_are_both_undone(plain, logits):
    model = choosing(plain, "norm", "slice", "declared")
    model = choosing_again(model)
    require_right(model, logits)


def choosing_again(model: onnx.ModelProto) -> onnx.ModelProto:
    """Also the last of the rows that come out, and without their axis."""
    (output,) = (item.name for item in model.graph.output)
    next(node for node in model.graph.node if node.output[0] == output).output[0] = "rows.logits"
    model.graph.initializer.append(numpy_helper.from_array(np.array(-1, np.int64), "last"))
    model.graph.node.append(helper.make_node("Gather", ["rows.logits", "last"], [output], axis=1))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def test_a_choice_that_keeps_every_row_is_dropped(plain, logits):
    _, fact = require_right(choosing(plain, "norm", "slice", "constant", row=0), logits)
    assert fact.find("output-rows").why == "frozen-by-tracing"


def test_a_head_for_single_rows_takes_all(plain, logits):
    """An exporter that drops the axis of the sequence makes a Gemm of the head, and puts the axis back behind it."""
    model = choosing(plain, "norm", "gather-scalar", "dangling")
    head = next(node for node in model.graph.node if node.output[0] == "logits")
    weight = next(item for item in model.graph.initializer if item.name == head.input[1])
    matrix = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(matrix.T * 2), weight.name))
    bias = np.random.default_rng(3).normal(size=matrix.shape[1]).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "behind"))
    model.graph.node.remove(head)
    head = helper.make_node("Gemm", [*head.input, "bias"], ["flat"], alpha=0.5, transB=1)
    model.graph.node.extend([head, helper.make_node("Unsqueeze", ["flat", "behind"], ["logits"])])
    require_right(model, logits + bias)


def chooser(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == "choose")


@pytest.mark.parametrize("lost", [(1, 2), (1, 3), (1, 2, 3), (1, 4)], ids=str)
def test_other_operands_of_the_cut_may_be_lost_too(plain, logits, lost):
    """Starts, ends, axes and steps."""
    model = choosing(plain, "norm", "slice", "dangling")
    node = chooser(model)
    if 4 in lost:
        node.input.append("")
    for place in lost:
        node.input[place] = f"lost_{place}"
    _, fact = require_right(model, logits)
    found = fact.find("output-rows")
    assert found.why == "dangling" and set(found.given) >= {"lost_1"}


def test_a_cut_along_all_axes(plain, logits):
    """Starts for every axis, that of the rows among zeros."""
    model = choosing(plain, "head", "slice", "declared")
    for name, numbers in (("zero", [0]), ("ends", [2**31 - 1] * 3)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    place = next(place for place, item in enumerate(model.graph.node) if item.name == "choose")
    model.graph.node.insert(place, helper.make_node("Concat", ["zero", "logits_index", "zero"], ["starts"], axis=0))
    node = chooser(model)
    del node.input[1:]
    node.input.extend(["starts", "ends"])
    require_right(model, logits)


# ---- what is refused ----


def error_of(model: onnx.ModelProto) -> LadingError:
    with pytest.raises(LadingError) as caught:
        discovered(model)
    return caught.value


@pytest.mark.parametrize("kind", ["gather", "gather-scalar", "slice-end"])
def test_a_row_that_is_not_the_last_is_refused(plain, kind):
    error = error_of(choosing(plain, "norm", kind, "constant", row=3))
    assert error.code == "P332" and "row 3 of every sequence" in str(error) and "'choose'" in str(error)


def test_the_last_row_of_the_length_that_was_traced_is_a_fixed_row(plain):
    error = error_of(choosing(plain, "norm", "gather", "constant", name="val_93", row=6))
    assert error.code == "P332" and "@val_93 freezes the logits to row 6 of every sequence" in str(error)


def test_rows_from_a_fixed_one_are_refused(plain):
    error = error_of(choosing(plain, "logits", "slice", "constant", row=2))
    assert error.code == "P332" and "'choose'" in str(error)


def test_an_end_alone_is_refused(plain):
    model = choosing(plain, "norm", "slice", "constant", row=0)
    node = next(node for node in model.graph.node if node.name == "choose")
    node.input[2] = "logits_end"
    model.graph.input.append(helper.make_tensor_value_info("logits_end", TensorProto.INT64, [1]))
    error = error_of(model)
    assert error.code == "P333" and "logits_end" in str(error)


def test_a_row_chosen_by_tokens_is_refused(plain):
    """Such as the first row that holds the token of the end."""
    model = choosing(plain, "norm", "gather", "declared")
    model.graph.input.pop()
    found = helper.make_node("ArgMax", ["input_ids"], ["logits_index.2d"], axis=1, keepdims=0)
    model.graph.node.insert(0, found)
    model.graph.node.insert(1, helper.make_node("Identity", ["logits_index.2d"], ["logits_index"]))
    error = error_of(model)
    assert error.code == "P333" and "1 rows of logits for seq tokens" in str(error) and "'choose'" in str(error)


def test_a_norm_over_chosen_rows_is_refused(plain):
    model = choosing(plain, "norm", "gather-scalar", "declared")
    norm = next(node for node in model.graph.node if node.input[0] == "chosen")
    next(item for item in norm.attribute if item.name == "axis").i = 0
    gain = next(item for item in model.graph.initializer if item.name == norm.input[1])
    gain.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(gain)[None], gain.name))
    error = error_of(model)
    assert error.code == "P333" and "'choose'" in str(error)


def test_an_index_that_is_read_elsewhere_too_is_refused(plain):
    model = choosing(plain, "norm", "slice", "declared")
    model.graph.node.append(helper.make_node("Cast", ["logits_index"], ["as_float"], to=1))
    model.graph.node.append(helper.make_node("Add", ["logits", "as_float"], ["shifted"]))
    model.graph.output[0].name = "shifted"
    error = error_of(model)
    assert error.code == "P355" and "logits_index" in str(error)


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for node in made.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    next(item for item in made.graph.input if item.name == old).name = new
    return made


# ---- graphs that are no language models ----


def test_a_general_graph_keeps_its_inputs_and_says_what_they_are():
    case = next(item for item in CASES if item.name == "Gather indices")
    graph = load(case.model)
    PassManager(PIPELINE, [VerifyEach(), CheckNumbers()]).run(graph)
    fact = graph.required_fact(DynamicInputs)
    assert [(item.input, item.kind, item.why) for item in fact.discoveries] == [
        ("x", "given", "declared"),
        ("lost", "free", "dangling"),
    ]
    found = fact.discoveries[1]
    assert (found.low, found.high, found.default, found.shapes, found.node) == (-8, 7, 0, ((2, 5),), "Gather 'y'")
    assert fact.signature == "" and DynamicInputs.from_data(fact.to_data()) == fact


def test_a_general_graph_that_lacks_nothing_has_no_token_ids():
    case = next(item for item in CASES if item.name == "Add")
    case.model.graph.input.add()
    model = case.model
    model.graph.input.append(helper.make_tensor_value_info("lost", TensorProto.FLOAT, [2, 3]))
    assert error_of(model).code == "P351"


@pytest.mark.parametrize("kind", ["slice", "gather", "gather-scalar"])
@pytest.mark.parametrize("origin", ORIGINS)
def test_numbers_are_the_same_before_and_after(plain, kind, origin):
    """As `--check-numbers` compares them: what chose rows before chooses the same rows now."""
    model = choosing(plain, "head", kind, origin)
    if (kind, origin) == ("gather", "dangling"):
        # Nothing else says that one row is meant.
        model.graph.value_info.append(helper.make_tensor_value_info("logits_index", TensorProto.INT64, [1]))
    graph = load(model)
    PassManager(PIPELINE, [VerifyEach(), CheckNumbers()]).run(graph)
    assert graph.fact(DynamicInputs) is not None


def test_rows_that_are_too_wide_to_try_are_refused(plain):
    graph = load(choosing(plain, "norm", "slice", "constant"))
    PassManager("infer-types").run(graph)
    value = graph.value("model.layers.0")
    graph.set_type(value, TensorType(F32, (*value.dims[:-1], 1 << 40)))
    with pytest.raises(LadingError) as caught:
        chosen_rows.find(graph, graph.inputs[0], graph.outputs[0])
    assert caught.value.code == "P333" and "too large" in str(caught.value)
