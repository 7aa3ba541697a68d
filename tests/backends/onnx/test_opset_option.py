"""``--opset`` and ``--external-data``: how the ONNX model is written."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ir.base.diag import LadingError
from tools.compile.job import Request, compile_model


def model(path, op, **attrs):
    """One node over ``[n, 4]`` and a constant."""
    weight = numpy_helper.from_array(np.linspace(-1, 1, 4, dtype=np.float32), "w")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    node = helper.make_node(op, ["x", "w"], ["y"], **attrs)
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("opset", [9, 13, 17, 21])
def test_a_model_is_written_for_the_opset_asked_for(opset, tmp_path):
    source = model(tmp_path / "model.onnx", "Mul")
    compile_model(Request(str(source), tmp_path / "out", "canonicalize", to="onnx", opset=opset))
    written = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert {item.domain: item.version for item in written.opset_import} == {"": opset}
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    results = [onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
               for path in (source, tmp_path / "out" / "model.onnx")]  # fmt: skip
    np.testing.assert_array_equal(*results)


def test_what_an_opset_lacks_is_named(tmp_path):
    source = model(tmp_path / "model.onnx", "LayerNormalization")
    with pytest.raises(LadingError, match="opset 13 has no form of LayerNormalization") as caught:
        compile_model(Request(str(source), tmp_path / "out", "canonicalize", to="onnx", opset=13))
    assert caught.value.code == "U958" and not (tmp_path / "out").exists()


def test_weights_go_beside_the_model_where_that_is_asked_for(tmp_path):
    source = model(tmp_path / "model.onnx", "Mul")
    for name, external in (("inside", None), ("beside", True)):
        request = Request(str(source), tmp_path / name, "canonicalize", to="onnx", external_data=external)
        compile_model(request)
    assert not (tmp_path / "inside" / "model.onnx.data").exists()
    assert (tmp_path / "beside" / "model.onnx.data").stat().st_size == 16
