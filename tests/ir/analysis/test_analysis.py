"""Analyses against networkx, brute force and decoders whose structure is known."""

from __future__ import annotations

import gc
import weakref
from functools import reduce
from math import inf

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ir.analysis import dataflow as analysis
from ir.analysis.liveness import peak_memory, size_of
from ir.analysis.repeats import chains, repeats
from ir.base.types import BOOL, DTYPES, F32, I32, I64, Dim, SequenceType, TensorType
from ir.graph.graph import Graph, GraphError, Node, Value
from ir.graph.order import toposort
from ir.graph.view import cached, dataflow, flow
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from tests.support.graphs import graphs
from tests.support.work import calls_of

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def read(text: str) -> Graph:
    return parse('lading 1\ngraph g {\n  opset "" 24\n' + text + "\n}")


def values(graph: Graph, *names: str) -> list[Value]:
    return [graph.value(name) for name in names]


def names_of(items) -> list[str]:
    return [item.name for item in items]


DIAMOND = """
  input %x: f32[4]
  input %m: f32[4]
  const @w: f32[4] = [1.0, 2.0, 3.0, 4.0]
  %a: f32[4] = Neg(%x)
  %b: f32[4] = Abs(%a)
  %c: f32[4] = Exp(%a)
  %d: f32[4] = Add(%b, %c)
  %e: f32[4] = Mul(%d, @w)
  %f: f32[4] = Add(%e, %m)
  %g: f32[4] = Add(%f, %d)
  output %g
"""


def decoder(layers: int, *, hidden: int = 8, caches: bool = False, mixed: bool = False, shuffle=None) -> Graph:
    """Residual decoder: 20 nodes a layer (22 with caches); `mixed` makes every third layer another kind."""
    graph = Graph("decoder")
    seq = graph.add_dim(Dim("seq", 1, 64))
    wide = TensorType(F32, (1, seq, hidden))
    h = graph.add_input("rows", wide)
    mask = graph.add_input("mask", TensorType(F32, (seq, seq)))
    positions = graph.add_input("positions", TensorType(F32, (1, seq, 1)))
    outputs: list[Value] = []

    def op(kind: str, *inputs: Value, **attrs) -> Value:
        return graph.add(kind, inputs, attrs, types=[wide]).output

    def weight(*shape: int) -> Value:
        return graph.add_const("w", InlineTensor(np.full(shape, len(graph.consts), np.float32)))

    angles = op("Cos", op("Mul", positions, weight(hidden)))
    for layer in range(layers):
        n = op("RMSNormalization", h, weight(hidden), axis=-1)
        # Queries and keys have weights of one shape: only what follows tells them apart.
        q, k, v = (op("MatMul", n, weight(hidden, hidden)) for _ in range(3))
        q, k = op("Mul", q, angles), op("Mul", k, angles)
        if caches:
            past = graph.add_input(f"past.{layer}", wide)
            k = op("Concat", past, k, axis=1)
            outputs.append(op("Identity", k))
        scores = op("Add", op("MatMul", q, op("Transpose", k, perm=(0, 2, 1))), mask)
        h = op("Add", h, op("MatMul", op("MatMul", op("Softmax", scores, axis=-1), v), weight(hidden, hidden)))
        n = op("RMSNormalization", h, weight(hidden), axis=-1)
        act = "Gelu" if mixed and layer % 3 == 2 else "Swish"
        gate = op(act, op("MatMul", n, weight(hidden, 2 * hidden)))
        up = op("MatMul", n, weight(hidden, 2 * hidden))
        h = op("Add", h, op("MatMul", op("Mul", gate, up), weight(2 * hidden, hidden)))
    graph.set_outputs([op("MatMul", op("RMSNormalization", h, weight(hidden), axis=-1), weight(hidden, 30)), *outputs])
    if shuffle is not None:
        nodes = list(graph.nodes)
        shuffle.shuffle(nodes)
        for node in nodes:
            graph.move(node)
        toposort(graph)
    return graph


# ---- views ----


