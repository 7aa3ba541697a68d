"""What compile opens and what it emits to, which is chosen by the model or by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from backends.backend import Backend, Compilation, Order
from backends.contract import check_files, read
from backends.mnn.modules.way import MODEL, WEIGHTS
from ir.base.diag import LadingError
from ir.graph.graph import Graph
from passes.framework.registry import default_registry
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import EXAMPLE, ROOT
from tools.compile.command import main
from tools.compile.job import Request, compile_model
from tools.shared.formats import Formats

OFFICIAL = ROOT / "tests" / "data" / "official-default-int8"


def dense(path: Path, activation: str) -> Path:
    """``activation(x @ w + b) @ v``."""
    rng = np.random.default_rng(2)
    shapes = {"w": (16, 24), "b": (24,), "v": (24, 8)}
    stored = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), name) for name, s in shapes.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node(activation, ["q"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 16), ("y", 8)))
    graph = helper.make_graph(nodes, "dense", [x], [y], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> Path:
    """A checkpoint as our own writer makes an ONNX file of it."""
    folder = tmp_path_factory.mktemp("lm")
    formats = Formats()
    source = make_checkpoint(folder / "source", "qwen2")
    formats.write(formats.read(str(source)), str(folder / "lm.onnx"))
    return folder / "lm.onnx"


# ---- language models from ONNX ----


def test_an_onnx_language_model_becomes_a_directory_that_runs_on_ids(language_model, tmp_path):
    result = compile_model(Request(str(language_model), tmp_path / "out", "int8", tokenizer="none"))
    contract = read(tmp_path / "out")
    assert check_files(contract, tmp_path / "out") == []
    assert result.warnings == [] and contract.tokenizer is None
    assert contract.model.layers == 2 and contract.model.family is None and contract.model.max_position is None
    assert contract.signature.state.layers == 2 and contract.signature.state.bytes_per_token > 0
    assert [item.file for item in contract.sources] == ["lm.onnx"]
    exact = next(item for item in contract.verified if item.reference == "decoded weights")
    assert exact.decode_equal_tokens == exact.decode_tokens > 0 and exact.kl < 1e-6
    assert min(item.kl for item in contract.verified if item.reference == "float") < 0.02 and result.sample is None


def test_a_tokenizer_may_be_named_or_lie_beside_the_model(language_model, tmp_path):
    tokenizer = language_model.parent / "source"
    named = Request(str(language_model), tmp_path / "named", tokenizer=tokenizer, verify="none")
    shutil.copy(language_model, tmp_path / "lm.onnx")
    shutil.copy(tokenizer / "tokenizer.json", tmp_path)
    beside = Request(str(tmp_path / "lm.onnx"), tmp_path / "beside", verify="none")
    # Nothing beside the second says which token ends generation.
    for request, told in ((named, []), (beside, ["B762"])):
        result = compile_model(request)
        assert [item.code for item in result.warnings] == told and read(request.out).tokenizer is not None


def test_both_ways_store_the_same_weights(language_model, tmp_path):
    source = language_model.parent / "source"
    for name, model in (("a", language_model), ("b", source)):
        compile_model(Request(str(model), tmp_path / name, verify="none", tokenizer=source))
    assert (tmp_path / "a" / "llm.mnn.weight").read_bytes() == (tmp_path / "b" / "llm.mnn.weight").read_bytes()


# ---- single MNN files ----


@pytest.mark.parametrize(("pipeline", "error"), [("mnn", 1e-3), ("mnn{bits=8 logits-bits=8}", 1.0)])
def test_an_onnx_graph_becomes_an_mnn_module(pipeline, error, tmp_path):
    model = dense(tmp_path / "dense.onnx", "Sigmoid")
    result = compile_model(Request(str(model), tmp_path / "out", pipeline, to="mnn"))
    contract = read(tmp_path / "out")
    assert check_files(contract, tmp_path / "out") == []
    assert {item.path for item in contract.files} == {MODEL, WEIGHTS}
    assert [item.reference for item in contract.verified] == ["decoded weights", "float"]
    assert contract.verified[0].max_abs_error < 1e-3 and contract.verified[1].max_abs_error < error
    assert result.figures is not None and result.figures.title == "run on MNN"


def test_the_first_operator_that_mnn_has_no_form_for_is_named(tmp_path):
    model = dense(tmp_path / "dense.onnx", "Round")
    with pytest.raises(LadingError, match="no MNN form of operator Round is known") as caught:
        compile_model(Request(str(model), tmp_path / "out", "mnn", to="mnn"))
    assert caught.value.code == "P370" and not (tmp_path / "out").exists()


def test_a_module_that_gives_other_numbers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("backends.mnn.modules.written.BAR", 0.0)
    with pytest.raises(LadingError) as caught:
        compile_model(Request(str(dense(tmp_path / "dense.onnx", "Sigmoid")), tmp_path / "out", "mnn", to="mnn"))
    assert caught.value.code == "V702" and not (tmp_path / "out").exists()


def test_a_pipeline_that_does_not_lower_is_refused(tmp_path):
    model = dense(tmp_path / "dense.onnx", "Mish")
    with pytest.raises(LadingError, match="legalize-mnn") as caught:
        compile_model(Request(str(model), tmp_path / "out", "canonicalize", to="mnn", verify="none"))
    assert caught.value.code == "U905"


def test_a_language_model_without_its_calling_convention_is_refused(tmp_path):
    model = dense(tmp_path / "dense.onnx", "Sigmoid")
    with pytest.raises(LadingError, match="calling convention") as caught:
        compile_model(Request(str(model), tmp_path / "out", "mnn", to="mnn-llm", verify="none", tokenizer="none"))
    assert caught.value.code == "U905"


# ---- MNN models as graphs ----


def test_an_mnn_directory_opens_as_a_graph(tmp_path):
    formats = Formats()
    assert formats.frontend_for(str(OFFICIAL)) == formats.frontend_for(str(OFFICIAL / "llm.mnn")) == "mnn"
    graph = formats.read(str(OFFICIAL))
    assert {value.name for value in graph.inputs} == {"input_ids", "attention_mask", "position_ids", "logits_index"}
    assert len(formats.read(str(OFFICIAL / "llm.mnn")).nodes) == len(graph.nodes)


def test_an_mnn_directory_goes_to_onnx_and_is_sent_to_repair_otherwise(tmp_path):
    compile_model(Request(str(OFFICIAL), tmp_path / "out", "canonicalize", to="onnx"))
    contract = read(tmp_path / "out")
    assert contract.verified[0].max_abs_error < 1e-3 and contract.model.family == "qwen2"
    with pytest.raises(LadingError, match="already") as caught:
        compile_model(Request(str(OFFICIAL), tmp_path / "again"))
    assert caught.value.code == "B743" and "lading repair" in str(caught.value)


# ---- choosing ----


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--to", "onx"], "U911", "did you mean 'onnx'"),
        (["--to", "lading"], "U911", "compile cannot emit to the backend 'lading'"),
        (["--to", "mnn", "--tokenizer", "."], "U915", "--tokenizer"),
        (["--to", "mnn", "--memory", "low"], "U915", "choose --to mnn-llm"),
        (["--to", "onnx", "--text", str(EXAMPLE / "evaluation.txt")], "U915", "--text"),
    ],
)
def test_what_cannot_be_chosen(arguments, code, says, tmp_path):
    result = CliRunner().invoke(main, [str(EXAMPLE), "-o", str(tmp_path / "out"), "--verify", "none", *arguments])
    assert result.exit_code == 1 and f"error[{code}]" in result.stderr and says in result.stderr
    assert not (tmp_path / "out").exists()


def test_each_kind_of_model_has_its_backend(language_model, tmp_path):
    formats = Formats()
    assert formats.emitter_of_frontend("checkpoint") == formats.emitter_of_frontend("mnn") == "mnn-llm"
    assert formats.emitter_of_frontend("onnx") is None
    assert formats.emitter_of(formats.read(str(language_model))) == "mnn-llm"
    assert formats.emitter_of(formats.read(str(dense(tmp_path / "d.onnx", "Relu")))) == "mnn"


def test_print_pipeline_shows_the_backends_own():
    printed = {name: CliRunner().invoke(main, ["--print-pipeline", *name]).stdout for name in ((), ("--to", "onnx"))}
    assert printed[()].strip().endswith("fuse-mnn,cse,dce") and "assign-precision{bits=8}" in printed["--to", "onnx"]


def test_the_model_is_read_once_and_the_target_resolved_once(tmp_path, monkeypatch):
    from backends.mnn import backend
    from frontends.checkpoint import load as loader

    counts = {"read": 0, "target": 0}

    def counted(what, function):
        def call(*args, **options):
            counts[what] += 1
            return function(*args, **options)

        return call

    monkeypatch.setattr(loader, "load", counted("read", loader.load))
    monkeypatch.setattr(backend, "target", counted("target", backend.target))
    compile_model(Request(str(EXAMPLE), tmp_path / "out", target="3.6.1"))
    assert counts == {"read": 1, "target": 1}


class Smallest(Backend):
    """A backend that overrides what it must."""

    runtime = "nothing"

    def begin(self, order: Order) -> Compilation:
        return Compilation(order)


def test_defaults_of_a_backend(tmp_path):
    for backend, code, act in (
        (Backend(), "U916", lambda one: one.write(Graph("g"), tmp_path / "x")),
        (Smallest(), "U917", lambda one: one.target("anything")),
    ):
        with pytest.raises(LadingError) as caught:
            act(backend)
        assert caught.value.code == code
    assert Smallest().target(None).name == "any" and not Smallest().accepts(Graph("g"))


def test_what_no_backend_takes_is_said(monkeypatch):
    formats = Formats(default_registry())
    monkeypatch.setattr(formats, "backends", {"smallest": Smallest()})
    with pytest.raises(LadingError, match="no backend takes a model like this one") as caught:
        formats.emitter_of(Graph("g"))
    assert caught.value.code == "U911"
