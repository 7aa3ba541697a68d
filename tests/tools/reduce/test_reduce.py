"""Shrinking a failing graph: what goes, what stays, and that the smallest graph so far is always on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings

from ir.base.diag import LadingError
from ir.base.types import F32, Dim, TensorType
from ir.graph.graph import Graph
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.text.printer import print_graph
from ir.verify.stages import verify
from passes.framework.manager import run_passes
from tests.support.graphs import graphs
from tests.support.pass_graphs import decoder
from tests.support.paths import ROOT
from tools.reduce.command import main as reduce
from tools.reduce.reducer import Reducer, halves
from tools.reduce.smaller_sizes import letters


def reduced(graph: Graph, folder: Path, holds, seconds: float = 60) -> tuple[Graph, Reducer]:
    """The graph reduced as long as `holds(graph)`."""
    reducer = Reducer(graph, folder / "out.lading", monotonic() + seconds, lambda line: None)
    assert holds(reducer.best)
    reducer.run(lambda path: holds(parse(path.read_text(), base=folder)))
    return reducer.best, reducer


def has(op: str):
    return lambda graph: any(node.op == op for node in graph.walk())


# ---- what goes ----


def test_a_deep_graph_becomes_the_nodes_that_matter(tmp_path):
    graph = decoder(12)

    def holds(found):
        return any(
            node.op == "Softmax" and node.inputs[0].producer is not None and node.inputs[0].producer.op == "MatMul"
            for node in found.nodes
        )

    best, reducer = reduced(graph, tmp_path, holds)
    assert print_graph(best) == (
        'lading 1\ngraph g {\n  opset "" 24\n  input %a\n  %b = MatMul(%a, %a)\n  %c = Softmax(%b)\n  output %c\n}\n'
    )
    assert reducer.runs < 60, "cuts go by parts of the graph, not by single nodes"


def test_what_the_failure_needs_from_far_apart_stays_connected(tmp_path):
    best, _ = reduced(decoder(4), tmp_path, lambda g: has("Pow")(g) and has("Neg")(g) and has("Concat")(g))
    assert sorted(node.op for node in best.nodes) == ["Concat", "Neg", "Pow"]


def test_sizes_shrink_everywhere_alike(tmp_path):
    graph = Graph("g", {"": 24})
    n = graph.add_dim(Dim("n", 1, 64))
    x = graph.add_input("x", TensorType(F32, (n, 96)))
    w = graph.add_const("w", InlineTensor(np.arange(96 * 48, dtype=np.float32).reshape(96, 48)))
    shape = graph.add_const("shape", InlineTensor(np.array([-1, 48, 1], np.int64)))
    y = graph.add("Reshape", [graph.add("MatMul", [x, w]).output, shape]).output
    graph.set_outputs([y])
    run_passes(graph, "infer-types")

    def holds(found):
        return has("MatMul")(found) and has("Reshape")(found) and len(found.consts) == 2 and not verify(found)

    best, _ = reduced(graph, tmp_path, holds)
    matrix = next(value for value in best.consts.values() if value.type.dtype == F32)
    assert matrix.type.shape == (1, 1) and matrix.const.load().tolist() == [[0.0]] and best.dims == {}


def test_attributes_annotations_tables_and_facts_go(tmp_path):
    graph = parse("""lading 1
graph g {
  opset "" 24
  opset "mnn" 1
  meta "producer" "somebody"
  dim n = 1..8
  const @t: f32[2, 2] = [1.0, 2.0, 3.0, 4.0]
  input %x: f32[n, 2] ; "from here"
  input %unread: f32[n]
  %y: f32[n, 2] = Softmax(%x) {axis = 1} "node" ; "there"
  output %y
  table rows = @t
  fact notes {"a": 1}
}""")
    best, _ = reduced(graph, tmp_path, has("Softmax"))
    assert print_graph(best) == (
        'lading 1\ngraph g {\n  opset "" 24\n  input %a: f32[1, 1]\n  %b: f32[1, 1] = Softmax(%a)\n  output %b\n}\n'
    )


def test_bodies_of_control_flow_shrink_too(tmp_path):
    graph = parse("""lading 1
