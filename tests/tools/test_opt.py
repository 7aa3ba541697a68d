"""The opt command: formats in and out, instruments, exit codes, and what stays behind after a failure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from ir.graph.compare import differences
from ir.text.parser import parse
from tests.support.paths import ROOT
from tools.main import main
from tools.opt import EXIT_CRASHED
from tools.opt import main as opt
from tools.shared.formats import Formats

TEXT = """lading 1
graph g {
  opset "" 24
  dim n = 1..8
  const @one: f32[] = [1.0]
  input %x: f32[n]
  %kept: f32[n] = Mul(%x, @one)
  %unread: f32[n] = Neg(%x)
  %y: f32[n] = Relu(%kept)
  output %y
}
"""
SHORT = """lading 1
graph g {
  opset "" 24
  dim n = 1..8
  input %x: f32[n]
  %y: f32[n] = Relu(%x)
  output %y
}
"""


def run(*arguments, input=None):
    return CliRunner().invoke(opt, [str(item) for item in arguments], input=input)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "g.lading"
    path.write_text(TEXT)
    return path


# ---- in and out ----


def test_text_in_text_out_on_the_standard_streams():
    result = run("-", "--passes", "canonicalize", input=TEXT)
    assert (result.exit_code, result.stdout) == (0, SHORT), result.stderr


def test_it_is_a_subcommand_of_lading(source):
    result = CliRunner().invoke(main, ["opt", str(source), "--passes", "canonicalize"])
    assert (result.exit_code, result.stdout) == (0, SHORT)


def test_suffixes_choose_the_format(source, tmp_path):
    assert run(source, "--passes", "canonicalize", "-o", tmp_path / "g.onnx").exit_code == 0
    assert [node.op_type for node in onnx.load(tmp_path / "g.onnx").graph.node] == ["Relu"]
    assert run(tmp_path / "g.onnx", "--passes", "canonicalize", "-o", tmp_path / "again.lading").exit_code == 0
    assert [node.op for node in parse((tmp_path / "again.lading").read_text()).nodes] == ["Relu"]


def test_names_overrule_suffixes(source, tmp_path):
    odd = tmp_path / "g.bin"
    assert run(source, "--passes", "dce", "-o", odd, "--to", "onnx").exit_code == 0
    assert len(onnx.load(odd).graph.node) == 2
    assert run(odd, "--from", "onnx", "--passes", "canonicalize").stdout.count("= Relu(") == 1


def test_tensors_that_nothing_makes_are_inputs_and_said_to_be(tmp_path):
    node = onnx.helper.make_node("Add", ["x", "logits_index"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "cut", [x], [y]), ir_version=10)
    onnx.save(model, tmp_path / "cut.onnx")
    result = run(tmp_path / "cut.onnx", "--passes", "dce")
    assert result.exit_code == 0 and "  input %logits_index: f32[2] ;" in result.stdout
    assert "note[F631]: nothing makes 'logits_index'; it is taken as an input f32[2]" in result.stderr


def test_a_checkpoint_is_read_by_its_folder():
    result = run(ROOT / "examples" / "tiny-qwen2.5", "--passes", "canonicalize")
    graph = parse(result.stdout)
    assert result.exit_code == 0 and sum(node.op == "Attention" for node in graph.nodes) == 4


def test_a_pipeline_may_be_a_file(source, tmp_path):
    (tmp_path / "p.toml").write_text('[[pass]]\nname = "canonicalize"\n')
    assert run(source, "--passes", tmp_path / "p.toml").stdout == SHORT


def big(number: int) -> str:
    return f'  const @c{number}: f32[64] = base64 "{"A" * 342}=="\n'


def test_large_constants_go_beside_the_text_and_are_never_overwritten_while_read(tmp_path):
    formats = Formats()
    first = parse("lading 1\ngraph g {\n" + big(0) + "  input %x: f32[64]\n  output %x\n}")
    path = tmp_path / "d.lading"
    formats.write(first, str(path))
    assert (tmp_path / "d.bin").read_bytes() == bytes(256)
    assert differences(first, formats.read(str(path))) == []
    assert run(path, "--passes", "infer-types", "-o", path).exit_code == 0
    assert differences(first, formats.read(str(path))) == []
    path.write_text(path.read_text().replace("  input", big(1) + "  input"))
    result = run(path, "--passes", "infer-types", "-o", path)
    assert result.exit_code == 1 and "error[P364]" in result.stderr and "write to another name" in result.stderr
    assert len(formats.read(str(path)).consts) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["missing.lading"], "U910", "No such file"),
        (["{odd}"], "U911", "no frontend reads files that end in '.xyz'"),
        (["{odd}", "--from", "onix"], "U911", "did you mean 'onnx'"),
        (["{odd}", "--from", "lading"], "U910", "not UTF-8"),
        (["-", "--from", "onnx"], "U914", "cannot read standard input"),
        (["{g}", "--to", "onnx"], "U914", "cannot write to standard output"),
        (["{g}", "-o", "out.xyz"], "U911", "no backend writes"),
        (["{g}", "--to", "mnm"], "U911", "there is no backend 'mnm'"),
    ],
)
def test_what_is_wrong_with_the_formats(arguments, code, part, source, tmp_path):
    odd = tmp_path / "a.xyz"
    odd.write_bytes(b"\xff\xfe")
    result = run(*(item.format(g=source, odd=odd) for item in arguments), "--passes", "dce", input=TEXT)
    assert result.exit_code == 1 and f"error[{code}]" in result.stderr and part in result.stderr


def test_the_pipeline_is_read_before_the_graph():
    result = run("missing.lading", "--passes", "foldd")
    assert "error[P301]" in result.stderr and result.exit_code == 1


# ---- what it prints ----


def test_stats_timing_and_reasons_go_to_standard_error(source, tmp_path):
    report = tmp_path / "report.json"
    result = run(source, "--passes", "canonicalize", "--stats", "--timing", "--explain-rules", "--report", report)
    assert result.stdout == SHORT
    rows = {line.split("  ")[0]: line.split() for line in result.stderr.splitlines()}
    assert rows["fold: drop_times_one"][-2] == "1"
    assert rows["whole pipeline"][2] == str(len(json.loads(report.read_text())["passes"]))
    assert re.search(r"1\.1\.5 dce +2 -> 1 +nodes 1", result.stderr)
    assert re.search(r"simplify: \w+ left \d+ node", result.stderr)


def test_stop_after_and_dumps(source, tmp_path):
    result = run(source, "--passes", "dce,canonicalize", "--stop-after", 1, "--dump-ir", tmp_path / "dump", "--stats")
    assert sorted(path.name for path in (tmp_path / "dump").iterdir()) == ["000-input.lading", "001-dce.lading"]
    assert "%kept" in result.stdout and "%unread" not in result.stdout
    assert "stopped after pass 1, dce" in result.stderr


def test_nothing_stays_behind_after_success(source, tmp_path, monkeypatch):
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    assert run(source, "--passes", "canonicalize").exit_code == 0
    assert list((tmp_path / "temp").iterdir()) == []


# ---- failures ----

PLUGIN = '''
from dataclasses import dataclass
from passes.framework.base import Pass
from ir.base.plugins import Plugin

@dataclass(frozen=True)
class Crash(Pass):
    """Fails when there is a Relu."""
    name = "crash"
    def run(self, graph, ctx):
        if any(node.op == "Relu" for node in graph.nodes):
            raise ZeroDivisionError("a Relu")

@dataclass(frozen=True)
class Lose(Pass):
    """Doubles what it should keep, or loses a type."""
    name = "lose"
    double: bool = True
    def run(self, graph, ctx):
        for node in list(graph.nodes):
            if node.op == "Relu":
                x = node.inputs[0]
                if self.double:
                    graph.set_input(node, 0, graph.add("Add", [x, x], types=[x.type], before=node).output)
                else:
                    graph.set_op(node, "NoSuchOperator")

PLUGIN = Plugin(passes={"crash": Crash, "lose": Lose})
'''


@pytest.fixture
def shell(tmp_path):
    """Runs commands with the failing passes installed."""
    site = tmp_path / "site"
    info = site / "lading_failing-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "lading_failing.py").write_text(textwrap.dedent(PLUGIN))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lading-failing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lading.plugins]\nfailing = lading_failing:PLUGIN\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "TMPDIR": str(tmp_path)}

    def run_shell(command):
        return subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    return run_shell


OPT = f"{sys.executable} -m tools.opt"


@pytest.mark.parametrize(
    ("pipeline", "flags", "status", "part"),
    [
        ("canonicalize,crash", "", EXIT_CRASHED, "ZeroDivisionError: a Relu"),
        ("canonicalize,lose", "--check-numbers", 1, "error[P361]"),
        ("canonicalize,lose{double=false}", "--verify-each", 1, "error[P360]"),
    ],
)
def test_a_failure_leaves_the_last_good_graph_and_the_command_that_reproduces_it(
    pipeline, flags, status, part, shell, source, tmp_path
):
    result = shell(f"{OPT} {source} --passes '{pipeline}' {flags} -o out.lading")
    assert result.returncode == status and part in result.stderr, result.stderr
    assert not (tmp_path / "out.lading").exists()
    kept, command = re.search(r"the graph before it is (\S+); reproduce with: (.*)", result.stderr).groups()
    assert Path(kept).read_text() == SHORT
    again = shell(command)
    assert again.returncode == status and part in again.stderr
    assert f"--passes {pipeline.partition(',')[2]}" in command.replace("'", "")


def test_a_malformed_result_is_not_written(shell, source, tmp_path):
    result = shell(f"{OPT} {source} --passes 'lose{{double=false}}' -o out.lading --no-keep")
    assert result.returncode == 1 and "NoSuchOperator" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out.lading").exists()
