"""Models whose graph takes rows of the embedding: the embedding is found, or what to do is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from backends.contract import read
from frontends.onnx.embedding import find_rows
from ir.base.diag import LadingError
from ir.graph.graph import Graph
from ir.tensor.inline import InlineTensor
from passes.inputs.language_model import RowsInput, rows_input
from tests.support.checkpoints import make_checkpoint
from tools.compile.job import Request, compile_model
from tools.shared.formats import Formats

FORMATS = Formats()
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def of_rows(graph: Graph, path: Path) -> Path:
    """The graph without its look-up: it takes f32[1, seq, width] instead of token ids."""
    (ids,) = graph.inputs
    (look_up,) = (node for node in graph.nodes if node.op == "Gather" and node.input(1) is ids)
    rows = graph.add_input("inputs_embeds", look_up.output.type)
    shapes = [(node, place) for node, place in ids.uses if node is not look_up]
    graph.replace(look_up.output, rows)
    graph.erase(look_up)
    for node, place in shapes:
        assert node.op == "Shape"
        graph.set_input(node, place, rows)
        graph.set_type(node.output, None)
    graph.remove_input(ids)
    FORMATS.write(graph, str(path))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A checkpoint with a matrix of the scores of its own."""
    return make_checkpoint(tmp_path_factory.mktemp("rows") / "source", "qwen2")


@pytest.fixture(scope="module")
def exported(source) -> Path:
    """Its graph, of rows."""
    return of_rows(FORMATS.read(str(source)), source.parent / "rows.onnx")


def test_such_a_graph_is_a_language_model(exported):
    graph = FORMATS.read(str(exported))
    assert FORMATS.emitter_of(graph) == "mnn-llm"
    found = rows_input(graph)
    assert found is not None and found.value.name == "inputs_embeds" and (found.tokens, found.width) == (320, 64)


def test_an_embedding_for_a_model_that_has_one_is_refused(source, tmp_path):
    with pytest.raises(LadingError, match="--embedding has no effect") as caught:
        compile_model(Request(str(source), tmp_path / "out", "fp32", embedding=source, verify="none"))
    assert caught.value.code == "U918"


def test_without_the_embedding_it_is_said_what_to_name(exported, tmp_path):
    with pytest.raises(LadingError, match="--embedding") as caught:
        compile_model(Request(str(exported), tmp_path / "out", "fp32", tokenizer="none"))
    assert caught.value.code == "B673"


def test_the_checkpoint_gives_the_rows_and_the_result_is_that_of_the_checkpoint(exported, source, tmp_path):
    request = Request(str(exported), tmp_path / "out", "fp32", tokenizer="none", embedding=source)
    result = compile_model(request)
    assert [item.code for item in result.warnings] == ["B675"]
    contract = read(tmp_path / "out")
    assert contract.verdict.original == "onnxruntime 1.32.0 on rows.onnx"
    run = next(item for item in contract.verified if item.reference == "onnxruntime")
    assert run.max_abs_error < 1e-3 and run.decode_equal_tokens == run.decode_tokens > 0
    compile_model(Request(str(source), tmp_path / "plain", "fp32", verify="none"))
    mine, theirs = ((tmp_path / name / "llm.mnn.weight").read_bytes() for name in ("out", "plain"))
    assert mine == theirs


def test_a_file_of_rows_beside_the_model_is_taken(exported, source, tmp_path):
    graph = FORMATS.read(str(source))
    of_rows(graph, tmp_path / "rows.onnx")
    rows = load_file(source / "model.safetensors")[EMBEDDING].astype(np.float32)
    (tmp_path / "embeddings_bf16.bin").write_bytes(rows.tobytes())
    result = compile_model(Request(str(tmp_path / "rows.onnx"), tmp_path / "out", "int8", tokenizer="none"))
    assert result.warnings == [] and result.verdict.original


def wanted(head: np.ndarray | None = None) -> RowsInput:
    """An embedding of 320 rows of 64 numbers."""
    value = Graph("g").add_input("rows", None)
    return RowsInput(value, 64, 320, InlineTensor(head) if head is not None else None)


def test_what_does_not_fit_is_refused(tmp_path):
    short = tmp_path / "short.bin"
    short.write_bytes(bytes(10))
    empty = tmp_path / "empty"
    empty.mkdir()
    two = tmp_path / "two"
    two.mkdir()
    rng = np.random.default_rng(4)
    pair = {name: rng.standard_normal((320, 64)).astype(np.float32) for name in ("a", "b")}
    save_file(pair, two / "model.safetensors")
    for place, says in ((short, "has 10 bytes"), (empty, "no embedding is found"), (two, "2 matrices")):
        with pytest.raises(LadingError, match=says) as caught:
            find_rows(tmp_path / "m.onnx", place, wanted())
        assert caught.value.code == "B674"
    # Of the two the matrix of the scores is told by its numbers, transposed or not, quantized or not.
    rough = pair["a"] + 0.1 * rng.standard_normal((320, 64)).astype(np.float32)
    for head in (pair["a"], pair["a"].T.copy(), rough):
        found = find_rows(tmp_path / "m.onnx", two, wanted(head))
        np.testing.assert_array_equal(found.table.load(), pair["b"])
    with pytest.raises(LadingError, match="2 matrices"):
        find_rows(tmp_path / "m.onnx", two, wanted(rng.standard_normal((320, 64)).astype(np.float32)))
