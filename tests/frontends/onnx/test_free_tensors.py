"""Tensors that a model reads and nothing makes: what they become, and that onnxruntime runs the model then."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from backends.onnx.write import to_model
from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.facts.free_tensors import FreeTensors, free_notes
from ir.text.parser import parse
from ir.text.printer import print_graph
from tests.support.dangling.general import CASES, feeds
from tests.support.work import calls_of


def model_of(text: str) -> onnx.ModelProto:
    return parser.parse_model('<ir_version: 10, opset_import: ["" : 21, "some" : 1]>\n' + text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_its_readers_say_what_a_tensor_is(case):
    graph = load(case.model)
    found = graph.fact(FreeTensors).find("lost")
    assert (f"= {list(found.value)}" if found.kind == "constant" else found.type) == case.type
    if found.kind == "input":
        assert (found.low, found.high) == (case.low, case.high)
    assert found.readers and found.reason
    model = to_model(graph)
    onnx.checker.check_model(model, full_check=True)
    low = found.low if found.low is not None else found.default
    fed = feeds(model, low, found.high)
    got = onnxruntime.InferenceSession(model.SerializeToString()).run(None, fed)
    assert all(isinstance(item, np.ndarray) for item in got)


def test_a_constant_gives_the_result_that_is_declared():
    model = model_of(
        "g (float[8,3] x) => (float[8,2] y) <int64[1] s = {1}, int64[1] e = {3}> { y = Slice(x, s, e, lost) }"
    )
    session = onnxruntime.InferenceSession(to_model(load(model)).SerializeToString())
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x[:, 1:])


@pytest.mark.parametrize("case", CASES[::5], ids=lambda case: case.name)
def test_where_results_are_not_declared_a_tensor_is_looser_and_still_one(case):
    model = case.model
    for item in model.graph.output:
        item.ClearField("type")
    graph = load(model)
    assert graph.fact(FreeTensors).find("lost").type
    assert all(value.type is not None and value.rank is not None for value in graph.inputs)


def test_the_start_of_a_cut_has_the_default_that_gives_the_recorded_result():
    text = "g (float[1,seq,8] x) => (float[1,1,8] y) <int64[1] e = {9223372036854775807}, int64[1] a = {1}> "
    found = load(model_of(text + "{ y = Slice(x, lost, e, a) }")).fact(FreeTensors).find("lost")
    assert (found.kind, found.type, found.default) == ("input", "i64[1]", -1)


def test_a_recorded_type_is_a_hint():
    model = model_of("g (float[n,4] x) => (float y) { y = MatMul(x, lost) }")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("lost", onnx.TensorProto.FLOAT, [4, 6]))
    assert load(model).fact(FreeTensors).find("lost").type == "f32[4, 6]"
    model.graph.value_info[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    model.graph.value_info[0].type.tensor_type.shape.dim[0].dim_value = 5
    assert load(model).fact(FreeTensors).find("lost").type.startswith("f32[4, ")


def test_every_reader_is_named_and_said_in_one_note_for_each_tensor():
    model = model_of("g (float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Add(x, a)  z = Mul(x, b)  w = Neg(a) }")
    notes = [str(note) for note in free_notes(load(model))]
    assert len(notes) == 2 and notes[0].startswith("note[F631]: nothing makes 'a'; it is taken as an input f32[2, 3]")
    assert "Add 'y', Neg 'w'" in notes[0]


def test_the_fact_survives_its_text_and_a_rename():
    graph = load(model_of("g (float[2,3] x) => (float[3,2] y) { a = Add(x, b)  y = Reshape(a, s) }"))
    fact = graph.fact(FreeTensors)
    assert {item.name: item.kind for item in fact.tensors} == {"b": "input", "s": "constant"}
    again = parse(print_graph(graph))
    assert again.fact(FreeTensors) == fact
    assert FreeTensors.from_data(json.loads(json.dumps(fact.to_data()))) == fact
    graph.rename(graph.value("b"), "bias")
    assert graph.fact(FreeTensors).find("bias") is not None


# ---- what is refused ----


def refused(text: str) -> LadingError:
    with pytest.raises(LadingError) as caught:
        load(model_of(text))
    return caught.value


def test_readers_that_want_different_tensors():
    error = refused("g (float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Where(m, x, x)  z = MatMul(x, m) }")
    assert error.code == "F632" and "'m'" in str(error) and "bool" in str(error)
    error = refused(
        "g (float[2,3] x, float[2,4] w) => (float[2,3] y, float[2,4] z) "
        "{ y = LayerNormalization(x, m)  z = LayerNormalization(w, m) }"
    )
    assert error.code == "F632" and "[3]" in str(error) and "[4]" in str(error)


def test_axes_of_which_several_would_do():
    error = refused(
        "g (float[2,2] x) => (float[2,2] y) <int64[1] s = {0}, int64[1] e = {2}> { y = Slice(x, s, e, axes) }"
    )
    assert error.code == "F633" and "[0] or [1]" in str(error) and "Slice 'y'" in str(error)


def test_operators_that_nobody_knows_say_nothing():
    error = refused("g (float[2,2] x) => (float[2,2] y) { y = some.Thing(x, m) }")
    assert error.code == "F634" and "Thing" in str(error)


def test_an_output_that_nothing_makes():
    error = refused("g (float[2] x) => (float[2] never) { y = Neg(x) }")
    assert error.code == "F604" and "'never'" in str(error)


# ---- what exporters leave behind ----


def test_a_mask_has_as_many_axes_as_are_taken_from_it():
    """Its type is none of those that it is cast to, and its second axis is asked for and flattened."""
    graph = load(
        model_of(
            "g (int64[k] i) => (bool[?] y, int64 n) { seen = Cast<to = 9>(mask)  flat = Flatten<axis = 2>(seen) "
            "one = Constant<value = int64 {1}>()  shape = Shape(seen)  n = Gather(shape, one)  z = Gather(flat, i) "
            "y = Squeeze(z) }"
        )
    )
    assert graph.fact(FreeTensors).find("mask").type == "i64[mask.0, mask.1]"


def test_positions_are_integers_where_they_are_cast_to_floats():
    graph = load(
        model_of(
            "g (float[batch, seq, 4] x) => (float[batch, seq, 4] y) <int64[1] a = {2}> "
            "{ wide = Unsqueeze(positions, a)  f = Cast<to = 1>(wide)  s = Sin(f)  y = Mul(x, s) }"
        )
    )
    assert graph.fact(FreeTensors).find("positions").type == "i64[batch, seq]"


def test_a_history_is_as_long_as_it_likes():
    graph = load(model_of("g (float[1, 2, seq, 8] k) => (float[1, 2, all, 8] y) { y = Concat<axis = 2>(past, k) }"))
    assert graph.fact(FreeTensors).find("past").type == "f32[1, 2, past.2, 8]"


def test_rules_say_nothing_of_nodes_that_are_wrong():
    graph = load(
        model_of("g (float[2, 3] x) => (float[2, 3] y) { t = Transpose<perm = [0, 1, 2]>(lost)  y = Add(x, t) }")
    )
    assert graph.fact(FreeTensors).find("lost").type.startswith("f32[")


def test_many_tensors_take_no_more_rounds_than_few():
    """Those that do not bear on each other are settled together."""

    def casts(count: int) -> onnx.ModelProto:
        nodes = " ".join(f"c{i} = Cast<to = 1>(lost{i})  d{i} = Sin(c{i})" for i in range(count))
        return model_of(f"g (float[2] x) => (float[2] y) {{ y = Neg(x) {nodes} }}")

    fact = load(casts(60)).fact(FreeTensors)
    assert len(fact.tensors) == 60 and {item.dtype for item in fact.tensors} == {"i64"}
    assert calls_of(load, casts(60)) < 2.5 * calls_of(load, casts(30))