graph g {
  opset "" 24
  input %c: bool[]
  input %x: f32[2]
  %y: f32[2] = If(%c) {else_branch = graph no {
    %n: f32[2] = Neg(%x)
    %o: f32[2] = Exp(%n)
    output %o
  }, then_branch = graph yes {
    %m: f32[2] = Abs(%x)
    %k: f32[2] = Floor(%m)
    %l: f32[2] = Relu(%k)
    output %l
  }}
  output %y
}""")
    best, _ = reduced(graph, tmp_path, lambda g: any(n.op == "If" for n in g.nodes) and has("Floor")(g))
    assert sorted(node.op for node in best.walk()) == ["Floor", "If"]
    assert verify(best) == []


def test_of_several_components_the_needed_one_stays(tmp_path):
    graph = Graph("g", {"": 24})
    made = []
    for index, op in enumerate(("Neg", "Abs", "Exp", "Floor")):
        value = graph.add_input(f"x{index}", TensorType(F32, (2,)))
        made.append(graph.add(op, [value], types=[value.type]).output)
    graph.set_outputs(made)
    best, reducer = reduced(graph, tmp_path, has("Exp"))
    assert [node.op for node in best.nodes] == ["Exp"] and len(best.inputs) == len(best.outputs) == 1
    assert reducer.runs < 40


def test_dead_nodes_that_matter_stay(tmp_path):
    best, _ = reduced(decoder(2), tmp_path, lambda g: any(n.op == "Neg" and not n.output.use_count for n in g.nodes))
    assert [node.op for node in best.nodes] == ["Neg"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(max_nodes=8))
def test_every_result_is_well_formed_and_still_interesting(tmp_path_factory, graph):
    folder = tmp_path_factory.mktemp("random")
    wanted = list(graph.walk())[-1].op
    best, _ = reduced(graph, folder, has(wanted), seconds=20)
    assert verify(best) == [] and has(wanted)(best)
    assert len(list(best.walk())) <= (3 if any(node.op == "If" for node in best.nodes) else 1)
    assert (folder / "out.lading").read_text() == print_graph(best, base=folder)


# ---- how it goes ----


def test_equal_runs_give_equal_results(tmp_path):
    def wanted(graph):
        return has("Softmax")(graph) and has("Pow")(graph)

    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        best, reducer = reduced(decoder(3), tmp_path / name, wanted)
        texts.append((print_graph(best), reducer.runs))
    assert texts[0] == texts[1]


def test_the_best_so_far_is_on_disk_whenever_it_ends(tmp_path):
    seen = []
    path = tmp_path / "out.lading"

    def test(candidate):
        assert parse(path.read_text()), "the file with the best graph is whole at any time"
        seen.append(len(parse(path.read_text()).nodes))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return has("Softmax")(parse(candidate.read_text()))

    reducer = Reducer(decoder(6), path, monotonic() + 60, lambda line: None)
    assert not reducer.run(test)
    assert len(parse(path.read_text()).nodes) == len(reducer.best.nodes) < seen[0]
    assert {item.name for item in tmp_path.iterdir()} <= {"out.lading", "out.bin"}


def test_no_time_leaves_the_whole_graph(tmp_path):
    reducer = Reducer(decoder(2), tmp_path / "out.lading", monotonic() - 1, lambda line: None)
    assert not reducer.run(lambda path: True)
    assert len(reducer.best.nodes) == len(decoder(2).nodes) and reducer.runs == 0


def test_large_constants_are_kept_beside_the_text_until_they_are_gone(tmp_path):
    graph = Graph("g", {"": 24})
    x = graph.add_input("x", TensorType(F32, (2, 64)))
    w = graph.add_const("w", InlineTensor(np.arange(4096, dtype=np.float32).reshape(64, 64)))
    graph.set_outputs([graph.add("MatMul", [x, w], types=[x.type]).output])
    reduced(graph, tmp_path, lambda g: any(v.const.load().max() == 4095 for v in g.consts.values()))
    assert (tmp_path / "out.bin").stat().st_size == 64 * 64 * 4 and "out.bin" in (tmp_path / "out.lading").read_text()
    reduced(graph, tmp_path, has("MatMul"))
    assert not (tmp_path / "out.bin").exists()


def test_groups_halve():
    assert list(halves(range(5))) == [[0, 1, 2, 3, 4], [3, 4], [1, 2], [0], [4], [3], [2], [1], [0]]
    assert list(halves([])) == []


def test_letters():
    assert [letters(index) for index in (0, 25, 26, 51, 52, 702)] == ["a", "z", "aa", "az", "ba", "aaa"]


# ---- the command ----


def run(*arguments):
    return CliRunner().invoke(reduce, [str(item) for item in arguments])


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A graph in a file; results that are given no place go beside it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "g.lading"
    path.write_text(print_graph(decoder(1)))
    return path


PASS = '''
from dataclasses import dataclass
from passes.framework.base import Pass
from ir.base.plugins import Plugin

@dataclass(frozen=True)
class Fuse(Pass):
    """Fuses divisions, and forgets that a square root may have no producer in front of it."""
    name = "fuse"
    def run(self, graph, ctx):
        for node in list(graph.nodes):
            if node.op == "Div" and node.inputs[1].producer is not None and node.inputs[1].producer.op == "Sqrt":
                node.inputs[1].producer.inputs[0].producer.inputs[1].const.type.colour

PLUGIN = Plugin(passes={"fuse": Fuse})
'''


def test_a_pass_that_really_fails(tmp_path, source):
    """From 39 nodes to the three that the pass stumbles over, with the failure told apart by its message."""
    site = tmp_path / "site"
    info = site / "lading_fuse-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "lading_fuse.py").write_text(PASS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lading-fuse\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lading.plugins]\nfuse = lading_fuse:PLUGIN\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    failing = f"{sys.executable} -m tools.opt {{}} --passes fuse --no-keep"
    result = subprocess.run(
        [sys.executable, "-m", "tools.reduce", source, "--command", failing, "--match", "no attribute 'colour'"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    graph = parse((tmp_path / "g.reduced.lading").read_text())
    assert [node.op for node in graph.nodes] == ["Add", "Sqrt", "Div"]
    again = subprocess.run(
        failing.replace("{}", str(tmp_path / "g.reduced.lading")), shell=True, cwd=tmp_path, env=env,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert again.returncode == 3 and "no attribute 'colour'" in again.stderr


def test_the_status_of_the_whole_graph_counts(source, tmp_path):
    result = run(source, "--command", "! grep -q '= Softmax(' {}", "-o", tmp_path / "out.lading")
    assert result.exit_code == 0, result.output
    assert [node.op for node in parse((tmp_path / "out.lading").read_text()).nodes] == ["Softmax"]
    assert "39 nodes" in result.stdout and "-> 1 node," in result.stdout


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--command", "true {}"], "U920", "the command succeeds"),
        (["--command", "exit 4 # {}", "--status", "5"], "U920", "is 4, not 5"),
        (["--command", "echo no {}", "--match", "^yes"], "U920", "does not contain '^yes'"),
        (["--command", "sleep 9; cat {}", "--timeout", "0.2"], "U920", "ran longer than 0.2 s"),
        (["--command", "false"], "U921", "no place {}"),
        (["--command", "false {}", "--match", "("], "U921", "malformed"),
        (["--command", "no-such-command {}"], "U921", "cannot be run"),
        (["--command", "false {}", "-o", "/dev/null/out.lading"], "U922", "cannot write"),
    ],
)
def test_what_is_wrong_with_the_command(options, code, part, source):
    result = run(source, *options)
    assert result.exit_code == 1 and f"error[{code}]" in result.stderr and part in result.stderr


def test_what_hangs_does_not_count_and_is_killed(source, tmp_path):
    start = monotonic()
    slow = "grep -q '= Pow(' {} || sleep 60; exit 3"
    result = run(source, "--command", slow, "--timeout", 0.3, "--time-limit", 3, "-o", tmp_path / "o.lading", "-q")
    assert result.exit_code == 0 and monotonic() - start < 20
    assert has("Pow")(parse((tmp_path / "o.lading").read_text()))


def test_malformed_graphs_may_be_reduced_but_do_not_get_worse(tmp_path):
    graph = decoder(1)
    odd = next(node for node in graph.nodes if node.op == "Softmax")
    graph.set_op(odd, "NoSuchOperator")
    best, _ = reduced(graph, tmp_path, has("NoSuchOperator"))
    assert [item.code for item in verify(best)] == [item.code for item in verify(graph) if item.severity == "error"]


def test_errors_are_coded():
    with pytest.raises(LadingError, match="U922"):
        Reducer(decoder(1), Path("/proc/none/out.lading"), monotonic(), lambda line: None)
