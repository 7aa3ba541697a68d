"""Pairs of QuantizeLinear and DequantizeLinear: where they stand, what they hold, and that onnxruntime computes integers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from backends.onnx.write import write
from ir.base.types import I8, U8
from ir.evaluate.evaluator import Evaluator
from ir.facts.int8_plan import Int8Plan
from ir.graph.copy import copied
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from passes.static_quant.measure import relative_error
from passes.static_quant.operators import OPERATORS, units_of
from passes.static_quant.schemes import Scheme, bias_codes, weight_codes
from tests.support.cnns.small import branched_cnn, built, plain_cnn, samples_for


def quantized(graph, samples, options="", operators=()):
    """A copy in which everything that can compute in integers does, whether that pays or not."""
    twin = copied(graph)
    PassManager(f"observe,assign-int8{{max-error=none {options}}}").run(twin, PassContext(samples))
    names = [unit.name for unit in units_of(twin) if unit.head.op in (operators or OPERATORS)]
    twin.set_fact(Int8Plan.name, replace(twin.required_fact(Int8Plan), int8=tuple(names), kept={}))
    PassManager("insert-static-qdq,dce").run(twin)
    return twin


def error_of(graph, twin, samples):
    outputs = [[list(Evaluator(one).run(feed).values()) for feed in samples.held_out] for one in (graph, twin)]
    return relative_error(*outputs)


@pytest.mark.parametrize("make", [plain_cnn, branched_cnn])
@pytest.mark.parametrize("options", ["", "activations=int8", "symmetric", "per-channel=false", "weight-bits=7"])
def test_the_function_stays_near_the_float_model(make, options):
    graph, samples = make(), samples_for(make())
    twin = quantized(graph, samples, options)
    error = error_of(graph, twin, samples)
    assert 0 < error < 0.03, "rounding shows, and no more"
    kinds = {node.output.dtype for node in twin.nodes if node.op == "QuantizeLinear"}
    assert kinds == {I8 if "int8" in options else U8}


def test_nothing_is_rounded_between_a_product_and_its_bound():
    twin = quantized(branched_cnn(), samples_for(branched_cnn()))
    for op in ("Relu", "Clip"):
        (bound,) = [node for node in twin.nodes if node.op == op]
        assert bound.operand(0).producer.op == "Conv"
        assert [node.op for node in bound.output.users] == ["QuantizeLinear"]


def test_what_moves_numbers_shares_a_scale():
    twin = quantized(branched_cnn(), samples_for(branched_cnn()))
    for op in ("Resize", "Concat"):
        (node,) = [node for node in twin.nodes if node.op == op]
        into = {value.producer.inputs[1:] for value in node.inputs if value is not None and value.const is None}
        (out,) = node.output.users
        assert into == {out.inputs[1:]}


def test_weights_have_a_scale_for_each_channel_and_biases_that_of_the_sums():
    graph = plain_cnn()
    twin = quantized(graph, samples_for(graph))
    for node in twin.nodes:
        if node.op not in ("Conv", "Gemm"):
            continue
        codes, scale, zero = node.operand(1).producer.inputs
        stored, sums, _ = node.operand(2).producer.inputs
        assert scale.sizes == (codes.sizes[0],) and not zero.const.load().any()
        assert stored.dtype.name == "i32"
        operand = node.operand(0).producer.operand(1).const.load()
        assert np.allclose(sums.const.load(), scale.const.load() * operand, rtol=1e-6)


def test_a_graph_output_keeps_its_name():
    graph = branched_cnn()
    twin = quantized(graph, samples_for(graph))
    assert [value.name for value in twin.outputs] == ["y"]


def test_a_value_that_is_read_on_both_sides_is_converted_once():
    text = """lading 1
graph g {
  opset "" 17
  input %x: f32[1, 4, 6, 6]
  %a = Conv(%x, @w1, @b1)
  %e = Erf(%a)
  %c = Conv(%a, @w2, @b2)
  %y = Add(%c, %e)
  output %y
}
"""
    graph = built(text, [("w1", (8, 4, 1, 1)), ("b1", (8,)), ("w2", (8, 8, 1, 1)), ("b2", (8,))])
    twin = quantized(graph, samples_for(graph), operators=("Conv",))
    (pair,) = [node for node in twin.nodes if node.op == "QuantizeLinear" and node.operand(0).name == "a"]
    (back,) = pair.output.users
    assert {node.op for node in back.output.users} == {"Conv", "Erf"}


def test_a_far_wider_operand_of_a_concatenation_is_rounded_anew():
    text = """lading 1
