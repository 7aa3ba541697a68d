"""Calibration data from files: how arrays are cut into samples, what is streamed, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from frontends.samples import load_samples
from ir.base.diag import LadingError
from ir.text.parser import parse


def graph_of(*inputs, outputs=("f32[n, 4]",)):
    lines = "\n".join(f"  input %{name}: {kind}" for name, kind in inputs)
    first = inputs[0][0]
    nodes = "\n".join(f"  %y{place}: {kind} = Foo(%{first})" for place, kind in enumerate(outputs))
    outs = "\n".join(f"  output %y{place}" for place in range(len(outputs)))
    return parse(f"lading 1\ngraph g {{\n  dim n = 1..64\n  dim m = 1..64\n{lines}\n{nodes}\n{outs}\n}}")


def feeds(samples):
    """Everything, in the order of the source."""
    source = samples.calibration.source
    return list(source.read(range(len(source))))


def image_graph():
    return graph_of(("x", "f32[1, 3, 4, 4]"), outputs=("f32[1, 4]",))


ARRAY = np.arange(10 * 3 * 4 * 4, dtype=np.float32).reshape(10, 3, 4, 4)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_a_fixed_batch_are_samples(tmp_path, save):
    save(tmp_path / "x.npz", x=ARRAY)
    samples = load_samples(tmp_path / "x.npz", image_graph())
    found = feeds(samples)
    assert len(found) == 10 and samples.read_as == "10 samples"
    assert all(np.array_equal(feed["x"], ARRAY[place : place + 1]) for place, feed in enumerate(found))
    assert samples.held_out.places == (4, 9) and len(samples.calibration) == 8
    assert np.array_equal(next(iter(samples.held_out))["x"], ARRAY[4:5])


def test_a_leading_axis_that_the_input_lacks_counts_samples(tmp_path):
    np.savez(tmp_path / "x.npz", x=ARRAY[:, None], scale=np.arange(10, dtype=np.float32))
    graph = graph_of(("x", "f32[1, 3, 4, 4]"), ("scale", "f32[]"), outputs=("f32[1, 4]",))
    found = feeds(load_samples(tmp_path / "x.npz", graph))
    assert [feed["scale"].item() for feed in found] == list(range(10))
    assert found[3]["x"].shape == (1, 3, 4, 4)


def test_rows_of_a_free_batch_are_taken_some_at_a_time(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((70, 8), np.float32))
    samples = load_samples(tmp_path / "x.npz", graph_of(("x", "f32[n, 8]")))
    assert [feed["x"].shape[0] for feed in feeds(samples)] == [32, 32, 6] and samples.read_as == "70 samples"


def test_an_axis_that_is_no_batch_is_never_cut(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((20, 8), np.float32))
    graph = graph_of(("x", "f32[n, 8]"), outputs=("f32[8, n]",))
    assert [feed["x"].shape for feed in feeds(load_samples(tmp_path / "x.npz", graph))] == [(20, 8)]


def test_images_are_a_batch_whatever_outputs_call_it(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((20, 3, 64, 64), np.float32))
    for output, count in (("f32[m, 6]", 4), ("f32[7, 6]", 1)):
        graph = graph_of(("x", "f32[n, 3, 64, 64]"), outputs=(output,))
        assert len(load_samples(tmp_path / "x.npz", graph).calibration.source) == count


def test_folders_of_archives_and_bare_arrays(tmp_path):
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", x=ARRAY[2 * number : 2 * number + 2])
    np.save(tmp_path / "last.npy", np.asfortranarray(ARRAY[6:8]))
    found = feeds(load_samples(tmp_path, image_graph()))
    assert np.array_equal(np.concatenate([feed["x"] for feed in found]), ARRAY[:8])


def test_onnx_test_data(tmp_path):
    graph = graph_of(("x", "f32[1, 3, 4, 4]"), ("k", "i64[2]"), outputs=("f32[1, 4]",))
    for number in range(2):
        folder = tmp_path / f"test_data_set_{number}"
        folder.mkdir()
        for place, array in enumerate((ARRAY[number : number + 1], np.array([number, 7]))):
            proto = onnx.numpy_helper.from_array(array, "x" if place == 0 else "")
            (folder / f"input_{place}.pb").write_bytes(proto.SerializeToString())
    found = feeds(load_samples(tmp_path, graph))
    assert [feed["k"].tolist() for feed in found] == [[0, 7], [1, 7]]
    assert len(feeds(load_samples(tmp_path / "test_data_set_1", graph))) == 1


def test_tensors_without_names_go_by_the_numbers_of_their_files(tmp_path):
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    for number in (10, 1):  # the other inputs' tensors have names
        (folder / f"input_{number}.pb").write_bytes(
            onnx.numpy_helper.from_array(np.full((1, 2), number, np.float32)).SerializeToString()
        )
    named = [name for name in "abcdefghijk" if name not in "bk"]
    for place, name in enumerate(named):
        tensor = onnx.numpy_helper.from_array(np.zeros((1, 2), np.float32), name)
        (folder / f"input_{20 + place}.pb").write_bytes(tensor.SerializeToString())
    graph = graph_of(*((name, "f32[1, 2]") for name in "abcdefghijk"))
    (feed,) = feeds(load_samples(folder, graph))
    assert feed["b"].max() == 1 and feed["k"].max() == 10 and not feed["a"].any()


def test_numbers_of_another_width_are_converted(tmp_path):
    np.savez(tmp_path / "x.npz", x=ARRAY.astype(np.float64))
    assert feeds(load_samples(tmp_path / "x.npz", image_graph()))[0]["x"].dtype == np.float32


def test_an_archive_is_read_a_sample_at_a_time(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", x=ARRAY)
    samples = load_samples(tmp_path / "x.npz", image_graph())
    counts = []
    read = np.frombuffer
    monkeypatch.setattr(np, "frombuffer", lambda data, *rest: counts.append(len(data)) or read(data, *rest))
    next(iter(samples.calibration))
    assert counts == [3 * 4 * 4 * 4]


def test_the_digest_is_that_of_what_is_read(tmp_path):
    np.savez(tmp_path / "x.npz", x=ARRAY)
    one = load_samples(tmp_path / "x.npz", image_graph())
    assert one.calibration.digest() == load_samples(tmp_path / "x.npz", image_graph()).calibration.digest()
    assert one.calibration.digest() != one.calibration.first(3).digest()
    np.savez(tmp_path / "x.npz", x=ARRAY[:7])
    assert one.calibration.digest() != load_samples(tmp_path / "x.npz", image_graph()).calibration.digest()


def refused(path, graph=None):
    with pytest.raises(LadingError) as error:
        feeds(load_samples(path, graph or image_graph()))
    return error.value


def test_what_cannot_be_read_is_told(tmp_path):
    bad = tmp_path / "x.npz"
    assert refused(tmp_path / "missing").code == "Q473"
    (tmp_path / "empty").mkdir()
    assert "no calibration data" in str(refused(tmp_path / "empty"))
    bad.write_bytes(b"PK not really")
    assert refused(bad).code == "Q473"
    np.savez(bad, x=ARRAY)
    data = bad.read_bytes()
    bad.write_bytes(data[: len(data) // 2])
    assert refused(bad).code == "Q473"
    np.savez(bad, x=np.array([{"a": 1}], dtype=object))
    assert "Python objects" in str(refused(bad))
    np.savez(bad, x=ARRAY[:0])
    assert refused(bad).code == "Q473"
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    (folder / "input_0.pb").write_bytes(b"\xff\xff\xff")
    assert "no tensor" in str(refused(folder))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": ARRAY}, "no array 'x'; it has X"),
        ({"x": ARRAY, "z": ARRAY}, "'z', which is no input"),
        ({"x": ARRAY[:, :2]}, "shape [1, 2, 4, 4]"),
        ({"x": ARRAY[0, 0]}, "shape [4, 4]"),
        ({"x": ARRAY.astype(np.complex64)}, "is complex64"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    error = refused(tmp_path / "x.npz")
    assert error.code == "Q474" and words in str(error)


def test_arrays_of_different_numbers_of_samples_are_told(tmp_path):
    graph = graph_of(("x", "f32[1, 3, 4, 4]"), ("z", "f32[1, 2]"), outputs=("f32[1, 4]",))
    np.savez(tmp_path / "x.npz", x=ARRAY, z=np.zeros((3, 2), np.float32))
    assert "10 of x, 3 of z" in str(refused(tmp_path / "x.npz", graph))


def test_a_bare_array_is_for_models_of_one_input(tmp_path):
    np.save(tmp_path / "x.npy", ARRAY)
    graph = graph_of(("x", "f32[1, 3, 4, 4]"), ("z", "f32[1, 2]"), outputs=("f32[1, 4]",))
    assert "give an .npz file with arrays x, z" in str(refused(tmp_path / "x.npy", graph))
