"""ONNX files whose weights somebody else quantized, through the whole compiler: the codes are kept, the logits too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from backends.contract import Contract
from backends.mnn.read.decoded_weights import MnnModel
from tests.support.checkpoints import make_checkpoint
from tests.support.runs import compiled, each_release, logits_of, pieces, run_actions
from tools.compile.job import Request, compile_model

IDS = np.random.default_rng(4).integers(3, 320, 40)


@pytest.fixture(scope="module")
def floats(tmp_path_factory) -> onnx.ModelProto:
    """A small decoder as an ONNX model of floats."""
    folder = tmp_path_factory.mktemp("floats")
    source = make_checkpoint(folder / "source", "qwen2", seed=2)
    return onnx.load(compiled(source, folder / "onnx", "onnx-fp32", to="onnx") / "model.onnx")


def quantized(model: onnx.ModelProto, path: Path, symmetric: bool) -> Path:
    """The model with its products in 4 bits and blocks of 32, by onnxruntime's quantizer, as DequantizeLinear."""
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    how = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, quant_format=QuantFormat.QDQ)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    work = MatMulNBitsQuantizer(copy, algo_config=how)
    work.process()
    onnx.save(work.model.model, path)
    return path


def exact_logits(path: Path, ids: np.ndarray) -> np.ndarray:
    """Logits float32[seq, vocab] by onnxruntime, which rounds activations where it may optimize."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: ids[None]})[0][0]


@pytest.fixture(scope="module", params=[False, True], ids=["zeros", "symmetric"])
def case(request, floats, tmp_path_factory):
    """A quantized file and what it compiles to with everything else in single precision."""
    folder = tmp_path_factory.mktemp("quantized")
    path = quantized(floats, folder / "model.onnx", request.param)
    return path, compiled(path, folder / "out", "fp32", to="mnn-llm", tokenizer="none"), request.param


@pytest.mark.mnn
def test_codes_scales_and_zeros_are_those_of_the_file(case):
    path, out, symmetric = case
    model, read = onnx.load(path), MnnModel(out)
    constants = {item.name: numpy_helper.to_array(item).astype(np.float32) for item in model.graph.initializer}
    products = {node.input[1]: node.output[0] for node in model.graph.node if node.op_type == "MatMul"}
    given = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(given) == len(read.linears) == 15
    for node in given:
        codes, scale, *zero = (constants[name].T for name in node.input)
        name = next(name for name in read.linears if name.startswith(products[node.output[0]]))
        # Codes of 4 bits without a sign are shifted by 8, and their zeros with them.
        half = 0 if symmetric else 8
        np.testing.assert_array_equal(read.codes(name), codes - half)
        real = (codes - half).reshape(len(codes), -1, 32) * scale[..., None]
        if zero:
            real = real - ((zero[0] - half) * scale)[..., None]
        np.testing.assert_array_equal(read.decode(name), real.reshape(codes.shape))


@pytest.mark.mnn
@pytest.mark.parametrize("version", each_release())
def test_every_release_gives_the_logits_of_the_file(case, version):
    path, out, _ = case
    wanted = exact_logits(path, IDS)
    (result,) = run_actions(out, version, [pieces(IDS[:11], *([token] for token in IDS[11:]))])
    assert np.abs(logits_of(result) - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.mnn
def test_the_contract_says_which_weights_were_kept_and_which_were_stored_anew(floats, tmp_path):
    path = quantized(floats, tmp_path / "model.onnx", False)
    anew = ["*down_proj*"]
    result = compile_model(
        Request(str(path), tmp_path / "out", "default{requantize=[*down_proj*]}", to="mnn-llm", tokenizer="none")
    )
    contract: Contract = result.contract
    kept = [item for item in contract.weights if item.storage.method == "stored"]
    changed = [item for item in contract.weights if item.from_bits is not None]
    assert len(kept) == 13 and all(item.error is None or item.error.max_abs == 0 for item in kept), anew
    assert [item.from_bits for item in changed] == [4, 4] and all("down_proj" in item.name for item in changed)
    assert all(item.error.max_abs > 0 for item in changed)
    written = json.loads((tmp_path / "out" / "contract.json").read_text())
    assert {item["storage"]["method"] for item in written["weights"]} == {"stored", "rtn"}


@pytest.mark.mnn
def test_activations_that_a_file_rounds_are_taken_as_they_are_and_what_that_changes_is_measured(floats, tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    onnx.save(floats, tmp_path / "floats.onnx")
    path = tmp_path / "model.onnx"
    # The quantizer knows no Attention of ONNX and makes another operator of it.
    operators = ["MatMul", "Gather"]
    quantize_dynamic(tmp_path / "floats.onnx", path, weight_type=QuantType.QInt8, op_types_to_quantize=operators)
    result = compile_model(Request(str(path), tmp_path / "out", "fp32", to="mnn-llm", tokenizer="none"))
    assert [item.code for item in result.warnings if item.code.startswith("Q")] == ["Q467"]
    assert {item.storage.method for item in result.contract.weights} == {"stored"}
    assert result.verdict.original.startswith("onnxruntime")
    found = {item.reference: item.distance for item in result.verification.measurements}
    assert found["float"].max_abs < 1e-3 < found["onnxruntime"].max_abs and found["onnxruntime"].kl < 0.04