def test_the_networkx_view_shows_every_read():
    graph = read("""
      input %x: f32[2]
      const @flag: bool[] = [true]
      %a, %b = Split(%x)
      %c = Mul(%a, %a)
      %r = If(@flag) {then_branch = graph t { %s = Neg(%b) output %s }, else_branch = graph e { output %c }}
      output %r
    """)
    view = dataflow(graph)
    a, b, c, r = values(graph, "a", "b", "c", "r")
    assert view.edges[a, c.producer]["index"] == (0, 1)
    assert view.edges[b.producer, b]["index"] == (1,)
    assert view.edges[b, r.producer]["index"] == () == view.edges[c, r.producer]["index"]
    assert list(nx.topological_sort(view)) and set(view) == {*graph.nodes, *graph._names.values()}
    with pytest.raises(nx.NetworkXError):
        view.add_node("mine")
    body = r.producer.attrs["then_branch"]
    assert analysis.entries(body) == [b] and [type(item) for item in flow(body).items] == [Value, Node, Value]


@quick
@given(graphs())
def test_both_views_agree(graph):
    view, numbered = dataflow(graph), flow(graph)
    assert list(view) == numbered.items
    edges = {(numbered.items[a], numbered.items[b]) for b, before in enumerate(numbered.preds) for a in before}
    assert edges == set(view.edges)
    assert all(a < b for b, before in enumerate(numbered.preds) for a in before)
    assert [sorted(s) for s in numbered.succs] == [
        sorted(numbered.index[other] for other in view.successors(item)) for item in numbered.items
    ]


def test_results_are_kept_until_the_graph_changes():
    graph = read(DIAMOND)
    first = dataflow(graph)
    assert dataflow(graph) is first and analysis.depths(graph) is analysis.depths(graph)
    graph.set_attrs(graph.value("a").producer, k=1)
    assert dataflow(graph) is not first
    seen = []
    assert [cached(graph, "mine", lambda: seen.append(1) or 7) for _ in range(2)] == [7, 7] and len(seen) == 1


def test_kept_results_do_not_keep_the_graph():
    graph = read(DIAMOND)
    analysis.immediate_dominators(graph)
    gone = weakref.ref(graph)
    del graph
    gc.collect()
    assert gone() is None


def test_an_unordered_graph_is_refused():
    graph = read(DIAMOND)
    graph.move(graph.value("a").producer)
    with pytest.raises(GraphError, match="toposort"):
        flow(graph)


# ---- reachability, depth ----


@quick
@given(graphs(), st.data())
def test_reachability_agrees_with_networkx(graph, data):
    view = dataflow(graph)
    start = data.draw(st.sampled_from(list(view)))
    assert analysis.reachable(graph, [start]) == nx.descendants(view, start) | {start}
    assert analysis.reachable(graph, [start], backward=True) == nx.ancestors(view, start) | {start}


@quick
@given(graphs())
def test_depth_is_the_longest_path(graph):
    view = dataflow(graph)
    found = analysis.depths(graph)
    assert set(found) == set(graph.nodes)
    for node, depth in found.items():
        above = view.subgraph(nx.ancestors(view, node) | {node})
        longest = nx.dag_longest_path(above, weight=None)
        assert depth == max(0, sum(isinstance(item, Node) for item in longest) - 1)


# ---- dominators ----


def with_root(graph: Graph, starts, reverse: bool = False) -> nx.DiGraph:
    view = nx.DiGraph(dataflow(graph))
    view = view.reverse() if reverse else view
    view.add_edges_from(("root", item) for item in starts)
    # Edges into a start are beside the point: the virtual root reaches it directly.
    return view


def reference(graph: Graph, starts, reverse: bool = False) -> dict:
    found = nx.immediate_dominators(with_root(graph, starts, reverse), "root")
    return {item: None if above == "root" else above for item, above in found.items() if item != "root"}


@quick
@given(graphs(), st.data())
def test_dominators_agree_with_networkx(graph, data):
    some = data.draw(st.lists(st.sampled_from(list(dataflow(graph))), min_size=1, max_size=3, unique=True))
    for starts in (some, None):
        given_ = analysis.entries(graph) if starts is None else starts
        assert analysis.immediate_dominators(graph, starts) == reference(graph, given_)
        ends = analysis.exits(graph) if starts is None else starts
        assert analysis.immediate_post_dominators(graph, starts) == reference(graph, ends, reverse=True)


@quick
@given(graphs())
def test_dominance_queries_agree_with_the_tree(graph):
    tree = analysis.dominators(graph)
    table = tree.as_dict()
    for item in table:
        above, expected = item, []
        while table[above] is not None:
            above = table[above]
            expected.append(above)
        assert tree.chain(item) == expected
        assert tree.depth(item) == len(expected) + 1
        assert all(tree.dominates(one, item) == (one is item or one in expected) for one in table)
        assert tree.immediate(item) is (expected[0] if expected else None)
    some = list(table)[-3:]
    shared = reduce(lambda a, b: a & b, [{item, *tree.chain(item)} for item in some]) if some else set()
    assert tree.common(some) is max(shared, key=tree.depth, default=None)


