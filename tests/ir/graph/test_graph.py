"""Graph edits keep links, order and names right; comparison and topological order."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ir.base.types import F32, Dim, TensorType
from ir.graph.compare import attr_key, differences, equal
from ir.graph.facts import Fact, followed
from ir.graph.graph import Edit, Graph, GraphError
from ir.graph.order import reads, topological, toposort
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from ir.verify.stages import verify
from tests.support.graphs import graphs

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def read(text: str) -> Graph:
    return parse('lading 1\ngraph g {\n  opset "" 24\n' + text + "\n}")


def errors(graph: Graph) -> list[str]:
    return [str(item) for item in verify(graph) if item.severity == "error"]


CHAIN = "input %x: f32[2]\n%a = Neg(%x)\n%b = Abs(%a)\n%c = Add(%a, %b)\noutput %c"
BRANCH = """
  input %x: f32[2]
  const @flag: bool[] = [true]
  %a = Neg(%x)
  %r = If(@flag) {then_branch = graph then { %t = Abs(%a) output %t }, else_branch = graph else { output %a }}
  output %r
"""


def names_of(graph: Graph) -> list[str]:
    return [node.output.name for node in graph.nodes]


# ---- edits ----


def test_links_follow_every_edit():
    graph = read(CHAIN)
    x, a, b, c = (graph.value(name) for name in "xabc")
    assert a.users == (b.producer, c.producer) and a.use_count == 2 and c.use_count == 1 and c.is_output
    graph.set_input(c.producer, 0, x)
    assert [node.op for node in x.users] == ["Neg", "Add"]
    assert graph.replace(b, a) == 1 and b.use_count == 0
    graph.erase(b.producer)
    assert b.producer.graph is None and not graph.has("b")
    graph.set_outputs([a, a])
    assert a.use_count == 3 and c.use_count == 0
    assert graph.replace(a, x) == 3 and graph.outputs == (x, x)
    assert errors(graph) == []


@pytest.mark.parametrize(
    "edit",
    [
        lambda g: g.erase(g.value("a").producer),
        lambda g: g.remove_input(g.value("x")),
        lambda g: g.remove_input(g.value("a")),
        lambda g: g.erase_const(g.value("a")),
        lambda g: g.rename(g.value("a"), "b"),
        lambda g: g.add_input("a", None),
        lambda g: g.add("Neg", [Graph("other").add_input("y", None)]),
        lambda g: g.set_type(g.add_const("k", InlineTensor(np.zeros(1))), None),
        lambda g: g.move(g.value("a").producer, before=read(CHAIN).value("a").producer),
        lambda g: g.add("Neg", [g.value("x")], before=read(CHAIN).value("a").producer),
        lambda g: read(CHAIN).erase(g.value("c").producer),
    ],
)
def test_edits_that_would_break_the_graph_are_refused_and_change_nothing(edit):
    graph = read(CHAIN)
    before = print_graph(graph)
    with pytest.raises(GraphError):
        edit(graph)
    if graph.consts:
        graph.erase_const(graph.value("k"))
    assert print_graph(graph) == before and errors(graph) == []


def test_erased_values_cannot_be_read():
    graph = read(CHAIN)
    c = graph.value("c")
    graph.set_outputs([graph.value("b")])
    graph.erase(c.producer)
    with pytest.raises(GraphError, match="erased"):
        graph.set_outputs([c])


def test_versions_and_listeners():
    graph = read(CHAIN)
    seen: list[Edit] = []
    stop = graph.listen(seen.append)
    before = graph.version
    graph.set_attrs(graph.value("a").producer, k=1)
    graph.replace(graph.value("b"), graph.value("a"))
    assert graph.version == before + 2
    assert [edit.kind for edit in seen] == ["set_attrs", "replace", "set_input"]
    stop()
    graph.set_op(graph.value("a").producer, "Abs")
    assert len(seen) == 3


def test_edits_while_walking():
    graph = read(CHAIN)
    visited = []
    for node in graph.nodes:
        visited.append(node.op)
        if node.op == "Abs":
            graph.replace(node.output, node.inputs[0])
            graph.erase(node)
            graph.add("Exp", [node.inputs[0]], after=graph.value("a").producer)
        if node.op == "Add":
            graph.add("Tanh", [node.output], after=node)
    assert visited == ["Neg", "Abs", "Add", "Tanh"]
    assert [node.op for node in graph.nodes] == ["Neg", "Exp", "Add", "Tanh"]
    assert [node.op for node in reversed(graph.nodes)] == ["Tanh", "Add", "Exp", "Neg"]
    assert errors(graph) == []


def test_attributes_may_have_any_name():
    graph = read(CHAIN)
    node = graph.value("a").producer
    graph.set_attrs(node, **{"node": 1, "self": 2, "": 3, "attrs": 4})
    assert dict(node.attrs) == {"node": 1, "self": 2, "": 3, "attrs": 4}
    with pytest.raises(TypeError):
        node.attrs["x"] = 1


# ---- subgraphs ----


def test_captures_are_uses_and_erasing_drops_them():
    graph = read(BRANCH)
    a = graph.value("a")
    assert [node.op for node in a.users] == ["Abs"] and a.use_count == 2
    graph.set_outputs([a])
    graph.erase(graph.value("r").producer)
    assert a.users == () and a.use_count == 1
    assert errors(graph) == []


def test_a_nested_branch_that_returns_a_capture_lets_go_of_it():
    graph = read("""
      input %x: f32[2]
      const @flag: bool[] = [true]
      %a = Neg(%x)
      %r = If(@flag) {then_branch = graph t { %s = If(@flag) {then_branch = graph u { output %a }} output %s }}
      output %x
    """)
    a, node = graph.value("a"), graph.value("r").producer
    assert a.use_count == 1 and list(reads(node)).count(a) == 1
    graph.erase(node)
    assert a.use_count == 0
    graph.erase(a.producer)


def test_replacing_a_branch_lets_go_of_the_old_one():
    graph = read(BRANCH)
    a, node = graph.value("a"), graph.value("r").producer
    fresh = Graph("fresh", owner=node)
    fresh.set_outputs([graph.value("x")])
    graph.set_attrs(node, then_branch=fresh)
    assert a.users == () and a.use_count == 1
    graph.set_attrs(node, else_branch=None)
    assert a.use_count == 0 and errors(graph) != []


def test_bodies_that_moved_to_another_node_stay_linked():
    graph = read(BRANCH)
    old, a = graph.value("r").producer, graph.value("a")
    new = graph.add("If", old.inputs, old.attrs, outputs=["n"], before=old)
    graph.replace(old.output, new.output)
    graph.erase(old)
    assert [node.op for node in a.users] == ["Abs"] and a.use_count == 2
    assert errors(graph) == []


def test_outer_values_never_take_the_name_of_an_inner_one():
    graph = read(BRANCH)
    assert graph.add("Neg", [graph.value("x")], outputs=["t"]).output.name != "t"
    assert graph.add_const("t", InlineTensor(np.zeros(1))).name != "t"
    assert graph.fresh_name("free") == "free"
    assert errors(graph) == []


def test_version_counts_edits_in_bodies():
    graph = read(BRANCH)
    before = graph.version
    body = graph.value("r").producer.attrs["then_branch"]
    body.set_op(next(iter(body.nodes)), "Exp")
    assert graph.version == body.version == before + 1


# ---- order ----


@quick
@given(graphs(), st.randoms(use_true_random=False))
def test_toposort_repairs_any_order_and_keeps_a_right_one(graph, rng):
    before = print_graph(graph)
    assert toposort(graph) is False and print_graph(graph) == before
    original = parse(before)
    shuffled = list(graph.nodes)
    rng.shuffle(shuffled)
    for node in shuffled:
        graph.move(node)
    toposort(graph)
    assert errors(graph) == []
    assert equal(graph, original, ordered=False, locs=True)
    assert topological(graph) == list(graph.nodes)


def test_toposort_is_stable():
    graph = read("input %x: f32[2]\n%a = Neg(%x)\n%b = Neg(%x)\n%c = Neg(%x)\n%d = Add(%b, %c)")
    graph.move(graph.value("d").producer, before=graph.value("b").producer)
    assert toposort(graph) is True
    assert names_of(graph) == ["a", "b", "c", "d"]


def test_cycles_are_named():
    graph = read(CHAIN)
    graph.set_input(graph.value("a").producer, 0, graph.value("c"))
    with pytest.raises(GraphError, match=r"%a = Neg\(%c\)"):
        toposort(graph)


def test_order_minds_captures():
    graph = read(BRANCH)
    graph.move(graph.value("a").producer)
    assert toposort(graph) and names_of(graph) == ["a", "r"]


# ---- comparison ----


@quick
@given(graphs(), graphs(), st.booleans(), st.booleans())
def test_comparison_is_symmetric_and_reflexive(a, b, names, ordered):
    options = {"names": names, "ordered": ordered}
    assert differences(a, a, **options) == []
    assert equal(a, b, **options) == equal(b, a, **options)


@quick
@given(graphs(odd_names=False), st.integers(0, 2**32))
def test_comparison_without_names_sees_through_renaming_and_reordering(graph, seed):
    other = parse(print_graph(graph))
    rng = random.Random(seed)
    for value in [*other.inputs, *other.consts.values(), *(v for node in other.nodes for v in node.outputs)]:
        other.rename(value, other.fresh_name(f"renamed.{rng.randrange(10**6)}"))
    nodes = list(other.nodes)
    rng.shuffle(nodes)
    for node in nodes:
        other.move(node)
        other.set_name(node, "other")
    toposort(other)
    assert differences(graph, other, names=False, ordered=False) == []
    if any(value.name != "" for value in graph.inputs):
        assert not equal(graph, other)


@quick
@given(graphs(min_nodes=2), st.data())
def test_comparison_notices_any_single_change(graph, data):
    other = parse(print_graph(graph))
    nodes = list(other.nodes)
    node = data.draw(st.sampled_from(nodes))
    change = data.draw(st.sampled_from(["op", "attr", "type", "drop-input", "const", "output", "dim"]))
    if change == "op":
        other.set_op(node, "Changed")
    elif change == "attr":
        other.set_attrs(node, changed=1.5)
    elif change == "type":
        other.set_type(node.output, TensorType(F32, (77,)))
    elif change == "drop-input":
        other.set_input(node, 0, None)
    elif change == "const":
        value = next(iter(other.consts.values()), None)
        if value is None:
            return
        other.set_const(value, InlineTensor(value.const.load().copy().reshape(-1)[:0]))
    elif change == "output":
        other.set_outputs([*other.outputs, other.inputs[0]])
    else:
        other.add_dim(Dim("seq", 2, 64))
    for names in (True, False):
        for ordered in (True, False):
            assert not equal(graph, other, names=names, ordered=ordered)
            assert not equal(other, graph, names=names, ordered=ordered)


def test_shared_and_repeated_nodes_are_not_the_same():
    shared = read("input %x: f32[2]\n%a = Neg(%x)\n%c = Add(%a, %a)\noutput %c")
    twice = read("input %x: f32[2]\n%a = Neg(%x)\n%b = Neg(%x)\n%c = Add(%a, %b)\noutput %c")
    for one, two in ((shared, twice), (twice, shared)):
        assert not equal(one, two, names=False, ordered=False)


def test_operand_order_counts():
    one = read("input %x: f32[2]\ninput %y: f32[2]\n%c = Sub(%x, %y)\noutput %c")
    two = read("input %x: f32[2]\ninput %y: f32[2]\n%c = Sub(%y, %x)\noutput %c")
    assert "reads %x" in differences(one, two)[0]
    assert not equal(one, two, names=False, ordered=False)


def test_unread_nodes_are_matched_by_structure():
    one = read("input %x: f32[2]\n%a = Neg(%x)\n%b = Abs(%a)\n%d = Exp(%x)\n%e = Neg(%x)\noutput %x")
    two = read("input %x: f32[2]\n%e = Neg(%x)\n%d = Exp(%x)\n%a = Neg(%x)\n%b = Abs(%a)\noutput %x")
    assert equal(one, two, names=False, ordered=False)
    assert equal(one, two, ordered=False) and not equal(one, two)
    swapped = read("input %x: f32[2]\n%e = Neg(%x)\n%a = Neg(%x)\n%b = Abs(%a)\n%d = Exp(%x)\noutput %x")
    assert equal(one, swapped, ordered=False)
    two.set_op(two.value("b").producer, "Ceil")
    assert not equal(one, two, names=False, ordered=False)


def test_differences_are_limited_and_say_where():
    one, two = read(CHAIN), read(CHAIN)
    for node in two.nodes:
        two.set_op(node, "Sign")
    assert len(differences(one, two)) == 3 and len(differences(one, two, limit=2)) == 2
    assert differences(one, two)[0] == "node 0 %a = Neg(%x): operator ('Neg', ''), ('Sign', '') in the other"


def test_locations_count_only_when_asked():
    one, two = read(CHAIN), read(CHAIN)
    two.set_loc(two.value("a"), "elsewhere")
    assert equal(one, two) and not equal(one, two, locs=True)


def test_weights_are_compared_by_place_and_inline_data_by_value(tmp_path):
    path = tmp_path / "w.bin"
    np.arange(4, dtype=np.float32).tofile(path)

    def made(tensor) -> Graph:
        graph = Graph("g")
        graph.add_const("w", tensor)
        return graph

    file = FileTensor(path, 0, TensorType(F32, (4,)))
    inline = InlineTensor(np.arange(4, dtype=np.float32))
    assert equal(made(file), made(FileTensor(path, 0, TensorType(F32, (4,)))))
    assert equal(made(file), made(inline))
    assert not equal(made(file), made(FileTensor(path, 0, TensorType(F32, (4,)), "key")))
    assert not equal(made(inline), made(InlineTensor(np.arange(4, dtype=np.float32) + 1)))


def test_attribute_keys_follow_equality():
    same = [(1, True), (np.int64(3), 3), (float("nan"), float("nan")), ((1, 2), (1, 2))]
    other = [(1, 1.0), (0.0, -0.0), ("a", b"a"), ((), (0,)), ((1,), ("1",))]
    assert all(attr_key(a) == attr_key(b) for a, b in same)
    assert all(attr_key(a) != attr_key(b) for a, b in other)
    big = [InlineTensor(np.full(5000, fill, np.float64)) for fill in (0, 1)]
    assert attr_key(big[0]) == attr_key(big[1])
    assert attr_key(InlineTensor(np.array(1.0))) != attr_key(InlineTensor(np.array(2.0)))


# ---- names of many values ----


class Spoken(Fact):
    """Names values and counts how often it is asked to follow them."""

    name = "spoken"
    asked = 0

    def __init__(self, names):
        self.names = tuple(names)

    def to_data(self):
        return {"names": list(self.names)}

    @classmethod
    def from_data(cls, data):
        return cls(data["names"])

    def renamed_all(self, renames):
        Spoken.asked += 1
        now = followed(self.names, renames)
        return Spoken(now.get(name, name) for name in self.names)


class Plain(Spoken):
    """The same fact as an author writes it who knows `renamed` alone."""

    renamed_all = Fact.renamed_all

    def renamed(self, old, new):
        return Plain(new if name == old else name for name in self.names) if old in self.names else self


@quick
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=12))
def test_facts_follow_values_whatever_is_renamed(moves):
    graph = Graph()
    values = [graph.add_const(f"n{number}", InlineTensor(np.zeros(1, np.float32))) for number in range(6)]
    graph.set_fact("spoken", Spoken(value.name for value in values))
    graph.set_fact("plain", Plain(value.name for value in values[:3]))
    for number, name in moves:
        if not graph.has(f"n{name}"):
            graph.rename(values[number], f"n{name}")
    names = [value.name for value in values]
    assert list(graph.consts) == names and list(graph.consts.values()) == values
    assert list(graph.facts["spoken"].names) == names and list(graph.facts["plain"].names) == names[:3]


def test_many_renames_are_told_to_a_fact_once():
    graph = Graph()
    values = [graph.add_const(f"w{number}", InlineTensor(np.zeros(1, np.float32))) for number in range(100)]
    graph.set_fact("spoken", Spoken(value.name for value in values))
    Spoken.asked = 0
    for value in values:
        graph.rename(value, value.name.upper())
    assert Spoken.asked == 0
    assert graph.facts["spoken"].names == tuple(value.name for value in values) and Spoken.asked == 1


def test_a_fact_recorded_after_a_rename_is_not_told_of_it():
    graph = Graph()
    value = graph.add_const("a", InlineTensor(np.zeros(1, np.float32)))
    graph.set_fact("plain", Plain(["a"]))
    graph.rename(value, "b")
    graph.set_fact("spoken", Spoken(["a"]))
    assert graph.facts["plain"].names == ("b",) and graph.facts["spoken"].names == ("a",)


def test_a_constant_may_take_the_name_that_another_gave_up():
    graph = Graph()
    first = graph.add_const("w", InlineTensor(np.zeros(1, np.float32)))
    graph.rename(first, "v")
    second = graph.add_const("w", InlineTensor(np.ones(1, np.float32)))
    assert graph.consts == {"v": first, "w": second} and graph.holds(first) and graph.holds(second)
    graph.erase_const(first)
    graph.rename(second, "v")
    assert graph.consts == {"v": second} and not graph.holds(first)


def test_accessors_that_narrow_say_what_is_missing() -> None:
    graph = Graph("narrow")
    x = graph.add_input("x", TensorType(F32, (Dim("n"), 2)))
    bare = graph.add_input("bare", None)
    table = graph.add_const("table", InlineTensor(np.ones((3, 2), np.float32)))
    node = graph.add("Clip", [x, None, table])
    assert (x.rank, bare.rank, table.sizes, node.operand(2), node.home) == (2, None, (3, 2), table, graph)
    assert table.tensor is table.const
    for value in (x, bare):
        with pytest.raises(GraphError, match="not a tensor of known sizes"):
            _ = value.sizes
    with pytest.raises(GraphError, match="not a constant"):
        _ = x.tensor
    for index in (1, 3):
        with pytest.raises(GraphError, match=f"has no input {index}"):
            node.operand(index)
    graph.erase(node)
    with pytest.raises(GraphError, match="has been erased"):
        _ = node.home