graph g {
  opset "" 17
  input %x: f32[1, 4, 6, 6]
  %a = Conv(%x, @w1)
  %b = Conv(%x, @w2)
  %k = Concat(%a, %b) {axis = 1}
  %y = Conv(%k, @w3)
  output %y
}
"""
    wide = np.full((8, 4, 1, 1), 30.0, np.float32)
    graph = built(text, [("w1", (8, 4, 1, 1)), ("w3", (8, 16, 1, 1))], w2=wide)
    samples = samples_for(graph)
    twin = quantized(graph, samples)
    (join,) = [node for node in twin.nodes if node.op == "Concat"]
    narrow = join.operand(0).producer
    again = narrow.operand(0).producer
    assert again.op == "QuantizeLinear" and again.operand(0).producer.op == "DequantizeLinear"
    together = quantized(graph, samples, "widest=1000")
    (join,) = [node for node in together.nodes if node.op == "Concat"]
    assert join.operand(0).producer.operand(0).producer.operand(0).producer.op == "Conv"


def test_a_product_of_an_encoder_gives_floats():
    text = """lading 1
graph g {
  opset "" 17
  input %x: f32[1, 5, 16]
  %a = MatMul(%x, @w1)
  %b = Add(%a, @b1)
  %c = Erf(%b)
  %d = MatMul(%c, @w2)
  %y = Add(@b2, %d)
  output %y
}
"""
    graph = built(text, [("w1", (16, 32)), ("b1", (32,)), ("w2", (32, 16)), ("b2", (16,))])
    samples = samples_for(graph)
    twin = quantized(graph, samples)
    assert Counter(node.op for node in twin.nodes)["QuantizeLinear"] == 2, "the sums are never rounded"
    assert error_of(graph, twin, samples) < 0.02


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (plain_cnn, {"QLinearConv": 2, "QGemm": 1, "QLinearGlobalAveragePool": 1}),
        (branched_cnn, {"QLinearConv": 3, "QLinearAdd": 1, "QLinearConcat": 1, "QLinearSigmoid": 1}),
    ],
)
def test_onnxruntime_computes_with_integers(make, wanted, tmp_path):
    graph, samples = make(), samples_for(make())
    twin = quantized(graph, samples)
    write(twin, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options)
    fused = onnx.load(tmp_path / "fused.onnx")
    found = Counter(node.op_type for node in fused.graph.node)
    assert {op: found[op] for op in wanted} == wanted
    assert not {"Conv", "FusedConv", "Gemm"} & set(found), "a product was left in floats"
    got = [session.run(None, dict(feed)) for feed in samples.held_out]
    meant = [list(Evaluator(twin).run(feed).values()) for feed in samples.held_out]
    assert relative_error(meant, got) < 0.01


def test_a_graph_of_an_old_opset_is_brought_to_one_with_channels():
    graph = plain_cnn()
    graph.opsets[""] = 11
    twin = quantized(graph, samples_for(graph))
    assert twin.opsets[""] == 13


def test_the_plan_survives_text_and_renames():
    graph = plain_cnn()
    twin = quantized(graph, samples_for(graph), "symmetric")
    plan = twin.required_fact(Int8Plan)
    assert plan.symmetric
    assert parse(print_graph(twin)).fact(Int8Plan) == plan
    name = plan.int8[0]
    twin.rename(twin.value(name), "other")
    assert "other" in twin.required_fact(Int8Plan).int8


# ---- schemes ----


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_codes_reach_from_end_to_end(activations):
    scale = Scheme(activations).of_range(-1.0, 3.0)
    codes = scale.codes(np.array([-1.0, 0.0, 3.0, 9.0]))
    assert (codes[0], codes[2], codes[3]) == (scale.dtype.low, scale.dtype.high, scale.dtype.high)
    assert codes[1] == scale.zero, "zero is exact"
    middle = Scheme(activations, symmetric=True).of_range(-1.0, 3.0)
    assert middle.zero == scale.dtype.low + 128 and middle.scale == pytest.approx(3 / 127)
    assert Scheme(activations).of_range(0.0, 0.0).scale == 1.0


def test_a_channel_of_zeros_and_a_bias_that_is_larger_than_sums():
    array = np.array([[1.0, -2.0], [0.0, 0.0], [1e-6, 2e-6]], np.float32)
    bias = np.array([1.0, 5.0, 1000.0], np.float32)
    scales = Scheme().of_weight(array, 0, 0.01, bias)
    assert scales[0] == np.float32(2 / 127)
    codes = bias_codes(bias, scales * 0.01)
    assert np.allclose(codes * (scales.astype(np.float64) * 0.01), bias, rtol=1e-6)
    assert weight_codes(array, scales, 0).tolist()[0] == [64, -127]