def test_constants_and_what_hangs_on_them_alone_have_no_dominator():
    graph = read("input %x: f32[2]\nconst @w: f32[2] = [1.0, 2.0]\n%a = Neg(@w)\n%b = Add(%x, %a)\noutput %b")
    tree = analysis.dominators(graph)
    assert graph.value("a") not in tree and graph.value("w") not in tree
    assert tree.immediate(graph.value("b").producer) is graph.value("x")
    with pytest.raises(KeyError):
        tree.immediate(graph.value("a"))
    with pytest.raises(KeyError):
        tree.depth(graph.value("w"))
    assert not tree.dominates(graph.value("w"), graph.value("b"))


@quick
@given(graphs())
def test_dominance_frontiers_agree_with_their_definition(graph):
    tree = analysis.dominators(graph)
    view = dataflow(graph)
    found = analysis.dominance_frontiers(graph)
    for item in found:
        expected = {
            other
            for other in found
            if any(tree.dominates(item, before) for before in view.predecessors(other))
            and not (tree.dominates(item, other) and item is not other)
        }
        assert found[item] == expected


# ---- cuts ----


def test_cuts_of_a_diamond():
    graph = read(DIAMOND)
    x, m, g, d = values(graph, "x", "m", "g", "d")
    assert names_of(analysis.single_value_cuts(graph, [x], g)) == ["x", "a", "d", "g"]
    assert names_of(analysis.single_value_cuts(graph, [m], g)) == ["m", "f", "g"]
    assert names_of(analysis.single_value_cuts(graph, [x, m], g)) == ["g"]
    assert names_of(analysis.single_value_cuts(graph, [x], d)) == ["x", "a", "d"]
    assert analysis.single_value_cuts(graph, [m], d) == []
    assert names_of(analysis.single_value_cuts(graph, [g], g)) == ["g"]


@quick
@given(graphs(), st.data())
def test_single_value_cuts_are_exactly_the_values_on_all_paths(graph, data):
    view = dataflow(graph)
    everything = [item for item in view if isinstance(item, Value)]
    sources = data.draw(st.lists(st.sampled_from(everything), min_size=1, max_size=3, unique=True))
    target = data.draw(st.sampled_from(everything))

    def connected(without) -> bool:
        left = view.subgraph([item for item in view if item is not without])
        return any(s in left and target in left and nx.has_path(left, s, target) for s in sources)

    expected = [item for item in everything if connected(None) and not connected(item)]
    assert set(analysis.single_value_cuts(graph, sources, target)) == set(expected)


def test_a_frontier_separates_known_from_unknown():
    graph = read("""
      input %ids: f32[2, 4]
      input %positions: f32[4]
      input %other: f32[4]
      const @w: f32[4] = [1.0, 2.0, 3.0, 4.0]
      %folded = Neg(@w)
      %angles = Mul(%positions, @w)
      %cos = Cos(%angles)
      %size = Shape(%ids)
      %mask = ConstantOfShape(%size)
      %h = Mul(%ids, %folded)
      %i = Add(%h, %cos)
      %j = Add(%i, %mask)
      %unused = Add(%other, %cos)
      output %j
    """)
    found = analysis.frontier(graph, values(graph, "positions"), graph.outputs)
    assert names_of(found.boundary) == ["cos", "mask"]
    assert names_of(found.missing) == ["ids"]
    assert [node.output.name for node in found.computed] == ["angles", "cos", "size", "mask"]
    assert [node.output.name for node in found.rest] == ["h", "i", "j"]
    blind = analysis.frontier(graph, values(graph, "positions"), graph.outputs, shapes=False)
    assert names_of(blind.boundary) == ["cos"] and "size" in [node.output.name for node in blind.rest]
    known = analysis.frontier(graph, values(graph, "ids", "positions"), graph.outputs)
    assert names_of(known.boundary) == ["j"] and known.rest == () == known.missing
    inner = analysis.frontier(graph, values(graph, "cos", "mask"), graph.outputs)
    assert names_of(inner.boundary) == ["cos", "mask"] and inner.computed == ()


