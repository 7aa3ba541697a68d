"""The verifier: well-formed graphs are clean, every broken invariant is found under its code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from ir.base.diag import Diagnostic
from ir.base.types import F32, I64, Dim, TensorType
from ir.facts.precision import PrecisionPlan
from ir.graph.facts import RawFact
from ir.graph.graph import Fact, Graph, Value
from ir.ops.registry import OPERATORS
from ir.quant.storage import Storage
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from ir.verify.stages import INVARIANTS, STAGES, Allow, Forbid, Stage, verify
from tests.support.graphs import graphs

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def read(text: str) -> Graph:
    return parse('lading 1\ngraph g {\n  opset "" 24\n' + text + "\n}")


SOUND = """
  dim seq = 1..8
  const @flag: bool[] = [true]
  const @w: f32[2] = [1.0, 2.0]
  input %x: f32[seq, 2]
  %a: f32[seq, 2] = Neg(%x) "first" ; "file:a"
  %b: f32[seq, 2] = Add(%a, @w) "second" ; "file:b"
  %r: f32[seq, 2] = If(@flag) {
    then_branch = graph then { %t: f32[seq, 2] = Mul(%a, %b) output %t },
    else_branch = graph else { output %a }
  }
  %c: f32[seq, 2] = Sub(%r, %b) "third"
  output %c
  table rows = @w
