"""What a module computes wrong is refused: with the output, the inputs, the first node that is wrong, and what to do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.mnn.modules import verify as module
from backends.mnn.modules.closeness import Gap, misfit
from backends.mnn.modules.verify import Verification, verify
from backends.mnn.target.environments import module_packages
from ir.base.diag import LadingError
from tests.support.modules.faults import Runtime, chain, model_of, straight
from tests.support.modules.models import one_node

pytestmark = pytest.mark.mnn


def verified(subject, monkeypatch=None, compute=None, **options) -> Verification:
    if compute is not None:
        monkeypatch.setattr(module, "Converter", Runtime(compute))
    return verify(subject, versions=["3.6.1"], **options)


def only(found: Verification, code: str):
    (problem,) = found.problems
    assert problem.code == code and problem.severity == "error"
    with pytest.raises(LadingError, match=code):
        found.require()
    return problem


def test_what_is_right_is_measured(tmp_path):
    found = verified(straight(chain("Abs", "Sqrt", "Neg"), tmp_path))
    assert found.problems == found.warnings == [] and found.reference.startswith("onnxruntime")
    (one,) = found.measurements
    assert (one.release, one.reference, one.feeds) == ("3.6.1", "float", len(found.sets)) and one.error < 1e-6
    assert {item.sizes["n"] for item in found.sets} > {1} and len(found.sets) == 10
    assert len(verified(straight(chain("Abs"), tmp_path), level="full").sets) == 30


def test_every_release_of_the_target_that_is_there_is_run(tmp_path):
    versions = ["3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1"]
    found = verify(straight(chain("Abs"), tmp_path), versions=versions)
    assert [item.release for item in found.measurements] == list(module_packages(versions))


def test_the_first_node_that_differs_is_named(tmp_path):
    """MNN rounds halves away from zero; made-up inputs have ties."""
    found = verified(straight(chain("Neg", "Round", "Abs"), tmp_path))
    problem = only(found, "V703")
    assert "on MNN 3.6.1 output 'y' is" in problem.message and "onnxruntime" in problem.message
    assert (
        "zeros, ties and special numbers" in problem.where
        and "the first node that is wrong: %v2 = Round(%v1)" in problem.where
    )
    assert "node 'Round_2'" in problem.where and "lading reduce model.onnx" in problem.hint


def test_the_node_that_kills_the_process_is_named(tmp_path):
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["b"], name="pool", kernel_shape=[2, 2]),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    found = verified(straight(model_of(nodes, ["n", 1, 6, 6], ["n", 1, 5, 5]), tmp_path))
    problem = only(found, "V704")
    assert (
        "died of SIG" in problem.message
        and "the first node that is fatal: %b = MaxPool(%a), node 'pool'" in problem.where
    )


def test_another_shape_is_no_right_result(tmp_path):
    weight = numpy_helper.from_array(np.ones((2, 3, 3), np.float32), "w")
    model = model_of([helper.make_node("Conv", ["x", "w"], ["y"])], ["n", 3, 8], ["n", 2, 6])
    model.graph.initializer.append(weight)
    problem = only(verified(straight(model, tmp_path)), "V706")
    assert "has the shape [2, 2, 6, 1] where onnxruntime" in problem.message


def test_what_is_given_is_run_in_place_of_made_up_inputs(tmp_path):
    given = {"some.npz": {"x": np.full((3, 4), 2.5, np.float32)}, "more.npz": {"x": np.ones((1, 4), np.float32)}}
    found = verified(straight(chain("Round"), tmp_path), given=given)
    assert len(found.sets) == 2 and only(found, "V703").where.startswith("some.npz")
    integers = one_node("Neg", [(TensorProto.INT64, ["n"])], [(TensorProto.INT64, ["n"])], 21)
    with pytest.raises(LadingError, match="MNN holds 32-bit integers") as caught:
        verified(straight(integers, tmp_path), given={"big.npz": {"x0": np.array([1 << 40])}})
    assert caught.value.code == "U963"


def test_results_that_change_from_run_to_run_are_unstable(tmp_path, monkeypatch):
    """The first round is right, the second is not."""
    subject = straight(chain("Neg"), tmp_path)
    first: dict[bytes, int] = {}

    def compute(run, feeds):
        again = first.setdefault(feeds["x"].tobytes(), run) != run
        return {"y": -feeds["x"] + np.float32(1e-6) * again}

    problem = only(verified(subject, monkeypatch, compute), "V705")
    assert "when it runs again on the same inputs" in problem.message


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_no_number_where_one_belongs(odd, tmp_path, monkeypatch):
    def compute(run, feeds):
        found = -feeds["x"]
        found[-1, -1] = odd
        return {"y": found}

    problem = only(verified(straight(chain("Neg"), tmp_path), monkeypatch, compute), "V709")
    assert f"is {odd} at [1, 3] where onnxruntime" in problem.message


def test_integers_in_place_of_floats(tmp_path, monkeypatch):
    found = verified(
        straight(chain("Neg"), tmp_path), monkeypatch, lambda run, feeds: {"y": -feeds["x"].astype(np.int32)}
    )
    assert "holds int32 where onnxruntime" in only(found, "V706").message


def steep(tmp_path):
    """The last bit of the input decides what comes out."""
    nodes = [helper.make_node("Mul", ["x", "large"], ["v"]), helper.make_node("Sin", ["v"], ["y"])]
    model = model_of(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array(3e3, np.float32), "large"))
    return straight(model, tmp_path)


def test_rounding_that_grows_is_no_fault_of_an_operator(tmp_path, monkeypatch):
    """Of numbers this large the last bit is worth 2e-4 in the sine, so that nobody can say which result is right."""
    found = verified(
        steep(tmp_path),
        monkeypatch,
        lambda run, feeds: {"y": np.sin(feeds["x"].astype(float) * 3e3).astype(np.float32)},
    )
    assert found.problems == [] and found.measurements[0].error < 1e-3


def test_rounding_that_grows_too_far_is_told_as_what_it_is(tmp_path, monkeypatch):
    def compute(run, feeds):
        inner = (feeds["x"] * np.float32(3e3) * (1 + 5e-6)).astype(np.float32)
        return {"v": inner, "y": np.sin(inner)}

    found = verified(steep(tmp_path), monkeypatch, compute)
    problem = only(found, "V708")
    assert (
        "no operator is wrong by itself" in problem.message
        and "the first node where it shows: %y = Sin(%v)" in problem.where
    )


def test_sums_of_products_may_be_off_by_a_share_of_what_is_summed(tmp_path, monkeypatch):
    """Fast convolutions are; the weights are a node here, as exporters write them."""
    weight = np.zeros((1, 1, 3, 3), np.float32)
    weight[..., 1, 1] = -1
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    subject = straight(model_of(nodes, ["n", 1, 6, 6], ["n", 1, 4, 4]), tmp_path)

    def runtime(off):
        return lambda run, feeds: {"y": -feeds["x"][..., 1:-1, 1:-1] + np.float32(off)}

    found = verified(subject, monkeypatch, runtime(3e-4))
    assert found.problems == [] and [item.code for item in found.warnings] == ["V708"]
    assert "%y = Conv(%x, %w)" in only(verified(subject, monkeypatch, runtime(1e-1)), "V703").where


def faint(tmp_path):
    """Nearly all outputs are below 1e-5, as those of networks that find something in few places of an image."""
    nodes = [helper.make_node("Clip", ["x", "low", "high"], ["u"]), helper.make_node("Sub", ["u", "much"], ["v"])]
    model = model_of([*nodes, helper.make_node("Sigmoid", ["v"], ["y"])])
    numbers = {"low": -2.0, "high": 2.0, "much": 15.0}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(number, np.float32), name) for name, number in numbers.items()
    )
    return straight(model, tmp_path)


def test_probabilities_that_are_nearly_zero_are_compared_by_their_own_size(tmp_path, monkeypatch):
    """The sigmoid of onnxruntime is off by up to 1.7e-7, that of MNN by a share of what it is."""

    def off(share):
        def compute(run, feeds):
            inner = feeds["x"].clip(-2, 2) - np.float32(15)
            return {"u": inner + 15, "v": inner, "y": (1 + share) / (1 + np.exp(-inner))}

        return compute

    subject = faint(tmp_path)
    found = verified(subject)
    assert found.problems == found.warnings == [] and found.measurements[0].error < 1e-4
    (problem,) = verified(subject, monkeypatch, off(np.float32(0.01))).problems
    assert "outputs are off by 0.01 of their size" in problem.message
    assert verified(subject, monkeypatch, off(np.float32(0))).problems == []


def test_a_model_that_nobody_computes_is_not_called_verified(tmp_path):
    model = chain("Neg")
    subject = straight(model, tmp_path)
    model.graph.node[0].domain = "somebody"
    model.opset_import.append(helper.make_opsetid("somebody", 1))
    onnx.save(model, tmp_path / "model.onnx")
    found = verified(subject)
    assert found.measurements == [] and [item.code for item in found.warnings] == ["V707"]


def test_of_a_model_that_draws_numbers_shapes_are_compared(tmp_path, monkeypatch):
    model = model_of([helper.make_node("RandomNormalLike", ["x"], ["y"])])
    subject = straight(model, tmp_path)
    found = verified(subject, monkeypatch, lambda run, feeds: {"y": np.full_like(feeds["x"], run)})
    assert found.problems == [] and "other numbers for the same inputs" in found.warnings[0].message
    wrong = verified(subject, monkeypatch, lambda run, feeds: {"y": feeds["x"][:1, :1]})
    assert only(wrong, "V706")


# ---- closeness ----


@pytest.mark.parametrize(
    ("wanted", "got", "kind"),
    [
        ([1.0, 2.0], [1.0005, 2.0], ""),
        ([1.0, 2.0], [1.002, 2.0], "value"),
        ([1e-4, 2e-4], [1.5e-4, 2e-4], "value"),
        ([1000.0, 1e-5], [1000.0, 9e-5], ""),
        ([0.0, 0.0], [1e-8, 0.0], ""),
        ([0.0, 0.0], [1e-5, 0.0], "value"),
        ([np.nan, 1.0], [3.0, 1.0], ""),
        ([np.inf, 1.0], [np.inf, 1.0], ""),
        ([np.inf, 1.0], [3e38, 1.0], "value"),
        ([1.0, 1.0], [np.nan, 1.0], "not a number"),
    ],
)
def test_numbers_are_close_relative_to_what_they_are(wanted, got, kind):
    found = misfit(np.array(wanted, np.float32), np.array(got, np.float32))
    assert (found.kind if found is not None else "") == kind


def test_integers_and_booleans_are_equal_or_not():
    assert misfit(np.array([True, False]), np.array([1, 0], np.int32)) is None
    found = misfit(np.array([True, False]), np.array([1, 1], np.int32))
    assert found is not None and found.text == "is 1 at [1] where the original gives 0"
    assert misfit(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)) is None
    assert misfit(np.zeros((0, 3), np.float32), np.zeros((3, 0), np.float32)) is not None


def test_gaps_are_relative_to_the_output():
    gap = Gap()
    gap.add(0, np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    gap.add(1, np.array([100.0]), np.array([100.0]))
    assert gap.largest == 0.5 and gap.relative == pytest.approx(0.1)