@quick
@given(graphs(), st.data())
def test_the_wanted_values_can_be_computed_from_the_boundary(graph, data):
    known = data.draw(st.lists(st.sampled_from(graph.inputs), unique=True))
    found = analysis.frontier(graph, known, graph.outputs, shapes=False)
    again = analysis.frontier(graph, [*found.boundary, *found.missing], graph.outputs, shapes=False)
    assert again.missing == () and again.rest == ()
    up = analysis.frontier(graph, known, found.boundary, shapes=False)
    assert up.missing == () and up.rest == () and set(up.computed) == set(found.computed)
    assert not {value for value in found.missing} & set(known)


def test_a_minimum_cut_minds_costs():
    graph = read(DIAMOND)
    x, g = values(graph, "x", "g")
    sizes = {"x": 9.0, "a": 8.0, "b": 2.0, "c": 3.0, "d": 6.0, "e": 1.0, "f": 1.0, "g": 7.0, "m": 1.0}
    total, cut = analysis.minimum_cut(graph, [x], [g], lambda value: sizes[value.name])
    assert (total, names_of(cut)) == (5.0, ["b", "c"])
    total, cut = analysis.minimum_cut(graph, [x], [g], lambda value: inf if value.name in "bc" else sizes[value.name])
    assert (total, names_of(cut)) == (6.0, ["d"])
    assert analysis.minimum_cut(graph, [x], [g], lambda value: inf) == (inf, [])
    assert analysis.minimum_cut(graph, values(graph, "m"), values(graph, "d"), lambda value: 1.0) == (0.0, [])
    assert names_of(analysis.minimum_cut(graph, [x], [g], lambda value: 1.0)[1]) == ["x"]


@quick
@given(graphs(max_nodes=6), st.data())
def test_a_minimum_cut_separates_and_no_subset_is_cheaper(graph, data):
    view = dataflow(graph)
    everything = [item for item in view if isinstance(item, Value)]
    price = {value: float(data.draw(st.integers(0, 5))) for value in everything}
    sources, targets = list(graph.inputs), list(graph.outputs)
    total, cut = analysis.minimum_cut(graph, sources, targets, price.__getitem__)

    def connected(without) -> bool:
        left = view.subgraph([item for item in view if item not in without])
        return any(s in left and t in left and nx.has_path(left, s, t) for s in sources for t in targets)

    assert not connected(set(cut)) and total == sum(price[value] for value in cut)
    split = nx.DiGraph()
    for item in view:
        cost = price[item] if isinstance(item, Value) else 10**6
        split.add_edge((item, 0), (item, 1), capacity=cost)
    split.add_edges_from(((a, 1), (b, 0)) for a, b in view.edges)
    split.add_edges_from(("s", (item, 0)) for item in sources)
    split.add_edges_from(((item, 1), "t") for item in set(targets))
    assert nx.minimum_cut_value(split, "s", "t") == total


def test_regions_are_connected_by_values_only():
    graph = read("""
      input %x: f32[2]
      %a = Neg(%x)
      %b = Neg(%x)
      %c = Abs(%a)
      %d = Add(%c, %b)
      %e = Exp(%d)
      %f = Neg(%e)
      %g = Neg(%f)
    """)
    found = analysis.regions(graph, lambda node: node.op in ("Neg", "Abs"))
    assert [[node.output.name for node in group] for group in found] == [["a", "c"], ["b"], ["f", "g"]]


@quick
@given(graphs(), st.sets(st.sampled_from(["Mul", "Add", "Relu", "Neg", "MatMul", "Cast", "Split"])))
def test_regions_agree_with_networkx(graph, kinds):
    found = analysis.regions(graph, lambda node: node.op in kinds)
    view = nx.Graph()
    for node in graph.nodes:
        if node.op in kinds:
            view.add_node(node)
            readers = [user for value in node.outputs for user in dataflow(graph).successors(value)]
            view.add_edges_from((node, user) for user in readers if user.op in kinds)
    assert {frozenset(group) for group in found} == {frozenset(group) for group in nx.connected_components(view)}


# ---- liveness ----


def test_peak_memory_of_a_diamond():
    found = peak_memory(read(DIAMOND), {})
    # x and m (16 bytes each) stay; at d: b, c and d; at e: d and e; at g: f, d and g.
    assert found.profile == (48, 64, 80, 80, 64, 80, 80)
    assert (found.peak, found.constants, found.unknown) == (80, 16, ())
    assert found.node.output.name == "c" and names_of(found.alive) == ["x", "m", "a", "b", "c"]