"""


def sound() -> Graph:
    return read(SOUND)


def codes(found: list[Diagnostic]) -> set[str]:
    return {item.code for item in found}


def node(graph: Graph, name: str):
    return graph.value(name).producer


def then(graph: Graph) -> Graph:
    return node(graph, "r").attrs["then_branch"]


# ---- what is right ----


@quick
@given(graphs())
def test_random_graphs_are_clean(graph):
    before = graph.version, print_graph(graph)
    assert verify(graph, "typed") == []
    assert (graph.version, print_graph(graph)) == before


@quick
@given(graphs(typed=False))
def test_graphs_without_types_are_clean_but_not_typed(graph):
    before = graph.version
    assert verify(graph) == []
    assert codes(INVARIANTS["typed"](graph)) == {"T272"}
    assert graph.version == before


def test_the_example_is_clean():
    assert verify(sound(), "typed") == []


# ---- what is broken: written past the graph on purpose ----


def drop_use(graph):
    graph.value("a")._uses.pop((node(graph, "b"), 0))


def invent_use(graph):
    graph.value("x")._uses[(node(graph, "c"), 0)] = None


def leave_a_dead_reader(graph):
    extra = graph.add("Neg", [graph.value("a")], types=[graph.value("a").type])
    graph.erase(extra)
    graph.value("a")._uses[(extra, 0)] = None


def read_behind_the_back(graph):
    one = node(graph, "c")
    one.inputs = (graph.value("a"), one.inputs[1])


def move_up(graph):
    graph.move(node(graph, "c"), before=node(graph, "a"))


def move_a_captured_producer_down(graph):
    graph.move(node(graph, "a"))
    graph.set_input(node(graph, "b"), 0, graph.value("x"))


def read_an_erased_value(graph):
    extra = graph.add("Neg", [graph.value("x")], types=[graph.value("x").type], before=graph.first)
    graph.set_input(node(graph, "b"), 0, extra.output)
    del graph._names[extra.output.name]


def read_another_graph(graph):
    other = sound()
    one = node(graph, "a")
    one.inputs = (other.value("x"),)
    other.value("x")._uses[(one, 0)] = None
    graph.value("x")._uses.clear()


def read_an_inner_value(graph):
    inner = then(graph).value("t")
    one = node(graph, "c")
    graph.value("r")._uses.pop((one, 0))
    one.inputs = (inner, one.inputs[1])
    inner._uses[(one, 0)] = None


def return_another_graph(graph):
    graph.outputs = (*graph.outputs, sound().value("x"))


def return_an_erased_value(graph):
    value = Value(graph, "gone", None)
    graph.outputs = (value,)
    graph._pins = {value: 1, graph.value("a"): 1, graph.value("w"): 1}


def two_of_one_name(graph):
    graph.value("a").name = "b"


def forget_a_name(graph):
    del graph._names["c"]


def remember_a_ghost(graph):
    graph._names["ghost"] = graph.value("a")


def hide_an_outer_name(graph):
    body = then(graph)
    value = body.value("t")
    del body._names["t"]
    value.name = "x"
    body._names["x"] = value


def wrong_index(graph):
    graph.value("a").index = 1


def wrong_producer(graph):
    graph.value("a").producer = node(graph, "b")


def computed_input(graph):
    graph.inputs = (*graph.inputs, graph.value("a"))


def no_way_back(graph):
    node(graph, "b")._prev = None


def run_in_a_circle(graph):
    node(graph, "c")._next = node(graph, "a")


def run_in_an_inner_circle(graph):
    inner = then(graph).first
    inner._next = inner


def wrong_count(graph):
    graph._count += 1


def foreign_node(graph):
    node(graph, "b").graph = sound()


def cut_the_tail(graph):
    graph._last = node(graph, "a")


def miscount_pins(graph):
    graph._pins[graph.value("a")] += 1


def forget_a_pin(graph):
    del graph._pins[graph.value("c")]


def steal_a_body(graph):
    then(graph).owner = node(graph, "c")


def body_of_another_region(graph):
    then(graph)._region = sound()._region


def constant_without_data(graph):
    graph.value("w").const = None


def misfiled_constant(graph):
    graph.consts["other"] = graph.consts.pop("w")


def lying_constant(graph):
    graph.value("w").type = TensorType(F32, (2, 1))


def empty_range(graph):
    graph.add_dim(Dim("seq", 5, 4))


def no_multiple_in_range(graph):
    graph.add_dim(Dim("seq", 5, 7, 4))


def negative_dim(graph):
    graph.add_dim(Dim("seq", -1, 7))


def zero_step(graph):
    graph.add_dim(Dim("seq", 0, 7, 0))


def misfiled_dim(graph):
    graph.dims["other"] = Dim("seq")


def negative_size(graph):
    graph.set_type(graph.value("c"), TensorType(F32, (-1, 2)))


def strange_attribute(graph):
    graph.set_attrs(node(graph, "a"), odd=object())


def strange_item(graph):
    graph.set_attrs(node(graph, "a"), odd=(1, [2]))


def misfiled_fact(graph):
    graph.set_fact("here", RawFact("there", {}))


def unprintable_fact(graph):
    graph.set_fact("here", {"array": np.zeros(2)})


def no_fact_at_all(graph):
    graph.set_fact("here", 3)


def unknown_operator(graph):
    graph.set_op(node(graph, "a"), "Negg")


def too_many_inputs(graph):
    graph.set_inputs(node(graph, "a"), [graph.value("x")] * 2)


def unknown_attribute(graph):
    graph.set_attrs(node(graph, "a"), axis=1)


def missing_attribute(graph):
    graph.set_attrs(node(graph, "r"), else_branch=None)


def wrong_attribute(graph):
    graph.set_op(node(graph, "a"), "Softmax")
    graph.set_attrs(node(graph, "a"), axis="x")


def wrong_type(graph):
    graph.set_type(graph.value("b"), TensorType(I64, (Dim("seq"), 2)))


def wrong_rank(graph):
    graph.set_type(graph.value("b"), TensorType(F32, (2,)))


def unfitting_inputs(graph):
    graph.set_const(graph.value("w"), InlineTensor(np.zeros(3, np.float32)))


def wrong_type_in_a_body(graph):
    body = then(graph)
    body.set_type(body.value("t"), TensorType(F32, (9, 9, 9)))


MUTATIONS = [
    (drop_use, "I110"),
    (invent_use, "I110"),
    (leave_a_dead_reader, "I110"),
    (read_behind_the_back, "I110"),
    (move_up, "I111"),
    (move_a_captured_producer_down, "I111"),
    (read_an_erased_value, "I112"),
    (read_another_graph, "I112"),
    (read_an_inner_value, "I112"),
    (return_another_graph, "I112"),
    (return_an_erased_value, "I112"),
    (two_of_one_name, "I113"),
    (forget_a_name, "I113"),
    (remember_a_ghost, "I113"),
    (hide_an_outer_name, "I114"),
    (wrong_index, "I115"),
    (wrong_producer, "I115"),
    (computed_input, "I115"),
    (no_way_back, "I116"),
    (run_in_a_circle, "I116"),
    (run_in_an_inner_circle, "I116"),
    (wrong_count, "I116"),
    (foreign_node, "I116"),
    (cut_the_tail, "I116"),
    (miscount_pins, "I117"),
    (forget_a_pin, "I117"),
    (steal_a_body, "I118"),
    (body_of_another_region, "I118"),
    (constant_without_data, "I119"),
    (misfiled_constant, "I119"),
    (lying_constant, "T273"),
    (empty_range, "I120"),
    (no_multiple_in_range, "I120"),
    (negative_dim, "I120"),
    (zero_step, "I120"),
    (misfiled_dim, "I120"),
    (negative_size, "T271"),
    (strange_attribute, "I122"),
    (strange_item, "I122"),
    (misfiled_fact, "I121"),
    (unprintable_fact, "I121"),
    (no_fact_at_all, "I121"),
    (unknown_operator, "T200"),
    (too_many_inputs, "T201"),
    (unknown_attribute, "T202"),
    (missing_attribute, "T203"),
    (wrong_attribute, "T204"),
    (wrong_type, "T210"),
    (wrong_rank, "T210"),
    (unfitting_inputs, "T212"),
    (wrong_type_in_a_body, "T210"),
]


@pytest.mark.parametrize(("break_it", "code"), MUTATIONS, ids=[row[0].__name__ for row in MUTATIONS])
def test_every_broken_invariant_is_found(break_it, code):
    graph = sound()
    break_it(graph)
    found = verify(graph)
    assert code in codes(found), found
    assert all(str(item) for item in found)


def test_all_problems_are_reported_at_once():
    graph = sound()
    for break_it in (unknown_operator, lying_constant, negative_size, wrong_count, strange_item, unprintable_fact):
        break_it(graph)
    graph.set_attrs(node(graph, "c"), nonsense=1)
    assert codes(verify(graph)) >= {"T200", "T202", "T273", "T271", "I116", "I122"}


def test_types_are_still_checked_beside_a_misused_operator():
    graph = sound()
    unknown_operator(graph)
    wrong_type_in_a_body(graph)
    assert codes(verify(graph)) == {"T200", "T210"}


def test_functions_are_verified():
    graph = sound()
    body = Graph("f")
    value = body.add_input("a", None)
    made = body.add("Negg", [value])
    body.set_outputs([made.output])
    graph.functions["acme.F"] = body
    assert codes(verify(graph)) == {"T200"}
    body._count = 7
    assert codes(verify(graph)) == {"T200", "I116"}


def test_a_diagnostic_shows_the_node_and_its_neighbours():
    graph = sound()
    graph.set_attrs(node(graph, "b"), axis=1)
    read_behind_the_back(graph)
    broken, misused = verify(graph)[0], next(item for item in verify(graph) if item.code == "T202")
    assert str(broken).splitlines() == [
        "error[I110]: input 0 reads %a: f32[seq, 2], which does not list it as a reader",
        "  at graph g, node 'third'",
        "       %r: f32[seq, 2] = If(@flag) {else_branch = graph else {...}, then_branch = graph then {...}}",
        '       %c: f32[seq, 2] = Sub(%a, %b) "third"',
        "                             ^^",
    ]
    assert "node 'second' from file:b" in misused.where
    assert misused.where.splitlines()[1].lstrip().startswith("%a: f32[seq, 2] = Neg(%x)")
    assert misused.where.splitlines()[4].lstrip().startswith("%r")


def test_misspelled_operators_get_a_suggestion():
    graph = sound()
    graph.set_op(node(graph, "a"), "Softmx")
    assert verify(graph)[0].hint == "did you mean 'Softmax'?"


def test_operators_that_nobody_knows_are_warnings():
    graph = sound()
    graph.set_op(node(graph, "a"), "acme.Thing")
    assert [(item.code, item.severity) for item in verify(graph)] == [("T200", "warning")]
    assert INVARIANTS["typed"](graph) == []


def test_facts_check_themselves():
    class Picky(Fact):
        name = "picky"

        def to_data(self):
            return {}

        @classmethod
        def from_data(cls, data):
            return cls()

        def check(self, graph):
            return [Diagnostic("I121", "not like this")]

    graph = sound()
    graph.set_fact("picky", Picky())
    assert [item.message for item in verify(graph)] == ["not like this"]


def test_renaming_reaches_facts():
    class Names(Fact):
        name = "names"

        def __init__(self, names):
            self.names = names

        def to_data(self):
            return {"names": self.names}

        @classmethod
        def from_data(cls, data):
            return cls(data["names"])

        def renamed(self, old, new):
            return Names([new if name == old else name for name in self.names])

    graph = sound()
    graph.set_fact("names", Names(["a", "w"]))
    graph.rename(graph.value("w"), "weight")
    assert graph.facts["names"].names == ["a", "weight"]


# ---- stages ----


def linear(rows: int = 64) -> Graph:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (1, rows)))
    w = graph.add_const("w", InlineTensor(np.ones((rows, 32), np.float32)))
    graph.set_outputs([graph.add("MatMul", [x, w], outputs=["y"], types=[TensorType(F32, (1, 32))]).output])
    return graph


def discovered(*names: str) -> RawFact:
    return RawFact("dynamic-inputs", {"discoveries": [{"input": name} for name in names]})


@pytest.mark.mnn
def test_stage_float_has_no_quantization_and_no_target_operators():
    graph = sound()
    assert verify(graph, "float") == []
    graph.set_op(node(graph, "a"), "mnn.UnaryOp")
    found = [item for item in verify(graph, "float") if item.code == "I130"]
    assert len(found) == 1 and "mnn.UnaryOp" in found[0].message and "legalized" in found[0].hint


def test_stage_signature_wants_every_input_recorded():
    graph = linear()
    assert codes(verify(graph, "signature")) == {"I133"}
    graph.set_fact("dynamic-inputs", discovered())
    assert "%x" in verify(graph, "signature")[0].message
    graph.set_fact("dynamic-inputs", discovered("x"))
    assert verify(graph, "signature") == []


def test_stage_planned_wants_a_plan_that_fits():
    graph = linear()
    graph.set_fact("dynamic-inputs", discovered("x"))
    assert codes(verify(graph, "planned")) == {"I134"}
    graph.set_fact("precision-plan", PrecisionPlan({"w": Storage(bits=8)}))
    assert verify(graph, "planned") == []
    graph.set_fact("precision-plan", PrecisionPlan({"v": Storage(bits=8)}))
    assert codes(verify(graph, "planned")) == {"I191"}


@pytest.mark.parametrize(
    ("plan", "rows", "clean"),
    [({}, 64, False), ({}, 8, True), ({"w": Storage(bits=8)}, 64, False), ({"w": Storage(bits=16)}, 64, False),
     ({"w": Storage(bits=32)}, 64, True)],
)  # fmt: skip
def test_quantized_leaves_no_large_float_weight_that_is_not_planned_so(plan, rows, clean):
    graph = linear(rows)
    graph.set_fact("precision-plan", PrecisionPlan(plan))
    found = INVARIANTS["quantized"](graph)
    assert codes(found) == (set() if clean else {"I131"})
    if not clean:
        assert found[0].where.splitlines()[2].strip() == "^^"


def test_quantized_without_a_plan_allows_no_large_float_weight():
    assert codes(INVARIANTS["quantized"](linear())) == {"I131"}


@pytest.mark.mnn
def test_mnn_allows_target_operators_and_stored_weights_only():
    graph = read("""
      const @codes: i8[2, 2] = [1, 2, 3, 4]
      const @scale: f32[2] = [1.0, 2.0]
      const @half: f16[2] = [1.0, 2.0]
      input %x: f32[2, 2]
      %w: f32[2, 2] = DequantizeLinear(@codes, @scale) {axis = 1}
      %h: f32[2] = Cast(@half) {to = 1}
      %y: f32[2, 2] = mnn.UnaryOp(%x) {opType = "NEG"}
      output %y
    """)
    assert INVARIANTS["mnn"](graph) == []
    graph.add("Cast", [graph.value("y")], {"to": 1})
    graph.add("Relu", [graph.value("y")])
    found = INVARIANTS["mnn"](graph)
    assert [item.code for item in found] == ["I132", "I132"] and "Relu" in found[1].message


def test_every_stage_is_made_of_known_invariants():
    assert {name for stage in STAGES.values() for name in stage.invariants} == set(INVARIANTS)
    with pytest.raises(KeyError, match="did you mean 'quantized'"):
        verify(sound(), "quantised")


@pytest.mark.mnn
def test_the_first_matching_row_decides(monkeypatch):
    rows = (Allow("mnn.Neg"), Forbid("mnn.*", lambda one: bool(one.name), "I132", "no names"))
    monkeypatch.setattr("ir.verify.stages.STAGES", {"float": Stage(rules=rows)})
    graph = read('input %x: f32[2]\n%a = mnn.Neg(%x) "n"\n%b = mnn.Abs(%x)\n%c = mnn.Abs(%x) "n"')
    found = [item for item in verify(graph, "float") if item.code == "I132"]
    assert len(found) == 1 and "%c" in found[0].where and found[0].hint == "no names"


def test_an_operator_may_have_its_own_checks_registered_once():
    from ir.ops.registry import AttrDef, OpDef

    OPERATORS.add(
        "test.Once", OpDef("test.Once", ("x",), attrs={"k": AttrDef("k", "int", required=True)}, package="tests")
    )
    graph = read("input %x: f32[2]\n%a: f32[2] = test.Once(%x)")
    assert codes(verify(graph)) == {"T203"}
