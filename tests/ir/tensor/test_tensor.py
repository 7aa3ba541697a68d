"""Lazy tensors: every way of reading gives the numbers that numpy gives for the whole array."""

from __future__ import annotations

import os
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ir.base.diag import LadingError
from ir.base.types import BF16, DTYPES, F16, F32, F64, I64, TensorType
from ir.tensor import rearranged as rows
from ir.tensor import rotated as rotation
from ir.tensor.base import Derived, Tensor, same_tensor
from ir.tensor.elementwise import cast, convert, multiplied, scaled, shifted
from ir.tensor.files import FILES, Files, FileTensor, find_source
from ir.tensor.inline import InlineTensor, array_of, bytes_of
from ir.tensor.low_rank import low_rank, row_lengths
from ir.tensor.rearranged import reshaped, row_concat, row_gather, row_permute, row_slice, transposed
from ir.tensor.recipes import RECIPES
from ir.tensor.rotated import rotated, rotation_matrix

STORED = [row for row in DTYPES.values() if row.kind in "fiub" and row.name not in ("i3", "i5", "i6", "i7")]


def rebuilt(tensor: Tensor) -> Tensor:
    name, args, kwargs = tensor.recipe()
    return RECIPES[name](*[rebuilt(arg) if isinstance(arg, Tensor) else arg for arg in args], **kwargs)