@quick
@given(graphs(), st.integers(1, 9), st.integers(1, 9))
def test_memory_agrees_with_a_simulation(graph, seq, past):
    sizes = {"seq": seq, "past + 1": past}
    found = peak_memory(graph, sizes)
    order = list(graph.nodes)
    view = dataflow(graph)
    kept = {*graph.inputs, *graph.outputs, *graph.tables.values()}
    for moment, node in enumerate(order):
        alive = set(graph.inputs)
        for value in (v for other in order[: moment + 1] for v in other.outputs):
            readers = [order.index(user) for user in view.successors(value)]
            if value in kept or value.producer is node or any(reader >= moment for reader in readers):
                alive.add(value)
        inner = max((peak_memory(sub, sizes).peak for sub in node.subgraphs), default=0)
        assert found.profile[moment] == sum(size_of(value.type, sizes) for value in alive) + inner
        if node is found.node:
            assert set(found.alive) == alive


def test_unknown_sizes_are_named():
    graph = read("input %x: f32[n]\n%a = Neg(%x)\n%b: seq<f32[2]> = Foo(%a)\n%c: f32[*] = Bar(%b)\noutput %c")
    assert names_of(peak_memory(graph, {}).unknown) == ["x", "a", "b", "c"]
    assert names_of(peak_memory(graph, {"n": 3}).unknown) == ["a", "b", "c"]
    assert peak_memory(Graph("empty"), {}).node is None


def test_sizes_are_packed():
    assert size_of(TensorType(DTYPES["i4"], (3,)), {}) == 2
    assert size_of(TensorType(BOOL, (Dim("n"), 2)), {"n": 5}) == 10
    assert size_of(TensorType(I64, ()), {}) == 8
    assert size_of(SequenceType(TensorType(F32, ())), {}) is None


# ---- repeated blocks ----


def check_blocks(repeat) -> None:
    first = repeat.blocks[0]
    for block in repeat.blocks:
        assert [node.op for node in block.nodes] == [node.op for node in first.nodes]
        assert [value.type for value in block.constants] == [value.type for value in first.constants]
        assert all(value.is_const for value in block.constants) and not any(value.is_const for value in block.reads)
        partner = {None: None, first.entry: block.entry, first.exit: block.exit}
        partner.update(zip(first.constants, block.constants, strict=True))
        partner.update(zip(first.reads, block.reads, strict=True))
        for one, two in zip(first.nodes, block.nodes, strict=True):
            partner.update(zip(one.outputs, two.outputs, strict=True))
        for one, two in zip(first.nodes, block.nodes, strict=True):
            assert [partner[value] for value in one.inputs] == list(two.inputs)
        assert len(set(partner.values())) == len(partner)
        for one, two in zip(first.constants, block.constants, strict=True):
            if one.dtype in (I32, I64, BOOL) and one.type.size <= 64:
                assert np.array_equal(one.const.load(), two.const.load())
        for one, two in zip(first.reads, block.reads, strict=True):
            assert one is two or set(two.users) <= set(block.nodes)
    for before, after in zip(repeat.blocks, repeat.blocks[1:], strict=False):
        assert before.exit is after.entry


@settings(quick, max_examples=25)
@given(st.integers(2, 9), st.booleans(), st.one_of(st.none(), st.randoms(use_true_random=False)))
def test_the_layers_of_a_decoder_are_found(layers, caches, rng):
    graph = decoder(layers, caches=caches, shuffle=rng)
    (found,) = repeats(graph)
    check_blocks(found)
    assert len(found.blocks) == layers
    assert len(found.blocks[0].nodes) == (22 if caches else 20)
    assert found.blocks[0].entry is graph.inputs[0]
    assert {node for block in found.blocks for node in block.nodes} >= {n for n in graph.nodes if n.op == "Softmax"}
    some = found.blocks[-1].nodes[5]
    assert found.partners(some)[-1] is some and len(found.partners(some)) == layers


