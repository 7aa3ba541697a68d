"""Language models from ONNX files: what a checkpoint gets they get, and their reference is their own file on onnxruntime."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from backends.contract import check_files, read
from frontends.onnx.beside import context_of, title_of, tokenizer_folder
from frontends.onnx.original import FileInput, OnnxOriginal
from ir.base.diag import Diagnostic, LadingError
from tests.support.checkpoints import make_checkpoint
from tools.compile.advice import command_to_try
from tools.compile.command import main
from tools.compile.job import Request, compile_model
from tools.shared.formats import Formats


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A checkpoint as our own writer makes an ONNX file of it, with its weights in a file of their own."""
    folder = tmp_path_factory.mktemp("lm")
    formats = Formats()
    source = make_checkpoint(folder / "source", "qwen2")
    formats.write(formats.read(str(source)), str(folder / "plain.onnx"))
    model = onnx.load(str(folder / "plain.onnx"))
    onnx.save(model, str(folder / "lm.onnx"), save_as_external_data=True, location="lm.data", size_threshold=1024)
    return folder / "lm.onnx"


# ---- the way ----


def test_the_verdict_and_the_contract_say_what_the_model_was_compared_with(exported, tmp_path):
    request = Request(str(exported), tmp_path / "out", "fp32", tokenizer=exported.parent / "source")
    result = compile_model(request)
    contract = read(tmp_path / "out")
    assert check_files(contract, tmp_path / "out") == []
    assert result.verdict.text.endswith("; compared with onnxruntime 1.32.0 on lm.onnx")
    assert contract.verdict.original == "onnxruntime 1.32.0 on lm.onnx"
    run = next(item for item in contract.verified if item.reference == "onnxruntime")
    assert run.max_abs_error < 1e-3 and run.decode_equal_tokens == run.decode_tokens > 0
    assert [item.file for item in contract.sources] == ["lm.data", "lm.onnx"] and contract.tokenizer is not None


def test_a_file_that_computes_something_else_than_was_read_is_refused(exported, tmp_path, monkeypatch):
    from frontends.onnx import original

    run = original.run_file

    def doubled(*args, **options):
        return [{name: 2 * array for name, array in item.items()} for item in run(*args, **options)]

    monkeypatch.setattr(original, "run_file", doubled)
    with pytest.raises(LadingError, match="the model as read here gives other logits than onnxruntime") as caught:
        compile_model(Request(str(exported), tmp_path / "out", "fp32", tokenizer="none"))
    assert caught.value.code == "V720" and not (tmp_path / "out").exists()


def test_mixed_precision_looks_at_text_through_the_named_tokenizer(exported, tmp_path):
    request = Request(str(exported), tmp_path / "out", budget="6bpw", tokenizer=exported.parent / "source")
    result = compile_model(request)
    assert result.facts["precision-plan"].outcome.measured > 0 and read(tmp_path / "out").calibration is not None


# ---- the tokenizer ----


