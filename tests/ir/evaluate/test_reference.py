"""What a model means: its file in onnxruntime, in ONNX's own evaluator, and the values inside it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.evaluate.kernels import run_file
from ir.evaluate.reference import open_reference
from tests.support.modules.models import one_node

F32 = TensorProto.FLOAT


def chain(*ops: str, dtype: int = F32) -> onnx.ModelProto:
    """Operators on one value one after the other, whose results are called by their numbers."""
    model = one_node(ops[0], [(dtype, ["n"])], [(dtype, ["n"])], 21)
    del model.graph.node[:]
    names = ["x0", *(f"v{number}" for number in range(1, len(ops))), "y0"]
    model.graph.node.extend(helper.make_node(op, [a], [b]) for op, a, b in zip(ops, names[:-1], names[1:], strict=True))
    return readable(model)


def readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a version of the format that onnxruntime reads."""
    model.ir_version = 10
    return model


@pytest.mark.parametrize("dtype", [F32, TensorProto.DOUBLE])
def test_inner_values_are_given_too(dtype, tmp_path):
    """onnxruntime has a kernel of the last operator for the first element type only; ONNX's own evaluator has both."""
    onnx.save(chain("Abs", "Sqrt", "Cosh", dtype=dtype), path := tmp_path / "model.onnx")
    reference = open_reference(path, load(path))
    assert ("onnxruntime" in reference.name) == (dtype == F32) and reference.outputs == ["y0"]
    feeds = {"x0": np.array([-4.0, 0.0], helper.tensor_dtype_to_np_dtype(dtype))}
    np.testing.assert_allclose(reference.run(feeds)["y0"], np.cosh([2.0, 0.0]), rtol=1e-6)
    found = reference.run(feeds, ["v1", "v2", "y0"])
    assert found["v1"].tolist() == [4, 0] and found["v2"].tolist() == [2, 0] and found["y0"].shape == (2,)


@pytest.mark.parametrize("dtype", [F32, TensorProto.FLOAT16])
def test_sigmoids_are_as_precise_as_they_are_small(dtype, tmp_path):
    """onnxruntime's kernel gives multiples of 2^-25, up to 1.7e-7 off."""
    onnx.save(chain("Neg", "Sigmoid", "Abs", dtype=dtype), path := tmp_path / "model.onnx")
    reference = open_reference(path, load(path))
    x = np.linspace(-10, 80, 9001).astype(helper.tensor_dtype_to_np_dtype(dtype))
    exact = 1 / (1 + np.exp(x.astype(np.float64)))
    rtol, atol = (1e-6, 0) if dtype == F32 else (1e-3, 1e-7)
    found = reference.run({"x0": x}, ["v2", "y0"])
    for name in ("v2", "y0"):
        np.testing.assert_allclose(found[name].astype(np.float64), exact, rtol, atol)
    if dtype == F32:
        coarse, fine = (
            run_file(path, [{"x0": x}], optimized=False, foreign=True, fine=fine)[0]["y0"] for fine in (False, True)
        )
        assert np.array_equal(fine, found["y0"]) and np.abs(coarse - exact).max() > 5e-8


def test_sigmoids_of_branches_are_precise_too(tmp_path):
    def branch(op: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["v1"], ["r"])
        return helper.make_graph([node], op, [], [helper.make_tensor_value_info("r", F32, None)])

    model = chain("Neg", "Identity")
    del model.graph.node[:]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.extend([
        helper.make_node("Neg", ["x0"], ["v1"]),
        helper.make_node("If", ["yes"], ["y0"], then_branch=branch("Sigmoid"), else_branch=branch("Neg")),
    ])  # fmt: skip
    onnx.save(model, path := tmp_path / "model.onnx")
    found = open_reference(path, load(path)).run({"x0": np.array([40.0], np.float32)})["y0"]
    np.testing.assert_allclose(found, np.exp(-40.0), rtol=1e-6)


def test_a_graph_of_no_file_is_computed_by_its_definitions():
    reference = open_reference(None, load(chain("Abs", "Sqrt")))
    feeds = {"x0": np.array([-4.0], np.float32)}
    assert reference.run(feeds)["y0"].tolist() == [2] and reference.run(feeds, ["v1"])["v1"].tolist() == [4]


def test_what_nobody_computes_is_told_in_the_words_of_onnxruntime(tmp_path):
    model = chain("Abs")
    model.graph.node[0].domain = "somebody"
    model.opset_import.append(helper.make_opsetid("somebody", 1))
    onnx.save(model, path := tmp_path / "model.onnx")
    with pytest.raises(LadingError, match=r"onnxruntime.*somebody") as caught:
        open_reference(path, load(path))
    assert caught.value.code == "T220"


def test_the_model_is_loaded_again_after_inputs_that_end_its_process(tmp_path):
    types = [(TensorProto.INT32, [1])] * 2
    onnx.save(readable(one_node("Div", types, types[:1], opset=21)), path := tmp_path / "model.onnx")
    reference = open_reference(path, load(path))
    one = np.ones(1, np.int32)
    with pytest.raises(LadingError) as caught:
        reference.run({"x0": one * np.iinfo(np.int32).min, "x1": -one})
    assert caught.value.code == "T280"
    assert reference.run({"x0": one * 6, "x1": one * 2})["y0"].tolist() == [3]


def test_an_input_that_is_returned_stays_what_it_was(tmp_path):
    model = chain("Relu")
    model.graph.output.append(model.graph.input[0])
    onnx.save(model, path := tmp_path / "model.onnx")
    reference = open_reference(path, load(path))
    fed = [np.full(size, size, np.float32) for size in (2, 3, 5)]
    assert [reference.run({"x0": array})["x0"].tolist() for array in fed] == [array.tolist() for array in fed]
