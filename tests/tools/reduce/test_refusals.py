"""The smallest graph that compile refuses, found from the command that the refusal prints."""

from __future__ import annotations

import shlex

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from ir.text.parser import parse
from tests.support.modules.faults import chain, lie
from tools.compile.command import main as compile_command
from tools.reduce.command import main as reduce_command


def run(command, *words):
    return CliRunner().invoke(command, [str(word) for word in words])


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model with an operator in its middle that rounds, in the working directory."""
    monkeypatch.chdir(tmp_path)
    onnx.save(chain("Abs", "Neg", "Sqrt", "Abs", "Exp", "Round", "Neg", "Abs", "Sigmoid"), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.mnn
@pytest.mark.parametrize("given", [[], ["--inputs", "real.npz"], ["--passes", "mnn-module{bits=8}"]])
def test_a_row_that_lies_is_found_by_the_command_that_is_printed(given, model, monkeypatch):
    """ONNX rounds halves to even numbers and MNN does not; a table that lets that pass is caught by running the result."""
    lie(monkeypatch, "Round")
    onnx.save(chain("Abs", "Neg", "Round", "Sigmoid", "Exp"), model)
    np.savez("real.npz", x=np.full((2, 4), -2.5, np.float32))
    refused = run(compile_command, model.name, "--target", "3.6.1", *given)
    assert refused.exit_code == 1 and "error[V703]" in refused.stderr and not model.with_name("build").exists()
    assert "the first node that is wrong: %v3 = Round(%v2), node 'Round_3'" in " ".join(refused.stderr.split())
    words = shlex.split(refused.stderr.partition("that fails: ")[2].partition("(lading explain")[0])
    assert words[:5] == ["lading", "reduce", "model.onnx", "--to", "mnn"]
    assert {word for word in given if word.startswith("--")} == {"--inputs", "--passes"} & set(words)
    reduced = run(reduce_command, *words[2:])
    assert reduced.exit_code == 0, reduced.output
    graph = parse(model.with_name("model.reduced.lading").read_text())
    assert [node.op for node in graph.nodes] == ["Round"] and "compile ran" in reduced.stdout


def test_refusals_of_other_kinds_are_reduced_too(model):
    """Nothing is run here: what the table does not know is refused before."""
    made = onnx.load(model)
    made.graph.node[5].op_type, made.graph.node[5].domain = "Sort", "somebody"
    made.opset_import.append(onnx.helper.make_opsetid("somebody", 1))
    onnx.save(made, model)
    reduced = run(reduce_command, model.name, "--to", "mnn", "-o", "small.lading")
    assert reduced.exit_code == 0, reduced.output
    assert [node.op for node in parse(model.with_name("small.lading").read_text()).nodes] == ["somebody.Sort"]


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ([], "U921", "give either --command or --to"),
        (["--to", "mnn", "--command", "false {}"], "U921", "give either --command or --to"),
        (["--to", "mnn", "--match", "x"], "U921", "--match does not go with --to"),
        (["--command", "false {}", "--inputs", "x.npz"], "U921", "--inputs does not go with --command"),
        (["--to", "onnx"], "U964", "compile --to onnx does not refuse the model"),
        (["--to", "mnn", "--inputs", "missing.npz"], "U962", "there is no such file"),
        (["--to", "nobody"], "U911", "nobody"),
    ],
)
def test_what_is_wrong_with_the_command(words, code, part, model):
    result = run(reduce_command, model.name, *words)
    assert result.exit_code == 1 and f"error[{code}]" in result.stderr and part in " ".join(result.stderr.split())
