"""What computes in integers: borders by minimum cut, layers kept in floats by measured error, and the options."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ir.base.diag import LadingError
from ir.evaluate.evaluator import Evaluator
from ir.facts.activation_ranges import ActivationRanges
from ir.facts.int8_plan import Int8Plan
from ir.text.parser import parse
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from passes.static_quant.borders import CONVERTED, Prices, settled
from passes.static_quant.measure import outputs_of, quantized_copy, relative_error
from passes.static_quant.operators import units_of
from tests.support.cnns.small import branched_cnn, built, plain_cnn, samples_for, with_const


def observed(graph):
    PassManager("observe").run(graph, PassContext(samples_for(graph)))
    return graph.required_fact(ActivationRanges).ranges


def assigned(graph, options="", samples=None):
    report = PassManager(f"observe,assign-int8{{{options}}}").run(graph, PassContext(samples or samples_for(graph)))
    return graph.required_fact(Int8Plan), report.passes[-1]


def cost_of(graph, units, integers, ranges, prices):
    """What a way to divide the units costs, counted value by value."""
    owner = {node: unit for unit in units for node in unit.nodes}
    total = 0
    for unit in units:
        elements = ranges[unit.results[0].name].elements
        if unit.is_product and unit not in integers:
            total += int(elements * unit.products_per_output() / prices.products) + 1
        if unit.row.kind == "arithmetic" and unit in integers:
            total += int(elements * prices.elements)
    values = {value for unit in units for _, value in unit.operands() if value.const is None}
    values |= {value for unit in units for value in unit.results}
    for value in values:
        made = owner.get(value.producer)
        readers = {owner.get(node) for node in value.users} - {made}
        sides = {reader in integers for reader in readers} | ({False} if value.is_output else set())
        here = made in integers
        if here and False in sides and not made.row.floats_free:
            total += CONVERTED * ranges[value.name].elements
        if not here and True in sides:
            total += CONVERTED * ranges[value.name].elements
    return total


@pytest.mark.parametrize("make", [plain_cnn, branched_cnn])
@pytest.mark.parametrize("prices", [Prices(8, 2), Prices(1, 0), Prices(1, 20), Prices(40, 2), Prices(3, 1)])
def test_borders_are_the_best_of_all(make, prices):
    graph = make()
    ranges, units = observed(graph), units_of(graph)
    found = settled(graph, units, (), ranges, prices)
    costs = []
    for sides in product((False, True), repeat=len(units)):
        integers = {unit for unit, side in zip(units, sides, strict=True) if side}
        costs.append(cost_of(graph, units, integers, ranges, prices))
    assert cost_of(graph, units, found, ranges, prices) == min(costs)


def test_units_that_have_to_stay_in_floats_do():
    graph = branched_cnn()
    ranges, units = observed(graph), units_of(graph)
    whole = settled(graph, units, (), ranges, Prices(1, 0))
    middle = next(unit for unit in units if unit.name == "d")
    assert middle in whole
    rest = settled(graph, units, [middle], ranges, Prices(1, 0))
    assert middle not in rest and rest <= whole


def test_a_chain_of_single_elements_stays_in_floats_and_one_between_products_does_not():
    text = """lading 1
