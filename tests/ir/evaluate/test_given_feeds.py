"""Real inputs from files: archives, folders of them, ONNX test data sets, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.evaluate.given_feeds import read_inputs
from tests.support.modules.models import one_node

F32, I64 = TensorProto.FLOAT, TensorProto.INT64
X, ROWS = np.arange(20, dtype=np.float32).reshape(5, 4), np.array([3, 0], np.int64)


@pytest.fixture
def graph():
    return load(one_node("Gather", [(F32, ["n", 4]), (I64, ["k"])], [(F32, ["k", 4])]))


def same(found, **wanted):
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_an_archive_is_one_set(graph, tmp_path):
    np.savez(tmp_path / "a.npz", x0=X.astype(np.float64), x1=ROWS.astype(np.int32))
    ((name, feeds),) = read_inputs(tmp_path / "a.npz", graph).items()
    assert name.endswith("a.npz")
    same(feeds, x0=X, x1=ROWS)


def test_a_folder_holds_archives_or_data_sets_in_the_order_of_their_numbers(graph, tmp_path):
    for number in (10, 9):
        np.savez(tmp_path / f"{number}.npz", x0=X + number, x1=ROWS)
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    (folder / "input_0.pb").write_bytes(numpy_helper.from_array(X, "x0").SerializeToString())
    (folder / "input_1.pb").write_bytes(numpy_helper.from_array(ROWS).SerializeToString())
    found = list(read_inputs(tmp_path, graph).values())
    assert [feeds["x0"][0, 0] for feeds in found] == [9, 10, 0]
    same(next(iter(read_inputs(folder, graph).values())), x0=X, x1=ROWS)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x0": X}, "there is no array for input 'x1'"),
        ({"x0": X, "x1": ROWS, "x2": ROWS}, "the model has no input 'x2'"),
        ({"x0": X[:, :3], "x1": ROWS}, "input 'x0' is f32\\[n, 4\\], the array is float32\\[5, 3\\]"),
        ({"x0": X, "x1": ROWS + 0.5}, "input 'x1' is i64\\[k\\], the array is float64\\[2\\]"),
        ({"x0": X.astype(np.int64), "x1": ROWS}, "the array is int64\\[5, 4\\]"),
    ],
)
def test_what_does_not_fit_is_named(arrays, message, graph, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(LadingError, match=message) as caught:
        read_inputs(tmp_path / "a.npz", graph)
    assert caught.value.code == "U963" and "a.npz" in caught.value.diagnostics[0].where


def test_what_cannot_be_read_is_named(graph, tmp_path):
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    np.savez(tmp_path / "pickled.npz", x0=np.array([{}], object))
    np.save(tmp_path / "single.npy", X)
    (tmp_path / "none").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "input_0.pb").write_bytes(b"\xff\xff\xff")
    for name in ("torn.npz", "pickled.npz", "single.npy", "none", "bad", "missing.npz"):
        with pytest.raises(LadingError) as caught:
            read_inputs(tmp_path / name, graph)
        assert caught.value.code == "U962" and name.partition(".")[0] in caught.value.diagnostics[0].where
    (tmp_path / "bad" / "input_0.pb").unlink()
    (tmp_path / "bad" / "input_7.pb").write_bytes(numpy_helper.from_array(X).SerializeToString())
    with pytest.raises(LadingError, match="no input number 7") as caught:
        read_inputs(tmp_path / "bad", graph)
    assert caught.value.code == "U963"