def values_of(dtype, count: int, seed: int = 0) -> np.ndarray:
    """Random elements of a type, as numpy holds them."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        return rng.integers(-3, 4, count).astype(np.float32).astype(dtype.numpy)
    if dtype.kind == "b":
        return rng.integers(0, 2, count).astype(bool)
    return rng.integers(max(dtype.low, -1000), min(dtype.high, 1000) + 1, count).astype(dtype.numpy)


def on_disk(path, array: np.ndarray, dtype, before: int = 0, key: str = "w") -> FileTensor:
    path.write_bytes(b"\xff" * before + bytes_of(array, dtype) + b"\xff" * 9)
    return FileTensor(path, before, TensorType(dtype, array.shape), key)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def code_of(call) -> str:
    with pytest.raises(LadingError) as caught:
        call()
    return caught.value.code


# --- storage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (4, 8), (7,), (), (3, 1, 5), (0, 4), (4, 0)], ids=str)
def test_a_file_tensor_reads_every_type_at_any_place(tmp_path, dtype, shape):
    array = values_of(dtype, int(np.prod(shape))).reshape(shape)
    tensor = on_disk(tmp_path / "t.bin", array, dtype, before=3)
    assert same(tensor.load(), array)
    assert tensor.nbytes == dtype.nbytes(array.size)
    assert tensor.loc == "t.bin:w"
    assert tensor.digest() == InlineTensor(array, dtype).digest()
    table = array.reshape((tensor.row_count, *shape[1:]))
    for start in range(tensor.row_count + 1):
        for stop in range(start, tensor.row_count + 1):
            assert same(tensor.rows(start, stop), table[start:stop])
    flat = array.reshape(-1)
    for start in range(array.size + 1):
        assert same(tensor.elements(start, array.size), flat[start:])


@pytest.mark.parametrize("name", ["i3", "i5", "i6", "i7", "i4", "u2", "str"])
def test_inline_tensors_hold_types_that_numpy_lacks(name):
    dtype = DTYPES[name]
    array = np.array(["a", "ü", ""], object) if name == "str" else np.array([dtype.low, 0, dtype.high])
    tensor = InlineTensor(array, dtype)
    assert tensor.type == TensorType(dtype, (3,))
    assert tensor.load().tolist() == array.tolist()
    assert rebuilt(tensor).load().tolist() == array.tolist()
    assert same_tensor(rebuilt(tensor), tensor)
    assert not same_tensor(InlineTensor(array[:2], dtype), tensor)


def test_inline_data_out_of_range_is_refused():
    assert code_of(lambda: InlineTensor([8], "i4")) == "T251"
    assert code_of(lambda: InlineTensor([-1], "u2")) == "T251"


def test_inline_tensors_take_any_memory_layout():
    array = np.arange(12, dtype=">f4").reshape(3, 4).T
    tensor = InlineTensor(array)
    assert tensor.type == TensorType(F32, (4, 3))
    assert np.array_equal(tensor.load(), array)
    with pytest.raises(ValueError, match="read-only"):
        tensor.load()[0, 0] = 1


def test_odd_widths_have_no_file_layout(tmp_path):
    with pytest.raises(ValueError, match="no layout"):
        FileTensor(tmp_path / "x", 0, TensorType(DTYPES["i3"], (8,)))


@given(st.sampled_from(["i4", "u4", "i2", "u2", "f4e2m1"]), st.integers(0, 40), st.integers(0, 1000))
def test_packing_below_a_byte_is_undone(name, count, seed):
    dtype = DTYPES[name]
    array = values_of(dtype, count, seed)
    raw = bytes_of(array, dtype)
    assert len(raw) == dtype.nbytes(count)
    assert same(array_of(raw, dtype, count), array)


def test_the_first_element_is_in_the_lowest_bits():
    assert bytes_of(np.array([1, -1, 2]).astype(ml_dtypes.int4), DTYPES["i4"]) == b"\xf1\x02"
    assert bytes_of(np.array([1, 2, 3, 0, 1]).astype(ml_dtypes.uint2), DTYPES["u2"]) == b"\x39\x01"


def test_missing_irregular_and_short_files_are_named(tmp_path):
    kind = TensorType(F32, (4,))
    missing = FileTensor(tmp_path / "none.bin", 0, kind)
    assert code_of(missing.load) == "T252"
    assert code_of(FileTensor(tmp_path, 0, kind).load) == "T252"
    os.mkfifo(tmp_path / "pipe")
    assert code_of(FileTensor(tmp_path / "pipe", 0, kind).load) == "T252"
    (tmp_path / "short.bin").write_bytes(b"\0" * 15)
    short = FileTensor(tmp_path / "short.bin", 0, kind)
    assert short.rows(0, 3).tolist() == [0, 0, 0]
    assert code_of(short.load) == "T253"
    assert code_of(short.digest) == "T253"


def test_a_file_cut_while_it_is_open_is_an_error(tmp_path):
    path = tmp_path / "a.bin"
    tensor = on_disk(path, np.ones(1000, np.float32), F32)
    assert tensor.rows(999, 1000) == 1
    os.truncate(path, 100)
    assert code_of(lambda: tensor.rows(999, 1000)) == "T253"


def test_a_replaced_file_is_read_anew(tmp_path):
    tensor = on_disk(tmp_path / "a.bin", np.ones(3, np.float32), F32)
    assert tensor.load().tolist() == [1, 1, 1]
    on_disk(tmp_path / "b.bin", np.full(3, 2, np.float32), F32)
    os.replace(tmp_path / "b.bin", tmp_path / "a.bin")
    assert tensor.load().tolist() == [2, 2, 2]


def test_files_are_shared_bounded_and_closed(tmp_path):
    files = Files(limit=3)
    for name in "abcde":
        (tmp_path / name).write_bytes(name.encode())
    before = len(os.listdir("/proc/self/fd"))
    for name in "aabbcdeab":
        assert files.read(str(tmp_path / name), 0, 1).tobytes() == name.encode()
        assert len(files.paths()) <= 3
    assert len(os.listdir("/proc/self/fd")) == before + 3
    files.forget(str(tmp_path / "b"))
    files.forget("never opened")
    assert [os.path.basename(path) for path in files.paths()] == ["e", "a"]
    files.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_release_closes_the_files_below_a_recipe(tmp_path):
    base = on_disk(tmp_path / "a.bin", np.ones((4, 4), np.float32), F32)
    tensor = cast(transposed(base), BF16)
    tensor.load()
    assert base.path in FILES.paths()
    tensor.release()
    assert base.path not in FILES.paths()
    assert tensor.load().shape == (4, 4)


def test_reading_without_positioned_reads(tmp_path, monkeypatch):
    array = np.arange(1000, dtype=np.int32)
    tensor = on_disk(tmp_path / "a.bin", array, DTYPES["i32"])
    monkeypatch.delattr(os, "preadv")
    assert same(tensor.load(), array)
    assert code_of(lambda: FILES.read(tensor.path, 4000, 100)) == "T253"


def test_threads_read_the_same_file(tmp_path):
    array = np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)
    tensor = transposed(on_disk(tmp_path / "a.bin", array, F32))
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            low, high = np.sort(rng.integers(0, 65, 2))
            if not np.array_equal(tensor.rows(low, high), array.T[low:high]):
                wrong.append(seed)
            tensor.release()

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_streaming_does_not_grow_resident_memory(tmp_path):
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    path = tmp_path / "big.bin"
    with open(path, "wb") as file:
        file.truncate(256 << 20)
    tensor = cast(FileTensor(path, 0, TensorType(BF16, (1 << 15, 1 << 12))), F32)
    next(iter(tensor.pieces()))
    before = resident()
    assert sum(int(rows.any()) for _, _, rows in tensor.pieces()) == 0
    assert len(find_source(tensor)[0].digest()) == 64
    assert resident() - before < 40 << 20


# --- recipes against numpy --------------------------------------------------------------------------------------------


def matrix(shape, dtype=F32, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype.numpy)


STEPS = ("transpose", "slice", "concat", "gather", "cast", "scale", "shift", "reshape", "multiply")


@st.composite
def trees(draw, depth: int = 3):
    """A matrix recipe and the array it must equal."""
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
        array = matrix(shape, draw(st.sampled_from([F32, BF16, F16])), draw(st.integers(0, 99)))
        return InlineTensor(array), array
    tensor, array = draw(trees(depth - 1))
    rows, columns = array.shape
    dtype = tensor.type.dtype
    step = draw(st.sampled_from(STEPS))
    if step == "transpose":
        return transposed(tensor), array.T
    if step == "slice":
        low = draw(st.integers(0, rows - 1))
        high = draw(st.integers(low + 1, rows))
        return row_slice(tensor, low, high), array[low:high]
    if step == "concat":
        cut = draw(st.integers(0, rows))
        parts = [row_slice(tensor, cut, rows), tensor, row_slice(tensor, 0, cut)]
        return row_concat(parts), np.concatenate([array[cut:], array, array[:cut]])
    if step == "gather":
        index = draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=9))
        return row_gather(tensor, index), array[index]
    if step == "cast":
        target = draw(st.sampled_from([F32, BF16, F16, F64]))
        return cast(tensor, target), array.astype(target.numpy)
    if step == "reshape":
        return reshaped(tensor, (columns, rows)), array.reshape(columns, rows)
    wide = np.float64 if dtype == F64 else np.float32
    if step == "multiply":
        axis = draw(st.integers(0, 1))
        vector = matrix(array.shape[axis], F32, 7)
        factors = vector.astype(wide).reshape((-1, 1) if axis == 0 else (1, -1))
        return multiplied(tensor, InlineTensor(vector), axis), (array.astype(wide) * factors).astype(array.dtype)
    number = draw(st.sampled_from([1.0, 0.0, 0.3, -2.5]))
    if step == "scale":
        return scaled(tensor, number), (array.astype(wide) * wide(number)).astype(array.dtype)
    return shifted(tensor, number), (array.astype(wide) + wide(number)).astype(array.dtype)


@settings(max_examples=300, deadline=None)
@given(trees(), st.data())
def test_recipes_equal_numpy_in_every_range(tree, data):
    tensor, array = tree
    assert tensor.type.shape == array.shape
    assert tensor.type.dtype.numpy == array.dtype
    assert np.array_equal(tensor.load(), array)
    low = data.draw(st.integers(0, len(array)))
    high = data.draw(st.integers(low, len(array)))
    assert np.array_equal(tensor.rows(low, high), array[low:high])
    start = data.draw(st.integers(0, array.size))
    stop = data.draw(st.integers(start, array.size))
    assert np.array_equal(tensor.elements(start, stop), array.reshape(-1)[start:stop])
    joined = np.concatenate([rows for _, _, rows in tensor.pieces(budget=16)])
    assert np.array_equal(joined, array)


@settings(max_examples=150, deadline=None)
@given(trees(), trees())
def test_recipes_are_rebuilt_compared_and_pickled(first, second):
    tensor = first[0]
    again = rebuilt(tensor)
    assert again is not tensor
    assert again.type == tensor.type and again.loc == tensor.loc
    assert same_tensor(again, tensor)
    assert again.recipe()[0] == tensor.recipe()[0]
    assert again.digest() == tensor.digest()
    shipped = pickle.loads(pickle.dumps(tensor))
    assert same_tensor(shipped, tensor)
    assert same(shipped.load(), tensor.load())
    if same_tensor(tensor, second[0]):
        assert same(tensor.load(), second[0].load())


SIZES = (1, 2, 3, 8, 12, 24, 28, 30, 64, 896)


@pytest.mark.parametrize("size", SIZES)
def test_rotations_are_orthogonal_and_spread_one_coordinate_over_all(size):
    turn = rotation_matrix(size, 3)
    assert turn.dtype == np.float64
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), rtol=0, atol=1e-13)
    assert np.abs(turn).max() <= np.sqrt(2 / size) + 1e-12 or size == 1


def test_rotations_depend_on_the_seed_and_on_nothing_else():
    assert not np.array_equal(rotation_matrix(64, 0), rotation_matrix(64, 1))
    assert np.array_equal(rotation_matrix(64, 5), rotation_matrix(64, 5))
    # A Hadamard matrix of four over 2, columns in Sylvester's order, rows with the signs of seed 7.
    signs = rotation_matrix(4, 7)[:, 0] * 2
    assert signs.tolist() == [1, 1, 1, -1]
    assert (rotation_matrix(4, 7) * signs[:, None])[1].tolist() == [0.5, -0.5, 0.5, -0.5]


@pytest.mark.parametrize(("shape", "axis", "size"), [
    ((5, 12), 1, 12), ((70, 24), 1, 8), ((24, 5), 0, 24), ((24, 5), 0, 8), ((56, 9), 0, 56), ((7, 3), 0, 7), ((3, 7), 1, 7),
])  # fmt: skip
@pytest.mark.parametrize("groups", [1 << 24, 64])
def test_turning_is_a_product_with_the_matrix_in_every_range(shape, axis, size, groups, monkeypatch):
    monkeypatch.setattr(rotation, "GROUP_BYTES", groups)
    array = matrix(shape)
    tensor = rotated(InlineTensor(array), axis, size, 3)
    whole = np.kron(np.eye(shape[axis] // size), rotation_matrix(size, 3))
    expected = whole.T @ array if axis == 0 else array @ whole
    loaded = tensor.load()
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, expected, rtol=2e-7, atol=1e-7)
    for low in range(shape[0]):
        assert np.array_equal(tensor.rows(low, low + 1), loaded[low : low + 1])
    tensor.release()
    assert np.array_equal(tensor.rows(1, shape[0]), loaded[1:])
    assert np.array_equal(tensor.elements(2, 9), loaded.reshape(-1)[2:9])


def test_turning_reads_what_it_needs_of_a_file(tmp_path, monkeypatch):
    base = on_disk(tmp_path / "a.bin", matrix((64, 40)), F32)
    reads: list[int] = []
    read = FILES.read
    monkeypatch.setattr(FILES, "read", lambda *args: reads.append(args[2]) or read(*args))
    monkeypatch.setattr(rotation, "GROUP_BYTES", 16 * 40 * 8)
    tensor = rotated(base, 0, 32, 0)
    first = tensor.rows(0, 16)
    assert sum(reads) == 32 * 40 * 4
    assert np.array_equal(tensor.rows(3, 7), first[3:7])
    assert sum(reads) == 32 * 40 * 4


def test_a_turned_vector_and_half_precision():
    vector = matrix((24,))
    whole = rotation_matrix(24, 1)
    np.testing.assert_allclose(rotated(InlineTensor(vector), 0, 24, 1).load(), vector @ whole, rtol=2e-7, atol=1e-7)
    half = InlineTensor(matrix((3, 24)).astype(np.float16))
    turned = rotated(half, 1, 24, 1)
    assert turned.type == half.type
    assert np.array_equal(turned.load(), (half.load().astype(np.float64) @ whole).astype(np.float16))


def test_turned_tensors_are_rebuilt_and_pickled():
    tensor = rotated(InlineTensor(matrix((24, 8))), 0, 8, 2)
    for again in (rebuilt(tensor), pickle.loads(pickle.dumps(tensor))):
        assert same_tensor(again, tensor) and same(again.load(), tensor.load())
    assert not same_tensor(tensor, rotated(InlineTensor(matrix((24, 8))), 0, 8, 3))


def test_rank_zero_has_one_row():
    scalar = InlineTensor(np.float32(2))
    doubled = scaled(cast(scalar, F64), 2)
    assert doubled.row_count == 1
    assert same(doubled.rows(0, 1), np.array([4.0]))
    assert same(doubled.load(), np.array(4.0))
    assert same(reshaped(doubled, (1, 1)).load(), np.array([[4.0]]))


def test_rows_outside_the_tensor_are_a_mistake():
    base = InlineTensor(matrix((4, 2)))
    for tensor in (base, transposed(reshaped(base, (2, 4))), scaled(base, 3)):
        for low, high in ((-1, 2), (0, 5), (3, 2)):
            with pytest.raises(IndexError):
                tensor.rows(low, high)


def test_a_transpose_of_a_file_reads_it_once_per_slab(tmp_path, monkeypatch):
    array = matrix((300, 40))
    base = on_disk(tmp_path / "a.bin", array, F32)
    reads: list[int] = []
    read = FILES.read
    monkeypatch.setattr(FILES, "read", lambda *args: reads.append(1) or read(*args))
    monkeypatch.setattr(rows, "SLAB_BYTES", 300 * 4 * 20)
    tensor = transposed(base)
    assert np.array_equal(np.concatenate([tensor.rows(at, at + 4) for at in range(0, 40, 4)]), array.T)
    assert len(reads) == 2
    assert np.array_equal(tensor.rows(0, 40), array.T)
    tensor.release()
    assert np.array_equal(tensor.rows(3, 5), array.T[3:5])
    assert len(reads) == 4


@pytest.mark.parametrize("kind", ["plain", "cast", "reshaped", "u4"])
def test_a_transpose_of_long_rows_reads_every_byte_once(kind, tmp_path, monkeypatch):
    if kind == "u4":
        array = np.random.default_rng(3).integers(0, 16, (6, 16384)).astype(np.uint8)
        (tmp_path / "a.bin").write_bytes(bytes_of(array, DTYPES["u4"]))
        base = FileTensor(tmp_path / "a.bin", 0, TensorType(DTYPES["u4"], array.shape))
    else:
        array = matrix((6, 4096))
        base = on_disk(
            tmp_path / "a.bin", array.astype(np.float16) if kind == "cast" else array, F16 if kind == "cast" else F32
        )
        array = array.astype(np.float16).astype(np.float32) if kind == "cast" else array
        base = cast(base, F32) if kind == "cast" else base
        base = reshaped(reshaped(base, (24, 1024)), (6, 4096)) if kind == "reshaped" else base
    counts: list[int] = []
    read = FILES.read
    monkeypatch.setattr(FILES, "read", lambda path, offset, count: counts.append(count) or read(path, offset, count))
    monkeypatch.setattr(rows, "SLAB_BYTES", 6 * 8192)
    tensor = transposed(base)
    step = tensor.row_count // 8
    found = np.concatenate([tensor.rows(at, at + step) for at in range(0, tensor.row_count, step)])
    assert np.array_equal(found.astype(array.dtype), array.T)
    assert len(counts) == 12 and sum(counts) == find_source(base)[0].nbytes


def test_constructors_simplify(tmp_path):
    base = on_disk(tmp_path / "a.bin", matrix((6, 4)), F32)
    assert transposed(transposed(base)) is base
    assert row_slice(base, 0, 6) is base
    assert row_slice(row_slice(base, 1, 5), 1, 3).recipe() == ("row_slice", (base, 2, 4), {})
    assert row_concat([base]) is base
    assert row_concat([row_slice(base, 0, 2), row_slice(base, 2, 6)]) is base
    assert row_concat([row_slice(base, 0, 0), base, row_slice(base, 3, 3)]) is base
    both = row_concat([base, base])
    assert row_concat([both, base]).recipe()[1] == (base, base, base)
    assert row_gather(base, [2, 3, 4]).recipe() == ("row_slice", (base, 2, 5), {})
    assert row_permute(base, range(6)) is base
    twice = row_gather(row_gather(base, [5, 0, 3]), [2, 0])
    assert twice.recipe()[1][0] is base
    assert twice.recipe()[1][1].load().tolist() == [3, 5]
    assert cast(base, F32) is base
    assert scaled(base, 1) is base
    assert shifted(base, 0) is base
    assert reshaped(base, (6, 4)) is base
    assert reshaped(reshaped(base, (24,)), (6, 4)) is base
    assert reshaped(reshaped(base, (24,)), (2, 12)).recipe()[1][0] is base


def test_casting_through_a_wider_type_is_dropped_and_a_narrower_is_kept():
    half = InlineTensor(matrix((2, 2), F16))
    assert cast(cast(half, F32), BF16).recipe()[1][0] is half
    assert cast(cast(half, F64), F16) is half
    kept = cast(cast(InlineTensor(matrix((2, 2))), BF16), F32)
    assert kept.recipe()[1][0].recipe()[0] == "cast"


@pytest.mark.parametrize(("axis", "size"), [(0, 5), (1, 3), (2, 2), (-1, 2), (1, 0)])
def test_turns_that_do_not_fit_are_diagnostics(axis, size):
    assert code_of(lambda: rotated(InlineTensor(np.ones((6, 4), np.float32)), axis, size, 0)) == "T254"
    assert code_of(lambda: rotated(InlineTensor(np.ones((6, 4), np.int32)), 0, 2, 0)) == "T254"


def test_bad_arguments_are_diagnostics():
    base = InlineTensor(matrix((6, 4)))
    whole = InlineTensor(np.arange(6).reshape(2, 3))
    vector = InlineTensor(matrix((6,)))
    for call in (
        lambda: transposed(vector),
        lambda: row_slice(base, 2, 7),
        lambda: row_slice(base, -1, 2),
        lambda: row_slice(InlineTensor(1.0), 0, 1),
        lambda: row_concat([base, vector]),
        lambda: row_concat([base, cast(base, F16)]),
        lambda: row_gather(base, [6]),
        lambda: row_gather(base, [-1]),
        lambda: row_gather(base, [0.5]),
        lambda: row_gather(base, [[1]]),
        lambda: row_permute(base, [0, 1, 2, 3, 4, 4]),
        lambda: row_permute(base, [0, 1]),
        lambda: reshaped(base, (5, 5)),
        lambda: reshaped(base, (-6, -4)),
        lambda: cast(base, I64),
        lambda: cast(InlineTensor(["a"]), F32),
        lambda: scaled(whole, 2),
        lambda: scaled(base, float("nan")),
        lambda: scaled(base, 1e300),
        lambda: shifted(base, float("inf")),
        lambda: multiplied(base, vector, 1),
        lambda: multiplied(base, vector, 2),
        lambda: multiplied(base, InlineTensor(np.arange(6)), 0),
    ):
        assert code_of(call) == "T254"


def test_a_recipe_that_lies_about_its_type_is_caught():
    class Lying(Derived):
        name = "lying"

        def rows(self, start, stop):
            return np.zeros((stop - start, 3), self.found)

    tensor = Lying(TensorType(F32, (4, 2)), InlineTensor(matrix((4, 3))))
    for tensor.found in (np.float32, np.float64):
        assert code_of(tensor.load) == "T250"
    tensor.type = TensorType(F32, (4, 3))
    assert code_of(tensor.load) == "T250"


def test_recipes_are_open_and_clashes_are_refused():
    def negated(base: Tensor) -> Tensor:
        return scaled(base, -1.0)

    RECIPES.add("negated-for-test", negated)
    try:
        RECIPES.add("negated-for-test", negated)
        assert RECIPES["negated-for-test"](InlineTensor([1.0, 2.0])).load().tolist() == [-1, -2]
        with pytest.raises(LadingError, match="claimed"):
            RECIPES.add("cast", negated)
    finally:
        RECIPES.remove("negated-for-test")


def test_sources_and_places_of_a_recipe(tmp_path):
    a = on_disk(tmp_path / "a.bin", matrix((4, 4)), F32, key="a")
    b = on_disk(tmp_path / "b.bin", matrix((4, 4)), F32, key="b")
    tensor = row_concat([transposed(b), a, scaled(b, 2), multiplied(a, InlineTensor(matrix((4,))), 0)])
    assert find_source(tensor) == [b, a]
    assert tensor.loc == "b.bin:b and 1 more"
    assert transposed(a).loc == "a.bin:a"
    assert find_source(InlineTensor([1])) == []


def test_files_differ_by_place_and_type_without_being_read(tmp_path):
    kind = TensorType(F32, (4,))
    first = FileTensor(tmp_path / "x", 0, kind, "k")
    assert same_tensor(first, FileTensor(str(tmp_path / "x"), 0, kind, "k"))
    assert not same_tensor(first, FileTensor(tmp_path / "y", 0, kind, "k"))
    assert not same_tensor(first, FileTensor(tmp_path / "x", 4, kind, "k"))
    assert not same_tensor(first, FileTensor(tmp_path / "x", 0, kind, "l"))
    assert not same_tensor(first, FileTensor(tmp_path / "x", 0, TensorType(F32, (2, 2)), "k"))
    assert not same_tensor(scaled(first, 2), scaled(first, 3))
    assert same_tensor(rebuilt(first), first)


def test_symbolic_shapes_are_refused():
    with pytest.raises(ValueError, match="static"):
        FileTensor("x", 0, TensorType(F32, None))


# --- conversion -------------------------------------------------------------------------------------------------------


NARROW = ["f16", "bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0", "f4e2m1"]


@pytest.mark.parametrize("source", NARROW)
@pytest.mark.parametrize("target", ["f32", "f64", "bf16"])
def test_conversion_of_every_bit_pattern_equals_numpy(source, target):
    dtype = DTYPES[source]
    word = np.uint8 if dtype.bits <= 8 else np.uint16
    array = np.arange(1 << dtype.bits, dtype=word).view(dtype.numpy)
    with np.errstate(invalid="ignore"):
        expected = array.astype(DTYPES[target].numpy)
    assert same(convert(array, DTYPES[target]), expected)
    finite = array[np.isfinite(array.astype(np.float32))]
    assert same(convert(finite, DTYPES[target]), finite.astype(DTYPES[target].numpy))


def test_conversion_agrees_with_torch():
    torch = pytest.importorskip("torch")
    words = np.arange(1 << 8, dtype=np.uint8)
    for name, kind in (("f8e4m3fn", torch.float8_e4m3fn), ("f8e5m2", torch.float8_e5m2)):
        theirs = torch.from_numpy(words.copy()).view(kind).float().numpy()
        assert np.array_equal(convert(words.view(DTYPES[name].numpy), F32), theirs, equal_nan=True)


def test_numbers_too_large_for_the_type_are_errors():
    assert code_of(cast(InlineTensor([1e5], F32), F16).load) == "T255"
    assert code_of(scaled(InlineTensor([60000.0], F16), 2).load) == "T255"
    assert code_of(scaled(InlineTensor([3e38], F32), 2).load) == "T255"
    assert np.isinf(cast(InlineTensor(np.array([np.inf], np.float32)), F16).load()[0])
    assert cast(InlineTensor([65504.0], F32), F16).load()[0] == 65504


# --- low rank ---------------------------------------------------------------------------------------------------------


def test_a_product_of_thin_matrices_is_added(tmp_path) -> None:
    rng = np.random.default_rng(0)
    base, left, right = (rng.standard_normal(shape, np.float32) for shape in ((150, 40), (150, 3), (3, 40)))
    stored = on_disk(tmp_path / "w", base.astype(ml_dtypes.bfloat16), BF16)
    tensor = low_rank(stored, InlineTensor(left), InlineTensor(right), 0.5)
    wanted = base.astype(ml_dtypes.bfloat16).astype(np.float64) + 0.5 * (left.astype(np.float64) @ right)
    assert tensor.type == TensorType(F32, (150, 40))
    np.testing.assert_allclose(tensor.load(), wanted, rtol=1e-6, atol=1e-6)
    for other in (rebuilt(tensor), pickle.loads(pickle.dumps(tensor))):
        assert same(other.rows(63, 129), tensor.load()[63:129])
    assert low_rank(cast(stored, F64), InlineTensor(left), InlineTensor(right), 1.0).type.dtype == F64
    tensor.release()
    assert same(tensor.rows(149, 150), tensor.load()[149:])


def test_bits_of_a_product_do_not_depend_on_threads() -> None:
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    parts = [InlineTensor(rng.standard_normal(shape, np.float32)) for shape in ((700, 900), (700, 64), (64, 900))]
    found = []
    for limit in (1, 2):
        with threadpool_limits(limit, "blas"):
            found.append(low_rank(*parts, 2.0).load())
    assert same(*found)


def test_rows_get_the_lengths_that_they_are_given() -> None:
    rng = np.random.default_rng(0)
    rows, lengths = rng.standard_normal((9, 5), np.float32), rng.random(9, np.float32) + 1
    tensor = row_lengths(InlineTensor(rows), InlineTensor(lengths))
    np.testing.assert_allclose(np.linalg.norm(tensor.load(), axis=1), lengths, rtol=1e-6)
    np.testing.assert_allclose(tensor.load() / rows, np.repeat((tensor.load() / rows)[:, :1], 5, 1), rtol=1e-5)
    assert same(rebuilt(tensor).rows(2, 4), tensor.load()[2:4])


def test_factors_and_lengths_that_do_not_fit() -> None:
    one, two, tall = (InlineTensor(np.ones(shape, np.float32)) for shape in ((4, 4), (4, 2), (2, 5)))
    assert code_of(lambda: low_rank(one, two, tall, 1.0)) == "T254"
    assert code_of(lambda: low_rank(one, two, transposed(two), float("nan"))) == "T254"
    assert code_of(lambda: row_lengths(one, InlineTensor(np.ones(3, np.float32)))) == "T254"
    assert code_of(lambda: row_lengths(cast(one, F16), InlineTensor(np.ones(4, np.float32)))) == "T254"
