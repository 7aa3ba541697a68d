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
from ir.base.diag import LadingError
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


FORMS = ["zeros", "symmetric", "MatMulNBits", "table"]
"""DequantizeLinear with and without zeros; onnxruntime's own operators for products, and for the table as well."""


def quantized(model: onnx.ModelProto, path: Path, form: str) -> Path:
    """The model with its products in 4 bits and blocks of 32, by onnxruntime's quantizer."""
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    own = form in ("MatMulNBits", "table")
    how = DefaultWeightOnlyQuantConfig(
        block_size=32,
        is_symmetric=form == "symmetric",
        quant_format=QuantFormat.QOperator if own else QuantFormat.QDQ,
        accuracy_level=4 if own else None,
        op_types_to_quantize=("MatMul", "Gather") if form == "table" else ("MatMul",),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    work = MatMulNBitsQuantizer(copy, algo_config=how)
    work.process()
    onnx.save(work.model.model, path)
    return path


def nibbles(raw: np.ndarray, columns: int) -> np.ndarray:
    """Numbers of 4 bits ``[rows, columns]``, two to a byte, the first in the lower half."""
    flat = raw.reshape(len(raw), -1)
    return np.stack([flat & 15, flat >> 4], -1).reshape(len(raw), -1)[:, :columns].astype(np.float32)


def given_weights(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Signed codes, scales and zero points of rows of each product, by its output, as the file holds them."""
    arrays = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            sizes = {item.name: item.i for item in node.attribute}
            codes, scale, zero = (arrays[name].reshape(sizes["N"], -1) for name in node.input[1:4])
            found[node.output[0]] = (nibbles(codes, sizes["K"]) - 8, scale, nibbles(zero, scale.shape[1]) - 8)
        elif node.op_type == "MatMul":
            codes, scale, *zero = (arrays[name].astype(np.float32).T for name in made[node.input[1]].input)
            half = 8 if zero else 0
            found[node.output[0]] = (codes - half, scale, zero[0] - half if zero else np.zeros_like(scale))
    return found


def exact_logits(path: Path, ids: np.ndarray) -> np.ndarray:
    """Logits float32[seq, vocab] by onnxruntime, which rounds activations where it may."""
    model = onnx.load(path)
    for node in model.graph.node:
        for item in node.attribute:
            if item.name == "accuracy_level":
                item.i = 1
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: ids[None]})[0][0]


@pytest.fixture(scope="module", params=FORMS)
def case(request, floats, tmp_path_factory):
    """A quantized file and what it compiles to with everything else in single precision."""
    folder = tmp_path_factory.mktemp("quantized")
    path = quantized(floats, folder / "model.onnx", request.param)
    return path, compiled(path, folder / "out", "fp32", to="mnn-llm", tokenizer="none")


@pytest.mark.mnn
def test_codes_scales_and_zeros_are_those_of_the_file(case):
    path, out = case
    given, read = given_weights(onnx.load(path)), MnnModel(out)
    assert len(given) == len(read.linears) == 15
    for output, (codes, scale, zero) in given.items():
        (name,) = [name for name in read.linears if name.startswith(output)]
        np.testing.assert_array_equal(read.codes(name), codes)
        real = codes.reshape(len(codes), -1, 32) * scale[..., None] - (zero * scale)[..., None]
        np.testing.assert_array_equal(read.decode(name), real.reshape(codes.shape))


@pytest.mark.mnn
@pytest.mark.parametrize("version", each_release())
def test_every_release_gives_the_logits_of_the_file(case, version):
    path, out = case
    wanted = exact_logits(path, IDS)
    (result,) = run_actions(out, version, [pieces(IDS[:11], *([token] for token in IDS[11:]))])
    assert np.abs(logits_of(result) - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.mnn
def test_the_contract_says_which_weights_were_kept_and_which_were_stored_anew(floats, tmp_path):
    path = quantized(floats, tmp_path / "model.onnx", "zeros")
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


def test_weights_of_a_checkpoint_cannot_be_requantized(tmp_path):
    source = make_checkpoint(tmp_path / "source", "qwen2")
    with pytest.raises(LadingError, match=r"Q412.*matches no weight that is stored quantized"):
        compile_model(Request(str(source), tmp_path / "out", "default{requantize=[*]}", verify="none"))


@pytest.mark.parametrize("form", ["zeros", "MatMulNBits"])
def test_onnx_models_keep_the_constants_of_the_file(form, floats, tmp_path):
    path = quantized(floats, tmp_path / "model.onnx", form)
    out = compiled(path, tmp_path / "out", "onnx-fp32", to="onnx")
    given, made = (
        {item.name: numpy_helper.to_array(item) for item in onnx.load(source).graph.initializer}
        for source in (path, out / "model.onnx")
    )
    codes = [name for name, array in given.items() if array.dtype not in (np.float32, np.int64)]
    assert len(codes) == 30
    for name in codes:
        np.testing.assert_array_equal(given[name], made[name])


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
