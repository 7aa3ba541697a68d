"""The general passes beyond the text cases: meaning on random graphs, idempotence, facts, failures, cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ir.base.diag import LadingError
from ir.base.types import DTYPES, F32, I64, Dim, TensorType
from ir.facts.precision import PrecisionPlan
from ir.graph.compare import differences
from ir.graph.graph import Fact, Graph
from ir.ops.registry import OPERATORS, OpDef
from ir.quant.storage import Storage
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.canonicalize.cse import SMALL
from passes.canonicalize.identities import represents
from passes.framework.check_numbers import CheckNumbers
from passes.framework.context import PassContext
from passes.framework.instruments import VerifyEach
from passes.framework.load import parse as parse_pipeline
from passes.framework.manager import PassManager, run_passes
from tests.support.graphs import graphs
from tests.support.pass_graphs import HIDDEN, const, decoder, random_graphs

GENERAL = ("infer-types", "fold", "simplify", "cse", "dce", "toposort", "canonicalize")
T = TensorType(F32, (2, 4))


# ---- meaning ----


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(random_graphs(), st.sampled_from(["canonicalize", "infer-types,fold", "cse,simplify", "fold,dce,fold"]))
def test_random_graphs_keep_their_meaning(graph, pipeline):
    """onnxruntime gives the same numbers at two sizes after every pass, and names of inputs and outputs stay."""
    interface = [value.name for value in (*graph.inputs, *graph.outputs)]
    PassManager(pipeline, [VerifyEach(), CheckNumbers(tolerance=1e-5)]).run(graph)
    assert [value.name for value in (*graph.inputs, *graph.outputs)] == interface


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graphs(odd_names=False), st.sampled_from(["canonicalize", "fold,simplify", "cse,dce"]))
def test_graphs_with_branches_keep_their_meaning(graph, pipeline):
    """The same for graphs with If bodies, several element types and nodes with several outputs."""
    PassManager(pipeline, [VerifyEach(), CheckNumbers(tolerance=1e-5)]).run(graph)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graphs())
def test_odd_names_and_missing_types_are_no_trouble(graph):
    PassManager("canonicalize", [VerifyEach()]).run(graph)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(random_graphs())
def test_a_second_run_changes_nothing(graph):
    for name in GENERAL:
        run_passes(graph, name)
        before = print_graph(graph)
        report = run_passes(graph, name)
        assert not report.changed, f"{name} changed again: {[one.counts for one in report.passes]}"
        assert print_graph(graph) == before


def test_a_decoder_keeps_its_meaning_and_loses_its_ballast():
    graph = decoder(2)
    before = len(graph.nodes)
    PassManager("canonicalize", [VerifyEach(), CheckNumbers()]).run(graph)
    ops = [node.op for node in graph.nodes]
    assert len(ops) < 0.6 * before
    assert not {"Identity", "Cast", "Neg"} & set(ops)
    assert [value.name for value in graph.outputs] == ["y"]


@pytest.mark.parametrize("name", GENERAL)
def test_the_empty_graph_is_fine(name):
    graph = Graph("empty")
    assert not run_passes(graph, name).changed


def test_results_do_not_depend_on_the_run():
    texts = set()
    for _ in range(2):
        graph = decoder(2)
        run_passes(graph, "canonicalize")
        texts.add(print_graph(graph))
    assert len(texts) == 1


# ---- toposort and types ----


def test_a_wrong_order_is_put_right_in_subgraphs_too():
    graph = parse(
        """lading 1
        graph g {
          input %p: bool[]
          input %x: f32[2]
          %a: f32[2] = Neg(%x)
          %y: f32[2] = If(%p) {else_branch = graph no {
            %b: f32[2] = Neg(%a)
            %c: f32[2] = Relu(%b)
            output %c
          }, then_branch = graph yes {
            output %x
          }}
          output %y
        }"""
    )
    sorted_text = print_graph(graph)
    graph.move(graph.first)
    inner = next(node for node in graph.nodes if node.op == "If").attrs["else_branch"]
    inner.move(inner.first)
    assert run_passes(graph, "toposort").passes[0].counts == {"reordered": 2}
    assert print_graph(graph) == sorted_text


def test_infer_types_reports_every_problem():
    graph = Graph("g")
    a, b = graph.add_input("a", T), graph.add_input("b", TensorType(F32, (3,)))
    graph.set_outputs([graph.add("Add", [a, b]).output, graph.add("MatMul", [a, b]).output])
    with pytest.raises(LadingError) as caught:
        run_passes(graph, "infer-types")
    assert [item.code for item in caught.value.diagnostics] == ["T212", "T212"]


# ---- fold ----


class Guarded(Tensor):
    """A tensor that must not be read."""

    def __init__(self, shape):
        super().__init__(TensorType(F32, shape), "guarded")

    def rows(self, start, stop):
        raise AssertionError("a weight was read")

    def recipe(self):
        return "guarded", (self.loc,), {}


def test_weights_are_never_read():
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (2, 1024)))
    value = x
    for name in ("u", "v"):
        weight = graph.add_const(name, Guarded((1024, 1024)))
        turned = graph.add("Transpose", [weight], {"perm": (1, 0)}, types=[weight.type]).output
        value = graph.add("MatMul", [value, turned], types=[x.type]).output
        value = graph.add("Add", [value, graph.add_const("b", Guarded((64, 1024)))], types=[None]).output
    graph.set_outputs([value])
    run_passes(graph, "fold,simplify,cse,dce")
    assert sum(node.op == "Transpose" for node in graph.nodes) == 1, "equal weights are one, and stay lazy"


@pytest.fixture
def evaluated(monkeypatch) -> list[str]:
    """Operators handed to evaluation, which computes nothing meanwhile."""
    seen: list[str] = []

    def record(nodes, *, limit):
        seen.extend(node.op for node in nodes)
        return {}

    monkeypatch.setattr("passes.canonicalize.fold.evaluate_constants", record)
    return seen


def test_what_is_dangerous_to_compute_is_not_even_tried(evaluated):
    """Large results would take memory, and integer division by zero may end the process."""
    graph = Graph("g")
    shape, zero = const(graph, "s", [1000, 1000], np.int64), const(graph, "z", [1, 0], np.int64)
    for kind in ("Div", "Mod"):
        graph.add(kind, [zero, zero])
        graph.add(kind, [zero, graph.add("Neg", [zero]).output])
    graph.add("ConstantOfShape", [shape])
    graph.add("Div", [const(graph, "f", [1.0]), const(graph, "g", [0.0])])
    graph.set_outputs([node.output for node in graph.nodes if node.op != "Neg"])
    run_passes(graph, "fold")
    assert evaluated == ["Neg", "Neg", "Div"]


def test_parts_of_weights_are_not_read():
    graph = Graph("g")
    x, weight = graph.add_input("x", TensorType(F32, (1, 1024))), graph.add_const("w", Guarded((1024, 1024)))
    row = graph.add("Gather", [weight, const(graph, "i", [3], np.int64)], {"axis": 0}).output
    graph.set_outputs([graph.add("Add", [x, row]).output])
    run_passes(graph, "infer-types,fold")
    assert [node.op for node in graph.nodes] == ["Gather", "Add"]


def test_huge_results_are_not_computed():
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (1,)))
    size = const(graph, "size", [1 << 20, 1 << 20], np.int64)
    ranged = graph.add("Range", [const(graph, n, v, np.int64) for n, v in (("a", 0), ("b", 1 << 40), ("c", 1))]).output
    filled = graph.add("ConstantOfShape", [size]).output
    graph.set_outputs([graph.add("Add", [x, filled]).output, ranged])
    before = print_graph(graph)
    run_passes(graph, "fold")
    assert print_graph(graph) == before


def test_results_of_unknown_size_are_computed_when_operands_bound_them():
    graph = Graph("g")
    x = graph.add_input("x", TensorType(I64, (1, 2)))
    found = graph.add("NonZero", [const(graph, "m", [0, 1, 0, 1])]).output
    graph.set_outputs([graph.add("Add", [x, found]).output])
    run_passes(graph, "fold")
    assert np.array_equal(graph.first.inputs[1].const.load(), [[1, 3]])


def test_names_and_locations_of_folded_values_stay():
    graph = Graph("g")
    a = const(graph, "a", [1.0, 2.0])
    neg = graph.add("Neg", [a], outputs=("negated",), loc="model.py:12", types=[TensorType(F32, (2,))])
    graph.set_outputs([graph.add("Add", [graph.add_input("x", TensorType(F32, (2,))), neg.output]).output])
    run_passes(graph, "fold")
    assert graph.consts["negated"].loc == "model.py:12" and list(graph.consts) == ["negated"]


def test_a_constant_read_twice_is_computed_once_and_stays_for_its_other_reader():
    graph = Graph("g")
    x, w = graph.add_input("x", T), const(graph, "w", np.ones(4))
    neg = graph.add("Neg", [w], types=[w.type]).output
    graph.set_outputs([graph.add("Sum", [x, neg, neg, w], types=[T]).output])
    run_passes(graph, "fold")
    assert sorted(graph.consts) == ["neg", "w"] and len(graph.nodes) == 1


@pytest.mark.parametrize(("kind", "size"), [("f16", 2), ("bf16", 2), ("f32", 2)])
def test_widening_casts_of_float_constants_are_storage(kind, size):
    graph = Graph("g")
    x = graph.add_input("x", TensorType(DTYPES["f64"], (2,)))
    narrow = graph.add_const("w", InlineTensor(np.ones(size).astype(DTYPES[kind].numpy), DTYPES[kind]))
    wide = graph.add("Cast", [narrow], {"to": 11}, types=[TensorType(DTYPES["f64"], (size,))]).output
    graph.set_outputs([graph.add("Add", [x, wide]).output])
    run_passes(graph, "fold")
    assert [node.op for node in graph.nodes] == ["Cast", "Add"]


def test_scalars_and_integers_are_cast():
    graph = Graph("g")
    x = graph.add_input("x", T)
    half = graph.add_const("h", InlineTensor(np.array(0.5, np.float16)))
    ints = const(graph, "i", [1, 2, 3, 4], np.int64)
    casts = [
        graph.add("Cast", [value], {"to": 1}, types=[TensorType(F32, value.shape)]).output for value in (half, ints)
    ]
    graph.set_outputs([graph.add("Sum", [x, *casts], types=[T]).output])
    run_passes(graph, "fold")
    assert [node.op for node in graph.nodes] == ["Sum"]


def test_a_value_that_a_fact_speaks_of_is_not_folded_or_merged():
    graph = Graph("g")
    x, w = graph.add_input("x", T), const(graph, "w", np.ones((4, 4)))
    planned = graph.add("Neg", [w], types=[w.type], outputs=("planned",)).output
    twin = graph.add("Neg", [w], types=[w.type], outputs=("twin",)).output
    graph.set_outputs(
        [graph.add("Sum", [graph.add("MatMul", [x, planned]).output, graph.add("MatMul", [x, twin]).output]).output]
    )
    graph.set_fact("spoken", Speaks(("planned", "twin")))
    run_passes(graph, "fold,cse")
    assert graph.has("planned") and graph.has("twin") and len(graph.nodes) == 5
    graph.set_fact("spoken", None)
    run_passes(graph, "cse")
    assert len(graph.nodes) == 3


class Speaks(Fact):
    """A fact that names values."""

    name = "spoken"

    def __init__(self, names):
        self.names = tuple(names)

    def to_data(self):
        return {"names": list(self.names)}

    @classmethod
    def from_data(cls, data):
        return cls(data["names"])

    def renamed(self, old, new):
        return Speaks(new if name == old else name for name in self.names) if old in self.names else self


def test_every_cast_pair_is_judged_by_its_values():
    """`represents` agrees with numpy for every pair of types: all values of the narrow one survive, or some do not."""
    names = ("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "u16", "u32", "u64", "bool")
    for wide in map(DTYPES.get, names):
        for narrow in map(DTYPES.get, names):
            if wide.kind == "b":
                continue
            assert represents(wide, narrow) == _survives(wide, narrow), f"{narrow} in {wide}"


def _survives(wide, narrow) -> bool:
    if narrow.kind == "b":
        samples = [False, True]
    elif narrow.is_integer:
        samples = [
            narrow.low,
            narrow.high,
            narrow.high - 1,
            *(n for n in (255, 257, 2049, 16777217) if n <= narrow.high),
        ]
        if narrow.bits == 64:
            samples.append((1 << 53) + 1)
    else:
        # A largest and a smallest number and one with every bit of the fraction set.
        kind = narrow.numpy
        info = np.finfo(kind) if narrow.name != "bf16" else __import__("ml_dtypes").finfo(kind)
        samples = [info.max, info.smallest_subnormal, kind.type(2) - info.eps, kind.type(0.5)]
    with np.errstate(all="ignore"):
        for sample in samples:
            if wide.is_integer and narrow.is_integer:
                if not wide.low <= int(sample) <= wide.high:
                    return False
                continue
            if wide.is_integer and narrow.is_float:
                return False
            there = np.array(sample, narrow.numpy).astype(wide.numpy)
            if not np.isfinite(there.astype(np.float64)):
                return False
            exact = int(there) == int(sample) if narrow.kind != "f" else there.astype(narrow.numpy) == np.array(sample)
            if not exact:
                return False
    return True


# ---- cse ----


def test_large_inline_constants_are_merged_by_contents():
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (2, 64)))
    data = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    other = data.copy()
    other[-1, -1] += 1
    assert data.nbytes > SMALL
    values = [const(graph, "w", item) for item in (data, data.copy(), other)]
    graph.set_outputs([graph.add("Sum", [graph.add("MatMul", [x, w]).output for w in values]).output])
    assert run_passes(graph, "cse").passes[0].counts == {"constants": 1, "nodes": 1}
    assert len(graph.consts) == 2


def test_large_tensors_in_attributes_are_compared_to_the_end():
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (2048,)))
    data = np.zeros(2048, np.float32)
    other = data.copy()
    other[-1] = 1
    values = [graph.add("Constant", [], {"value": InlineTensor(item)}).output for item in (data, other, data.copy())]
    graph.set_outputs([graph.add("Sum", [x, *values], types=[x.type]).output])
    assert run_passes(graph, "cse").passes[0].counts == {"nodes": 1}


def test_tables_keep_their_names():
    graph = Graph("g")
    x, a, b = graph.add_input("x", T), const(graph, "a", [1.0]), const(graph, "b", [1.0])
    for value in (a, b):
        graph.set_table(f"table-{value.name}", value)
    graph.set_outputs([graph.add("Sum", [x, a, b], types=[T]).output])
    run_passes(graph, "cse")
    assert sorted(graph.consts) == ["a", "b"]


def test_a_planned_constant_keeps_its_name():
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (2, 2)))
    values = [const(graph, name, np.eye(2)) for name in ("a", "b", "c")]
    graph.set_outputs([graph.add("Sum", [graph.add("MatMul", [x, w]).output for w in values]).output])
    graph.set_fact("spoken", Speaks(("b",)))
    run_passes(graph, "cse")
    assert sorted(graph.consts) == ["a", "b"]


def test_a_constant_output_keeps_its_name():
    graph = Graph("g")
    x, a, b = graph.add_input("x", T), const(graph, "a", [1.0]), const(graph, "b", [1.0])
    graph.set_outputs([b, graph.add("Sum", [x, a, b], types=[T]).output])
    run_passes(graph, "cse")
    assert graph.outputs[0].name == "b"


def test_merged_nodes_keep_both_locations_and_the_better_type():
    graph = Graph("g")
    x = graph.add_input("x", T)
    first = graph.add("Relu", [x], loc="here", types=[TensorType(F32, (Dim("m"), 4))])
    second = graph.add("Relu", [x], loc="there", types=[T])
    graph.set_outputs([graph.add("Add", [first.output, second.output], types=[T]).output])
    run_passes(graph, "cse")
    assert graph.first.loc == "here + there" and graph.first.output.type == T


def test_subgraphs_with_chance_are_never_merged():
    text = """lading 1
    graph g {
      input %p: bool[]
      input %x: f32[2]
      %a: f32[2] = If(%p) {else_branch = graph no {
        %b: f32[2] = RandomNormalLike(%x)
        output %b
      }, then_branch = graph yes {
        %c: f32[2] = Abs(%x)
        output %c
      }}
      %d: f32[2] = If(%p) {else_branch = graph no {
        %e: f32[2] = RandomNormalLike(%x)
        output %e
      }, then_branch = graph yes {
        %f: f32[2] = Abs(%x)
        output %f
      }}
      %y: f32[2] = Add(%a, %d)
      output %y
    }"""
    graph = parse(text)
    run_passes(graph, "cse")
    assert not differences(graph, parse(text))


def test_attribute_kinds_do_not_mix():
    graph = Graph("g")
    x = graph.add_input("x", T)
    nodes = [graph.add("my.Op", [x], {"v": value}) for value in (0, 0.0, -0.0, "0", b"0", (0,), (0.0,))]
    graph.set_outputs([graph.add("Sum", [node.output for node in nodes]).output])
    run_passes(graph, "cse")
    assert len(graph.nodes) == 8


# ---- dce ----


def test_nodes_with_effects_stay():
    OPERATORS.add("toy.Log", OpDef("toy.Log", traits=frozenset({"stateful"})))
    graph = Graph("g", {"": 24, "toy": 1})
    x = graph.add_input("x", T)
    graph.add("toy.Log", [x])
    graph.add("toy.Print", [x], outputs=())
    graph.set_outputs([graph.add("Neg", [x]).output])
    assert not run_passes(graph, "dce").changed


def test_functions_of_strangers_are_dead_like_all_others():
    graph = Graph("g", {"": 24, "my": 1})
    x = graph.add_input("x", T)
    graph.add("my.Op", [x])
    graph.set_outputs([graph.add("Neg", [x]).output])
    run_passes(graph, "dce")
    assert [node.op for node in graph.nodes] == ["Neg"]


def test_a_long_dead_chain_goes_in_one_run():
    graph = Graph("g")
    x = value = graph.add_input("x", T)
    for _ in range(2000):
        value = graph.add("Neg", [value], types=[T]).output
    graph.set_outputs([graph.add("Relu", [x], types=[T]).output])
    assert run_passes(graph, "dce").passes[0].counts == {"nodes": 2000}
    assert len(graph.nodes) == 1


def test_dce_keeps_what_a_plan_speaks_of_only_while_it_is_read():
    graph = Graph("g")
    x, w = graph.add_input("x", T), const(graph, "w", np.ones((4, 4)))
    graph.set_outputs([graph.add("MatMul", [x, w], types=[T]).output])
    graph.set_fact("precision-plan", PrecisionPlan({"w": Storage(bits=8)}))
    PassManager("canonicalize", [VerifyEach()]).run(graph)
    assert list(graph.consts) == ["w"]


# ---- cost ----


def test_cost_per_node_stays_flat():
    """The number of rule tries, which is the work of the driver, grows with the graph."""
    tries = []
    for layers in (10, 40):
        graph = decoder(layers)
        ctx = PassContext()
        run_passes(graph, "infer-types")
        for one in parse_pipeline("fold,simplify").passes():
            one.run(graph, ctx)
        tries.append(sum(stat.tries for done in ctx.rewrites for stat in done.stats.values()))
    assert tries[1] <= 4.1 * tries[0]


def test_hidden_width_is_what_the_decoder_says():
    graph = decoder(1)
    assert graph.inputs[0].shape[-1] == HIDDEN and len(graph.nodes) == 39
