"""``compile --passes int8-static``: what it writes for onnxruntime, what it says, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from backends.contract import read
from backends.onnx.write import write
from ir.base.diag import LadingError
from ir.facts.int8_plan import Int8Plan
from passes.static_quant.measure import relative_error
from tests.support.cnns.small import branched_cnn, samples_for
from tests.support.paths import EXAMPLE
from tools.compile.job import Request, compile_model


@pytest.fixture
def model(tmp_path):
    """A network as a file, with calibration data beside it."""
    graph = branched_cnn()
    write(graph, tmp_path / "net.onnx")
    samples = samples_for(graph, count=20)
    everything = list(samples.calibration.source.read(range(20)))
    np.savez(tmp_path / "samples.npz", x=np.concatenate([feed["x"] for feed in everything]))
    return tmp_path / "net.onnx"


def compiled(model, pipeline="int8-static{products=1}", **options):
    request = Request(str(model), model.parent / "out", pipeline, to="onnx", force=True, **options)
    return compile_model(request)


def test_a_network_becomes_integers_and_is_verified_on_held_out_samples(model):
    result = compiled(model, calibration=model.parent / "samples.npz")
    assert ("calibrated", f"on 20 samples of {model.parent / 'samples.npz'}") in list(result.lines)
    assert not result.warnings
    plan = result.facts["int8-plan"]
    assert isinstance(plan, Int8Plan) and len(plan.int8) >= 3 and plan.error is not None
    written = onnx.load(result.out / "model.onnx")
    onnx.checker.check_model(written, full_check=True)
    held = np.load(model.parent / "samples.npz")["x"][4::5]
    outputs = []
    for path in (model, result.out / "model.onnx"):
        session = onnxruntime.InferenceSession(str(path))
        outputs.append([session.run(None, {"x": array[None]}) for array in held])
    error = relative_error(*outputs)
    assert error < 0.02
    contract = read(result.out)
    assert contract.pipeline.text.endswith("insert-static-qdq,dce")
    assert {entry.storage.bits for entry in contract.weights if len(entry.shape) == 4} == {8}
    assert [item.reference for item in contract.verified] == ["decoded weights", "float"]


def test_a_folder_of_archives_will_do(model):
    array = np.load(model.parent / "samples.npz")["x"]
    folder = model.parent / "many"
    folder.mkdir()
    for number in range(10):
        np.savez(folder / f"{number}.npz", x=array[number : number + 1])
    result = compiled(model, calibration=folder)
    assert ("calibrated", f"on 10 samples of {folder}") in list(result.lines)


def refused(model, **options):
    with pytest.raises(LadingError) as error:
        compiled(model, **options)
    assert not (model.parent / "out").exists()
    return error.value


def test_without_calibration_data_it_says_what_to_give(model):
    error = refused(model)
    assert error.code == "Q472" and "--calibration FILE.npz" in error.diagnostics[0].hint


def test_text_is_no_calibration_data_for_a_network(model):
    text = model.parent / "chats.jsonl"
    text.write_text('{"text": "hello"}\n')
    assert refused(model, calibration=text).code == "Q473"


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(LadingError) as error:
        compile_model(Request(str(EXAMPLE), tmp_path / "out", "onnx-int4", to="onnx", calibration=tmp_path))
    assert error.value.code == "U918"


@pytest.mark.parametrize("given", [False, True])
def test_a_language_model_is_told_what_to_do_instead(tmp_path, given):
    np.savez(tmp_path / "x.npz", input_ids=np.zeros((4, 8), np.int64))
    calibration = tmp_path / "x.npz" if given else None
    with pytest.raises(LadingError) as error:
        compile_model(Request(str(EXAMPLE), tmp_path / "out", "int8-static", to="onnx", calibration=calibration))
    assert error.value.code == "Q478"
