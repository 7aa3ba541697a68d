"""Made-up inputs: what readers can work with, sizes that the model accepts, and the kinds of numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.evaluate.feed_sets import FeedSet, feed_sets
from ir.evaluate.reference import open_reference
from tests.support.modules.models import one_node

F32, I32, I64, BOOL, U8 = (getattr(TensorProto, name) for name in ("FLOAT", "INT32", "INT64", "BOOL", "UINT8"))


def sets_of(model: onnx.ModelProto, tmp_path, most: int = 10) -> list[FeedSet]:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    graph = load(path)
    return feed_sets(graph, open_reference(path, graph).run, most=most, seconds=60)


def test_each_free_dimension_has_several_sizes(tmp_path):
    types = [(F32, ["batch", "seq", 4]), (F32, [4, "out"])]
    found = sets_of(one_node("MatMul", types, [(F32, ["batch", "seq", "out"])]), tmp_path)
    for name in ("batch", "seq", "out"):
        sizes = {item.sizes[name] for item in found}
        assert 1 in sizes and any(size % 2 for size in sizes - {1}) and max(sizes) > found[0].sizes[name]
    assert len(set(found[0].sizes.values())) == 3, "sizes that differ show what is taken for each other"
    assert {item.style for item in found} == {"normal", "special", "unit", "pixels"}
    assert len({item.seed for item in found}) == len(found)


def test_sizes_that_the_model_refuses_are_found_by_running_it(tmp_path):
    """The product needs as many columns as rows, whatever the file calls them; the pool needs places enough."""
    found = sets_of(one_node("MatMul", [(F32, ["a", "b"]), (F32, ["c", "d"])], [(F32, ["a", "d"])]), tmp_path)
    assert all(item.sizes["b"] == item.sizes["c"] for item in found)
    pool = one_node("MaxPool", [(F32, ["n", 1, "h", "w"])], [(F32, None)], kernel_shape=[9, 9], strides=[1, 1])
    found = sets_of(pool, tmp_path)
    assert min(item.sizes["h"] for item in found) >= 9 and len({item.sizes["w"] for item in found}) > 2


@pytest.mark.parametrize(
    ("model", "name", "low", "high"),
    [
        (one_node("Gather", [(F32, [5, 4]), (I64, ["k"])], [(F32, ["k", 4])]), "x1", -5, 4),
        (one_node("GatherElements", [(F32, [5, 4]), (I64, [3, 4])], [(F32, [3, 4])], axis=0), "x1", -5, 4),
        (one_node("GatherND", [(F32, [5, 4]), (I64, [6, 2])], [(F32, [6])]), "x1", -5, 4),
        (one_node("ScatterND", [(F32, [5, 4]), (I64, [3, 1]), (F32, [3, 4])], [(F32, [5, 4])]), "x1", -5, 4),
        (one_node("ScatterElements", [(F32, [5, 4]), (I64, [3, 2]), (F32, [3, 2])], [(F32, [5, 4])]), "x1", -5, 4),
        (one_node("CumSum", [(F32, [5, 4]), (I32, [])], [(F32, [5, 4])]), "x1", -2, 1),
        (one_node("TopK", [(F32, [5, 4]), (I64, [1])], [(F32, [5, "k"]), (I64, [5, "k"])], axis=0), "x1", 1, 5),
        (one_node("Tile", [(F32, [5, 4]), (I64, [2])], [(F32, ["a", "b"])]), "x1", 1, 3),
        (one_node("Reshape", [(F32, [5, 4]), (I64, [3])], [(F32, ["a", "b", "c"])]), "x1", -1, 20),
        (one_node("Expand", [(F32, [5, 1]), (I64, [3])], [(F32, ["a", "b", "c"])]), "x1", 1, 5),
        (one_node("Slice", [(F32, [5, 4]), *[(I64, [2])] * 2], [(F32, ["a", "b"])]), "x1", -5, 2),
        (one_node("Split", [(F32, [7, 4]), (I64, [3])], [(F32, None)] * 3), "x1", 2, 3),
        (one_node("ReduceSum", [(F32, [5, 4]), (I64, [1])], [(F32, None)]), "x1", -2, 1),
        (one_node("Squeeze", [(F32, [1, 4, 1]), (I64, [1])], [(F32, None)]), "x1", 0, 2),
        (one_node("Resize", [(F32, [1, 2, 4, 4]), *[(F32, [0])], (F32, [4])], [(F32, None)]), "x2", 0, 3),
        (one_node("Dropout", [(F32, [5, 4]), (F32, [])], [(F32, [5, 4])]), "x1", 0, 1),
        (one_node("Mod", [(I64, [5, 4]), (I64, [5, 4])], [(I64, [5, 4])]), "x1", -9, 9),
        (one_node("BitShift", [(U8, [5]), (U8, [5])], [(U8, [5])], direction="LEFT"), "x1", 0, 7),
        (one_node("Range", [(I64, [])] * 3, [(I64, ["k"])]), "x2", 1, 2),
        (one_node("Acosh", [(F32, [5])], [(F32, [5])]), "x0", -20, 20),
    ],
    ids=lambda value: value.graph.node[0].op_type if isinstance(value, onnx.ModelProto) else "",
)
def test_operands_are_what_their_reader_can_work_with(model, name, low, high, tmp_path):
    """At the first try: what is refused would make the numbers smaller until nothing is said any more."""
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    graph, tried = load(path), []
    reference = open_reference(path, graph)

    def run(feeds):
        tried.append(feeds)
        return reference.run(feeds)

    found = feed_sets(graph, run, most=6, seconds=60)
    assert len(found) == len(tried) >= 4
    numbers = np.concatenate([item.feeds[name].reshape(-1) for item in found])
    assert low <= numbers.min() and numbers.max() <= high


def test_numbers_that_nothing_bounds_have_their_whole_range(tmp_path):
    types = [(I64, [200]), (BOOL, [200]), (U8, [200]), (F32, [200])]
    nodes = [helper.make_node("Identity", [f"x{index}"], [f"y{index}"]) for index in range(4)]
    model = one_node("Identity", types, types)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    found = sets_of(model, tmp_path)
    whole, truth, small, real = ([item.feeds[f"x{index}"] for item in found] for index in range(4))
    assert np.min(whole) < -50 and np.max(whole) > 50
    assert all(set(item.tolist()) == {False, True} for item in truth)
    assert np.min(small) == 0 and np.max(small) > 200
    assert {0.0, 0.5, -2.5, 1.5} <= set(np.concatenate(real).tolist()), "zeros and ties"
    assert np.min(real) < -3


def test_images_are_also_bytes_and_shares(tmp_path):
    found = sets_of(one_node("Relu", [(F32, ["n", 3, "h", "w"])], [(F32, ["n", 3, "h", "w"])]), tmp_path)
    ranges = {item.style: (item.feeds["x0"].min(), item.feeds["x0"].max()) for item in found}
    assert ranges["unit"][0] >= 0 and ranges["unit"][1] <= 1 and ranges["pixels"][0] >= 0 and ranges["pixels"][1] > 200
    assert all(item.sizes["h"] != item.sizes["w"] or item.sizes["h"] == 1 for item in found)


def test_integers_that_the_analysis_does_not_understand_become_smaller(tmp_path):
    """Half of a number is an index: that is not followed, and found by trying."""
    graph = helper.make_graph(
        [
            helper.make_node("Div", ["i", "two"], ["j"]),
            helper.make_node("Gather", ["x", "j"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", F32, [3, 4]), helper.make_tensor_value_info("i", I64, [5])],
        [helper.make_tensor_value_info("y", F32, [5, 4])],
        [onnx.numpy_helper.from_array(np.array(2, np.int64), "two")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found = sets_of(model, tmp_path)
    assert len(found) >= 4 and all(0 <= item.feeds["i"].min() <= item.feeds["i"].max() <= 5 for item in found)


def test_inputs_of_unknown_rank_get_one_that_the_model_accepts(tmp_path):
    model = one_node("Conv", [(F32, None), (F32, [2, 3, 3, 3])], [(F32, None)])
    assert {item.feeds["x0"].ndim for item in sets_of(model, tmp_path)} == {4}


def test_equal_searches_give_equal_inputs(tmp_path):
    model = one_node("Gather", [(F32, ["n", 4]), (I64, ["k"])], [(F32, None)])
    for one, other in zip(sets_of(model, tmp_path), sets_of(model, tmp_path), strict=True):
        assert one.sizes == other.sizes and all(np.array_equal(x, other.feeds[name]) for name, x in one.feeds.items())


def test_a_model_that_accepts_nothing_is_named(tmp_path):
    model = one_node("MatMul", [(F32, ["n", 3]), (F32, [4, 5])], [(F32, None)])
    with pytest.raises(LadingError, match=r"none of .* sets of made-up inputs is accepted") as caught:
        sets_of(model, tmp_path)
    assert caught.value.code == "U965" and "--inputs" in caught.value.diagnostics[0].hint


def test_what_is_no_tensor_of_numbers_cannot_be_made_up(tmp_path):
    with pytest.raises(LadingError) as caught:
        sets_of(one_node("Identity", [(TensorProto.STRING, [2])], [(TensorProto.STRING, [2])]), tmp_path)
    assert caught.value.code == "T225"