graph g {
  opset "" 17
  input %x: f32[1, 16, 8, 8]
  %a = Conv(%x, @w1) {pads = [1, 1, 1, 1]}
  %p = Add(%a, @three)
  %q = Clip(%p, @zero, @six)
  %r = Mul(%a, %q)
  %s = Mul(%r, @sixth)
  %t = Mul(%s, @half)
  %b = Conv(%t, @w2) {pads = [1, 1, 1, 1]}
  %c = Add(%b, @bias)
  %y = Conv(%c, @w3) {pads = [1, 1, 1, 1]}
  output %y
}
"""
    numbers = {"three": 3, "zero": 0, "six": 6, "sixth": 1 / 6, "half": 0.5}
    consts = {name: np.array(number, np.float32) for name, number in numbers.items()}
    shapes = [("w1", (32, 16, 3, 3)), ("w2", (32, 32, 3, 3)), ("w3", (8, 32, 3, 3)), ("bias", (32, 1, 1))]
    graph = built(text, shapes, **consts)
    plan, _ = assigned(graph, "max-error=none elements=3")
    assert set(plan.int8) == {"a", "b", "c", "y"}
    assert plan.kept["r"].startswith("conversions")


def test_the_most_sensitive_layers_stay_in_floats():
    graph = plain_cnn()
    weight = graph.value("w2").const.load().copy()
    # One output channel of each input channel is far larger, so that one scale for all loses the others.
    weight[0] *= 300
    with_const(graph, "w2", weight)
    plan, _ = assigned(graph, "per-channel=false products=1 max-error=0.08")
    assert plan.error is not None and plan.error <= 0.08 and plan.limit == 0.08
    assert plan.kept["c"] == "costs too much accuracy" and plan.int8
    assert max(plan.alone, key=plan.alone.get) == "c"


@pytest.mark.parametrize("limit", [0.2, 0.008, 0.004, 0.001, 0.0])
def test_the_recorded_error_is_that_of_held_out_samples(limit):
    graph, samples = branched_cnn(), samples_for(branched_cnn())
    plan, report = assigned(graph, f"max-error={limit} products=1", samples)
    twin = quantized_copy(graph, set(plan.int8), plan)
    error = relative_error(outputs_of(graph, samples.held_out), outputs_of(twin, samples.held_out))
    assert plan.error == error <= limit and plan.samples == len(samples.held_out)
    assert report.counts["int8"] == len(plan.int8)


def test_without_a_limit_nothing_is_run():
    plan, report = assigned(plain_cnn(), "max-error=none")
    assert plan.error is None and report.counts["measured"] == 0


def test_layers_are_kept_by_name_and_by_operator():
    plan, _ = assigned(plain_cnn(), "max-error=none products=1 keep=[c]")
    assert plan.kept["c"] == "named by keep" and "a" in plan.int8
    plan, _ = assigned(plain_cnn(), 'max-error=none products=1 keep=["re:^y$"]')
    assert "y" not in plan.int8
    plan, _ = assigned(plain_cnn(), "max-error=none products=1 operators=[Conv,MaxPool]")
    assert set(plan.int8) == {"a", "p", "c"}


def test_names_that_are_not_there_are_told():
    for options in ("keep=[nowhere]", "operators=[Conv2d]"):
        with pytest.raises(LadingError) as error:
            assigned(plain_cnn(), options)
        assert error.value.code == "Q475"
    assert "did you mean 'Conv'" in error.value.diagnostics[0].hint


def test_a_graph_without_products_is_a_warning():
    graph = parse("""lading 1
graph g {
  opset "" 17
  input %x: f32[1, 4]
  %y: f32[1, 4] = Relu(%x)
  output %y
}""")
    plan, report = assigned(graph)
    assert plan.int8 == () and [item.code for item in report.diagnostics] == ["Q484"]


def test_detections_of_another_number_are_an_infinite_error():
    one, two = np.zeros((3, 4)), np.zeros((2, 4))
    assert relative_error([[one]], [[two]]) == float("inf")
    assert relative_error([[np.array([1, 2, 3, 4])]], [[np.array([1, 2, 3, 9])]]) == 0.25
    assert relative_error([[np.array([3.0, 4.0])]], [[np.array([3.0, 4.5])]]) == pytest.approx(0.1)


# ---- passes before and behind ----


def test_batch_norms_and_factors_are_folded():
    text = """lading 1
graph g {
  opset "" 17
  input %x: f32[1, 4, 6, 6]
  %a = Conv(%x, @w1)
  %n = BatchNormalization(%a, @gain, @shift, @mean, @variance)
  %m = Mul(%n, @factor)
  %s = Sub(@offset, %m)
  %r = Relu(%s)
  %t = ConvTranspose(%r, @w2, @b2)
  %v = Div(%t, @divisor)
  %y = Add(%v, %v)
  output %y
}
"""
    shapes = [("w1", (8, 4, 3, 3)), ("gain", (8,)), ("shift", (8,)), ("mean", (8,)), ("factor", (8, 1, 1)),
              ("w2", (8, 3, 2, 2)), ("b2", (3,))]  # fmt: skip
    consts = {
        "variance": np.linspace(0.5, 3, 8, dtype=np.float32), "offset": np.array(0.3, np.float32),
        "divisor": np.array([2.0, -4.0, 0.5], np.float32).reshape(1, 3, 1, 1),
    }  # fmt: skip
    graph = built(text, shapes, **consts)
    feed = next(iter(samples_for(graph).calibration))
    wanted = Evaluator(graph).run(feed)["y"]
    report = PassManager("fold-batch-norms").run(graph)
    assert report.passes[-1].counts == {"folded": 4}
    assert [node.op for node in graph.nodes] == ["Conv", "Relu", "ConvTranspose", "Add"]
    assert np.allclose(Evaluator(graph).run(feed)["y"], wanted, rtol=1e-5, atol=1e-6)
    assert not [name for name in ("gain", "mean", "factor", "divisor") if graph.has(name)]


def test_what_others_read_or_what_is_no_factor_of_channels_is_left():
    text = """lading 1
graph g {
  opset "" 17
  input %x: f32[1, 4, 4, 4]
  %a = Conv(%x, @w1)
  %b = Mul(%a, @row)
  %c = Conv(%b, @w1)
  %d = Add(%c, @one)
  %y = Add(%c, %d)
  output %y
}
"""
    row, one = np.ones(4, np.float32) * 2, np.array(1, np.float32)
    graph = built(text, [("w1", (4, 4, 1, 1))], row=row, one=one)
    assert PassManager("fold-batch-norms").run(graph).passes[-1].counts == {"folded": 0}


def chain():
    text = """lading 1
