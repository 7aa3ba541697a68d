"""The embedding interface and the page that documents it."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from benchmarks.traced_decoder import feeds, make_decoder
from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.facts.inputs import DynamicInputs
from ir.facts.precision import PrecisionPlan
from ir.graph.compare import differences
from ir.graph.graph import Graph
from passes.framework.base import Pass
from passes.framework.load import parse
from passes.framework.manager import Instrument, StopPipeline
from tests.support.onnx_cases import run_onnxruntime
from tests.support.paths import ROOT
from tools.embed import Outcome, apply_in_place, declare_inputs, lift, lower, run

PAGE = ROOT / "docs" / "embedding.md"
HEAVY = (
    "onnxruntime",
    "torch",
    "transformers",
    "MNN",
    "tokenizers",
    "onnx_graphsurgeon",
    "onnxscript",
    "rich",
    "scipy",
)


@dataclass(frozen=True)
class Setting:
    """Something a pass asks for."""

    value: int


@dataclass(frozen=True)
class Rename(Pass):
    """Give the graph a name made of a setting."""

    name = "rename-graph"

    def run(self, graph, ctx):
        """See `Pass.run`."""
        graph.name = f"graph{ctx.get(Setting).value}"


@dataclass(frozen=True)
class Fail(Pass):
    """Change the graph, then fail."""

    name = "fail"

    def run(self, graph, ctx):
        """See `Pass.run`."""
        for node in graph.nodes:
            graph.set_op(node, "Gone")
        raise LadingError("P373", "no")


def test_each_kind_comes_out_as_it_went_in():
    model = make_decoder(1)
    given = [feeds(1)[item.name] for item in model.graph.input]
    wanted = run_onnxruntime(model, given)
    content = model.SerializeToString()
    surgeon = gs.import_onnx(model)
    nodes = len(surgeon.nodes)
    found = [
        run(model).model,
        onnx.ModelProto.FromString(run(content).model),
        gs.export_onnx(run(surgeon).model),
        lower(run(load(model)).model),
    ]
    assert model.SerializeToString() == content and len(surgeon.nodes) == nodes, "what was given is as it was"
    for one in found:
        assert len(one.graph.node) < nodes
        assert all(np.array_equal(a, b) for a, b in zip(wanted, run_onnxruntime(one, given), strict=True))


def test_an_ir_graph_is_edited_and_an_outcome_says_all():
    graph = load(make_decoder(1))
    outcome = run(graph, "canonicalize")
    assert isinstance(outcome, Outcome) and outcome.model is graph is outcome.graph
    assert outcome.report.changed and "fold" in outcome.report.pipeline
    assert outcome.inputs is None and outcome.precision is None and not outcome.facts


def test_pipelines_of_every_form():
    model = make_decoder(1)
    texts = [run(model, form).report.pipeline for form in ("dce", parse("dce"), [*parse("dce").passes()])]
    assert texts == ["dce", "dce", "dce"]
    outcome = run(model, Rename(), settings=[Setting(7)])
    assert outcome.model.graph.name == "graph7"
    with pytest.raises(LadingError) as caught:
        run(model, Rename())
    assert caught.value.code == "P321"


def test_instruments_watch():
    class Stop(Instrument):
        """Ends after the first pass."""

        def after(self, step, graph, report):
            raise StopPipeline("seen enough")

    assert run(make_decoder(1), "dce,cse", instruments=[Stop()]).report.stopped == "seen enough"


def test_a_failure_leaves_a_held_graph_as_it_was():
    surgeon = gs.import_onnx(make_decoder(1))
    before, nodes = gs.export_onnx(surgeon), list(surgeon.nodes)
    with pytest.raises(LadingError):
        apply_in_place(surgeon, [Fail()])
    assert gs.export_onnx(surgeon) == before
    assert all(a is b for a, b in zip(surgeon.nodes, nodes, strict=True))
    outcome = apply_in_place(surgeon, "dce")
    assert outcome.model is surgeon
    with pytest.raises(ValueError, match="in place"):
        run(make_decoder(1), in_place=True)


def test_things_that_are_no_models():
    for thing in (7, None, make_decoder(1).graph, ["m.onnx"]):
        with pytest.raises(LadingError) as caught:
            lift(thing)
        assert caught.value.code == "F630"


def test_files_and_checkpoints(tmp_path):
    model = make_decoder(1)
    onnx.save_model(model, tmp_path / "m.onnx")
    assert differences(lift(tmp_path / "m.onnx"), lift(str(tmp_path / "m.onnx"))) == []
    with pytest.raises(LadingError) as caught:
        lift(tmp_path / "gone.onnx")
    assert caught.value.code == "F600"
    with pytest.raises(LadingError) as caught:
        lift(tmp_path)
    assert caught.value.code.startswith("F5"), "a folder is a checkpoint"


def test_facts_of_a_checkpoint():
    graph = lift(ROOT / "examples" / "tiny-qwen2.5")
    assert isinstance(graph, Graph)
    outcome = run(graph, "canonicalize,discover-inputs,assign-precision")
    assert isinstance(outcome.inputs, DynamicInputs) and isinstance(outcome.precision, PrecisionPlan)
    assert outcome.facts[DynamicInputs.name] is outcome.inputs


def test_importing_is_light():
    check = f"import sys, tools.embed; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_running_on_onnx_needs_no_framework():
    code = (
        "import sys, onnx; from tools.embed import run\n"
        'm = onnx.parser.parse_model(\'<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] y)'
        " { a = Neg(x)  y = Identity(a) }')\n"
        "assert len(run(m).model.graph.node) == 1\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['onnxruntime']")


def blocks() -> list[str]:
    """The Python of the page."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    found = blocks()
    assert len(found) >= 10
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "page", type(sys)("page"))
    space = vars(sys.modules["page"])
    text = PAGE.read_text()
    for block in found:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Blank lines in front make the lines of a traceback those of the page.
            padding = "\n" * text[: text.index(block)].count("\n")
            exec(compile(padding + block, str(PAGE), "exec"), space)
    assert space["outcome"].graph.nodes and (tmp_path / "static.onnx").exists(), "the last block ran"