def test_layers_are_found_when_one_input_feeds_the_stream_and_a_side_computation():
    graph = decoder(4)
    rows, positions = graph.inputs[0], graph.inputs[2]
    ids = graph.add_input("ids", TensorType(I64, (1, rows.type.shape[1])))
    table = graph.add_const("table", InlineTensor(np.zeros((5, 8), np.float32)))
    looked_up = graph.add("Gather", [table, ids], types=[rows.type], before=graph.first).output
    counted = graph.add("Shape", [ids], types=[TensorType(I64, (2,))], before=graph.first).output
    made = graph.add("ConstantOfShape", [counted], types=[positions.type], after=counted.producer).output
    graph.replace(rows, looked_up)
    graph.replace(positions, made)
    (found,) = repeats(graph)
    check_blocks(found)
    assert len(found.blocks) == 4 and found.blocks[0].entry is looked_up


def test_weights_under_a_dequantization_belong_to_their_layer():
    graph = decoder(3)
    for value in list(graph.consts.values()):
        if value.type.rank == 2 and value.type.shape[0] == 8:
            codes = InlineTensor(np.full(value.type.shape, len(graph.consts) % 100, np.int8))
            parts = [graph.add_const("codes", codes), graph.add_const("scale", InlineTensor(np.float32(1)))]
            node = graph.add("DequantizeLinear", parts, types=[value.type], before=graph.first)
            graph.replace(value, node.output)
            graph.erase_const(value)
    (found,) = repeats(graph)
    check_blocks(found)
    assert len(found.blocks) == 3 and len(found.blocks[0].nodes) == 26


def test_layers_of_two_kinds_repeat_as_a_group():
    graph = decoder(9, mixed=True)
    (found,) = repeats(graph)
    check_blocks(found)
    assert len(found.blocks) == 3 and len(found.blocks[0].nodes) == 3 * 20


def test_a_layer_that_differs_in_one_attribute_ends_the_run():
    graph = decoder(6)
    norms = [node for node in graph.nodes if node.op == "RMSNormalization"]
    graph.set_attrs(norms[6], epsilon=0.5)
    found = repeats(graph)
    assert [len(repeat.blocks) for repeat in found] == [3, 2]
    for repeat in found:
        check_blocks(repeat)


def test_a_skip_past_the_residual_joins_two_layers():
    graph = decoder(6)
    adds = [node for node in graph.nodes if node.op == "Add" and node.inputs[0].type.rank == 3]
    residual = [node.output for node in adds if any(value is graph.value("mask") for value in node.inputs) is False]
    early, late = residual[3], residual[6]
    node = late.producer
    graph.set_input(node, 0, graph.add("Add", [node.inputs[0], early], types=[early.type], before=node).output)
    found = repeats(graph)
    assert all(early is not block.entry or late is not block.exit for repeat in found for block in repeat.blocks)
    assert sum(len(repeat.blocks) for repeat in found) < 6
    for repeat in found:
        check_blocks(repeat)


def test_shapes_in_constants_tell_blocks_apart():
    def chained(*targets: int) -> Graph:
        graph = Graph("g")
        value = graph.add_input("x", TensorType(F32, (12,)))
        for target in targets:
            shape = graph.add_const("s", InlineTensor(np.array([target, -1])))
            value = graph.add("Reshape", [value, shape], types=[TensorType(F32, (12,))]).output
            value = graph.add("Neg", [value], types=[TensorType(F32, (12,))]).output
        graph.set_outputs([value])
        return graph

    assert [len(found.blocks) for found in repeats(chained(2, 2, 2, 2))] == [4]
    assert [len(found.blocks) for found in repeats(chained(2, 3, 2, 3))] == [2]
    assert repeats(chained(2, 3, 4, 6)) == []


def test_nothing_repeats_in_small_graphs():
    assert repeats(read(DIAMOND)) == [] and repeats(Graph("empty")) == []
    assert list(chains(Graph("empty"))) == []
    assert names_of(next(chains(read(DIAMOND)))) == ["x", "a", "d", "g"]


def test_an_input_left_out_corresponds_to_one_left_out():
    chain = ["input %x: f32[4]", "const @high: f32[] = [1.0]", "%c0: f32[4] = Clip(%x, _, @high)"]
    chain += [f"%c{n}: f32[4] = Clip(%c{n - 1}, _, @high)" for n in (1, 2)]
    (found,) = repeats(read("\n".join([*chain, "output %c2"])), minimum=1)
    check_blocks(found)
    assert [block.nodes[0].inputs[1] for block in found.blocks] == [None, None, None]


