"""Compiling models that read tensors which nothing makes: nobody has to ask for it, and everybody is told."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from backends.contract import check_feed, read
from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint
from tests.support.dangling.general import CASES
from tools.compile.command import main
from tools.compile.job import Request, compile_model
from tools.fuzz.inputs.row_choices import choosing, decoder

GENERAL = {case.name: case.model for case in CASES}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> onnx.ModelProto:
    return decoder(make_checkpoint(tmp_path_factory.mktemp("plain"), "qwen2", num_hidden_layers=1))


# ---- language models ----


@pytest.mark.mnn
@pytest.mark.parametrize(
    ("kind", "origin", "place"),
    [("slice", "dangling", "norm"), ("gather-scalar", "dangling", "logits"), ("gather", "constant", "head")],
)
def test_a_decoder_that_chooses_rows_becomes_a_directory_that_runs(plain, tmp_path, kind, origin, place):
    onnx.save(choosing(plain, place, kind, origin), tmp_path / "cut.onnx")
    result = compile_model(Request(str(tmp_path / "cut.onnx"), tmp_path / "out", "fp32", tokenizer="none"))
    contract = read(tmp_path / "out")
    (row,) = [item for item in contract.signature.inputs if item.name == "logits_index"]
    assert row.discovered is None or row.discovered.kind in ("dangling", "frozen-by-tracing")
    runs = [item for item in contract.verified if item.reference in ("onnxruntime", "float")]
    assert {item.reference for item in runs} == {"onnxruntime", "float"}
    assert all(item.max_abs_error < 1e-3 and item.decode_equal_tokens == item.decode_tokens for item in runs)
    notes = [item for item in result.warnings if item.code == "F631"]
    assert [item.severity for item in notes] == ["note"] * (origin == "dangling")
    assert result.verdict.outcome == "passed", "a note is no warning"


@pytest.mark.mnn
def test_a_graph_that_is_no_language_model_is_none_for_the_engine(tmp_path):
    onnx.save(GENERAL["Gather indices"], tmp_path / "general.onnx")
    with pytest.raises(LadingError) as caught:
        compile_model(
            Request(str(tmp_path / "general.onnx"), tmp_path / "out", to="mnn-llm", verify="none", tokenizer="none")
        )
    assert caught.value.code == "P351" and not (tmp_path / "out").exists()


# ---- other graphs ----


def test_the_contract_of_a_general_graph_says_what_to_feed(tmp_path):
    onnx.save(GENERAL["Gather indices"], tmp_path / "general.onnx")
    result = CliRunner().invoke(
        main, [str(tmp_path / "general.onnx"), "-o", str(tmp_path / "out"), "--to", "onnx", "--guard"]
    )
    assert result.exit_code == 0 and "note[F631]: nothing makes 'lost'" in result.output, result.output
    contract = read(tmp_path / "out")
    found = contract.signature.inputs[1]
    assert (found.name, found.dtype, found.default) == ("lost", "i64", 0)
    assert (found.values.min, found.values.max) == (-8, 7)
    assert (found.discovered.kind, found.discovered.node) == ("dangling", "Gather 'y'")
    feed = {"x": np.zeros((8, 3), np.float32), "lost": np.full((2, 5), 7)}
    check_feed(contract, feed)
    guard = guard_of(tmp_path / "out" / "check_inputs.py")
    assert guard.problems(feed) == []
    feed["lost"][1, 1] = 8
    assert [code for code, _ in guard.problems(feed)] == ["C827"]
    with pytest.raises(LadingError) as caught:
        check_feed(contract, feed)
    assert caught.value.code == "C827"
    del feed["lost"]
    ((code, text),) = guard.problems(feed)
    assert code == "C820" and text.endswith("; 0 is the default")
    with pytest.raises(LadingError, match=r"places of 8 along axis 0.*\n.*0 is the default"):
        check_feed(contract, feed)


@pytest.mark.parametrize("name", ["Slice axes", "If condition", "Loop trip count", "Where condition", "Conv weight"])
def test_what_was_written_is_compared_with_the_file_as_it_lies(tmp_path, name):
    onnx.save(GENERAL[name], tmp_path / "general.onnx")
    result = compile_model(Request(str(tmp_path / "general.onnx"), tmp_path / "out", to="onnx"))
    assert {item.reference for item in result.contract.verified} == {"decoded weights", "float"}
    assert all(item.max_abs_error < 1e-5 for item in result.contract.verified)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert any(item.name == "lost" for item in (*model.graph.input, *model.graph.initializer))


@pytest.mark.mnn
@pytest.mark.parametrize(("name", "default"), [("Slice axes", None), ("If condition", 1), ("Gather indices", 0)])
def test_modules_are_fed_what_nothing_makes_too(tmp_path, name, default):
    onnx.save(GENERAL[name], tmp_path / "general.onnx")
    result = compile_model(Request(str(tmp_path / "general.onnx"), tmp_path / "out", to="mnn"))
    assert result.verdict.outcome == "passed" and {item.reference for item in result.contract.verified} == {"float"}
    defaults = {item.name: item.default for item in read(tmp_path / "out").signature.inputs}
    assert defaults.get("lost") == default


def test_weights_of_an_older_opset_are_stored_in_blocks_all_the_same(tmp_path):
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        g (float[n, 64] x) => (float[r, 32] y) <int64[1] e = {9223372036854775807}, int64[1] a = {0}>
        { h = MatMul(x, w)  y = Slice(h, first, e, a) }
    """)
    weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "old.onnx")
    result = compile_model(Request(str(tmp_path / "old.onnx"), tmp_path / "out", to="onnx"))
    written = onnx.load(tmp_path / "out" / "model.onnx")
    assert written.opset_import[0].version >= 21 and "DequantizeLinear" in {node.op_type for node in written.graph.node}
    assert result.verdict.outcome == "passed"


def test_an_operator_without_a_newer_form_keeps_integers_out(tmp_path):
    model = onnx.parser.parse_model("""
        <ir_version: 6, opset_import: ["" : 11]>
        g (float[1, 1, 4, 64] x) => (float[1, 1, 8, 32] y) <float[4] s = {1, 1, 2, 1}>
        { h = MatMul(x, w)  y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn"> (h, s, s) }
    """)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 32), np.float32), "w"))
    onnx.save(model, tmp_path / "old.onnx")
    result = CliRunner().invoke(main, [str(tmp_path / "old.onnx"), "-o", str(tmp_path / "out"), "--to", "onnx"])
    assert result.exit_code == 1
    assert "error[P324]: weights stored as integers take opset 21, and Resize cannot" in result.output


def guard_of(path):
    spec = importlib.util.spec_from_file_location("check_inputs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