def test_a_model_without_a_tokenizer_is_told_what_to_add(exported, tmp_path):
    done = CliRunner().invoke(main, [str(exported), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1 and "error[B744]: the model has no tokenizer" in done.stderr
    assert "--tokenizer none" in done.stderr and not (tmp_path / "out").exists()


def test_without_functions_for_text_it_is_verified_on_ids(exported, tmp_path):
    done = CliRunner().invoke(
        main, [str(exported), "-o", str(tmp_path / "out"), "--tokenizer", "none", "--passes", "int8"]
    )
    assert done.exit_code == 0, done.output
    assert "none; the model runs on token ids" in done.stdout
    assert read(tmp_path / "out").tokenizer is None


def test_the_command_to_try_looks_at_no_text_either(exported):
    problem = Diagnostic("V701", "too far")
    request = Request(str(exported), Path("out"), tokenizer="none")
    assert command_to_try(request, [problem]).endswith("--passes int8 --tokenizer none")
    assert "--passes calibrated" in command_to_try(replace(request, tokenizer=None), [problem])


@pytest.mark.parametrize("options", [{"pipeline": "calibrated"}, {"text": Path(__file__)}])
def test_text_cannot_be_measured_on_without_a_tokenizer(exported, tmp_path, options):
    with pytest.raises(LadingError, match="which takes a tokenizer") as caught:
        compile_model(Request(str(exported), tmp_path / "out", tokenizer="none", **options))
    assert caught.value.code == "U919"


def test_the_folder_above_is_looked_at_where_models_have_a_folder_of_their_own(exported, tmp_path):
    place = tmp_path / "repository" / "onnx"
    place.mkdir(parents=True)
    path = place / "model.onnx"
    assert tokenizer_folder(path) is None and title_of(path) == "repository" and context_of(path) is None
    shutil.copy(exported.parent / "source" / "tokenizer.json", place.parent)
    (place.parent / "config.json").write_text(json.dumps({"max_position_embeddings": 512}), encoding="utf-8")
    assert tokenizer_folder(path) == place.parent and context_of(path) == 512
    (place / "genai_config.json").write_text(json.dumps({"model": {"context_length": 128}}), encoding="utf-8")
    assert context_of(path) == 128 and title_of(place / "smollm.onnx") == "smollm"


# ---- what is a language model ----


def scorer(path: Path, columns: int, mixing: bool = True) -> Path:
    """Rows of a table of 40 tokens, mixed or not, times a matrix of so many columns."""
    rng = np.random.default_rng(1)
    stored = [
        numpy_helper.from_array(rng.standard_normal((40, 8)).astype(np.float32), "table"),
        numpy_helper.from_array(rng.standard_normal((8, columns)).astype(np.float32), "head"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Softmax" if mixing else "Tanh", ["rows"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "head"], ["scores"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "seq"])
    out = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, "seq", columns])
    graph = helper.make_graph(nodes, "scorer", [ids], [out], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("columns", "mixing", "backend"), [(40, True, "mnn-llm"), (3, True, "mnn"), (40, False, "mnn")]
)
def test_scores_of_as_many_tokens_as_the_table_has_make_a_language_model(columns, mixing, backend, tmp_path):
    formats = Formats()
    assert formats.emitter_of(formats.read(str(scorer(tmp_path / "m.onnx", columns, mixing)))) == backend


@pytest.mark.parametrize(("width", "backend"), [(8, "mnn-llm"), (5, "mnn")])
def test_so_do_scores_of_rows_as_wide_as_the_matrix_is_high(width, backend, tmp_path):
    model = onnx.load(str(scorer(tmp_path / "m.onnx", 40)))
    model.graph.node[0].CopyFrom(
        helper.make_node("Identity" if width == 8 else "MatMul", ["ids", "wider"][: 2 - width // 8], ["rows"])
    )
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("ids", TensorProto.FLOAT, [1, "seq", width]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((5, 8), np.float32), "wider"))
    onnx.save(model, tmp_path / "rows.onnx")
    formats = Formats()
    assert formats.emitter_of(formats.read(str(tmp_path / "rows.onnx"))) == backend


# ---- the reference ----


def rows_of(path: Path, choice: str, dtype: int = TensorProto.FLOAT) -> Path:
    """Scores ``table[id] * mask * (position + 1)``, of all rows, of the last, or of those that an undeclared input says."""
    table = np.arange(1, 41, dtype=np.float32).reshape(10, 4)
    stored = [
        numpy_helper.from_array(table.astype(helper.tensor_dtype_to_np_dtype(dtype)), "table"),
        numpy_helper.from_array(np.array([2**31 - 1]), "end"),
        numpy_helper.from_array(np.array([1]), "axis"),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.array([2]), "two"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["mask"], ["seen"], to=dtype),
        helper.make_node("Unsqueeze", ["seen", "two"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("Cast", ["places"], ["floats"], to=dtype),
        helper.make_node("Unsqueeze", ["floats", "two"], ["steps"]),
        helper.make_node("Mul", ["kept", "steps"], ["all"]),
        helper.make_node("Concat", ["past", "past"], ["present"], axis=2),
    ]
    if choice == "all":
        nodes.append(helper.make_node("Identity", ["all"], ["scores"]))
    elif choice == "gather":
        nodes.append(helper.make_node("Gather", ["all", "logits_index"], ["scores"], axis=1))
    else:
        start = "last" if choice == "last" else "logits_index"
        nodes.append(helper.make_node("Slice", ["all", start, "end", "axis"], ["scores"]))
    given = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"]),
        helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "total"]),
        helper.make_tensor_value_info("places", TensorProto.INT64, ["batch", "seq"]),
        helper.make_tensor_value_info("past", TensorProto.FLOAT, ["batch", 2, "past", 3]),
    ]
    out = helper.make_tensor_value_info("scores", dtype, ["batch", "rows", 4])
    present = helper.make_tensor_value_info("present", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "rows", given, [out, present], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


INPUTS = (
    FileInput("ids", "token-ids", "i64", ("batch", "seq")),
    FileInput("mask", "attention-mask", "i64", ("batch", "total")),
    FileInput("places", "positions", "i64", ("batch", "seq")),
    FileInput("past", "history", "f32", ("batch", 2, "past", 3)),
)
INDEX = FileInput("logits_index", "row-choice", "i64", (1,), declared=False)


@pytest.mark.parametrize("choice", ["all", "slice", "gather", "last"])
def test_every_row_that_the_file_gives_is_compared(choice, tmp_path):
    path = rows_of(tmp_path / "m.onnx", choice)
    free = (INDEX,) if choice in ("slice", "gather") else ()
    found = OnnxOriginal(path, INPUTS + free, "scores")([[3, 1, 4, 1, 5], [2, 7]])
    assert found.name == "onnxruntime 1.32.0 on m.onnx" and found.file == "m.onnx"
    table = np.arange(1, 41, dtype=np.float32).reshape(10, 4)
    for ids, logits, places in zip(([3, 1, 4, 1, 5], [2, 7]), found.logits, found.rows, strict=True):
        assert len(places) == len(logits) and places[-1] == len(ids) - 1
        np.testing.assert_array_equal(logits, (table[ids] * np.arange(len(ids))[:, None])[places])
    assert len(found.rows[0]) == 5


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (INPUTS[:3], "Required inputs (['past']) are missing"),
        ((*INPUTS[:3], FileInput("past", "", "f32", (1, 2, "past", 3))), "nobody knows what its input past holds"),
        ((*INPUTS[:3], FileInput("past", "history", "f32", (1, 2, 8, 3))), "its history past has a fixed length"),
    ],
)
def test_a_file_that_cannot_be_run_says_why(inputs, says, tmp_path):
    found = OnnxOriginal(rows_of(tmp_path / "m.onnx", "all"), inputs, "scores")([[1, 2]])
    assert found.name == "" and says in found.reason and found.file == "m.onnx"


def test_a_matrix_for_a_mask_says_which_token_sees_which(tmp_path):
    from frontends.onnx.original import _mask

    added = _mask(3, FileInput("m", "attention-mask", "f32", (1, 1, "seq", "seq")))
    assert added.shape == (1, 1, 3, 3) and added[0, 0, 2].tolist() == [0, 0, 0] and added[0, 0, 0, 1] < -1e38
    assert _mask(3, FileInput("m", "attention-mask", "bool", (1, 1, "seq", "seq")))[0, 0].tolist() == [
        [True, False, False], [True, True, False], [True, True, True]
    ]  # fmt: skip
