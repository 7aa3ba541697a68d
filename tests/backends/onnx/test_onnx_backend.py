"""Compiling to ONNX: what is written runs in onnxruntime and gives the original's numbers, and the contract says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.contract import check_feed, check_files, read
from backends.onnx import backend, verify
from backends.onnx.backend import DATA, MODEL
from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.graph.copy import copied
from ir.tensor.inline import InlineTensor
from tests.support.checkpoints import make_checkpoint
from tools.compile.job import Request, compile_model

RNG = np.random.default_rng(4)
WEIGHTS = {
    "w": RNG.standard_normal((64, 128)).astype(np.float32),
    "v": RNG.standard_normal((128, 32)).astype(np.float32),
}


def network(path: Path, **weights: np.ndarray) -> Path:
    """Two products with a ReLU between them, over a batch of any size."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 64), ("y", 32)))
    stored = [numpy_helper.from_array(array, name) for name, array in (WEIGHTS | weights).items()]
    graph = helper.make_graph(nodes, "net", [x], [y], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture
def model(tmp_path) -> Path:
    return network(tmp_path / "net.onnx")


def run(path: Path, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("pipeline", "error"), [(None, 2e-2), ("onnx-int4", 0.2), ("onnx-fp16", 1e-3), ("onnx-fp32", 1e-6)]
)
def test_an_onnx_file_compiles_end_to_end(pipeline, error, model, tmp_path):
    result = compile_model(Request(str(model), tmp_path / "out", pipeline, to="onnx"))
    contract = read(tmp_path / "out")
    assert check_files(contract, tmp_path / "out") == []
    assert [item.file for item in contract.sources] == ["net.onnx"] and contract.model.name == "net"
    assert [item.reference for item in contract.verified] == ["decoded weights", "float"]
    assert contract.verified[0].max_abs_error < 1e-3 and contract.verified[0].settings is None
    assert contract.target.profile == "onnxruntime" and contract.target.releases == (onnxruntime.__version__,)
    assert result.figures is not None and len(result.figures.rows) == 2
    x = RNG.standard_normal((5, 64)).astype(np.float32)
    check_feed(contract, {"x": x})
    wanted, got = run(model, x), run(tmp_path / "out" / MODEL, x)
    assert np.sqrt(np.square(got - wanted).sum() / np.square(wanted).sum()) < error
    assert error < 1e-4 or not np.array_equal(got, wanted)


@pytest.mark.parametrize("large", [False, True])
def test_the_contract_says_where_each_weight_lies(large, model, tmp_path, monkeypatch):
    if large:
        monkeypatch.setattr(backend, "LARGE", 100)
    compile_model(Request(str(model), tmp_path / "out", "onnx{block=0 symmetric}", to="onnx"))
    assert (tmp_path / "out" / DATA).is_file() is large
    entries = {item.name: item for item in read(tmp_path / "out").weights}
    assert entries.keys() == {"w", "v"} and {item.file for item in entries.values()} == {DATA if large else MODEL}
    stored = {item.name: item for item in onnx.load(tmp_path / "out" / MODEL).graph.initializer}
    for name, entry in entries.items():
        data = (tmp_path / "out" / entry.file).read_bytes()[entry.offset : entry.offset + entry.bytes]
        codes, scale = (numpy_helper.to_array(stored[f"{name}.{part}"]) for part in ("codes", "scale"))
        assert data.startswith(codes.tobytes()) and scale.tobytes() in data
        assert (entry.storage.bits, entry.storage.block, entry.storage.symmetric) == (8, codes.shape[0], True)


def test_a_checkpoint_compiles_to_onnx(tmp_path):
    source = make_checkpoint(tmp_path / "source", "qwen2")
    compile_model(Request(str(source), tmp_path / "out", to="onnx"))
    contract = read(tmp_path / "out")
    assert contract.model.family == "qwen2" and contract.config_digest is not None
    assert [item.name for item in contract.signature.inputs] == ["input_ids"]
    assert contract.verified[0].kl < 1e-9 and contract.verified[1].kl < 0.04 and contract.verified[1].prompt_tokens > 0


def test_the_text_form_compiles_to_onnx(model, tmp_path):
    from tools.shared.formats import Formats

    formats = Formats()
    formats.write(formats.read(str(model)), str(tmp_path / "net.lading"))
    compile_model(Request(str(tmp_path / "net.lading"), tmp_path / "out", to="onnx"))
    x = np.ones((1, 64), np.float32)
    np.testing.assert_allclose(run(tmp_path / "out" / MODEL, x), run(model, x), rtol=0.2, atol=5)
    assert read(tmp_path / "out").sources[0].file == "net.lading"


# ---- what is refused ----


def test_a_file_that_computes_something_else_is_noticed(model, tmp_path):
    graph = load(model)
    other = network(tmp_path / "other.onnx", w=WEIGHTS["w"] * 1.01)
    found = verify.verify(other, graph, graph, source=model, feeds=2)
    assert [item.code for item in found.problems] == ["V710", "V711"]
    with pytest.raises(LadingError) as caught:
        found.require()
    assert caught.value.code == "V710"


def test_what_the_frontend_misreads_shows_against_the_file_itself(model):
    graph = load(model)
    graph.set_const(graph.value("w"), InlineTensor(WEIGHTS["w"] * 1.01))
    misread = copied(graph)
    found = verify.verify(model, graph, misread, source=None, feeds=2)
    assert [item.code for item in found.problems] == ["V710", "V711"]


def test_numbers_that_are_none_are_infinitely_far(model, tmp_path):
    broken = network(tmp_path / "broken.onnx", w=np.full_like(WEIGHTS["w"], np.nan))
    found = verify.verify(broken, load(model), load(model), source=None, feeds=1)
    assert found.measurements[0].error == np.inf and found.problems


def test_a_bar_of_ones_own(tmp_path):
    source = make_checkpoint(tmp_path / "source", "qwen2")
    with pytest.raises(LadingError, match="above 1e-12, the bar given") as caught:
        compile_model(Request(str(source), tmp_path / "out", to="onnx", kl_bar=1e-12))
    assert caught.value.code == "V711" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"target": "1.0.0"}, "B750", "cannot be promised"),
        ({"threads": 2}, "U915", "--threads"),
        ({"memory": "low"}, "U915", "--memory"),
        ({"precision": "low"}, "U915", "--precision"),
        ({"tokenizer": Path()}, "U915", "--tokenizer"),
    ],
)
def test_what_has_no_meaning_here_is_refused(changes, code, says, model, tmp_path):
    with pytest.raises(LadingError, match=says) as caught:
        compile_model(replace(Request(str(model), tmp_path / "out", to="onnx"), **changes))
    assert caught.value.code == code and not (tmp_path / "out").exists()


@pytest.mark.mnn
def test_a_pipeline_for_another_runtime_is_refused(tmp_path):
    source = make_checkpoint(tmp_path / "source", "qwen2")
    with pytest.raises(LadingError) as caught:
        compile_model(
            Request(str(source), tmp_path / "out", "infer-types,discover-inputs{signature=mnn-llm}", to="onnx")
        )
    assert caught.value.code == "B751"


def test_the_report_is_json(model, tmp_path):
    from click.testing import CliRunner

    from tools.compile.command import main

    result = CliRunner().invoke(main, [str(model), "-o", str(tmp_path / "out"), "--json", "--to", "onnx"])
    data = json.loads(result.stdout)
    assert result.exit_code == 0 and data["bits_per_weight"] > 8 and len(data["verified"]) == 2