def test_an_input_left_out_ends_the_run():
    chain = ["input %x: f32[4]", "const @at: f32[] = [1.0]"]
    value = "%x"
    for number, bounds in enumerate(["_, @at", "_, @at", "@at, _", "@at, _"]):
        chain.append(f"%c{number}: f32[4] = Clip({value}, {bounds})")
        value = f"%c{number}"
    found = repeats(read("\n".join([*chain, f"output {value}"])), minimum=1)
    assert [len(repeat.blocks) for repeat in found] == [2, 2]
    for repeat in found:
        check_blocks(repeat)


def with_sides(head: str, *layers: list[str]) -> Graph:
    """Layers of three nodes, each with nodes beside them that lead to no later layer and read `{a}`."""
    lines, value, outputs = [*head.splitlines(), "input %x: f32[4, 4]"], "%x", []
    for number, sides in enumerate(layers):
        lines.append(f"%a{number}: f32[4, 4] = Neg({value})")
        for place, side in enumerate(sides):
            outputs.append(f"%side{number}{place}")
            lines.append(f"{outputs[-1]}: f32[*] = {side.format(a=f'%a{number}')}")
        value = f"%c{number}"
        lines += [f"%b{number}: f32[4, 4] = Abs(%a{number})", f"{value}: f32[4, 4] = Exp(%b{number})"]
    return read("\n".join([*lines, "output " + ", ".join([value, *outputs])]))


SIDES = {
    "an input is no constant": (
        "input %p: f32[1, 1]\ninput %q: f32[1, 1]\nconst @h: f32[1, 1] = [1.0]\nconst @i: f32[1, 1] = [2.0]",
        ["Add({a}, @h)", "Add({a}, %p)"],
        ["Add({a}, %q)", "Add({a}, @i)"],
    ),
    "what all layers read is the same": (
        "input %p: f32[4, 4]\ninput %q: f32[4, 4]",
        ["Add({a}, %p)", "Add({a}, %q)"],
        ["Add({a}, %q)", "Add({a}, %p)"],
    ),
    "axes are the same": (
        "const @zero: i64[1] = [0]\nconst @one: i64[1] = [1]",
        ["ReduceSum({a}, @zero)", "ReduceSum({a}, @one)"],
        ["ReduceSum({a}, @one)", "ReduceSum({a}, @zero)"],
    ),
}


@pytest.mark.parametrize("case", SIDES)
def test_nodes_beside_the_stream_correspond_in_any_order(case):
    (found,) = repeats(with_sides(*SIDES[case]))
    check_blocks(found)
    assert [len(block.nodes) for block in found.blocks] == [5, 5]


@pytest.mark.parametrize("first, second", [("%p, %p", "%q, %r"), ("%q, %r", "%p, %p")])
def test_one_value_does_not_correspond_to_two(first, second):
    head = "input %p: f32[4, 4]\ninput %q: f32[4, 4]\ninput %r: f32[4, 4]"
    assert repeats(with_sides(head, [f"Sum({{a}}, {first})"], [f"Sum({{a}}, {second})"])) == []


def test_a_constant_read_twice_is_not_two_constants():
    head = ["input %x: f32[4]", *(f"const @{name}: f32[1] = [1.0]" for name in "hip")]
    for order in (["@h", "@i", "@p", "@p"], ["@p", "@p", "@h", "@i"]):
        lines, value = list(head), "%x"
        for number, weight in enumerate(order):
            lines.append(f"%y{number}: f32[4] = {'Add' if number % 2 == 0 else 'Mul'}({value}, {weight})")
            value = f"%y{number}"
        assert repeats(read("\n".join([*lines, f"output {value}"])), minimum=2) == []


@quick
@given(graphs(min_nodes=6, max_nodes=20))
def test_found_blocks_always_correspond(graph):
    for repeat in repeats(graph, minimum=1):
        check_blocks(repeat)
        nodes = [node for block in repeat.blocks for node in block.nodes]
        assert len(nodes) == len(set(nodes))


# ---- cost ----


def test_analyses_are_near_linear():
    def cost(layers: int) -> float:
        graph = decoder(layers)
        target = graph.outputs[0]

        def analyse() -> None:
            analysis.immediate_dominators(graph)
            analysis.immediate_post_dominators(graph)
            analysis.single_value_cuts(graph, [graph.inputs[0]], target)
            analysis.frontier(graph, graph.inputs[1:], [target])
            analysis.regions(graph, lambda node: node.op != "Add")
            peak_memory(graph, {"seq": 4})
            repeats(graph)

        return calls_of(analyse) / layers

    assert cost(120) < 1.5 * cost(20)
