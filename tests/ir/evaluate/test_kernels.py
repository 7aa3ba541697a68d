"""Graphs that were read from files are computed in a child: what kills it, and that it gives the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from ir.base.diag import LadingError
from ir.base.types import DTYPES
from ir.evaluate import kernels
from ir.evaluate.evaluator import Evaluator, evaluate
from ir.evaluate.random_feeds import sample_feeds
from ir.graph.copy import copied
from ir.graph.graph import Graph
from ir.text.parser import parse
from passes.framework.manager import PassManager
from tests.support.paths import ROOT
from tools.fuzz.inputs.random_graphs import layered_graph, random_graph
from tools.opt import main as opt


def read(lines: str) -> Graph:
    return parse(f'lading 1\ngraph g {{\n  opset "" 24\n{lines}\n}}')


BRANCHES = """input %p: bool[]
input %x: f32[2]
%y: f32[2] = If(%p) {else_branch = graph other {
  %a: f32[2] = Relu(%x)
  output %a
}, then_branch = graph yes {
  %b: f32[2] = Abs(%x)
  output %b
}}
output %y"""


def test_graphs_know_where_they_came_from():
    from backends.onnx.write import to_model
    from frontends.onnx.load import load

    assert not Graph("made").foreign
    text = read(BRANCHES)
    assert len(list(text.graphs())) == 3
    for graph in (text, copied(text), load(to_model(text))):
        assert all(inner.foreign for inner in graph.graphs())


@pytest.mark.parametrize("seed", range(12))
def test_a_child_gives_the_same_numbers(seed):
    import random

    graph = (layered_graph if seed % 3 == 0 else random_graph)(random.Random(seed))
    feeds = sample_feeds(graph)
    here = evaluate(graph, feeds, threads=1)
    graph.foreign = True
    for limit in (None, 1 << 16):
        there = evaluate(graph, feeds, threads=1, memory_limit=limit)
        assert there.keys() == here.keys()
        for name, array in here.items():
            assert (array.dtype, array.shape) == (there[name].dtype, there[name].shape)
            np.testing.assert_array_equal(array, there[name])


@pytest.mark.parametrize("name", ["f16", "bf16", "f8e4m3fn", "i4", "u4", "bool", "i64"])
def test_every_element_type_gets_there_and_back(name):
    graph = read(
        f"input %x: f32[3]\n%y: {name}[3] = Cast(%x) {{to = {DTYPES[name].onnx}}}\ninput %w: {name}[3]\n"
        f"%z: f32[3] = Cast(%w) {{to = 1}}\noutput %y\noutput %z"
    )
    feeds = {"x": np.array([0, 1, 1], np.float32), "w": np.array([1, 0, 1]).astype(DTYPES[name].numpy)}
    there = evaluate(graph, feeds)
    graph.foreign = False
    for output, array in evaluate(graph, feeds).items():
        assert array.dtype == there[output].dtype
        np.testing.assert_array_equal(array, there[output])


def test_strings_come_back():
    graph = read('input %x: i64[1]\nconst @s: str[2] = ["a\\u{e9}", ""]\n%y: str[1] = Gather(@s, %x)\noutput %y')
    assert evaluate(graph, {"x": np.array([0])})["y"].tolist() == ["aé"]


# ---- what kills ----

DIVIDES = """input %x: i64[1]
input %n: i64[1]
%a: i64[1] = Add(%x, %x)
%b: i64[1] = Sub(%a, %x)
%culprit: i64[1] = {}(%b, %n)
%y: i64[1] = Neg(%culprit)
output %y"""


@pytest.mark.parametrize("op, x, n", [("Div", -(2**63), -1)])
def test_a_node_that_kills_onnxruntime_is_named(op, x, n):
    graph = read(DIVIDES.replace("{}", op))
    feeds = {"x": np.array([x]), "n": np.array([n])}
    with pytest.raises(LadingError, match="died of SIGFPE") as caught:
        evaluate(graph, feeds)
    assert caught.value.code == "T280" and "culprit" in caught.value.diagnostics[0].where
    # The next graph is computed as if nothing had been.
    assert evaluate(graph, {**feeds, "n": np.array([7])})["y"].shape == (1,)


@pytest.mark.parametrize("op", ["Div", "Mod"])
@pytest.mark.parametrize("pair", [(-(2**63), -1), (5, 0)])
@pytest.mark.parametrize("folded", ["canonicalize", "fold"])
def test_folding_leaves_what_kills_onnxruntime(op, pair, folded):
    graph = read(
        f"input %x: i64[1]\nconst @a: i64[1] = [{pair[0]}]\nconst @b: i64[1] = [{pair[1]}]\nconst @t: i64[1] = [2]\n"
        f"%c: i64[1] = {op}(@a, @b)\n%d: i64[1] = Mul(@t, @t)\n%y: i64[1] = Add(%x, %c)\n%z: i64[1] = Add(%y, %d)\n"
        "output %z"
    )
    PassManager(f"infer-types,{folded}").run(graph)
    assert not any(node.op == "Mul" for node in graph.nodes)


def test_opt_survives_a_constant_that_kills_onnxruntime(tmp_path):
    text = (
        'lading 1\ngraph g {\n  opset "" 24\n  input %x: i32[1]\n  const @a: i32[1] = [-2147483648]\n'
        "  const @b: i32[1] = [-1]\n  %c: i32[1] = Div(@a, @b)\n  %y: i32[1] = Add(%x, %c)\n  output %y\n}\n"
    )
    (tmp_path / "g.lading").write_text(text)
    result = CliRunner().invoke(opt, [str(tmp_path / "g.lading"), "--passes", "canonicalize"])
    assert result.exit_code == 0 and "Div(@a, @b)" in result.output


def test_a_loop_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(kernels, "SECONDS", 1.0)
    graph = read(
        "input %x: f32[]\nconst @go: bool[] = [true]\n%y: f32[] = Loop(_, @go, %x) {body = graph b {\n"
        "input %i: i64[]\ninput %c: bool[]\ninput %v: f32[]\n%d: bool[] = Identity(%c)\n%w: f32[] = Neg(%v)\n"
        "output %d\noutput %w\n}}\noutput %y"
    )
    with pytest.raises(LadingError, match=r"was stopped after 1 s") as caught:
        evaluate(graph, {"x": np.float32(1)})
    assert caught.value.code == "T280" and "end" in caught.value.diagnostics[0].hint


def test_a_child_that_needs_too_much_memory_is_told_of(monkeypatch):
    monkeypatch.setattr(kernels, "machine_memory", lambda: 1)
    small = kernels.ChildKernels()
    monkeypatch.setattr(kernels, "_child_kernels", lambda: small)
    graph = read("input %n: i64[1]\n%y = ConstantOfShape(%n)\n%z: f32[] = ReduceSum(%y) {keepdims = 0}\noutput %z")
    with pytest.raises(LadingError) as caught:
        evaluate(graph, {"n": np.array([1 << 33])})
    assert caught.value.code in ("T220", "T280")


def test_values_of_a_child_that_died_are_not_taken_for_others():
    graph = read(DIVIDES.replace("{}", "Div"))
    evaluator = Evaluator(graph)
    good = {"x": np.array([6]), "n": np.array([3])}
    assert evaluator.run(good)["y"].tolist() == [-2]
    with pytest.raises(LadingError):
        evaluator.run({"x": np.array([-(2**63)]), "n": np.array([-1])})
    with pytest.raises(LadingError) as caught:
        evaluator.run(good)
    assert caught.value.code == "T280"


EXAMPLE = """
import json, sys
from tools.compile.job import Request, compile_model
compile_model(Request("examples/tiny-qwen2.5", __import__("pathlib").Path(sys.argv[1])))
from ir.evaluate import kernels
print(json.dumps(kernels._child_kernels.cache_info().currsize))
"""


def test_a_checkpoint_is_verified_without_a_child(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE, str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == 0