# ---- tensors that nothing makes ----


def cut() -> onnx.ModelProto:
    return onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21], producer_name: "somebody">
        g (float[8, 3] x) => (float[k, 2] y) <int64[1] e = {3}, int64[1] s = {1}, float[1] unread = {1}> {
            a = Slice(x, s, e, axes)
            y = Gather(a, lost)
            dead = Neg(x)
        }
    """)


def test_declaring_changes_nothing_else():
    model = cut()
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [8, 2]))
    before = model.SerializeToString(deterministic=True)
    declared = declare_inputs(model)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(declared.model, full_check=True)
    assert {item.name: item.kind for item in declared.tensors} == {"axes": "constant", "lost": "input"}
    assert "Gather" in declared.model.graph.input[1].doc_string
    del declared.model.graph.input[1:]
    del declared.model.graph.initializer[-1:]
    assert declared.model.SerializeToString(deterministic=True) == before
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    (got,) = run_onnxruntime(declare_inputs(model).model, [x, np.array([7, 0])])
    np.testing.assert_array_equal(got, x[[7, 0], 1:])


def test_declaring_in_bytes_and_in_graph_surgeon_graphs():
    model = cut()
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [8, 2]))
    declared = declare_inputs(model.SerializeToString())
    assert [item.name for item in onnx.load_from_string(declared.model).graph.input] == ["x", "lost"]
    given = gs.import_onnx(model)
    made = declare_inputs(given).model
    assert [item.name for item in made.inputs] == ["x", "lost"] and [item.name for item in given.inputs] == ["x"]
    onnx.checker.check_model(gs.export_onnx(made), full_check=True)
    assert isinstance(given.tensors()["axes"], gs.Variable), "the graph that was given stays as it was"


def test_a_model_without_such_tensors_is_copied():
    model = make_decoder(1)
    declared = declare_inputs(model)
    assert declared.tensors == () and declared.model == model and declared.model is not model


def test_what_inputs_cannot_be_declared_in_is_refused():
    with pytest.raises(LadingError) as caught:
        declare_inputs(lift(cut()))
    assert caught.value.code == "F630"


def test_an_outcome_says_what_nothing_made():
    outcome = run(cut(), "infer-types")
    assert {item.name for item in outcome.free} == {"axes", "lost"}
    assert run(make_decoder(1), "infer-types").free == ()
    with pytest.raises(LadingError) as caught:
        run(cut(), "infer-types", free="error")
    assert caught.value.code == "F604"
