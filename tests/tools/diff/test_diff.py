"""Structural difference: what counts, what does not, and how it is shown."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ir.graph.compare import differences
from ir.graph.graph import Graph
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from passes.framework.manager import run_passes
from tests.support.graphs import graphs
from tests.support.pass_graphs import decoder
from tools.diff.command import main as diff
from tools.diff.match import Differ
from tools.shared.formats import Formats

TEXT = """lading 1
graph g {
  opset "" 24
  dim n = 1..8
  const @w: f32[2, 2] = [1.0, 2.0, 3.0, 4.0]
  const @b: f32[2] = [0.5, 0.5]
  input %x: f32[n, 2]
  input %z: f32[n, 2]
  %m: f32[n, 2] = MatMul(%x, @w)
  %a: f32[n, 2] = Add(%m, @b)
  %s: f32[n, 2] = Softmax(%a) {axis = 1}
  %p: f32[n, 2] = Mul(%s, %z)
  output %p
}
"""


def changes(before: str | Graph, after: str | Graph, **options):
    """What differs, as (kind, what, text, details) with the details as a dictionary."""
    one, two = (parse(item) if isinstance(item, str) else item for item in (before, after))
    return [
        (c.kind, c.what, c.text, {name: (x, y) for name, x, y in c.details})
        for c in Differ(**options).run(one, two).changes
    ]


def edited(*pairs: tuple[str, str]) -> str:
    text = TEXT
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


# ---- one edit, one change ----


@pytest.mark.parametrize(
    ("edit", "kind", "what", "details"),
    [
        (("axis = 1", "axis = 0"), "changed", "node", {"axis": ("1", "0")}),
        ((" {axis = 1}", ""), "changed", "node", {"axis": ("1", "none")}),
        (("Mul(%s, %z)", "Mul(%s, %x)"), "changed", "node", {"input 1": ("%z", "%x")}),
        (("Mul(%s", "Div(%s"), "changed", "node", {"operator": ("Mul", "Div")}),
        (("Mul(%s, %z)", "Mul(%z, %s)"), "changed", "node", {"input 0": ("%s", "%z"), "input 1": ("%z", "%s")}),
        (("Mul(%s, %z)", 'Mul(%s, %z) "here"'), "changed", "node", {"node name": ("none", "here")}),
        (("%s: f32[n, 2]", "%s: f32[2, n]"), "changed", "node", {"type": ("f32[n, 2]", "f32[2, n]")}),
        (("1..8", "1..9"), "changed", "dimension", {"value": ("1..8", "1..9")}),
        (("4.0]", "4.25]"), "changed", "constant", {"1 of 4 elements differ, most at [1, 1]": ("4", "4.25")}),
        (('opset "" 24', 'opset "" 23'), "changed", "opset", {"value": ("24", "23")}),
        (("graph g", "graph h"), "changed", "name", {"name": ("g", "h")}),
        (("output %p", "output %s"), "changed", "output", {"value": ("%p", "%s")}),
        (("output %p", "output %p, %s"), "added", "output", {}),
        (("output %p", "output %p\n  table t = @w"), "added", "table", {}),
        (("output %p", 'output %p\n  fact f {"a": 1}'), "added", "fact", {}),
        (("output %p", "%q: f32[n, 2] = Neg(%p)\n  output %p"), "added", "node", {}),
        (("input %z", 'meta "k" "v"\n  input %z'), "added", "metadata", {}),
        (("input %z: f32[n, 2]", "input %z: f16[n, 2]"), "changed", "input", {"type": ("f32[n, 2]", "f16[n, 2]")}),
        (("  input %x", "  const @new: i64[] = [3]\n  input %x"), "added", "constant", {}),
    ],
)
def test_one_edit_is_one_change(edit, kind, what, details):
    assert [(a, b, d) for a, b, _, d in changes(TEXT, edited(edit))] == [(kind, what, details)]


def test_a_node_put_between_others_is_an_addition_and_one_changed_operand():
    after = edited(("Softmax(%a)", "Softmax(%r)"), ("  %s:", "  %r: f32[n, 2] = Relu(%a)\n  %s:"))
    found = changes(TEXT, after)
    assert [(kind, what) for kind, what, _, _ in found] == [("changed", "node"), ("added", "node")]
    assert found[0][3] == {"input 0": ("%a", "%r")} and "Relu" in found[1][2]


def test_renaming_a_value_is_one_change_and_can_be_left_out():
    after = TEXT.replace("%m", "%other")
    assert changes(TEXT, after) == [("changed", "node", "%m: f32[n, 2] = MatMul(%x, @w)", {"name": ("%m", "%other")})]
    assert changes(TEXT, after, names=False) == []


def test_order_does_not_count_but_is_told():
    two = "  %u: f32[n, 2] = Neg(%x)\n  %v: f32[n, 2] = Abs(%z)\n"
    other = "".join(reversed(two.splitlines(keepends=True)))
    before, after = (edited(("  %m:", part + "  %m:")) for part in (two, other))
    result = Differ().run(parse(before), parse(after))
    assert result.changes == [] and result.moved == 1


def test_order_of_inputs_counts():
    after = edited(
        ("  input %x: f32[n, 2]\n", ""), ("  input %z: f32[n, 2]\n", "  input %z: f32[n, 2]\n  input %x: f32[n, 2]\n")
    )
    assert changes(TEXT, after) == [("changed", "input", "order", {"order": ("x, z", "z, x")})]


def test_locations_count_when_asked():
    after = edited(("MatMul(%x, @w)", 'MatMul(%x, @w) ; "q.weight"'))
    assert changes(TEXT, after) == []
    assert [d for _, _, _, d in changes(TEXT, after, locs=True)] == [{"location": ("none", "q.weight")}]


def test_a_layer_taken_out_of_a_decoder_is_removals_alone():
    """The layers that stay keep their partners, although all names behind the gap are the same in both."""
    whole, less = decoder(4), decoder(3)
    result = Differ().run(whole, less)
    assert result.matched == len(less.nodes)
    assert result.counts()["node"] == {"changed": 1, "removed": len(whole.nodes) - len(less.nodes)}


def test_other_names_everywhere_leave_the_partners_found():
    one, two = decoder(3), decoder(3)
    for node in list(two.nodes):
        for value in node.outputs:
            two.rename(value, two.fresh_name("t"))
    for value in list(two.consts.values()):
        two.rename(value, two.fresh_name("c"))
    result = Differ(names=False).run(one, two)
    assert result.changes == [] and result.matched == len(one.nodes)


def test_subgraphs_are_compared_in_their_place():
    text = """lading 1