graph g {
  opset "" 17
  input %x: f32[2, 3, 8, 8]
  %a = Conv(%x, @w1, @b1) {pads = [1, 1, 1, 1]}
  %r = Relu(%a)
  %d = Conv(%r, @w2, @b2) {pads = [1, 1, 1, 1], group = 8}
  %e = LeakyRelu(%d) {alpha = 0.1}
  %m = MaxPool(%e) {kernel_shape = [2, 2], strides = [2, 2]}
  %y = Conv(%m, @w3, @b3) {group = 2}
  output %y
}
"""
    shapes = [
        ("w1", (8, 3, 3, 3)),
        ("b1", (8,)),
        ("w2", (8, 1, 3, 3)),
        ("b2", (8,)),
        ("w3", (6, 4, 1, 1)),
        ("b3", (6,)),
    ]
    graph = built(text, shapes)
    rng = np.random.default_rng(3)
    for name in ("w1", "w2"):
        weight = graph.value(name).const.load()
        with_const(graph, name, (weight * np.exp(rng.normal(0, 2, (8, 1, 1, 1)))).astype(np.float32))
    return graph


def test_equalized_layers_compute_the_same_and_lose_less():
    graph, samples = chain(), samples_for(chain())
    wanted = outputs_of(graph, samples.held_out)
    errors = []
    for pipeline in ("infer-types", "equalize,infer-types"):
        twin = chain()
        PassManager(pipeline).run(twin)
        assert relative_error(wanted, outputs_of(twin, samples.held_out)) < 1e-6
        PassManager("observe,assign-int8{max-error=none products=1 per-channel=false},insert-static-qdq").run(
            twin, PassContext(samples)
        )
        errors.append(relative_error(wanted, outputs_of(twin, samples.held_out)))
    assert errors[1] < 0.5 * errors[0]


def test_channels_end_up_alike_on_both_sides():
    graph = chain()
    assert PassManager("equalize{tolerance=1e-6 rounds=200}").run(graph).passes[-1].counts["pairs"] == 2
    made = np.abs(graph.value("w2").const.load()).reshape(8, -1).max(axis=1)
    last = np.abs(graph.value("w3").const.load()).reshape(2, 3, 4)
    assert np.allclose(made, last.max(axis=1).reshape(-1), rtol=1e-3)


def test_a_clip_or_a_second_reader_keeps_channels_as_they_are():
    assert PassManager("equalize").run(branched_cnn()).passes[-1].counts["pairs"] == 1, "behind Relu, not behind Clip"
    graph = chain()
    graph.set_outputs([*graph.outputs, graph.value("r")])
    assert PassManager("equalize").run(graph).passes[-1].counts["pairs"] == 1


def test_corrected_biases_bring_the_mean_back():
    samples = samples_for(chain(), count=40)
    graph = chain()
    options = "max-error=none products=1 per-channel=false"
    wanted = outputs_of(graph, samples.held_out)
    errors, shifts = [], []
    for between in ("", "bias-correct,"):
        twin = chain()
        report = PassManager(f"observe,assign-int8{{{options}}},{between}insert-static-qdq").run(
            twin, PassContext(samples)
        )
        got = outputs_of(twin, samples.held_out)
        errors.append(relative_error(wanted, got))
        gaps = [b[0] - a[0] for a, b in zip(wanted, got, strict=True)]
        shifts.append(np.abs(np.mean(gaps, axis=(0, 1, 3, 4))).max())
    assert report.passes[-2].counts == {"corrected": 3}
    assert errors[1] < errors[0] and shifts[1] < 0.35 * shifts[0]


def test_a_bias_is_made_where_there_is_none_and_changed_where_it_is_added():
    text = """lading 1
graph g {
  opset "" 13
  input %x: f32[4, 16]
  %a = MatMul(%x, @w1)
  %b = Add(%a, @b1)
  %r = Relu(%b)
  %c = Gemm(%r, @w2)
  %y = MatMul(%c, @w3)
  output %y
}
"""
    graph = built(text, [("w1", (16, 32)), ("b1", (32,)), ("w2", (32, 16)), ("w3", (16, 4))])
    samples = samples_for(graph)
    PassManager("observe,assign-int8{max-error=none products=1}").run(graph, PassContext(samples))
    assert set(graph.required_fact(Int8Plan).int8) == {"a", "c", "y"}
    before = graph.value("b1").const.load().copy()
    report = PassManager("bias-correct").run(graph, PassContext(samples))
    assert report.passes[-1].counts == {"corrected": 2}
    assert not np.array_equal(graph.value("b1").const.load(), before)
    gemm = next(node for node in graph.nodes if node.op == "Gemm")
    assert gemm.operand(2).const.load().shape == (16,)