graph g {{
  input %c: bool[]
  input %x: f32[2]
  %y: f32[2] = If(%c) {{else_branch = graph no {{
    %n: f32[2] = {op}(%x)
    output %n
  }}, then_branch = graph yes {{
    %m: f32[2] = Abs(%x)
    output %m
  }}}}
  output %y
}}
"""
    result = Differ().run(parse(text.format(op="Neg")), parse(text.format(op="Exp")))
    (change,) = result.changes
    assert (change.place, change.details) == ("else_branch of %y", (("operator", "Neg", "Exp"),))


def test_constants_are_summed_up():
    big = np.zeros((64, 64), np.float32)
    one, two, three = (Graph("g") for _ in range(3))
    one.add_const("w", InlineTensor(big))
    two.add_const("w", InlineTensor(big + np.eye(64, dtype=np.float32) * 2))
    three.add_const("w", InlineTensor(big.astype(np.float16)))
    assert changes(one, two)[0][3] == {"64 of 4096 elements differ, most at [0, 0]": ("0", "2")}
    found = changes(one, three)[0][3]
    assert found["type"] == ("f32[64, 64]", "f16[64, 64]")
    assert changes(Graph("g"), one) == [("added", "constant", "@w: f32[64, 64] from 0 to 0, mean 0", {})]


def test_nan_is_no_difference_to_itself_but_to_a_number():
    one, two = Graph("g"), Graph("g")
    one.add_const("w", InlineTensor(np.array([np.nan, 1, np.nan, 3], np.float32)))
    two.add_const("w", InlineTensor(np.array([np.nan, 1, 2, 3], np.float32)))
    assert changes(one, two)[0][3] == {"1 of 4 elements differ, most at [2]": ("nan", "2")}


# ---- laws ----

LAW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@LAW
@given(graphs())
def test_a_graph_is_the_same_as_itself_read_back(graph):
    assert Differ().run(graph, parse(print_graph(graph))).changes == []


@LAW
@given(graphs(odd_names=False), st.sampled_from(["canonicalize", "cse", "fold,dce", "toposort"]), st.booleans())
def test_no_changes_exactly_when_the_graphs_are_equal_up_to_order(graph, pipeline, back):
    before = parse(print_graph(graph))
    run_passes(graph, pipeline)
    one, two = (graph, before) if back else (before, graph)
    assert (Differ().run(one, two).changes == []) == (differences(one, two, ordered=False) == [])


# ---- the command ----


def run(*arguments):
    return CliRunner().invoke(diff, [str(item) for item in arguments])


def test_the_command_compares_formats_and_exits_with_what_it_found(tmp_path):
    one, two, same = (tmp_path / name for name in ("a.lading", "b.onnx", "c.onnx"))
    one.write_text(TEXT)
    formats = Formats()
    formats.write(parse(edited(("axis = 1", "axis = -1"), ("4.0]", "5.0]"))), str(two))
    formats.write(parse(TEXT), str(same))
    result = run(one, two)
    assert result.exit_code == 1
    assert f"--- {one}\n+++ {two}\n" in result.stdout
    assert "~ node %s: f32[n, 2] = Softmax(%a) {axis = 1}\n    axis: 1 -> -1\n" in result.stdout
    assert "    1 of 4 elements differ, most at [1, 1]: 4 -> 5\n" in result.stdout
    data = json.loads(run(one, two, "--json").stdout)
    assert data["counts"]["node"] == {"changed": 1} and not data["same"] and data["matched"] == 4
    again = run(one, one)
    assert (again.exit_code, again.stdout) == (0, "the same: 4 nodes\n")
    assert [
        c for c in json.loads(run(one, same, "--json").stdout)["changes"] if c["what"] in ("node", "constant")
    ] == []


def test_the_command_colours_terminals_only(tmp_path):
    one, two = tmp_path / "a.lading", tmp_path / "b.lading"
    one.write_text(TEXT)
    two.write_text(edited(("axis = 1", "axis = 0")))
    assert "\x1b[" not in run(one, two).stdout
    assert "\x1b[32m0\x1b[0m" in CliRunner().invoke(diff, [str(one), str(two)], color=True).stdout


def test_the_command_stops_at_its_limit(tmp_path):
    one, two = tmp_path / "a.lading", tmp_path / "b.lading"
    one.write_text(print_graph(decoder(2)))
    two.write_text(print_graph(decoder(1)))
    result = run(one, two, "--limit", 3)
    assert result.stdout.count("\n- ") + result.stdout.count("\n~ ") <= 3 and "more changes" in result.stdout
